"""Updates are differences of models: how a site takes one, in every dtype a layout can hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veilsum.aggregate.secure_sum import round_to_bfloat16
from veilsum.errors import ConfigError
from veilsum.model import NUMPY_DTYPES, ModelLayout

_BFLOAT16 = "bf16"
# Elements widened to double at a time: few enough that they stay in a processor's cache.
_BLOCK = 2**16


def is_integer(dtype: str) -> bool:
    """Whether a layout dtype holds integers; bfloat16 does not, though its patterns are."""
    return dtype != _BFLOAT16 and NUMPY_DTYPES[dtype].kind in "iu"


def widen(dtype: str, values: NDArray[Any]) -> NDArray[np.float64]:
    """Floating-point values of a layout dtype, shape (n,), as doubles, exactly."""
    if dtype == _BFLOAT16:
        patterns = np.left_shift(values, 16, dtype=np.uint32)
        values = patterns.view(np.float32)
    wide: NDArray[np.float64] = values.astype(np.float64)
    return wide


def narrow(dtype: str, values: NDArray[np.float64]) -> NDArray[Any]:
    """Doubles, shape (n,), rounded once to a layout dtype; infinite where they do not fit."""
    with np.errstate(over="ignore"):  # the caller looks for infinities and names the tensor
        if dtype == _BFLOAT16:
            return round_to_bfloat16(values)
        return values.astype(NUMPY_DTYPES[dtype])


def blocks(size: int) -> Iterator[slice]:
    """Slices that cover `size` elements, each small enough to be widened to double."""
    for first in range(0, size, _BLOCK):
        yield slice(first, min(first + _BLOCK, size))


def model_difference(
    layout: ModelLayout, trained: Mapping[str, NDArray[Any]], received: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """Trained minus received, tensor by tensor in layout order.

    Floating-point tensors are subtracted in double precision and rounded once to their
    dtype; integer tensors exactly.

    Args:
        trained, received: one array per tensor, shapes and dtypes of the layout; bfloat16 as
            uint16 bit patterns.

    Raises:
        ConfigError: a tensor is missing, unknown, of another shape or dtype, not finite, or
            its difference does not fit its dtype.
    """
    check_fits(layout, trained, "the trained model")
    return {
        name: _difference(name, dtype, trained[name], received[name])
        for name, dtype, _ in layout.native.tensors
    }


def check_fits(layout: ModelLayout, arrays: Mapping[str, NDArray[Any]], what: str) -> None:
    """Refuses arrays that are not the tensors of the layout.

    Raises:
        ConfigError: names the first tensor that differs.
    """
    names = {name for name, _, _ in layout.native.tensors}
    if set(arrays) != names:
        missing, unknown = sorted(names - set(arrays)), sorted(set(arrays) - names)
        raise ConfigError(f"{what} lacks tensors {missing} and has unknown ones {unknown}")
    for name, dtype, shape in layout.native.tensors:
        array = arrays[name]
        if array.dtype != NUMPY_DTYPES[dtype] or array.shape != shape:
            raise ConfigError(
                f"tensor {name!r} of {what} is {array.dtype} {array.shape}, "
                f"the layout has {dtype} {shape}"
            )


def _difference(
    name: str, dtype: str, trained: NDArray[Any], received: NDArray[Any]
) -> NDArray[Any]:
    if is_integer(dtype):
        return _integer_difference(name, dtype, trained, received)
    update = np.empty(received.shape, received.dtype)  # in C order, whatever the trainer's are
    new, old, change = trained.reshape(-1), received.reshape(-1), update.reshape(-1)
    for block in blocks(new.size):
        wide = widen(dtype, new[block])
        if not np.isfinite(wide).all():
            raise ConfigError(
                f"tensor {name!r} of the trained model holds values that are not finite",
                hint="training diverged: lower the learning rate",
            )
        change[block] = narrow(dtype, wide - widen(dtype, old[block]))
        if not np.isfinite(widen(dtype, change[block])).all():
            raise ConfigError(f"the change of tensor {name!r} does not fit {dtype}")
    return update


def _integer_difference(
    name: str, dtype: str, trained: NDArray[Any], received: NDArray[Any]
) -> NDArray[Any]:
    update = np.empty(received.shape, received.dtype)
    np.subtract(trained, received, out=update)
    # Subtraction wraps silently; the result has the right sign exactly if it did not.
    if ((trained < received) != (update < 0)).any():
        raise ConfigError(
            f"the change of tensor {name!r} does not fit {dtype}",
            hint="keep counters that can go down in a signed dtype",
        )
    return update
