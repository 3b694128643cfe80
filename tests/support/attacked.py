"""A coordinator in a process of its own, and honest sites: what an attack costs can be told."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from support.consortium import Consortium, make_consortium
from support.processes import start
from support.tiny_trainer import TinyTrainer
from veilsum.control import RunSpec, RunStatus
from veilsum.model import ModelLayout, result_digest
from veilsum.secagg import LocalPolicy
from veilsum.site.bounds import TaskBounds
from veilsum.transport.checkpoints import model_to_bytes
from veilsum.transport.limits import LimitSettings
from veilsum.transport.operator import OperatorClient
from veilsum.transport.site_app import serve_site

HONEST = ("a", "b", "c")
HOSTILE = "m"
MODEL = {
    "w": np.zeros((50, 100), np.float32),
    "steps": np.array([4, 6], np.int64),
}
LAYOUT = ModelLayout.from_arrays(MODEL)
BYTES = model_to_bytes(LAYOUT, MODEL)
# How often somebody may call is under test elsewhere.
LIMITS = LimitSettings(
    calls=256,
    calls_at_once=1 << 20,
    calls_per_s=1 << 20,
    messages_at_once=1 << 20,
    joins_at_once=1 << 20,
)


@dataclass
class Attacked:
    """A coordinator in a process of its own, and who is against it."""

    consortium: Consortium
    folder: Path
    process: subprocess.Popen[str]
    port: int
    operator: OperatorClient
    frames: dict[str, list[bytes]] = field(default_factory=dict)
    sent: int = 0  # mutations so far

    def memory(self) -> int:
        """The most that the coordinator has had in memory, bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) << 10

    def cpu_seconds(self) -> float:
        """Processor time of the coordinator so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def errors(self) -> str:
        """What the coordinator logged of failures inside it."""
        logs = (self.folder / "logs").glob("coordinator-*.log")
        lines = [line for log in logs for line in log.read_text().splitlines()]
        return "\n".join(line for line in lines if "level=error" in line)

    async def run(self, spec: RunSpec, model: bytes = BYTES) -> str:
        """Submits a run; its id."""
        run = await asyncio.to_thread(self.operator.submit, spec, model)
        return run.run_id

    async def ended(self, run_id: str) -> RunStatus:
        """What became of a run, as soon as it has ended."""
        await asyncio.to_thread(lambda: list(self.operator.watch(run_id)))
        return await asyncio.to_thread(self.operator.get, run_id)


@contextmanager
def attacked(folder: Path, **change: Any) -> Iterator[Attacked]:
    """With the settings of a coordinator that are to be other than usual."""
    consortium = make_consortium(folder / "consortium", (*HONEST, HOSTILE))
    change = {"limits": LIMITS, "reconnect_s": 600.0, **change}
    settings = consortium.coordinator_settings(folder / "state", **change)
    process = start("coordinator", settings, folder / "logs")
    assert process.stdout is not None
    try:
        port = int(process.stdout.readline())
        with OperatorClient(consortium.operator_settings(port)) as operator:
            yield Attacked(consortium, folder, process, port, operator)
    finally:
        process.kill()
        process.communicate()


@asynccontextmanager
async def honest_sites(target: Attacked) -> AsyncIterator[None]:
    """They take part in any task that starts from the model."""
    policy = LocalPolicy(start_models=frozenset({result_digest(LAYOUT, MODEL)}))
    bounds = TaskBounds(plain_rounds=True)
    stop = asyncio.Event()
    serving = []
    for number, name in enumerate(HONEST):
        settings = target.consortium.site_settings(name, target.port, bounds=bounds, policy=policy)
        serving.append(asyncio.create_task(serve_site(settings, TinyTrainer(number), stop=stop)))
    try:
        yield
    finally:
        stop.set()
        await asyncio.gather(*serving)
