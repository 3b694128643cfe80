"""What a model looks like: names, dtypes and shapes of its tensors, and digests of values."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veilsum import _native
from veilsum.arrays import as_native, is_native, on_its_device, round_to_bfloat16, widen_bfloat16
from veilsum.errors import ConfigError

NUMPY_DTYPES: Mapping[str, np.dtype[Any]] = {
    name: np.dtype(code)
    for name, code in {
        "f16": "<f2",
        "bf16": "<u2",  # NumPy has no bfloat16: bit patterns
        "f32": "<f4",
        "f64": "<f8",
        "i8": "<i1",
        "i16": "<i2",
        "i32": "<i4",
        "i64": "<i8",
        "u8": "<u1",
        "u16": "<u2",
        "u32": "<u4",
        "u64": "<u8",
    }.items()
}
"""Layout dtype -> dtype of the NumPy arrays that hold its values."""


class ModelLayout:
    """The tensors of a model, in order: what every update of it must look like.

    Two layouts are equal when their canonical bytes are (docs/format.md).
    """

    def __init__(self, native: _native.Layout) -> None:
        """Wraps a native layout; see from_arrays and from_bytes."""
        self.native = native

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> ModelLayout:
        """The layout of a model's arrays, in the order of the mapping.

        Args:
            arrays: name -> anything with __dlpack__ or __array_interface__.

        Raises:
            ConfigError: no mapping, a dtype that cannot be averaged, or a limit of the format is
                passed.
        """
        if not isinstance(arrays, Mapping):
            raise ConfigError(
                f"a layout is made of arrays by name, not of a {type(arrays).__name__}",
                hint="give a dict, or the state_dict() of a module",
            )
        tensors = []
        for name, array in arrays.items():
            values, dtype = as_native(array, name)
            tensors.append((name, dtype, values.shape))
        return cls(_native.Layout(tensors))

    @classmethod
    def from_tensors(cls, tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> ModelLayout:
        """A layout of tensors whose values are elsewhere.

        Args:
            tensors: name, dtype (a key of NUMPY_DTYPES) and shape of each.

        Raises:
            ConfigError: an unknown dtype, a name twice, or a limit of the format is passed.
        """
        return cls(_native.Layout(list(tensors)))

    @classmethod
    def from_bytes(cls, data: bytes) -> ModelLayout:
        """Parses canonical bytes.

        Raises:
            DecodeError: they are not what to_bytes() writes.
        """
        return cls(_native.Layout.from_bytes(data))

    def to_bytes(self) -> bytes:
        """Canonical bytes: equal layouts have equal ones."""
        return self.native.to_bytes()

    @property
    def size(self) -> int:
        """Elements of all tensors."""
        return self.native.size

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors, in order."""
        return tuple(name for name, _, _ in self.native.tensors)

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the canonical bytes, 32 bytes."""
        return hashlib.sha256(self.to_bytes()).digest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ModelLayout) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"<ModelLayout of {len(self.names)} tensors, {self.size} elements>"


@dataclass(frozen=True, slots=True)
class TensorPart:
    """Consecutive elements of one tensor, in C order.

    Attributes:
        number: of the tensor in its layout.
        first, count: elements.
    """

    number: int
    first: int
    count: int


_PART_ELEMENTS = 1 << 20


def parts_of(layout: ModelLayout) -> Iterator[TensorPart]:
    """All elements of a layout, in order, in parts that are small beside a large model."""
    for number, (_, _, shape) in enumerate(layout.native.tensors):
        size = math.prod(shape)
        for first in range(0, size, _PART_ELEMENTS):
            yield TensorPart(number, first, min(_PART_ELEMENTS, size - first))


def flat_part(array: NDArray[Any], part: TensorPart) -> NDArray[Any]:
    """A view of a part of a tensor's C-contiguous array, shape (count,)."""
    return array.reshape(-1)[part.first : part.first + part.count]


class StoredModel(Mapping[str, NDArray[Any]]):
    """A model that lies elsewhere, in a file: read when asked for, and never kept.

    As a mapping it gives whole tensors, each time anew; whoever can do with parts takes those.

    Args:
        read: the elements of a part, shape (count,), in the layout's dtype (bfloat16 as uint16
            bit patterns). Raises ConfigError if they cannot be read.
    """

    def __init__(self, layout: ModelLayout, read: Callable[[TensorPart], NDArray[Any]]) -> None:
        self.layout = layout
        self.read = read
        self._numbers = {name: number for number, name in enumerate(layout.names)}

    def __getitem__(self, name: str) -> NDArray[Any]:
        number = self._numbers[name]
        shape = self.layout.native.tensors[number][2]
        return self.read(TensorPart(number, 0, math.prod(shape))).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)


def require_names(layout: ModelLayout, arrays: Mapping[str, Any]) -> None:
    """Raises ConfigError unless there is an array for each tensor and no other."""
    names = set(layout.names)
    if set(arrays) != names:
        missing, unknown = names - set(arrays), set(arrays) - names
        raise ConfigError(
            f"the arrays are not the layout's: {_some(missing)} missing, {_some(unknown)} unknown",
            hint="make the layout from the tensors that sites send, and from no others",
        )


def fit_arrays(layout: ModelLayout, arrays: Mapping[str, Any]) -> list[NDArray[Any]]:
    """One array per tensor, as the native core takes them: in layout order, C-contiguous.

    Nothing is copied that need not be. For a bfloat16 tensor an array may hold bfloat16
    (torch, ml_dtypes), bit patterns (uint16) or float32, which is rounded to the nearest
    bfloat16.

    Args:
        arrays: name -> anything with __dlpack__ or __array_interface__; any order.

    Raises:
        ConfigError: a tensor is missing, unknown, or of another shape or dtype.
    """
    require_names(layout, arrays)
    return [
        fit_array(arrays[name], name, dtype, shape) for name, dtype, shape in layout.native.tensors
    ]


def zero_not_finite(
    layout: ModelLayout, values: Sequence[NDArray[Any]]
) -> tuple[list[NDArray[Any]], int]:
    """Values without NaN and infinities, and how many of them were replaced by 0.

    Args:
        values: of fit_arrays(). None of them is changed: a tensor with such values is copied.
    """
    found, replaced = [], 0
    for array, (_, dtype, _) in zip(values, layout.native.tensors, strict=True):
        patterns = dtype == "bf16"
        bad = array & np.uint16(0x7F80) == 0x7F80 if patterns else ~np.isfinite(array)
        count = int(np.count_nonzero(bad))
        found.append(np.where(bad, array.dtype.type(0), array) if count else array)
        replaced += count
    return found, replaced


def widen_tensors(
    layout: ModelLayout, arrays: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """The arrays, with the bit patterns of bfloat16 tensors as the float32 they stand for."""
    return {
        name: widen_bfloat16(arrays[name]) if dtype == "bf16" else arrays[name]
        for name, dtype, _ in layout.native.tensors
    }


def _some(names: set[str]) -> str:
    shown = ", ".join(repr(name) for name in sorted(map(str, names))[:3])
    return f"{len(names)} ({shown}{', ...' if len(names) > 3 else ''})" if names else "none"


def _require_shape(name: str, found: tuple[int, ...], shape: tuple[int, ...]) -> None:
    if found != shape:
        raise ConfigError(f"tensor {name!r} has shape {found}, the layout has {shape}")


def fit_on_device(array: Any, name: str, dtype: str, shape: tuple[int, ...]) -> _native.DeviceArray:
    """One tensor of a layout where it lies in device memory.

    Raises:
        ConfigError: it is of another shape or dtype.
        DeviceError: the device fails.
    """
    found = on_its_device(array, name)
    _require_shape(name, found.shape, shape)
    if found.dtype != dtype:
        raise ConfigError(
            f"tensor {name!r} is {found.dtype}, the layout has {dtype}",
            hint="convert it on its device first",
        )
    return found


def is_resident(device: str, layout: ModelLayout, arrays: Mapping[str, Any]) -> bool:
    """Whether all floating-point tensors among some arrays lie in the memory of this device.

    Args:
        device: "cuda:0"; "" is none.
    """
    if not device:
        return False
    floating = [arrays[name] for name in floating_names(layout) if name in arrays]
    return bool(floating) and all(
        _native.is_device_array(array) and on_its_device(array, "").device == device
        for array in floating
    )


def fit_resident(layout: ModelLayout, arrays: Mapping[str, Any]) -> list[Any]:
    """Floating-point tensors where they lie in device memory, integer ones in host memory, in
    layout order.

    Raises:
        ConfigError: as fit_arrays, or as fit_on_device.
        DeviceError: the device fails.
    """
    require_names(layout, arrays)
    floating = floating_names(layout)
    return [
        fit_on_device(arrays[name], name, dtype, shape)
        if name in floating
        else fit_array(arrays[name], name, dtype, shape)
        for name, dtype, shape in layout.native.tensors
    ]


def floating_names(layout: ModelLayout) -> set[str]:
    """Names of the floating-point tensors."""
    return {name for name, dtype, _ in layout.native.tensors if dtype[0] in "fb"}


def fit_array(array: Any, name: str, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """One tensor of a layout, as of fit_arrays().

    Raises:
        ConfigError: it is of another shape or dtype.
    """
    if is_native(array, NUMPY_DTYPES[dtype]) and array.shape == shape:
        return array  # by far the most frequent; a model has hundreds of tensors
    if _native.is_device_array(array):
        array = on_its_device(array, name)
        _require_shape(name, array.shape, shape)  # before it is copied from the device
    values, found = as_native(array, name)
    _require_shape(name, values.shape, shape)
    if found == dtype or (found, dtype) == ("u16", "bf16"):
        return values
    if (found, dtype) == ("f32", "bf16"):
        return round_to_bfloat16(values)
    raise ConfigError(
        f"tensor {name!r} is {found}, the layout has {dtype}",
        hint="convert it first, so that a loss of precision is your decision",
    )


def result_digest(
    layout: ModelLayout, arrays: Mapping[str, NDArray[Any]] | Sequence[NDArray[Any]]
) -> str:
    """Hex SHA-256 that names a set of values for a layout, down to the last bit.

    SHA-256(layout digest || each tensor's little-endian bytes in layout order).

    Args:
        arrays: one per tensor, by name or in layout order; dtypes and shapes of the layout,
            bfloat16 as uint16 bit patterns or as the float32 values they stand for.

    Raises:
        ConfigError: a tensor is missing or has another shape or dtype, or floats are no
            bfloat16 values.
    """
    state = hashlib.sha256(layout.digest)
    if isinstance(arrays, StoredModel) and arrays.layout == layout:
        for part in parts_of(layout):
            state.update(arrays.read(part).view(np.uint8).data)
        return state.hexdigest()
    for index, (name, dtype, shape) in enumerate(layout.native.tensors):
        try:
            array = arrays[name] if isinstance(arrays, Mapping) else arrays[index]
        except (KeyError, IndexError) as error:
            raise ConfigError(f"tensor {name!r} is missing") from error
        expected = NUMPY_DTYPES[dtype]
        if dtype == "bf16" and array.dtype == np.float32:
            array = _bfloat16_patterns(array, name)
        if array.shape != shape or array.dtype.newbyteorder("<") != expected:
            raise ConfigError(
                f"tensor {name!r} is {array.dtype} {array.shape}, the layout has {dtype} {shape}"
            )
        state.update(np.ascontiguousarray(array, dtype=expected).reshape(-1).view(np.uint8).data)
    return state.hexdigest()


def _bfloat16_patterns(values: NDArray[np.float32], name: str) -> NDArray[np.uint16]:
    patterns = round_to_bfloat16(values)
    if not np.array_equal(widen_bfloat16(patterns), values):
        raise ConfigError(f"tensor {name!r} holds values that are no bfloat16")
    return patterns
