"""What can happen to the coordinator. Frozen, so that a failing run can be stored and replayed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray
from typing_extensions import Buffer

from veilsum.control import (
    Decline,
    Progress,
    ProtocolMessage,
    RoundId,
    RoundRecord,
    RunSpec,
    UpdateHeader,
)
from veilsum.model import ModelLayout
from veilsum.optimizers.state import OptimizerState


@dataclass(frozen=True, slots=True)
class SiteJoined:
    """A process of an authenticated site opened its Join stream (and has the same roster).

    `instance` tells it from others of the same site; a process whose stream breaks and that is
    back in time has not left, so it joins once.
    """

    site: str
    instance: bytes = b""


@dataclass(frozen=True, slots=True)
class SiteLeft:
    """A site's process is gone: it said so, was away too long, or may not be there any more."""

    site: str
    reason: str


@dataclass(frozen=True, slots=True)
class SiteSent:
    """A site sent a message about a round."""

    site: str
    message: ProtocolMessage | Decline | Progress


class FiledChunks(Sequence[memoryview], ABC):
    """Chunks that lie in a file which nobody changes: read when asked for, or by native code where
    they are."""

    @property
    @abstractmethod
    def file(self) -> int:
        """Its descriptor, open as long as this is."""

    @property
    @abstractmethod
    def places(self) -> Sequence[tuple[int, int]]:
        """(first byte, bytes) of each chunk in it."""

    def check(self) -> None:
        """Reads all of them, and raises if one is not what was written."""
        for _ in self:
            pass


@dataclass(frozen=True, slots=True)
class UpdateArrived:
    """A complete upload; every chunk was checked on arrival and is read from the spool here.

    chunks: in (group, index) order; FiledChunks or in memory.
    """

    site: str
    header: UpdateHeader
    chunks: Sequence[Buffer]


@dataclass(frozen=True, slots=True)
class DeadlinePassed:
    """The time set by SetDeadline is over. Stale ones (another phase by now) are ignored."""

    round: RoundId
    phase: str


@dataclass(frozen=True, slots=True)
class RunSubmitted:
    """An operator asks for a run. The model is one array per tensor, in layout order. Without a
    state the server's optimizer begins anew."""

    run_id: str
    spec: RunSpec
    layout: ModelLayout
    model: Mapping[str, NDArray[Any]]
    optimizer_state: OptimizerState | None = None


@dataclass(frozen=True, slots=True)
class RunAbortRequested:
    """An operator stops a run."""

    run_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Proceed:
    """Go on with a run from its standing: what GoOn asks for."""

    run_id: str


@dataclass(frozen=True, slots=True)
class ResultPublished:
    """In a replay, what became of the round whose sites were sending unmask shares: those are
    written down nowhere, so what they led to takes their place.

    Attributes:
        result: the signed result, as it was sent.
        words: of the sum, its chunks one after the other.
        record, model, optimizer_state: as they were kept.
        left_out: sites that broke the protocol by then, in their shares too.
    """

    round: RoundId
    result: bytes = field(repr=False)
    words: Buffer = field(repr=False)
    record: RoundRecord
    model: Mapping[str, NDArray[Any]] = field(repr=False)
    optimizer_state: OptimizerState | None = None
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RoundSpoiled:
    """What the open round of a run is made of is gone or damaged, so it can have no result."""

    run_id: str
    reason: str


Event = (
    SiteJoined
    | SiteLeft
    | SiteSent
    | UpdateArrived
    | DeadlinePassed
    | RunSubmitted
    | RunAbortRequested
    | Proceed
    | ResultPublished
    | RoundSpoiled
)
