"""T08: another attempt with fewer sites, of updates whose sites have not voted.

Seven sites, two of them helpers: five votes certify a set. In the first attempt the updates of A,
B, C and the helpers are summed, and those asked to vote are A, the helpers, and D and E, who have
sent none. B and C have sent their updates and voted for nothing. A second attempt of B, C and the
helpers needs four votes. Of the same updates, the difference of both sums is A's.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from support.secagg import NAMES, Federation, make_contributions, make_plan
from threats.rounds import Forgetful, result_of, withdrawals
from veilsum import secagg
from veilsum._native import Secret
from veilsum.secagg import ledger as ledger_module

A, B, C, D, E, *HELPERS = NAMES[:7]


def ledgers() -> dict[str, secagg.Ledger]:
    honest = {site: secagg.Ledger.in_memory(Secret.from_os) for site in (A, B, C, D, E)}
    return honest | {site: Forgetful() for site in HELPERS}


def attempt(
    number: int,
    cohort: tuple[str, ...],
    kept: dict[str, secagg.Ledger],
    *,
    run_id: str = "run-1",
    **policy: Any,
) -> Federation:
    plan = make_plan(
        len(cohort), cohort=cohort, colluders=2, attempt=number, run_id=run_id, metrics=()
    )
    everybody = make_contributions(make_plan(7, colluders=2, metrics=()))
    return Federation(
        plan,
        ledgers=kept,
        contributions=everybody,
        policies=dict.fromkeys(cohort, secagg.LocalPolicy(min_colluders=2, **policy)),
    )


def first(kept: dict[str, secagg.Ledger]) -> Federation:
    made = attempt(0, NAMES[:7], kept)
    send = made.contribute
    made.contribute = lambda site: [] if site in (D, E) else send(site)  # type: ignore[method-assign]
    made.run()
    coordinator = made.coordinator
    coordinator._lost |= {B: "is not asked to vote", C: "is not asked to vote"}
    made.from_coordinator(coordinator._close(coordinator._phase))
    made.run()
    return made


def second(kept: dict[str, secagg.Ledger], **changes: Any) -> Federation:
    made = attempt(1, (B, C, *HELPERS), kept, **changes)
    while made.queue and made.coordinator.phase != "aborted":
        made.deliver(*made.queue.popleft())
    return made


def test_the_first_attempt_gives_a_sum_of_which_two_sites_know_nothing():
    made = first(ledgers())

    assert set(result_of(made).sites) == {A, B, C, *HELPERS}
    assert made.payloads("survivor-vote").keys() == {A, D, E, *HELPERS}


def test_if_only_voting_spent_an_update_the_two_sums_would_show_one(monkeypatch):
    def forgets_what_left(latest, attempt):
        return ledger_module._Latest(attempt)

    monkeypatch.setattr(ledger_module._Latest, "next_is", forgets_what_left)
    kept = ledgers()
    larger, smaller = result_of(first(kept)), result_of(second(kept, spent="vote"))

    show_the_victim_s(larger, smaller)


def show_the_victim_s(larger: secagg.SecureResult, smaller: secagg.SecureResult) -> None:
    total, rest = (
        {name: mean * result.total_weight for name, mean in result.arrays.items()}
        for result in (larger, smaller)
    )
    weight = larger.total_weight - smaller.total_weight
    victims = make_contributions(make_plan(7, colluders=2, metrics=()))[A]
    assert weight == victims.weight
    shown = (total["weight"] - rest["weight"]) / weight
    np.testing.assert_allclose(shown, victims.update["weight"], atol=0.01)


def test_what_has_left_a_site_is_in_no_other_attempt_voted_or_not():
    kept = ledgers()
    assert result_of(first(kept)) is not None

    again = second(kept)

    assert result_of(again) is None
    assert set(withdrawals(again).values()) == {"spent"}


def test_nor_in_another_run_unless_a_site_trusts_whoever_starts_runs():
    kept = ledgers()
    larger = result_of(first(kept))
    show_the_victim_s(larger, result_of(second(kept, run_id="another", spent="vote")))

    kept = ledgers()
    assert result_of(first(kept)) is not None
    again = second(kept, run_id="another")
    assert result_of(again) is None
    assert set(withdrawals(again).values()) == {"spent"}
