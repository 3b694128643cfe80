"""A coordinator that is killed at any step goes on, and the result is that of an undisturbed run.

Every step is tried that an undisturbed run comes to: before and after each write that must last.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from support.consortium import Consortium, make_consortium
from support.lives import NO_TLS, Outcome, Step, play, start, watching_sites
from support.serving import run_async
from veilsum.control import Deadlines, RunSpec
from veilsum.model import ModelLayout
from veilsum.transport.checkpoints import model_to_bytes
from veilsum.transport.operator import OperatorClient

AT_ONCE = 4
SITES = ("basel", "kyoto", "lyon", "quito")
MODEL = {
    "w": np.linspace(-1, 1, 3000, dtype=np.float32),
    "seen": np.array([7], np.int64),
}
DEADLINES = Deadlines(
    join_s=20, keys_s=20, shares_s=20, inputs_s=20, votes_s=20, unmask_s=20, acks_s=20
)
SPECS = {
    "plain": RunSpec("chaos", rounds=2, masked=False, min_sites=4, deadlines=DEADLINES),
    "masked": RunSpec("chaos", rounds=2, min_sites=4, clip=0.5, deadlines=DEADLINES),
}


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Consortium:
    return make_consortium(tmp_path_factory.mktemp("consortium"), SITES)


async def submitted(consortium: Consortium, state: Path, spec: RunSpec) -> None:
    """A state directory with one run, whose coordinator was killed before any site came."""
    life = start(consortium.coordinator_settings(state, **NO_TLS))
    port = await life.until("port")
    who = {"name": "ann", "consortium": consortium.roster.consortium}
    client = OperatorClient(consortium.operator_settings(port, **NO_TLS, **who))
    model = model_to_bytes(ModelLayout.from_arrays(MODEL), MODEL)
    await asyncio.to_thread(client.submit, spec, model)
    client.close()
    life.end()


@dataclass(frozen=True)
class Case:
    """A submitted run, and what comes of it if nothing goes wrong."""

    consortium: Consortium
    template: Path
    undisturbed: Outcome


@pytest.fixture(scope="module", params=SPECS)
def case(
    request: pytest.FixtureRequest,
    consortium: Consortium,
    tmp_path_factory: pytest.TempPathFactory,
) -> Case:
    folder = tmp_path_factory.mktemp(request.param)
    template = folder / "template"
    outcomes: list[Outcome] = []

    async def main() -> None:
        await submitted(consortium, template, SPECS[request.param])
        outcomes.append(await play(consortium, template, folder / "undisturbed", SITES))

    with watching_sites():
        run_async(main)
    (undisturbed,) = outcomes
    assert undisturbed.status.state == "completed", undisturbed.status.reason
    assert [record.sites for record in undisturbed.status.rounds] == [SITES, SITES]
    return Case(consortium, template, undisturbed)


def wrongs(outcome: Outcome, expected: Outcome) -> Iterator[str]:
    """What is not as in an undisturbed run, or must never be."""
    status, witness = outcome.status, outcome.witness
    if status.state != "completed":
        yield f"{status.state}: {status.reason}"
    if outcome.digests != expected.digests or outcome.models != expected.models:
        yield "another result"
    for record in status.rounds:
        counted = {site for site, round_id in witness.counted if round_id == record.round}
        if not counted <= set(record.sites):
            yield f"round {record.round.number} lost updates of {counted - set(record.sites)}"
    if any(len(made) > 1 for made in witness.uploads.values()):
        yield "a mask served twice"
    if outcome.left_over:
        yield f"left over: {outcome.left_over}"


async def failures(case: Case, folder: Path, deaths: Sequence[Sequence[Step]]) -> dict[str, str]:
    """Plays with each series of deaths, a few at a time; those with another end."""
    found: dict[str, str] = {}
    at_once = asyncio.Semaphore(AT_ONCE)

    async def one(number: int, last: Sequence[Step]) -> None:
        async with at_once:
            where = folder / str(number)
            where.mkdir()
            playing = play(case.consortium, case.template, where, SITES, last)
            try:
                outcome = await asyncio.wait_for(playing, 25)
                wrong = "; ".join(wrongs(outcome, case.undisturbed))
            except TimeoutError:
                wrong = "it stands still"
            if wrong:
                found[" then ".join(map(str, last))] = wrong

    with watching_sites():
        await asyncio.gather(*(one(number, last) for number, last in enumerate(deaths)))
    return found


@pytest.mark.slow
def test_killed_at_any_step_a_coordinator_goes_on_to_the_same_result(
    case: Case, tmp_path: Path
) -> None:
    deaths = [(step,) for step in case.undisturbed.steps]
    assert len(deaths) > 50
    assert asyncio.run(failures(case, tmp_path, deaths)) == {}


def test_killed_at_some_steps_a_coordinator_goes_on_to_the_same_result(
    case: Case, tmp_path: Path
) -> None:
    """Those at which more follows than a row: the ends of rounds, of uploads and of phases."""
    names = ("spool.sealed", "sum.replaced", "model.written", "database.committed")
    deaths = [
        (step,)
        for step in case.undisturbed.steps
        if step.name in names and step.occurrence in (1, 2, 8, 13)
    ]
    assert asyncio.run(failures(case, tmp_path, deaths)) == {}
