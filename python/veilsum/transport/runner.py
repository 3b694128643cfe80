"""Runs the coordinator's core: one event at a time, and carries out what it asks for.

The core is handed events from a single queue, each in a worker thread (sums and masks take
long, and the native code releases the interpreter), and its effects are carried out before
the next event. So the core needs no locks, and what it says is in order.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, assert_never

from veilsum.control import RoundId, RoundOpened, RunEvent, RunStatus, UpdateHeader
from veilsum.coordinator.core import Coordinator
from veilsum.coordinator.effects import (
    Announce,
    AnswerUpload,
    CloseUploads,
    DropAudit,
    DropUploads,
    Effect,
    GoOn,
    OpenUploads,
    PublishAudit,
    PublishModel,
    PublishSum,
    SaveEvidence,
    SaveLink,
    SaveReceipt,
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
    RoundSpoiled,
    RunAbortRequested,
    RunSubmitted,
    SiteJoined,
    SiteLeft,
    SiteSent,
    UpdateArrived,
)
from veilsum.coordinator.round import Receiver
from veilsum.errors import VeilsumError
from veilsum.transport.audits import Audits, write_transcript
from veilsum.transport.links import Links
from veilsum.transport.logs import Log
from veilsum.transport.metrics import Metrics
from veilsum.transport.models import Models, serve_checkpoint
from veilsum.transport.storage import Storage
from veilsum.transport.uploads import UploadLimits, Uploads
from veilsum.transport.watchers import Watchers

_T = TypeVar("_T")

INTERNAL = "an internal error of the coordinator, see its log"


@dataclass(frozen=True)
class Outside:
    """Everything the core's effects reach."""

    storage: Storage
    models: Models
    links: Links
    watchers: Watchers
    metrics: Metrics
    audits: Audits = field(default_factory=Audits)
    transcripts: Path | None = None  # the folder they go to
    upload_limits: UploadLimits = field(default_factory=UploadLimits)


class Runner:
    """The only one who talks to the core."""

    def __init__(self, core: Coordinator, outside: Outside, log: Log) -> None:
        self._core = core
        self._outside = outside
        self._log = log
        self._queue: asyncio.Queue[Callable[[], Awaitable[None]]] = asyncio.Queue()
        self._timers: dict[tuple[RoundId, str], asyncio.TimerHandle] = {}
        self._started: dict[RoundId, float] = {}
        self.uploads = Uploads(
            outside.storage.spool, self._check_upload, self.post, outside.upload_limits
        )

    async def run(self) -> None:
        """Works until cancelled."""
        try:
            while True:
                job = await self._queue.get()
                await job()
        finally:
            for timer in self._timers.values():
                timer.cancel()

    # --- for others to call ---------------------------------------------------------

    def post(self, event: Event) -> None:
        """Hands over an event that nobody waits for."""
        self._queue.put_nowait(lambda: self._process(event))

    async def submit(self, event: Event) -> None:
        """Hands over an event and waits until its effects are carried out.

        Raises:
            ConfigError: the core refused an operator's request, and nothing has changed.
        """
        await self._in_order(lambda: self._process(event))

    async def ask(self, question: Callable[[Coordinator], _T]) -> _T:
        """Asks the core something that changes nothing, in turn."""

        async def answer() -> _T:
            return question(self._core)

        return await self._in_order(answer)

    async def _in_order(self, job: Callable[[], Awaitable[_T]]) -> _T:
        done: asyncio.Future[_T] = asyncio.get_running_loop().create_future()

        async def work() -> None:
            try:
                result = await job()
            except Exception as error:  # noqa: BLE001  it is raised again, where it belongs
                if not done.cancelled():
                    done.set_exception(error)
            else:
                if not done.cancelled():
                    done.set_result(result)

        self._queue.put_nowait(work)
        return await done

    async def _check_upload(self, site: str, header: UpdateHeader) -> Receiver:
        return await self.ask(lambda core: core.upload_check(site, header))

    # --- one event ------------------------------------------------------------------

    async def _process(self, event: Event) -> None:
        try:
            began = time.monotonic()
            effects = await asyncio.to_thread(self._core.handle, event, now=began)
            self._outside.metrics.core_took(type(event).__name__, time.monotonic() - began)
        except Exception as error:
            by_operator = isinstance(event, (RunSubmitted, RunAbortRequested))
            if by_operator and isinstance(error, VeilsumError):
                raise  # a request that cannot be met; nothing has changed
            # Nothing that a site sends makes the core raise, so this is a fault of our own.
            self._log.exception("the core failed", kind=type(event).__name__)
            await self._give_up(event)
            if by_operator:
                raise
            return
        try:
            for effect in effects:
                await self._carry_out(effect)
        except Exception:  # noqa: BLE001  a full disk ends the run, not the coordinator
            self._log.exception("an effect failed", kind=type(event).__name__)
            await self._give_up(event)

    async def _give_up(self, event: Event) -> None:
        """Aborts the runs that an unforeseen failure concerns; the others go on."""
        for run_id in self._concerned(event):
            try:
                abort = RunAbortRequested(run_id, INTERNAL)
                effects = await asyncio.to_thread(self._core.handle, abort, now=time.monotonic())
                for effect in effects:
                    await self._carry_out(effect)
            except Exception:  # noqa: BLE001  logged, and buried below
                self._log.exception("a failed run could not be aborted", run=run_id)
                await self._bury(run_id)
            self.uploads.close_run(run_id, INTERNAL)
            self._outside.models.drop(run_id)
            self._outside.audits.drop(run_id)

    async def _bury(self, run_id: str) -> None:
        """Ends a run that the core cannot end, for those who watch it and for storage."""
        try:
            status = replace(self._core.status(run_id), state="aborted", reason=INTERNAL)
            await self._save_run(status)
            await self._outside.watchers.announce(
                RunEvent(run_id, "run", detail=f"aborted: {INTERNAL}")
            )
        except Exception:  # noqa: BLE001  logged; there is nobody left to tell
            self._log.exception("a failed run could not be stored", run=run_id)

    def _concerned(self, event: Event) -> list[str]:
        named: str | None = None
        match event:
            case RunSubmitted() | RunAbortRequested() | Proceed():
                named = event.run_id
            case SiteSent():
                named = event.message.round.run_id
            case UpdateArrived():
                named = event.header.round.run_id
            case DeadlinePassed() | ResultPublished() | RoundSpoiled():
                named = event.round.run_id
            case SiteJoined() | SiteLeft():
                pass  # whichever run is active
            case _:
                assert_never(event)
        active = [run.run_id for run in self._core.runs() if run.state in ("waiting", "running")]
        return active if named is None else [named for run in active if run == named]

    # --- effects --------------------------------------------------------------------

    async def _carry_out(self, effect: Effect) -> None:
        outside = self._outside
        match effect:
            case SendToSite(site, message):
                if isinstance(message, RoundOpened):
                    outside.models.invite(message.round, site)
                outside.links.send(site, message)
            case SetDeadline():
                self._set_deadline(effect)
            case PublishModel():
                await self._publish(effect)
            case PublishAudit():
                await self._publish_audit(effect)
            case DropAudit(round_id):
                outside.audits.drop(round_id.run_id)
            case PublishSum(round_id, words):
                file = await asyncio.to_thread(outside.storage.save_sum, round_id, words)
                outside.models.put_sum(round_id, file)
            case OpenUploads(round_id, sites):
                self.uploads.open(round_id, sites)
            case CloseUploads(round_id, reason):
                self.uploads.close(round_id, reason)
            case AnswerUpload():
                self._answer(effect)
            case SaveRound():
                await self._save_round(effect)
            case SaveReceipt(round_id, receipt):
                storage = outside.storage
                await asyncio.to_thread(storage.save_receipt, round_id, receipt)
            case SaveEvidence():
                await self._save_evidence(effect)
            case SaveLink(before, after, link):
                await asyncio.to_thread(outside.storage.save_link, before, after, link)
            case SaveRun(status):
                await self._save_run(status)
            case SaveStanding() | DropUploads():
                pass
            case GoOn(run_id):
                self.post(Proceed(run_id))
            case Announce(event):
                outside.metrics.run_event(event)
                await outside.watchers.announce(event)
            case _:
                assert_never(effect)

    def _set_deadline(self, effect: SetDeadline) -> None:
        key = (effect.round, effect.phase)
        if key in self._timers:
            self._timers[key].cancel()

        def passed() -> None:
            del self._timers[key]
            self.post(DeadlinePassed(effect.round, effect.phase))

        self._timers[key] = asyncio.get_running_loop().call_later(effect.seconds, passed)

    async def _publish(self, effect: PublishModel) -> None:
        self._started[effect.round] = time.monotonic()
        storage, before = self._outside.storage, effect.round.number - 1
        file = storage.model_file(effect.round.run_id, before)
        start = (effect.model_hash, effect.state_hash)
        served = await asyncio.to_thread(serve_checkpoint, effect.round, effect.layout, file, start)
        state = storage.optimizer_file(effect.round.run_id, before)
        self._outside.models.put(served, state if state.exists() else None, since=effect.since)
        self._log.info("round opened", **_ids(effect.round), model_bytes=served.size_bytes)

    async def _publish_audit(self, effect: PublishAudit) -> None:
        folder = self._outside.transcripts
        if folder is not None:
            file = await asyncio.to_thread(write_transcript, folder, effect)
            size = file.stat().st_size
            self._log.info("transcript written", **_ids(effect.round), file=str(file), bytes=size)
        self._outside.audits.put(effect)

    def _answer(self, effect: AnswerUpload) -> None:
        refusal = None if effect.accepted else effect.reason
        self.uploads.answer(effect.round, effect.site, refusal)
        if effect.accepted:
            self._outside.metrics.update_accepted(effect.site)
            self._log.info("update accepted", **_ids(effect.round), site=effect.site)
        else:
            self._outside.metrics.refused("update", effect.site)
            self._log.warning(
                "update refused", **_ids(effect.round), site=effect.site, reason=effect.reason
            )

    async def _save_round(self, effect: SaveRound) -> None:
        record = effect.record
        for key in [key for key in self._timers if key[0] == record.round]:
            self._timers.pop(key).cancel()
        await asyncio.to_thread(
            self._outside.storage.save_round,
            record,
            effect.layout,
            effect.model,
            effect.optimizer_state,
        )
        self.uploads.forget(record.round)
        seconds = time.monotonic() - self._started.pop(record.round, time.monotonic())
        self._outside.metrics.round_finished(record, seconds)
        self._log.info(
            "round ended",
            **_ids(record.round),
            completed=record.completed,
            reason=record.reason,
            sites=len(record.sites),
            dropped=len(record.dropped),
            bytes_in=sum(record.bytes_in.values()),
            seconds=seconds,
            digest=record.digest,
        )

    async def _save_evidence(self, effect: SaveEvidence) -> None:
        file = await asyncio.to_thread(
            self._outside.storage.save_evidence, effect.round, effect.evidence
        )
        self._log.warning("evidence", **_ids(effect.round), file=str(file))

    async def _save_run(self, status: RunStatus) -> None:
        kept = replace(status, rounds=())
        await asyncio.to_thread(self._outside.storage.save_run, kept)
        self._outside.metrics.run_state(kept)
        if status.state in ("completed", "aborted"):
            self._outside.models.drop(status.run_id)
            self._outside.audits.drop(status.run_id)
            await asyncio.to_thread(self._outside.storage.drop_sums, status.run_id)
        self._log.info("run", run=status.run_id, state=status.state, reason=status.reason)


def _ids(round_id: RoundId) -> dict[str, Any]:
    return {"run": round_id.run_id, "round": round_id.number, "attempt": round_id.attempt}
