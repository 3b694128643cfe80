"""What the coordinator's core asks of whoever runs it. Carried out in order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from veilsum.control import RoundId, RoundRecord, RunEvent, RunStatus, ToSite
from veilsum.coordinator.standing import Standing
from veilsum.model import ModelLayout
from veilsum.optimizers.state import OptimizerState
from veilsum.secagg.audit_record import AuditedSum


@dataclass(frozen=True, slots=True)
class SendToSite:
    """Put one message on a site's Join stream. A site that is away is sent it when it is back."""

    site: str
    message: ToSite


@dataclass(frozen=True, slots=True)
class SetDeadline:
    """Deliver DeadlinePassed(round, phase) after `seconds`."""

    round: RoundId
    phase: str
    seconds: float


@dataclass(frozen=True, slots=True)
class PublishModel:
    """Serve this model under (run, round): the one sites train from in that round; and the links
    (SaveLink) that lead to it.

    Attributes:
        model: kept before, as the one after the round with the number before this.
        state_hash: of what the server's optimizer remembers (optimizers.applying), 32 bytes.
        since: the run's rounds from this number on are served beside it; None: this one alone.
    """

    round: RoundId
    layout: ModelLayout
    model: Mapping[str, NDArray[Any]]
    model_hash: bytes
    state_hash: bytes
    since: int | None = None


@dataclass(frozen=True, slots=True)
class PublishSum:
    """Keep the integer sum of an open masked round, and serve it to the sites that were invited.

    Attributes:
        words: of its chunks, in order; to be taken once, before the next event, because a chunk
            is packed when its turn comes.
    """

    round: RoundId
    words: Iterable[bytes] = field(repr=False)


@dataclass(frozen=True, slots=True)
class PublishAudit:
    """Let sites check the sum of a round, until DropAudit or the run's next round; and write its
    transcript before, if the coordinator is to keep them.

    Attributes:
        sites: who may.
        audited: holds seeds of masks; whoever drops it wipes it.
    """

    round: RoundId
    sites: tuple[str, ...]
    audited: AuditedSum = field(repr=False)


@dataclass(frozen=True, slots=True)
class DropAudit:
    """Nobody checks the sum of a round any more: forget what proves it."""

    round: RoundId


@dataclass(frozen=True, slots=True)
class OpenUploads:
    """Accept PushUpdate of these sites for this round; the spec tells how to check a chunk."""

    round: RoundId
    sites: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CloseUploads:
    """Refuse further uploads of this round with the reason. Those that count are still needed.

    Comes when the round takes no more updates and again when it ends; a repeat, or one for a
    round whose uploads were never opened, changes nothing.
    """

    round: RoundId
    reason: str


@dataclass(frozen=True, slots=True)
class AnswerUpload:
    """Answer the upload that UpdateArrived brought: it counts, or it is refused with the reason.

    Exactly one follows every UpdateArrived; the site's call stays open until then.
    """

    round: RoundId
    site: str
    accepted: bool
    reason: str


@dataclass(frozen=True, slots=True)
class SaveRound:
    """Persist a finished round: its record and, if it completed, the new model and what the
    server's optimizer remembers, whose arrays change with the next step.

    Attributes:
        result: of a masked round that completed, as the sites are told of it (ResultPublished).
        left_out: sites that no further round of the run should have, as of now.
    """

    record: RoundRecord
    layout: ModelLayout
    model: Mapping[str, NDArray[Any]] | None
    optimizer_state: OptimizerState | None = None
    result: bytes = field(default=b"", repr=False)
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SaveStanding:
    """Persist where a run stands between two rounds. Events before it are not needed any more to
    rebuild the run (Coordinator.restore); until GoOn is answered it does nothing new."""

    standing: Standing


@dataclass(frozen=True, slots=True)
class GoOn:
    """Answer with Proceed(run_id) once everything before is carried out."""

    run_id: str


@dataclass(frozen=True, slots=True)
class DropUploads:
    """The round is over, or has done with these sites: free its spool, or theirs in it."""

    round: RoundId
    sites: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class SaveReceipt:
    """Keep the signed receipt of a finished masked round, a file of its own."""

    round: RoundId
    receipt: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class SaveEvidence:
    """Keep what shows that someone broke the protocol in this attempt, for people to look at."""

    round: RoundId
    evidence: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class SaveLink:
    """Persist a result and who acknowledged it: a site that was not there can tell from it that
    the one model comes from the other.

    Attributes:
        before, after: model hash and hash of the optimizer's state, 32 bytes each.
        link: as secagg.read_links takes it.
    """

    before: tuple[bytes, bytes]
    after: tuple[bytes, bytes]
    link: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class SaveRun:
    """Persist a run's state."""

    status: RunStatus


@dataclass(frozen=True, slots=True)
class Announce:
    """Tell those who watch the run."""

    event: RunEvent


Effect = (
    SendToSite
    | SetDeadline
    | PublishModel
    | PublishAudit
    | DropAudit
    | PublishSum
    | OpenUploads
    | CloseUploads
    | AnswerUpload
    | SaveRound
    | SaveReceipt
    | SaveEvidence
    | SaveLink
    | SaveRun
    | SaveStanding
    | GoOn
    | DropUploads
    | Announce
)
