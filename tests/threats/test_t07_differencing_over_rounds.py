"""T07: two rounds whose survivor sets differ by one site show nearly that site's update."""

from __future__ import annotations

from support.secagg import make_plan
from threats.rounds import SITES, VICTIM, forgetful, remembering, result_of, round_of, withdrawals
from veilsum import secagg
from veilsum.secagg.ledger import attempt_of
from veilsum.secagg.ledger_records import Opened, VoteCast

REFUSES = secagg.LocalPolicy(min_colluders=1, cohort_difference="refuse")


def after_a_round_of_all(ledgers: dict[str, secagg.Ledger]) -> dict[str, secagg.Ledger]:
    """All sites have voted for all sites, in a round whose updates were others."""
    attempt = attempt_of(make_plan(5, colluders=1, run_id="earlier"))
    for ledger in ledgers.values():
        ledger.remember(Opened(attempt, bytes(32)))
        ledger.remember(VoteCast(attempt, bytes(32), SITES))
    return ledgers


def warned(federation) -> set[str]:
    return {site for site, effect in federation.site_effects if isinstance(effect, secagg.Warn)}


def test_sites_that_forget_vote_for_the_second_set_without_a_word():
    second = round_of(after_a_round_of_all(forgetful()), without=[VICTIM], policy=REFUSES)

    assert result_of(second) is not None
    assert not warned(second)


def test_sites_warn():
    second = round_of(after_a_round_of_all(remembering()), without=[VICTIM])

    assert warned(second) == set(SITES[:-1])
    assert result_of(second) is not None


def test_a_site_whose_policy_says_so_does_not_vote():
    second = round_of(after_a_round_of_all(remembering()), without=[VICTIM], policy=REFUSES)

    assert set(withdrawals(second).values()) == {"cohort_difference"}
    assert result_of(second) is None


def test_the_same_sites_again_are_no_reason_to_warn():
    second = round_of(after_a_round_of_all(remembering()), policy=REFUSES)

    assert result_of(second) is not None
    assert not warned(second)
