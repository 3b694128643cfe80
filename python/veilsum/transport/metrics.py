"""What a monitoring system reads: counts of rounds, updates, refusals and bytes."""

from __future__ import annotations

import wsgiref.simple_server
from threading import Thread

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from veilsum.errors import ConfigError

_ADDRESS = "127.0.0.1"


class Metrics:
    """The coordinator's metrics. Labels come from fixed sets: no peer can make new ones."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._rounds = Counter(
            "veilsum_rounds", "Finished rounds", ["outcome"], registry=self.registry
        )
        self._round_seconds = Histogram(
            "veilsum_round_seconds",
            "Duration of completed rounds",
            buckets=(1, 5, 15, 60, 300, 900, 3600, 14_400, 86_400),
            registry=self.registry,
        )
        self._updates = Counter("veilsum_updates", "Accepted updates", registry=self.registry)
        self._refusals = Counter(
            "veilsum_refusals", "Refused calls and updates", ["reason"], registry=self.registry
        )
        self._bytes = Counter(
            "veilsum_bytes", "Bytes of updates in and models out", ["way"], registry=self.registry
        )
        self._sites = Gauge("veilsum_sites", "Connected sites", registry=self.registry)

    def round_finished(self, completed: bool, seconds: float) -> None:
        """A round is over."""
        self._rounds.labels("completed" if completed else "aborted").inc()
        if completed:
            self._round_seconds.observe(seconds)

    def update_accepted(self) -> None:
        """An update counts."""
        self._updates.inc()

    def refused(self, reason: str) -> None:
        """A call was refused; `reason` is the name of the gRPC status, not a peer's text."""
        self._refusals.labels(reason).inc()

    def received(self, size_bytes: int) -> None:
        """Bytes of chunks that were taken."""
        self._bytes.labels("in").inc(size_bytes)

    def sent(self, size_bytes: int) -> None:
        """Bytes of models that were sent."""
        self._bytes.labels("out").inc(size_bytes)

    def sites(self, connected: int) -> None:
        """How many sites have a Join stream."""
        self._sites.set(connected)


class MetricsServer:
    """Serves /metrics on a port of this machine."""

    def __init__(self, metrics: Metrics, port: int) -> None:
        try:
            self._server, self._thread = _start(metrics.registry, port)
        except OSError as error:
            raise ConfigError(
                f"metrics_port {port} is not free: {error.strerror}", hint="choose another port"
            ) from error

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_port)

    def stop(self) -> None:
        """Closes the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _start(
    registry: CollectorRegistry, port: int
) -> tuple[wsgiref.simple_server.WSGIServer, Thread]:
    return start_http_server(port, addr=_ADDRESS, registry=registry)
