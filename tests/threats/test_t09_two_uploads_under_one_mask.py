"""T09: a site crashes after its upload and makes another one under the same masks."""

import pytest

from support.secagg import UPLOAD, Federation, fixed_entropy, make_plan, small_arrays
from threats.rounds import SITES, VICTIM, Forgetful, remembering
from veilsum import secagg

PLAN = make_plan(5, colluders=1, metrics=())


def crashed_and_restarted(ledger):
    """The victim after its upload; then a new process, with a generator that repeats itself and
    all messages of the round played to it again."""
    ledgers = remembering() | {VICTIM: ledger}
    federation = Federation(PLAN, ledgers=ledgers)
    first = federation.hold(UPLOAD, origin=VICTIM)
    played = [message for origin, to, message in federation.sent if (origin, to) == ("", VICTIM)]
    restarted = secagg.SiteSession(
        site=VICTIM,
        signing_key=federation.sites[VICTIM]._signer.key,
        roster=PLAN.roster,
        policy=secagg.LocalPolicy(min_colluders=1),
        entropy=fixed_entropy(1000 + SITES.index(VICTIM)),
        ledger=ledger,
    )
    return federation, first, restarted, [restarted.handle(message) for message in played]


def test_a_site_that_forgets_makes_a_second_update_under_the_same_masks():
    federation, first, restarted, _ = crashed_and_restarted(Forgetful())
    given = federation.contributions[VICTIM]

    (second,) = restarted.contribute(
        small_arrays(77), weight=given.weight, metrics={}, rounding=given.rounding
    )

    assert second.update_id == first.update_id  # of the same masks, and
    assert second.chunks != first.chunks  # their difference is that of the updates


def test_a_site_that_remembers_is_a_dropout_of_this_attempt():
    _, _, restarted, answers = crashed_and_restarted(remembering()[VICTIM])

    assert [effect.code for effect in answers[0]] == ["replay"]
    assert restarted.phase == "withdrawn"
    assert not any(answers[1:])


@pytest.mark.parametrize("record", ["Opened", "Contributed", "VoteCast"])
def test_what_cannot_be_remembered_is_not_sent(record):
    from veilsum._native import Secret
    from veilsum.errors import LedgerError

    def append(entry):
        if type(entry).__name__ == record:
            raise LedgerError("the disk is full at /secret/place")

    ledgers = remembering() | {VICTIM: secagg.Ledger(Secret.zeros(32), append)}
    federation = Federation(PLAN, ledgers=ledgers)
    federation.run()

    left = [effect for site, effect in federation.site_effects if site == VICTIM]
    (withdraw,) = [effect for effect in left if isinstance(effect, secagg.Withdraw)]
    assert (withdraw.code, withdraw.reason) == ("ledger", "this site's ledger cannot be written")
    assert withdraw.local_reason == "the disk is full at /secret/place"
    assert left[-1] is withdraw
    assert len(left) == {"Opened": 1, "Contributed": 4, "VoteCast": 5}[record]
