"""The server's step, made again at a site: from the model it trained from and the round's sum.

The coordinator serves the integer sum of a round, chunk by chunk, and has signed the roots over
it. A site takes it in, decodes it and makes the step with the very code that the coordinator does,
so it comes to the same model to the last bit, or the coordinator did something else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from numpy.typing import NDArray
from typing_extensions import Buffer

from veilsum.aggregate.ring_spec import RingSpec, Stream, SumChunk
from veilsum.aggregate.secure_sum import SecureSum
from veilsum.errors import ConfigError, DecodeError, RoundAborted
from veilsum.model import ModelLayout, result_digest
from veilsum.optimizers import read_step_rule
from veilsum.optimizers.applying import FRESH, apply_mean, saved_state, start_optimizer, state_hash
from veilsum.optimizers.state import OptimizerState
from veilsum.secagg import Plan, merkle
from veilsum.secagg.result_messages import RoundResult
from veilsum.secagg.sum_tree import StreamRoot, check_place, leaf_hash


class WrongResult(Exception):  # noqa: N818  not an error of this site
    """The coordinator has signed a result that does not follow from the sum under it."""


@dataclass(frozen=True, slots=True)
class HeldModel:
    """A model this site has, and what the server's optimizer remembers beside it.

    Attributes:
        state: None if that is nothing, or if this site does not have it.
        state_hash: of what the optimizer remembers (optimizers.applying), whether or not this
            site has it.
    """

    layout: ModelLayout
    arrays: Mapping[str, NDArray[Any]] = field(repr=False)
    model_hash: bytes
    state: OptimizerState | None = field(repr=False)
    state_hash: bytes

    @property
    def complete(self) -> bool:
        """Whether this site has all that a step needs."""
        return self.state is not None or self.state_hash == FRESH

    def with_state(self, data: bytes) -> HeldModel:
        """The same with the optimizer's state, read from its file.

        Raises:
            DecodeError: it is another state than the one with this hash.
        """
        if hashlib.sha256(data).digest() != self.state_hash:
            raise DecodeError("the optimizer's state is not the one of the plan (hash differs)")
        return replace(self, state=OptimizerState.from_bytes(data))


class SumReceiver:
    """Takes a round's sum as consecutive bytes, and keeps its words only.

    Args:
        spec: of the round's ring.
        roots: that the coordinator signed, of the streams that the plan has.
        threads: to decode with.
    """

    def __init__(self, spec: RingSpec, roots: Sequence[StreamRoot], *, threads: int) -> None:
        self._spec = spec
        self._roots = roots
        self._sum = SecureSum(spec, threads=threads)
        self._begin()

    def _begin(self) -> None:
        self._leaves: dict[int, list[bytes]] = {stream.group: [] for stream in self._spec.streams}
        self._places = _places(self._spec)
        self._next = next(self._places, None)
        self._buffer = bytearray()

    @property
    def complete(self) -> bool:
        """Whether all of the sum has come."""
        return self._next is None

    def restart(self) -> None:
        """Forgets what has come: the sum is sent anew. Not once all of it has come: it may be in
        the middle of being checked, and what is checked must be what the step is made from."""
        if not self.complete:
            self._begin()

    def add(self, data: Buffer) -> None:
        """Takes what comes next.

        Raises:
            DecodeError: it is more than the sum has, or does not follow the format.
        """
        self._buffer += data
        while self._next is not None and len(self._buffer) >= self._next.size:
            self._take(self._next)
            self._next = next(self._places, None)
        if self._next is None and self._buffer:
            raise DecodeError("the sum has more bytes than the plan's")

    def _take(self, place: _Place) -> None:
        words = bytes(self._buffer[: place.size])
        del self._buffer[: place.size]
        chunk = SumChunk(place.stream.group, place.first, words)
        check_place(self._spec, place.stream, place.index, chunk)
        self._leaves[chunk.stream].append(leaf_hash(chunk))
        self._sum.load([chunk])

    def finish(self) -> SecureSum:
        """The sum, all of it, under the roots.

        Raises:
            DecodeError: bytes are missing, or it is another sum.
        """
        if self._next is not None:
            raise DecodeError(
                f"the sum ends within chunk {self._next.index} of stream {self._next.stream.group}"
            )
        for root in self._roots:
            if merkle.root_hash(self._leaves[root.stream]) != root.root:
                raise DecodeError(f"stream {root.stream} of the sum is not under its signed root")
        return self._sum


@dataclass(frozen=True, slots=True)
class _Place:
    stream: Stream
    index: int
    first: int
    size: int  # bytes


def _places(spec: RingSpec) -> Iterator[_Place]:
    for stream in spec.streams:
        for index in range(spec.chunk_count(stream)):
            elements = spec.chunk_range(stream, index)
            size = -(-len(elements) * stream.bits // 8)
            yield _Place(stream, index, elements.start, size)


def next_model(
    plan: Plan,
    model: HeldModel,
    summed: SecureSum,
    result: RoundResult,
    survivors: Sequence[str],
    *,
    threads: int,
) -> HeldModel:
    """The model after the round.

    Args:
        model: that the plan names, with the optimizer's state.
        summed: under the result's roots.
        survivors: whose updates are in it.

    Raises:
        WrongResult: the step that the plan states leads to another model than the result's.
    """
    try:
        mean = summed.finish(len(survivors))
    except RoundAborted as error:
        raise WrongResult(f"the sum cannot be one of the survivors' updates: {error}") from error
    if (mean.total_weight, bytes.fromhex(result_digest(plan.layout, mean.arrays))) != (
        result.total_weight,
        result.mean_digest,
    ):
        raise WrongResult("the mean of the result is not the one of its sum")
    try:
        optimizer = start_optimizer(
            read_step_rule(plan.step_rule), plan.layout, model.state, threads
        )
        named = dict(zip(plan.layout.names, mean.arrays, strict=True))
        arrays = apply_mean(optimizer, model.arrays, named)
    except (ConfigError, DecodeError, RoundAborted) as error:
        raise WrongResult(f"the step cannot be made: {error}") from error
    for array in arrays.values():
        array.flags.writeable = False  # an update is the difference from this very model
    following = HeldModel(
        plan.layout,
        arrays,
        bytes.fromhex(result_digest(plan.layout, arrays)),
        saved_state(optimizer),
        state_hash(optimizer),
    )
    if (following.model_hash, following.state_hash) != (result.model_hash, result.state_hash):
        raise WrongResult("the server's step leads to another model than the result's")
    return following
