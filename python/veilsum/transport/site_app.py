"""A site process: dials the coordinator, runs the site's core and its training code."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, assert_never

from veilsum._native import Secret
from veilsum._version import __version__
from veilsum.devices import available_threads, require_backend
from veilsum.errors import ConfigError, DecodeError, VeilsumError
from veilsum.pki.identity import Identity
from veilsum.pki.roster_file import load_roster
from veilsum.roster import Roster
from veilsum.secagg.ledger import Ledger
from veilsum.selftest import require_working
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
from veilsum.site.events import (
    CoordinatorSent,
    Disconnected,
    SiteEvent,
)
from veilsum.site.session import SiteCore
from veilsum.site.trainer import Trainer
from veilsum.transport.backoff import Backoff
from veilsum.transport.client import Connection, Refused, Replaced, Unreachable
from veilsum.transport.egress_file import EgressFile, open_egress
from veilsum.transport.endpoint import Endpoint
from veilsum.transport.evidence_files import save_evidence
from veilsum.transport.fetching import Fetching
from veilsum.transport.ledger_file import open_ledger
from veilsum.transport.logs import Log, start_logging
from veilsum.transport.outgoing import Outgoing
from veilsum.transport.process import harden_process, stop_signals, versions
from veilsum.transport.settings import SiteSettings, tls_files
from veilsum.transport.tls import load_signing_key, load_tls_identity
from veilsum.transport.training import TrainingThread, load_trainer
from veilsum.transport.uploading import Uploading

Connect: TypeAlias = Callable[[Endpoint], Connection]

_STEADY_SECONDS = 5.0
_SEED_BYTES = 32


def run_site(
    settings: SiteSettings, *, trainer: Trainer | None = None, connect: Connect = Connection
) -> None:
    """Takes part in rounds until SIGINT or SIGTERM.

    Args:
        trainer: instead of the one that the settings name, for embedding.
        connect: makes the connection, for embedding.

    Raises:
        ConfigError: the settings cannot work, or the coordinator does not want this site.
        LedgerError: a ledger is damaged or cannot be written, or the vote ledger was copied or
            restored, or knows a later roster.
        DeviceError: there is no device such as `backend` names, or a self-test failed.
    """
    harden_process()
    start_logging(settings.log)
    if trainer is None:
        trainer = load_trainer(settings.trainer, settings.trainer_settings)
    asyncio.run(_until_stopped(settings, trainer, connect))


async def _until_stopped(settings: SiteSettings, trainer: Trainer, connect: Connect) -> None:
    stop = asyncio.Event()
    with stop_signals(stop):
        await serve_site(settings, trainer, stop=stop, connect=connect)


async def serve_site(
    settings: SiteSettings, trainer: Trainer, *, stop: asyncio.Event, connect: Connect = Connection
) -> None:
    """Takes part in rounds until `stop` is set. Within a running loop; see run_site.

    Raises:
        ConfigError: as run_site.
        DeviceError: as run_site.
    """
    harden_process()
    require_working(require_backend(settings.backend))
    with ExitStack() as files:
        ledger = None
        if settings.ledger is not None:
            ledger = files.enter_context(closing(open_ledger(settings.ledger))).ledger()
        roster = load_roster(
            settings.roster, previous=settings.previous_roster, pin=settings.roster_hash
        )
        if ledger is not None:
            ledger.agree_to(roster)
        egress = None
        if settings.egress is not None:
            egress = open_egress(settings.egress, roster.consortium, settings.site)
            files.enter_context(closing(egress))
        await _serve(settings, trainer, _Kept(roster, ledger, egress), stop, connect)


@dataclass(frozen=True, slots=True)
class _Kept:
    """What a site has on its own disk."""

    roster: Roster
    ledger: Ledger | None
    egress: EgressFile | None


async def _serve(
    settings: SiteSettings, trainer: Trainer, kept: _Kept, stop: asyncio.Event, connect: Connect
) -> None:
    log = Log("site", site=settings.site)
    outgoing = Outgoing(kept.egress, log)
    endpoint = replace(make_endpoint(settings, kept.roster), on_sent=outgoing.leaves)
    core = SiteCore(
        settings.site,
        load_signing_key(settings.signing_key),
        kept.roster,
        settings.policy,
        settings.bounds,
        Secret.from_os,
        _rounding_seed(settings),
        kept.ledger,
        threads=settings.threads or available_threads(),
        backend=require_backend(settings.backend),
        egress=outgoing.summary,
    )
    log.info("starting", coordinator=settings.coordinator, trainer=settings.trainer, **versions())
    app = _SiteApp(core, trainer, settings, outgoing, log)
    serving = asyncio.create_task(app.serve(endpoint, connect))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            serving.result()
    finally:
        for task in (serving, stopping):
            task.cancel()
        with suppress(asyncio.CancelledError, VeilsumError):
            await serving
        app.close()
        log.info("stopped")


def make_endpoint(settings: SiteSettings, roster: Roster) -> Endpoint:
    """Where and as whom a site calls.

    Raises:
        ConfigError: the files do not fit the site's name or its roster.
    """
    roster.signing_key(settings.site)  # is the site a member at all?
    identity = Identity(roster.consortium, "site", settings.site)
    files = tls_files(settings)
    if files is None:
        return Endpoint(settings.coordinator, identity, None, roster, __version__)
    tls = load_tls_identity(*files, "site")
    if tls.identity != identity:
        raise ConfigError(
            f"the certificate {settings.tls_certificate} is for {tls.identity.uri}, this site is "
            f"{identity.uri}"
        )
    return Endpoint(settings.coordinator, identity, tls, roster, __version__)


def _rounding_seed(settings: SiteSettings) -> Secret:
    if settings.rounding_seed is None:
        return Secret.from_os(_SEED_BYTES)
    return Secret.from_bytes(bytes.fromhex(settings.rounding_seed))


class _SiteApp:
    """Runs the core: one event at a time, and carries out what it asks for."""

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
        self._tasks: set[asyncio.Task[None]] = set()
        self._fetch: asyncio.Task[None] | None = None
        self._failed: asyncio.Future[None] = self._loop.create_future()
        # Cancelling what awaits a thread does not stop the thread. Without this, a connection
        # that breaks would wipe the mask keys of an update that is just being masked.
        self._turn = threading.Lock()

    def close(self) -> None:
        """Wipes what the core holds, after it has dealt with its current event."""
        with self._turn:
            self._core.close()

    def _handle(self, event: SiteEvent) -> list[SiteEffect]:
        with self._turn:
            return self._core.handle(event)

    def _post_from_thread(self, event: SiteEvent) -> None:
        with suppress(RuntimeError):  # the loop is closed: the process is ending
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    # --- connections ----------------------------------------------------------------

    async def serve(self, endpoint: Endpoint, connect: Connect) -> None:
        """Stays connected. Ends only with an exception that a person must see to."""
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
            except (Unreachable, DecodeError) as error:
                reason = str(error)
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
        self._failed = self._loop.create_future()
        reading = asyncio.create_task(self._read(connection))
        working = asyncio.create_task(self._work(connection))
        failed = self._failed
        try:
            await asyncio.wait((reading, working, failed), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (reading, working, *self._tasks):
                task.cancel()
            if not failed.done():
                failed.set_result(None)
            ended = await asyncio.gather(reading, working, failed, return_exceptions=True)
            await self._leave(connection)
        # The core's own complaint counts more than that the connection ended.
        for outcome in reversed(ended):
            if isinstance(outcome, Exception):
                raise outcome

    async def _read(self, connection: Connection) -> None:
        async for message in connection.messages():
            self._events.put_nowait(CoordinatorSent(message))

    async def _work(self, connection: Connection) -> None:
        while True:
            await self._process(await self._events.get(), connection)

    async def _leave(self, connection: Connection) -> None:
        self._events = asyncio.Queue()
        await self._process(Disconnected(), connection)

    # --- events and effects -----------------------------------------------------------

    async def _process(self, event: SiteEvent, connection: Connection) -> None:
        # In a thread: masking takes long, and the native code releases the interpreter.
        for effect in await asyncio.to_thread(self._handle, event):
            await self._carry_out(effect, connection)

    async def _carry_out(self, effect: SiteEffect, connection: Connection) -> None:
        match effect:
            case SendToCoordinator(message):
                await connection.send(message)
            case FetchModel():
                self._start_fetching(self._fetching.model(effect, connection))
            case FetchSum():
                self._start_fetching(self._fetching.sum(effect, connection))
            case FetchLinks():
                self._start_fetching(self._fetching.links(effect, connection))
            case FetchAudit():
                self._start_fetching(self._fetching.audit(effect, connection))
            case Train():
                self._training.start(effect)
            case StopTraining(round_id):
                self._training.stop(round_id)
            case Upload():
                self._start(self._answer(self._uploading.upload(effect, connection)))
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

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _start_fetching(self, fetched: Awaitable[SiteEvent]) -> None:
        """Ends what was fetched before: the core awaits the last thing it asked for. A coordinator
        that opens one round after another and holds back the end of each model would otherwise
        have this site keep all that came of them."""
        if self._fetch is not None:
            self._fetch.cancel()
        self._fetch = self._start(self._answer(fetched))

    def _ended(self, task: asyncio.Task[None]) -> None:
        """What a task cannot deal with ends the connection, and what is no passing state the
        process."""
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not self._failed.done():
            self._failed.set_exception(error)

    async def _answer(self, fetched: Awaitable[SiteEvent]) -> None:
        self._events.put_nowait(await fetched)
