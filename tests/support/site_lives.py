"""Sites as processes that are killed at a step and start again by themselves, with their ledger."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection as Pipe
from typing import Any

from typing_extensions import Buffer

from support.processes import phase_of
from support.tiny_trainer import TinyTrainer
from support.witness import Witness, watching
from veilsum.control import ProtocolMessage, ToCoordinator, UpdateHeader
from veilsum.site.trainer import Arrays
from veilsum.transport import ledger_file
from veilsum.transport.client import Connection
from veilsum.transport.settings import SiteSettings
from veilsum.transport.site_app import run_site

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["support.lives"])
# Of their own: the threads of the loop are for the sites.
LISTENERS = ThreadPoolExecutor(32, "listener")


@dataclass(frozen=True, order=True)
class Step:
    """The n-th time, from 1, that a process comes to a point."""

    name: str
    occurrence: int

    def __str__(self) -> str:
        return f"{self.name}-{self.occurrence}"


class Mortal:
    """A process that tells of its steps, and is killed at one as by a power cut."""

    def __init__(self, tell: Pipe, last: Step | None) -> None:
        self.tell = tell
        self._last = last
        self._seen: Counter[str] = Counter()
        self._mutex = threading.Lock()

    def point(self, name: str) -> None:
        """Comes to a step."""
        if self.reaches_last(name):
            self.die()

    def reaches_last(self, name: str) -> bool:
        """Comes to a step; whether it is the last one."""
        with self._mutex:
            self._seen[name] += 1
            step = Step(name, self._seen[name])
            self.tell.send(("point", step))
        return step == self._last

    def die(self) -> None:
        """At once."""
        os.kill(os.getpid(), signal.SIGKILL)


def _live(settings: SiteSettings, number: int, last: Step | None, tell: Pipe) -> None:
    """One life of a site, in a process of its own."""
    mortal = Mortal(tell, last)
    write_all = ledger_file.write_all

    def tearing_write(descriptor: int, data: bytes) -> None:
        if mortal.reaches_last("ledger.torn"):
            write_all(descriptor, data[: len(data) // 2])
            mortal.die()
        write_all(descriptor, data)

    class MortalTrainer(TinyTrainer):
        def fit(self, model: Arrays, *more: Any) -> Any:
            mortal.point("training")
            return super().fit(model, *more)

    class MortalConnection(Connection):
        async def send(self, message: ToCoordinator) -> None:
            phase = phase_of(message.payload) if isinstance(message, ProtocolMessage) else None
            if phase is not None:
                mortal.point(f"{phase}.sending")
            await super().send(message)
            if phase is not None:
                mortal.point(f"{phase}.sent")

        async def push_update(
            self, header: UpdateHeader, chunks: Sequence[Buffer], *, first_chunk: int = 0
        ) -> bool:
            if mortal.reaches_last("inputs.half"):
                await super().push_update(header, chunks[:1])
                mortal.die()
            complete = await super().push_update(header, chunks, first_chunk=first_chunk)
            if complete:
                mortal.point("inputs.sent")
            return complete

    ledger_file.write_all = tearing_write
    with watching(lambda *values: tell.send(("note", values))):
        run_site(settings, trainer=MortalTrainer(number), connect=MortalConnection)


@dataclass
class SiteLives:
    """A site whose process is started again whenever it died as it was to.

    Args:
        deaths: where each of its lives ends; the one after them goes on.

    Attributes:
        steps: that its first life came to.
    """

    settings: SiteSettings
    number: int
    deaths: Sequence[Step]
    witness: Witness
    steps: list[Step] = field(default_factory=list)
    _process: Any = None
    _living: asyncio.Task[None] | None = None
    _over: bool = False

    def begin(self) -> None:
        """Starts the first life."""
        self._living = asyncio.create_task(self._live_on())

    async def end(self) -> None:
        """Kills it for good, after its last words."""
        assert self._living is not None
        if self._living.done():
            self.witness.complaints.append(f"site {self.settings.site} is gone")
        self._over = True
        self._process.kill()
        await self._living

    async def _live_on(self) -> None:
        for life, last in enumerate([*self.deaths, None]):
            heard, tell = PROCESSES.Pipe(duplex=False)
            given = (self.settings, self.number, last, tell)
            self._process = PROCESSES.Process(target=_live, args=given, daemon=True)
            self._process.start()
            tell.close()
            await self._listen(heard, first=life == 0)
            self._process.join()
            if self._over:
                return
            if self._process.exitcode != -signal.SIGKILL:
                self.witness.complaints.append(f"site {self.settings.site} ended by itself")
                return

    async def _listen(self, heard: Pipe, *, first: bool) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                kind, value = await loop.run_in_executor(LISTENERS, heard.recv)
                if kind == "note":
                    self.witness.note(*value)
                elif first:
                    self.steps.append(value)
        except (EOFError, OSError):  # it died, maybe in the middle of a word
            heard.close()
