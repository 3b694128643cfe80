"""How a round of a run opens: with whom, from which model, and what is late for the last one."""

from __future__ import annotations

from collections.abc import Sequence

from veilsum.control import RoundOpened, RunSpec
from veilsum.coordinator import announce
from veilsum.coordinator.attendance import Attendance
from veilsum.coordinator.effects import Effect, OpenUploads, PublishModel, SendToSite, SetDeadline
from veilsum.coordinator.events import UpdateArrived
from veilsum.coordinator.job_phases import Between, Gathering, JobPhase, Running
from veilsum.coordinator.journal import Invitation, Journal
from veilsum.coordinator.listening import JOIN
from veilsum.coordinator.policy import task_of_round
from veilsum.coordinator.rounds import RoundFactory
from veilsum.coordinator.stragglers import Stragglers
from veilsum.errors import RoundAborted
from veilsum.model import ModelLayout
from veilsum.optimizers.applying import FRESH


def awaited(spec: RunSpec, phase: Gathering, attendance: Attendance) -> list[Effect]:
    """While sites are missing."""
    there, expected = len(attendance.there), len(attendance.invitable)
    announced = announce.joining(phase.round, JOIN, there, expected)
    return [SetDeadline(phase.round, JOIN, spec.deadlines.join_s), announced]


def made(
    spec: RunSpec, phase: Gathering, attendance: Attendance, factory: RoundFactory, now: float
) -> Running:
    """A round of those who are there, which has not begun.

    Raises:
        RoundAborted: they are too few.
        ConfigError, DeviceError: it cannot work with them.
    """
    reason = attendance.shortfall()
    if reason is not None:
        raise RoundAborted(reason)
    late = phase.late.stragglers if phase.late else None
    cohort = attendance.choose(phase.round, late.sites if late else ())
    invitation = Invitation(phase.round, cohort, late)
    journal = Journal(invitation, joined_s=now - phase.began)
    opened = factory.make(spec, invitation, phase.model.ref, journal)
    return Running(phase.model, invitation, opened)


def published(running: Running) -> PublishModel:
    """What its sites train from. Those that are late may not have fetched theirs yet."""
    ref, late = running.model.ref, running.invitation.late
    return PublishModel(
        running.invitation.round,
        ref.layout,
        running.model.arrays,
        ref.model_hash,
        ref.state_hash,
        late.round.number if late else None,
    )


def held(phase: Gathering) -> Sequence[UpdateArrived]:
    """Late updates that came before the round opened."""
    return tuple(phase.late.held.values()) if phase.late else ()


def _still_late(phase: JobPhase) -> Stragglers | None:
    if isinstance(phase, Between | Gathering):
        return phase.late.stragglers if phase.late else None
    if not isinstance(phase, Running) or phase.invitation.late is None:
        return None
    late, waiting = phase.invitation.late, phase.round.journal.waiting
    for site in late.sites:
        late = late if site in waiting else late.without(site)
    return late


def late_again(
    spec: RunSpec, phase: JobPhase, layout: ModelLayout, factory: RoundFactory
) -> list[Effect]:
    """After a restart: those who still work on the round before the standing's are awaited. What
    happened in that round is not replayed."""
    late = _still_late(phase)
    if late is None or not late.sites:
        return []
    run_id, number = late.round.run_id, late.round.number
    model = factory.kept(run_id, number - 1, layout) if factory.kept else {}
    task = task_of_round(spec.task, number)
    opened = RoundOpened(late.round, spec.task_id, task, b"", late.plan(spec, layout))
    return [
        PublishModel(late.round, layout, model, late.model_hash, FRESH, number),
        OpenUploads(late.round, late.sites),
        *(SendToSite(site, opened) for site in late.sites),
    ]
