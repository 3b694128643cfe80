"""Whom a run listens to in each of its phases. What changes nothing is not written down."""

from __future__ import annotations

from typing import TypeAlias, assert_never

from veilsum.control import Decline, Progress, ProtocolMessage, RoundId
from veilsum.coordinator.effects import Effect
from veilsum.coordinator.events import DeadlinePassed, SiteSent
from veilsum.coordinator.job_phases import CoolingDown, Gathering, JobPhase, Running, Settling
from veilsum.coordinator.retry import COOLDOWN
from veilsum.coordinator.round import Round
from veilsum.errors import PeerError

JOIN = "join"
"""The phase in which a round waits for its sites."""

UNMASK = "unmask"
"""The phase in which sites send what is never written down: shares of the seeds of masks."""

_Open: TypeAlias = Running | Settling


def secret(phase: JobPhase) -> bool:
    """Whether sites are sending what must not be written down."""
    return isinstance(phase, Running) and phase.round.journal.phase == UNMASK


def takes_part(phase: _Open, site: str, round_id: RoundId) -> bool:
    """Whether a site has a say in an open round."""
    return (
        round_id == phase.invitation.round
        and site in phase.invitation.cohort
        and site not in phase.round.journal.dropped
    )


def hears(phase: JobPhase, event: SiteSent) -> bool:
    """Whether a site's message changes anything; progress is worth nothing a second later."""
    site, message = event.site, event.message
    if not isinstance(phase, _Open) or isinstance(message, Progress):
        return False
    if isinstance(message, ProtocolMessage) and not phase.round.hears(site, message.payload):
        return False
    return takes_part(phase, site, message.round)


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
    if not isinstance(phase, Running) or phase.invitation.round != round_id:
        raise PeerError(
            site,
            f"sent an update for round {round_id.number} of run {round_id.run_id!r}, "
            "which is not open",
        )
    if site not in phase.invitation.cohort:
        raise PeerError(site, "is not in this round's cohort")
    return phase.round


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
