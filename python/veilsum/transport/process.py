"""What both kinds of process do at their start and end."""

from __future__ import annotations

import asyncio
import ctypes
import importlib.metadata
import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from veilsum._version import __version__
from veilsum.errors import ConfigError
from veilsum.transport.drain import Orders

_PR_SET_DUMPABLE = 4
GRPC_PACKAGES = ("grpcio", "protobuf")

# A dead peer behind a silent network is noticed after half a minute; gRPC's own limits on
# how often a peer may ask are raised to match. Its own patience with an answer is a minute,
# whatever the keepalive's time-out says, so that is set as well.
KEEPALIVE_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
)


def harden_process() -> None:
    """Keys, masks and training data stay in this process, as far as the system can see to it.

    It writes no core file, neither to disk nor into a program that the system pipes cores to,
    which heeds no limit on their size. Nobody but root attaches a debugger to it or reads its
    memory through /proc, where its files belong to root from here on; profilers that attach
    from outside need root too. What it forks is the same; another program that it runs is not.

    Raises:
        ConfigError: the system refused.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise ConfigError(
            f"cannot keep others out of this process's memory: {os.strerror(ctypes.get_errno())}",
            hint="allow the system call prctl, which a sandbox may forbid",
        )


_FILES_PER_SITE = 3
_FILES_BESIDE = 128


def allow_open_files(sites: int, connections: int) -> int:
    """Raises this process's limit of open files as far as may be, and returns what it is then.

    A site has a connection, for a while a second one when it comes back, and its update in the
    spool while the core is busy with others; 128 are for everything else.

    Args:
        sites: of the roster.
        connections: that may be open, of whomever; where the system allows fewer, files run out
            before that limit is reached, and the caller should say so.

    Raises:
        ConfigError: the system does not allow as many as these sites need.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = (sys.maxsize if one == resource.RLIM_INFINITY else one for one in (soft, hard))
    needed = _FILES_PER_SITE * sites + _FILES_BESIDE
    if hard < needed:
        raise ConfigError(
            f"a coordinator of {sites} sites needs {needed} open files, the system allows this "
            f"process {hard}",
            hint=f"raise the hard limit: LimitNOFILE={needed} in the systemd unit, or ulimit -Hn",
        )
    wanted = max(needed, connections + files_beside_connections(sites))
    allowed = min(wanted, hard)
    if soft >= allowed:
        return soft
    _, unchanged = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, unchanged))
    return allowed


def files_beside_connections(sites: int) -> int:
    """What a coordinator has open at most that is no connection."""
    return sites + _FILES_BESIDE


@contextmanager
def stop_signals(stop: asyncio.Event) -> Iterator[None]:
    """Within it, SIGINT and SIGTERM set `stop`, so that a process ends as it should."""
    loop = asyncio.get_running_loop()
    caught = (signal.SIGINT, signal.SIGTERM)
    for number in caught:
        loop.add_signal_handler(number, stop.set)
    try:
        yield
    finally:
        for number in caught:
            loop.remove_signal_handler(number)


@contextmanager
def order_signals(orders: Orders) -> Iterator[None]:
    """Within it, SIGINT and SIGTERM tell a coordinator to stop, a second one to stop at once, and
    SIGHUP to read its files again."""
    loop = asyncio.get_running_loop()
    told = {
        signal.SIGINT: orders.stop_again,
        signal.SIGTERM: orders.stop_again,
        signal.SIGHUP: orders.reload.set,
    }
    for number, tell in told.items():
        loop.add_signal_handler(number, tell)
    try:
        yield
    finally:
        for number in told:
            loop.remove_signal_handler(number)


def versions() -> dict[str, str]:
    """This program's version and those of what carries its traffic, for the log."""
    found = {name: importlib.metadata.version(name) for name in GRPC_PACKAGES}
    return {"version": __version__, **found}
