"""What follows from the end of a round: it is kept, then its sites and watchers are told."""

from __future__ import annotations

from veilsum.control import RoundClosed, RoundId, RoundRecord
from veilsum.coordinator import announce
from veilsum.coordinator.effects import (
    CloseUploads,
    DropUploads,
    Effect,
    SaveRound,
    SendToSite,
)
from veilsum.coordinator.job_phases import CurrentModel
from veilsum.coordinator.journal import Invitation
from veilsum.coordinator.late import LateUpdates
from veilsum.coordinator.stragglers import Stragglers
from veilsum.optimizers.state import OptimizerState


def over(invitation: Invitation, behind: Stragglers | None) -> tuple[RoundId, ...]:
    """The rounds whose updates are not awaited any more once a round has ended.

    Args:
        behind: sites that still work on it.
    """
    late = (invitation.late.round,) if invitation.late else ()
    return late if behind else (*late, invitation.round)


def kept(
    record: RoundRecord,
    over: tuple[RoundId, ...],
    model: CurrentModel,
    state: OptimizerState | None,
    result: bytes,
    left_out: tuple[str, ...] = (),
) -> list[Effect]:
    """Before any site hears of it.

    Args:
        model, state: after the round.
        result: as its sites will be told of it, of a masked round that completed.
        left_out: sites that no further round of the run should have.
    """
    arrays = model.arrays if record.completed else None
    return [
        *(CloseUploads(each, record.reason or "the round is complete") for each in over),
        SaveRound(
            record,
            model.ref.layout,
            arrays,
            state if record.completed else None,
            result,
            left_out,
        ),
    ]


def closed(record: RoundRecord, invitation: Invitation, behind: Stragglers | None) -> list[Effect]:
    """When nothing of the round is awaited any more but what counts in the next one.

    Args:
        behind: sites that are not told: they still work on it.
    """
    message = RoundClosed(record.round, record.completed, record.reason, record.digest)
    busy = behind.sites if behind else ()
    counted = tuple(site for site in record.sites if site in invitation.cohort)
    return [
        *(DropUploads(each) for each in over(invitation, behind)),
        *([DropUploads(record.round, counted)] if behind else []),
        *(SendToSite(site, message) for site in invitation.cohort if site not in busy),
        announce.round_ended(record, len(invitation.sites)),
    ]


def never_opened(late: LateUpdates, reason: str) -> list[Effect]:
    """The run ends before a round could take what was late for the one before."""
    round_id = late.stragglers.round
    return [*late.refuse(reason), CloseUploads(round_id, reason), DropUploads(round_id)]
