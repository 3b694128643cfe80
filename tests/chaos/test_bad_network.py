"""Five sites, each behind a bad network of its own: nobody is lost, and nothing differs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.consortium import Consortium, make_consortium
from support.proxy import Proxy
from support.serving import run_async, serving
from support.tiny_trainer import TinyTrainer
from veilsum.control import Deadlines, RunSpec, RunStatus
from veilsum.model import ModelLayout, result_digest
from veilsum.secagg import LocalPolicy
from veilsum.site.bounds import TaskBounds
from veilsum.transport.checkpoints import model_to_bytes
from veilsum.transport.drain import Orders
from veilsum.transport.operator import OperatorClient
from veilsum.transport.site_app import serve_site

SITES = ("a", "b", "c", "d", "e")
# Uploads and downloads of several messages each.
MODEL = {"w": np.zeros((600, 1000), np.float32), "steps": np.array([4, 6], np.int64)}
LAYOUT = ModelLayout.from_arrays(MODEL)
BYTES = model_to_bytes(LAYOUT, MODEL)
# All five or none: a site that a network costs the round would show.
MASKED = RunSpec(
    task_id="calm",
    min_sites=5,
    colluders=1,
    # Updates are multiples of 1/256, and with a weight of 10 the scale is 2**14: chance in rounding
    # has nothing to do, and the digest of a masked round depends on the set of updates alone.
    weight_cap=20,
    clip=(2**15 - 1) / 2**15,
    max_attempts=1,
    deadlines=Deadlines(*[55.0] * 7, cooldown_s=0.1),
)
PLAIN = replace(MASKED, masked=False, codec="f32", colluders=None)


class Federation:
    """A coordinator and what lies between it and each site. Use federation()."""

    def __init__(self, consortium: Consortium, state: Path) -> None:
        self.consortium = consortium
        self.networks: dict[str, Proxy] = {}
        self._settings = consortium.coordinator_settings(state)
        self._port = 0
        self._orders = Orders()
        self._serving = AsyncExitStack()

    async def start(self) -> None:
        """A coordinator, somewhere."""
        self._orders = Orders()
        self._port = await self._serving.enter_async_context(serving(self._settings, self._orders))
        for network in self.networks.values():
            network.target = self._port

    async def stop(self) -> None:
        """Without waiting for anybody."""
        self._orders.at_once.set()
        await self._serving.aclose()
        for network in self.networks.values():
            network.target = None

    async def submit(self, spec: RunSpec) -> str:
        """An operator, beside the coordinator, submits a run; its id."""
        return await self._operate(lambda operator: operator.submit(spec, BYTES).run_id)

    async def ended(self, run_id: str) -> RunStatus:
        """What became of a run, when it is over."""

        def wait(operator: OperatorClient) -> RunStatus:
            list(operator.watch(run_id))
            return operator.get(run_id)

        return await self._operate(wait)

    async def delivered(self, run_id: str, times: int) -> None:
        """Waits until so many updates of a round are in."""

        def wait(operator: OperatorClient) -> None:
            for event in operator.watch(run_id):
                if event.phase in ("updates", "inputs") and event.sites_in == times:
                    return

        await self._operate(wait)

    async def _operate(self, call: Callable[[OperatorClient], Any]) -> Any:
        def work() -> Any:
            with OperatorClient(self.consortium.operator_settings(self._port)) as operator:
                return call(operator)

        return await asyncio.to_thread(work)


@asynccontextmanager
async def federation(folder: Path) -> AsyncIterator[Federation]:
    """Everybody is there, and all networks are good."""
    found = Federation(make_consortium(folder / "consortium", SITES), folder / "state")
    stop = asyncio.Event()
    async with AsyncExitStack() as stack:
        for site in SITES:
            found.networks[site] = await stack.enter_async_context(Proxy(None))
        await found.start()
        running = [
            asyncio.create_task(site_process(found, number, stop)) for number in range(len(SITES))
        ]
        try:
            yield found
        finally:
            for network in found.networks.values():
                network.go_on()
            stop.set()
            await asyncio.gather(*running)
            await found.stop()


async def site_process(there: Federation, number: int, stop: asyncio.Event) -> None:
    site = SITES[number]
    settings = there.consortium.site_settings(
        site,
        there.networks[site].port,
        bounds=TaskBounds(plain_rounds=True),
        policy=LocalPolicy(start_models=frozenset({result_digest(LAYOUT, MODEL)})),
    )
    await serve_site(settings, TinyTrainer(number), stop=stop)


def assert_as_if_nothing_had_happened(ended: RunStatus, calm: RunStatus) -> None:
    assert (ended.state, ended.reason) == ("completed", "")
    (record,), (expected,) = ended.rounds, calm.rounds
    assert (record.sites, record.dropped) == (SITES, {})
    assert record.digest == expected.digest


def spoil(networks: Mapping[str, Proxy]) -> None:
    """Each network becomes bad in its own way, from here on."""
    slow, up, down, narrow, hole = networks.values()
    slow.up.delay_s = slow.down.delay_s = 0.05
    up.times(2, up.up, 700_000, up.cut)  # in the middle of an upload, twice
    down.times(2, down.down, 900_000, down.cut)  # of a download
    narrow.up.bytes_per_s = narrow.down.bytes_per_s = 4e6
    hole.up.after(500_000, hole.hold)


slow = pytest.mark.slow


@pytest.mark.parametrize(
    "spec", [pytest.param(PLAIN, marks=slow, id="plain"), pytest.param(MASKED, id="masked")]
)
def test_a_round_of_five_sites_survives_five_bad_networks(spec: RunSpec, tmp_path: Path) -> None:
    async def main() -> None:
        async with federation(tmp_path) as there:
            calm = await there.ended(await there.submit(spec))

            spoil(there.networks)
            stormy = await there.submit(replace(spec, task_id="storm"))
            _, up, down, _, hole = there.networks.values()
            await asyncio.gather(up.happened("cut", 2), down.happened("cut", 2))
            await hole.happened("held")
            await there.delivered(stormy, 4)  # the others do not wait for what is in the hole
            hole.go_on()

            assert_as_if_nothing_had_happened(await there.ended(stormy), calm)
            assert min(up.count("connected"), down.count("connected")) >= 3

    run_async(main)


@pytest.mark.parametrize(
    "spec", [pytest.param(PLAIN, id="plain"), pytest.param(MASKED, marks=slow, id="masked")]
)
def test_a_coordinator_that_moves_in_the_middle_of_an_upload_is_found_again(
    spec: RunSpec, tmp_path: Path
) -> None:
    async def main() -> None:
        async with federation(tmp_path) as there:
            calm = await there.ended(await there.submit(spec))

            hole = there.networks["e"]
            hole.up.after(700_000, hole.hold)
            moved = await there.submit(replace(spec, task_id="moved"))
            await hole.happened("held")
            await there.delivered(moved, 4)
            await there.stop()
            await there.start()  # on another port, of the same state
            hole.cut()
            hole.go_on()

            assert_as_if_nothing_had_happened(await there.ended(moved), calm)

    run_async(main)
