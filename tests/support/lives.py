"""Coordinators that are killed at a step and started again, with sites that stay or die as well.

A coordinator runs in a process forked from a server that has everything imported. It tells of
every step that it is about to make durable or has made (durable.Points), and where it is to die
it kills itself, as a power cut would, as far as a process can tell.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from support.consortium import Consortium
from support.disk_faults import Fault
from support.proxy import Proxy
from support.site_lives import LISTENERS, PROCESSES, Mortal, SiteLives, Step
from support.tiny_trainer import TinyTrainer
from support.witness import Witness, watching
from veilsum.control import RoundId, RunStatus
from veilsum.errors import VeilsumError
from veilsum.secagg.ledger_records import LedgerRecord
from veilsum.site.bounds import TaskBounds
from veilsum.transport import standby
from veilsum.transport.coordinator_app import run_coordinator
from veilsum.transport.event_log import UPDATE
from veilsum.transport.ledger_file import open_ledger
from veilsum.transport.settings import CoordinatorSettings, SiteSettings
from veilsum.transport.site_app import serve_site
from veilsum.transport.storage import Storage

NO_TLS: dict[str, Any] = {
    "insecure": True,
    "ca": None,
    "tls_certificate": None,
    "tls_key": None,
}

End = Step | Fault
"""How a life ends: killed at a step, or by what its disk does."""


def _live(settings: CoordinatorSettings, end: End | None, tell: Connection) -> None:
    """One life of a coordinator, in a process of its own."""
    mortal = Mortal(tell, end if isinstance(end, Step) else None)
    fault = end.at(settings.state_dir) if isinstance(end, Fault) else None

    def point(name: str) -> None:
        mortal.point(name)
        if fault is not None:
            fault(name)

    class ToldStorage(Storage):
        """Comes to points, and tells when no run is left to go on with."""

        def __init__(self, folder: Path, **how: Any) -> None:
            super().__init__(folder, **{**how, "points": point})
            self._tell_if_over()

        def change(self, changes: Any, *, durable: bool = True) -> list[object]:
            results = super().change(changes, durable=durable)
            kept = (getattr(change, "keywords", {}).get("entry") for change in changes)
            if any(entry is not None and entry.kind == UPDATE for entry in kept):
                point("update.kept")
            self._tell_if_over()
            return results

        def _tell_if_over(self) -> None:
            if not self.unfinished():
                tell.send(("ended", None))

    standby.Storage = ToldStorage  # type: ignore[misc]
    try:
        run_coordinator(settings, ready=lambda port: tell.send(("port", port)))
    except VeilsumError as error:
        tell.send(("failed", f"{error} ({error.hint})"))
        raise SystemExit(1) from None


@dataclass
class Life:
    """A coordinator's process, from outside.

    Attributes:
        steps: that it came to.
        recovered: how many of them before it let anybody in.
        failure: what it said as it gave up, and what to do.
    """

    process: Any
    heard: Connection
    steps: list[Step] = field(default_factory=list)
    recovered: int | None = None
    failure: str = ""

    async def until(self, what: str) -> Any:
        """Waits for the coordinator to say it; None if it dies before."""
        try:
            loop = asyncio.get_running_loop()
            while True:
                kind, value = await loop.run_in_executor(LISTENERS, self.heard.recv)
                if kind == "point":
                    self.steps.append(value)
                elif kind == "port":
                    self.recovered = len(self.steps)
                elif kind == "failed":
                    self.failure = value
                if kind == what:
                    return value if value is not None else True
        except (EOFError, OSError):  # it died, maybe in the middle of a word
            return None

    def end(self) -> None:
        """Kills it, if it is not dead, and waits for it."""
        self.process.kill()
        self.process.join()
        self.heard.close()


def start(settings: CoordinatorSettings, end: End | None = None) -> Life:
    """Starts a coordinator whose life ends so, or lasts."""
    heard, tell = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=_live, args=(settings, end, tell), daemon=True)
    process.start()
    tell.close()
    return Life(process, heard)


# --- sites ------------------------------------------------------------------------------

_WITNESS: ContextVar[Witness] = ContextVar("witness")


@contextmanager
def watching_sites() -> Iterator[None]:
    """Within it, what sites of this process do is seen by the witness of their own play()."""
    with watching(lambda *values: _WITNESS.get().note(*values)):
        yield


def rounding_seed(site: str) -> bytes:
    """Of a site of play()."""
    return hashlib.sha256(site.encode()).digest()


@dataclass(frozen=True)
class Cast:
    """The sites of a play.

    Attributes:
        names: of all of them; their places are the numbers of their trainers.
        mortal: those that are processes of their own -> where each of their lives but the last
            ends. The others are tasks of this process.
    """

    names: Sequence[str]
    mortal: Mapping[str, Sequence[Step]] = field(default_factory=dict)


@asynccontextmanager
async def sites_at(
    consortium: Consortium, folder: Path, cast: Cast, port: int, witness: Witness
) -> AsyncIterator[dict[str, SiteLives]]:
    """Sites with ledgers of their own, until the end; gives those that are processes."""
    stop, tasks, lives = asyncio.Event(), [], {}
    for number, name in enumerate(cast.names):
        settings = _site_settings(consortium, folder, name, port)
        if name in cast.mortal:
            lives[name] = SiteLives(settings, number, cast.mortal[name], witness)
            lives[name].begin()
        else:
            serving = serve_site(settings, TinyTrainer(number), stop=stop)
            tasks.append(asyncio.create_task(serving))
    try:
        yield lives
        if any(task.done() for task in tasks):
            witness.complaints.append("a site ended by itself")
    finally:
        stop.set()
        await asyncio.gather(*tasks, *(life.end() for life in lives.values()))


def _site_settings(consortium: Consortium, folder: Path, name: str, port: int) -> SiteSettings:
    return consortium.site_settings(
        name,
        port,
        **NO_TLS,
        bounds=TaskBounds(plain_rounds=True),
        ledger=folder / f"ledger-{name}",
        egress=folder / f"egress-{name}.vsx",
        rounding_seed=rounding_seed(name).hex(),
    )


# --- a play -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """A run that is over.

    Attributes:
        lives: of its coordinator.
        site_steps: that the first lives of its mortal sites came to.
        models: bytes of each model file, by name.
        left_over: files in the spool and entries in the log.
        ledgers: records of each site's ledger.
        on_disk: secrets of the round that were in the state directory after a death or the end.
        witness: of what its sites did.
    """

    status: RunStatus
    lives: tuple[Life, ...]
    site_steps: Mapping[str, tuple[Step, ...]]
    models: Mapping[str, bytes] = field(repr=False)
    left_over: tuple[str, ...]
    ledgers: Mapping[str, tuple[LedgerRecord, ...]] = field(repr=False)
    on_disk: int
    witness: Witness = field(repr=False)

    @property
    def steps(self) -> tuple[Step, ...]:
        """That the first life of its coordinator came to."""
        return tuple(self.lives[0].steps)

    @property
    def digests(self) -> list[str]:
        """Of the rounds that completed."""
        return [record.digest for record in self.status.rounds if record.completed]


@dataclass
class _Stage:
    """Where a play takes place: one coordinator after another on one state directory."""

    consortium: Consortium
    state: Path
    ends: list[End]
    meanwhile: Callable[[Path], Path]
    lives: list[Life] = field(default_factory=list)
    remains: list[bytes] = field(default_factory=list, repr=False)

    def begin_life(self) -> Life:
        """The next one."""
        if self.lives:
            self.state = self.meanwhile(self.state)
        end = self.ends.pop(0) if self.ends else None
        self.lives.append(start(self.settings(), end))
        return self.lives[-1]

    def settings(self) -> CoordinatorSettings:
        """Of each life."""
        return self.consortium.coordinator_settings(self.state, **NO_TLS)

    def lives_now(self) -> bool:
        """Whether the last one that began has not ended."""
        return self.lives[-1].process.is_alive()

    def end_life(self) -> None:
        """What it leaves is looked through later, when all secrets are known."""
        self.lives[-1].end()
        files = (file for file in self.state.rglob("*") if file.is_file())
        self.remains.append(b"\0".join(file.read_bytes() for file in files))


def untouched(state: Path) -> Path:
    """What happens to a state directory as a rule."""
    return state


async def play(
    consortium: Consortium,
    template: Path,
    folder: Path,
    cast: Cast,
    ends: Sequence[End] = (),
    *,
    meanwhile: Callable[[Path], Path] = untouched,
) -> Outcome:
    """Goes through with the one run of a state directory. Each life of the coordinator has an
    address of its own, which sites reach through a proxy.

    Args:
        template: the state directory, which is copied.
        ends: of the lives of the coordinator; the one after them lives.
        meanwhile: what happens to the state directory before each life but the first; gives where
            the next one finds it.
    """
    witness = Witness()
    _WITNESS.set(witness)
    shutil.copytree(template, folder / "state")
    stage = _Stage(consortium, folder / "state", list(ends), meanwhile)
    life = stage.begin_life()
    while (port := await life.until("port")) is None:
        stage.end_life()
        life = stage.begin_life()
    async with (
        Proxy(port) as proxy,
        sites_at(consortium, folder, cast, proxy.port, witness) as sites,
    ):
        proxy.lives = stage.lives_now
        try:
            while await life.until("ended") is None:
                proxy.target = None
                stage.end_life()
                life = stage.begin_life()
                proxy.target = await life.until("port")
        finally:
            stage.end_life()
    # That one may have died before it had removed what nobody needs any more.
    life = start(stage.settings())
    await life.until("port")
    life.end()
    return _outcome(stage, folder, cast, sites, witness)


def _outcome(
    stage: _Stage, folder: Path, cast: Cast, sites: Mapping[str, SiteLives], witness: Witness
) -> Outcome:
    storage = Storage(stage.state)
    try:
        (listed,) = storage.runs()
        status = storage.run(listed.run_id)
        assert status is not None
        models = {
            file.name: file.read_bytes()
            for file in (storage.models / listed.run_id).glob("round-*.safetensors")
        }
        left_over = (
            *(file.name for file in storage.spool.glob("*.update")),
            *(entry.kind for entry in storage.log()),
            *(file.name for file in storage.published.glob("*/*")),
        )
    finally:
        storage.close()
    return Outcome(
        status,
        tuple(stage.lives),
        {name: tuple(site.steps) for name, site in sites.items()},
        models,
        left_over,
        {name: _records(folder / f"ledger-{name}") for name in cast.names},
        sum(secret in blob for blob in stage.remains for secret in witness.secrets),
        witness,
    )


def _records(ledger: Path) -> tuple[LedgerRecord, ...]:
    file = open_ledger(ledger)
    file.close()
    return file.records


def seeds_of(witness: Witness, round_id: RoundId) -> dict[str, int]:
    """Site -> seed of the training behind its update in a round. What it trained for an earlier
    attempt and did not send serves in the next one."""
    found: dict[str, tuple[int, int]] = {}
    for (site, place), seeds in witness.trained.items():
        same = (place.run_id, place.number) == (round_id.run_id, round_id.number)
        if same and found.get(site, (-1, 0))[0] < place.attempt <= round_id.attempt:
            (found[site],) = ((place.attempt, seed) for seed in seeds)
    return {site: seed for site, (_, seed) in found.items()}
