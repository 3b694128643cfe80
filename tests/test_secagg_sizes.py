"""Bytes that a masked round moves beside the updates, for every number of sites."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veilsum.secagg import merkle
from veilsum.secagg.envelope import Envelope
from veilsum.secagg.keys import BOX_BYTES
from veilsum.secagg.messages import (
    KeyAdvert,
    KeyRoster,
    RelayedDeal,
    SealedDeal,
    SealedShare,
    ShareDeal,
    ShareRelay,
    SurvivorCertificate,
    SurvivorProposal,
    SurvivorVote,
    UnmaskShares,
)
from veilsum.secagg.payload import COORDINATOR, Message
from veilsum.secagg.wire import MAX_SITES

_DIGEST = bytes(32)
_SHARE = SealedShare(_DIGEST, _DIGEST, bytes(BOX_BYTES))


def names(sites: int) -> list[str]:
    return [f"site-{number:03}" for number in range(sites)]


def sealed(message: Message) -> Envelope:
    return Envelope(message.to_payload(), bytes(64), bytes(8))


def proof_nodes(sites: int) -> int:
    """At most; a leaf on a shorter way has fewer."""
    return (sites - 1).bit_length()


def key_advert() -> Envelope:
    return sealed(KeyAdvert(_DIGEST, names(1)[0], _DIGEST, _DIGEST, _DIGEST))


def deal_header() -> Envelope:
    return sealed(ShareDeal(_DIGEST, names(1)[0], _DIGEST, _DIGEST))


def share_deal(sites: int) -> bytes:
    return SealedDeal(deal_header(), (_SHARE,) * sites).to_bytes()


def key_roster(sites: int) -> bytes:
    return sealed(KeyRoster(_DIGEST, COORDINATOR, (key_advert(),) * sites)).to_bytes()


def share_relay(sites: int) -> bytes:
    deal = RelayedDeal(deal_header(), _SHARE, (_DIGEST,) * proof_nodes(sites))
    return sealed(ShareRelay(_DIGEST, COORDINATOR, (deal,) * sites)).to_bytes()


def proposal(sites: int) -> bytes:
    survivors = tuple((name, _DIGEST) for name in names(sites))
    return sealed(SurvivorProposal(_DIGEST, COORDINATOR, _DIGEST, survivors)).to_bytes()


def certificate(votes: int) -> bytes:
    vote = sealed(SurvivorVote(_DIGEST, names(1)[0], _DIGEST))
    return sealed(SurvivorCertificate(_DIGEST, COORDINATOR, _DIGEST, (vote,) * votes)).to_bytes()


def unmask_shares(survivors: int, dropouts: int) -> bytes:
    shares = tuple((name, _DIGEST) for name in names(survivors + dropouts))
    message = UnmaskShares(_DIGEST, names(1)[0], _DIGEST, shares[:survivors], shares[survivors:])
    return sealed(message).to_bytes()


@given(sites=st.integers(3, MAX_SITES))
def test_a_site_sends_so_many_bytes_for_each_site(sites):
    assert len(share_deal(sites)) == 206 + 144 * sites
    assert len(unmask_shares(sites, 0)) == 175 + 44 * sites
    assert len(unmask_shares(sites - 1, 1)) == 175 + 44 * sites


@given(sites=st.integers(3, MAX_SITES))
def test_a_site_receives_so_many_bytes_for_each_site_and_a_proof_per_dealer(sites):
    proof = 2 + 32 * proof_nodes(sites)

    assert len(key_roster(sites)) == 130 + 236 * sites
    assert len(share_relay(sites)) == 131 + (204 + 144 + proof) * sites
    assert len(proposal(sites)) == 169 + 44 * sites
    assert len(certificate(sites)) == 172 + 175 * sites


@given(sites=st.integers(3, MAX_SITES), data=st.data())
def test_no_leaf_has_a_longer_proof_than_that(sites, data):
    _, proofs = merkle.root_and_proofs([_DIGEST] * sites)

    assert max(map(len, proofs)) == proof_nodes(sites)


@pytest.mark.parametrize(
    ("sites", "sent", "received"),
    [(5, 1724, 5107), (12, 3040, 11798), (50, 10184, 50452), (200, 38384, 212802)],
)
def test_the_sums_are_those_of_the_table_in_docs_protocol(sites, sent, received):
    vote = sealed(SurvivorVote(_DIGEST, names(1)[0], _DIGEST))
    up = (key_advert().to_bytes(), share_deal(sites), vote.to_bytes(), unmask_shares(sites, 0))
    down = (key_roster(sites), share_relay(sites), proposal(sites), certificate(sites))

    assert sum(map(len, up)) == sent
    assert sum(map(len, down)) == received
