"""One plain round of very many sites: real gRPC with mutual TLS on loopback, int8 updates.

    python bench/thousand_sites.py                                1,000 sites, 10^6 parameters
    python bench/thousand_sites.py --sites 60 --parameters 10240  a small one
    python bench/thousand_sites.py --json                         for machines

The coordinator is a process of its own; all sites are tasks of this one, each with a connection
of its own, and upload at once. The digests of mean and new model are compared with those of exact
arithmetic before anything is reported (light_sites.py).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from light_sites import RATE, LightSite, Updates

from veilsum.bench.served import (
    MIB,
    Consortium,
    WatchedCoordinator,
    allow_files,
    join,
    run_to_its_end,
)
from veilsum.control import Deadlines, RunSpec
from veilsum.transport.checkpoints import save_model

DEADLINE_S = 3000.0
FETCHING = 16  # models in memory at a time


@dataclass(frozen=True)
class Outcome:
    """What was measured."""

    sites: int
    parameters: int
    joining_s: float
    round_s: float
    median_upload_s: float
    received_bytes: int
    peak_bytes: int
    idle_bytes: int
    open_files: int

    @property
    def bound_bytes(self) -> int:
        """Twice the model in f32, 1 MiB per open stream, 256 MiB."""
        return 2 * 4 * self.parameters + self.sites * MIB + 256 * MIB

    def facts(self) -> dict[str, float]:
        """For people and machines."""
        sent = 4 * self.sites * self.parameters
        return {
            "sites": self.sites,
            "parameters": self.parameters,
            "seconds to connect all": round(self.joining_s, 2),
            "seconds of the round": round(self.round_s, 2),
            "median seconds of an upload": round(self.median_upload_s, 2),
            "GB received": round(self.received_bytes / 1e9, 3),
            "GB sent": round(sent / 1e9, 3),
            "GB/s": round((self.received_bytes + sent) / self.round_s / 1e9, 3),
            "coordinator, MiB resident when idle": self.idle_bytes // MIB,
            "coordinator, peak MiB resident": self.peak_bytes // MIB,
            "bound, MiB": self.bound_bytes // MIB,
            "coordinator, open files": self.open_files,
        }


def weight_of(number: int) -> int:
    """Weights differ, so that a mix-up shows."""
    return 1 + number * 7919 % 1000


async def measure(folder: Path, sites: int, parameters: int) -> Outcome:
    """One round; raises unless the result is the exact one."""
    names = [f"site-{number:04}" for number in range(sites)]
    weights = [weight_of(number) for number in range(sites)]
    consortium = Consortium.of(folder / "consortium", names)
    updates = Updates(parameters)
    spec = RunSpec(
        "thousand-sites",
        masked=False,
        codec="int8",
        min_sites=sites,
        server_learning_rate=RATE,
        deadlines=Deadlines(join_s=DEADLINE_S, inputs_s=DEADLINE_S),
    )
    with WatchedCoordinator(consortium.coordinator_settings(folder / "state"), folder) as watched:
        start = watched.state / "models" / "start.safetensors"
        save_model(start, updates.layout, updates.model())
        sampling = asyncio.create_task(watched.sample())
        began = time.perf_counter()
        connections = await join(consortium, watched.port, names)
        joined = time.perf_counter()
        fetching, turn = asyncio.Semaphore(FETCHING), asyncio.Semaphore(sites)
        light = [
            LightSite(name, number, weights[number], updates, fetching, turn)
            for number, name in enumerate(names)
        ]
        work = (consortium, watched.port, spec, start.name)
        run = asyncio.create_task(asyncio.to_thread(run_to_its_end, *work))
        await asyncio.gather(
            *(one.take_part(connection) for one, connection in zip(light, connections, strict=True))
        )
        ended = time.perf_counter()
        status = await run
        sampling.cancel()
        for connection in connections:
            await connection.__aexit__()
        updates.check(status, watched.state, weights, masked=False)
        return Outcome(
            sites,
            parameters,
            joined - began,
            ended - joined,
            statistics.median(one.upload_s for one in light),
            sum(status.rounds[0].bytes_in.values()),
            watched.peak_bytes(),
            watched.idle_bytes,
            watched.most_files,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sites", type=int, default=1000)
    parser.add_argument("--parameters", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="for state and spool; by default a new one")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    allow_files(3 * chosen.sites + 256)
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        outcome = asyncio.run(measure(Path(folder), chosen.sites, chosen.parameters))
    if chosen.json:
        print(json.dumps(outcome.facts()))
    else:
        for name, value in outcome.facts().items():
            print(f"{name:<40}{value:>12,}")
    if outcome.peak_bytes > outcome.bound_bytes:
        raise SystemExit("the coordinator took more memory than it may")


if __name__ == "__main__":
    main()
