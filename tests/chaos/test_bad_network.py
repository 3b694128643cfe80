"""Five sites, each behind a bad network of its own: nobody is lost, and nothing differs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
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
    weight_cap=10,
    # Updates are multiples of 1/256 and the scale is 2**15: stochastic rounding has nothing to do,
    # and the digest of a masked round depends on the set of updates alone.
    clip=(2**15 - 1) / 2**15,
    max_attempts=1,
    deadlines=Deadlines(*[55.0] * 7, cooldown_s=0.1),
)
PLAIN = replace(MASKED, masked=False, codec="f32", colluders=None)


@dataclass
class Federation:
    """A coordinator and what lies between it and each site."""

    consortium: Consortium
    state: Path
    port: int
    networks: Mapping[str, Proxy]

    async def operate(self, call: Callable[[OperatorClient], Any]) -> Any:
        """An operator's call, from beside the coordinator."""

        def work() -> Any:
            with OperatorClient(self.consortium.operator_settings(self.port)) as operator:
                return call(operator)

        return await asyncio.to_thread(work)

    async def run(self, spec: RunSpec) -> RunStatus:
        """A run from its submission to its end."""

        def whole(operator: OperatorClient) -> RunStatus:
            run = operator.submit(spec, BYTES)
            list(operator.watch(run.run_id))
            return operator.get(run.run_id)

        return await self.operate(whole)


@asynccontextmanager
async def federation(folder: Path) -> AsyncIterator[Federation]:
    """Everybody is there, and all networks are good."""
    consortium = make_consortium(folder / "consortium", SITES)
    state = folder / "state"
    async with AsyncExitStack() as stack:
        port = await stack.enter_async_context(serving(consortium.coordinator_settings(state)))
        networks = {site: await stack.enter_async_context(Proxy(port)) for site in SITES}
        stop = asyncio.Event()
        policy = LocalPolicy(start_models=frozenset({result_digest(LAYOUT, MODEL)}))
        running = []
        for number, (site, network) in enumerate(networks.items()):
            settings = consortium.site_settings(
                site, network.port, bounds=TaskBounds(plain_rounds=True), policy=policy
            )
            site_process = serve_site(settings, TinyTrainer(number), stop=stop)
            running.append(asyncio.create_task(site_process))
        try:
            yield Federation(consortium, state, port, networks)
        finally:
            for network in networks.values():
                network.go_on()
            stop.set()
            await asyncio.gather(*running)


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


@pytest.mark.parametrize("spec", [PLAIN, MASKED], ids=["plain", "masked"])
def test_a_round_of_five_sites_survives_five_bad_networks(spec: RunSpec, tmp_path: Path) -> None:
    async def main() -> None:
        async with federation(tmp_path) as there:
            calm = await there.run(spec)

            spoil(there.networks)
            stormy = asyncio.create_task(there.run(replace(spec, task_id="storm")))
            _, up, down, _, hole = there.networks.values()
            await asyncio.gather(up.happened("cut", 2), down.happened("cut", 2))
            await hole.happened("held")
            hole.go_on()
            ended = await stormy

            assert_as_if_nothing_had_happened(ended, calm)
            assert (up.count("connected"), down.count("connected")) >= (3, 3)

    run_async(main)
