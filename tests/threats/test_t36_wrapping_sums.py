"""T36: sums that leave the ring come back as other numbers.

The defence: a ring is wide enough for the largest sum that a plan allows, which every site works
out for itself, with bits to spare by which a mask that was left on is seen.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.secagg import make_contributions, make_plan
from veilsum import secagg
from veilsum.errors import ConfigError
from veilsum.model import ModelLayout
from veilsum.secagg.thresholds import smallest_ring

LAYOUT = ModelLayout.from_arrays({"weight": np.zeros(4, np.float32)})


class Unchecked(secagg.Plan):
    """The variant: a plan that is taken as it is."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "cohort", tuple(sorted(self.cohort, key=str.encode)))


def planned(sites: int, value_bits: int, **changes: Any) -> dict[str, Any]:
    plan = make_plan(
        sites, value_bits=value_bits, layout=LAYOUT, metrics=(), colluders=0, weight_cap=1
    )
    fields = {name: getattr(plan, name) for name in plan.__dataclass_fields__}
    return {**fields, **changes}


def largest_mean(plan: secagg.Plan) -> np.ndarray:
    """All sites at the clip, with the largest weight."""
    arrays = {"weight": np.full(4, plan.clip, np.float32)}
    contributions = {
        site: given._replace(weight=plan.weight_cap)
        for site, given in make_contributions(plan, lambda _: arrays).items()
    }
    return secagg.plain_ring_sum(plan, contributions, plan.cohort).arrays["weight"]


def exact_bits(sites: int, value_bits: int) -> int:
    """Of a ring that holds every sum, and nothing more."""
    return smallest_ring(sites, 2 ** (value_bits - 1) - 1, 0)


@pytest.mark.parametrize("sites", [3, 4, 5, 8])
@pytest.mark.parametrize("value_bits", [4, 8, 16, 31])
def test_a_ring_that_is_one_bit_narrower_publishes_another_sum_without_a_word(sites, value_bits):
    narrow = exact_bits(sites, value_bits) - 1
    plan = Unchecked(**planned(sites, value_bits, ring_bits=narrow, headroom=0))

    mean = largest_mean(plan)

    assert (mean < 0).all()  # of values that are all at +clip


@pytest.mark.parametrize("sites", [3, 4, 5, 8])
@pytest.mark.parametrize("value_bits", [4, 8, 16, 31])
def test_a_plan_at_the_bound_adds_up_and_one_bit_below_is_refused(sites, value_bits):
    fields = planned(sites, value_bits)
    plan = secagg.Plan(**fields)

    np.testing.assert_allclose(largest_mean(plan), plan.clip, rtol=1e-6)
    with pytest.raises(ConfigError, match="need a ring of"):
        secagg.Plan(**{**fields, "ring_bits": plan.ring_bits - 1})


@settings(max_examples=60, deadline=None)
@given(
    sites=st.integers(3, 255),
    value_bits=st.integers(2, 32),
    headroom=st.integers(2, 32),
)
def test_the_ring_of_a_plan_is_the_smallest_that_holds_every_sum(sites, value_bits, headroom):
    limit = 2 ** (value_bits - 1) - 1
    bits = smallest_ring(sites, limit, headroom)

    assert 2**bits >= 2**headroom * (2 * sites * limit + 1) > 2 ** (bits - 1)


@pytest.mark.parametrize(
    ("most", "over"),
    [
        ({"weight_cap": 2**31 - 1, "metrics": ()}, {"weight_cap": 2**31}),
        ({"metrics": ("loss",), "metric_limit": 2**33 - 1}, {"metric_limit": 2**35}),
    ],
)
def test_sums_of_weights_and_metrics_have_their_bounds_too(most, over):
    plan = make_plan(4, layout=LAYOUT, **most)

    with pytest.raises(ConfigError):
        replace(plan, **over)


def test_a_site_works_the_ring_out_by_itself():
    """The manifest says how wide the ring is; a site that reads it holds it against the number of
    sites and the bits of their values."""
    plan = make_plan(4, layout=LAYOUT, metrics=())
    manifest = bytearray(plan.to_bytes())
    thresholds = bytes([3, 1, 3, 3, plan.value_bits, plan.ring_bits, plan.headroom])
    assert manifest.count(thresholds) == 1
    at = manifest.index(thresholds) + 5
    manifest[at] -= 1

    with pytest.raises(ConfigError, match="need a ring of"):
        secagg.Plan.from_bytes(bytes(manifest), roster=plan.roster)
