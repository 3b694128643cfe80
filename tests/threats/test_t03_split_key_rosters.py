"""T03: the coordinator shows different sites different keys."""

from __future__ import annotations

from dataclasses import replace

import pytest

from support.faults import accused, forged_from
from support.secagg import NAMES, Federation, make_plan, read
from veilsum import secagg
from veilsum.secagg import transcript
from veilsum.secagg.messages import KeyAdvert, KeyRoster

SITES = NAMES[:5]
VICTIM, TWICE = SITES[0], SITES[4]


def split(victims: list[str]) -> Federation:
    """A helper signs a second advert, which the victims get instead of the first."""
    made = Federation(make_plan(5, colluders=1))
    rosters = {victim: made.hold("key-roster", to=victim) for victim in victims}
    for victim, roster in rosters.items():
        message = read(KeyRoster, roster)
        *others, advert = message.adverts
        second = forged_from(advert.to_bytes(), KeyAdvert, self_commitment=bytes(32))
        forged = forged_from(roster, KeyRoster, adverts=(*others, second))
        made.deliver("", victim, forged.to_bytes())
    made.run()
    return made


def test_without_t1_in_what_is_signed_the_views_would_not_be_told_apart(monkeypatch):
    """The defence removed: T1 is the same whatever the keys."""
    monkeypatch.setattr(transcript, "transcript", lambda label, previous, digests: previous)
    made = split([VICTIM])

    assert VICTIM not in made.excluded
    assert made.sites[VICTIM].phase == "result"  # it voted, and unmasked


@pytest.mark.parametrize("victims", [[SITES[0]], list(SITES[:2]), list(SITES[:3])])
def test_a_site_with_another_view_is_not_in_the_sum_and_nobody_votes_for_both(victims):
    made = split(victims)
    result = [e.result for e in made.coordinator_effects if isinstance(e, secagg.Completed)]

    if len(SITES) - len(victims) >= made.plan.vote_quorum:
        assert set(result[0].sites) == set(SITES) - set(victims)
    else:
        assert not result
    assert not made.payloads("survivor-vote").keys() & set(victims)


def test_the_victim_is_not_accused_for_what_it_was_shown():
    made = split([VICTIM])

    assert "T1 differs" in made.excluded[VICTIM]
    assert accused(made) == set()


def test_both_views_together_convict_the_coordinator():
    """What two sites find out when they compare the key rosters they got."""
    made = split([VICTIM])
    views = [
        message
        for origin, to, message in made.sent
        if not origin and to == SITES[1] and b"key-roster" in message[:30]
    ]
    shown = made.sites[VICTIM]._answers["key-roster"].message
    first = forged_from(views[0], KeyRoster)
    evidence = secagg.Evidence(secagg.Fault.DOUBLE_SIGNED, "", made.plan.to_bytes(), (first, shown))
    verdict = secagg.check_evidence(evidence.to_bytes(), made.plan.roster)
    assert verdict == secagg.Guilty("", secagg.Fault.DOUBLE_SIGNED)
    same = replace(evidence, envelopes=(first, first))
    assert isinstance(secagg.check_evidence(same.to_bytes(), made.plan.roster), secagg.Invalid)
