"""Who takes part, and whether that is enough."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from support.federation import make_roster
from veilsum.control import RunSpec, TaskSettings
from veilsum.coordinator import policy
from veilsum.errors import ConfigError
from veilsum.model import ModelLayout

ROSTER = make_roster(("lyon", "basel", "quito", "kyoto"))
LAYOUT = ModelLayout.from_arrays({"weight": np.zeros(3, np.float32)})


def test_without_a_cohort_every_site_of_the_roster_is_invited() -> None:
    assert policy.cohort_of(RunSpec("task"), ROSTER) == ("basel", "kyoto", "lyon", "quito")


def test_a_cohort_is_sorted_by_the_bytes_of_the_names() -> None:
    spec = RunSpec("task", cohort=("quito", "basel", "lyon"))

    assert policy.cohort_of(spec, ROSTER) == ("basel", "lyon", "quito")


def test_a_round_waits_for_absent_sites_but_not_twice_in_vain() -> None:
    cohort = ("basel", "kyoto", "lyon")

    assert policy.missing_sites(cohort, {"kyoto"}, set()) == ("basel", "lyon")
    assert policy.missing_sites(cohort, {"kyoto"}, {"lyon"}) == ("basel",)


@pytest.mark.parametrize(
    ("count", "expected"),
    [(2, "2 of 12 sites joined, 3 are needed"), (3, None), (4, None)],
)
def test_a_shortfall_says_how_many_are_there_and_needed(count: int, expected: str | None) -> None:
    assert policy.shortfall("joined", count, 12, 3) == expected


def test_every_round_has_its_own_seed_and_the_first_has_the_runs() -> None:
    task = TaskSettings(epochs=2, seed=2**63 - 2)

    seeds = [policy.task_of_round(task, number).seed for number in (1, 2, 3)]

    assert seeds == [2**63 - 2, 2**63 - 1, 0]
    assert policy.task_of_round(task, 3) == TaskSettings(epochs=2, seed=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cohort": ("lyon", "paris", "basel")}, "'paris', which is not in the roster of 'test'"),
        ({"min_sites": 5}, "min_sites is 5, the cohort has 4 sites"),
        ({"colluders": 4}, "colluders must be 0 to 3"),
        ({"masked": False, "codec": "f33"}, "f33"),
        ({"masked": False, "codec": "i64"}, "'i64' is not for the updates of a plain round"),
        ({"masked": False, "codec": "ring40", "value_bits": 32}, "holds steps of 40 bits"),
        ({"masked": False, "codec": "ring12"}, "holds steps of 12 bits, value_bits is 16"),
        ({"masked": False, "overrange": "clip"}, "overrange 'clip' is for masked runs"),
    ],
)
def test_a_run_that_cannot_work_is_refused_before_any_traffic(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        policy.check_run(RunSpec("task", **settings), LAYOUT, ROSTER)


@pytest.mark.parametrize("codec", ["f32", "f16", "bf16", "int8", "ring16"])
def test_a_plain_run_may_use_any_codec_that_carries_an_update(codec: str) -> None:
    policy.check_run(RunSpec("task", masked=False, codec=codec), LAYOUT, ROSTER)
