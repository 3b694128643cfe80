"""Times calls in turn, round by round, and says what the ratios are.

A shared machine drifts within seconds; what is measured side by side drifts together, so ratios
are taken inside a round and the median of the rounds is reported.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

Call = Callable[[], object]
Timer = Callable[[], float]
WARMUP_ROUNDS = 2
_CLOCK_STEP = 1e-9


def seconds(call: Call, timer: Timer) -> float:
    """Time of one call."""
    began = timer()
    call()
    return elapsed(began, timer)


def elapsed(began: float, timer: Timer) -> float:
    """Seconds that have passed, at least a step of the clock: a processor's may stand still during
    a short call, and ratios need a time."""
    return max(timer() - began, _CLOCK_STEP)


@dataclass
class Rounds:
    """Seconds of every call, in the order of the rounds."""

    calls: Mapping[str, Call]
    timer: Timer = time.perf_counter
    taken: dict[str, list[float]] = field(default_factory=dict)

    def run(self) -> None:
        """One round: each call once."""
        for name, call in self.calls.items():
            self.taken.setdefault(name, []).append(seconds(call, self.timer))


def paired(theirs: Sequence[float], ours: Sequence[float]) -> float:
    """How many times faster ours is: the median over rounds."""
    return statistics.median(t / o for t, o in zip(theirs, ours, strict=True))


def spread(times: Sequence[float]) -> float | None:
    """Distance between the quartiles, as a share of the median; None of fewer than 4 times."""
    if len(times) < 4:
        return None
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
    return (high - low) / middle
