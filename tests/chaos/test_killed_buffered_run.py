"""A buffered run whose coordinator is killed at any step goes on, and loses no update that counts.

Sites train as fast as they can, so whose update comes first is never known before: what each step
is made of is taken from its record, and must then be what the step says it is.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray

from support.chaos import LAYOUT, SITES, submit
from support.consortium import Consortium, make_consortium
from support.lives import Cast, Outcome, Step, play, watching_sites
from support.tiny_trainer import TinyTrainer
from veilsum import Aggregator
from veilsum.control import Deadlines, RoundRecord, RunSpec, TaskSettings
from veilsum.difference import model_difference
from veilsum.model import result_digest
from veilsum.transport.checkpoints import model_from_bytes

AT_ONCE = 4
SPEC = RunSpec(
    "chaos",
    rounds=5,
    masked=False,
    min_sites=1,
    buffer_size=2,
    max_staleness=2,
    deadlines=Deadlines(inputs_s=120),
)

Models = Mapping[int, Mapping[str, NDArray[Any]]]


@dataclass(frozen=True)
class Case:
    """A submitted run, and the steps of its coordinator if it is not killed."""

    consortium: Consortium
    template: Path
    steps: tuple[Step, ...]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("buffered")
    consortium, template = make_consortium(folder / "consortium", SITES), folder / "template"

    async def main() -> Outcome:
        await submit(consortium, template, SPEC)
        return await play(consortium, template, folder, Cast(SITES))

    with watching_sites():
        undisturbed = asyncio.run(main())
    assert list(wrongs(undisturbed)) == []
    return Case(consortium, template, undisturbed.steps)


def wrongs(outcome: Outcome) -> Iterator[str]:
    """What must never be."""
    status, records = outcome.status, outcome.status.rounds
    if status.state != "completed":
        yield f"{status.state}: {status.reason}"
        return
    models = {
        number: model_from_bytes(outcome.models[f"round-{number}.safetensors"])[1]
        for number in range(len(records) + 1)
    }
    for record in records:
        yield from _wrong_in_step(record, models)
    summed = Counter(
        (update.site, update.version + 1) for record in records for update in record.updates
    )
    yield from (f"{update} counts twice" for update, times in summed.items() if times > 1)
    counted = {(site, round_id.number) for site, round_id in outcome.witness.counted}
    yield from (f"{update} is lost" for update in counted - set(summed))
    if outcome.left_over:
        yield f"left over: {outcome.left_over}"


def _wrong_in_step(record: RoundRecord, models: Models) -> Iterator[str]:
    number, mean = record.round.number, Aggregator(LAYOUT)
    for update in record.updates:
        model, task = models[update.version], TaskSettings(seed=update.version)
        trained = TinyTrainer(SITES.index(update.site)).fit(model, task, lambda fraction: None)
        staleness = number - 1 - update.version
        mean.add(
            model_difference(LAYOUT, trained.arrays, model),
            weight=SPEC.buffering.counted(trained.weight, staleness),
            site=f"{update.site} {update.version}",
        )
        if not staleness == update.staleness <= SPEC.max_staleness:
            yield f"step {number} has an update of staleness {staleness}"
    if record.digest != mean.finish().digest:
        yield f"step {number} is not the mean of its updates"
    if record.model_hash != result_digest(LAYOUT, models[number]):
        yield f"step {number} led to another model"


async def failures(case: Case, folder: Path, deaths: Sequence[Step]) -> dict[str, str]:
    """Plays with each death, a few at a time; those after which something is wrong."""
    found: dict[str, str] = {}
    at_once = asyncio.Semaphore(AT_ONCE)

    async def one(last: Step) -> None:
        async with at_once:
            where = folder / str(last)
            where.mkdir()
            try:
                async with asyncio.timeout(40):
                    outcome = await play(
                        case.consortium, case.template, where, Cast(SITES), (last,)
                    )
                wrong = "; ".join(wrongs(outcome))
            except TimeoutError:
                wrong = "it stands still"
            if wrong:
                found[str(last)] = wrong

    with watching_sites():
        await asyncio.gather(*(one(last) for last in deaths))
    return found


@pytest.mark.slow
def test_killed_at_any_step_a_buffered_run_loses_nothing(case: Case, tmp_path: Path) -> None:
    assert len(case.steps) > 100
    assert asyncio.run(failures(case, tmp_path, case.steps)) == {}
