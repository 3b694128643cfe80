"""T25: a site complains about a box that is in order, or a dealer makes one that is not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from support.faults import (
    OTHER,
    aborted,
    accused,
    complaint_of,
    disputes,
    left_out,
    seals_badly,
)
from support.secagg import NAMES, Federation, make_plan, read, seal
from veilsum import secagg
from veilsum.secagg import complaints, site_complaints
from veilsum.secagg.complaints import Accusation, Complaint, Finding, Justification
from veilsum.secagg.envelope import Envelope

SITES = NAMES[:6]
DEALER, LIAR = SITES[1], SITES[4]


def federation() -> Federation:
    """Nobody has an update yet when complaints come."""
    made = Federation(make_plan(6, colluders=2))
    made.contribute = lambda site: []  # type: ignore[method-assign]
    return made


def close(made: Federation) -> None:
    made.from_coordinator(made.coordinator.close_phase())
    made.run()


# --- dealers ------------------------------------------------------------------------------


def test_a_box_with_other_shares_convicts_its_dealer(monkeypatch):
    seals_badly(monkeypatch, DEALER, [SITES[0]], "content")
    made = federation()
    made.run()

    assert accused(made) == {(DEALER, "BAD_DEAL")}
    assert left_out(made) == {DEALER}
    assert "cannot use what site" in aborted(made)


def test_boxes_that_nobody_can_open_are_in_dispute_with_too_many_for_its_dealer_to_be_right(
    monkeypatch,
):
    others = [site for site in SITES if site != DEALER]
    seals_badly(monkeypatch, DEALER, others, "key")
    monkeypatch.setattr(site_complaints, "_box_key", key_of_a_liar(DEALER))
    made = federation()
    made.run()
    assert made.coordinator.phase == "complaints"
    close(made)

    assert accused(made) == set()
    assert disputes(made) == {(DEALER, site) for site in others}
    assert left_out(made) == {DEALER}


def key_of_a_liar(liar: str):
    honest = site_complaints._box_key

    def box_key(channel, site, peer, *, sending):
        return OTHER if site == liar else honest(channel, site, peer, sending=sending)

    return box_key


@pytest.mark.parametrize("receivers", [[SITES[0]], SITES[2:4]])
def test_in_disputes_with_few_the_dealer_and_one_of_them_are_left_out(receivers, monkeypatch):
    """Were it all of them, one dishonest dealer would take *c* honest sites with it."""
    seals_badly(monkeypatch, DEALER, receivers, "key")
    monkeypatch.setattr(site_complaints, "_box_key", key_of_a_liar(DEALER))
    made = federation()
    made.run()
    close(made)

    assert accused(made) == set()
    assert disputes(made) == {(DEALER, site) for site in receivers}
    assert left_out(made) == {DEALER, receivers[0]}


def test_who_is_in_a_dispute_with_a_dealer_that_another_complaint_convicts_is_not_left_out(
    monkeypatch,
):
    seals_badly(monkeypatch, DEALER, [SITES[5]], "content")
    seals_badly(monkeypatch, DEALER, [SITES[0]], "key")
    monkeypatch.setattr(site_complaints, "_box_key", key_of_a_liar(DEALER))
    made = federation()
    made.run()

    assert accused(made) == {(DEALER, "BAD_DEAL")}
    assert left_out(made) == {DEALER}


def test_a_dealer_that_names_the_agreed_key_for_garbage_is_convicted(monkeypatch):
    seals_badly(monkeypatch, DEALER, [SITES[0]], "garbage")
    made = federation()
    made.run()

    assert accused(made) == {(DEALER, "WRONG_JUSTIFICATION")}
    assert left_out(made) == {DEALER}


def test_a_silent_dealer_and_who_complains_of_it_are_left_out_and_not_accused(monkeypatch):
    seals_badly(monkeypatch, DEALER, [SITES[0]], "garbage")
    made = federation()
    made.hold("justification", origin=DEALER)
    made.run()
    close(made)

    assert accused(made) == set()
    assert left_out(made) == {DEALER, SITES[0]}


# --- complainers --------------------------------------------------------------------------


def test_were_a_key_that_does_not_open_enough_an_honest_dealer_would_be_convicted():
    """The rule as first written, that the complaint's key alone decides, on a made-up key."""
    made = federation()
    made.run()
    false = read(Complaint, complaint_of(made, LIAR, DEALER, OTHER))
    entry = made.coordinator._phase.dealers.deals[DEALER].entries[SITES.index(LIAR)]

    assert complaints._fits(false.key, entry, false) is None
    assert complaints.judge(entry, false, None) is Finding.OPEN  # so nobody is


def test_a_made_up_key_convicts_nobody_and_both_are_left_out():
    made = federation()
    made.run()
    made.deliver(LIAR, "", complaint_of(made, LIAR, DEALER, OTHER))
    made.run()
    assert made.coordinator.phase == "complaints"
    close(made)

    assert accused(made) == set()
    assert disputes(made) == {(DEALER, LIAR)}
    assert left_out(made) == {DEALER, LIAR}


def test_a_complaint_with_the_right_key_convicts_the_complainer_and_the_round_goes_on():
    made = federation()
    made.run()
    channel = made.sites[LIAR]._phase.channel
    key = site_complaints._box_key(channel, LIAR, DEALER, sending=False)
    made.deliver(LIAR, "", complaint_of(made, LIAR, DEALER, key))

    assert accused(made) == {(LIAR, "FALSE_COMPLAINT")}
    assert made.coordinator.phase == "inputs"
    del made.contribute
    for site in SITES:
        if site != LIAR:
            made.from_site(site, made.contribute(site))
    made.run()
    assert set(made.result.sites) == set(SITES) - {LIAR}


@pytest.mark.parametrize(
    "change",
    [
        {"t1": bytes(32)},
        {"header": bytes(32)},
        {"box": bytes(80)},
        {"dealer": LIAR},
        {"dealer": "x"},
    ],
)
def test_a_complaint_about_something_else_costs_its_maker_the_round(change):
    made = federation()
    made.run()
    complaint = read(Complaint, complaint_of(made, LIAR, DEALER, OTHER))
    made.deliver(LIAR, "", seal(replace(complaint, **change)))

    assert LIAR in made.excluded
    assert accused(made) == set()
    assert made.coordinator.phase == "inputs"


@pytest.mark.parametrize("stranger", [NAMES[7], "nobody"])
@pytest.mark.parametrize("kind", [Complaint, Justification])
def test_who_was_not_invited_changes_nothing(stranger, kind):
    made = federation()
    made.run()
    complaint = replace(read(Complaint, complaint_of(made, LIAR, DEALER, OTHER)), sender=stranger)
    answer = Justification(made.plan.context, stranger, complaint.t1, LIAR, OTHER)
    message = complaint if kind is Complaint else answer

    assert made.coordinator.handle(stranger, seal(message, signer=NAMES[7])) == []
    assert made.coordinator.phase == "inputs"


def test_one_site_complains_once_so_it_takes_one_honest_dealer_with_it_at_most():
    made = federation()
    made.run()
    for dealer in SITES[:3]:
        made.deliver(LIAR, "", complaint_of(made, LIAR, dealer, OTHER))
    made.run()
    close(made)

    assert left_out(made) == {SITES[0], LIAR}


def test_two_who_complain_about_one_honest_dealer_take_one_site_out_that_is_not_theirs():
    made = federation()
    made.run()
    for liar in (LIAR, SITES[5]):
        made.deliver(liar, "", complaint_of(made, liar, DEALER, OTHER))
    made.run()
    close(made)

    assert left_out(made) == {DEALER, LIAR}


def test_a_complaint_and_an_answer_that_come_twice_cost_nobody_the_round():
    made = federation()
    made.run()
    complaint = complaint_of(made, LIAR, DEALER, OTHER)
    made.deliver(LIAR, "", complaint)
    made.deliver(LIAR, "", complaint)
    answer = made.hold("justification", origin=DEALER)
    made.deliver(DEALER, "", answer)
    made.deliver(DEALER, "", answer)

    assert made.excluded == {}
    assert made.coordinator.phase == "complaints"


def test_a_second_answer_of_another_key_costs_the_dealer_the_round_and_the_first_counts():
    made = federation()
    made.run()
    made.deliver(LIAR, "", complaint_of(made, LIAR, DEALER, OTHER))
    answer = made.hold("justification", origin=DEALER)
    made.deliver(DEALER, "", answer)
    made.deliver(DEALER, "", seal(replace(read(Justification, answer), key=OTHER)))
    close(made)

    assert set(made.excluded) == {DEALER}
    assert disputes(made) == {(DEALER, LIAR)}
    assert accused(made) == set()


# --- what a dealer answers ----------------------------------------------------------------


def accusation(made: Federation, complaint: bytes, **forged: str) -> bytes:
    return seal(Accusation(made.plan.context, "", Envelope.from_bytes(complaint)), **forged)


def test_a_dealer_says_no_key_without_a_complaint_that_its_receiver_signed():
    """Each key shows the coordinator a share: t of them would show a secret."""
    made = federation()
    made.run()
    true = complaint_of(made, LIAR, DEALER, OTHER)
    complaint = read(Complaint, true)
    refused = [
        accusation(made, seal(complaint, signer=SITES[0])),
        accusation(made, seal(replace(complaint, sender=SITES[0]), signer=LIAR)),
        accusation(made, seal(replace(complaint, t1=bytes(32)))),
        accusation(made, seal(replace(complaint, header=bytes(32)))),
        accusation(made, seal(replace(complaint, dealer=SITES[0]))),
        accusation(made, seal(replace(complaint, sender=DEALER, dealer=DEALER), signer=DEALER)),
        accusation(made, true, signer=SITES[0]),
    ]
    for message in refused:
        session = made.sites[DEALER]
        answered, made.sites[DEALER] = session.handle(message), session
        assert not any(isinstance(effect, secagg.Send) for effect in answered)
        made = federation()
        made.run()
        true = complaint_of(made, LIAR, DEALER, OTHER)
    (sent,) = made.sites[DEALER].handle(accusation(made, true))
    assert read(Justification, sent.message).complainer == LIAR


def test_a_dealer_that_has_uploaded_has_no_key_left_so_both_are_left_out():
    """Or a false complaint would wait for that, and take honest dealers out one by one."""
    made = Federation(make_plan(6, colluders=2))
    hold = made.hold("masked-input", origin=SITES[5])  # the others have uploaded
    assert hold
    made.run()
    complaint = complaint_of(made, LIAR, DEALER, OTHER)
    made.deliver(LIAR, "", complaint)
    made.run()
    close(made)

    assert made.sites[DEALER].phase == "votes"
    assert left_out(made) == {DEALER, LIAR}
    assert accused(made) == set()
    assert disputes(made) == set()


def test_while_complaints_are_heard_no_update_is_taken():
    made = Federation(make_plan(6, colluders=2))
    upload = made.hold("masked-input", origin=SITES[0])
    made.deliver(LIAR, "", complaint_of(made, LIAR, DEALER, OTHER))

    with pytest.raises(secagg_error(), match="sent an update in the complaints phase"):
        made.deliver(SITES[0], "", upload)


def secagg_error() -> type[Exception]:
    from veilsum.errors import PeerError

    return PeerError


# --- other attempts -----------------------------------------------------------------------


def test_complaints_and_answers_of_another_attempt_are_none():
    """Context and T1 are in both: nothing that was said once can be said again by anyone else."""
    old = federation()
    old.run()
    complaint = complaint_of(old, LIAR, DEALER, OTHER)
    (sent,) = old.sites[DEALER].handle(accusation(old, complaint))
    made = Federation(make_plan(6, colluders=2, attempt=1))
    made.contribute = lambda site: []  # type: ignore[method-assign]
    made.run()

    (refused,) = made.sites[DEALER].handle(accusation(made, complaint))
    assert isinstance(refused, secagg.Withdraw)
    for site, message in ((LIAR, complaint), (SITES[0], sent.message)):
        made.deliver(site, "", message)
        assert site in made.excluded
    assert made.coordinator.phase != "complaints"
    assert accused(made) == set()
    assert left_out(made) == set()


def test_a_repeated_complaint_and_a_repeated_answer_change_nothing():
    made = federation()
    made.run()
    complaint = complaint_of(made, LIAR, DEALER, OTHER)
    made.deliver(LIAR, "", complaint)
    answer = made.hold("justification", origin=DEALER)
    for _ in range(2):
        made.deliver(LIAR, "", complaint)
        made.deliver(DEALER, "", answer)

    assert made.excluded == {}
    close(made)
    assert disputes(made) == {(DEALER, LIAR)}
