"""A coordinator process: puts the parts together and serves until it is told to stop."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH
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
from veilsum.transport.drain import Orders
from veilsum.transport.durable import Points, no_points
from veilsum.transport.entrance import Entrance
from veilsum.transport.event_log import Draws
from veilsum.transport.forgetting import Tidying
from veilsum.transport.health import Health
from veilsum.transport.lifecycle import Lifecycle, Parts
from veilsum.transport.limits import LimitSettings
from veilsum.transport.links import Links
from veilsum.transport.logs import Log, start_logging
from veilsum.transport.metrics import Metrics, MetricsServer
from veilsum.transport.models import Models
from veilsum.transport.operator_service import OPERATOR, OperatorService
from veilsum.transport.process import (
    KEEPALIVE_OPTIONS,
    allow_open_files,
    files_beside_connections,
    harden_process,
    order_signals,
    versions,
)
from veilsum.transport.retention import Retention
from veilsum.transport.runner import Runner
from veilsum.transport.server import FEDERATION, Desk, FederationService
from veilsum.transport.settings import RELAY_LIMIT, CoordinatorSettings, split_address, tls_files
from veilsum.transport.standby import open_storage
from veilsum.transport.tls import load_signing_key, load_tls_identity
from veilsum.transport.tls_reload import ServerTls
from veilsum.transport.upkeep import Upkeep, Watched
from veilsum.transport.uploads import UploadLimits
from veilsum.transport.watchers import Watchers


def run_coordinator(
    settings: CoordinatorSettings,
    *,
    ready: Callable[[int], None] | None = None,
    standby: bool = False,
) -> None:
    """Serves until SIGINT or SIGTERM; lets uploads under way finish then, until a second one.

    Args:
        ready: called with the bound port once sites and operators can connect.
        standby: while another coordinator uses the state directory, wait until it ends, and take
            over then.

    Raises:
        ConfigError: the settings cannot work: a file, a key, the port, the state directory.
    """
    harden_process()
    start_logging(settings.log)
    asyncio.run(_until_stopped(settings, ready, standby))


async def _until_stopped(
    settings: CoordinatorSettings, ready: Callable[[int], None] | None, standby: bool
) -> None:
    orders = Orders()
    with order_signals(orders):
        await serve_coordinator(settings, orders=orders, ready=ready, standby=standby)


async def serve_coordinator(
    settings: CoordinatorSettings,
    *,
    orders: Orders,
    ready: Callable[[int], None] | None = None,
    points: Points = no_points,
    standby: bool = False,
) -> None:
    """Serves until `orders` say to stop. Within a running loop; see run_coordinator.

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
    _allow_files(settings, roster, log)
    tls = _tls(settings, roster)
    signing_key = load_signing_key(settings.signing_key)
    storage = await open_storage(settings.state_dir, orders if standby else None, points, log)
    if storage is None:
        return
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
        await _App(core, draws, roster, outside, log).serve(settings, tls, orders, ready)
    finally:
        storage.close()


def _allow_files(settings: CoordinatorSettings, roster: Roster, log: Log) -> None:
    sites, connections = len(roster.sites), settings.limits.connections
    allowed = allow_open_files(sites, connections)
    log.info("open files", limit=allowed)
    if allowed < connections + files_beside_connections(sites):
        log.warning(
            "open files may run out before limits.connections is reached",
            limit=allowed,
            connections=connections,
            needed=connections + files_beside_connections(sites),
        )


def _tls(settings: CoordinatorSettings, roster: Roster) -> ServerTls | None:
    files = tls_files(settings)
    if files is None:
        return None
    tls = load_tls_identity(*files, "coordinator")
    if tls.identity.consortium != roster.consortium:
        raise ConfigError(
            f"the certificate {settings.tls_certificate} is for {tls.identity.consortium!r}, "
            f"the roster is of {roster.consortium!r}"
        )
    return ServerTls(files, tls)


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
        self._retention = Retention(outside.storage, time.time)
        outside.links.tell(self._presence)
        storage = outside.storage
        outside.metrics.watch_disk(storage.folder, storage.database, storage.spool)

    def _presence(self, event: SiteJoined | SiteLeft) -> None:
        if isinstance(event, SiteJoined):
            self._log.notice("site joined", site=event.site)
        else:
            self._log.notice("site left", site=event.site, reason=event.reason)
        self._runner.post(event)

    async def serve(
        self,
        settings: CoordinatorSettings,
        tls: ServerTls | None,
        orders: Orders,
        ready: Callable[[int], None] | None,
    ) -> None:
        outside = self._outside
        entrance = Entrance(time.time)
        gate = Gate(self._roster.consortium, frozenset(self._roster.sites), tls is None)
        desk = Desk(gate, self._runner, outside.metrics, self._log, settings.limits)
        door = Admission(gate, entrance, settings.limits, desk.refuse, time.monotonic)
        server = grpc.aio.server(interceptors=[door], options=_options(settings))
        health = self._add_services(server, desk)
        port = _bind(server, settings.listen, tls)
        links, metrics, log = outside.links, outside.metrics, self._log
        parts = Parts(server, door, entrance, health, self._runner, links, metrics, log)
        lifecycle = Lifecycle(parts, settings.drain_s)
        folder, consortium = self._storage.folder, self._roster.consortium
        tidying = Tidying(self._runner, self._retention, settings.retention, log)
        watched = Watched(consortium, tls, settings.revoked, folder, lifecycle.disk_works, tidying)
        upkeep = Upkeep(watched, entrance, links, metrics, log)
        measured = None
        if settings.metrics_port is not None:
            measured = MetricsServer(metrics, settings.metrics_port)

        def serving() -> None:
            self._log_start(settings, port, measured)
            if ready is not None:
                ready(port)

        try:
            await lifecycle.run(orders, upkeep, serving)
        finally:
            if measured is not None:
                measured.stop()

    def _add_services(self, server: grpc.aio.Server, desk: Desk) -> Health:
        outside = self._outside
        federation = FederationService(
            desk, self._roster, outside.links, outside.models, self._storage, outside.audits
        )
        operator = OperatorService(desk, self._storage, outside.watchers, self._retention)
        server.add_generic_rpc_handlers((federation.handlers(), operator.handlers()))
        health = Health((FEDERATION, OPERATOR))
        health_pb2_grpc.add_HealthServicer_to_server(health.servicer, server)
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


def _bind(server: grpc.aio.Server, listen: str, tls: ServerTls | None) -> int:
    try:
        port = (
            server.add_insecure_port(listen)
            if tls is None
            else server.add_secure_port(listen, tls.credentials())
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
