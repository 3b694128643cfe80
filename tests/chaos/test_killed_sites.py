"""A site that is killed in any phase costs a round at most that site, and comes back by itself.

It is started again at once, as a new process with the same ledger. A masked round goes on without
it, unless it counts its update already; a plain round lets it in again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos.conftest import VICTIM
from support.chaos import SITES, Case, Scenario, as_undisturbed, failures
from support.lives import Outcome
from support.site_lives import Step

# What it comes to before its update counts, and after.
BEFORE = (
    "keys.sending",
    "keys.sent",
    "shares.sending",
    "shares.sent",
    "training",
    "inputs.half",
)
AFTER = (
    "inputs.sent",
    "votes.sending",
    "votes.sent",
    "unmask.sending",
    "unmask.sent",
    "acks.sending",
    "acks.sent",
)
OTHERS = tuple(site for site in SITES if site != VICTIM)


def as_the_protocol_says(case: Case, scenario: Scenario, outcome: Outcome) -> Iterator[str]:
    """Whose updates the round in which the site died must sum, at its first attempt."""
    (step,) = scenario.sites[VICTIM]
    expected = OTHERS if step.name in BEFORE else SITES
    record = outcome.status.rounds[step.occurrence - 1]
    if outcome.status.state != "completed" or len(outcome.status.rounds) != case.spec.rounds:
        yield f"{outcome.status.state}: {outcome.status.reason}, {outcome.status.rounds}"
    elif record.sites != expected:
        yield f"the sum is of {record.sites}"


def scenarios_of(case: Case, names: tuple[str, ...]) -> list[Scenario]:
    steps = case.undisturbed.site_steps[VICTIM]
    return [Scenario(sites={VICTIM: [step]}) for step in steps if step.name in names]


@pytest.mark.slow
def test_a_masked_round_sums_a_killed_site_exactly_if_its_update_was_acknowledged(
    masked: Case, tmp_path: Path
) -> None:
    scenarios = scenarios_of(masked, (*BEFORE, *AFTER))
    assert len(scenarios) == masked.spec.rounds * len((*BEFORE, *AFTER))
    assert asyncio.run(failures(masked, tmp_path, scenarios, as_the_protocol_says)) == {}


def test_a_masked_round_sums_a_killed_site_that_had_voted_and_no_site_with_half_an_update(
    masked: Case, tmp_path: Path
) -> None:
    steps = (Step("inputs.half", 1), Step("votes.sent", 1))
    scenarios = [Scenario(sites={VICTIM: [step]}) for step in steps]
    assert asyncio.run(failures(masked, tmp_path, scenarios, as_the_protocol_says)) == {}


def test_a_plain_round_lets_a_killed_site_in_again(plain: Case, tmp_path: Path) -> None:
    scenarios = [Scenario(sites={VICTIM: [Step("inputs.half", 1)]})]
    assert asyncio.run(failures(plain, tmp_path, scenarios, as_undisturbed)) == {}


@pytest.mark.slow
def test_a_plain_round_lets_a_site_in_again_and_again(plain: Case, tmp_path: Path) -> None:
    half, trains = Step("inputs.half", 1), Step("training", 1)
    scenarios = [
        *scenarios_of(plain, ("training", "inputs.half", "inputs.sent")),
        Scenario(sites={VICTIM: [half, trains, half]}),
        Scenario(sites={site: [half, half] for site in SITES}),
        Scenario(sites={site: [trains] for site in SITES}),
    ]
    assert len(scenarios) == 3 * plain.spec.rounds + 3
    assert asyncio.run(failures(plain, tmp_path, scenarios, as_undisturbed)) == {}


@pytest.mark.slow
def test_a_record_torn_off_in_a_ledger_costs_nothing_but_the_round(
    case: Case, tmp_path: Path
) -> None:
    """What it stands for was never sent, and the process that follows goes on behind it."""
    scenarios = scenarios_of(case, ("ledger.torn",))
    assert len(scenarios) == (12 if case.spec.masked else 2)
    assert asyncio.run(failures(case, tmp_path, scenarios)) == {}
