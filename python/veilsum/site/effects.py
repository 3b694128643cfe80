"""What a site's core asks of whoever runs it. Carried out in order.

What needs a connection is dropped without one, and ends with one that breaks: on the next the
coordinator repeats its messages, and after its Welcome the core asks again for what it waits for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray
from typing_extensions import Buffer

from veilsum.aggregate.ring_spec import Stream
from veilsum.control import RoundId, TaskSettings, ToCoordinator, UpdateHeader
from veilsum.site.following import SumReceiver


@dataclass(frozen=True, slots=True)
class SendToCoordinator:
    """Put one message on the Join stream."""

    message: ToCoordinator


@dataclass(frozen=True, slots=True)
class FetchModel:
    """Get the model of this round; answer with ModelFetched or ModelFetchFailed."""

    round: RoundId


@dataclass(frozen=True, slots=True)
class FetchSum:
    """Give the sum of this round to `receiver`, whose `add` takes consecutive bytes, and with
    `state` get the bytes of the state of the server's optimizer; answer with SumFetched or
    SumFetchFailed. Once the latter was answered the receiver is of no use."""

    round: RoundId
    receiver: SumReceiver = field(repr=False)
    state: bool


@dataclass(frozen=True, slots=True)
class FetchLinks:
    """Get the results that led to this round's model; answer with LinksFetched, which holds none
    if they cannot be had."""

    round: RoundId


@dataclass(frozen=True, slots=True)
class FetchAudit:
    """Get the part of this round's transcript that holds these chunks of the sum; answer with
    AuditFetched or AuditFetchFailed. It holds seeds of masks: keep it in memory only."""

    round: RoundId
    chunks: tuple[tuple[Stream, int], ...]
    max_bytes: int


@dataclass(frozen=True, slots=True)
class Train:
    """Run `trainer.train_and_evaluate` on these arrays, off the thread that runs the core;
    answer with TrainingDone or TrainingFailed."""

    round: RoundId
    arrays: Mapping[str, NDArray[Any]] = field(repr=False)
    task: TaskSettings


@dataclass(frozen=True, slots=True)
class StopTraining:
    """The result of this round's training is no longer wanted; a late one is ignored."""

    round: RoundId


@dataclass(frozen=True, slots=True)
class Upload:
    """Push the update; answer with UploadDone or UploadRefused.

    After a broken connection the same bytes are sent again, never newly made ones.
    """

    header: UpdateHeader
    chunks: Sequence[Buffer] = field(repr=False)


@dataclass(frozen=True, slots=True)
class KeepEvidence:
    """Keep what shows that the coordinator broke the protocol, for people to look at."""

    evidence: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Note:
    """A line for this site's own log. It stays on the site."""

    text: str


SiteEffect = (
    SendToCoordinator
    | FetchModel
    | FetchSum
    | FetchLinks
    | FetchAudit
    | Train
    | StopTraining
    | Upload
    | KeepEvidence
    | Note
)
