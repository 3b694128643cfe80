"""Whom a round invites: everybody, or a sample in which every set of sites is as likely."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veilsum.coordinator.selection import below, invited, sample, subset
from veilsum.errors import ConfigError

SITES = tuple("abcdefgh")


def given_numbers(*numbers: int) -> Callable[[int], bytes]:
    """A source of these numbers, each as long as it is asked for."""
    left = iter(numbers)
    return lambda size: next(left).to_bytes(size, "little")


def nothing(size: int) -> bytes:
    raise AssertionError(f"{size} random bytes were drawn")


@pytest.mark.parametrize(("size", "count"), [(1, 0), (1, 1), (5, 2), (6, 6), (7, 1), (9, 4)])
def test_the_numbers_below_c_of_n_and_k_are_all_subsets_once_and_in_order(
    size: int, count: int
) -> None:
    numbers = range(math.comb(size, count))

    found = [subset(number, size, count) for number in numbers]

    assert found == list(itertools.combinations(range(size), count))


def drawn(draws: Iterable[int], choose: Callable[[Callable[[int], bytes]], object]) -> object:
    """What is chosen, or None where the draws are all out of range."""
    try:
        return choose(given_numbers(*draws))
    except StopIteration:
        return None


@pytest.mark.parametrize("bound", [2, 3, 5, 100, 128, 200, 255, 256])
def test_of_all_bytes_that_can_be_drawn_each_number_comes_of_as_many(bound: int) -> None:
    found = Counter(drawn([byte], lambda draw: below(bound, draw)) for byte in range(256))

    out_of_range = found.pop(None, 0)
    times = set(found.values())
    assert sorted(found) == list(range(bound))
    assert len(times) == 1
    assert times.pop() * bound + out_of_range == 256
    assert out_of_range < 128


def test_of_all_pairs_of_bytes_each_number_comes_of_as_many() -> None:
    """Also when the first of them was out of range and another had to be drawn."""
    pairs = itertools.product(range(256), repeat=2)

    found = Counter(drawn(pair, lambda draw: below(200, draw)) for pair in pairs)

    assert found.pop(None) == 56**2  # both out of range
    assert set(found.values()) == {256 + 56}


@pytest.mark.parametrize("count", [1, 3, 4, 7])
def test_every_set_of_sites_is_as_likely_as_every_other(count: int) -> None:
    bound = math.comb(len(SITES), count)

    found = Counter(drawn([byte], lambda draw: sample(SITES, count, draw)) for byte in range(256))

    found.pop(None, None)
    assert set(found) == set(itertools.combinations(SITES, count))
    assert set(found.values()) == {256 // 2 ** (bound - 1).bit_length()}


def test_with_those_of_the_attempt_before_every_set_of_the_others_is_as_likely() -> None:
    before = ("c", "x", "f")

    found = Counter(
        drawn([byte], lambda draw: invited(SITES, 4, before, draw)) for byte in range(256)
    )

    found.pop(None, None)
    others = tuple(site for site in SITES if site not in before)
    assert set(found) == {
        tuple(sorted({*pair, "c", "f"})) for pair in itertools.combinations(others, 2)
    }
    assert set(found.values()) == {16}  # of 15 pairs, drawn with four bits of each byte


@pytest.mark.parametrize("wanted", [0, 8, 9])
def test_where_no_more_are_wanted_than_are_there_all_are_invited_and_nothing_is_drawn(
    wanted: int,
) -> None:
    assert invited(SITES, wanted, ("c",), nothing) == SITES


@given(st.integers(1, 8), st.sets(st.sampled_from((*SITES, "x", "y"))), st.randoms())
def test_a_round_invites_as_many_as_it_wants_in_order_and_those_of_before_first(
    wanted: int, before: set[str], chance: object
) -> None:
    chosen = invited(SITES, wanted, before, chance.randbytes)  # type: ignore[attr-defined]

    assert len(chosen) == wanted
    assert sorted(set(chosen)) == list(chosen)
    there = before & set(SITES)
    assert len(there & set(chosen)) == min(wanted, len(there)) or len(chosen) == len(SITES)


def test_the_same_draws_make_the_same_choice_among_a_thousand() -> None:
    sites = [f"site-{number:04}" for number in range(1000)]
    size = (math.comb(1000, 100).bit_length() + 7) // 8
    asked = []

    def draw(length: int) -> bytes:
        asked.append(length)
        return b"\x01" * length

    first, second = sample(sites, 100, draw), sample(sites, 100, draw)

    assert first == second
    assert len(set(first)) == 100
    assert asked == [size, size]


def test_a_source_that_gives_nothing_in_range_is_an_error_and_not_an_endless_loop() -> None:
    with pytest.raises(ConfigError, match="none of 128 numbers of 8 random bits was below 200"):
        below(200, lambda size: b"\xff" * size)
