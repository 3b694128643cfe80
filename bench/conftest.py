"""What every benchmark shares: the machine's own speed, and how results are shown."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from veilsum import _native

ROUNDS = 9
_COPY_BYTES = 256 << 20
_LINES = pytest.StashKey[list[str]]()


@dataclass(frozen=True)
class Measured:
    """Seconds of one call: median and the spread between the quartiles."""

    median: float
    spread: float


def measure(call: Callable[[], object]) -> Measured:
    """Times a call after two warm-up calls."""
    for _ in range(2):
        call()
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    quartiles = statistics.quantiles(seconds, n=4)
    return Measured(statistics.median(seconds), quartiles[2] - quartiles[0])


@pytest.fixture(scope="session")
def copy_speed() -> float:
    """Bytes per second of a memory copy in this very run, counted once per byte copied."""
    source = np.ones(_COPY_BYTES, np.uint8)
    target = np.empty_like(source)
    return _COPY_BYTES / measure(lambda: np.copyto(target, source)).median


@pytest.fixture
def report(
    request: pytest.FixtureRequest, benchmark: Any, copy_speed: float
) -> Callable[[Callable[[], object], Callable[[], object], int], None]:
    """report(ours, yardstick, bytes): times both in turn and keeps a line for the summary."""

    def compare(ours: Callable[[], object], yardstick: Callable[[], object], size: int) -> None:
        theirs = measure(yardstick)
        benchmark.pedantic(ours, rounds=ROUNDS, warmup_rounds=2)
        mine = benchmark.stats.stats
        speed = size / mine.median
        facts = {
            "GB/s": speed / 1e9,
            "spread": mine.iqr / mine.median,
            "of a copy": speed / copy_speed,
            "times the yardstick": theirs.median / mine.median,
        }
        benchmark.extra_info.update(facts, isa=_native.active_isa(), compiler=_native.compiler())
        request.config.stash[_LINES].append(
            f"{request.node.name:<44}{facts['GB/s']:8.2f} GB/s ±{facts['spread']:4.0%}"
            f"{facts['of a copy']:9.0%} of a copy{facts['times the yardstick']:8.1f}x the yardstick"
        )

    return compare


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_LINES] = []


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    terminalreporter.section("speed")
    terminalreporter.write_line(f"kernels {_native.active_isa()}, {_native.compiler()}")
    for line in config.stash[_LINES]:
        terminalreporter.write_line(line)
