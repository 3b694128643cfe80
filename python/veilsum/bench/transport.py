"""Transport over loopback: the product's uploads and downloads beside gRPC that does nothing."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from veilsum.bench import machine
from veilsum.bench.contenders import OURS
from veilsum.bench.grpc_transport import Compared, Cost, measure
from veilsum.bench.options import BenchOptions
from veilsum.bench.rows import Row
from veilsum.bench.served import allow_files
from veilsum.bench.sides import FEWEST_ROUNDS, MOST_ROUNDS
from veilsum.bench.timing import paired, spread

MEGABYTES = 64
_FILES = 1024
_CALLS = {"up": "PushUpdate", "down": "FetchModel"}
# What one round of one stream takes, about, for choosing how many there are.
_SECONDS_PER_GB = 4.0


def rows(options: BenchOptions, threads: int) -> Iterator[Row]:
    """One stream, and one for each site; each round must count every update."""
    allow_files(_FILES)
    megabytes = max(1, round(MEGABYTES * options.scale))
    streams = sorted({1, options.sites or 12})
    cost = 4 * sum(streams) * megabytes / 1e3 * _SECONDS_PER_GB
    repeats = min(max(int(options.seconds / cost), FEWEST_ROUNDS), MOST_ROUNDS)
    with tempfile.TemporaryDirectory() as folder:
        for found in asyncio.run(measure(Path(folder), streams, megabytes, repeats)):
            yield from _rows(found, megabytes, threads)


def _rows(found: Compared, megabytes: int, threads: int) -> Iterator[Row]:
    who = "1 stream" if found.streams == 1 else f"{found.streams} streams"
    case = f"{_CALLS[found.way]}, {who} of {megabytes} MB"
    ours, raw = _seconds(found.ours), _seconds(found.raw)
    for name, own, peak in ((OURS, ours, found.peak), ("raw gRPC", raw, found.raw_peak)):
        middle = statistics.median(own)
        share = statistics.median(copy / one for copy, one in zip(found.copies, own, strict=True))
        yield Row(
            "transport",
            case,
            "",
            name,
            ours=name == OURS,
            threads=threads,
            seconds=middle,
            clock="wall",
            spread=spread(own),
            gb_per_s=found.size / middle / 1e9,
            of_copy=found.size / machine.PROBE_BYTES * share,
            peak_bytes=peak,
            times={OURS: paired(own, ours)},
            rounds=len(own),
        )


def _seconds(costs: Sequence[Cost]) -> list[float]:
    return [cost.seconds for cost in costs]
