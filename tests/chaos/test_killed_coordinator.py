"""A coordinator that is killed at any step goes on, and the result is that of an undisturbed run.

Every step is tried that an undisturbed run comes to: before and after each write that must last.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from support.chaos import Case, Scenario, as_undisturbed, failures


@pytest.mark.slow
def test_killed_at_any_step_a_coordinator_goes_on_to_the_same_result(
    case: Case, tmp_path: Path
) -> None:
    scenarios = [Scenario([step]) for step in case.undisturbed.steps]
    assert len(scenarios) > 50
    assert asyncio.run(failures(case, tmp_path, scenarios, as_undisturbed)) == {}


def test_killed_at_some_steps_a_coordinator_goes_on_to_the_same_result(
    case: Case, tmp_path: Path
) -> None:
    """Those at which more follows than a row: the ends of rounds, of uploads and of phases."""
    names = ("spool.sealed", "sum.replaced", "model.written", "database.committed")
    scenarios = [
        Scenario([step])
        for step in case.undisturbed.steps
        if step.name in names and step.occurrence in (1, 2, 8, 13)
    ]
    assert asyncio.run(failures(case, tmp_path, scenarios, as_undisturbed)) == {}
