"""One run: a sequence of rounds, each with whoever is there.

A round waits for the cohort to join, opens, and ends with a mean or without one. A mean
moves the model one step, which is kept before any site is told; when the sites have acknowledged
it the next round begins. A round without a mean is held again after a pause (retry.py), and ends
the run if that was its last attempt.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import replace

from veilsum.control import (
    RoundId,
    RoundRecord,
    RunClosed,
    RunState,
    RunStatus,
    UpdateHeader,
)
from veilsum.coordinator import announce, opening, round_end
from veilsum.coordinator.attendance import Attendance
from veilsum.coordinator.effects import (
    AnswerUpload,
    Effect,
    GoOn,
    SaveRun,
    SaveStanding,
    SendToSite,
    SetDeadline,
)
from veilsum.coordinator.events import (
    DeadlinePassed,
    Event,
    ResultPublished,
    RunSubmitted,
    SiteSent,
    UpdateArrived,
)
from veilsum.coordinator.job_phases import (
    Between,
    CoolingDown,
    CurrentModel,
    Ended,
    Gathering,
    JobPhase,
    Running,
    Settling,
    Waiting,
)
from veilsum.coordinator.job_status import run_status
from veilsum.coordinator.late import LateUpdates
from veilsum.coordinator.listening import (
    JOIN,
    awaits,
    heard,
    hears,
    late_updates,
    matters,
    open_round,
    takes_part,
)
from veilsum.coordinator.model_steps import ModelSteps
from veilsum.coordinator.outcome import Failed, Finished, Outcome
from veilsum.coordinator.retry import COOLDOWN, Retries
from veilsum.coordinator.round import Receiver, Round
from veilsum.coordinator.rounds import RoundFactory
from veilsum.coordinator.standing import JobMemory, RestoredRun, Standing
from veilsum.coordinator.stragglers import Stragglers
from veilsum.errors import ConfigError, DeviceError, PeerError, RoundAborted, VeilsumError


class Job:
    """Drives one run. Every call returns effects; the caller looks at `ended` afterwards.

    Args:
        cohort: sites to invite, sorted.
        present: live view of the connected sites, kept by the caller.
    """

    def __init__(
        self,
        submitted: RunSubmitted,
        cohort: tuple[str, ...],
        present: Set[str],
        factory: RoundFactory,
    ) -> None:
        self._run_id = submitted.run_id
        self._spec = submitted.spec
        self.masked = submitted.spec.masked  # whether its rounds have a protocol
        self._cohort = cohort
        self._present = present
        self._factory = factory
        self._retries = Retries(submitted.spec)
        self._attendance = Attendance(
            submitted.spec, cohort, present, self._retries, factory.entropy
        )
        self._records: list[RoundRecord] = []
        self.steps = ModelSteps(submitted, factory.threads)
        self._phase: JobPhase = Waiting(self.steps.refer_to(submitted.model))

    @classmethod
    def restored(
        cls,
        run: RestoredRun,
        cohort: tuple[str, ...],
        present: Set[str],
        factory: RoundFactory,
    ) -> Job:
        """A run as an earlier process kept it; see resume()."""
        job = cls(run.submitted, cohort, present, factory)
        job._records = list(run.records)
        assert isinstance(job._phase, Waiting)
        job.steps.check_kept(run, job._phase.model)
        if run.standing is not None:
            job._stand_at(run.standing)
        return job

    def _stand_at(self, standing: Standing) -> None:
        assert isinstance(self._phase, Waiting)
        memory = JobMemory.from_bytes(standing.data)
        self._attendance.recall(memory)
        model = self._phase.model
        model = replace(model, ref=replace(model.ref, previous=memory.previous))
        late = self._late(memory.late)
        between = Between(model, standing.round, late)
        self._phase = CoolingDown(model, standing.round) if memory.cooling else between

    @property
    def ended(self) -> bool:
        """Whether the run is over."""
        return isinstance(self._phase, Ended)

    @property
    def waiting(self) -> bool:
        """Whether the run's turn has not come yet."""
        return isinstance(self._phase, Waiting)

    def status(self) -> RunStatus:
        """The run as operators see it."""
        return run_status(
            self._run_id, self._spec, self._phase, self._records, self._attendance.missing
        )

    def keeps(self, event: Event) -> bool:
        """Whether it takes the event to come to the same state again, and it may be kept."""
        return matters(self._phase, event)

    # --- what happens -----------------------------------------------------------

    def start(self) -> list[Effect]:
        """The run's turn has come."""
        phase = self._phase
        if not isinstance(phase, Waiting):
            raise ConfigError(f"run {self._run_id!r} has begun already")
        self._phase = Between(phase.model, RoundId(self._run_id, 1))
        return [SaveRun(self.status()), *self._stand()]

    def resume(self) -> list[Effect]:
        """After the last event that led here was replayed: what is still to be done."""
        late = opening.late_again(self._spec, self._phase, self.steps.layout, self._factory)
        return [*late, *self._resumed()]

    def _resumed(self) -> list[Effect]:
        match self._phase:
            case Between():
                return [GoOn(self._run_id)]
            case CoolingDown(_, again):
                return [SetDeadline(again, COOLDOWN, self._spec.deadlines.cooldown_s)]
            case Ended():
                return [SaveRun(self.status())]
        return []

    def proceed(self, now: float) -> list[Effect]:
        """Begins the round that comes next; nothing if that has happened already."""
        phase = self._phase
        if not isinstance(phase, Between):
            return []
        return self._gather(Gathering(phase.model, phase.round, now, phase.late), now)

    def joined(self, site: str, replaced: str, now: float) -> list[Effect]:
        """A site of the cohort connected, or began anew: it takes part from the next round on, if
        the round that it was in does not want it again.

        Args:
            replaced: what became of its process before; empty if it was told by left().
        """
        attendance, phase = self._attendance, self._phase
        attendance.given_up.discard(site)
        if isinstance(phase, Running | Settling) and site in phase.invitation.sites:
            return self._in_round(phase, lambda at: at.rejoined(site, replaced, now), now)
        if replaced and (late := late_updates(phase)):
            late.lost(site)
        if site not in attendance.invitable or not isinstance(phase, Gathering):
            return []
        there, expected = len(attendance.there), len(attendance.invitable)
        announced = announce.joining(phase.round, JOIN, there, expected, site=site)
        return [announced, *(self._open(phase, now) if not attendance.missing else [])]

    def left(self, site: str, reason: str, now: float) -> list[Effect]:
        """A site's connection is gone."""
        phase = self._phase
        if late := late_updates(phase):
            late.lost(site)
        if not isinstance(phase, Running | Settling) or site not in phase.invitation.sites:
            return []
        return self._in_round(phase, lambda round_: round_.lost(site, reason, now), now)

    def sent(self, event: SiteSent, now: float) -> list[Effect]:
        """A site sent a message. One about another round, or of a site that was not invited
        or was dropped, is stale and changes nothing."""
        phase, site = self._phase, event.site
        if (late := late_updates(phase)) and hears(phase, event):
            late.lost(site)
        if not isinstance(phase, Running | Settling) or not takes_part(
            phase, site, event.message.round
        ):
            return []
        return self._in_round(phase, lambda at: heard(at, event, now), now)

    def receiver(self, site: str, header: UpdateHeader) -> Receiver:
        """Opens an upload.

        Raises:
            DecodeError, PeerError: why it is refused.
        """
        late = late_updates(self._phase)
        return (late or open_round(self._phase, site, header.round)).receiver(site, header)

    def update(self, arrived: UpdateArrived, now: float) -> list[Effect]:
        """A complete upload arrived."""
        phase = self._phase
        if late := late_updates(phase):
            return late.hold(arrived)
        try:
            open_round(phase, arrived.site, arrived.header.round)
        except PeerError as error:
            return [AnswerUpload(arrived.header.round, arrived.site, False, str(error))]
        assert isinstance(phase, Running)
        return self._in_round(phase, lambda at: at.update(arrived, now), now)

    def deadline(self, event: DeadlinePassed, now: float) -> list[Effect]:
        """A phase's time is over; if the phase is over as well, nothing happens."""
        if not awaits(self._phase, event):
            return []
        match self._phase:
            case Gathering() as phase:
                self._attendance.give_up()
                return self._open(phase, now)
            case CoolingDown(model, round_id):
                return self._gather(Gathering(model, round_id, now), now)
            case (Running() | Settling()) as phase:
                return self._in_round(phase, lambda at: at.deadline(now), now)
        return []

    def spoiled(self, reason: str, now: float) -> list[Effect]:
        """What the open round is made of is gone."""
        phase = self._phase
        if isinstance(phase, Running):
            return self._finish_round(phase, Failed(reason), now)
        return self.abort(reason, now)

    def republish(self, sent: ResultPublished, now: float) -> list[Effect]:
        """In a replay, ends the round whose sites were unmasking its sum.

        Raises:
            ConfigError, DecodeError: the result is not of this round, model or sum.
        """
        phase = self._phase
        if not isinstance(phase, Running) or phase.invitation.round != sent.round:
            raise ConfigError(f"round {sent.round.number} has a result and is not open")
        model = self.steps.take_over(sent.model, sent.optimizer_state, sent.record.model_hash)
        effects = phase.round.republish(sent, model.ref.state_hash, now)
        self._records.append(sent.record)
        self._retries.leave_out((*phase.round.journal.left_out, *sent.left_out))
        settling = Settling(model, phase.invitation, phase.round, sent.record)
        self._phase = settling
        return effects + (self._settled(settling) if phase.round.settled else [])

    def abort(self, reason: str, now: float) -> list[Effect]:
        """An operator stops the run."""
        phase = self._phase
        if isinstance(phase, Running):
            return self._finish_round(phase, Failed(reason, final=True), now)
        if isinstance(phase, Settling):
            effects = phase.round.deadline(now)  # its receipt is made of what is there
            return effects + self._closed(phase, phase.record) + self._end("aborted", reason)
        return self._end("aborted", reason)

    # --- joining ------------------------------------------------------------------

    def _gather(self, phase: Gathering, now: float) -> list[Effect]:
        self._phase = phase
        if not self._attendance.missing:
            return self._open(phase, now)
        return opening.awaited(self._spec, phase, self._attendance)

    def _open(self, phase: Gathering, now: float) -> list[Effect]:
        try:
            running = opening.made(self._spec, phase, self._attendance, self._factory, now)
        except (ConfigError, DeviceError, RoundAborted) as error:
            return self._end("aborted", f"round {phase.round.number}: {error}")
        self._phase = running
        begun = self._in_round(running, lambda at: at.begin(now), now)
        late = [effect for one in opening.held(phase) for effect in self.update(one, now)]
        return [opening.published(running), *begun, *late]

    # --- rounds -------------------------------------------------------------------

    @property
    def _last_round(self) -> int:
        return self._records[-1].round.number if self._records else 0

    def _in_round(
        self, phase: Running | Settling, step: Callable[[Round], list[Effect]], now: float
    ) -> list[Effect]:
        effects = step(phase.round)
        if isinstance(phase, Settling):
            return effects + self._settled(phase) if phase.round.settled else effects
        outcome = phase.round.outcome
        return effects if outcome is None else effects + self._finish_round(phase, outcome, now)

    def _finish_round(self, phase: Running, outcome: Outcome, now: float) -> list[Effect]:
        model = phase.model
        if isinstance(outcome, Finished):
            try:
                model = self.steps.step(model, outcome)
            except RoundAborted as error:
                outcome = Failed(str(error), final=True)
        record = phase.round.journal.record(outcome, model.ref.model_hash.hex(), now)
        self._records.append(record)
        self._retries.leave_out(phase.round.journal.left_out)
        if isinstance(outcome, Failed):
            over = round_end.over(phase.invitation, None)
            kept = round_end.kept(record, over, model, None, b"")
            return kept + self._closed(phase, record) + self._failed(record, outcome, model)
        put_away = self._put_away(record, model)
        settling = Settling(put_away, phase.invitation, phase.round, record)
        self._phase = settling
        told = self._published(settling, now)
        over = round_end.over(phase.invitation, phase.round.stragglers)
        state, published = self.steps.state, phase.round.published
        left_out = self._retries.left_out
        return round_end.kept(record, over, model, state, published, left_out) + told

    def _published(self, phase: Settling, now: float) -> list[Effect]:
        """What fails from here on must not take back what keeps the round."""
        hashes = (phase.model.ref.model_hash, phase.model.ref.state_hash)
        try:
            return self._in_round(phase, lambda at: at.publish(*hashes, now), now)
        except VeilsumError as error:
            reason = f"round {phase.record.round.number}: its result was not published: {error}"
            return self._closed(phase, phase.record) + self._end("aborted", reason)

    def _failed(self, record: RoundRecord, outcome: Failed, model: CurrentModel) -> list[Effect]:
        again = self._retries.after(record.round, outcome)
        if again is None:
            return self._end("aborted", f"round {record.round.number}: {outcome.reason}")
        self._phase = CoolingDown(model, again)
        return [
            *self._stand(),
            SetDeadline(again, COOLDOWN, self._spec.deadlines.cooldown_s),
            announce.cooling_down(again, COOLDOWN, self._spec.max_attempts),
        ]

    def _settled(self, phase: Settling) -> list[Effect]:
        self._retries.leave_out(phase.round.journal.left_out)
        effects = self._closed(phase, phase.record)
        number = phase.record.round.number
        missing = phase.round.unacknowledged
        reason = f"round {number}: {missing}" if missing else ""
        if number == self._spec.rounds:
            # The run has its model, and no later run can begin from it: an operator must know.
            return effects + self._end("completed", reason)
        if missing:
            return effects + self._end("aborted", reason)
        ref = replace(phase.model.ref, previous=phase.round.previous)
        following = RoundId(self._run_id, number + 1)
        late = self._late(phase.round.stragglers)
        self._phase = Between(replace(phase.model, ref=ref), following, late)
        return effects + self._stand()

    def _stand(self) -> list[Effect]:
        """The run does nothing new before this is kept."""
        phase = self._phase
        assert isinstance(phase, Between | CoolingDown)
        cooling, previous = isinstance(phase, CoolingDown), phase.model.ref.previous
        late = phase.late.stragglers if isinstance(phase, Between) and phase.late else None
        memory = self._attendance.memory(cooling=cooling, previous=previous, late=late)
        saved = SaveStanding(Standing(phase.round, memory.to_bytes()))
        return [saved] if cooling else [saved, GoOn(self._run_id)]

    def _put_away(self, record: RoundRecord, model: CurrentModel) -> CurrentModel:
        """The model as SaveRound keeps it; its arrays are in that effect alone."""
        kept = self._factory.kept
        if kept is None or not record.completed:
            return model
        return replace(model, arrays=kept(self._run_id, record.round.number, model.ref.layout))

    def _closed(self, phase: Running | Settling, record: RoundRecord) -> list[Effect]:
        phase.round.close()
        behind = phase.round.stragglers if record.completed else None
        return round_end.closed(record, phase.invitation, behind)

    def _late(self, stragglers: Stragglers | None) -> LateUpdates | None:
        layout = self.steps.layout
        return LateUpdates(stragglers, self._spec, layout) if stragglers else None

    def _end(self, state: RunState, reason: str) -> list[Effect]:
        late = late_updates(self._phase)
        never_opened = round_end.never_opened(late, reason) if late else []
        self._phase = Ended(state, reason)
        closed = RunClosed(self._run_id, state == "completed", reason)
        return [
            *never_opened,
            SaveRun(self.status()),
            *(SendToSite(site, closed) for site in self._cohort if site in self._present),
            announce.run_ended(self._run_id, self._last_round, state, reason),
        ]
