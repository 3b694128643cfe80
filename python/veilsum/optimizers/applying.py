"""The server's step: what a mean update does to the model.

Updates are differences, trained minus received, so the step of federated averaging is
`new = old + server_learning_rate * mean` (Reddi et al. 2021, with plain SGD as the
server's optimizer; at a rate of 1 it is FedAvg of McMahan et al. 2017). Other optimizers:
veilsum.optimizers.

The coordinator makes the step, and so does every site that checks it: both with this code, which
takes nothing from anywhere else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veilsum.errors import ConfigError, DecodeError, RoundAborted
from veilsum.model import NUMPY_DTYPES, ModelLayout, StoredModel, flat_part, parts_of
from veilsum.optimizers.server import ServerOptimizer
from veilsum.optimizers.settings import OptimizerSettings
from veilsum.optimizers.state import OptimizerState

FRESH = bytes(32)
"""The hash of the state of an optimizer that remembers nothing."""


def start_optimizer(
    settings: OptimizerSettings, layout: ModelLayout, state: OptimizerState | None, threads: int
) -> ServerOptimizer:
    """The optimizer of a run, where a state left it or at its start.

    Raises:
        ConfigError: the state is not one of this optimizer and layout.
    """
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
    *,
    model_hash: bytes = b"",
) -> dict[str, NDArray[Any]]:
    """The model after one step; a function of arguments and state alone, to the last bit.

    Floating-point tensors are stepped in double precision and rounded once to their dtype.
    Integer tensors (counters) add their integer mean; a learning rate makes no sense there.

    Args:
        model, mean: one array per tensor, shapes and dtypes of the layout; bfloat16 as
            uint16 bit patterns. To a stored model `mean` is given away: the new model is
            written over it, so that no two models are in memory.
        model_hash: of a stored model, which is held against it, 32 bytes.

    Returns:
        Arrays of the same dtypes: new ones, or those of `mean`.

    Raises:
        RoundAborted: a value leaves the range of its tensor's dtype, or a stored model cannot be
            read or is another.
    """
    tensors = optimizer.layout.native.tensors
    try:
        if isinstance(model, StoredModel):
            optimizer.step_stored(model, mean, digest=model_hash.hex())
            return dict(mean)
        new = {name: np.empty(shape, NUMPY_DTYPES[dtype]) for name, dtype, shape in tensors}
        return optimizer.step(model, mean, out=new)
    except ConfigError as error:
        raise RoundAborted(str(error), hint=error.hint) from error


def saved_state(optimizer: ServerOptimizer) -> OptimizerState | None:
    """What has to be kept beside the model; None if the optimizer remembers nothing. Views that
    change with the next step."""
    state = optimizer.state()
    return state if state.first or state.second else None


def state_hash(optimizer: ServerOptimizer) -> bytes:
    """Names all that the next step depends on beside settings, model and mean, 32 bytes.

    SHA-256 of the state's file; FRESH if the optimizer is as it was started, or of a kind that
    remembers nothing.
    """
    state = saved_state(optimizer)
    if state is None or (optimizer.steps == 0 and _as_started(optimizer, state)):
        return FRESH
    sha = hashlib.sha256()
    for piece in state.pieces():
        sha.update(piece)
    return sha.digest()


def _as_started(optimizer: ServerOptimizer, state: OptimizerState) -> bool:
    """A state may be loaded that has made no step and still is not the one that starts."""
    first, second = optimizer.started_with
    return all(
        bool((flat_part(array, part) == value).all())
        for moments, value in ((state.first, first), (state.second, second))
        for part in parts_of(optimizer.layout)
        if (array := moments.get(optimizer.layout.names[part.number])) is not None
    )
