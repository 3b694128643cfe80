"""T06: the coordinator says that all updates but one were lost, and asks for the sum of the one.

The defence: a site votes for no set below max(q, min_sites), and its own policy has a floor too.
"""

from __future__ import annotations

import numpy as np
import pytest

from support.secagg import Federation, make_plan
from threats.rounds import SITES, VICTIM, result_of, withdrawals
from veilsum import secagg
from veilsum.secagg import closing


def round_that_keeps(survivors: int, **plan: object) -> Federation:
    """All sites upload, and of so many uploads the coordinator says that they came, the victim's
    first. Still all sites are asked to vote."""
    federation = Federation(make_plan(5, colluders=1, metrics=(), **plan))
    coordinator = federation.coordinator
    uploads = {}
    while federation.queue:
        origin, to, message = federation.queue.popleft()
        if isinstance(message, secagg.UploadInput):
            uploads[origin] = message
        else:
            federation.deliver(origin, to, message)
    for site in (VICTIM, *SITES[:-1])[:survivors]:
        federation.deliver(site, "", uploads[site])
    if coordinator.phase == "inputs":
        opening = closing.close_inputs(coordinator.plan, coordinator._phase, {}, coordinator._seal)
        federation.from_coordinator(coordinator._begin(opening))
    federation.run()
    return federation


def test_without_a_floor_the_sum_is_one_sites_update(monkeypatch):
    monkeypatch.setattr(secagg.Plan, "fewest_survivors", 1)
    monkeypatch.setattr(secagg.LocalPolicy, "check", lambda *_: None)

    federation = round_that_keeps(1)

    assert federation.result.sites == (VICTIM,)
    victims = federation.contributions[VICTIM].update["weight"]
    np.testing.assert_allclose(federation.result.arrays["weight"], victims, atol=1e-3)


@pytest.mark.parametrize("survivors", [1, 2, 3])
def test_nobody_votes_for_fewer_than_the_quorum(survivors):
    federation = round_that_keeps(survivors)

    assert result_of(federation) is None
    assert withdrawals(federation) == dict.fromkeys(SITES, "survivors")


@pytest.mark.parametrize("survivors", [4, 5])
def test_a_set_of_the_quorum_is_voted_for(survivors):
    assert len(round_that_keeps(survivors).result.sites) == survivors


def test_more_than_the_quorum_can_be_asked_for():
    federation = round_that_keeps(4, min_sites=5)

    assert result_of(federation) is None
    assert withdrawals(federation) == dict.fromkeys(SITES, "survivors")


def test_a_sites_own_floor_does_not_depend_on_the_plan():
    plan = make_plan(5, colluders=1, min_sites=4)
    demanding = secagg.LocalPolicy(min_colluders=1, min_sites=5)
    federation = Federation(plan, policies={VICTIM: demanding})
    federation.run()

    assert withdrawals(federation) == {VICTIM: "policy"}
