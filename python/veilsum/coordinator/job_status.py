"""A run as operators see it."""

from __future__ import annotations

from collections.abc import Sequence

from veilsum.control import RoundRecord, RunSpec, RunState, RunStatus
from veilsum.coordinator.job_phases import (
    Between,
    CoolingDown,
    Ended,
    Gathering,
    JobPhase,
    Running,
    Settling,
    Waiting,
)
from veilsum.coordinator.listening import JOIN
from veilsum.coordinator.retry import COOLDOWN


def run_status(
    run_id: str,
    spec: RunSpec,
    phase: JobPhase,
    records: Sequence[RoundRecord],
    missing: tuple[str, ...],
) -> RunStatus:
    """The status of a run in a phase.

    Args:
        missing: sites that a round which is about to open would wait for.
    """
    state: RunState = "running"
    number = records[-1].round.number if records else 0
    name, reason, waiting = "", "", tuple[str, ...]()
    match phase:
        case Waiting():
            state = "waiting"
        case Gathering() | Between():
            number, name, waiting = phase.round.number, JOIN, missing
        case CoolingDown():
            number, name = phase.round.number, COOLDOWN
        case Running() | Settling():
            journal = phase.round.journal
            number, name = phase.invitation.round.number, journal.phase
            waiting = journal.waiting
        case Ended():
            state, reason = phase.state, phase.reason
    return RunStatus(
        run_id=run_id,
        spec=spec,
        state=state,
        reason=reason,
        current_round=number,
        phase=name,
        sites_waiting=waiting,
        rounds=tuple(records),
    )
