"""P15: whatever one party does, nobody else is accused; and who merely fails is not accused either.

Every fault below is committed by every party that can commit it, in a round that is otherwise
honest. Each piece of evidence that comes up, at the coordinator or at a site, is checked with the
roster alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from support.faults import (
    OTHER,
    accusations,
    complaint_of,
    deals_badly,
    disputes,
    forged_from,
    left_out,
    off_the_polynomial,
    other_secret,
    seals_badly,
    wrong_answer,
)
from support.secagg import NAMES, UPLOAD, Federation, make_plan, read, seal
from veilsum import secagg
from veilsum.errors import DecodeError, PeerError
from veilsum.secagg import site_complaints
from veilsum.secagg.messages import (
    InputHeader,
    KeyAdvert,
    KeyRoster,
    SealedDeal,
    ShareDeal,
    ShareRelay,
    SurvivorCertificate,
    SurvivorProposal,
    SurvivorVote,
    UnmaskShares,
)

SITES = NAMES[:4]
PLAN = make_plan(4, colluders=1, share_threshold=2)
PHASES = ("key-advert", "share-deal", UPLOAD, "survivor-vote", "unmask-shares")

Commit = Callable[[pytest.MonkeyPatch, str], Federation]


def started() -> Federation:
    return Federation(PLAN)


def other_site(site: str) -> str:
    return SITES[(SITES.index(site) + 1) % len(SITES)]


def finish(made: Federation) -> Federation:
    """Goes on until nothing moves any more, passing deadlines."""
    for _ in range(8):
        try:
            made.run()
        except (DecodeError, PeerError):
            continue  # an upload that was refused
        made.from_coordinator(made.coordinator.close_phase())
    return made


# --- faults of sites --------------------------------------------------------------------


def instead(kind: str, of: type[Any], **changes: Any) -> Commit:
    """Another message than the honest one."""

    def commit(_: pytest.MonkeyPatch, site: str) -> Federation:
        made = started()
        message = made.hold(kind, origin=site)
        made.deliver(site, "", forged_from(message, of, **changes).to_bytes())
        return finish(made)

    return commit


def besides(kind: str, of: type[Any], **changes: Any) -> Commit:
    """A second message after the honest one."""

    def commit(_: pytest.MonkeyPatch, site: str) -> Federation:
        made = started()
        message = made.hold(kind, origin=site)
        made.deliver(site, "", message)
        made.deliver(site, "", forged_from(message, of, **changes).to_bytes())
        return finish(made)

    return commit


def silent(kind: str) -> Commit:
    """An honest site that is gone from here on."""

    def commit(_: pytest.MonkeyPatch, site: str) -> Federation:
        made = started()
        made.hold(kind, origin=site)
        made.from_coordinator(made.coordinator.lost(site, "is gone"))
        return finish(made)

    return commit


def dealing_badly(change: Any) -> Commit:
    def commit(patch: pytest.MonkeyPatch, site: str) -> Federation:
        deals_badly(patch, site, change)
        return finish(started())

    return commit


def sealing_badly(how: str, *, to_all: bool, lies: bool) -> Commit:
    def commit(patch: pytest.MonkeyPatch, site: str) -> Federation:
        receivers = [one for one in SITES if one != site] if to_all else [other_site(site)]
        seals_badly(patch, site, receivers, how)
        if lies:
            honest = site_complaints._box_key
            patch.setattr(
                site_complaints,
                "_box_key",
                lambda channel, own, peer, *, sending: (
                    OTHER if own == site else honest(channel, own, peer, sending=sending)
                ),
            )
        made = started()
        made.contribute = lambda _: []  # type: ignore[method-assign]  # who has uploaded cannot answer
        return finish(made)

    return commit


def another_root(_: pytest.MonkeyPatch, site: str) -> Federation:
    """A root that its shares are not under."""
    made = started()
    sealed = SealedDeal.from_bytes(made.hold("share-deal", origin=site))
    header = forged_from(sealed.header.to_bytes(), ShareDeal, root=bytes(32))
    made.deliver(site, "", replace(sealed, header=header).to_bytes())
    return finish(made)


def second_header(_: pytest.MonkeyPatch, site: str) -> Federation:
    made = started()
    upload = made.hold(UPLOAD, origin=site)
    made.deliver(site, "", upload)
    second = seal(replace(read(InputHeader, upload.header), root=bytes(32)))
    with pytest.raises(PeerError):
        made.coordinator.input_receiver(site, second, upload.update_id)
    return finish(made)


def answering_badly(_: pytest.MonkeyPatch, site: str) -> Federation:
    made = started()
    answer = made.hold("unmask-shares", origin=site)
    made.deliver(site, "", wrong_answer(answer, other_site(site)))
    return finish(made)


def complaining(right_key: bool) -> Commit:
    def commit(_: pytest.MonkeyPatch, site: str) -> Federation:
        made = started()
        made.contribute = lambda _: []  # type: ignore[method-assign]
        made.run()
        dealer = other_site(site)
        channel = made.sites[site]._phase.channel
        key = site_complaints._box_key(channel, site, dealer, sending=False)
        made.deliver(site, "", complaint_of(made, site, dealer, key if right_key else OTHER))
        return finish(made)

    return commit


SITE_FAULTS: dict[str, Commit] = {
    **{f"gone before {kind}": silent(kind) for kind in PHASES},
    "key of low order": instead("key-advert", KeyAdvert, mask_key=bytes(32)),
    "key not canonical": instead("key-advert", KeyAdvert, channel_key=b"\xff" * 32),
    "advert of other keys": instead("key-advert", KeyAdvert, self_commitment=OTHER),
    "vote for another set": instead("survivor-vote", SurvivorVote, t3=OTHER),
    "answer for another set": instead("unmask-shares", UnmaskShares, t3=OTHER),
    "no shares": instead("unmask-shares", UnmaskShares, self_shares=()),
    "two adverts": besides("key-advert", KeyAdvert, self_commitment=OTHER),
    "two votes": besides("survivor-vote", SurvivorVote, t3=OTHER),
    "two answers": besides("unmask-shares", UnmaskShares, t3=OTHER),
    "two headers": second_header,
    "another root": another_root,
    "another secret": dealing_badly(other_secret(PLAN.share_threshold)),
    "one share off": dealing_badly(off_the_polynomial([0])),
    "three shares off": dealing_badly(off_the_polynomial([0, 1, 3])),
    "a box of other shares": sealing_badly("content", to_all=False, lies=False),
    "boxes of other shares": sealing_badly("content", to_all=True, lies=False),
    "a box of garbage": sealing_badly("garbage", to_all=False, lies=False),
    "boxes of garbage": sealing_badly("garbage", to_all=True, lies=True),
    "a box under its own key": sealing_badly("key", to_all=False, lies=True),
    "boxes under its own key": sealing_badly("key", to_all=True, lies=True),
    "wrong share": answering_badly,
    "complaint with the key": complaining(right_key=True),
    "complaint with no key": complaining(right_key=False),
}

CONVICTED = {
    "key of low order": "BAD_KEY",
    "key not canonical": "BAD_KEY",
    "two adverts": "DOUBLE_SIGNED",
    "two votes": "DOUBLE_SIGNED",
    "two answers": "DOUBLE_SIGNED",
    "two headers": "DOUBLE_SIGNED",
    "another secret": "WRONG_SECRET",
    "three shares off": "WRONG_SECRET",
    "a box of other shares": "BAD_DEAL",
    "boxes of other shares": "BAD_DEAL",
    "a box of garbage": "WRONG_JUSTIFICATION",
    "wrong share": "WRONG_SHARE",
    "complaint with the key": "FALSE_COMPLAINT",
}
"""Those of the faults above that can be shown, always."""


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("fault", SITE_FAULTS)
def test_nobody_is_accused_but_the_site_that_broke_the_protocol(fault, site, monkeypatch):
    made = SITE_FAULTS[fault](monkeypatch, site)

    found = {(one.accused, one.fault.name) for one in accusations(made)}
    assert {accused for accused, _ in found} <= {site}, found
    assert all(site in pair for pair in disputes(made))
    if fault in CONVICTED:
        assert (site, CONVICTED[fault]) in found
    if fault.startswith("gone"):
        assert not found
        assert not left_out(made)
    # A dispute takes one honest site along at most, and nothing else takes any.
    assert len(left_out(made) - {site}) <= (1 if disputes(made) else 0)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("how", ["content", "key", "garbage"])
@pytest.mark.parametrize("to_all", [False, True])
def test_a_dealer_that_has_uploaded_meanwhile_takes_one_honest_site_along_at_most(
    how, to_all, site, monkeypatch
):
    receivers = [one for one in SITES if one != site] if to_all else [other_site(site)]
    seals_badly(monkeypatch, site, receivers, how)

    made = finish(started())

    assert {one.accused for one in accusations(made)} <= {site}
    assert site in left_out(made)
    assert len(left_out(made) - {site}) <= (0 if to_all else 1)


# --- faults of the coordinator ----------------------------------------------------------


def to_one(kind: str, change: Callable[[Any, Any], Any], of: type[Any]) -> Commit:
    """One site gets another message than the honest one."""

    def commit(_: pytest.MonkeyPatch, victim: str) -> Federation:
        made = started()
        message = made.hold(kind, to=victim)
        forged = seal(change(read(of, message), made))
        made.deliver("", victim, forged)
        return finish(made)

    return commit


def twice_to_one(kind: str, change: Callable[[Any, Any], Any], of: type[Any]) -> Commit:
    def commit(_: pytest.MonkeyPatch, victim: str) -> Federation:
        made = started()
        message = made.hold(kind, to=victim)
        made.deliver("", victim, message)
        made.deliver("", victim, seal(change(read(of, message), made)))
        return finish(made)

    return commit


def swapped_key(roster: KeyRoster, _: Federation) -> KeyRoster:
    """Under the true signature."""
    first, *rest = roster.adverts
    payload = first.payload[:-32] + OTHER
    return replace(roster, adverts=(replace(first, payload=payload), *rest))


def changed_first(relay: ShareRelay, **changes: Any) -> ShareRelay:
    first, *rest = relay.deals
    return replace(relay, deals=(replace(first, **changes), *rest))


def other_box(relay: ShareRelay, _: Federation) -> ShareRelay:
    return changed_first(relay, share=replace(relay.deals[0].share, box=bytes(80)))


def other_commitment(relay: ShareRelay, _: Federation) -> ShareRelay:
    return changed_first(relay, share=replace(relay.deals[0].share, mask_commitment=OTHER))


def other_proof(relay: ShareRelay, _: Federation) -> ShareRelay:
    return changed_first(relay, proof=(OTHER, *relay.deals[0].proof[1:]))


def boxes_swapped(relay: ShareRelay, _: Federation) -> ShareRelay:
    first, second, *rest = relay.deals
    pair = (replace(first, share=second.share), replace(second, share=first.share))
    return replace(relay, deals=(*pair, *rest))


def header_of_another(relay: ShareRelay, _: Federation) -> ShareRelay:
    first, second, *rest = relay.deals
    pair = (replace(first, header=second.header), replace(second, header=first.header))
    return replace(relay, deals=(*pair, *rest))


def fewer(name: str) -> Callable[[Any, Any], Any]:
    return lambda message, _: replace(message, **{name: getattr(message, name)[1:]})


def relay_of_another(_: pytest.MonkeyPatch, victim: str) -> Federation:
    """The whole relay that is meant for someone else."""
    made = started()
    mine = made.hold("share-relay", to=victim)
    other = next(
        message
        for origin, to, message in made.sent
        if not origin and to == other_site(victim) and b"share-relay" in message[:30]
    )
    assert mine != other
    made.deliver("", victim, other)
    return finish(made)


COORDINATOR_FAULTS: dict[str, Commit] = {
    "a swapped key": to_one("key-roster", swapped_key, KeyRoster),
    "fewer adverts": to_one("key-roster", fewer("adverts"), KeyRoster),
    "another box": to_one("share-relay", other_box, ShareRelay),
    "another commitment": to_one("share-relay", other_commitment, ShareRelay),
    "another proof": to_one("share-relay", other_proof, ShareRelay),
    "boxes swapped": to_one("share-relay", boxes_swapped, ShareRelay),
    "headers swapped": to_one("share-relay", header_of_another, ShareRelay),
    "someone else's relay": relay_of_another,
    "fewer deals": to_one("share-relay", fewer("deals"), ShareRelay),
    "two key rosters": twice_to_one("key-roster", fewer("adverts"), KeyRoster),
    "two relays": twice_to_one("share-relay", fewer("deals"), ShareRelay),
    "two proposals": twice_to_one("survivor-proposal", fewer("survivors"), SurvivorProposal),
    "fewer survivors": to_one("survivor-proposal", fewer("survivors"), SurvivorProposal),
    "two certificates": twice_to_one("survivor-certificate", fewer("votes"), SurvivorCertificate),
    "fewer votes": to_one("survivor-certificate", fewer("votes"), SurvivorCertificate),
}

SHOWN = {
    "a swapped key": "BAD_RELAY",
    "another box": "BAD_RELAY",
    "another commitment": "BAD_RELAY",
    "another proof": "BAD_RELAY",
    "boxes swapped": "BAD_RELAY",
    "two key rosters": "DOUBLE_SIGNED",
    "two proposals": "DOUBLE_SIGNED",
}


@pytest.mark.parametrize("victim", SITES)
@pytest.mark.parametrize("fault", COORDINATOR_FAULTS)
def test_what_the_coordinator_does_is_no_site_s_fault(fault, victim, monkeypatch):
    made = COORDINATOR_FAULTS[fault](monkeypatch, victim)

    found = {(one.accused, one.fault.name) for one in accusations(made)}
    assert {accused for accused, _ in found} <= {""}, found
    assert not disputes(made)
    assert not left_out(made)
    if fault in SHOWN:
        assert ("", SHOWN[fault]) in found


def test_a_round_without_a_fault_accuses_nobody():
    made = finish(started())

    assert not accusations(made)
    assert not disputes(made)
    assert not left_out(made)
    assert any(isinstance(one, secagg.Completed) for one in made.coordinator_effects)
