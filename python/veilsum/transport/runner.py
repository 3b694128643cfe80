"""Runs the coordinator's core: one event at a time, and carries out what it asks for.

The core is handed events from a single queue, each in a worker thread (sums and masks take
long, and the native code releases the interpreter), and its effects are carried out before
the next event. So the core needs no locks, and what it says is in order.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar, assert_never

from veilsum.control import RunEvent, UpdateHeader
from veilsum.coordinator.core import Coordinator
from veilsum.coordinator.effects import Announce, AnswerUpload, Effect, SaveRun
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
from veilsum.coordinator.journal import size_bytes
from veilsum.coordinator.round import Receiver
from veilsum.errors import VeilsumError
from veilsum.transport.carrying_out import CarryingOut, Outside
from veilsum.transport.clock import Clock
from veilsum.transport.event_log import Draws, entry_of
from veilsum.transport.heap import Heap
from veilsum.transport.keeping import Keeper, Turn
from veilsum.transport.logs import Log
from veilsum.transport.recovery import Recovery
from veilsum.transport.storage import DiskFailed
from veilsum.transport.uploads import Leftover, Uploads

_T = TypeVar("_T")
_A = TypeVar("_A")

INTERNAL = "an internal error of the coordinator, see its log"


class Runner:
    """The only one who talks to the core."""

    def __init__(self, core: Coordinator, draws: Draws, outside: Outside, log: Log) -> None:
        self._core = core
        self._draws = draws
        self._outside = outside
        self._log = log
        self._keeper = Keeper(outside.storage)
        self._clock = Clock()
        # Of its own: threads that wait for the disks of hostile uploads are not in its way.
        self._core_thread = ThreadPoolExecutor(1, "core")
        self._recovering = False
        self._disk_failed: DiskFailed | None = None
        self._draining = False
        self._heap = Heap()
        self._queue: asyncio.Queue[Callable[[], Awaitable[None]]] = asyncio.Queue()
        self.uploads = Uploads(
            outside.storage.spool,
            self._check_upload,
            self.post,
            outside.upload_limits,
            outside.storage.points,
        )
        self._carrying_out = CarryingOut(outside, self.uploads, self.post, log)

    async def recover(self) -> None:
        """Takes over what earlier processes left. To be called once, before run() and before
        anybody is let in.

        Raises:
            DiskFailed: it cannot be written.
        """
        outside = self._outside
        recovery = Recovery(
            self._core,
            outside.storage,
            self.uploads,
            self._draws,
            self._carrying_out.again,
            self._log,
        )
        self._recovering = True
        try:
            spoiled = await recovery.run()
        finally:
            self._recovering = False
        self._clock.go_on_from(recovery.time)
        if spoiled is not None:
            await self._process(spoiled)
        resumed = Turn(None, self._core.resume(), self._clock.now(), self._core.present, False)
        await self._keep_and_carry_out(resumed)
        self._recovering = True
        try:
            for left in await self.uploads.recover_partial():
                self._log_leftover(left)
        finally:
            self._recovering = False
        for site, instance in self._core.present.items():
            outside.links.expect(site, instance)

    def _log_leftover(self, left: Leftover) -> None:
        """What became of an upload that was not complete; its site sends what is missing."""
        ids: dict[str, str | int] = {"file": left.file, "site": left.site, "chunks": left.chunks}
        if left.removed:
            self._log.warning("upload removed", **ids, reason=left.fault)
        elif left.fault:
            self._log.warning("upload cut", **ids, reason=left.fault)
        else:
            self._log.info("upload taken up", **ids)

    async def run(self) -> None:
        """Works until cancelled.

        Raises:
            DiskFailed: what happened cannot be made durable, so nothing more may happen.
        """
        try:
            while self._disk_failed is None:
                job = await self._queue.get()
                await job()
            raise self._disk_failed
        finally:
            self._carrying_out.close()
            self._core_thread.shutdown(wait=False, cancel_futures=True)

    def drain(self) -> None:
        """From now on uploads that arrive still count and nothing else happens: what is dropped
        is as if it had come after the process ended, and no round begins."""
        self._draining = True

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
        if self._recovering:  # nobody takes turns yet
            return self._core.upload_check(site, header)
        return await self.ask(lambda core: core.upload_check(site, header))

    # --- one event ------------------------------------------------------------------

    async def _process(self, event: Event) -> None:
        if self._disk_failed is not None:
            raise self._disk_failed
        if self._draining and not isinstance(event, UpdateArrived):
            return
        try:
            turn = await self._in_core_thread(self._handle, event)
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
            await self._keep_and_carry_out(turn)
        except DiskFailed as error:
            self._disk_failed = error
            raise
        except Exception:  # noqa: BLE001  what is served of one run must not end the others
            self._log.exception("an effect failed", kind=type(event).__name__)
            await self._give_up(event)

    async def _in_core_thread(self, work: Callable[[_A], _T], argument: _A) -> _T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._core_thread, work, argument)

    def _handle(self, event: Event) -> Turn:
        if isinstance(event, UpdateArrived):
            self._heap.passed(size_bytes(event.chunks))
        core, began = self._core, time.monotonic()
        now, written = self._clock.now(), core.written(event)
        self._draws.taken()
        effects = core.handle(event, now=now)
        draws = self._draws.taken()
        if isinstance(event, UpdateArrived) and _refused(event, effects):
            written = None  # it has changed nothing, and its file goes
        entry = None if written is None else entry_of(written, now, draws)
        self._outside.metrics.core_took(type(event).__name__, time.monotonic() - began)
        return Turn(entry, effects, now, core.present, core.idle)

    async def _keep_and_carry_out(self, turn: Turn) -> None:
        numbers = iter(await self._in_core_thread(self._keeper.keep, turn))
        for effect in turn.effects:
            if isinstance(effect, Announce):
                self._outside.metrics.run_event(effect.event)
                self._outside.watchers.tell(effect.event, next(numbers))
            else:
                await self._carrying_out.carry_out(effect)

    async def _give_up(self, event: Event) -> None:
        """Aborts the runs that an unforeseen failure concerns; the others go on."""
        for run_id in self._concerned(event):
            try:
                abort = RunAbortRequested(run_id, INTERNAL)
                await self._keep_and_carry_out(await self._in_core_thread(self._handle, abort))
            except DiskFailed:
                raise
            except Exception:  # noqa: BLE001  logged, and buried below
                self._log.exception("a failed run could not be aborted", run=run_id)
                await self._bury(run_id)
            self.uploads.close_run(run_id, INTERNAL)
            self._outside.models.drop(run_id)
            self._outside.audits.drop(run_id)

    async def _bury(self, run_id: str) -> None:
        """Ends a run that the core cannot end, for those who watch it and for storage."""
        status = replace(self._core.status(run_id), state="aborted", reason=INTERNAL)
        event = RunEvent(run_id, "run", detail=f"aborted: {INTERNAL}")
        self._core.forget(run_id)
        said: list[Effect] = [SaveRun(status), Announce(event)]
        idle = self._core.idle
        await self._keep_and_carry_out(Turn(None, said, self._clock.now(), {}, idle))

    def _concerned(self, event: Event) -> list[str]:
        named: str | None = None
        match event:
            case RunSubmitted() | RunAbortRequested() | Proceed() | RoundSpoiled():
                named = event.run_id
            case SiteSent():
                named = event.message.round.run_id
            case UpdateArrived():
                named = event.header.round.run_id
            case DeadlinePassed() | ResultPublished():
                named = event.round.run_id
            case SiteJoined() | SiteLeft():
                pass  # whichever run is active
            case _:
                assert_never(event)
        active = [run.run_id for run in self._core.runs() if run.state in ("waiting", "running")]
        return active if named is None else [named for run in active if run == named]


def _refused(arrived: UpdateArrived, effects: Sequence[Effect]) -> bool:
    """Whether the update that an event brought counts for nothing. One that is held for the next
    round is answered when that opens, and by then it must be known."""
    site, round_id = arrived.site, arrived.header.round
    return any(
        isinstance(effect, AnswerUpload)
        and (effect.site, effect.round, effect.accepted) == (site, round_id, False)
        for effect in effects
    )
