"""The coordinator without I/O: takes events, returns effects.

It reads no clock and draws no randomness of its own, so a run can be replayed from its
events. One run is active at a time; others wait their turn in the order they came.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import assert_never

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from veilsum.control import RunStatus, UpdateHeader
from veilsum.coordinator.buffered_job import BufferedJob
from veilsum.coordinator.effects import AnswerUpload, Effect, SaveRun
from veilsum.coordinator.events import (
    DeadlinePassed,
    Event,
    Proceed,
    ResultPublished,
    RoundSpoiled,
    RunAbortRequested,
    RunSubmitted,
    SiteJoined,
    SiteLeft,
    SiteSent,
    UpdateArrived,
)
from veilsum.coordinator.job import Job
from veilsum.coordinator.listening import as_written
from veilsum.coordinator.policy import check_run, cohort_of
from veilsum.coordinator.round import Receiver
from veilsum.coordinator.rounds import Entropy, ReadKept, RoundFactory
from veilsum.coordinator.standing import RestoredRun
from veilsum.difference import check_fits
from veilsum.errors import ConfigError, PeerError
from veilsum.roster import Roster

_ENDED_KEPT = 16
_RECONNECTED = "its connection was replaced by a new one"


class Coordinator:
    """All runs of one coordinator. Not thread-safe: one event at a time.

    Args:
        signing_key: for protocol messages; its public half is in the roster.
        entropy: source of public nonces.
        threads: for sums and masks.
        spool: a directory for the updates of plain rounds, "" to keep them in memory.
        backend: what sums the updates of rounds: "cpu", or a device such as "cuda:0".
        audits: whether masked rounds keep what others need to check their sums (PublishAudit).
        kept: gives models back that SaveRound kept, so that none is in memory between rounds.

    Raises:
        ConfigError: the key is not the one the roster lists for the coordinator.
    """

    def __init__(
        self,
        roster: Roster,
        signing_key: Ed25519PrivateKey,
        *,
        entropy: Entropy,
        threads: int = 1,
        spool: str = "",
        backend: str = "cpu",
        audits: bool = False,
        kept: ReadKept | None = None,
    ) -> None:
        if signing_key.public_key().public_bytes_raw() != roster.coordinator_key:
            raise ConfigError(
                "the signing key is not the one the roster lists for the coordinator",
                hint="point the coordinator at the key its roster was made with",
            )
        self._roster = roster
        self._factory = RoundFactory(
            roster, signing_key, entropy, threads, spool, backend, audits, kept
        )
        self._present: dict[str, bytes] = {}  # and the process that each site says it is
        self._jobs: dict[str, Job | BufferedJob] = {}  # in the order they came

    def status(self, run_id: str) -> RunStatus:
        """One run.

        Raises:
            ConfigError: there is no such run, or others have ended since.
        """
        return self._job(run_id).status()

    def runs(self) -> tuple[RunStatus, ...]:
        """Runs that have not ended and the last that have, oldest first."""
        return tuple(job.status() for job in self._jobs.values())

    @property
    def present(self) -> Mapping[str, bytes]:
        """The sites that are there, each with the process that it says it is."""
        return dict(self._present)

    @property
    def idle(self) -> bool:
        """Whether there is no run to go on with: then events need not be written down."""
        return self._active is None

    def restore(self, run: RestoredRun) -> list[Effect]:
        """Takes over a run that an earlier process left; runs in the order they were submitted.
        Then come the events that were written down since its standing, and resume().

        Returns:
            What was open then, and is to be open again before the events.

        Raises:
            ConfigError: the run cannot go on with this roster, or what was kept is damaged.
        """
        submitted = run.submitted
        check_fits(submitted.layout, submitted.model, "the kept model")
        cohort = cohort_of(submitted.spec, self._roster)
        kind = BufferedJob if submitted.spec.buffer_size else Job
        job = kind.restored(run, cohort, self._present.keys(), self._factory)
        self._jobs[submitted.run_id] = job
        return job.reopen() if isinstance(job, BufferedJob) else []

    def forget(self, run_id: str) -> None:
        """Takes no further part in a run; what is to be said of it, the caller says."""
        del self._jobs[run_id]

    def resume(self) -> list[Effect]:
        """After restore() and the events: what is still to be done."""
        effects = [effect for job in self._jobs.values() for effect in job.resume()]
        return effects + self._start_next()

    def written(self, event: Event) -> Event | None:
        """An event as it has to be written down once it is handled, so that a later process comes
        to the same state; None if that is not needed, or must not be: sites are sending shares
        of seeds. To be asked before handle()."""
        job = self._active
        if job is None or not job.keeps(event):
            return None
        return as_written(event, masked=job.masked) if isinstance(event, SiteSent) else event

    @property
    def _active(self) -> Job | BufferedJob | None:
        return next((job for job in self._jobs.values() if not (job.ended or job.waiting)), None)

    def upload_check(self, site: str, header: UpdateHeader) -> Receiver:
        """Opens an upload; the receiver checks its chunks, and may do so in another thread.

        Raises:
            DecodeError, PeerError: why it is refused.
        """
        job = self._jobs.get(header.round.run_id)
        if job is None:
            raise PeerError(site, f"sent an update for run {header.round.run_id!r}, unknown here")
        return job.receiver(site, header)

    def handle(self, event: Event, *, now: float) -> list[Effect]:
        """Takes one event and returns what the caller must do because of it.

        Nothing a site sends makes this raise.

        Args:
            now: seconds on any clock that does not go back.

        Raises:
            ConfigError: an operator's request cannot be met; nothing has changed.
        """
        effects = self._dispatch(event, now) + self._start_next()
        self._let_go()
        return effects

    def _let_go(self) -> None:
        """Of runs that have ended only what is said of them is kept, of the last few."""
        ended = [run_id for run_id, job in self._jobs.items() if job.ended]
        for run_id in ended:
            self._jobs[run_id].steps.let_go()
        for run_id in ended[:-_ENDED_KEPT]:
            del self._jobs[run_id]

    def _dispatch(self, event: Event, now: float) -> list[Effect]:
        match event:
            case SiteJoined():
                return self._on_joined(event, now)
            case SiteLeft(site, reason):
                return self._on_left(site, f"lost its connection: {reason}", now)
            case SiteSent(_, message):
                job = self._jobs.get(message.round.run_id)
                return job.sent(event, now) if job else []
            case UpdateArrived(site, header):
                job = self._jobs.get(header.round.run_id)
                refused = AnswerUpload(header.round, site, False, "the run is unknown here")
                return job.update(event, now) if job else [refused]
            case DeadlinePassed(round_id):
                job = self._jobs.get(round_id.run_id)
                return job.deadline(event, now) if job else []
            case RunSubmitted():
                return self._on_submitted(event)
            case RunAbortRequested(run_id, reason):
                return self._on_abort(run_id, reason, now)
            case Proceed(run_id):
                return self._job(run_id).proceed(now)
            case ResultPublished(round_id):
                return self._job(round_id.run_id).republish(event, now)
            case RoundSpoiled(run_id, reason):
                return self._job(run_id).spoiled(reason, now)
            case _:
                assert_never(event)

    def _on_joined(self, event: SiteJoined, now: float) -> list[Effect]:
        site = event.site
        if site not in self._roster.sites:
            return []
        # A new connection while the old one still seems open: the site's process began anew
        # or noticed the break first. Either way what it held for the round is gone.
        replaced = _RECONNECTED if site in self._present else ""
        self._present[site] = event.instance
        return [effect for job in self._jobs.values() for effect in job.joined(site, replaced, now)]

    def _on_left(self, site: str, reason: str, now: float) -> list[Effect]:
        self._present.pop(site, None)
        effects: list[Effect] = []
        for job in self._jobs.values():
            effects += job.left(site, reason, now)
        return effects

    def _on_submitted(self, event: RunSubmitted) -> list[Effect]:
        if event.run_id in self._jobs:
            raise ConfigError(f"there is a run {event.run_id!r} already")
        check_fits(event.layout, event.model, "the initial model")
        check_run(event.spec, event.layout, self._roster)
        cohort = cohort_of(event.spec, self._roster)
        kind = BufferedJob if event.spec.buffer_size else Job
        job = kind(event, cohort, self._present.keys(), self._factory)
        self._jobs[event.run_id] = job
        return [SaveRun(job.status())]

    def _on_abort(self, run_id: str, reason: str, now: float) -> list[Effect]:
        job = self._job(run_id)
        if job.ended:
            raise ConfigError(f"run {run_id!r} has ended already")
        return job.abort(reason, now)

    def _job(self, run_id: str) -> Job | BufferedJob:
        job = self._jobs.get(run_id)
        if job is None:
            raise ConfigError(f"there is no run {run_id!r}", hint="see `veilsum run list`")
        return job

    def _start_next(self) -> list[Effect]:
        """Starts the oldest waiting run if none is active; one that ends at once (nobody can
        join it, say) makes room for the one after it."""
        effects: list[Effect] = []
        for job in self._jobs.values():
            if job.waiting:
                effects += job.start()
            if not job.ended:
                break
        return effects
