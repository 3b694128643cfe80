"""T16: the coordinator re-targets sealed boxes, reorders or repeats what it relays, or cuts it off.

The defences: dealer and receiver of a box are authenticated with it and named by the dealer's
signed header; a list names each signer once; what was left out makes another T2, which no other
site votes under.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from support.secagg import NAMES, UPLOAD, Federation, forge, make_plan, read
from veilsum import secagg
from veilsum._native import Secret
from veilsum.errors import DecodeError, PeerError
from veilsum.secagg import keys
from veilsum.secagg.messages import (
    KeyRoster,
    ShareRelay,
    SurvivorCertificate,
)
from veilsum.secagg.transcript import signers_of

SITES = NAMES[:4]
VICTIM, KYOTO, LYON, OSLO = SITES
T1 = b"\1" * 32

# --- boxes ---------------------------------------------------------------------------------------


def opens(sealed: tuple[str, str], told: tuple[str, str]) -> bool:
    """Whether a box of one (dealer, receiver) opens as one of another, under one key."""
    key = Secret.from_bytes(b"\5" * 32)
    box = keys.seal_box(key, T1, *sealed, Secret.from_bytes(bytes(64)))
    try:
        keys.open_box(key, T1, *told, box)
    except PeerError:
        return False
    return True


PAIRS = tuple(itertools.permutations(SITES, 2))


def test_boxes_that_name_nobody_open_for_everybody(monkeypatch):
    monkeypatch.setattr(keys, "_box_header", lambda t1, dealer, receiver: t1)

    assert all(opens(sealed, told) for sealed in PAIRS for told in PAIRS)


def test_a_box_opens_for_its_own_pair_only():
    assert {(sealed, told) for sealed in PAIRS for told in PAIRS if opens(sealed, told)} == {
        (pair, pair) for pair in PAIRS
    }


def relay_to_the_victim() -> tuple[Federation, bytes]:
    federation = Federation(make_plan(4))
    return federation, federation.hold("share-relay", to=VICTIM)


def answer(federation: Federation, message: bytes) -> secagg.SiteEffect:
    return federation.sites[VICTIM].handle(message)[-1]


def test_a_site_takes_no_permutation_of_the_boxes_but_the_true_one():
    """Every way to give the boxes for this site to other dealers than made them."""
    for order in itertools.permutations(range(4)):
        federation, relay = relay_to_the_victim()
        deals = read(ShareRelay, relay).deals
        moved = tuple(
            replace(deals[at], header=deals[place].header) for place, at in enumerate(order)
        )

        effect = answer(federation, forge(ShareRelay, relay, deals=moved))

        assert isinstance(effect, secagg.NeedUpdate) == (order == (0, 1, 2, 3)), (order, effect)


@pytest.mark.parametrize("receiver", [KYOTO, LYON, OSLO])
def test_a_site_takes_no_box_that_is_for_another(receiver):
    """What one dealer, and then every dealer, sealed for another receiver."""
    for place in (*range(4), None):
        federation, relay = relay_to_the_victim()
        deals = read(ShareRelay, relay).deals
        theirs = relayed_to(federation, receiver)
        moved = tuple(theirs[at] if place in (at, None) else deal for at, deal in enumerate(deals))

        effect = answer(federation, forge(ShareRelay, relay, deals=moved))

        assert isinstance(effect, secagg.Withdraw), (place, effect)


def relayed_to(federation: Federation, receiver: str):
    for origin, to, message in federation.sent:
        if (origin, to) == ("", receiver) and b"share-relay" in message[:32]:
            return read(ShareRelay, message).deals
    raise AssertionError(f"no relay for {receiver}")


# --- lists ---------------------------------------------------------------------------------------


def signers_who_may_repeat(plan: secagg.Plan, envelopes) -> list[str]:
    """The variant: every envelope counts."""
    return [signer for envelope in envelopes for signer in signers_of(plan, [envelope])]


def repeated_votes() -> tuple[Federation, bytes]:
    """A certificate of one site's vote, q times over."""
    federation = Federation(make_plan(4))
    certificate = federation.hold("survivor-certificate", to=VICTIM)
    votes = read(SurvivorCertificate, certificate).votes
    return federation, forge(SurvivorCertificate, certificate, votes=(votes[1],) * 3)


def test_where_votes_may_repeat_one_vote_is_a_quorum(monkeypatch):
    monkeypatch.setattr("veilsum.secagg.site_checks.signers_of", signers_who_may_repeat)
    federation, certificate = repeated_votes()

    assert isinstance(answer(federation, certificate), secagg.Done)  # the shares are out


def test_a_vote_counts_once():
    effect = answer(*repeated_votes())

    assert isinstance(effect, secagg.Withdraw)
    assert "repeated or not sorted" in effect.reason


LISTS = {
    "key-roster": (KeyRoster, "adverts"),
    "share-relay": (ShareRelay, "deals"),
    "survivor-certificate": (SurvivorCertificate, "votes"),
}


@pytest.mark.parametrize("kind", LISTS)
def test_no_list_is_taken_in_another_order_or_with_repeats(kind):
    message_type, field = LISTS[kind]
    orders = [(3, 2, 1, 0), *((*range(at), at + 1, at, *range(at + 2, 4)) for at in range(3))]
    repeats = [(0, 0, 1, 2, 3), (0, 1, 2, 3, 3), (0, 1, 1, 1)]
    for order in (*orders, *repeats):
        federation = Federation(make_plan(4))
        message = federation.hold(kind, to=VICTIM)
        items = getattr(read(message_type, message), field)

        changed = forge(message_type, message, **{field: tuple(items[at] for at in order)})

        assert isinstance(answer(federation, changed), secagg.Withdraw), order


@pytest.mark.parametrize("left_out", [KYOTO, LYON, OSLO])
def test_who_is_shown_fewer_dealers_than_the_others_is_in_no_sum(left_out):
    """Enough are left for the victim to go on: but it masks under another T2, under which neither
    its upload nor its vote is worth anything."""
    federation, relay = relay_to_the_victim()
    deals = read(ShareRelay, relay).deals
    fewer = tuple(deal for site, deal in zip(SITES, deals, strict=True) if site != left_out)
    federation.deliver("", VICTIM, forge(ShareRelay, relay, deals=fewer))

    upload = federation.hold(UPLOAD, origin=VICTIM)
    with pytest.raises(PeerError, match="masked its update for another set of shares"):
        federation.deliver(VICTIM, "", upload)
    federation.from_coordinator(federation.coordinator.lost(VICTIM, "is of no use"))
    federation.run()

    assert federation.result.sites == (KYOTO, LYON, OSLO)


def test_a_list_cut_off_in_the_middle_is_refused_byte_by_byte():
    message = Federation(make_plan(4)).hold("share-relay", to=VICTIM)

    for size in range(0, len(message), 97):
        with pytest.raises(DecodeError):
            read(ShareRelay, message[:size])
