"""A round whose updates the coordinator can read: collect, screen, average."""

from __future__ import annotations

from veilsum import _native, secagg
from veilsum.control import PlainPlan, RoundClosed, RoundOpened, RunSpec, UpdateHeader
from veilsum.coordinator.effects import AnswerUpload, Effect, OpenUploads, SendToSite
from veilsum.coordinator.events import ResultPublished, UpdateArrived
from veilsum.coordinator.journal import Invitation, Journal, size_bytes
from veilsum.coordinator.outcome import Failed, Finished, Outcome
from veilsum.coordinator.plain_receiver import PlainReceiver
from veilsum.coordinator.plain_updates import add_update, check_header, mean_metrics, open_receiver
from veilsum.coordinator.policy import shortfall, too_light
from veilsum.coordinator.stragglers import Stragglers
from veilsum.errors import ConfigError, DecodeError, DeviceError, PeerError
from veilsum.model import ModelLayout, result_digest

PHASE = "updates"


class PlainRound:
    """See round.Round.

    Args:
        aggregator: empty; takes the updates as they come and refuses values that are not finite.
        spec: the run's, with the task of this round.
    """

    def __init__(
        self,
        plan: PlainPlan,
        layout: ModelLayout,
        aggregator: _native.MeanAggregator,
        invitation: Invitation,
        journal: Journal,
        spec: RunSpec,
    ) -> None:
        late = invitation.late
        self._plan = plan
        self._plans = {invitation.round: plan}  # whose updates it takes
        if late is not None:
            self._plans[late.round] = late.plan(spec, layout)
        self._layout = layout
        self._aggregator = aggregator
        self._invitation = invitation
        self._spec = spec
        self._turnout = spec.turnout
        self._headers: dict[str, UpdateHeader] = {}
        self._behind: list[str] = []
        self.journal = journal
        self.outcome: Outcome | None = None
        self.settled = False
        self.previous: secagg.PreviousRound | None = None
        self.unacknowledged = ""
        self.stragglers: Stragglers | None = None

    def begin(self, now: float) -> list[Effect]:
        """Invites the cohort and takes updates from now on."""
        round_id, cohort = self._invitation.round, self._invitation.cohort
        effects: list[Effect] = [self._invite(site) for site in cohort]
        effects.append(OpenUploads(round_id, cohort))
        seconds = self._spec.deadlines.inputs_s
        return effects + self.journal.begin_phase(PHASE, self._invitation.sites, seconds, now)

    def _invite(self, site: str) -> SendToSite:
        round_id, spec = self._invitation.round, self._spec
        return SendToSite(site, RoundOpened(round_id, spec.task_id, spec.task, b"", self._plan))

    @property
    def published(self) -> bytes:
        """Nothing is signed."""
        return b""

    def hears(self, site: str, payload: bytes) -> bool:
        """One whose update is in the mean is not needed any more."""
        del payload
        return site not in self._headers

    def message(self, site: str, payload: bytes, now: float) -> list[Effect]:
        """A plain round has no protocol messages: its sender mistakes it for a masked one."""
        del payload
        return self.lost(site, "sent a protocol message in a plain round", now)

    def lost(self, site: str, reason: str, now: float) -> list[Effect]:
        """Stops waiting for the site; one whose update is in the mean is not needed any more."""
        if site in self._headers:
            return []
        return self.journal.drop(site, reason) + self._close_if_complete(now)

    def rejoined(self, site: str, reason: str, now: float) -> list[Effect]:
        """Invites the site again, unless its update is in: nobody but itself has to begin anew.
        What a process still had to do for the round before is gone with it."""
        if site not in self._invitation.cohort:
            return self.lost(site, reason, now) if reason else []
        if site in self._headers:
            return []
        again = OpenUploads(self._invitation.round, (site,))  # from the first chunk
        return [*self.journal.readmit(site), again, self._invite(site)]

    def receiver(self, site: str, header: UpdateHeader) -> PlainReceiver:
        """Checks the header before the first chunk is taken."""
        self._check_header(site, header)
        return open_receiver(self._plans[header.round], self._layout, site, header)

    def _check_header(self, site: str, header: UpdateHeader) -> None:
        if self.outcome is not None:
            raise PeerError(site, "sent its update after the round closed")
        if site in self._headers:
            raise PeerError(site, "sent a second update in this round")
        if site in self.journal.dropped:
            raise PeerError(site, f"was dropped: {self.journal.dropped[site]}")
        check_header(self._plans[header.round], header.round, site, header)

    def update(self, arrived: UpdateArrived, now: float) -> list[Effect]:
        """Commits a complete upload to the mean."""
        site, header = arrived.site, arrived.header
        try:
            self._check_header(site, header)
            plan = self._plans[header.round]
            add_update(self._aggregator, plan, arrived, key=site, weight=header.weight)
        except (DecodeError, PeerError) as error:
            return [AnswerUpload(header.round, site, False, str(error))]
        self._headers[site] = header
        effects: list[Effect] = [AnswerUpload(header.round, site, True, "")]
        effects += self.journal.delivered(site, size_bytes(arrived.chunks), now)
        return effects + self._released(site) + self._close_if_complete(now)

    def _released(self, site: str) -> list[Effect]:
        """A straggler has done what it had to do for the round before."""
        late = self._invitation.late
        if late is None or site not in late.sites:
            return []
        return [SendToSite(site, RoundClosed(late.round, True, "", late.digest))]

    def deadline(self, now: float) -> list[Effect]:
        """Goes on without the silent sites."""
        return self._pass_over_silent("the deadline") + self._close_if_complete(now)

    def _pass_over_silent(self, before: str) -> list[Effect]:
        """Goes on without them. One that was invited to this round may go on as well, if a next
        round is there to take its update; one that was to the round before had that time."""
        effects: list[Effect] = []
        takes_late = self._spec.late == "next" and self._invitation.round.number < self._spec.rounds
        for site in self.journal.waiting:
            reason = f"sent no update before {before}"
            if takes_late and site in self._invitation.cohort:
                self._behind.append(site)
                effects += self.journal.leave_behind(site, f"{reason}; the next round takes it")
            else:
                effects += self.journal.drop(site, reason)
        return effects

    def publish(self, model_hash: bytes, state_hash: bytes, now: float) -> list[Effect]:
        """The sites of a plain round acknowledge nothing."""
        del model_hash, state_hash, now
        self.settled = True
        return []

    def republish(self, sent: ResultPublished, state_hash: bytes, now: float) -> list[Effect]:
        """See publish."""
        del sent, state_hash, now
        raise ConfigError("a plain round has no result that could be published again")

    def close(self) -> None:
        """Holds no secret."""

    def _close_if_complete(self, now: float) -> list[Effect]:
        """Ends the round as soon as no update is awaited any more, or it needs no more of them."""
        if self.outcome is not None or (self.journal.waiting and not self._quorum_met):
            return []
        quorum = self._turnout.closes_at
        effects = self._pass_over_silent(f"the round had its quorum of {quorum}")
        self.journal.end_phase(now)
        reason = self._too_little()
        self.outcome = self._mean() if reason is None else Failed(reason)
        if self._behind and isinstance(self.outcome, Finished):
            digest, sites = self.outcome.digest, tuple(self._behind)
            where = self._invitation.round
            self.stragglers = Stragglers(where, self._plan.model_hash, digest, sites)
        return effects

    @property
    def _quorum_met(self) -> bool:
        """Updates that are too light for a result do not close the round: more may come."""
        enough = 0 < self._turnout.closes_at <= len(self._headers)
        return enough and self._total_weight >= self._turnout.min_weight

    @property
    def _total_weight(self) -> int:
        return sum(header.weight for header in self._headers.values())

    def _too_little(self) -> str | None:
        count, invited = len(self._headers), len(self._invitation.sites)
        reason = shortfall("sent an update", count, invited, self._turnout.min_sites)
        return reason or too_light(count, self._total_weight, self._turnout.min_weight)

    def _mean(self) -> Finished | Failed:
        try:
            tensors = self._aggregator.finish()
        except DeviceError as error:
            return Failed(str(error))
        names = (name for name, _, _ in self._layout.native.tensors)
        mean = dict(zip(names, tensors, strict=True))
        return Finished(
            mean=mean,
            digest=result_digest(self._layout, mean),
            total_weight=self._aggregator.total_weight,
            sites=self._aggregator.sites,
            metrics=mean_metrics(
                self._plan.metrics,
                ((header.weight, header.metrics) for header in self._headers.values()),
            ),
        )
