"""What follows from the end of a round: it is kept, then its sites and watchers are told."""

from __future__ import annotations

from veilsum.control import RoundClosed, RoundRecord
from veilsum.coordinator import announce
from veilsum.coordinator.effects import (
    CloseUploads,
    DropUploads,
    Effect,
    SaveRound,
    SendToSite,
)
from veilsum.coordinator.job_phases import CurrentModel
from veilsum.optimizers.state import OptimizerState


def kept(
    record: RoundRecord, model: CurrentModel, state: OptimizerState | None, result: bytes
) -> list[Effect]:
    """Before any site hears of it.

    Args:
        model, state: after the round.
        result: as its sites will be told of it, of a masked round that completed.
    """
    arrays = model.arrays if record.completed else None
    return [
        CloseUploads(record.round, record.reason or "the round is complete"),
        SaveRound(record, model.ref.layout, arrays, state if record.completed else None, result),
    ]


def closed(record: RoundRecord, cohort: tuple[str, ...]) -> list[Effect]:
    """When nothing of the round is awaited any more."""
    message = RoundClosed(record.round, record.completed, record.reason, record.digest)
    return [
        DropUploads(record.round),
        *(SendToSite(site, message) for site in cohort),
        announce.round_ended(record, len(cohort)),
    ]
