"""The server's optimizer: what a mean update does to the model.

Updates are differences, trained minus received, so the step of federated averaging is
`new = old + server_learning_rate * mean` (Reddi et al. 2021, with plain SGD as the
server's optimizer; at a rate of 1 it is FedAvg of McMahan et al. 2017).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veilsum.difference import blocks, is_integer, narrow, widen
from veilsum.errors import RoundAborted
from veilsum.model import ModelLayout


def apply_mean(
    layout: ModelLayout,
    model: Mapping[str, NDArray[Any]],
    mean: Mapping[str, NDArray[Any]],
    learning_rate: float,
) -> dict[str, NDArray[Any]]:
    """The model after one step; a function of its arguments alone, to the last bit.

    Floating-point tensors are stepped in double precision and rounded once to their dtype.
    Integer tensors (counters) add their integer mean; a learning rate makes no sense there.

    Args:
        model, mean: one array per tensor, shapes and dtypes of the layout; bfloat16 as
            uint16 bit patterns.
        learning_rate: of the server, without unit.

    Raises:
        RoundAborted: a value leaves the range of its tensor's dtype.
    """
    return {
        name: _step(name, dtype, model[name], mean[name], learning_rate)
        for name, dtype, _ in layout.native.tensors
    }


def _step(
    name: str, dtype: str, old: NDArray[Any], mean: NDArray[Any], learning_rate: float
) -> NDArray[Any]:
    if is_integer(dtype):
        return _add_integers(name, dtype, old, mean)
    new = np.empty(old.shape, old.dtype)  # in C order, so that the flat view below is one
    before, step, after = old.reshape(-1), mean.reshape(-1), new.reshape(-1)
    for block in blocks(before.size):
        wide = widen(dtype, before[block]) + learning_rate * widen(dtype, step[block])
        after[block] = narrow(dtype, wide)
        if not np.isfinite(widen(dtype, after[block])).all():
            raise RoundAborted(
                f"the new values of tensor {name!r} do not fit {dtype}",
                hint="lower server_learning_rate or the sites' learning_rate",
            )
    return new


def _add_integers(name: str, dtype: str, old: NDArray[Any], mean: NDArray[Any]) -> NDArray[Any]:
    new = np.empty(old.shape, old.dtype)
    np.add(old, mean, out=new)
    # Addition wraps silently, and has wrapped exactly where the result moved against the
    # sign of what was added.
    if ((new < old) != (mean < 0)).any():
        raise RoundAborted(f"the new values of tensor {name!r} do not fit {dtype}")
    return new
