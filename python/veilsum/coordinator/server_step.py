"""The server's step: what a mean update does to the model.

Updates are differences, trained minus received, so the step of federated averaging is
`new = old + server_learning_rate * mean` (Reddi et al. 2021, with plain SGD as the
server's optimizer; at a rate of 1 it is FedAvg of McMahan et al. 2017). Other optimizers:
veilsum.optimizers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veilsum.control import RunSpec
from veilsum.errors import ConfigError, DecodeError, RoundAborted
from veilsum.model import NUMPY_DTYPES, ModelLayout
from veilsum.optimizers import ServerOptimizer
from veilsum.optimizers.state import OptimizerState


def start_optimizer(
    spec: RunSpec, layout: ModelLayout, state: OptimizerState | None, threads: int
) -> ServerOptimizer:
    """The optimizer of a run, where a state left it or at its start.

    Raises:
        ConfigError: the state is not one of this optimizer and layout.
    """
    settings = spec.server_optimizer.settings(spec.server_learning_rate)
    optimizer = settings.start(layout, threads=threads)
    if state is not None:
        try:
            optimizer.load_state(state)
        except DecodeError as error:
            raise ConfigError(f"the optimizer's state cannot be used: {error}") from error
    return optimizer


def apply_mean(
    optimizer: ServerOptimizer,
    model: Mapping[str, NDArray[Any]],
    mean: Mapping[str, NDArray[Any]],
) -> dict[str, NDArray[Any]]:
    """The model after one step; a function of arguments and state alone, to the last bit.

    Floating-point tensors are stepped in double precision and rounded once to their dtype.
    Integer tensors (counters) add their integer mean; a learning rate makes no sense there.

    Args:
        model, mean: one array per tensor, shapes and dtypes of the layout; bfloat16 as
            uint16 bit patterns.

    Returns:
        New arrays, of the same dtypes.

    Raises:
        RoundAborted: a value leaves the range of its tensor's dtype.
    """
    tensors = optimizer.layout.native.tensors
    new = {name: np.empty(shape, NUMPY_DTYPES[dtype]) for name, dtype, shape in tensors}
    try:
        return optimizer.step(model, mean, out=new)
    except ConfigError as error:
        raise RoundAborted(str(error), hint=error.hint) from error


def saved_state(optimizer: ServerOptimizer) -> OptimizerState | None:
    """What has to be kept beside the model; None if the optimizer remembers nothing. Views that
    change with the next step."""
    state = optimizer.state()
    return state if state.first or state.second else None
