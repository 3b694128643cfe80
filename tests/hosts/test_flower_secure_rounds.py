"""Masked rounds over Flower's messages: what they compute, and with whom lost where."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("flwr", reason="flwr is not installed (extra `flower`)")


from support.consortium import make_consortium
from support.flower_grid import flower_task
from support.flower_masked import (
    SITES,
    STEP,
    masked_federation,
    plain_digests,
    reference,
    start,
    weight_of,
)
from veilsum.integrations.flower.arrays import read_arrays

STAGES = {"keys": 2, "shares": 3, "inputs": 4, "votes": 6, "unmask": 7}
"""Stage -> which message of a site's first round it is lost in; hello is 0."""


@pytest.fixture
def federation(tmp_path: Path):
    with flower_task(), masked_federation(make_consortium(tmp_path / "c", SITES)) as found:
        yield found


def assert_is_mean(arrays, rounds, seeds):
    weight = min(sum(map(weight_of, sites)) for sites in rounds)
    bound = sum(len(sites) for sites in rounds) * STEP / weight + 1e-6
    expected = reference(rounds, seeds)
    found = read_arrays(arrays)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=0, atol=bound)


def test_three_rounds_of_five_sites_are_the_weighted_mean_and_the_plain_ring_sum(federation):
    strategy = federation.strategy()

    arrays = start(strategy, federation.grid(), rounds=3)

    assert_is_mean(arrays, [SITES] * 3, [3, 4, 5])
    assert [record.sites for record in strategy.rounds] == [SITES] * 3
    digests = [record.digest for record in strategy.rounds]
    assert digests == plain_digests(strategy, federation.consortium.roster, [3, 4, 5])
    assert len(strategy.receipts) == 3
