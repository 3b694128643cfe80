"""What this build can sum on, and with how many threads."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from veilsum import _native
from veilsum.errors import ConfigError

THREADS_VARIABLE = "VEILSUM_THREADS"
MAX_THREADS = 1024

_CGROUP_ROOT = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")
_ISA_WORDS = {"base": "baseline", "v2": "SSE4.2", "v3": "AVX2", "v4": "AVX-512"}


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """One backend that Aggregator accepts.

    Attributes:
        name: what to pass as `backend`.
        detail: instruction set and processors, for people.
    """

    name: str
    detail: str


def available_threads() -> int:
    """Threads that a call uses unless told otherwise.

    VEILSUM_THREADS if it is set. Otherwise one per processor that this process may run on, but
    no more than its control group has processor time for: threads beyond that would only take
    turns with the host's own.

    Raises:
        ConfigError: VEILSUM_THREADS is not a number from 1 to 1024.
    """
    wanted = os.environ.get(THREADS_VARIABLE, "").strip()
    if wanted:
        return _parsed_threads(wanted)
    processors = len(os.sched_getaffinity(0))
    return max(1, math.ceil(min(processors, processor_quota(_CGROUP_ROOT, _OWN_CGROUP))))


def _parsed_threads(wanted: str) -> int:
    if wanted.isascii() and wanted.isdigit() and 1 <= int(wanted[:9]) <= MAX_THREADS:
        return int(wanted)
    raise ConfigError(
        f"{THREADS_VARIABLE} must be a number from 1 to {MAX_THREADS}, got {wanted!r}",
        hint="unset it to use one thread per available processor",
    )


def processor_quota(root: Path, own: Path) -> float:
    """Processors' worth of time that control groups grant; infinite without a limit.

    Args:
        root: where control groups are mounted, /sys/fs/cgroup.
        own: the list of groups this process is in, /proc/self/cgroup. Limits of all groups
            above count too. Where groups are not readable there is no limit to find.
    """
    quota = min(_unified_quota(root, group) for group in _groups(own))
    return min(quota, _legacy_quota(root / "cpu"))


def _groups(own: Path) -> list[str]:
    """The unified hierarchy's group and those above it; in a container just the root."""
    lines = _read(own).splitlines()
    path = next((line[3:] for line in lines if line.startswith("0::")), "/")
    group = PurePosixPath("/", *(part for part in path.split("/") if part not in ("", "..")))
    return [str(group), *map(str, group.parents)]


def _unified_quota(root: Path, group: str) -> float:
    quota, _, period = _read(root / group.lstrip("/") / "cpu.max").partition(" ")
    return _ratio(quota, period)


def _legacy_quota(folder: Path) -> float:
    return _ratio(_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us"))


def _ratio(quota: str, period: str) -> float:
    """Infinite unless both are positive numbers: "max" and -1 mean no limit."""
    if quota.strip().isdigit() and period.strip().isdigit() and int(period) > 0:
        return int(quota) / int(period)
    return math.inf


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def backends() -> tuple[BackendInfo, ...]:
    """The backends of this build on this machine; "emu", which only emulates devices, is not
    among them.

    Raises:
        ConfigError: VEILSUM_ISA names a level this CPU or build does not have, or
            VEILSUM_THREADS is no number of threads.
    """
    isa = _native.active_isa()
    cpu = BackendInfo("cpu", f"{_ISA_WORDS.get(isa, isa)} ({isa}), {available_threads()} threads")
    _, models, _ = _native.cuda_status()
    return (cpu, *(BackendInfo(f"cuda:{number}", model) for number, model in enumerate(models)))


def require_backend(name: str) -> str:
    """The name of a backend that is there now, as it was given.

    Raises:
        ConfigError: it is no name of a backend.
        DeviceError: this build has no such backend, or this machine no such device.
    """
    if name != "cpu":
        _native.require_device(name)
    return name


def device_name(name: str) -> str:
    """The full name of a device that is there now: "cuda:0" for "cuda".

    Raises:
        ConfigError: it is no name of a device.
        DeviceError: this build has no such backend, or this machine no such device.
    """
    _native.require_device(name)
    return name if ":" in name else f"{name}:0"
