"""What this machine's memory can do, measured again in every round of every benchmark."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import numpy as np

from veilsum import _native

# Larger than the caches of one core; a round of all three takes some 20 ms.
PROBE_BYTES = 64 << 20


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's <malloc.h>


def keep_pages() -> None:
    """Has the C library keep memory that is freed, for everybody who is timed.

    A page that the system maps and clears costs about as much as encoding what goes into it, and
    whether a call meets one depends on what was freed before it.
    """
    mallopt = ctypes.CDLL(None).mallopt
    for option in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD):
        if not mallopt(option, 1 << 30):
            raise OSError("mallopt refuses a threshold of 1 GiB")


def probes() -> dict[str, Callable[[], object]]:
    """Calls that move PROBE_BYTES of payload with one thread, by name.

    copy: each byte read once and written once. triad: a + b, so two bytes read and one written
    per byte counted. read: each byte read once; NumPy's maximum of integers is its fastest
    reduction (no chain of rounded additions) and runs at the speed of memory.
    """
    source = np.arange(PROBE_BYTES // 4, dtype=np.int32)
    addend = np.ones_like(source)
    target = np.zeros_like(source)
    return {
        "copy": lambda: np.copyto(target, source),
        "triad": lambda: np.add(source, addend, out=target),
        "read": source.max,
    }


def description() -> dict[str, str]:
    """What a reader of the figures needs to know of machine and build."""
    return {
        "cpu": cpu_model(),
        "isa": _native.active_isa(),
        "compiler": _native.compiler(),
        "numpy": np.__version__,
    }


def cpu_model() -> str:
    """Model name, family and model number; the name alone is often just a brand."""
    facts: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    name = facts.get("model name", "unknown CPU")
    numbers = [facts[key] for key in ("cpu family", "model", "stepping") if key in facts]
    return f"{name} ({'/'.join(numbers)})" if numbers else name


def give_back_pages() -> None:
    """Has the C library give back what is freed: a payload is not to be in the next one's peak."""
    ctypes.CDLL(None).malloc_trim(0)


# --- memory ------------------------------------------------------------------------------


def available_bytes() -> int:
    """What can be taken without swapping: the kernel's estimate, or what a container may still."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    found = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if limit.exists() and used.exists() and (text := limit.read_text().strip()) != "max":
        found = min(found, int(text) - int(used.read_text()))
    return max(found, 0)


def memory(field: str, process: int | str = "self") -> int:
    """A field of /proc/PID/status in bytes: VmRSS is what is resident, VmHWM the most that was."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) << 10
    raise OSError(f"/proc/{process}/status has no {field}")


def forget_peak() -> None:
    """Starts VmHWM of this process anew, at what is resident now (proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")
