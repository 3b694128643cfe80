"""Lives of a coordinator's runner on one state directory, without sockets and processes."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from support.federation import make_roster, signing_key
from support.plain_run import LAYOUT, MODEL, SITES
from support.plain_updates import plain_update
from veilsum.control import RoundId, RoundOpened, RunSpec, ToSite, UpdateHeader, Welcome
from veilsum.coordinator.core import Coordinator
from veilsum.coordinator.events import Event, RunSubmitted
from veilsum.errors import VeilsumError
from veilsum.transport.carrying_out import Outside
from veilsum.transport.event_log import Draws
from veilsum.transport.incoming import IncomingUpload
from veilsum.transport.links import Links
from veilsum.transport.logs import Log
from veilsum.transport.metrics import Metrics
from veilsum.transport.models import Models
from veilsum.transport.runner import Runner
from veilsum.transport.storage import Storage
from veilsum.transport.watchers import Watchers


class Life:
    """One life, until it dies as a process that is killed does: nothing is tidied up.

    Attributes:
        sent: to sites, in order, whether or not they are there.
        running: ends by itself only if the disk fails.
    """

    def __init__(self, folder: Path) -> None:
        self.storage = Storage(folder)
        draws = Draws(secrets.token_bytes)
        self.core = Coordinator(
            make_roster(SITES),
            signing_key("coordinator"),
            entropy=draws,
            spool=str(self.storage.sums),
            kept=self.storage.stored_model,
        )
        self.links = _Links(reconnect_s=3600)
        self.sent = self.links.sent
        outside = Outside(
            self.storage, Models(), self.links, Watchers(self.storage), Metrics(SITES)
        )
        self.runner = Runner(self.core, draws, outside, Log("coordinator"))
        self.links.tell(self.runner.post)
        self.running: asyncio.Task[None] | None = None

    async def settle(self) -> None:
        """Until what was posted has happened, and what followed from it."""
        for _ in range(3):
            await self.runner.ask(lambda core: None)

    async def tell(self, event: Event) -> None:
        """An event happens."""
        await self.runner.submit(event)
        await self.settle()

    async def join(self, sites: Sequence[str], process: bytes = b"1" * 16) -> None:
        """Processes of sites connect."""
        for site in sites:
            self.links.attach(site, process, Welcome("test", bytes(32)))
        await self.settle()

    async def leave(self, site: str) -> None:
        """A site's process is gone."""
        self.links.dismiss(site, "gone")
        await self.settle()

    async def submit(self, run_id: str, spec: RunSpec) -> None:
        """An operator submits a run."""
        self.storage.save_model(run_id, 0, LAYOUT, MODEL)
        await self.tell(RunSubmitted(run_id, spec, LAYOUT, MODEL))

    async def deliver(self, site: str, number: int, value: float = 1.0) -> asyncio.Task[None]:
        """A site's update arrives; its call ends with the coordinator's answer."""
        header, chunks = self._update(site, number, value)
        upload = await self.runner.uploads.begin(site, header, 0)
        delivered = asyncio.Event()
        call = asyncio.create_task(_push(upload, chunks, delivered))
        await delivered.wait()
        await self.settle()
        return call

    def _update(self, site: str, number: int, value: float) -> tuple[UpdateHeader, list[bytes]]:
        round_id = RoundId("run", number)
        plan = next(
            message.plain
            for _, message in self.sent
            if isinstance(message, RoundOpened) and message.round == round_id and message.plain
        )
        return plain_update(plan, (round_id, site), LAYOUT, [np.full(4, value, np.float32)])


class _Links(Links):
    def __init__(self, reconnect_s: float) -> None:
        super().__init__(reconnect_s)
        self.sent: list[tuple[str, ToSite]] = []

    def send(self, site: str, message: ToSite) -> None:
        self.sent.append((site, message))
        super().send(site, message)


async def _push(upload: IncomingUpload, chunks: Sequence[bytes], delivered: asyncio.Event) -> None:
    try:
        if not upload.settled:
            await upload.take([memoryview(chunk) for chunk in chunks])
        commit = asyncio.ensure_future(upload.commit())
        while not (commit.done() or upload.settled):
            await asyncio.sleep(0)
        delivered.set()
        await commit
    finally:
        delivered.set()


@asynccontextmanager
async def living(folder: Path) -> AsyncIterator[Life]:
    """A life; it takes up what the one before left."""
    life = Life(folder)
    await life.runner.recover()
    life.running = running = asyncio.create_task(life.runner.run())
    await life.settle()
    try:
        yield life
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError, VeilsumError):
            await running
        life.links.close_all("killed")
        life.storage.close()


def outbox_of(life: Life, site: str) -> tuple[Any, ...]:
    """What a site is sent again when it comes back."""
    return life.links._outboxes[site].messages
