"""T21: all colluders put their shares of one site's secret together.

The defence: a secret takes more shares than there are colluders.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
import pytest
import scipy.stats

from reference import secagg as reference
from veilsum import _native
from veilsum._native import Secret
from veilsum.secagg.thresholds import check_thresholds, share_threshold, vote_quorum

PLAIN = bytes(range(200, 232))


def cohorts() -> Iterator[tuple[int, int, int]]:
    """(n, c, t) of every round of up to eight sites that a plan can be made of."""
    for sites in range(3, 9):
        for colluders in range(sites):
            for profile in ("strict", "available"):
                quorum = vote_quorum(sites, colluders)
                threshold = share_threshold(profile, sites, colluders)
                if quorum > sites or max(quorum, 3) - colluders < 2:
                    continue
                check_thresholds(
                    sites=sites,
                    min_sites=3,
                    colluders=colluders,
                    quorum=quorum,
                    threshold=threshold,
                )
                yield sites, colluders, threshold


COHORTS = sorted(set(cohorts()))


def dealt(sites: int, threshold: int, fresh: np.random.Generator) -> list[bytes]:
    coefficients = Secret.from_bytes(fresh.bytes(32 * (threshold - 1)))
    shares = _native.deal_shares(
        Secret.from_bytes(PLAIN), threshold, range(1, sites + 1), coefficients
    )
    return [bytes(share) for share in shares]


def pooled(shares: Sequence[bytes], holders: Sequence[int]) -> bytes:
    """What the holders of these places make of their shares."""
    indices = [place + 1 for place in holders]
    (one,) = _native.combine_shares(
        indices, [[Secret.from_bytes(shares[place]) for place in holders]]
    )
    return bytes(one)


def opened_by(sites: int, threshold: int, together: int) -> int:
    """How many groups of so many sites rebuild the secret."""
    shares = dealt(sites, threshold, np.random.default_rng(sites * 10 + threshold))
    groups = combinations(range(sites), together)
    return sum(pooled(shares, group) == PLAIN for group in groups)


def test_the_cohorts_are_those_that_plans_allow():
    assert len(COHORTS) > 20
    assert (8, 5, 7) in COHORTS
    assert all(colluders < threshold for _, colluders, threshold in COHORTS)


@pytest.mark.parametrize(("sites", "colluders"), [(5, 2), (7, 3), (8, 4)])
def test_a_threshold_of_the_colluders_number_is_one_they_reach(sites, colluders):
    groups = len(list(combinations(range(sites), colluders)))

    assert opened_by(sites, colluders, colluders) == groups


@pytest.mark.parametrize(("sites", "colluders", "threshold"), COHORTS)
def test_no_group_of_colluders_rebuilds_a_secret_and_every_threshold_does(
    sites, colluders, threshold
):
    for together in range(1, threshold):
        assert opened_by(sites, threshold, together) == 0
    assert opened_by(sites, threshold, threshold) == len(
        list(combinations(range(sites), threshold))
    )


def test_pooled_shares_fit_every_secret():
    """Not only is the secret not found: for any other one there are shares of the rest that go
    with those of the colluders, by the slow reference."""
    shares = dealt(5, 4, np.random.default_rng(1))
    pool = {place + 1: shares[place] for place in (0, 2, 4)}
    for other in (bytes(32), PLAIN[::-1], b"\xff" * 32):
        fourth = fourth_share(pool, other)
        assert reference.combine({**pool, 2: fourth}) == other


def fourth_share(pool: dict[int, bytes], secret: bytes) -> bytes:
    """The share of index 2 under which the pool and it rebuild `secret`: Lagrange at 2, with the
    secret as the value at 0."""
    found = b""
    for limb in (0, 1):
        points = {x: reference.limbs(share)[limb] for x, share in pool.items()}
        points[0] = reference.limbs(secret)[limb]
        total = 0
        for x, y in points.items():
            above = below = 1
            for other in points:
                if other != x:
                    above = reference.multiply(above, 2 ^ other)
                    below = reference.multiply(below, x ^ other)
            total ^= reference.multiply(y, reference.multiply(above, reference.invert(below)))
        found += total.to_bytes(16, "big")
    return found


def test_the_bytes_of_pooled_shares_are_uniform():
    fresh = np.random.default_rng(21)
    pools = b"".join(b"".join(dealt(7, 5, fresh)[:4]) for _ in range(400))

    counts = np.bincount(np.frombuffer(pools, np.uint8), minlength=256)
    assert scipy.stats.chisquare(counts).pvalue > 1e-6
