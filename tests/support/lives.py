"""Coordinators that are killed at a step and started again, with sites that stay.

A coordinator runs in a process forked from a server that has everything imported. It tells of
every step that it is about to make durable or has made (durable.Points), and where it is to die
it kills itself, as a power cut would, as far as a process can tell.
"""

from __future__ import annotations

import asyncio
import hashlib
import multiprocessing
import os
import shutil
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import veilsum.secagg.site as site_module
from support.consortium import Consortium
from support.tiny_trainer import TinyTrainer
from veilsum.control import RoundId, RunStatus
from veilsum.site.bounds import TaskBounds
from veilsum.site.events import UploadDone
from veilsum.site.session import SiteCore
from veilsum.transport import standby
from veilsum.transport.coordinator_app import run_coordinator
from veilsum.transport.settings import CoordinatorSettings
from veilsum.transport.site_app import serve_site
from veilsum.transport.storage import Storage

NO_TLS: dict[str, Any] = {
    "insecure": True,
    "ca": None,
    "tls_certificate": None,
    "tls_key": None,
}

_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["support.lives"])
# Of their own: the threads of the loop are for the sites.
_LISTENERS = ThreadPoolExecutor(16, "listener")


@dataclass(frozen=True)
class Step:
    """The n-th time, from 1, that a process comes to a point."""

    name: str
    occurrence: int

    def __str__(self) -> str:
        return f"{self.name}-{self.occurrence}"


def _live(settings: CoordinatorSettings, last: Step | None, tell: Connection) -> None:
    """One life of a coordinator, in a process of its own."""
    seen: Counter[str] = Counter()

    def point(name: str) -> None:
        seen[name] += 1
        if last == Step(name, seen[name]):
            os.kill(os.getpid(), signal.SIGKILL)
        tell.send(("point", Step(name, seen[name])))

    class ToldStorage(Storage):
        """Comes to points, and tells when no run is left to go on with."""

        def __init__(self, folder: Path, **how: Any) -> None:
            super().__init__(folder, **{**how, "points": point})
            self._tell_if_over()

        def change(self, changes: Any, *, durable: bool = True) -> list[object]:
            results = super().change(changes, durable=durable)
            self._tell_if_over()
            return results

        def _tell_if_over(self) -> None:
            if not self.unfinished():
                tell.send(("ended", None))

    standby.Storage = ToldStorage  # type: ignore[misc]
    run_coordinator(settings, ready=lambda port: tell.send(("port", port)))


@dataclass
class Life:
    """A coordinator's process, from outside."""

    process: Any
    heard: Connection
    steps: list[Step] = field(default_factory=list)

    async def until(self, what: str) -> Any:
        """Waits for the coordinator to say it; None if it dies before."""
        try:
            loop = asyncio.get_running_loop()
            while True:
                kind, value = await loop.run_in_executor(_LISTENERS, self.heard.recv)
                if kind == "point":
                    self.steps.append(value)
                if kind == what:
                    return value if value is not None else True
        except EOFError:
            return None

    def end(self) -> None:
        """Kills it, if it is not dead, and waits for it."""
        self.process.kill()
        self.process.join()
        self.heard.close()


def start(settings: CoordinatorSettings, last: Step | None = None) -> Life:
    """Starts a coordinator that dies at a step, or lives."""
    heard, tell = _PROCESSES.Pipe(duplex=False)
    process = _PROCESSES.Process(target=_live, args=(settings, last, tell), daemon=True)
    process.start()
    tell.close()
    return Life(process, heard)


# --- what sites do ----------------------------------------------------------------------


@dataclass
class Witness:
    """What happened at the sites of one federation.

    Attributes:
        counted: (site, round) whose site was told that its update counts.
        uploads: digest of a mask key -> digests of what was masked with it.
    """

    counted: set[tuple[str, RoundId]] = field(default_factory=set)
    uploads: dict[str, set[str]] = field(default_factory=dict)


_WITNESS: ContextVar[Witness] = ContextVar("witness")


@contextmanager
def watching_sites() -> Iterator[None]:
    """Within it, what sites of this process do is seen by the witness of their own play()."""
    handle, encode = SiteCore.handle, site_module.encode_upload

    def watched_handle(core: SiteCore, event: Any) -> Any:
        if isinstance(event, UploadDone):
            _WITNESS.get().counted.add((core._site, event.round))
        return handle(core, event)

    def watched_encode(plan: Any, contribution: Any, masks: Any, **how: Any) -> Any:
        keys = [hashlib.sha256(memoryview(key)).hexdigest() for key in masks.keys]
        encoded = encode(plan, contribution, masks, **how)
        made = hashlib.sha256(b"".join(encoded.chunks)).hexdigest()
        for key in keys:
            _WITNESS.get().uploads.setdefault(f"{how['update_id']}/{key}", set()).add(made)
        return encoded

    SiteCore.handle = watched_handle  # type: ignore[method-assign]
    site_module.encode_upload = watched_encode
    try:
        yield
    finally:
        SiteCore.handle = handle  # type: ignore[method-assign]
        site_module.encode_upload = encode


@asynccontextmanager
async def sites_at(
    consortium: Consortium, folder: Path, names: Sequence[str], port: int
) -> AsyncIterator[None]:
    """Sites of this process with ledgers of their own, until the end."""
    stop, tasks = asyncio.Event(), []
    for number, name in enumerate(names):
        settings = consortium.site_settings(
            name,
            port,
            **NO_TLS,
            bounds=TaskBounds(plain_rounds=True),
            ledger=folder / f"ledger-{name}",
            egress=folder / f"egress-{name}.vsx",
            rounding_seed=hashlib.sha256(name.encode()).hexdigest(),
        )
        tasks.append(asyncio.create_task(serve_site(settings, TinyTrainer(number), stop=stop)))
    try:
        yield
    finally:
        stop.set()
        await asyncio.gather(*tasks)


@dataclass(frozen=True)
class Outcome:
    """A run that is over.

    Attributes:
        steps: that the first life of its coordinator came to.
        models: bytes of each model file, by name.
        left_over: files in the spool and entries in the log.
        witness: of what its sites did.
    """

    status: RunStatus
    steps: tuple[Step, ...]
    models: Mapping[str, bytes] = field(repr=False)
    left_over: tuple[str, ...]
    witness: Witness = field(repr=False)

    @property
    def digests(self) -> list[str]:
        """Of the rounds that completed."""
        return [record.digest for record in self.status.rounds if record.completed]


async def play(
    consortium: Consortium,
    template: Path,
    folder: Path,
    names: Sequence[str],
    last: Sequence[Step | None] = (),
) -> Outcome:
    """Goes through with the one run of a state directory.

    Args:
        template: the state directory, which is copied.
        last: where each life of the coordinator ends; the one after them lives.
    """
    witness = Witness()
    _WITNESS.set(witness)
    state = folder / "state"
    shutil.copytree(template, state)
    settings = consortium.coordinator_settings(state, **NO_TLS)
    lives = iter([*last, None])
    life = start(settings, next(lives))
    while (port := await life.until("port")) is None:
        life.end()
        life = start(settings, next(lives))
    first = life
    listening = consortium.coordinator_settings(state, **NO_TLS, listen=f"127.0.0.1:{port}")
    async with sites_at(consortium, folder, names, port):
        try:
            while await life.until("ended") is None:
                life.end()
                life = start(listening, next(lives))
        finally:
            life.end()
    # That one may have died before it had removed what nobody needs any more.
    life = start(settings)
    await life.until("port")
    life.end()
    return _outcome(state, tuple(first.steps), witness)


def _outcome(state: Path, steps: tuple[Step, ...], witness: Witness) -> Outcome:
    storage = Storage(state)
    try:
        (listed,) = storage.runs()
        status = storage.run(listed.run_id)
        assert status is not None
        folder = storage.models / listed.run_id
        models = {file.name: file.read_bytes() for file in folder.glob("round-*.safetensors")}
        spooled = (file.name for file in storage.spool.glob("*.update"))
        left_over = (*spooled, *(entry.kind for entry in storage.log()))
        return Outcome(status, steps, models, left_over, witness)
    finally:
        storage.close()
