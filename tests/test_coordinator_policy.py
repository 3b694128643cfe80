"""Who takes part, and whether that is enough."""

from __future__ import annotations

import re
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


# --- turnout: checked against itself, then against the cohort ---------------------------


@pytest.mark.parametrize(
    ("settings", "closes_at", "invites"),
    [
        ({}, 0, 0),
        ({"quorum": 7}, 7, 0),
        ({"select": 7}, 0, 7),
        ({"select": 10, "over_select": 0.3}, 10, 13),
        ({"select": 100, "over_select": 0.07}, 100, 107),  # 100 * 0.07 is above 7
        ({"select": 10, "over_select": 0.01}, 10, 11),
        ({"quorum": 10, "over_select": 0.25}, 10, 13),
        ({"select": 10, "quorum": 8}, 8, 10),
        ({"select": 10, "quorum": 12, "over_select": 0.3}, 12, 13),
    ],
)
def test_a_turnout_says_how_many_are_invited_and_with_how_many_a_round_closes(
    settings: dict[str, Any], closes_at: int, invites: int
) -> None:
    turnout = RunSpec("task", **settings).turnout

    assert (turnout.closes_at, turnout.invites) == (closes_at, invites)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quorum": 2}, "quorum must be 0 (for none), or min_sites (3) or more, got 2"),
        ({"select": -1}, "select must be 0 (for none), or min_sites (3) or more, got -1"),
        ({"min_weight": -1}, "min_weight must be 0 or more, got -1"),
        ({"select": 5, "over_select": -0.1}, "over_select must be 0 to 10, got -0.1"),
        ({"select": 5, "over_select": float("nan")}, "over_select must be 0 to 10, got nan"),
        ({"over_select": 0.3}, "over_select is a fraction of select, or of quorum"),
        ({"select": 5, "quorum": 6}, "quorum is 6, a round invites 5 sites"),
        ({"late": "next"}, "late is for plain runs"),
    ],
)
@pytest.mark.parametrize("masked", [True, False])
def test_a_turnout_that_contradicts_itself_is_refused(
    masked: bool, settings: dict[str, Any], message: str
) -> None:
    if "late" in settings and not masked:
        RunSpec("task", masked=masked, **settings)
        return
    with pytest.raises(ConfigError, match=re.escape(message)):
        RunSpec("task", masked=masked, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"select": 5}, "a round is to invite 5 sites, the cohort has 4"),
        (
            {"select": 3, "over_select": 0.5},
            "a round is to invite 5 sites with 0.5 over_select, the cohort has 4",
        ),
        ({"quorum": 5}, "quorum is 5, the cohort has 4 sites"),
        (
            {"weight_cap": 10, "min_weight": 41},
            "min_weight is 41, 4 updates of at most 10 (weight_cap) weigh 40 together",
        ),
        ({"weight_cap": 10, "select": 3, "min_weight": 31}, "3 updates of at most 10"),
        # A masked round cannot know what its updates weigh when it closes.
        ({"weight_cap": 10, "quorum": 3, "min_weight": 31}, "3 updates of at most 10"),
        (
            {"quorum": 3, "colluders": 2},
            "a round would close with 3 updates, a masked one of 4 sites needs 4 (4 votes, "
            "min_sites 3)",
        ),
    ],
)
def test_a_turnout_that_the_cohort_cannot_come_to_is_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        policy.check_run(RunSpec("task", **settings), LAYOUT, ROSTER)


@pytest.mark.parametrize(
    "settings",
    [
        {"weight_cap": 10, "quorum": 3, "min_weight": 40},  # it waits for more than the quorum
        {"weight_cap": 10, "select": 3, "min_weight": 40, "late": "next"},
        {"quorum": 3, "colluders": 2},
    ],
)
def test_a_plain_round_can_come_to_what_a_masked_one_cannot(settings: dict[str, Any]) -> None:
    policy.check_run(RunSpec("task", masked=False, **settings), LAYOUT, ROSTER)


def test_a_masked_run_may_close_its_rounds_with_as_many_updates_as_votes_are_needed() -> None:
    policy.check_run(RunSpec("task", quorum=3, colluders=1), LAYOUT, ROSTER)
