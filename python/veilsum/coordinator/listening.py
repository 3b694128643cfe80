"""Whom a run listens to in each of its phases. What changes nothing is not written down."""

from __future__ import annotations

from typing import TypeAlias, assert_never

from veilsum import secagg
from veilsum.control import Decline, Progress, ProtocolMessage, RoundId
from veilsum.coordinator.effects import Effect
from veilsum.coordinator.events import (
    DeadlinePassed,
    Event,
    Proceed,
    SiteJoined,
    SiteLeft,
    SiteSent,
    UpdateArrived,
)
from veilsum.coordinator.job_phases import (
    Between,
    CoolingDown,
    Gathering,
    JobPhase,
    Running,
    Settling,
)
from veilsum.coordinator.late import LateUpdates
from veilsum.coordinator.retry import COOLDOWN
from veilsum.coordinator.round import Round
from veilsum.errors import PeerError

JOIN = "join"
"""The phase in which a round waits for its sites."""

UNMASK = "unmask"
"""The phase in which sites send what is never written down: shares of the seeds of masks."""

_ANY = b"\0"

_Open: TypeAlias = Running | Settling


def takes_part(phase: _Open, site: str, round_id: RoundId) -> bool:
    """Whether a site has a say in an open round."""
    return round_id == phase.invitation.round_of(site) and site not in phase.round.journal.dropped


def late_updates(phase: JobPhase) -> LateUpdates | None:
    """What is still to come of the round before, while no round is open."""
    return phase.late if isinstance(phase, Between | Gathering) else None


def hears(phase: JobPhase, event: SiteSent) -> bool:
    """Whether a site's message changes anything; progress is worth nothing a second later."""
    site, message = event.site, event.message
    late = late_updates(phase)
    if late is not None:
        return isinstance(message, Decline) and late.awaits(site, message.round)
    if not isinstance(phase, _Open) or isinstance(message, Progress):
        return False
    if isinstance(message, ProtocolMessage) and not phase.round.hears(site, message.payload):
        return False
    return takes_part(phase, site, message.round)


def matters(phase: JobPhase, event: Event) -> bool:
    """Whether it takes the event to come to the same state again. None does while sites send what
    must not be written down: what it leads to is kept in their place."""
    if isinstance(phase, Running) and phase.round.journal.phase == UNMASK:
        return False
    match event:
        case SiteJoined() | SiteLeft() | UpdateArrived() | Proceed():
            return True
        case SiteSent():
            return hears(phase, event)
        case DeadlinePassed():
            return awaits(phase, event)
        case _:
            return False


def as_written(event: SiteSent, *, masked: bool) -> SiteSent:
    """The event as it may be written down. Shares of seeds that come when nobody has asked for
    them cost their site the round; that is kept of them. What a protocol message says in a run
    that has no protocol changes nothing, and a site that is let in again may send many."""
    message = event.message
    if isinstance(message, ProtocolMessage) and not masked:
        return SiteSent(event.site, ProtocolMessage(message.round, _ANY))
    if isinstance(message, ProtocolMessage) and secagg.holds_secrets(message.payload):
        reason = "it sent unmask shares out of turn"
        return SiteSent(event.site, Decline(message.round, "protocol", reason))
    return event


def heard(at: Round, event: SiteSent, now: float) -> list[Effect]:
    """What a message does to the round that its site has a say in."""
    site = event.site
    match event.message:
        case ProtocolMessage(_, payload):
            return at.message(site, payload, now)
        case Decline(_, code, reason):
            return at.lost(site, f"declined ({code}): {reason}", now)
        case Progress(_, fraction):
            return at.journal.progress(site, fraction) if 0.0 <= fraction <= 1.0 else []
        case _:
            assert_never(event.message)


def open_round(phase: JobPhase, site: str, round_id: RoundId) -> Round:
    """The open round that takes a site's update of this round.

    Raises:
        PeerError: there is none.
    """
    if isinstance(phase, Running) and phase.invitation.round_of(site) == round_id:
        return phase.round
    if isinstance(phase, Running) and phase.invitation.round == round_id:
        raise PeerError(site, "is not in this round's cohort")
    raise PeerError(
        site,
        f"sent an update for round {round_id.number} of run {round_id.run_id!r}, which is not open",
    )


def awaits(phase: JobPhase, event: DeadlinePassed) -> bool:
    """Whether a deadline is not stale: the phase it was set for still lasts."""
    match phase:
        case Gathering(round=round_id):
            current = round_id, JOIN
        case CoolingDown(_, round_id):
            current = round_id, COOLDOWN
        case Running() | Settling():
            current = phase.invitation.round, phase.round.journal.phase
        case _:
            return False
    return current == (event.round, event.phase)
