"""What a monitoring system reads: rounds, phases, sites, refusals, bytes, memory and disk.

Labels come from fixed sets, from the roster, or name a run that is going on: no peer can make
new ones, and what names a run goes when the run ends.
"""

from __future__ import annotations

import math
import os
import wsgiref.simple_server
from collections.abc import Callable, Iterable
from pathlib import Path
from threading import Thread

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    start_http_server,
)

from veilsum.control import RoundRecord, RunEvent, RunStatus
from veilsum.errors import ConfigError

_ADDRESS = "127.0.0.1"
_SECONDS = (1, 5, 15, 60, 300, 900, 3600, 14_400, 86_400)
_PHASES = frozenset(
    {"join", "keys", "shares", "inputs", "votes", "unmask", "acks", "cooldown", "buffer"}
)
_OTHER = "other"
_OVER = ("completed", "aborted")


class Metrics:
    """The coordinator's metrics.

    Args:
        sites: of the roster; what anyone else does is counted under "other".
    """

    def __init__(self, sites: Iterable[str] = ()) -> None:
        self.registry = CollectorRegistry()
        self._roster = frozenset(sites)
        self._active: set[str] = set()
        self._core_seconds_of_round = 0.0
        ProcessCollector(registry=self.registry)  # memory, processor time, open files
        self._make_totals()
        self._make_sites()
        self._make_runs()
        self._make_state()

    def _make_totals(self) -> None:
        self._rounds = self._counter("rounds", "Finished rounds", "outcome")
        self._round_seconds = self._histogram("round_seconds", "Duration of completed rounds")
        self._phase_seconds = self._histogram("phase_seconds", "Duration of phases", "phase")
        self._updates = self._counter("updates", "Accepted updates")
        self._refusals = self._counter("refusals", "Refused calls and updates", "reason")
        self._bytes = self._counter("bytes", "Bytes of updates in and models out", "way")
        self._summed = self._counter("summed_bytes", "Bytes of updates that are in a sum")
        self._core_seconds = self._counter(
            "core_seconds", "Time in which the core dealt with events", "event"
        )
        self._throughput = self._gauge(
            "core_bytes_per_second", "Bytes summed per second of the core, in the last round"
        )

    def _make_sites(self) -> None:
        self._sites = self._gauge("sites", "Connected sites")
        self._site_bytes = self._counter("site_bytes", "Bytes in and out", "site", "way")
        self._site_updates = self._counter("site_updates", "Accepted updates", "site")
        self._site_refusals = self._counter("site_refusals", "Refused", "site", "reason")

    def _make_runs(self) -> None:
        self._run_round = self._gauge("run_round", "Round in progress", "run")
        self._run_in = self._gauge("run_sites_in", "Sites that answered in this phase", "run")
        self._run_expected = self._gauge("run_sites_expected", "Sites the phase has", "run")
        self._run_bytes = self._gauge("run_bytes", "Bytes of updates in finished rounds", "run")
        self._run_seconds = self._gauge(
            "run_phase_seconds", "Duration of phases of the last finished round", "run", "phase"
        )
        self._of_runs = (self._run_round, self._run_in, self._run_expected, self._run_bytes)

    def _make_state(self) -> None:
        self._ready = self._gauge("ready", "1 while calls are taken, as grpc.health.v1 says")
        self._calls = self._gauge("open_calls", "gRPC calls that are going on")
        self._expiry = self._gauge(
            "certificate_expiry_timestamp_seconds", "When the TLS certificate in use ends"
        )
        self._reloads = self._counter(
            "reloads", "Files that changed and were read again", "file", "outcome"
        )
        self._revoked = self._gauge("revoked", "Entries of the list of revoked certificates")
        self._suppressed = self._counter("log_lines_suppressed", "Log lines beyond the limit")
        self._lost = self._counter("log_lines_lost", "Log lines that could not be written")

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(f"veilsum_{name}", what, labels, registry=self.registry)

    def _gauge(self, name: str, what: str, *labels: str) -> Gauge:
        return Gauge(f"veilsum_{name}", what, labels, registry=self.registry)

    def _histogram(self, name: str, what: str, *labels: str) -> Histogram:
        return Histogram(f"veilsum_{name}", what, labels, buckets=_SECONDS, registry=self.registry)

    # --- rounds and runs ------------------------------------------------------------

    def round_finished(self, record: RoundRecord, seconds: float) -> None:
        """A round is over. `seconds`: since it was opened."""
        self._rounds.labels("completed" if record.completed else "aborted").inc()
        for phase, took in record.seconds.items():
            self._phase_seconds.labels(_phase(phase)).observe(took)
        if (run := record.round.run_id) in self._active:
            self._run_bytes.labels(run).inc(sum(record.bytes_in.values()))
            for phase, took in record.seconds.items():
                self._run_seconds.labels(run, _phase(phase)).set(took)
        if record.completed:
            self._round_seconds.observe(seconds)
            summed = sum(record.bytes_in.get(site, 0) for site in record.sites)
            self._summed.inc(summed)
            if self._core_seconds_of_round > 0:
                self._throughput.set(summed / self._core_seconds_of_round)
        self._core_seconds_of_round = 0.0

    def core_took(self, event: str, seconds: float) -> None:
        """The core dealt with an event; `event` is the name of its class."""
        self._core_seconds.labels(event).inc(seconds)
        self._core_seconds_of_round += seconds

    def run_event(self, event: RunEvent) -> None:
        """Something happened to a run."""
        if event.run_id not in self._active:
            return
        if event.kind == "phase":
            self._run_round.labels(event.run_id).set(event.round_number)
        if event.kind in ("phase", "site"):
            self._run_in.labels(event.run_id).set(event.sites_in)
            self._run_expected.labels(event.run_id).set(event.sites_expected)

    def run_state(self, status: RunStatus) -> None:
        """A run began, waits, or is over; what is over has no metrics of its own any more."""
        if status.state not in _OVER:
            self._active.add(status.run_id)
        elif status.run_id in self._active:
            self._active.remove(status.run_id)
            for gauge in (*self._of_runs, self._run_seconds):
                gauge.remove_by_labels({"run": status.run_id})

    # --- sites ----------------------------------------------------------------------

    def update_accepted(self, site: str) -> None:
        """An update counts."""
        self._updates.inc()
        self._site_updates.labels(self._site(site)).inc()

    def refused(self, reason: str, site: str | None = None) -> None:
        """Something was refused; `reason` is the name of a gRPC status, not a peer's text."""
        self._refusals.labels(reason).inc()
        if site is not None:
            self._site_refusals.labels(self._site(site), reason).inc()

    def received(self, size_bytes: int, site: str) -> None:
        """Bytes of chunks that were taken."""
        self._bytes.labels("in").inc(size_bytes)
        self._site_bytes.labels(self._site(site), "in").inc(size_bytes)

    def sent(self, size_bytes: int, site: str) -> None:
        """Bytes of models and what belongs to them that were sent."""
        self._bytes.labels("out").inc(size_bytes)
        self._site_bytes.labels(self._site(site), "out").inc(size_bytes)

    def sites(self, connected: int) -> None:
        """How many sites have a Join stream."""
        self._sites.set(connected)

    def _site(self, name: str) -> str:
        return name if name in self._roster else _OTHER

    # --- the process ----------------------------------------------------------------

    def ready(self, ready: bool) -> None:
        """Whether calls are taken."""
        self._ready.set(ready)

    def open_calls(self, number: int) -> None:
        """How many calls are going on."""
        self._calls.set(number)

    def certificate_ends(self, timestamp: float) -> None:
        """When the certificate in use ends, seconds since 1970."""
        self._expiry.set(timestamp)

    def reloaded(self, file: str, *, taken: bool) -> None:
        """A file changed and was read again; `file` is a word of ours for it."""
        self._reloads.labels(file, "taken" if taken else "refused").inc()

    def revoked(self, entries: int) -> None:
        """How long the list of revoked certificates is."""
        self._revoked.set(entries)

    def log_lines(self, *, suppressed: int, lost: int) -> None:
        """Log lines that were not written since the last time."""
        self._suppressed.inc(suppressed)
        self._lost.inc(lost)

    def watch_disk(self, folder: Path, database: Path, spool: Path) -> None:
        """Measures these whenever someone reads the metrics."""
        files = [database, database.with_name(f"{database.name}-wal")]
        measured: dict[str, tuple[str, Callable[[], float]]] = {
            "spool_bytes": ("Bytes of uploads on disk", lambda: folder_bytes(spool)),
            "journal_bytes": ("Bytes of the database", lambda: sum(map(_file_bytes, files))),
            "disk_free_bytes": ("Free where the state is", lambda: _free_bytes(folder)),
        }
        for name, (what, measure) in measured.items():
            self._gauge(name, what).set_function(measure)


def folder_bytes(folder: Path) -> int:
    """What the files in and below a folder take up on disk; those that go meanwhile are not
    counted."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(path, name)).st_blocks * 512
            except FileNotFoundError:
                continue
    return total


def _file_bytes(file: Path) -> float:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0
    except OSError:  # the disk failed; whoever reads the metrics is to see the rest
        return math.nan


def _free_bytes(folder: Path) -> float:
    try:
        found = os.statvfs(folder)
    except OSError:
        return math.nan
    return found.f_bavail * found.f_frsize


def _phase(name: str) -> str:
    return name if name in _PHASES else _OTHER


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
