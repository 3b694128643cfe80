"""Runs a site's core: one event at a time, and carries out what it asks for.

The core outlives connections. While there is none, what it sends is lost and what it asks for is
not fetched or uploaded; on the next one the coordinator repeats its messages, and the core asks
again for what it still waits for.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import TypeAlias, assert_never

from veilsum.control import Goodbye, ToCoordinator
from veilsum.errors import ConfigError, DecodeError
from veilsum.site.effects import (
    FetchAudit,
    FetchLinks,
    FetchModel,
    FetchSum,
    KeepEvidence,
    Note,
    SendToCoordinator,
    SiteEffect,
    StopTraining,
    Train,
    Upload,
)
from veilsum.site.events import CoordinatorSent, Disconnected, SiteEvent
from veilsum.site.session import SiteCore
from veilsum.site.trainer import Trainer
from veilsum.transport.backoff import Backoff
from veilsum.transport.client import Connection, Refused, Replaced, Unreachable
from veilsum.transport.endpoint import Endpoint
from veilsum.transport.evidence_files import save_evidence
from veilsum.transport.fetching import Fetching
from veilsum.transport.logs import Log
from veilsum.transport.outgoing import Outgoing
from veilsum.transport.settings import SiteSettings
from veilsum.transport.training import TrainingThread
from veilsum.transport.uploading import Uploading

Connect: TypeAlias = Callable[[Endpoint], Connection]

Errand: TypeAlias = FetchModel | FetchSum | FetchLinks | FetchAudit | Upload
"""What takes a connection and a while."""

_STEADY_SECONDS = 5.0
_GOODBYE_SECONDS = 2.0

# Messages of the coordinator that are read while the core is busy, and of the site that wait to be
# written. A round has a handful of either.
_READ_AHEAD = 64
_MAX_UNWRITTEN = 256


class _Line:
    """One connection, and what is under way on it."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.unwritten: asyncio.Queue[ToCoordinator] = asyncio.Queue(_MAX_UNWRITTEN)
        self.errands: dict[str, tuple[Errand, asyncio.Task[None]]] = {}
        self.stuck = asyncio.Event()
        self.ended = asyncio.Event()

    def send(self, message: ToCoordinator) -> None:
        """To be written in turn. With too much before it the line is stuck, and is to be given up:
        on the next one the coordinator repeats what this would have been the answer to."""
        try:
            self.unwritten.put_nowait(message)
        except asyncio.QueueFull:
            self.stuck.set()

    async def write(self) -> None:
        """Writes what is to be sent, in order."""
        while True:
            await self.connection.send(await self.unwritten.get())

    async def give_up(self) -> None:
        """Raises:
        Unreachable: as soon as it is stuck.
        """
        await self.stuck.wait()
        raise Unreachable("the coordinator does not read what this site sends")


class SiteRunner:
    """See the top of this file. Within a running loop."""

    def __init__(
        self,
        core: SiteCore,
        trainer: Trainer,
        settings: SiteSettings,
        outgoing: Outgoing,
        log: Log,
    ) -> None:
        self._core = core
        self._settings = settings
        self._uploading = Uploading(outgoing, log)
        self._fetching = Fetching(settings.max_model_bytes, log)
        self._log = log
        self._events: asyncio.Queue[SiteEvent] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._training = TrainingThread(trainer, self._post_from_thread, log)
        self._line: _Line | None = None
        self._stopping = False
        self._holding: asyncio.TimerHandle | None = None
        self._failed: asyncio.Future[None] = self._loop.create_future()
        # Cancelling what awaits a thread does not stop the thread. Without this, a process that
        # stops would wipe the mask keys of an update that is just being masked.
        self._turn = threading.Lock()

    def close(self) -> None:
        """Ends training, and wipes what the core holds, after it has dealt with its current
        event."""
        self._training.close()
        with self._turn:
            self._core.close()

    async def say_goodbye(self) -> None:
        """Tells the coordinator, if it is there to hear it, that nobody need wait for this site,
        and does not connect again."""
        self._stopping = True
        line = self._line
        if line is None:
            return
        line.send(Goodbye())
        with suppress(TimeoutError):
            async with asyncio.timeout(_GOODBYE_SECONDS):
                await line.ended.wait()

    async def serve(self, endpoint: Endpoint, connect: Connect) -> None:
        """Stays connected and works, to its goodbye. Ends before only with an exception that a
        person must see to."""
        tasks = (
            self._failed,
            asyncio.create_task(self._work()),
            asyncio.create_task(self._stay_connected(endpoint, connect)),
        )
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:  # the core's own complaint counts more than that of a connection
                if task.done():
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # --- connections ----------------------------------------------------------------

    async def _stay_connected(self, endpoint: Endpoint, connect: Connect) -> None:
        backoff = Backoff()
        while True:
            try:
                async with connect(endpoint) as connection:
                    began = time.monotonic()
                    try:
                        await self._take_part(connection)
                    finally:
                        # One that breaks at once is no reason to try again at once.
                        if time.monotonic() - began > _STEADY_SECONDS:
                            backoff.reset()
            except Unreachable as error:
                if self._stopping:
                    return
                reason = str(error)
            except DecodeError as error:
                # It would be sent again, so the round is lost with it.
                reason = str(error)
                self._events.put_nowait(Disconnected())
            except (Refused, Replaced) as error:
                raise ConfigError(
                    f"the coordinator does not let site {self._settings.site!r} in: {error}",
                    hint=error.hint,
                ) from error
            delay = backoff.delay()
            self._log.warning("not connected", reason=reason, retry_in_s=delay)
            await asyncio.sleep(delay)

    async def _take_part(self, connection: Connection) -> None:
        """Until the connection ends; raises why it did."""
        self._log.info("connected", coordinator=self._settings.coordinator)
        if self._holding is not None:
            self._holding.cancel()
        line = self._line = _Line(connection)
        ways = self._read(connection), line.write(), line.give_up()
        tasks = [asyncio.create_task(way) for way in ways]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            self._line = None
            line.ended.set()
            tasks += [task for _, task in line.errands.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._holding = self._loop.call_later(
                self._settings.hold_s, self._events.put_nowait, Disconnected()
            )

    async def _read(self, connection: Connection) -> None:
        async for message in connection.messages():
            self._events.put_nowait(CoordinatorSent(message))
            if self._events.qsize() > _READ_AHEAD:
                await self._events.join()

    # --- events and effects -----------------------------------------------------------

    def _post_from_thread(self, event: SiteEvent) -> None:
        with suppress(RuntimeError):  # the loop is closed: the process is ending
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def _handle(self, event: SiteEvent) -> list[SiteEffect]:
        with self._turn:
            return self._core.handle(event)

    async def _work(self) -> None:
        while True:
            event = await self._events.get()
            # In a thread: masking takes long, and the native code releases the interpreter.
            for effect in await asyncio.to_thread(self._handle, event):
                await self._carry_out(effect)
            self._events.task_done()

    async def _carry_out(self, effect: SiteEffect) -> None:
        match effect:
            case SendToCoordinator(message):
                if self._line is not None:
                    self._line.send(message)
            case FetchModel() | FetchSum() | FetchLinks() | FetchAudit():
                self._run_errand("fetch", effect)
            case Upload():
                self._run_errand("upload", effect)
            case Train():
                self._training.start(effect)
            case StopTraining(round_id):
                self._training.stop(round_id)
            case KeepEvidence(evidence):
                await asyncio.to_thread(self._keep, evidence)
            case Note(text):
                self._log.info("note", text=text)
            case _:
                assert_never(effect)

    def _keep(self, evidence: bytes) -> None:
        """Beside the ledger. That it cannot be kept is no reason to do anything else."""
        folder = self._settings.ledger
        try:
            if folder is not None:
                file = save_evidence(folder / "evidence", "coordinator", evidence)
                self._log.warning("evidence", file=str(file))
        except ConfigError as error:
            self._log.warning("evidence could not be kept", reason=str(error))

    # --- fetching and uploading -------------------------------------------------------

    def _run_errand(self, kind: str, effect: Errand) -> None:
        """Of each kind there is one, the last: the core awaits the last thing it asked for. A
        coordinator that opens one round after another and holds back the end of each model would
        otherwise have this site keep all that came of them."""
        line = self._line
        if line is None:
            return
        if kind in line.errands:
            known, task = line.errands[kind]
            if known == effect:
                return  # asked for right before the welcome, after which the core asks again
            task.cancel()
        task = asyncio.create_task(self._errand(effect, line.connection))
        line.errands[kind] = effect, task
        task.add_done_callback(partial(self._errand_ended, line, kind))

    async def _errand(self, effect: Errand, connection: Connection) -> None:
        self._events.put_nowait(await self._result_of(effect, connection))

    def _result_of(self, effect: Errand, connection: Connection) -> Awaitable[SiteEvent]:
        match effect:
            case FetchModel():
                return self._fetching.model(effect, connection)
            case FetchSum():
                return self._fetching.sum(effect, connection)
            case FetchLinks():
                return self._fetching.links(effect, connection)
            case FetchAudit():
                return self._fetching.audit(effect, connection)
            case Upload():
                return self._uploading.upload(effect, connection)
            case _:
                assert_never(effect)

    def _errand_ended(self, line: _Line, kind: str, task: asyncio.Task[None]) -> None:
        """What an errand cannot deal with is no passing state: it ends the process."""
        _, last = line.errands.get(kind, (None, None))
        if last is task:
            del line.errands[kind]
        error = None if task.cancelled() else task.exception()
        if error is not None and not self._failed.done():
            self._failed.set_exception(error)
