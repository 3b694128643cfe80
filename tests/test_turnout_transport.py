"""Late updates and sites that come back, over gRPC: a coordinator, sites and an operator."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from support.consortium import Consortium, make_consortium
from support.proxy import Proxy
from support.serving import SECONDS, operating, run_async, serving
from support.tiny_trainer import TinyTrainer
from veilsum.control import RunEvent, RunSpec, TaskSettings
from veilsum.model import ModelLayout
from veilsum.site.bounds import TaskBounds
from veilsum.site.trainer import Arrays, Report, TrainingResult
from veilsum.transport.checkpoints import model_to_bytes
from veilsum.transport.operator import OperatorClient
from veilsum.transport.site_app import serve_site

SITES = ("a", "b", "c", "d")
MODEL = {"w": np.linspace(-1, 1, 700, dtype=np.float32)}
LAYOUT = ModelLayout.from_arrays(MODEL)
SPEC = RunSpec("tiny", masked=False, min_sites=2, weight_cap=10)


class Gates:
    """What trainers wait for: (site, round) may go on. Those that nobody closed are open."""

    def __init__(self, *closed: tuple[str, int]) -> None:
        self._closed = {gate: threading.Event() for gate in closed}

    def open(self, *gates: tuple[str, int]) -> None:
        for gate in gates:
            self._closed[gate].set()

    def open_all(self) -> None:
        self.open(*self._closed)

    def wait(self, site: str, number: int) -> None:
        gate = self._closed.get((site, number))
        assert gate is None or gate.wait(SECONDS)


class GatedTrainer(TinyTrainer):
    """Trains in a round once its gate is open; knows in which it was asked to."""

    def __init__(self, site: str, gates: Gates) -> None:
        super().__init__(SITES.index(site))
        self._site, self._gates = site, gates
        self.asked: list[int] = []

    def fit(self, model: Arrays, task: TaskSettings, report: Report) -> TrainingResult:
        number = task.seed + 1
        self.asked.append(number)
        self._gates.wait(self._site, number)
        return super().fit(model, task, report)


class Federation:
    """A coordinator behind a proxy, so that it can be another one on another port."""

    def __init__(self, consortium: Consortium, folder: Path, proxy: Proxy) -> None:
        self.consortium = consortium
        self.proxy = proxy
        self.trainers: dict[str, GatedTrainer] = {}
        self._settings = consortium.coordinator_settings(folder / "state")
        self._coordinator = AsyncExitStack()
        self._sites: dict[str, tuple[asyncio.Event, asyncio.Task[None]]] = {}

    async def start(self) -> None:
        port = await self._coordinator.enter_async_context(serving(self._settings))
        self.proxy.target = port
        self.operator = await self._coordinator.enter_async_context(
            operating(self.consortium, port)
        )

    async def stop(self) -> None:
        await self._coordinator.aclose()
        self.proxy.target = None

    def start_site(self, site: str, gates: Gates) -> None:
        stop, trainer = asyncio.Event(), GatedTrainer(site, gates)
        settings = self.consortium.site_settings(
            site, self.proxy.port, bounds=TaskBounds(plain_rounds=True)
        )
        self.trainers[site] = trainer
        self._sites[site] = stop, asyncio.create_task(serve_site(settings, trainer, stop=stop))

    async def stop_site(self, site: str) -> None:
        stop, task = self._sites.pop(site)
        stop.set()
        await task

    async def until(self, run_id: str, happened: Callable[[RunEvent], bool]) -> None:
        def watch(operator: OperatorClient) -> bool:
            return any(happened(event) for event in operator.watch(run_id))

        assert await asyncio.to_thread(watch, self.operator)


@asynccontextmanager
async def federation(folder: Path, gates: Gates) -> AsyncIterator[Federation]:
    consortium = make_consortium(folder / "consortium", SITES)
    async with Proxy(None) as proxy:
        made = Federation(consortium, folder, proxy)
        try:
            await made.start()
            for site in SITES:
                made.start_site(site, gates)
            yield made
        finally:
            gates.open_all()
            for site in list(made._sites):
                await made.stop_site(site)
            await made.stop()


def detail(text: str) -> Callable[[RunEvent], bool]:
    return lambda event: text in event.detail


def ended(number: int) -> Callable[[RunEvent], bool]:
    return lambda event: event.kind == "round" and event.round_number == number


@pytest.mark.parametrize("restarted", [False, True])
def test_an_update_that_misses_its_round_is_in_the_next_also_if_the_coordinator_starts_again(
    tmp_path: Path, restarted: bool
) -> None:
    fast = [("a", 2), ("b", 2)]
    gates = Gates(("d", 1), *fast)
    spec = RunSpec("tiny", masked=False, rounds=3, quorum=3, min_sites=2, late="next")

    async def main() -> None:
        async with federation(tmp_path, gates) as there:
            run = await asyncio.to_thread(
                there.operator.submit, spec, model_to_bytes(LAYOUT, MODEL)
            )
            await there.until(run.run_id, ended(1))
            if restarted:
                await there.stop()
                await there.start()
            gates.open(("d", 1))
            await there.until(run.run_id, detail("delivered, late: of round 1"))
            gates.open(*fast)
            await there.until(run.run_id, lambda event: event.kind == "run")

            status = await asyncio.to_thread(there.operator.get, run.run_id)
            first, second, _ = status.rounds
            assert status.state == "completed"
            assert first.sites == ("a", "b", "c")
            assert second.late == ("d",)
            assert "d" in second.sites
            assert there.trainers["d"].asked[:2] == [1, 3]  # once, and not in round 2

    run_async(main)


def test_a_site_whose_process_begins_anew_is_in_the_same_plain_round_again(tmp_path: Path) -> None:
    gates = Gates(("a", 1), ("d", 1))

    async def main() -> None:
        async with federation(tmp_path, gates) as there:
            run = await asyncio.to_thread(
                there.operator.submit, SPEC, model_to_bytes(LAYOUT, MODEL)
            )
            await there.until(run.run_id, detail("delivered"))
            await there.stop_site("d")
            await there.until(run.run_id, detail("dropped: "))
            there.start_site("d", Gates())
            await there.until(run.run_id, detail("is back, and invited again"))
            gates.open(("a", 1))
            await there.until(run.run_id, lambda event: event.kind == "run")

            (record,) = (await asyncio.to_thread(there.operator.get, run.run_id)).rounds
            assert (record.sites, record.dropped) == (SITES, {})

    run_async(main)


def test_a_coordinator_that_starts_again_has_drawn_the_same_sites(tmp_path: Path) -> None:
    """Of six pairs it could have drawn another: what it drew is in the event log."""
    gates = Gates(*((site, 1) for site in SITES))
    spec = RunSpec("tiny", masked=False, select=2, min_sites=2)

    async def main() -> None:
        async with federation(tmp_path, gates) as there:
            run = await asyncio.to_thread(
                there.operator.submit, spec, model_to_bytes(LAYOUT, MODEL)
            )
            await there.until(run.run_id, lambda event: event.phase == "updates")
            before = await asyncio.to_thread(there.operator.get, run.run_id)
            await there.stop()
            await there.start()
            after = await asyncio.to_thread(there.operator.get, run.run_id)
            gates.open_all()
            await there.until(run.run_id, lambda event: event.kind == "run")

            (record,) = (await asyncio.to_thread(there.operator.get, run.run_id)).rounds
            assert len(before.sites_waiting) == 2
            assert record.sites == after.sites_waiting == before.sites_waiting

    run_async(main)
