"""T08: the round is held again without one site, of the same updates."""

import numpy as np
import pytest

from support.secagg import Federation, make_contributions, make_plan
from threats.rounds import SITES, VICTIM, forgetful, remembering, result_of, round_of, withdrawals
from veilsum import secagg

RETRIES = (
    {"attempt": 1},
    {"round_number": 2},
    {"run_id": "another"},
    {"run_id": "another", "clip": 2.0},
    {"run_id": "another", "weight_cap": 200, "value_bits": 14},
)


def after(first: Federation, retry: dict[str, object]) -> dict[str, object]:
    """What a later round of the run needs to follow the first."""
    if "round_number" not in retry:
        return {}
    first.publish()
    first.run()
    return {"previous": first.acknowledged.previous}


@pytest.mark.parametrize("retry", RETRIES)
def test_of_sites_that_forget_the_two_sums_show_the_update(retry):
    ledgers = forgetful()
    first = round_of(ledgers)
    whole = result_of(first)
    rest = result_of(round_of(ledgers, without=[VICTIM], **after(first, retry), **retry))

    total = {name: mean * whole.total_weight for name, mean in whole.arrays.items()}
    weight = whole.total_weight - rest.total_weight
    shown = (total["weight"] - rest.arrays["weight"] * rest.total_weight) / weight

    victims = make_contributions(make_plan(5, metrics=()))[VICTIM]
    assert weight == victims.weight
    np.testing.assert_allclose(shown, victims.update["weight"], atol=0.01)


@pytest.mark.parametrize("retry", RETRIES)
def test_sites_refuse_because_their_updates_are_spent(retry):
    ledgers = remembering()
    first = round_of(ledgers)
    assert result_of(first) is not None

    again = round_of(ledgers, without=[VICTIM], **after(first, retry), **retry)

    assert result_of(again) is None
    refused = withdrawals(again)
    assert {refused[site] for site in SITES[:-1]} == {"spent"}


def test_an_attempt_beyond_the_site_s_own_limit_is_refused():
    refused = withdrawals(round_of(remembering(), attempt=3))

    assert set(refused.values()) == {"policy"}
    lenient = secagg.LocalPolicy(min_colluders=1, max_attempts=4)
    assert result_of(round_of(remembering(), attempt=3, policy=lenient)) is not None
