"""Arrays of any library -> C-contiguous NumPy arrays that the native core reads in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from veilsum import _native
from veilsum.errors import ConfigError

_NAMES = {
    np.dtype(code): name
    for code, name in {
        "f2": "f16",
        "f4": "f32",
        "f8": "f64",
        "i1": "i8",
        "i2": "i16",
        "i4": "i32",
        "i8": "i64",
        "u1": "u8",
        "u2": "u16",
        "u4": "u32",
        "u8": "u64",
    }.items()
}


def as_native(array: Any, name: str) -> tuple[NDArray[Any], str]:
    """A C-contiguous, native-endian array of the same shape, and its layout dtype.

    Nothing is copied unless the array is strided, of the other byte order or on a device. Arrays of
    torch are taken through DLPack, also if they require a gradient; its bfloat16 arrives as
    uint16 bit patterns.

    Args:
        array: has __dlpack__ or __array_interface__.
        name: of the tensor, for errors.

    Raises:
        ConfigError: not an array, or of a dtype that cannot be averaged.
        DeviceError: it is on a device that cannot be read.
    """
    values, dtype = _imported(array, name)
    contiguous = np.asarray(values, dtype=values.dtype.newbyteorder("="), order="C")
    return contiguous, dtype


def plain_number(value: Any) -> Any:
    """A number of NumPy or torch as Python's own; anything else as it is."""
    is_number = getattr(value, "ndim", None) == 0 and hasattr(value, "item")
    return value.item() if is_number else value


def whole_number(value: object) -> int | None:
    """An integer, also as a float that is one; None for anything else. Booleans are a mistake."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def is_native(array: Any, dtype: np.dtype[Any]) -> TypeGuard[NDArray[Any]]:
    """Whether as_native() would return the array as it is, with this dtype."""
    return type(array) is np.ndarray and array.dtype == dtype and array.flags.c_contiguous


def _imported(array: Any, name: str) -> tuple[NDArray[Any], str]:
    if isinstance(array, np.ma.MaskedArray):
        raise ConfigError(
            f"tensor {name!r} is a masked array, and the sum has no mask",
            hint="fill it first: what stands for the masked values is your decision",
        )
    if isinstance(array, np.ndarray | np.generic):
        return _numpy(np.asarray(array), name)
    if _native.is_device_array(array):
        on_device = on_its_device(array, name)
        return on_device.to_host(), on_device.dtype
    if hasattr(array, "__dlpack__"):
        return _dlpack(array, name)
    if hasattr(array, "__array_interface__"):
        return _numpy(np.asarray(array), name)
    raise ConfigError(
        f"tensor {name!r} is a {type(array).__name__}, not an array",
        hint="give NumPy arrays, torch tensors, or anything with __dlpack__",
    )


def on_its_device(array: Any, name: str) -> _native.DeviceArray:
    """An array of CuPy, torch or another library, where it lies in device memory.

    What its library has still to write to it has been waited for, on its own stream.

    Args:
        array: has __dlpack__ or __cuda_array_interface__, C-contiguous.
        name: of the tensor, for errors.

    Raises:
        ConfigError: it is strided, or of a dtype that cannot be averaged.
        DeviceError: this build has no CUDA backend, or the device fails.
    """
    try:
        return _native.device_array(_without_history(array))
    except (AttributeError, BufferError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(f"tensor {name!r} cannot be read on its device: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"tensor {name!r}: {error}", hint=error.hint) from error


def on_host(arrays: Sequence[NDArray[Any] | _native.DeviceArray]) -> list[NDArray[Any]]:
    """The arrays, with copies of those on a device."""
    return [a.to_host() if isinstance(a, _native.DeviceArray) else a for a in arrays]


def _without_history(array: Any) -> Any:
    """A tensor that takes part in automatic differentiation refuses to be exported; the values
    are the same without its history. One that torch has only marked as negated (the imaginary
    part of a conjugate) would be exported without its sign."""
    if getattr(array, "requires_grad", False):
        array = array.detach()
    is_negated = getattr(array, "is_neg", None)
    return array.resolve_neg() if is_negated is not None and is_negated() else array


def round_to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Bit patterns of the nearest bfloat16, ties to even; NaN stays NaN."""
    bits = values.view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def widen_bfloat16(patterns: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The values of bfloat16 bit patterns, exactly."""
    return np.left_shift(patterns, 16, dtype=np.uint32).view(np.float32)


def _numpy(array: NDArray[Any], name: str) -> tuple[NDArray[Any], str]:
    if array.dtype.name == "bfloat16":  # of ml_dtypes, which JAX and others use
        return array.view(np.uint16), "bf16"
    dtype = _NAMES.get(array.dtype.newbyteorder("="))
    if dtype is None:
        raise ConfigError(
            f"tensor {name!r} has dtype {array.dtype}, which cannot be averaged",
            hint="send floating-point or integer tensors; leave booleans out of the update",
        )
    return array, dtype


def _dlpack(array: Any, name: str) -> tuple[NDArray[Any], str]:
    try:
        return _native.import_dlpack(_without_history(array).__dlpack__())
    except (BufferError, RuntimeError, TypeError) as error:
        raise ConfigError(f"tensor {name!r} cannot be read through DLPack: {error}") from error
    except ConfigError as error:
        dtype = getattr(array, "dtype", "unknown")
        raise ConfigError(f"tensor {name!r} of dtype {dtype}: {error}", hint=error.hint) from error
