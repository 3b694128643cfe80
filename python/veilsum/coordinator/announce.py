"""What those who watch a run are told about joining, rounds and the end.

What happens inside a round is told by its journal.
"""

from __future__ import annotations

from veilsum.control import RoundId, RoundRecord, RunEvent, RunState
from veilsum.coordinator.effects import Announce


def joining(
    round_id: RoundId, phase: str, present: int, expected: int, *, site: str = ""
) -> Announce:
    """A round waits for sites; with a `site`, one that was waited for has joined."""
    return Announce(
        RunEvent(
            round_id.run_id,
            "site" if site else "phase",
            round_number=round_id.number,
            phase=phase,
            site=site,
            detail="joined" if site else "",
            sites_in=present,
            sites_expected=expected,
        )
    )


def cooling_down(again: RoundId, phase: str, attempts: int) -> Announce:
    """A round failed and will be held again, as attempt `again` of at most so many."""
    detail = f"attempt {again.attempt + 1} of at most {attempts} follows"
    return Announce(
        RunEvent(again.run_id, "phase", round_number=again.number, phase=phase, detail=detail)
    )


def round_ended(record: RoundRecord, invited: int) -> Announce:
    """A round is over, with a result or without."""
    return Announce(
        RunEvent(
            record.round.run_id,
            "round",
            round_number=record.round.number,
            detail="completed" if record.completed else f"aborted: {record.reason}",
            sites_in=len(record.sites),
            sites_expected=invited,
            bytes_in=sum(record.bytes_in.values()),
            seconds=sum(record.seconds.values()),
            digest=record.digest,
            metrics=record.metrics,
        )
    )


def run_ended(run_id: str, rounds: int, state: RunState, reason: str) -> Announce:
    """No more rounds will come."""
    detail = f"{state}: {reason}" if reason else state
    return Announce(RunEvent(run_id, "run", round_number=rounds, detail=detail))
