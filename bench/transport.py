"""Uploads and downloads of a plain round against gRPC that does nothing else, on loopback.

    python bench/transport.py                            one stream and twelve, 64 MB each
    python bench/transport.py --folder /dev/shm          without a disk
    python bench/transport.py --streams 1 4 --megabytes 16 --repeats 3 --json

What is measured is in python/veilsum/bench/grpc_transport.py; `veilsum bench` shows it beside the
rest. "processor" is the time of the serving process alone, which hardly depends on what else the
machine does. Medians are shown.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from veilsum.bench.grpc_transport import Compared, Cost, measure
from veilsum.bench.served import allow_files


def facts(found: Compared) -> dict[str, Any]:
    """One line."""
    size = found.size / 1e9
    ratio = _median(found.raw) / _median(found.ours)
    return {
        "streams": found.streams,
        "way": found.way,
        **_rates("", found.ours, size),
        **_rates("raw ", found.raw, size),
        "of raw": round(ratio, 2),
        "small call ms": round(1000 * found.small_s, 2),
    }


def _median(costs: Sequence[Cost]) -> float:
    return statistics.median(cost.seconds for cost in costs)


def _rates(name: str, costs: Sequence[Cost], size: float) -> dict[str, float]:
    processor = statistics.median(cost.processor_s for cost in costs)
    return {
        f"{name}GB/s": round(size / _median(costs), 3),
        f"{name}processor s/GB": round(processor / size, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 12])
    parser.add_argument("--megabytes", type=int, default=64, help="of each model and update")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="for state and spool; by default a new one")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    allow_files(1024)
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        found = asyncio.run(measure(Path(folder), chosen.streams, chosen.megabytes, chosen.repeats))
    for line in map(facts, found):
        print(json.dumps(line) if chosen.json else "  ".join(f"{k} {v}" for k, v in line.items()))


if __name__ == "__main__":
    main()
