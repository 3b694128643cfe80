"""What sites and coordinator do not accept. Each test is one attack or one fault."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from support.secagg import (
    NAMES,
    UPLOAD,
    Federation,
    consortium,
    forge,
    make_contributions,
    make_plan,
    read,
    seal,
    signing_key,
)
from veilsum import secagg
from veilsum._native import Secret
from veilsum.errors import ConfigError, DecodeError, PeerError
from veilsum.secagg import dealing, keys, merkle
from veilsum.secagg.envelope import Envelope
from veilsum.secagg.masks import MaskKeys
from veilsum.secagg.messages import (
    InputHeader,
    KeyAdvert,
    KeyRoster,
    RoundOpen,
    SealedDeal,
    ShareDeal,
    ShareRelay,
    SurvivorCertificate,
    SurvivorProposal,
    SurvivorVote,
    UnmaskShares,
)
from veilsum.secagg.payload import COORDINATOR
from veilsum.secagg.transcript import survivors_transcript
from veilsum.secagg.upload import encode_upload

BASEL, KYOTO, LYON, OSLO = NAMES[:4]
VICTIM = BASEL


@pytest.fixture
def federation() -> Federation:
    return Federation(make_plan(4))


def withdrawal(effects: list[secagg.SiteEffect]) -> secagg.Withdraw:
    *shown, effect = effects
    assert all(isinstance(one, secagg.Blamed) for one in shown), shown
    assert isinstance(effect, secagg.Withdraw), effect
    return effect


def refuses(federation: Federation, message: bytes, code: str, reason: str) -> None:
    """The victim withdraws over this message, for this reason, and is deaf afterwards."""
    session = federation.sites[VICTIM]
    effect = withdrawal(session.handle(message))
    assert effect.code == code, effect
    assert reason in effect.reason, effect
    assert session.phase == "withdrawn"
    assert session.handle(message) == []


def resealed(envelope: Envelope, kind: type, **changes) -> Envelope:
    return Envelope.from_bytes(forge(kind, envelope.to_bytes(), **changes))


# --- the invitation


def test_an_invitation_that_the_coordinator_did_not_sign_is_refused(federation):
    opened = read(RoundOpen, federation.hold("round-open", to=VICTIM))

    refuses(federation, seal(opened, signer=KYOTO), "malformed", "another key than its sender's")


def test_a_manifest_of_another_attempt_is_refused(federation):
    opened = federation.hold("round-open", to=VICTIM)
    other = make_plan(4, attempt=1).to_bytes()

    refuses(
        federation, forge(RoundOpen, opened, manifest=other), "plan", "another round or attempt"
    )


def test_a_manifest_that_cannot_protect_is_refused(federation):
    """The thresholds' four bytes come after names, numbers and hashes; q is the third."""
    opened = federation.hold("round-open", to=VICTIM)
    manifest = bytearray(read(RoundOpen, opened).manifest)
    thresholds = manifest.index(bytes([3, 1, 3, 3, 16]))
    manifest[thresholds + 2] = 2

    refuses(
        federation,
        forge(RoundOpen, opened, manifest=bytes(manifest)),
        "plan",
        "allows two survivor sets",
    )


def test_a_plan_outside_the_policy_is_refused():
    policy = secagg.LocalPolicy(min_sites=5)
    federation = Federation(make_plan(4), policies={VICTIM: policy})

    refuses(federation, federation.hold("round-open", to=VICTIM), "policy", "min_sites is 3")


def test_a_site_that_is_not_in_the_cohort_does_not_take_part(federation):
    plan = make_plan(4, cohort=NAMES[1:5])
    opened = seal(RoundOpen(plan.context, COORDINATOR, plan.to_bytes()))

    refuses(federation, opened, "not_invited", "not in the cohort")


def test_a_second_invitation_is_refused(federation):
    opened = federation.hold("round-open", to=VICTIM)
    federation.deliver("", VICTIM, opened)
    plan = make_plan(4, nonce=b"\1" * 32)
    second = seal(RoundOpen(plan.context, COORDINATOR, plan.to_bytes()))

    refuses(federation, second, "equivocation", "second, different round-open")


def test_an_invitation_to_another_attempt_ends_this_one_and_contradicts_nothing(federation):
    opened = federation.hold("round-open", to=VICTIM)
    federation.deliver("", VICTIM, opened)
    plan = make_plan(4, attempt=1)
    second = seal(RoundOpen(plan.context, COORDINATOR, plan.to_bytes()))

    refuses(federation, second, "protocol", "another round or attempt")


def test_a_session_needs_the_key_of_its_roster_entry():
    with pytest.raises(ConfigError, match="not the one the roster lists for site 'basel'"):
        secagg.SiteSession(
            site=BASEL,
            signing_key=signing_key(KYOTO),
            roster=consortium().roster,
            policy=secagg.LocalPolicy(),
            entropy=Secret.zeros,
            ledger=secagg.Ledger.in_memory(Secret.zeros),
        )
    with pytest.raises(ConfigError, match="for the coordinator"):
        secagg.CoordinatorSession(
            make_plan(4), signing_key=signing_key(KYOTO), audit_seed=bytes(32)
        )


# --- the key roster


def with_advert(message: bytes, position: int, envelope: Envelope) -> bytes:
    adverts = list(read(KeyRoster, message).adverts)
    adverts[position] = envelope
    return forge(KeyRoster, message, adverts=tuple(adverts))


def test_a_public_key_swapped_by_the_coordinator_is_refused(federation):
    roster = federation.hold("key-roster", to=VICTIM)
    advert = read(KeyAdvert, read(KeyRoster, roster).adverts[1].to_bytes())
    swapped = replace(advert, mask_key=keys.public_key(Secret.from_bytes(b"\7" * 32)))
    forged = Envelope.from_bytes(seal(swapped, signer=""))

    refuses(federation, with_advert(roster, 1, forged), "malformed", "signed by nobody")
    assert federation.sites[VICTIM].plan is not None


def test_a_public_key_swapped_under_the_true_signature_is_refused(federation):
    roster = federation.hold("key-roster", to=VICTIM)
    true = read(KeyRoster, roster).adverts[1]
    advert = read(KeyAdvert, true.to_bytes())
    swapped = replace(advert, mask_key=keys.public_key(Secret.from_bytes(b"\7" * 32)))
    forged = Envelope(swapped.to_payload(), true.signature, true.key_id)

    refuses(federation, with_advert(roster, 1, forged), "malformed", "signature")


def test_a_roster_without_the_sites_own_advert_is_refused(federation):
    roster = federation.hold("key-roster", to=VICTIM)
    adverts = read(KeyRoster, roster).adverts[1:]

    refuses(federation, forge(KeyRoster, roster, adverts=adverts), "keys", "own advert")


def test_a_roster_with_another_advert_of_the_site_itself_is_refused(federation):
    roster = federation.hold("key-roster", to=VICTIM)
    own = read(KeyRoster, roster).adverts[0]
    other = resealed(own, KeyAdvert, self_commitment=b"\1" * 32)

    refuses(federation, with_advert(roster, 0, other), "keys", "own advert")


def test_a_roster_with_too_few_sites_is_refused(federation):
    roster = federation.hold("key-roster", to=VICTIM)
    adverts = read(KeyRoster, roster).adverts[:2]

    refuses(federation, forge(KeyRoster, roster, adverts=adverts), "keys", "2 sites sent keys, 3")


def test_a_roster_that_repeats_or_reorders_sites_is_refused(federation):
    roster = federation.hold("key-roster", to=VICTIM)
    first, second, *rest = read(KeyRoster, roster).adverts

    refuses(
        federation,
        forge(KeyRoster, roster, adverts=(first, second, second, *rest)),
        "malformed",
        "repeated or not sorted",
    )


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        (bytes(32), "low order"),
        ((2**255 - 19 + 9).to_bytes(32, "little"), "not in canonical form"),
        ("own", "in use already"),
    ],
)
def test_a_bad_public_key_of_a_peer_is_refused_at_the_roster(federation, key, reason):
    roster = federation.hold("key-roster", to=VICTIM)
    adverts = read(KeyRoster, roster).adverts
    key = read(KeyAdvert, adverts[0].to_bytes()).mask_key if key == "own" else key
    bad = resealed(adverts[1], KeyAdvert, mask_key=key)

    refuses(federation, with_advert(roster, 1, bad), "keys", reason)


@pytest.mark.parametrize("field", ["mask_key", "channel_key"])
def test_a_site_that_advertises_a_bad_key_costs_only_itself_the_round(federation, field):
    advert = federation.hold("key-advert", origin=KYOTO)

    federation.deliver(KYOTO, "", forge(KeyAdvert, advert, **{field: b"\1" + bytes(31)}))
    federation.run()

    assert federation.excluded == {KYOTO: "advertised a public key of low order"}
    assert federation.result.sites == (BASEL, LYON, OSLO)


def test_a_site_cannot_advertise_the_key_of_another(federation):
    advert = federation.hold("key-advert", origin=KYOTO)
    stolen = read(KeyAdvert, next(iter_sent(federation, "key-advert", BASEL))).mask_key

    federation.deliver(KYOTO, "", forge(KeyAdvert, advert, mask_key=stolen))
    federation.run()

    assert federation.excluded == {KYOTO: "advertised a public key that is in use already"}


def iter_sent(federation: Federation, kind: str, origin: str):
    for sender, _, message in federation.sent:
        if sender == origin and isinstance(message, bytes):
            envelope = Envelope.from_bytes(message)
            if envelope.payload in federation.payloads(kind).values():
                yield message


def test_sites_with_different_views_of_the_keys_never_reach_a_sum(federation):
    """The coordinator shows one site a fourth key of its own making, signed by a colluder."""
    roster = federation.hold("key-roster", to=VICTIM)
    other = resealed(read(KeyRoster, roster).adverts[3], KeyAdvert, self_commitment=b"\1" * 32)

    federation.deliver("", VICTIM, with_advert(roster, 3, other))
    federation.run()

    assert "T1 differs" in federation.excluded[VICTIM]
    assert federation.result.sites == (KYOTO, LYON, OSLO)


# --- the share relay


def relay_with(message: bytes, position: int, **changes) -> bytes:
    deals = list(read(ShareRelay, message).deals)
    deals[position] = replace(deals[position], **changes)
    return forge(ShareRelay, message, deals=tuple(deals))


NOT_SIGNED = "the share relayed as of site 'kyoto': "


def share_with(message: bytes, position: int, **changes) -> bytes:
    """A relay in which one dealer's share for the victim is another."""
    share = read(ShareRelay, message).deals[position].share
    return relay_with(message, position, share=replace(share, **changes))


def test_a_box_reflected_to_its_own_dealer_is_refused(federation):
    relay = federation.hold("share-relay", to=VICTIM)
    own_box = read(ShareRelay, relay).deals[0].share.box

    refuses(federation, share_with(relay, 1, box=own_box), "malformed", NOT_SIGNED)


def test_a_reflected_box_does_not_open_even_where_its_hash_is_signed():
    """Each direction has its own key, so the hash is not the only guard."""
    private = {site: Secret.from_bytes(site.encode().ljust(32, b".")) for site in (BASEL, KYOTO)}
    ends = {site: (site, keys.public_key(secret)) for site, secret in private.items()}
    t1 = bytes(32)
    sent = keys.channel_key(t1, private[BASEL], ends[BASEL], ends[KYOTO], sending=True)
    box = keys.seal_box(sent, t1, BASEL, KYOTO, Secret.zeros(64))

    opening = keys.channel_key(t1, private[BASEL], ends[BASEL], ends[KYOTO], sending=False)
    with pytest.raises(PeerError, match="'kyoto' dealt a box that does not open"):
        keys.open_box(opening, t1, KYOTO, BASEL, box)


@pytest.mark.parametrize("change", ["dealer", "receiver", "t1"])
def test_a_box_is_bound_to_its_dealer_receiver_and_round(change):
    key, t1 = Secret.from_bytes(b"\5" * 32), bytes(32)
    box = keys.seal_box(key, t1, BASEL, KYOTO, Secret.zeros(64))
    where = {"dealer": BASEL, "receiver": KYOTO, "t1": t1}
    where[change] = b"\1" * 32 if change == "t1" else LYON

    with pytest.raises(PeerError, match="does not open"):
        keys.open_box(key, where["t1"], where["dealer"], where["receiver"], box)


def test_a_box_meant_for_another_receiver_is_refused(federation):
    relay = federation.hold("share-relay", to=VICTIM)
    other = SealedDeal.from_bytes(sent_deal(federation, KYOTO)).shares[2].box

    refuses(federation, share_with(relay, 1, box=other), "malformed", NOT_SIGNED)


@pytest.mark.parametrize("position", [1, 2, 3])
def test_another_receivers_share_is_refused_although_its_proof_holds(federation, position):
    """Which leaf is the victim's follows from its place among the members."""
    relay = federation.hold("share-relay", to=VICTIM)
    deal = SealedDeal.from_bytes(sent_deal(federation, KYOTO))
    _, proofs = merkle.root_and_proofs([share.entry.leaf for share in deal.shares])
    other = relay_with(relay, 1, share=deal.shares[position], proof=proofs[position])

    refuses(federation, other, "malformed", NOT_SIGNED)


@pytest.mark.parametrize("field", ["mask_commitment", "self_commitment"])
def test_a_commitment_that_the_coordinator_changed_is_refused(federation, field):
    relay = federation.hold("share-relay", to=VICTIM)

    refuses(federation, share_with(relay, 1, **{field: b"\1" * 32}), "malformed", NOT_SIGNED)


@pytest.mark.parametrize(
    "change", [lambda p: p[:-1], lambda p: (), lambda p: p[::-1], lambda p: (*p, p[-1])]
)
def test_a_proof_that_is_cut_or_turned_is_refused(federation, change):
    relay = federation.hold("share-relay", to=VICTIM)
    proof = read(ShareRelay, relay).deals[1].proof

    refuses(federation, relay_with(relay, 1, proof=change(proof)), "malformed", NOT_SIGNED)


def sent_deal(federation: Federation, dealer: str) -> bytes:
    for origin, _, message in federation.sent:
        if origin == dealer and isinstance(message, bytes):
            try:
                SealedDeal.from_bytes(message)
            except DecodeError:
                continue
            return message
    raise AssertionError("no deal was sent")


def test_a_relay_without_the_sites_own_deal_is_refused(federation):
    relay = federation.hold("share-relay", to=VICTIM)
    deals = read(ShareRelay, relay).deals[1:]

    refuses(federation, forge(ShareRelay, relay, deals=deals), "protocol", "own deal")


def test_a_relay_of_fewer_dealers_than_the_quorum_is_refused(federation):
    relay = federation.hold("share-relay", to=VICTIM)
    deals = read(ShareRelay, relay).deals[:2]

    refuses(federation, forge(ShareRelay, relay, deals=deals), "protocol", "2 sites dealt shares")


def test_a_deal_for_another_set_of_keys_is_refused_and_names_the_dealer(federation):
    relay = federation.hold("share-relay", to=VICTIM)
    header = read(ShareRelay, relay).deals[1].header
    other = resealed(header, ShareDeal, t1=b"\1" * 32)

    refuses(
        federation, relay_with(relay, 1, header=other), "bad_share", "site 'kyoto' dealt shares"
    )


def test_a_share_that_does_not_match_its_commitment_makes_the_site_complain(federation):
    """A dealer that boxes other shares than it commits to: the receivers name it."""
    bad_dealer(federation, KYOTO, corrupt_box=True)
    federation.run()

    *_, blamed, leave_out, last = federation.coordinator_effects
    assert (blamed.accused, blamed.fault) == (KYOTO, secagg.Fault.BAD_DEAL)
    assert leave_out.site == KYOTO
    assert isinstance(last, secagg.Aborted)
    assert "cannot use what site 'kyoto' dealt" in last.reason


def bad_dealer(federation: Federation, dealer: str, *, corrupt_box: bool) -> None:
    """Replaces the dealer's shares: by garbage in the boxes, or by shares of another secret
    that are committed to correctly."""
    federation.hold("share-deal", origin=dealer)
    session = federation.sites[dealer]
    phase = session._phase
    plan, members, secrets = federation.plan, phase.members, phase.secrets
    entropy = federation.entropies[dealer]
    other = replace(secrets, self_seed=entropy(32))
    deal, shares = dealing.deal_shares(plan, dealer, members, other, entropy)
    if corrupt_box:
        _, honest = dealing.deal_shares(plan, dealer, members, secrets, entropy)
        shares = tuple(
            replace(committed, box=sent.box) for committed, sent in zip(honest, shares, strict=True)
        )
        deal = replace(deal, root=merkle.root_hash([share.entry.leaf for share in shares]))
    sealed = SealedDeal(Envelope.from_bytes(seal(deal)), shares)
    session._phase = replace(phase, deal=sealed.header)
    federation.deliver(dealer, "", sealed.to_bytes())


def test_a_dealer_that_shared_another_secret_than_it_advertised_is_named_in_the_abort(federation):
    bad_dealer(federation, KYOTO, corrupt_box=False)
    federation.run()

    last = federation.coordinator_effects[-1]
    assert last == secagg.Aborted("site 'kyoto' shared another secret than the one it advertised")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda shares: shares[::-1], "sent shares that are not those under its signed root"),
        (
            lambda shares: (replace(shares[0], box=shares[1].box), *shares[1:]),
            "sent shares that are not those under its signed root",
        ),
        (lambda shares: shares[:-1], "dealt 3 shares to 4 sites"),
        (lambda shares: (*shares, shares[0]), "dealt 5 shares to 4 sites"),
    ],
)
def test_shares_that_the_signed_root_is_not_over_cost_the_dealer_the_round(
    federation, change, reason
):
    deal = SealedDeal.from_bytes(federation.hold("share-deal", origin=KYOTO))
    changed = replace(deal, shares=change(deal.shares))

    federation.deliver(KYOTO, "", changed.to_bytes())
    federation.run()

    assert federation.excluded == {KYOTO: reason}
    assert federation.result.sites == (BASEL, LYON, OSLO)


def test_a_dealer_that_signs_the_root_of_another_number_of_shares_is_out(federation):
    deal = SealedDeal.from_bytes(federation.hold("share-deal", origin=KYOTO))
    fewer = deal.shares[:-1]
    root = merkle.root_hash([share.entry.leaf for share in fewer])
    header = resealed(deal.header, ShareDeal, root=root)

    federation.deliver(KYOTO, "", SealedDeal(header, fewer).to_bytes())
    federation.run()

    assert federation.excluded == {KYOTO: "dealt 3 shares to 4 sites"}


# --- the survivor set


def proposal_with(message: bytes, survivors) -> bytes:
    return forge(SurvivorProposal, message, survivors=tuple(survivors))


def test_a_proposal_with_another_input_of_the_site_is_refused(federation):
    proposal = federation.hold("survivor-proposal", to=VICTIM)
    survivors = dict(read(SurvivorProposal, proposal).survivors) | {VICTIM: b"\1" * 32}

    refuses(
        federation, proposal_with(proposal, survivors.items()), "survivors", "another input of this"
    )


def test_a_proposal_that_counts_an_input_never_sent_is_refused(federation):
    federation.contribute = lambda site: []
    federation.run()
    plan, session = federation.plan, federation.sites[VICTIM]
    assert session.phase == "inputs"
    survivors = tuple((site, b"\1" * 32) for site in plan.cohort)
    proposal = SurvivorProposal(plan.context, COORDINATOR, session._phase.t2, survivors)

    refuses(federation, seal(proposal), "survivors", "another input of this")


def test_a_proposal_below_the_quorum_is_refused(federation):
    proposal = federation.hold("survivor-proposal", to=VICTIM)
    survivors = read(SurvivorProposal, proposal).survivors[:2]

    refuses(federation, proposal_with(proposal, survivors), "survivors", "2 updates are in the sum")


def test_a_proposal_at_the_quorum_is_voted_for(federation):
    proposal = federation.hold("survivor-proposal", to=VICTIM)
    survivors = read(SurvivorProposal, proposal).survivors[:3]

    (vote,) = federation.sites[VICTIM].handle(proposal_with(proposal, survivors))

    t2 = read(SurvivorProposal, proposal).t2
    assert read(SurvivorVote, vote.message).t3 == survivors_transcript(t2, dict(survivors))


@pytest.mark.parametrize(
    "change", [lambda s: (*s, ("turin", b"\1" * 32)), lambda s: s[::-1], lambda s: (*s, s[-1])]
)
def test_a_proposal_with_strangers_or_out_of_order_is_refused(federation, change):
    proposal = federation.hold("survivor-proposal", to=VICTIM)
    survivors = change(read(SurvivorProposal, proposal).survivors)

    effect = withdrawal(federation.sites[VICTIM].handle(proposal_with(proposal, survivors)))

    assert effect.code == "survivors"


def test_a_proposal_after_other_shares_is_refused(federation):
    proposal = federation.hold("survivor-proposal", to=VICTIM)

    refuses(federation, forge(SurvivorProposal, proposal, t2=b"\1" * 32), "survivors", "T2 differs")


def test_a_site_votes_once_and_refuses_a_second_proposal(federation):
    proposal = federation.hold("survivor-proposal", to=VICTIM)
    (vote,) = federation.sites[VICTIM].handle(proposal)
    assert federation.sites[VICTIM].handle(proposal) == [vote]
    survivors = read(SurvivorProposal, proposal).survivors[:3]

    refuses(
        federation,
        proposal_with(proposal, survivors),
        "equivocation",
        "a second, different survivor-proposal",
    )


def test_a_site_that_missed_the_deadline_gives_up_its_update_and_still_votes(federation):
    upload = federation.hold(UPLOAD, origin=VICTIM)
    federation.run()
    session, plan = federation.sites[VICTIM], federation.plan
    assert session.upload == upload
    survivors = tuple(sorted((s, b"\1" * 32) for s in plan.cohort if s != VICTIM))
    proposal = SurvivorProposal(plan.context, COORDINATOR, session._phase.t2, survivors)

    (vote,) = session.handle(seal(proposal))

    assert isinstance(vote, secagg.Send)
    assert session.upload is None
    with pytest.raises(ConfigError, match="cannot contribute in phase 'unmask'"):
        federation.contribute(VICTIM)


# --- the certificate


def votes_of(certificate: bytes) -> tuple[Envelope, ...]:
    return read(SurvivorCertificate, certificate).votes


def test_a_certificate_with_one_vote_twice_is_refused(federation):
    certificate = federation.hold("survivor-certificate", to=VICTIM)
    votes = votes_of(certificate)

    refuses(
        federation,
        forge(SurvivorCertificate, certificate, votes=(votes[0], votes[1], votes[1])),
        "malformed",
        "repeated or not sorted",
    )


def test_a_certificate_below_the_quorum_is_refused_and_at_the_quorum_accepted(federation):
    certificate = federation.hold("survivor-certificate", to=VICTIM)
    votes = votes_of(certificate)
    enough = forge(SurvivorCertificate, certificate, votes=votes[:3])

    assert isinstance(federation.sites[KYOTO].handle(enough)[0], secagg.Send)
    refuses(
        federation,
        forge(SurvivorCertificate, certificate, votes=votes[:2]),
        "votes",
        "2 sites voted, 3 are needed",
    )


def test_a_certificate_with_a_vote_of_a_non_member_is_refused(federation):
    certificate = federation.hold("survivor-certificate", to=VICTIM)
    t3 = read(SurvivorCertificate, certificate).t3
    stranger = Envelope.from_bytes(seal(SurvivorVote(federation.plan.context, "turin", t3)))

    refuses(
        federation,
        forge(SurvivorCertificate, certificate, votes=(*votes_of(certificate)[:3], stranger)),
        "malformed",
        "signed by nobody in the cohort",
    )


def test_a_certificate_with_a_vote_of_a_site_that_dealt_no_shares_is_refused():
    federation = Federation(make_plan(5, colluders=0))
    federation.hold("share-deal", origin=KYOTO)
    federation.from_coordinator(federation.coordinator.lost(KYOTO, "is gone"))
    certificate = federation.hold("survivor-certificate", to=VICTIM)
    t3 = read(SurvivorCertificate, certificate).t3
    ghost = Envelope.from_bytes(seal(SurvivorVote(federation.plan.context, KYOTO, t3)))
    first, *rest = votes_of(certificate)

    refuses(
        federation,
        forge(SurvivorCertificate, certificate, votes=(first, ghost, *rest)),
        "votes",
        "votes of sites without shares: ['kyoto']",
    )


def test_a_certificate_for_another_survivor_set_is_refused(federation):
    certificate = federation.hold("survivor-certificate", to=VICTIM)

    refuses(
        federation, forge(SurvivorCertificate, certificate, t3=b"\1" * 32), "votes", "T3 differs"
    )


def test_a_certificate_with_a_vote_for_another_set_is_refused(federation):
    certificate = federation.hold("survivor-certificate", to=VICTIM)
    votes = list(votes_of(certificate))
    votes[2] = resealed(votes[2], SurvivorVote, t3=b"\1" * 32)

    refuses(
        federation,
        forge(SurvivorCertificate, certificate, votes=tuple(votes)),
        "votes",
        "site 'lyon' voted for another survivor set",
    )


def test_a_certificate_with_a_forged_vote_is_refused(federation):
    certificate = federation.hold("survivor-certificate", to=VICTIM)
    votes = list(votes_of(certificate))
    votes[2] = replace(votes[2], signature=bytes(64))

    refuses(
        federation,
        forge(SurvivorCertificate, certificate, votes=tuple(votes)),
        "malformed",
        "signature",
    )


def test_a_repeated_certificate_gets_the_identical_shares_and_a_different_one_nothing(federation):
    certificate = federation.hold("survivor-certificate", to=VICTIM)
    session = federation.sites[VICTIM]

    send, done = session.handle(certificate)

    assert done == secagg.Done()
    assert session.handle(certificate) == [send]
    fewer = forge(SurvivorCertificate, certificate, votes=votes_of(certificate)[:3])
    refuses(federation, fewer, "equivocation", "a second, different survivor-certificate")


def test_a_site_never_returns_both_secrets_of_one_site_nor_any_of_an_outsider():
    federation = Federation(make_plan(5, colluders=0))
    federation.hold("key-advert", origin=OSLO)
    federation.from_coordinator(federation.coordinator.lost(OSLO, "is gone"))
    federation.hold(UPLOAD, origin=LYON)
    federation.from_coordinator(federation.coordinator.lost(LYON, "is gone"))

    answer = read(UnmaskShares, federation.hold("unmask-shares", origin=VICTIM))

    assert [site for site, _ in answer.self_shares] == [BASEL, KYOTO, "quito"]
    assert [site for site, _ in answer.mask_shares] == [LYON]


# --- order and replay

SITE_MESSAGES = [
    "round-open",
    "key-roster",
    "share-relay",
    "survivor-proposal",
    "survivor-certificate",
]


@pytest.mark.parametrize("kind", SITE_MESSAGES[1:])
def test_a_message_of_another_attempt_is_refused_in_its_own_phase(kind):
    old = Federation(make_plan(4, attempt=0)).hold(kind, to=VICTIM)
    federation = Federation(make_plan(4, attempt=1))
    federation.hold(kind, to=VICTIM)

    refuses(federation, old, "malformed", "another round or attempt")


@pytest.mark.parametrize("kind", SITE_MESSAGES)
def test_a_message_before_its_time_is_refused(kind):
    early = Federation(make_plan(4)).hold(kind, to=VICTIM)
    federation = Federation(make_plan(4))
    if kind == "round-open":
        federation.hold("key-roster", to=VICTIM)
        other = make_plan(4, attempt=1)
        early = seal(RoundOpen(other.context, COORDINATOR, other.to_bytes()))

    assert withdrawal(federation.sites[VICTIM].handle(early)).code == "protocol"


@pytest.mark.parametrize("kind", SITE_MESSAGES)
def test_a_second_message_that_another_signed_is_no_equivocation_of_the_coordinator(kind):
    """Else anyone on the way could make the coordinator look guilty."""
    federation = Federation(make_plan(4))
    first = federation.hold(kind, to=VICTIM)
    federation.deliver("", VICTIM, first)
    payload = Envelope.from_bytes(first).payload
    forged = Envelope.sign(kind, payload + b"\0", signing_key(KYOTO))
    disguised = replace(forged, key_id=Envelope.from_bytes(first).key_id)

    refuses(federation, disguised.to_bytes(), "malformed", f"the signature of a {kind} message")


@pytest.mark.parametrize("kind", SITE_MESSAGES[1:])
def test_a_second_message_from_another_attempt_is_no_equivocation(kind):
    old = Federation(make_plan(4, attempt=0)).hold(kind, to=VICTIM)
    federation = Federation(make_plan(4, attempt=1))
    federation.deliver("", VICTIM, federation.hold(kind, to=VICTIM))

    refuses(federation, old, "malformed", "another round or attempt")


@pytest.mark.parametrize("kind", SITE_MESSAGES)
def test_a_repeated_message_gets_the_identical_answer_and_changes_nothing(federation, kind):
    message = federation.hold(kind, to=VICTIM)
    session = federation.sites[VICTIM]
    first = [one for one in session.handle(message) if isinstance(one, secagg.Send)]
    phase = session.phase

    assert session.handle(message) == first
    assert session.phase == phase


@pytest.mark.parametrize("garbage", [b"", b"\0" * 40, b"\xff" * 500])
def test_bytes_that_are_no_message_end_the_sites_session(federation, garbage):
    refuses(federation, garbage, "malformed", "")


@pytest.mark.parametrize("garbage", [b"", b"\0" * 40, b"\xff" * 500])
@pytest.mark.parametrize("kind", ["key-advert", "share-deal", "survivor-vote", "unmask-shares"])
def test_bytes_that_are_no_message_cost_only_their_sender_the_round(kind, garbage):
    federation = Federation(make_plan(4))
    federation.hold(kind, origin=KYOTO)

    federation.deliver(KYOTO, "", garbage)
    federation.run()

    assert set(federation.excluded) == {KYOTO}
    assert set(federation.result.sites) >= {BASEL, LYON, OSLO}


def test_two_different_adverts_of_one_site_exclude_it(federation):
    advert = federation.hold("key-advert", origin=KYOTO)
    federation.deliver(KYOTO, "", advert)
    assert federation.coordinator.handle(KYOTO, advert) == []

    federation.deliver(KYOTO, "", forge(KeyAdvert, advert, self_commitment=b"\1" * 32))

    assert federation.excluded == {KYOTO: "sent two different messages in the keys phase"}


def test_the_coordinator_ignores_a_repeated_message_in_any_later_phase(federation):
    advert = federation.hold("key-advert", origin=KYOTO)
    federation.deliver(KYOTO, "", advert)
    for kind in ("share-deal", UPLOAD, "survivor-vote", "unmask-shares"):
        message = federation.hold(kind, origin=KYOTO)
        assert federation.coordinator.handle(KYOTO, advert) == []
        federation.deliver(KYOTO, "", message)
    federation.run()

    assert federation.excluded == {}
    assert federation.result.sites == federation.plan.cohort


def test_a_vote_for_another_set_excludes_the_voter(federation):
    vote = federation.hold("survivor-vote", origin=KYOTO)

    federation.deliver(KYOTO, "", forge(SurvivorVote, vote, t3=b"\1" * 32))
    federation.run()

    assert federation.excluded == {KYOTO: "voted for another survivor set (T3 differs)"}
    assert federation.result.sites == federation.plan.cohort


def test_a_site_outside_the_phase_is_not_listened_to(federation):
    vote = federation.hold("survivor-vote", origin=KYOTO)

    assert federation.coordinator.handle("turin", vote) == []


# --- inputs


def accept(federation: Federation, site: str, upload: secagg.UploadInput, **changes) -> None:
    given = {
        "header": upload.header,
        "update_id": upload.update_id,
        "chunks": upload.chunks,
        **changes,
    }
    federation.coordinator.accept_input(site, **given)


def test_a_second_input_is_refused_and_the_first_one_counts(federation):
    upload = federation.hold(UPLOAD, origin=KYOTO)
    federation.deliver(KYOTO, "", upload)

    with pytest.raises(PeerError, match="'kyoto' sent a second update"):
        accept(federation, KYOTO, upload)
    federation.run()

    plain = secagg.plain_ring_sum(federation.plan, federation.contributions, federation.plan.cohort)
    assert federation.result.digest == plain.digest


def test_a_late_input_is_refused(federation):
    upload = federation.hold(UPLOAD, origin=KYOTO)
    federation.run()
    federation.from_coordinator(federation.coordinator.close_phase())

    with pytest.raises(PeerError, match="out of the round: it sent no updates in time"):
        accept(federation, KYOTO, upload)
    federation.run()
    assert federation.result.sites == (BASEL, LYON, OSLO)


def test_an_input_before_the_shares_are_dealt_is_refused(federation):
    upload = Federation(make_plan(4)).hold(UPLOAD, origin=KYOTO)
    federation.hold("key-advert", origin=KYOTO)

    with pytest.raises(PeerError, match="sent an update in the keys phase"):
        accept(federation, KYOTO, upload)


def test_a_site_that_dealt_no_shares_cannot_upload():
    federation = Federation(make_plan(5, colluders=0))
    federation.hold("share-deal", origin=KYOTO)
    federation.from_coordinator(federation.coordinator.lost(KYOTO, "hung up"))
    upload = federation.hold(UPLOAD, origin=LYON)

    with pytest.raises(PeerError, match="out of the round: it hung up"):
        accept(federation, KYOTO, upload)
    with pytest.raises(PeerError, match="without having dealt shares"):
        accept(federation, "turin", upload)


def test_a_header_of_another_site_shape_or_round_is_refused(federation):
    upload = federation.hold(UPLOAD, origin=KYOTO)
    header = read(InputHeader, upload.header)
    shape = (replace(header.streams[0], elements=1), *header.streams[1:])

    with pytest.raises(DecodeError, match="another key than its sender's"):
        accept(federation, KYOTO, upload, header=seal(replace(header, sender=LYON)))
    with pytest.raises(PeerError, match="T2 differs"):
        accept(federation, KYOTO, upload, header=seal(replace(header, t2=b"\1" * 32)))
    with pytest.raises(PeerError, match="another shape"):
        accept(federation, KYOTO, upload, header=seal(replace(header, streams=shape)))
    with pytest.raises(PeerError, match="a number that is not its own"):
        accept(federation, KYOTO, upload, update_id=upload.update_id ^ 1)


def test_chunks_that_are_not_what_the_header_signed_are_refused_and_nothing_is_folded(federation):
    upload = federation.hold(UPLOAD, origin=KYOTO)
    damaged = (upload.chunks[0][:-1] + bytes([upload.chunks[0][-1] ^ 1]), *upload.chunks[1:])

    with pytest.raises(DecodeError):
        accept(federation, KYOTO, upload, chunks=damaged)
    with pytest.raises(PeerError, match="sent 2 of 3 chunks"):
        accept(federation, KYOTO, upload, chunks=upload.chunks[:2])
    with pytest.raises(PeerError, match="sent 4 of 3 chunks"):
        accept(federation, KYOTO, upload, chunks=(*upload.chunks, upload.chunks[0]))
    with pytest.raises(PeerError, match="sent chunk 2 where chunk 1 is next"):
        accept(federation, KYOTO, upload, chunks=(upload.chunks[0], *upload.chunks[:0:-1]))
    federation.deliver(KYOTO, "", upload)
    federation.run()
    assert federation.result.sites == federation.plan.cohort


def test_chunks_that_are_under_another_root_than_the_header_s_are_refused(federation):
    upload = federation.hold(UPLOAD, origin=KYOTO)
    other_root = seal(replace(read(InputHeader, upload.header), root=b"\1" * 32))

    with pytest.raises(PeerError, match="do not match its signed Merkle root"):
        accept(federation, KYOTO, upload, header=other_root)


def test_a_chunk_of_another_site_is_refused_by_itself(federation):
    mine = federation.hold(UPLOAD, origin=KYOTO)
    other = federation.hold(UPLOAD, origin=LYON)

    receiver = federation.coordinator.input_receiver(KYOTO, mine.header, mine.update_id)

    with pytest.raises(DecodeError):
        receiver.add(other.chunks[0])
    assert receiver.next_index == 0


def test_a_receiver_takes_a_repeated_chunk_but_not_a_changed_one(federation):
    upload = federation.hold(UPLOAD, origin=KYOTO)
    receiver = federation.coordinator.input_receiver(KYOTO, upload.header, upload.update_id)

    for chunk in upload.chunks:
        receiver.add(memoryview(chunk))
        receiver.add(chunk)
        assert len(chunk) <= receiver.max_chunk_bytes

    assert receiver.next_index == receiver.chunk_count == len(upload.chunks)
    receiver.finish()
    changed = bytearray(upload.chunks[0])
    changed[-1] ^= 1
    with pytest.raises(PeerError, match="chunk 0 again with other bytes"):
        receiver.add(bytes(changed))
    with pytest.raises(DecodeError, match="fewer than its header"):
        receiver.add(b"short")
    changed[12] = 9
    with pytest.raises(DecodeError, match="no chunk 0 of group 9"):
        receiver.add(bytes(changed))


def test_an_opened_upload_that_is_not_finished_is_never_in_the_sum(federation):
    upload = federation.hold(UPLOAD, origin=KYOTO)
    receiver = federation.coordinator.input_receiver(KYOTO, upload.header, upload.update_id)
    receiver.add(upload.chunks[0])

    federation.from_coordinator(federation.coordinator.lost(KYOTO, "hung up"))
    federation.run()

    with pytest.raises(PeerError, match="sent 1 of 3 chunks"):
        receiver.finish()
    assert federation.result.sites == (BASEL, LYON, OSLO)


def test_a_second_contribution_is_an_error_and_the_first_is_kept_verbatim(federation):
    upload = federation.hold(UPLOAD, origin=KYOTO)

    with pytest.raises(ConfigError, match="cannot contribute in phase 'votes'"):
        federation.contribute(KYOTO)
    assert federation.sites[KYOTO].upload is upload


BAD_UPDATES = [
    ({"weight": 101}, "no integer from 0 to 100"),
    ({"weight": -1}, "no integer from 0 to 100"),
    ({"weight": 1.0}, "no integer from 0 to 100"),
    ({"weight": True}, "no integer from 0 to 100"),
    ({"metrics": {"loss": float("nan")}}, "metric 'loss'"),
    ({"metrics": {"loss": 2.0**16 + 1}}, "metric 'loss'"),
    ({"metrics": {"secret": 1.0}}, "are not summed"),
    ({"value": np.nan}, "weight"),
    ({"value": np.inf}, "weight"),
    ({"value": 1.0001}, "weight"),
    ({"integer": 2**20 + 1}, "integer outside"),
    ({"integer": -(2**63)}, "integer outside"),
    ({"missing": True}, "lacks tensors"),
    ({"dtype": np.float64}, "float64"),
    ({"shape": (5, 2)}, r"\(5, 2\)"),
]


@pytest.mark.parametrize(("fault", "reason"), BAD_UPDATES, ids=lambda value: str(value)[:30])
def test_an_update_that_does_not_fit_is_refused_before_masking_and_may_be_corrected(fault, reason):
    federation = Federation(make_plan(4))
    federation.contribute = lambda site: []
    federation.run()
    session = federation.sites[VICTIM]
    good = federation.contributions[VICTIM]

    with pytest.raises(ConfigError, match=reason):
        session.contribute(**spoiled(good, dict(fault)))

    assert session.phase == "inputs"
    (upload,) = session.contribute(**spoiled(good, {}))
    assert isinstance(upload, secagg.UploadInput)


def spoiled(good: secagg.Contribution, fault: dict) -> dict:
    update = {name: array.copy() for name, array in good.update.items()}
    if "value" in fault:
        update["weight"][3] = fault.pop("value")
    if "integer" in fault:
        update["steps"][1] = fault.pop("integer")
    if fault.pop("missing", False):
        del update["steps"]
    if "dtype" in fault:
        update["weight"] = update["weight"].astype(fault.pop("dtype"))
    if "shape" in fault:
        update["weight"] = update["weight"].reshape(fault.pop("shape"))
    given = {"weight": good.weight, "metrics": good.metrics, "rounding": good.rounding}
    return {"update": update, **given, **fault}


def test_under_the_clip_rule_larger_values_are_cut_and_counted():
    plan = make_plan(3, overrange="clip")
    contributions = make_contributions(plan)
    contributions[LYON].update["weight"][:2] = (7.0, -7.0)
    federation = Federation(plan, contributions=contributions)

    upload = federation.hold(UPLOAD, origin=LYON)

    assert upload.clipped == 2


@pytest.mark.parametrize("value_bits", [2, 16, 31, 32])
def test_full_weight_at_the_clip_stays_inside_the_range(value_bits):
    plan = make_plan(3, value_bits=value_bits, clip=0.1)
    contributions = {
        site: one._replace(
            update={
                "weight": np.full(10, np.float32(0.0999999), np.float32),
                "steps": np.full(3, plan.integer_limit),
            },
            weight=plan.weight_cap,
        )
        for site, one in make_contributions(plan).items()
    }

    result = secagg.run_in_process(plan, contributions, consortium=consortium())

    np.testing.assert_allclose(result.arrays["weight"], 0.0999999, atol=1.001 / plan.scale)
    assert result.arrays["steps"].tolist() == [plan.integer_limit] * 3


# --- unmasking


def test_a_responder_with_a_wrong_share_is_excluded_and_the_round_completes(federation):
    shares = federation.hold("unmask-shares", origin=KYOTO)
    answer = read(UnmaskShares, shares)
    flipped = ((BASEL, bytes(32)), *answer.self_shares[1:])

    federation.deliver(KYOTO, "", forge(UnmaskShares, shares, self_shares=flipped))
    federation.run()

    assert federation.excluded == {
        KYOTO: "returned a share that is not the one site 'basel' dealt to it"
    }
    assert federation.result.sites == federation.plan.cohort


@pytest.mark.parametrize("fault", ["fewer", "both", "t3"])
def test_a_responder_with_other_shares_than_asked_for_is_excluded(federation, fault):
    shares = federation.hold("unmask-shares", origin=KYOTO)
    answer = read(UnmaskShares, shares)
    changes = {
        "fewer": {"self_shares": answer.self_shares[1:]},
        "both": {"mask_shares": answer.self_shares},
        "t3": {"t3": b"\1" * 32},
    }[fault]

    federation.deliver(KYOTO, "", forge(UnmaskShares, shares, **changes))
    federation.run()

    assert set(federation.excluded) == {KYOTO}
    assert federation.result.sites == federation.plan.cohort


def test_a_mask_that_does_not_cancel_trips_the_range_check_and_nothing_is_published(federation):
    """A site that signs garbage as its masked words."""
    upload = federation.hold(UPLOAD, origin=KYOTO)
    session = federation.sites[KYOTO]
    chunks = resummed(federation, upload)
    root = merkle.root_hash([merkle.leaf_hash(chunk) for chunk in chunks])
    header = forge(InputHeader, upload.header, root=root)
    digest = Envelope.from_bytes(header).payload_digest
    session._phase = replace(session._phase, header_digest=digest)

    federation.deliver(KYOTO, "", replace(upload, header=header, chunks=chunks))
    federation.run()

    last = federation.coordinator_effects[-1]
    assert isinstance(last, secagg.Aborted)
    assert "not one that honest updates can have" in last.reason


def resummed(federation: Federation, upload: secagg.UploadInput) -> tuple[bytes, ...]:
    """The same upload under a mask that nobody will remove."""
    stray = MaskKeys([Secret.from_bytes(hashlib.sha256(b"stray").digest())], [1])
    given = federation.contributions[KYOTO]
    return encode_upload(
        federation.plan, given, stray, update_id=upload.update_id, threads=1
    ).chunks


def test_an_ended_round_takes_nothing_more(federation):
    federation.run()
    coordinator = federation.coordinator

    assert coordinator.phase == "completed"
    assert coordinator.handle(KYOTO, b"anything") == []
    assert coordinator.lost(KYOTO, "left") == []
    assert coordinator.close_phase() == []
    assert coordinator.abort("stop") == []


def test_a_phase_closes_at_its_deadline_without_the_silent_sites():
    federation = Federation(make_plan(5, colluders=0))
    federation.hold("key-advert", origin=KYOTO)
    federation.run()

    effects = federation.coordinator.close_phase()

    assert effects[0] == secagg.Excluded(KYOTO, "sent no keys in time")
    assert effects[-1] == secagg.PhaseBegan("shares", (BASEL, LYON, OSLO, "quito"))
    federation.from_coordinator(effects)
    federation.run()
    assert federation.result.dropped == {KYOTO: "sent no keys in time"}


def test_a_round_that_cannot_succeed_any_more_aborts_at_once(federation):
    coordinator = federation.coordinator

    first = coordinator.lost(KYOTO, "hung up")
    second = coordinator.lost(LYON, "hung up")

    assert first == [secagg.Excluded(KYOTO, "hung up")]
    assert second == [
        secagg.Excluded(LYON, "hung up"),
        secagg.Aborted("0 of 4 sites sent keys, 3 are needed"),
    ]
    assert coordinator.phase == "aborted"
