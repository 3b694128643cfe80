"""What a session asks of whoever runs it. Frozen; to be carried out in order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from numpy.typing import NDArray

from veilsum.secagg.evidence import Fault
from veilsum.secagg.refusals import RefusalCode
from veilsum.secagg.result_messages import PreviousRound, RoundResult

# --- both -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Blamed:
    """Someone broke the protocol, and anyone with the roster can see it (check_evidence). To be
    kept.

    Attributes:
        accused: a site, or "" for the coordinator.
    """

    accused: str
    fault: Fault
    evidence: bytes = field(repr=False)


# --- site ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Send:
    """Send a protocol message to the coordinator."""

    message: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class NeedUpdate:
    """The site may contribute its update from now on."""


@dataclass(frozen=True, slots=True)
class UploadInput:
    """Upload the masked update. Re-send these very bytes if the upload breaks off.

    Attributes:
        header: signed header, sent first.
        update_id: in the header of every chunk.
        chunks: in (group, index) order.
        clipped: values that were beyond the clip and were cut to it.
    """

    header: bytes = field(repr=False)
    update_id: int
    chunks: tuple[bytes, ...] = field(repr=False)
    clipped: int = 0


@dataclass(frozen=True, slots=True)
class Withdraw:
    """The site left the round and wiped its secrets. `code` is machine readable:

    "policy" outside the local policy, "not_invited", "plan" cannot work or is for another
    roster, "malformed" not the format, "protocol" out of order, "keys" a bad key advert,
    "bad_share" a dealer's box is wrong, "equivocation" two different messages of one kind,
    "survivors" the survivor set is not one to vote for, "votes" the certificate is wrong,
    "replay" the site did that already, "spent" its update left it before, "cohort_difference"
    the set differs from the last one by too few sites, "ledger" the ledger cannot be written or
    is an old one, "result" a result is wrong or not acknowledged by enough, "model" the model
    does not follow from it.

    `local_reason` is for this site's own log and never leaves it.
    """

    code: str
    reason: str
    local_reason: str = ""


@dataclass(frozen=True, slots=True)
class Warn:
    """Something that a person at this site should know. The round goes on."""

    text: str


@dataclass(frozen=True, slots=True)
class Done:
    """The site returned its unmask shares, which are among the effects before this one, and holds
    no secret any more. The coordinator's result is still to come."""


@dataclass(frozen=True, slots=True)
class ResultReady:
    """The round has a result that fits what this site saw of it. Check of it what can be checked,
    then call checked_result, which acknowledges it, or reject_result.

    Attributes:
        survivors: whose updates are in the sum, sorted.
    """

    result: RoundResult
    survivors: tuple[str, ...]


SiteEffect: TypeAlias = (
    Send | NeedUpdate | UploadInput | Withdraw | Warn | Done | ResultReady | Blamed
)

# --- coordinator ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SendTo:
    """Send a protocol message to a site."""

    site: str
    message: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class PhaseBegan:
    """A phase began; `expected` are the sites it waits for. Time for a deadline."""

    name: str
    expected: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Excluded:
    """The round goes on without this site; nothing more is awaited from it. An update of it
    that is in the sum already stays there."""

    site: str
    reason: str


@dataclass(frozen=True, slots=True)
class Refused:
    """A site left the round with a signed refusal, which anyone with the roster can check
    (refusals.open_refusal). To be kept; Excluded follows."""

    site: str
    code: RefusalCode
    refusal: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Disputed:
    """A box does not open, and one of both is wrong. To be kept; nobody is accused by it."""

    dealer: str
    complainer: str
    evidence: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class LeaveOut:
    """Another attempt, or another round of the run, should not have this site."""

    site: str
    reason: str


@dataclass(frozen=True, slots=True)
class Aborted:
    """The round ended without a result."""

    reason: str


@dataclass(frozen=True, slots=True)
class SecureResult:
    """Result of a masked round.

    Attributes:
        arrays: weighted mean update by tensor name, in the tensors' dtypes; bf16 as uint16
            bit patterns.
        digest: hex SHA-256 as of model.result_digest.
        total_weight: sum of the weights.
        sites: whose updates are in the sum, sorted.
        metrics: weighted mean over the sites that reported each.
        dropped: invited site that is not in the sum -> why.
    """

    arrays: Mapping[str, NDArray[Any]] = field(repr=False)
    digest: str
    total_weight: int
    sites: tuple[str, ...]
    metrics: Mapping[str, float]
    dropped: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Completed:
    """The round has a result. Keep it; then call publish, unless no round is to follow it."""

    result: SecureResult


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """Nobody's acknowledgement is awaited any more, and the session is over.

    Attributes:
        previous: the round as the next one's invitation brings it.
        receipt: of the round, a file to keep (receipt.py).
        quorum: whether enough sites acknowledged the result for a next round.
    """

    previous: PreviousRound = field(repr=False)
    receipt: bytes = field(repr=False)
    quorum: bool


CoordinatorEffect: TypeAlias = (
    SendTo
    | PhaseBegan
    | Excluded
    | Refused
    | Blamed
    | Disputed
    | LeaveOut
    | Aborted
    | Completed
    | Acknowledged
)
