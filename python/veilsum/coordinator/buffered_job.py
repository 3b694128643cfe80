"""One buffered run (FedBuff, Nguyen et al. 2022): sites train at their own pace.

Round n is the n-th step of the model. It collects updates in a buffer, whichever version of the
model they were trained from, and ends when the buffer is full. A site that has sent its update is
invited at once to train the model as it is by then; nobody waits for the slow ones. One that
the model has left too far behind is told to stop, and begins again.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, replace
from typing import TypeAlias, assert_never

from veilsum.control import (
    Decline,
    PlainPlan,
    Progress,
    ProtocolMessage,
    RoundId,
    RoundRecord,
    RunClosed,
    RunState,
    RunStatus,
    SiteDropped,
    UpdateHeader,
)
from veilsum.coordinator import announce
from veilsum.coordinator.buffer import PHASE, Buffer
from veilsum.coordinator.effects import (
    AnswerUpload,
    Effect,
    GoOn,
    SaveRound,
    SaveRun,
    SaveStanding,
    SendToSite,
    SetDeadline,
)
from veilsum.coordinator.events import (
    DeadlinePassed,
    Event,
    Proceed,
    ResultPublished,
    RunSubmitted,
    SiteJoined,
    SiteLeft,
    SiteSent,
    UpdateArrived,
)
from veilsum.coordinator.job_phases import CurrentModel, Ended, Waiting
from veilsum.coordinator.model_steps import ModelSteps
from veilsum.coordinator.outcome import Failed, Finished, Outcome
from veilsum.coordinator.plain_updates import check_header, open_receiver
from veilsum.coordinator.round import Receiver
from veilsum.coordinator.rounds import RoundFactory
from veilsum.coordinator.standing import RestoredRun, Standing
from veilsum.coordinator.versions import Versions, too_stale
from veilsum.errors import ConfigError, DecodeError, DeviceError, PeerError, RoundAborted


@dataclass(frozen=True, slots=True)
class _Collecting:
    """A buffer is being filled.

    Attributes:
        model: that it will step.
        begun: whether sites were invited to train this model; before, only updates of earlier
            ones can come.
    """

    model: CurrentModel
    buffer: Buffer
    begun: bool

    @property
    def number(self) -> int:
        """Of the round."""
        return self.buffer.round.number


_Phase: TypeAlias = Waiting | _Collecting | Ended


class BufferedJob:
    """Drives one buffered run. Every call returns effects; the caller looks at `ended` afterwards.

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
        self.masked = submitted.spec.masked  # never
        self._layout = submitted.layout
        self._cohort = cohort
        self._present = present
        self._factory = factory
        self._versions = Versions(submitted.run_id, submitted.spec, submitted.layout, present)
        self._records: list[RoundRecord] = []
        self.steps = ModelSteps(submitted, factory.threads)
        self._phase: _Phase = Waiting(self.steps.refer_to(submitted.model))

    @classmethod
    def restored(
        cls,
        run: RestoredRun,
        cohort: tuple[str, ...],
        present: Set[str],
        factory: RoundFactory,
    ) -> BufferedJob:
        """A run as an earlier process kept it; see reopen() and resume()."""
        job = cls(run.submitted, cohort, present, factory)
        job._records = list(run.records)
        assert isinstance(job._phase, Waiting)
        job.steps.check_kept(run, job._phase.model)
        if run.standing is not None:
            job._versions.load(run.standing.data)
            buffer = job._new_buffer(run.standing.round.number)
            job._phase = _Collecting(job._phase.model, buffer, begun=False)
        return job

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
        phase = self._phase
        collecting = phase if isinstance(phase, _Collecting) else None
        state: RunState = "waiting" if isinstance(phase, Waiting) else "running"
        ended = phase if isinstance(phase, Ended) else None
        return RunStatus(
            run_id=self._run_id,
            spec=self._spec,
            state=ended.state if ended else state,
            reason=ended.reason if ended else "",
            current_round=collecting.number if collecting else self._last_round,
            phase=PHASE if collecting else "",
            sites_waiting=self._versions.sites if collecting else (),
            rounds=tuple(self._records),
        )

    # --- what happens -----------------------------------------------------------

    def start(self) -> list[Effect]:
        """The run's turn has come."""
        phase = self._phase
        if not isinstance(phase, Waiting):
            raise ConfigError(f"run {self._run_id!r} has begun already")
        collecting = self._turn_to(phase.model, 1)
        return [SaveRun(self.status()), *collecting] if not self.ended else collecting

    def reopen(self) -> list[Effect]:
        """After restored(), before the events that came since: what was open then."""
        phase, kept = self._phase, self._factory.kept
        if not isinstance(phase, _Collecting) or kept is None:
            return []
        effects: list[Effect] = []
        for record in self._records[-1:]:
            effects += self._versions.tell_end(record, record.updates)
        return effects + self._versions.reopen(
            lambda number: kept(self._run_id, number - 1, self._layout)
        )

    def resume(self) -> list[Effect]:
        """After the last event that led here was replayed: what is still to be done."""
        match self._phase:
            case _Collecting(begun=False):
                return [GoOn(self._run_id)]
            case Ended():
                return [SaveRun(self.status())]
        return []

    def proceed(self, now: float) -> list[Effect]:
        """Serves the model as it is now, and invites whoever waits for it; nothing if that has
        happened already."""
        phase = self._phase
        if not isinstance(phase, _Collecting) or phase.begun:
            return []
        phase.buffer.begin(now)
        phase = replace(phase, begun=True)
        self._phase = phase
        model, number = phase.model, phase.number
        effects = self._versions.publish(number, model.arrays, model.ref.model_hash)
        effects.append(SetDeadline(phase.buffer.round, PHASE, self._spec.deadlines.inputs_s))
        effects += self._versions.invite(number, self._cohort)
        effects.append(phase.buffer.tell("phase"))
        return effects + (self._close(phase, now) if self._over(phase) else [])

    def joined(self, site: str, replaced: str, now: float) -> list[Effect]:
        """A site of the cohort connected, or began anew: it trains the model as it is now.

        Args:
            replaced: what became of its process before; empty if it was told by left().
        """
        del now
        phase = self._phase
        if site not in self._cohort or not isinstance(phase, _Collecting):
            return []
        if replaced and self._versions.trains(site):
            self._versions.lost(site)
        joined = phase.buffer.tell("site", site, "joined")
        return [joined, *(self._versions.invite(phase.number, (site,)) if phase.begun else [])]

    def left(self, site: str, reason: str, now: float) -> list[Effect]:
        """A site's connection is gone."""
        phase = self._phase
        if not isinstance(phase, _Collecting) or not self._versions.trains(site):
            return []
        self._versions.lost(site)
        return self._dropped(phase, site, reason, now)

    def keeps(self, event: Event) -> bool:
        """Whether it takes the event to come to the same state again."""
        phase = self._phase
        match event:
            case SiteJoined() | SiteLeft() | Proceed():
                return True
            case UpdateArrived(site, header):
                return self._versions.takes_part(site, header.round)
            case SiteSent(site, message):
                heard = self._versions.takes_part(site, message.round)
                return heard and not isinstance(message, Progress)
            case DeadlinePassed():
                return isinstance(phase, _Collecting) and _awaits(phase, event)
        return False

    def sent(self, event: SiteSent, now: float) -> list[Effect]:
        """A site sent a message. One about a round that it does not train for is stale and
        changes nothing."""
        phase, site, message = self._phase, event.site, event.message
        if not isinstance(phase, _Collecting):
            return []
        if not self._versions.takes_part(site, message.round):
            return []
        match message:
            case ProtocolMessage():
                return self._gave_up(phase, event, "sent a protocol message in a plain round", now)
            case Decline(_, code, reason):
                return self._gave_up(phase, event, f"declined ({code}): {reason}", now)
            case Progress(_, fraction):
                known = 0.0 <= fraction <= 1.0
                return [phase.buffer.tell("progress", site, fraction=fraction)] if known else []
            case _:
                assert_never(message)

    def receiver(self, site: str, header: UpdateHeader) -> Receiver:
        """Opens an upload.

        Raises:
            DecodeError, PeerError: why it is refused.
        """
        _, plan = self._awaited(site, header)
        return open_receiver(plan, self._layout, site, header)

    def update(self, arrived: UpdateArrived, now: float) -> list[Effect]:
        """A complete upload arrived."""
        site, round_id = arrived.site, arrived.header.round
        try:
            phase, plan = self._awaited(site, arrived.header)
            update = phase.buffer.add(plan, arrived, now)
        except (DecodeError, PeerError) as error:
            return [AnswerUpload(round_id, site, False, str(error))]
        self._versions.done(site)
        detail = f"delivered, staleness {update.staleness}" if update.staleness else "delivered"
        size = phase.buffer.bytes_in(site)
        effects: list[Effect] = [
            AnswerUpload(round_id, site, True, ""),
            phase.buffer.tell("site", site, detail, bytes_in=size),
        ]
        if self._over(phase):
            return effects + self._close(phase, now)
        return effects + (self._versions.invite(phase.number, (site,)) if phase.begun else [])

    def deadline(self, event: DeadlinePassed, now: float) -> list[Effect]:
        """A buffer's time is over; if it has been closed, nothing happens."""
        phase = self._phase
        if not isinstance(phase, _Collecting) or not _awaits(phase, event):
            return []
        return self._close(phase, now)

    def spoiled(self, reason: str, now: float) -> list[Effect]:
        """An update that counts is gone."""
        return self.abort(reason, now)

    def republish(self, sent: ResultPublished, now: float) -> list[Effect]:
        """Raises:
        ConfigError: a buffered run has no results that are published.
        """
        del now
        raise ConfigError(f"round {sent.round.number} of a buffered run has no signed result")

    def abort(self, reason: str, now: float) -> list[Effect]:
        """An operator stops the run."""
        phase = self._phase
        if isinstance(phase, _Collecting):
            return self._finish(phase, Failed(reason, final=True), now)
        return self._end("aborted", reason)

    # --- sites --------------------------------------------------------------------

    def _awaited(self, site: str, header: UpdateHeader) -> tuple[_Collecting, PlainPlan]:
        """Raises PeerError for an update that is not awaited, or whose header is wrong."""
        phase, most = self._phase, self._spec.max_staleness
        if not isinstance(phase, _Collecting):
            raise PeerError(site, f"sent an update for run {self._run_id!r}, which takes none now")
        staleness = phase.buffer.staleness(header.round.number)
        if staleness > most:
            raise PeerError(site, too_stale(staleness, most))
        plan = self._versions.plan_for(site, header.round)
        check_header(plan, header.round, site, header)
        return phase, plan

    def _gave_up(
        self, phase: _Collecting, event: SiteSent, reason: str, now: float
    ) -> list[Effect]:
        self._versions.done(event.site)
        stopped = SendToSite(event.site, SiteDropped(event.message.round, reason))
        return [stopped, *self._dropped(phase, event.site, reason, now)]

    def _dropped(self, phase: _Collecting, site: str, reason: str, now: float) -> list[Effect]:
        phase.buffer.dropped.setdefault(site, reason)
        announced = phase.buffer.tell("site", site, f"dropped: {reason}")
        return [announced, *(self._close(phase, now) if self._over(phase) else [])]

    # --- buffers --------------------------------------------------------------------

    @property
    def _last_round(self) -> int:
        return self._records[-1].round.number if self._records else 0

    def _new_buffer(self, number: int) -> Buffer:
        aggregator = self._factory.aggregator(self._layout)
        buffer = Buffer(RoundId(self._run_id, number), self._layout, aggregator, self._spec)
        buffer.dropped.update(self._versions.left_behind)
        return buffer

    def _turn_to(self, model: CurrentModel, number: int) -> list[Effect]:
        """The run stands before a round, and does nothing new before that is kept."""
        effects = self._versions.leave_behind(number)
        try:
            buffer = self._new_buffer(number)
        except (ConfigError, DeviceError) as error:
            return effects + self._end("aborted", f"round {number}: {error}")
        self._phase = _Collecting(model, buffer, begun=False)
        for site, reason in buffer.dropped.items():
            effects.append(buffer.tell("site", site, f"dropped: {reason}"))
        standing = Standing(buffer.round, self._versions.to_bytes())
        return [*effects, SaveStanding(standing), GoOn(self._run_id)]

    def _over(self, phase: _Collecting) -> bool:
        """A buffer that is not full is over as well if nobody is left who could fill it."""
        nobody = phase.begun and not self._versions.sites
        return phase.buffer.full or (nobody and phase.buffer.enough)

    def _close(self, phase: _Collecting, now: float) -> list[Effect]:
        return self._finish(phase, phase.buffer.outcome(len(self._cohort)), now)

    def _finish(self, phase: _Collecting, outcome: Outcome, now: float) -> list[Effect]:
        model, buffer = phase.model, phase.buffer
        if isinstance(outcome, Finished):
            try:
                model = self.steps.step(model, outcome)
            except RoundAborted as error:
                outcome = Failed(str(error), final=True)
        record = buffer.record(outcome, model.ref.model_hash.hex(), now)
        self._records.append(record)
        arrays, state = (model.arrays, self.steps.state) if record.completed else (None, None)
        effects: list[Effect] = [
            SaveRound(record, self._layout, arrays, state),
            *self._versions.free(buffer.updates),
            *self._versions.tell_end(record, buffer.updates),
            announce.round_ended(record, len(self._cohort)),
        ]
        if isinstance(outcome, Failed):
            return effects + self._end("aborted", f"round {phase.number}: {outcome.reason}")
        if phase.number == self._spec.rounds:
            return effects + self._end("completed", "")
        return effects + self._turn_to(self._put_away(record, model), phase.number + 1)

    def _put_away(self, record: RoundRecord, model: CurrentModel) -> CurrentModel:
        """The model as SaveRound keeps it; its arrays are in that effect alone."""
        kept = self._factory.kept
        if kept is None:
            return model
        return replace(model, arrays=kept(self._run_id, record.round.number, model.ref.layout))

    def _end(self, state: RunState, reason: str) -> list[Effect]:
        self._phase = Ended(state, reason)
        closed = RunClosed(self._run_id, state == "completed", reason)
        return [
            *self._versions.close(f"the run is {state}"),
            SaveRun(self.status()),
            *(SendToSite(site, closed) for site in self._cohort if site in self._present),
            announce.run_ended(self._run_id, self._last_round, state, reason),
        ]


def _awaits(phase: _Collecting, event: DeadlinePassed) -> bool:
    return phase.begun and (phase.buffer.round, PHASE) == (event.round, event.phase)
