"""Arrays of any library -> C-contiguous NumPy arrays that the native core reads in place."""

from __future__ import annotations

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

    Nothing is copied unless the array is strided or of the other byte order. Arrays of
    torch are taken through DLPack, also if they require a gradient; its bfloat16 arrives as
    uint16 bit patterns.

    Args:
        array: has __dlpack__ or __array_interface__.
        name: of the tensor, for errors.

    Raises:
        ConfigError: not an array, on a device, or of a dtype that cannot be averaged.
    """
    values, dtype = _imported(array, name)
    contiguous = np.asarray(values, dtype=values.dtype.newbyteorder("="), order="C")
    return contiguous, dtype


def is_native(array: Any, dtype: np.dtype[Any]) -> TypeGuard[NDArray[Any]]:
    """Whether as_native() would return the array as it is, with this dtype."""
    return type(array) is np.ndarray and array.dtype == dtype and array.flags.c_contiguous


def _imported(array: Any, name: str) -> tuple[NDArray[Any], str]:
    if isinstance(array, np.ndarray | np.generic):
        return _numpy(np.asarray(array), name)
    if hasattr(array, "__dlpack__"):
        return _dlpack(array, name)
    if hasattr(array, "__array_interface__"):
        return _numpy(np.asarray(array), name)
    if hasattr(array, "__cuda_array_interface__"):
        raise ConfigError(
            f"tensor {name!r} is on a CUDA device",
            hint="copy it to the host first; this version aggregates on the CPU",
        )
    raise ConfigError(
        f"tensor {name!r} is a {type(array).__name__}, not an array",
        hint="give NumPy arrays, torch tensors, or anything with __dlpack__",
    )


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
    # A tensor that takes part in automatic differentiation refuses to be exported; the
    # values are the same without its history.
    if getattr(array, "requires_grad", False):
        array = array.detach()
    try:
        return _native.import_dlpack(array.__dlpack__())
    except (BufferError, RuntimeError, TypeError) as error:
        raise ConfigError(f"tensor {name!r} cannot be read through DLPack: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"tensor {name!r}: {error}", hint=error.hint) from error
