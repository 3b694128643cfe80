"""Times our call and its yardsticks in turn, round by round, and says what the ratios are.

The machine's own copy, triad and read speeds are measured in every round too. A shared machine
drifts within seconds; what is measured side by side drifts together, so ratios are taken inside
a round and the median of the rounds is reported.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from veilsum.bench.machine import PROBE_BYTES
from veilsum.bench.timing import WARMUP_ROUNDS, Call, Rounds, Timer, paired


class Report:
    """report(ours, yardstick, bytes): see __call__."""

    def __init__(
        self,
        name: str,
        benchmark: Any,
        probes: Mapping[str, Call],
        lines: list[str],
        timer: Timer = time.perf_counter,
    ) -> None:
        self._name = name
        self._timer = timer
        self._benchmark = benchmark
        self._probes = probes
        self._lines = lines

    def __call__(
        self,
        ours: Call,
        yardstick: Call | None = None,
        size: int = 0,
        *,
        coordinates: int = 0,
        numpy: Call | None = None,
        torch: Call | None = None,
        peers: Mapping[str, Call] | None = None,
        rounds: int = 9,
    ) -> dict[str, float]:
        """Times `ours` against all yardsticks and keeps a line for the summary.

        Check the result before: this only measures.

        Args:
            yardstick, numpy, torch, peers: what others would do; torch with one thread.
            size: bytes that one call of ours must read or write at least.
            coordinates: values that one call consumes, summed over updates.
            rounds: timed ones; two more come first.

        Returns:
            The facts that are printed and kept in the JSON.
        """
        named = {"yardstick": yardstick, "numpy": numpy, "torch": torch, **(peers or {})}
        theirs = {name: call for name, call in named.items() if call is not None}
        beside = Rounds({**self._probes, **theirs}, self._timer)
        self._benchmark.pedantic(
            ours, setup=beside.run, rounds=rounds, warmup_rounds=WARMUP_ROUNDS, iterations=1
        )
        taken = {name: times[-rounds:] for name, times in beside.taken.items()}
        facts = self._facts(taken, list(theirs), size, coordinates)
        self._benchmark.extra_info.update(facts)
        self._lines.append(line(self._name, facts))
        return facts

    def _facts(
        self, taken: Mapping[str, list[float]], theirs: list[str], size: int, coordinates: int
    ) -> dict[str, float]:
        stats = self._benchmark.stats.stats
        facts = {"ms": stats.median * 1e3, "spread": stats.iqr / stats.median}
        if coordinates:
            facts["Gcoord/s"] = coordinates / stats.median / 1e9
        if size:
            facts["GB/s"] = size / stats.median / 1e9
            for probe in self._probes:
                share = size / PROBE_BYTES * paired(taken[probe], stats.data)
                facts[f"of {probe}"] = share
        for name in theirs:
            facts[f"x {name}"] = paired(taken[name], stats.data)
        return facts


def line(name: str, facts: Mapping[str, float]) -> str:
    """One line of the summary."""
    shown = [f"{name:<58}{facts['ms']:9.2f} ms ±{facts['spread']:4.0%}"]
    shown += [f"{facts[unit]:7.2f} {unit}" for unit in ("GB/s", "Gcoord/s") if unit in facts]
    shown += [f"{value:5.0%} {key}" for key, value in facts.items() if key.startswith("of ")]
    shown += [f"{value:6.2f}{key}" for key, value in facts.items() if key.startswith("x ")]
    return " ".join(shown)
