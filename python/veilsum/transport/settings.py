"""What a coordinator process and a site process are told: one frozen object each.

The command line fills these from TOML; nothing here reads a file. Both check
themselves completely, so that a process never starts with settings that cannot work.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from veilsum.errors import ConfigError
from veilsum.secagg.policy import LocalPolicy
from veilsum.site.bounds import TaskBounds
from veilsum.transport.limits import LimitSettings
from veilsum.transport.retention_settings import RetentionSettings

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

MESSAGE_LIMIT = 4 << 20
"""Largest gRPC message, bytes; updates and models travel in pieces of about 1 MiB."""

RELAY_LIMIT = 8 << 20
"""Largest from the coordinator to a site: an invitation holds the layout of the model."""

_ROUNDING_SEED_BYTES = 32
_MOST_RECONNECT_SECONDS = 86_400.0
_MOST_DRAIN_SECONDS = 3600.0
_MOST_HOLD_SECONDS = 30 * 86_400.0
_PIN = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class LogSettings:
    """How a process logs: lines on stderr, or appended to `file`.

    Attributes:
        format: "text" (key=value) or "json" (one object per line).
        level: the least severe level that is written.
        file: None for stderr.
        max_bytes: of the file and those before it, which are kept beside it as file.1 to file.7.
    """

    format: LogFormat = "text"
    level: LogLevel = "info"
    file: Path | None = None
    max_bytes: int = 256 << 20

    def __post_init__(self) -> None:
        if self.format not in ("text", "json"):
            raise ConfigError(f"log format must be 'text' or 'json', got {self.format!r}")
        if self.level not in ("debug", "info", "warning", "error"):
            raise ConfigError(
                f"log level must be debug, info, warning or error, got {self.level!r}"
            )
        if not 1 << 20 <= self.max_bytes <= 1 << 40:
            raise ConfigError(f"log max_bytes must be 2**20 to 2**40, got {self.max_bytes}")


@dataclass(frozen=True, slots=True)
class CoordinatorSettings:
    """Everything a coordinator process needs.

    Attributes:
        state_dir: state.db, spool/ and models/ live here; made with mode 0700 if missing.
        roster: the consortium's roster file.
        previous_roster: file of the roster before it, whose members signed it; none for a
            consortium's first.
        signing_key: Ed25519 protocol key (PEM) whose public half is in the roster.
        ca, tls_certificate, tls_key: PEM files; all three unless `insecure`.
        listen: "host:port"; port 0 takes a free one.
        insecure: no TLS; only on a loopback address, for trying things out.
        metrics_port: serve Prometheus metrics on 127.0.0.1:port; None turns it off.
        max_message_bytes: of one gRPC message.
        threads: worker threads of the native core; 0 means as many as
            devices.available_threads() says.
        backend: what sums the updates of rounds: "cpu", or a device such as "cuda:0".
        audits: keep the masked updates of a round, in files of the spool, and the seeds its masks
            came off with, in memory, until its sites have acknowledged the result, so that they can
            check the sum.
        transcripts: folder for a file per masked round that anyone can check the sum by, made if
            missing; None: there are none. Each holds all updates, masked, and seeds that unmask
            their sum, which are on no disk otherwise.
        spool_limit_bytes: of all uploads on disk together; one that does not fit waits at its site.
            0 means what the disk has.
        drain_s: how long uploads under way may take to finish when the coordinator is to stop.
        revoked: file of certificates that are not to be believed any more (pki/revoked_file.py).
        retention: what is forgotten of runs that are over.
        reconnect_s: how long a site whose connection broke, or was there before the coordinator
            started again, is waited for before its rounds go on without it; 0: not at all.
        limits: how much one member may take.
        inflight_bytes: of uploads that were received and are not on disk yet, over all sites; more
            is not read from the network. One message of each open call comes on top.
        stall_s: an upload on which nothing arrives for so many seconds ends; the site goes on with
            it when it can.
    """

    state_dir: Path
    roster: Path
    signing_key: Path
    ca: Path | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    listen: str = "127.0.0.1:0"
    insecure: bool = False
    metrics_port: int | None = None
    max_message_bytes: int = MESSAGE_LIMIT
    threads: int = 0
    backend: str = "cpu"
    log: LogSettings = field(default_factory=LogSettings)
    previous_roster: Path | None = None
    audits: bool = False
    transcripts: Path | None = None
    spool_limit_bytes: int = 0
    reconnect_s: float = 30.0
    drain_s: float = 30.0
    revoked: Path | None = None
    retention: RetentionSettings = field(default_factory=RetentionSettings)
    limits: LimitSettings = field(default_factory=LimitSettings)
    inflight_bytes: int = 64 << 20
    stall_s: float = 60.0

    def __post_init__(self) -> None:
        host, _ = split_address(self.listen, "listen", lowest_port=0)
        _check_tls(self.insecure, host, (self.ca, self.tls_certificate, self.tls_key))
        if self.insecure and self.revoked is not None:
            raise ConfigError("revoked names certificates, there are none with insecure")
        if self.metrics_port is not None and not 0 <= self.metrics_port <= 65_535:
            raise ConfigError(f"metrics_port must be 0 to 65535, got {self.metrics_port}")
        if not MESSAGE_LIMIT <= self.max_message_bytes <= 1 << 30:
            raise ConfigError(
                f"max_message_bytes must be {MESSAGE_LIMIT} to 2**30, got {self.max_message_bytes}"
            )
        _check_seconds("drain_s", self.drain_s, most=_MOST_DRAIN_SECONDS)
        _check_seconds("reconnect_s", self.reconnect_s, most=_MOST_RECONNECT_SECONDS)
        _check_uploads(self)
        _check_threads(self.threads)


@dataclass(frozen=True, slots=True)
class SiteSettings:
    """Everything a site process needs. The coordinator can change none of it.

    Attributes:
        site: the name in the roster and in the certificate.
        coordinator: "host:port" to dial.
        trainer: "package.module:factory", imported and called with `trainer_settings` as
            keyword arguments; named here and nowhere else.
        roster_hash: of the one roster that this site agreed to, 64 hex digits; needed unless
            `insecure`.
        previous_roster: as the coordinator's.
        bounds: largest training work this site does for anyone.
        policy: the least protection this site accepts.
        ledger: folder of what this site must not forget; made if missing. None: plain rounds
            only. In site.toml it is "ledger-SITE" beside the file unless it says otherwise.
        egress: file of what left this site, message by message; made if missing. None: not
            kept. In site.toml it is "egress-SITE.vsx" beside the file unless it says otherwise.
        rounding_seed: 64 hex digits that fix stochastic rounding across restarts; None
            draws fresh ones from the operating system. Keep it as secret as the update.
        max_model_bytes: larger models are refused before they are received.
        threads: worker threads of the native core; 0 means as many as
            devices.available_threads() says.
        backend: what encodes and masks updates of masked rounds: "cpu", or a device such as
            "cuda:0".
        hold_s: how long the site stays in its round without a connection.
    """

    site: str
    coordinator: str
    roster: Path
    signing_key: Path
    trainer: str
    ca: Path | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    trainer_settings: Mapping[str, Any] = field(default_factory=dict)
    bounds: TaskBounds = field(default_factory=TaskBounds)
    policy: LocalPolicy = field(default_factory=LocalPolicy)
    ledger: Path | None = None
    insecure: bool = False
    rounding_seed: str | None = field(default=None, repr=False)
    max_model_bytes: int = 16 << 30
    threads: int = 0
    backend: str = "cpu"
    log: LogSettings = field(default_factory=LogSettings)
    roster_hash: str | None = None
    previous_roster: Path | None = None
    egress: Path | None = None
    hold_s: float = 3600.0

    def __post_init__(self) -> None:
        if not 1 <= len(self.site.encode()) <= 64 or not self.site.isprintable():
            raise ConfigError(f"site must be 1 to 64 printable bytes, got {self.site!r}")
        host, _ = split_address(self.coordinator, "coordinator", lowest_port=1)
        _check_tls(self.insecure, host, (self.ca, self.tls_certificate, self.tls_key))
        module, _, factory = self.trainer.partition(":")
        if not factory.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
            raise ConfigError(f"trainer must be 'package.module:factory', got {self.trainer!r}")
        _check_pin(self.roster_hash, self.insecure)
        _check_rounding_seed(self.rounding_seed)
        if self.max_model_bytes < 1:
            raise ConfigError(f"max_model_bytes must be positive, got {self.max_model_bytes}")
        _check_seconds("hold_s", self.hold_s, most=_MOST_HOLD_SECONDS)
        _check_threads(self.threads)


@dataclass(frozen=True, slots=True)
class OperatorSettings:
    """How a person or script reaches a coordinator.

    Attributes:
        coordinator: "host:port" to dial.
        name, consortium: who to be without TLS; a certificate says it otherwise.
    """

    coordinator: str
    ca: Path | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    insecure: bool = False
    name: str = "operator"
    consortium: str = ""

    def __post_init__(self) -> None:
        host, _ = split_address(self.coordinator, "coordinator", lowest_port=1)
        _check_tls(self.insecure, host, (self.ca, self.tls_certificate, self.tls_key))
        if self.insecure and not self.consortium:
            raise ConfigError("without a certificate, consortium must say whose operator this is")


def tls_files(
    settings: CoordinatorSettings | SiteSettings | OperatorSettings,
) -> tuple[Path, Path, Path] | None:
    """(ca, tls_certificate, tls_key), or None in the insecure mode."""
    if settings.ca is None or settings.tls_certificate is None or settings.tls_key is None:
        return None  # all three or none: the settings saw to it
    return settings.ca, settings.tls_certificate, settings.tls_key


def split_address(address: str, name: str, *, lowest_port: int) -> tuple[str, int]:
    """("host", port) of "host:port" or "[v6]:port".

    Raises:
        ConfigError: not of that form; `name` is the setting to blame.
    """
    host, colon, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    plain = host[1:-1] if bracketed else host
    if not colon or not plain or (":" in plain and not bracketed) or not port.isascii():
        raise ConfigError(f"{name} must be 'host:port', got {address!r}")
    if not port.isdecimal() or not lowest_port <= int(port) <= 65_535:
        raise ConfigError(f"{name} needs a port from {lowest_port} to 65535, got {port!r}")
    return plain, int(port)


def is_loopback(host: str) -> bool:
    """Whether a host means this machine only. Other names are not looked up: they are not."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_tls(insecure: bool, host: str, files: tuple[Path | None, ...]) -> None:
    if insecure and not is_loopback(host):
        raise ConfigError(
            f"insecure is possible on a loopback address only, got {host!r}",
            hint="give ca, tls_certificate and tls_key instead (`veilsum pki issue` makes them)",
        )
    if insecure and any(file is not None for file in files):
        raise ConfigError("insecure cannot be combined with ca, tls_certificate or tls_key")
    if not insecure and any(file is None for file in files):
        raise ConfigError(
            "ca, tls_certificate and tls_key are all needed",
            hint="make them with `veilsum pki init` and `veilsum pki issue`",
        )


def _check_pin(pin: str | None, insecure: bool) -> None:
    if pin is None and insecure:
        return
    if pin is None or not _PIN.fullmatch(pin):
        raise ConfigError(
            f"roster_hash must be the hash of a roster, 64 hexadecimal digits, got {pin!r}",
            hint="veilsum pki check-roster ROSTER --pin SITE_TOML",
        )


def _check_rounding_seed(seed: str | None) -> None:
    if seed is None:
        return
    try:
        size = len(bytes.fromhex(seed))
    except ValueError:
        size = -1
    if size != _ROUNDING_SEED_BYTES:
        # The seed itself stays out of the message: it is a secret.
        raise ConfigError("rounding_seed must be 64 hexadecimal digits")


def _check_seconds(name: str, seconds: float, *, most: float) -> None:
    if not 0.0 <= seconds <= most:  # so written, it refuses nan as well
        raise ConfigError(f"{name} must be 0 to {most:g} seconds, got {seconds}")


def _check_uploads(settings: CoordinatorSettings) -> None:
    if settings.spool_limit_bytes < 0:
        raise ConfigError(
            f"spool_limit_bytes must be 0 or positive, got {settings.spool_limit_bytes}"
        )
    if settings.inflight_bytes < settings.max_message_bytes:
        raise ConfigError(
            f"inflight_bytes must be at least max_message_bytes, {settings.max_message_bytes}, got "
            f"{settings.inflight_bytes}"
        )
    if not 0.0 < settings.stall_s <= 86_400.0:
        raise ConfigError(
            f"stall_s must be above 0 and at most 86400 seconds, got {settings.stall_s}"
        )


def _check_threads(threads: int) -> None:
    if not 0 <= threads <= 1024:
        raise ConfigError(f"threads must be 0 to 1024, got {threads}")
