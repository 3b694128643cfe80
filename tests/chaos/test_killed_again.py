"""Processes that die again and again, at any time, in any order: coordinator and sites at once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from chaos.conftest import VICTIM
from support.chaos import AT_ONCE, SITES, Case, Scenario, as_undisturbed, failures, played
from support.lives import watching_sites
from support.site_lives import Step

# A schedule costs seconds: one that fails is not shrunk, and its name says all of it.
CHOSEN = {"phases": (Phase.generate,), "database": None}


def schedules(case: Case, count: int) -> st.SearchStrategy[list[Scenario]]:
    """Deaths of a coordinator, up to three, and of one or two sites, each up to twice."""
    steps = st.sampled_from(sorted(set(case.undisturbed.steps)))
    at_sites = st.sampled_from(sorted(set(case.undisturbed.site_steps[VICTIM])))
    scenario = st.builds(
        Scenario,
        st.lists(steps, min_size=1, max_size=3),
        st.dictionaries(
            st.sampled_from(SITES),
            st.lists(at_sites, min_size=1, max_size=2),
            min_size=1,
            max_size=2,
        ),
    )
    return st.lists(scenario, min_size=count, max_size=count)


def tried(case: Case, factory: pytest.TempPathFactory, examples: int, together: int) -> None:
    @settings(max_examples=examples, **CHOSEN)
    @given(schedules(case, together))
    def all_go_well(scenarios: Sequence[Scenario]) -> None:
        assert asyncio.run(failures(case, factory.mktemp("schedules"), scenarios)) == {}

    all_go_well()


@pytest.mark.slow
def test_whoever_dies_whenever_sums_are_right_and_masks_serve_once(
    case: Case, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tried(case, tmp_path_factory, 8, AT_ONCE)


def test_coordinator_and_sites_die_in_a_few_schedules(
    case: Case, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tried(case, tmp_path_factory, 1, 2)


async def second_deaths(case: Case, folder: Path, first: Sequence[Step]) -> list[Scenario]:
    """After each of these, every step at which a coordinator that recovers can die, and some at
    which it goes on."""
    at_once = asyncio.Semaphore(AT_ONCE)

    async def of(number: int, step: Step) -> list[Scenario]:
        async with at_once:
            outcome = await played(case, folder / str(number), Scenario([step]))
        if len(outcome.lives) == 1:  # nothing was left to do
            return []
        second = outcome.lives[1]
        assert second.recovered is not None
        recovering, later = second.steps[: second.recovered], second.steps[second.recovered :]
        return [Scenario([step, again]) for again in (*recovering, *later[3::40])]

    with watching_sites():
        found = await asyncio.gather(*(of(*numbered) for numbered in enumerate(first)))
    return [scenario for scenarios in found for scenario in scenarios]


@pytest.mark.slow
def test_killed_as_it_recovers_a_coordinator_recovers_again(case: Case, tmp_path: Path) -> None:
    first = case.undisturbed.steps[5::30]
    scenarios = asyncio.run(second_deaths(case, tmp_path / "first", first))
    assert len(scenarios) > len(first)
    assert asyncio.run(failures(case, tmp_path / "second", scenarios, as_undisturbed)) == {}
