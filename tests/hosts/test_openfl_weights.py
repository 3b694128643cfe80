"""The whole numbers behind OpenFL's weights are found exactly, or the weights are refused."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veilsum import ConfigError, PeerError
from veilsum.integrations.openfl_weights import MOST_SAMPLES, whole_weights


def shares_of(counts: list[int]) -> dict[str, float]:
    """As OpenFL's aggregator divides them."""
    return {f"site-{i}": count / sum(counts) for i, count in enumerate(counts)}


def reduced(counts: list[int]) -> dict[str, int]:
    return {f"site-{i}": count // math.gcd(*counts) for i, count in enumerate(counts)}


@given(st.lists(st.integers(0, MOST_SAMPLES // 20), min_size=1, max_size=20).filter(any))
def test_the_numbers_of_samples_come_back_from_their_rounded_quotients(counts: list[int]) -> None:
    assert whole_weights(shares_of(counts)) == reduced(counts)


@given(st.integers(1, MOST_SAMPLES - 1))
def test_they_come_back_from_the_largest_total(count: int) -> None:
    counts = [count, MOST_SAMPLES - count]

    assert whole_weights(shares_of(counts)) == reduced(counts)


def test_weights_that_are_numbers_of_samples_already_are_taken_as_they_are() -> None:
    assert whole_weights({"rome": 100.0, "turin": 250.0}) == {"rome": 2, "turin": 5}


def test_equal_weights_of_a_task_without_a_data_size_count_the_same() -> None:
    assert whole_weights({"rome": -1 / -3, "turin": -1 / -3, "milan": -1 / -3}) == {
        "rome": 1,
        "turin": 1,
        "milan": 1,
    }


@pytest.mark.parametrize(
    "counts",
    [[MOST_SAMPLES, 2], [2**31 - 1, 2**31 - 2, 12345]],
    ids=["too many samples", "far too many"],
)
def test_larger_totals_are_refused_with_what_to_do(counts: list[int]) -> None:
    with pytest.raises(ConfigError, match="cannot be known") as refused:
        whole_weights(shares_of(counts))

    assert "counted in batches" in str(refused.value.hint)


def test_weights_that_are_no_quotients_are_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be known"):
        whole_weights({"rome": math.pi / 4, "turin": 1 - math.pi / 4})


@pytest.mark.parametrize("share", [-0.25, math.nan, math.inf])
def test_a_weight_that_is_no_share_names_the_collaborator(share: float) -> None:
    with pytest.raises(PeerError, match="'turin' has weight"):
        whole_weights({"rome": 0.5, "turin": share})
