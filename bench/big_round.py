"""One round of a large model, plain (int8) or masked: what the coordinator has in memory at most.

    python bench/big_round.py                         12 sites, 250 million parameters, both kinds
    python bench/big_round.py --kind masked --sites 5 --parameters 4000000 --tensors 10
    python bench/big_round.py --json                  a line per kind, for machines

Real gRPC with mutual TLS on loopback. The coordinator is a process of its own, measured by the
kernel; all sites are tasks of this one, and one at a time has its update in memory. The digests of
mean and new model are compared with those of exact arithmetic before anything is reported
(light_sites.py). The model's file, updates and sum need some 20 bytes of disk per parameter and
site.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from light_sites import CLIP, MASKED_WEIGHT, RATE, WEIGHT_CAP, LightSite, Updates, session_of

from veilsum.bench.served import MIB, Consortium, WatchedCoordinator, join, run_to_its_end
from veilsum.control import Deadlines, RunSpec
from veilsum.transport.checkpoints import save_model
from veilsum.transport.ledger_file import open_ledger
from veilsum.transport.tls import load_signing_key

DEADLINE_S = 3000.0
POOL_BYTES = 256 * MIB


@dataclass(frozen=True)
class Outcome:
    """What was measured of one kind of round."""

    kind: str
    sites: int
    parameters: int
    round_s: float
    received_bytes: int
    peak_bytes: int
    idle_bytes: int

    @property
    def bound_bytes(self) -> int:
        """Twice the model in f32, and 256 MiB."""
        return 2 * 4 * self.parameters + POOL_BYTES

    def facts(self) -> dict[str, str | float]:
        """For people and machines."""
        return {
            "kind": self.kind,
            "sites": self.sites,
            "parameters": self.parameters,
            "seconds of the round": round(self.round_s, 1),
            "GB received": round(self.received_bytes / 1e9, 3),
            "coordinator, MiB resident when idle": self.idle_bytes // MIB,
            "coordinator, peak MiB resident": self.peak_bytes // MIB,
            "bound, MiB": self.bound_bytes // MIB,
        }


def spec_of(kind: str, sites: int) -> RunSpec:
    """A round that needs every site."""
    return RunSpec(
        f"big-{kind}",
        masked=kind == "masked",
        codec="int8",
        min_sites=sites,
        clip=CLIP,
        weight_cap=WEIGHT_CAP,
        max_attempts=1,
        server_learning_rate=RATE,
        deadlines=Deadlines(*[DEADLINE_S] * 7),
    )


async def measure(folder: Path, kind: str, updates: Updates, sites: int) -> Outcome:
    """One round; raises unless the result is the exact one."""
    names = [f"site-{number:02}" for number in range(sites)]
    consortium = Consortium.of(folder / "consortium", names)
    settings = consortium.coordinator_settings(folder / "state")
    turn = asyncio.Semaphore(1)
    with ExitStack() as kept, WatchedCoordinator(settings, folder) as watched:
        start = watched.state / "models" / "start.safetensors"
        save_model(start, updates.layout, updates.model())
        light = []
        for number, name in enumerate(names):
            ledger = kept.enter_context(closing(open_ledger(folder / f"ledger-{name}"))).ledger()
            key = load_signing_key(consortium.sites[name].signing_key)
            masked = partial(session_of, name, key, consortium.roster, ledger)
            light.append(LightSite(name, number, MASKED_WEIGHT, updates, turn, turn, masked))
        connections = await join(consortium, watched.port, names)
        began = time.perf_counter()
        work = (consortium, watched.port, spec_of(kind, sites), start.name)
        run = asyncio.create_task(asyncio.to_thread(run_to_its_end, *work))
        await asyncio.gather(
            *(one.take_part(connection) for one, connection in zip(light, connections, strict=True))
        )
        round_s = time.perf_counter() - began
        status = await run
        for connection in connections:
            await connection.__aexit__()
        updates.check(status, watched.state, [MASKED_WEIGHT] * sites, masked=kind == "masked")
        received = sum(status.rounds[0].bytes_in.values())
        peak = watched.peak_bytes()
        return Outcome(kind, sites, updates.parameters, round_s, received, peak, watched.idle_bytes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", choices=("plain", "masked", "both"), default="both")
    parser.add_argument("--sites", type=int, default=12)
    parser.add_argument("--parameters", type=int, default=250_000_000)
    parser.add_argument("--tensors", type=int, default=25)
    parser.add_argument("--folder", type=Path, help="for state and spool; by default a new one")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    updates = Updates(chosen.parameters, chosen.tensors)
    too_much = []
    for kind in ("plain", "masked") if chosen.kind == "both" else (chosen.kind,):
        with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
            outcome = asyncio.run(measure(Path(folder), kind, updates, chosen.sites))
        if chosen.json:
            print(json.dumps(outcome.facts()), flush=True)
        else:
            for name, value in outcome.facts().items():
                print(f"{name:<40}{value:>14}", flush=True)
        if outcome.peak_bytes > outcome.bound_bytes:
            too_much.append(kind)
    if too_much:
        raise SystemExit(f"the coordinator took more memory than it may: {', '.join(too_much)}")


if __name__ == "__main__":
    main()
