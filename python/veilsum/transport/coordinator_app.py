"""A coordinator process: puts the parts together and serves until it is told to stop."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from contextlib import suppress

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection

from veilsum.coordinator.core import Coordinator
from veilsum.coordinator.events import SiteJoined, SiteLeft
from veilsum.devices import available_threads, require_backend
from veilsum.errors import ConfigError
from veilsum.pki.roster_file import load_roster
from veilsum.roster import Roster
from veilsum.selftest import require_working
from veilsum.transport.admission import Admission
from veilsum.transport.callers import Gate
from veilsum.transport.carrying_out import Outside
from veilsum.transport.durable import Points, no_points
from veilsum.transport.event_log import Draws
from veilsum.transport.limits import LimitSettings
from veilsum.transport.links import Links
from veilsum.transport.logs import Log, start_logging
from veilsum.transport.metrics import Metrics, MetricsServer
from veilsum.transport.models import Models
from veilsum.transport.operator_service import OPERATOR, OperatorService
from veilsum.transport.process import (
    KEEPALIVE_OPTIONS,
    harden_process,
    stop_signals,
    versions,
)
from veilsum.transport.runner import Runner
from veilsum.transport.server import FEDERATION, Desk, FederationService
from veilsum.transport.settings import RELAY_LIMIT, CoordinatorSettings, split_address, tls_files
from veilsum.transport.storage import Storage
from veilsum.transport.tls import TlsIdentity, load_signing_key, load_tls_identity
from veilsum.transport.uploads import UploadLimits
from veilsum.transport.watchers import Watchers

_STOPPING = "the coordinator is stopping"
_GRACE_SECONDS = 2.0


def run_coordinator(
    settings: CoordinatorSettings, *, ready: Callable[[int], None] | None = None
) -> None:
    """Serves until SIGINT or SIGTERM.

    Args:
        ready: called with the bound port once sites and operators can connect.

    Raises:
        ConfigError: the settings cannot work: a file, a key, the port, the state directory.
    """
    harden_process()
    start_logging(settings.log)
    asyncio.run(_until_stopped(settings, ready))


async def _until_stopped(
    settings: CoordinatorSettings, ready: Callable[[int], None] | None
) -> None:
    stop = asyncio.Event()
    with stop_signals(stop):
        await serve_coordinator(settings, stop=stop, ready=ready)


async def serve_coordinator(
    settings: CoordinatorSettings,
    *,
    stop: asyncio.Event,
    ready: Callable[[int], None] | None = None,
    points: Points = no_points,
) -> None:
    """Serves until `stop` is set. Within a running loop; see run_coordinator.

    Args:
        points: for tests, see durable.Points.

    Raises:
        ConfigError: as run_coordinator.
        DeviceError: there is no device such as `backend` names, or a self-test failed.
    """
    harden_process()
    log = Log("coordinator")
    require_working(require_backend(settings.backend))
    roster = load_roster(settings.roster, previous=settings.previous_roster)
    tls = _tls(settings, roster)
    signing_key = load_signing_key(settings.signing_key)
    storage = Storage(settings.state_dir, points=points)
    try:
        draws = Draws(secrets.token_bytes)
        core = Coordinator(
            roster,
            signing_key,
            entropy=draws,
            threads=settings.threads or available_threads(),
            spool=str(storage.sums),
            backend=require_backend(settings.backend),
            audits=settings.audits or settings.transcripts is not None,
            kept=storage.stored_model,
        )
        outside = Outside(
            storage,
            Models(),
            Links(settings.reconnect_s),
            Watchers(storage),
            Metrics(roster.sites),
            transcripts=settings.transcripts,
            upload_limits=UploadLimits(
                settings.spool_limit_bytes, settings.inflight_bytes, settings.stall_s
            ),
        )
        await _App(core, draws, roster, outside, log).serve(settings, tls, stop, ready)
    finally:
        storage.close()


def _tls(settings: CoordinatorSettings, roster: Roster) -> TlsIdentity | None:
    files = tls_files(settings)
    if files is None:
        return None
    tls = load_tls_identity(*files, "coordinator")
    if tls.identity.consortium != roster.consortium:
        raise ConfigError(
            f"the certificate {settings.tls_certificate} is for {tls.identity.consortium!r}, "
            f"the roster is of {roster.consortium!r}"
        )
    return tls


class _App:
    """The parts of a running coordinator."""

    def __init__(
        self,
        core: Coordinator,
        draws: Draws,
        roster: Roster,
        outside: Outside,
        log: Log,
    ) -> None:
        self._roster = roster
        self._log = log
        self._storage = outside.storage
        self._outside = outside
        self._runner = Runner(core, draws, self._outside, log)
        outside.links.tell(self._presence)
        storage = outside.storage
        outside.metrics.watch_disk(storage.folder, storage.database, storage.spool)

    def _presence(self, event: SiteJoined | SiteLeft) -> None:
        if isinstance(event, SiteJoined):
            self._log.info("site joined", site=event.site)
        else:
            self._log.info("site left", site=event.site, reason=event.reason)
        self._runner.post(event)

    async def serve(
        self,
        settings: CoordinatorSettings,
        tls: TlsIdentity | None,
        stop: asyncio.Event,
        ready: Callable[[int], None] | None,
    ) -> None:
        gate = Gate(self._roster.consortium, frozenset(self._roster.sites), tls is None)
        desk = Desk(gate, self._runner, self._outside.metrics, self._log, settings.limits)
        door = Admission(gate, settings.limits, desk.refuse, time.monotonic)
        server = grpc.aio.server(interceptors=[door], options=_options(settings))
        health = await self._add_services(server, desk)
        port = _bind(server, settings.listen, tls)
        metrics = None
        if settings.metrics_port is not None:
            metrics = MetricsServer(self._outside.metrics, settings.metrics_port)
        await self._runner.recover()
        worker = asyncio.create_task(self._runner.run())
        try:
            await server.start()
            self._log_start(settings, port, metrics)
            if ready is not None:
                ready(port)
            await _first_of(stop, worker)
        finally:
            self._log.info("stopping")
            await health.enter_graceful_shutdown()
            self._outside.links.close_all(_STOPPING)
            await server.stop(_GRACE_SECONDS)
            worker.cancel()
            with suppress(asyncio.CancelledError):
                await worker
            if metrics is not None:
                metrics.stop()

    async def _add_services(self, server: grpc.aio.Server, desk: Desk) -> health_aio.HealthServicer:
        outside = self._outside
        federation = FederationService(
            desk, self._roster, outside.links, outside.models, self._storage, outside.audits
        )
        operator = OperatorService(desk, self._storage, outside.watchers)
        server.add_generic_rpc_handlers((federation.handlers(), operator.handlers()))
        health = health_aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(health, server)
        for service in ("", FEDERATION, OPERATOR):
            await health.set(service, health_pb2.HealthCheckResponse.SERVING)
        names = (FEDERATION, OPERATOR, HEALTH, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        return health

    def _log_start(
        self, settings: CoordinatorSettings, port: int, metrics: MetricsServer | None
    ) -> None:
        host, _ = split_address(settings.listen, "listen", lowest_port=0)
        self._log.info(
            "serving",
            host=host,
            port=port,
            insecure=settings.insecure,
            metrics_port=metrics.port if metrics else None,
            consortium=self._roster.consortium,
            sites=len(self._roster.sites),
            epoch=self._roster.epoch,
            roster=self._roster.hash.hex(),
            **versions(),
        )


def _options(settings: CoordinatorSettings) -> list[tuple[str, int]]:
    return [
        # Without this a second coordinator on the same port starts, and each gets half of
        # the connections.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", max(settings.max_message_bytes, RELAY_LIMIT)),
        *KEEPALIVE_OPTIONS,
        *_limiting(settings.limits),
    ]


def _limiting(limits: LimitSettings) -> list[tuple[str, int]]:
    """What gRPC itself holds against connections, before anybody's name is known."""
    return [
        ("grpc.max_concurrent_streams", limits.calls),
        ("grpc.max_allowed_incoming_connections", limits.connections),
        ("grpc.server_handshake_timeout_ms", round(1000 * limits.handshake_s)),
        ("grpc.max_connection_idle_ms", round(1000 * limits.connection_idle_s)),
    ]


def _bind(server: grpc.aio.Server, listen: str, tls: TlsIdentity | None) -> int:
    try:
        port = (
            server.add_insecure_port(listen)
            if tls is None
            else server.add_secure_port(listen, tls.server_credentials())
        )
    except RuntimeError as error:
        raise _cannot_listen(listen) from error
    if port == 0:
        raise _cannot_listen(listen)
    return int(port)


def _cannot_listen(listen: str) -> ConfigError:
    return ConfigError(
        f"cannot listen on {listen}: the port is in use or the address is not this machine's",
        hint="stop whatever uses it, or set another `listen`",
    )


async def _first_of(stop: asyncio.Event, worker: asyncio.Task[None]) -> None:
    """Waits for the signal to stop; a worker that ends by itself is a failure to report."""
    waiting = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((waiting, worker), return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
    if worker.done():
        worker.result()
