"""T23: a dealer whose shares are not a sharing of what it advertised."""

from __future__ import annotations

import pytest

from support.faults import (
    aborted,
    accused,
    deals_badly,
    left_out,
    off_the_polynomial,
    other_secret,
)
from support.secagg import NAMES, UPLOAD, Federation, make_plan
from veilsum import secagg
from veilsum.secagg import unmask

SITES = NAMES[:6]
BAD = SITES[2]
THRESHOLD = 3


def federation(**plan: object) -> Federation:
    return Federation(make_plan(6, colluders=1, share_threshold=THRESHOLD, **plan))


def dropped_before_its_update(made: Federation) -> None:
    made.hold(UPLOAD, origin=BAD)
    made.from_coordinator(made.coordinator.lost(BAD, "is gone"))


@pytest.mark.parametrize("drops", [False, True])
def test_without_a_look_at_what_was_advertised_the_round_fails_and_nobody_knows_why(
    drops, monkeypatch
):
    deals_badly(monkeypatch, BAD, other_secret(THRESHOLD))
    monkeypatch.setattr(unmask, "seed_fits", lambda *args: True)
    monkeypatch.setattr("veilsum.secagg.audit_keys._another_seed", lambda site: ValueError())
    made = federation()
    if drops:
        dropped_before_its_update(made)
    with pytest.raises(ValueError):  # what would be a sum out of its range
        made.run()
    assert accused(made) == set()


@pytest.mark.parametrize("drops", [False, True])
def test_a_dealer_that_shared_another_secret_is_accused_and_the_round_fails(drops, monkeypatch):
    deals_badly(monkeypatch, BAD, other_secret(THRESHOLD))
    made = federation()
    if drops:
        dropped_before_its_update(made)
    made.run()

    assert aborted(made) == f"site {BAD!r} shared another secret than the one it advertised"
    assert accused(made) == {(BAD, "WRONG_SECRET")}
    assert left_out(made) == {BAD}


@pytest.mark.parametrize("drops", [False, True])
@pytest.mark.parametrize("receiver", range(6))
def test_a_share_off_the_polynomial_does_not_stop_the_round_and_its_dealer_is_accused(
    drops, receiver, monkeypatch
):
    """Every commitment holds. Which answers come first decides nothing: others are tried."""
    deals_badly(monkeypatch, BAD, off_the_polynomial([receiver]))
    made = federation()
    if drops:
        dropped_before_its_update(made)
    made.run()

    assert set(made.result.sites) == set(SITES) - ({BAD} if drops else set())
    # The answers that were taken may all be of sites that it dealt well to.
    assert accused(made) <= {(BAD, "WRONG_SECRET")}


def test_the_first_answers_that_came_with_a_bad_share_convict_its_dealer(monkeypatch):
    deals_badly(monkeypatch, BAD, off_the_polynomial([0]))
    made = federation()
    made.run()

    first = [origin for origin, _, message in made.sent if is_answer(message)][:THRESHOLD]
    assert SITES[0] in first
    assert accused(made) == {(BAD, "WRONG_SECRET")}
    assert made.result.sites == SITES


def is_answer(message: object) -> bool:
    return isinstance(message, bytes) and b"unmask-shares" in message[:40]


def test_with_the_first_answers_alone_one_bad_share_stops_the_round(monkeypatch):
    """The defence removed: no other answers are tried."""
    deals_badly(monkeypatch, BAD, off_the_polynomial([0]))
    monkeypatch.setattr(unmask._Seeds, "_subset", first_answers)
    made = federation()
    made.run()

    assert "shared another secret" in aborted(made)


def first_answers(self: unmask._Seeds, number: int) -> tuple[str, ...]:
    return tuple(self._phase.received)[:THRESHOLD]


def test_of_a_dealer_that_dealt_well_to_too_few_no_answers_help(monkeypatch):
    deals_badly(monkeypatch, BAD, off_the_polynomial([0, 1, 3, 4]))
    made = federation()
    made.run()

    assert "shared another secret" in aborted(made)
    assert accused(made) == {(BAD, "WRONG_SECRET")}


def test_two_bad_dealers_are_both_accused(monkeypatch):
    deals_badly(monkeypatch, BAD, other_secret(THRESHOLD))
    deals_badly(monkeypatch, SITES[4], off_the_polynomial([0]))
    made = federation()
    made.run()

    assert accused(made) == {(BAD, "WRONG_SECRET"), (SITES[4], "WRONG_SECRET")}


def test_evidence_shows_as_many_shares_as_the_plan_asks_for_and_only_of_the_accused(monkeypatch):
    deals_badly(monkeypatch, BAD, other_secret(THRESHOLD))
    made = federation()
    made.run()
    (blamed,) = [e for e in made.coordinator_effects if isinstance(e, secagg.Blamed)]
    evidence = secagg.Evidence.from_bytes(blamed.evidence)

    assert len(evidence.papers) == 3 + THRESHOLD
    assert len(evidence.envelopes) == 1
    fewer = secagg.Evidence(
        evidence.fault, BAD, evidence.manifest, evidence.envelopes, evidence.papers[:-1]
    )
    twice = secagg.Evidence(
        evidence.fault,
        BAD,
        evidence.manifest,
        evidence.envelopes,
        (*evidence.papers[:-1], evidence.papers[-2]),
    )
    other = secagg.Evidence(
        evidence.fault, SITES[0], evidence.manifest, evidence.envelopes, evidence.papers
    )
    for made_up in (fewer, twice, other):
        verdict = secagg.check_evidence(made_up.to_bytes(), made.plan.roster)
        assert isinstance(verdict, secagg.Invalid)
