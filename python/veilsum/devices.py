"""What this build can sum on."""

from __future__ import annotations

import os
from dataclasses import dataclass

from veilsum import _native

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
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0))


def backends() -> tuple[BackendInfo, ...]:
    """The backends of this build on this machine.

    Raises:
        ConfigError: VEILSUM_ISA names a level this CPU or build does not have.
    """
    isa = _native.active_isa()
    threads = available_threads()
    return (BackendInfo("cpu", f"{_ISA_WORDS.get(isa, isa)} ({isa}), {threads} threads"),)
