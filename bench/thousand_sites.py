"""One plain round of very many sites: real gRPC with mutual TLS on loopback, int8 updates.

    python bench/thousand_sites.py                                1,000 sites, 10^6 parameters
    python bench/thousand_sites.py --sites 60 --parameters 10000  a small one
    python bench/thousand_sites.py --json                         for machines

The coordinator is a process of its own; all sites are tasks of this one, each with a connection
of its own, and upload at once. Values are chosen so that int8 holds them exactly, so the mean is
known from integers: its digest and the new model's are compared before anything is reported.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from served import MIB, Consortium, WatchedCoordinator, allow_files, digest_of, exact_means

from veilsum._native import Secret
from veilsum.control import (
    Deadlines,
    RoundClosed,
    RoundOpened,
    RunSpec,
    RunStatus,
    UpdateHeader,
)
from veilsum.model import ModelLayout
from veilsum.site.contribution import LocalUpdate, PlainContribution
from veilsum.transport.checkpoints import load_model, save_model
from veilsum.transport.client import Connection

BLOCK = 64  # coordinates that share a scale
UNIT = 2.0**-12
RATE = 0.5
DEADLINE_S = 3000.0
CONNECTING = 32  # handshakes at a time
FETCHING = 16  # models in memory at a time


@dataclass(frozen=True)
class Updates:
    """Site number -> update: the same codes, moved on by a block from site to site.

    Each block holds a code of ±127, so that its scale is UNIT and every value a whole code.
    """

    parameters: int
    codes: NDArray[np.int32] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        random = np.random.default_rng(1)
        codes = random.integers(-127, 128, self.parameters, dtype=np.int32)
        codes[::BLOCK] = np.where(codes[::BLOCK] < 0, -127, 127)
        object.__setattr__(self, "codes", codes)

    def of(self, number: int) -> NDArray[np.float32]:
        """Values of one site."""
        return (self._moved(number) * UNIT).astype(np.float32)

    def _moved(self, number: int) -> NDArray[np.int32]:
        whole = self.parameters - self.parameters % BLOCK
        by = number * BLOCK % whole
        return np.concatenate((np.roll(self.codes[:whole], by), self.codes[whole:]))

    def mean(self, weights: list[int]) -> NDArray[np.float32]:
        """The weighted mean over all sites, rounded once."""
        sums = np.zeros(self.parameters, np.int64)
        for number, weight in enumerate(weights):
            sums += self._moved(number) * np.int64(weight)
        return exact_means(sums, sum(weights), UNIT)


class LightSite:
    """A site without a trainer: joins, fetches the model, encodes, uploads, waits for the end."""

    def __init__(self, number: int, connection: Connection, updates: Updates, weight: int) -> None:
        self._number = number
        self._connection = connection
        self._updates = updates
        self._weight = weight

    async def take_part(self, name: str, fetching: asyncio.Semaphore) -> float:
        """Returns the seconds of the upload."""
        seconds = 0.0
        async for message in self._connection.messages():
            match message:
                case RoundOpened():
                    async with fetching:
                        await self._connection.fetch_model(message.round, max_bytes=1 << 40)
                    header, chunks = await asyncio.to_thread(self._encoded, name, message)
                    began = time.perf_counter()
                    if not await self._connection.push_update(header, chunks):
                        raise RuntimeError(f"the update of {name} does not count")
                    seconds = time.perf_counter() - began
                case RoundClosed(_, completed, reason):
                    if not completed:
                        raise RuntimeError(f"the round failed: {reason}")
                    return seconds
        raise RuntimeError("the coordinator hung up")

    def _encoded(self, name: str, opened: RoundOpened) -> tuple[UpdateHeader, Any]:
        assert opened.plain is not None
        contribution = PlainContribution(opened.plain, opened.round, name, threads=1)
        arrays = {"w": self._updates.of(self._number)}
        rounding = Secret.from_os(32)  # of no effect on whole codes
        [upload] = contribution.contribute(LocalUpdate(arrays, self._weight, {}, rounding))
        return upload.header, upload.chunks  # type: ignore[union-attr]


@dataclass(frozen=True)
class Outcome:
    """What was measured."""

    sites: int
    parameters: int
    joining_s: float
    round_s: float
    median_upload_s: float
    received_bytes: int
    sent_bytes: int
    peak_bytes: int
    idle_bytes: int
    open_files: int

    @property
    def bound_bytes(self) -> int:
        """Twice the model in f32, 1 MiB per open stream, 256 MiB."""
        return 2 * 4 * self.parameters + self.sites * MIB + 256 * MIB

    def facts(self) -> dict[str, float]:
        """For people and machines."""
        moved = self.received_bytes + self.sent_bytes
        return {
            "sites": self.sites,
            "parameters": self.parameters,
            "seconds to connect all": round(self.joining_s, 2),
            "seconds of the round": round(self.round_s, 2),
            "median seconds of an upload": round(self.median_upload_s, 2),
            "GB received": round(self.received_bytes / 1e9, 3),
            "GB sent": round(self.sent_bytes / 1e9, 3),
            "GB/s": round(moved / self.round_s / 1e9, 3),
            "coordinator, MiB resident when idle": self.idle_bytes // MIB,
            "coordinator, peak MiB resident": self.peak_bytes // MIB,
            "bound, MiB": self.bound_bytes // MIB,
            "coordinator, open files": self.open_files,
        }


def weight_of(number: int) -> int:
    """Weights differ, so that a mix-up shows."""
    return 1 + number * 7919 % 1000


async def measure(folder: Path, sites: int, parameters: int) -> Outcome:
    """One round; raises unless the result is the one that integers give."""
    names = [f"site-{number:04}" for number in range(sites)]
    consortium = Consortium.of(folder / "consortium", names)
    updates = Updates(parameters)
    model = {"w": np.linspace(-1, 1, parameters, dtype=np.float32)}
    layout = ModelLayout.from_arrays(model)
    settings = consortium.coordinator_settings(folder / "state")
    with WatchedCoordinator(settings, folder) as coordinator:
        save_model(coordinator.state / "models" / "start.safetensors", layout, model)
        sampling = asyncio.create_task(coordinator.sample())
        began = time.perf_counter()
        joining = asyncio.Semaphore(CONNECTING)

        async def join(name: str) -> Connection:
            async with joining:
                return await Connection(consortium.endpoint(name, coordinator.port)).__aenter__()

        connections = await asyncio.gather(*map(join, names))
        joined = time.perf_counter()
        fetching = asyncio.Semaphore(FETCHING)
        taking_part = [
            LightSite(number, connections[number], updates, weight_of(number)).take_part(
                name, fetching
            )
            for number, name in enumerate(names)
        ]
        run = asyncio.create_task(asyncio.to_thread(_run, consortium, coordinator.port, sites))
        uploads = await asyncio.gather(*taking_part)
        ended = time.perf_counter()
        status = await run
        sampling.cancel()
        for connection in connections:
            await connection.__aexit__()
        _check(status, coordinator.state, model["w"], updates.mean([*map(weight_of, range(sites))]))
        return Outcome(
            sites,
            parameters,
            joined - began,
            ended - joined,
            sorted(uploads)[sites // 2],
            sum(status.rounds[0].bytes_in.values()),
            sites * 4 * parameters,
            coordinator.peak_bytes(),
            coordinator.idle_bytes,
            coordinator.most_files,
        )


def _run(consortium: Consortium, port: int, sites: int) -> RunStatus:
    deadlines = Deadlines(join_s=DEADLINE_S, inputs_s=DEADLINE_S)
    spec = RunSpec(
        "thousand-sites",
        masked=False,
        codec="int8",
        min_sites=sites,
        server_learning_rate=RATE,
        deadlines=deadlines,
    )
    with consortium.operator_client(port) as operator:
        run = operator.submit(spec, "start.safetensors")
        for _ in operator.watch(run.run_id):
            pass
        return operator.get(run.run_id)


def _check(
    status: RunStatus, state: Path, model: NDArray[np.float32], mean: NDArray[np.float32]
) -> None:
    [record] = status.rounds
    layout = ModelLayout.from_arrays({"w": mean})
    expected = (model.astype(np.float64) + RATE * mean.astype(np.float64)).astype(np.float32)
    _, kept = load_model(state / "models" / status.run_id / "round-1.safetensors")
    found = (status.state, record.digest, record.model_hash, digest_of(layout, [kept["w"]]))
    new = digest_of(layout, [expected])
    if found != ("completed", digest_of(layout, [mean]), new, new):
        raise SystemExit(f"wrong result: {found}, {status.reason}")


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
