"""A buffered run over gRPC: four sites at paces of their own, and a coordinator that dies."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from support.consortium import Consortium, make_consortium
from support.serving import operating, run_async, serving
from support.tiny_trainer import TinyTrainer
from veilsum import Aggregator
from veilsum.control import (
    BufferedUpdate,
    Deadlines,
    RoundRecord,
    RunEvent,
    RunSpec,
    RunStatus,
    TaskSettings,
)
from veilsum.difference import model_difference
from veilsum.model import ModelLayout, result_digest
from veilsum.site.bounds import TaskBounds
from veilsum.site.trainer import Arrays, Report, TrainingResult
from veilsum.transport.checkpoints import load_model, model_to_bytes
from veilsum.transport.operator import OperatorClient
from veilsum.transport.settings import CoordinatorSettings
from veilsum.transport.site_app import serve_site

SITES = ("a", "b", "c", "d")
MODEL = {"w": np.linspace(-1, 1, 700, dtype=np.float32).reshape(7, 100), "n": np.array(3, np.int64)}
LAYOUT = ModelLayout.from_arrays(MODEL)
SPEC = RunSpec(
    "tiny",
    rounds=4,
    masked=False,
    buffer_size=2,
    min_sites=1,
    weight_cap=100,
    deadlines=Deadlines(inputs_s=600.0),
)
# Who delivers what, one after the other: (site, round it trains for).
SCRIPT = [("a", 1), ("b", 1), ("c", 1), ("c", 2), ("d", 1), ("a", 2), ("b", 2), ("d", 3)]
# What each step is made of: (site, version, staleness).
STEPS = [
    [("a", 0, 0), ("b", 0, 0)],
    [("c", 0, 1), ("c", 1, 0)],
    [("a", 1, 1), ("d", 0, 2)],
    [("b", 1, 2), ("d", 2, 1)],
]


class Patient(TinyTrainer):
    """Ends the training for a round when it is told to."""

    def __init__(self, number: int) -> None:
        super().__init__(number, examples=10 + number)
        self._changed = threading.Condition()
        self.begun: list[int] = []
        self._may_end: set[int] = set()
        self._released = False

    def fit(self, model: Arrays, task: TaskSettings, report: Report) -> TrainingResult:
        number = task.seed + 1
        with self._changed:
            self.begun.append(number)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._released or number in self._may_end)
        return super().fit(model, task, report)

    def end(self, number: int) -> None:
        with self._changed:
            self._may_end.add(number)
            self._changed.notify_all()

    def release(self) -> None:
        with self._changed:
            self._released = True
            self._changed.notify_all()

    def wait_for(self, number: int) -> None:
        """Returns when the training for a round has begun."""
        with self._changed:
            assert self._changed.wait_for(lambda: number in self.begun, 30.0)


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Consortium:
    return make_consortium(tmp_path_factory.mktemp("consortium"), SITES)


@asynccontextmanager
async def training(consortium: Consortium, port: int) -> AsyncIterator[dict[str, Patient]]:
    """All sites, whose trainers wait."""
    trainers = {site: Patient(number) for number, site in enumerate(SITES)}
    stop = asyncio.Event()
    tasks = [
        asyncio.create_task(
            serve_site(
                consortium.site_settings(site, port, bounds=TaskBounds(plain_rounds=True)),
                trainer,
                stop=stop,
            )
        )
        for site, trainer in trainers.items()
    ]
    try:
        yield trainers
    finally:
        for trainer in trainers.values():
            trainer.release()
        stop.set()
        await asyncio.gather(*tasks)


async def deliver(
    trainers: dict[str, Patient], events: Iterator[RunEvent], script: list[tuple[str, int]]
) -> int:
    """Lets sites deliver, one after the other; the number of the last event that was seen."""
    number = 0
    for site, round_number in script:
        await asyncio.to_thread(trainers[site].wait_for, round_number)
        trainers[site].end(round_number)
        number = await _until(events, site)
    return number


async def _until(events: Iterator[RunEvent], site: str) -> int:
    """The number of the event that says that the site has delivered."""
    while True:
        event = await asyncio.to_thread(next, events)
        assert event.kind != "run", event.detail
        if event.site == site and event.detail.startswith("delivered"):
            return event.number


async def begin(operator: OperatorClient, trainers: dict[str, Patient]) -> str:
    """Submits the run, and returns when every site trains the initial model."""
    run = await asyncio.to_thread(operator.submit, SPEC, model_to_bytes(LAYOUT, MODEL))
    for trainer in trainers.values():
        await asyncio.to_thread(trainer.wait_for, 1)
    return run.run_id


def expected_digest(record: RoundRecord, models: Path) -> str:
    """Of the mean of a step's updates, from what its record says of them."""
    mean = Aggregator(LAYOUT)
    for update in record.updates:
        _, model = load_model(models / f"round-{update.version}.safetensors")
        trainer = Patient(SITES.index(update.site))
        trainer.release()
        trained = trainer.fit(model, TaskSettings(seed=update.version), lambda fraction: None)
        mean.add(
            model_difference(LAYOUT, trained.arrays, model),
            weight=SPEC.buffering.counted(trained.weight, update.staleness),
            site=f"{update.site} {update.version}",
        )
    return mean.finish().digest


def check(status: RunStatus, models: Path) -> None:
    assert (status.state, status.reason) == ("completed", "")
    found = [
        [(update.site, update.version, update.staleness) for update in record.updates]
        for record in status.rounds
    ]
    assert found == STEPS
    for record in status.rounds:
        assert record.digest == expected_digest(record, models)
        _, model = load_model(models / f"round-{record.round.number}.safetensors")
        assert record.model_hash == result_digest(LAYOUT, model)
    first = BufferedUpdate("a", 0, 0, 10, SPEC.buffering.counted(10, 0))
    assert status.rounds[0].updates[0] == first


def test_four_sites_train_at_their_own_paces(consortium: Consortium, tmp_path: Path) -> None:
    settings = consortium.coordinator_settings(tmp_path / "state")

    async def main() -> None:
        async with (
            serving(settings) as port,
            training(consortium, port) as trainers,
            operating(consortium, port) as operator,
        ):
            run_id = await begin(operator, trainers)
            events = operator.watch(run_id)
            await deliver(trainers, events, SCRIPT)
            await asyncio.to_thread(list, events)
            status = await asyncio.to_thread(operator.get, run_id)
        check(status, tmp_path / "state" / "models" / run_id)
        assert list((tmp_path / "state" / "spool").rglob("*.update")) == []

    run_async(main)


@asynccontextmanager
async def died(
    consortium: Consortium, folder: Path, cut: int
) -> AsyncIterator[tuple[CoordinatorSettings, str, dict[str, Patient], int]]:
    """A coordinator that died after so many updates of the script: the settings of the next, whose
    disk is what it left; the run, its sites, and the last event that was seen."""
    early = AsyncExitStack()
    settings = consortium.coordinator_settings(folder / "old")
    port = await early.enter_async_context(serving(settings))
    async with training(consortium, port) as trainers:
        async with operating(consortium, port) as operator:
            run_id = await begin(operator, trainers)
            last = await deliver(trainers, operator.watch(run_id), SCRIPT[:cut])
            shutil.copytree(folder / "old", folder / "new", ignore=shutil.ignore_patterns("*-shm"))
        await early.aclose()
        listen = f"127.0.0.1:{port}"
        later = consortium.coordinator_settings(folder / "new", listen=listen)
        yield later, run_id, trainers, last


@pytest.mark.parametrize("cut", [2, 5, 6])  # after a step, in one, and after the next
def test_a_coordinator_that_died_between_two_updates_goes_on_with_the_step(
    consortium: Consortium, tmp_path: Path, cut: int
) -> None:
    async def main() -> None:
        async with (
            died(consortium, tmp_path, cut) as (settings, run_id, trainers, last),
            serving(settings) as port,
            operating(consortium, port) as operator,
        ):
            events = operator.watch(run_id, after=last)
            await deliver(trainers, events, SCRIPT[cut:])
            await asyncio.to_thread(list, events)
            status = await asyncio.to_thread(operator.get, run_id)
            for trainer in trainers.values():
                assert trainer.begun == sorted(set(trainer.begun))  # nothing was trained twice
        check(status, tmp_path / "new" / "models" / run_id)
        assert list((tmp_path / "new" / "spool").rglob("*.update")) == []

    run_async(main)


def test_a_version_that_is_gone_after_a_restart_ends_the_run_with_the_reason(
    consortium: Consortium, tmp_path: Path
) -> None:
    """Of the initial model, which two sites still train."""

    async def main() -> None:
        async with died(consortium, tmp_path, 2) as (settings, run_id, _, _):
            (tmp_path / "new" / "models" / run_id / "round-0.safetensors").unlink()
            async with serving(settings) as port, operating(consortium, port) as operator:
                status = await asyncio.to_thread(operator.get, run_id)
        assert status.state == "aborted"
        assert status.reason == (
            "round 2: after a restart it cannot go on: cannot read the model "
            "round-0.safetensors: No such file or directory"
        )
        assert [record.completed for record in status.rounds] == [True, False]

    run_async(main)
