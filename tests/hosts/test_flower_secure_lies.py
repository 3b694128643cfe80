"""A coordinator that tells one site another round than the others, with its own good signature."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="flwr is not installed (extra `flower`)")

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.serverapp.exception import AggregationError

from support.consortium import make_consortium
from support.flower_grid import flower_task
from support.flower_masked import SITES, SPEC, MaskedFederation, masked_federation, says, start
from veilsum.control import ProtocolMessage
from veilsum.integrations.flower.secure_parts import MESSAGE
from veilsum.integrations.flower.secure_wire import (
    TO_SITE,
    Part,
    from_content,
    seal,
    to_content,
    unseal,
)
from veilsum.secagg.envelope import Envelope
from veilsum.secagg.messages import KeyAdvert, KeyRoster, SurvivorCertificate, SurvivorProposal
from veilsum.secagg.payload import COORDINATOR, Message, open_envelope
from veilsum.transport import wire
from veilsum.transport.tls import load_signing_key

VICTIM, OTHER = SITES[1], SITES[3]

Lie = Callable[[Message], Sequence[Message]]


@pytest.fixture
def federation(tmp_path: Path):
    with flower_task(), masked_federation(make_consortium(tmp_path / "c", SITES)) as found:
        yield found


def tell(federation: MaskedFederation, kind: type[Message], lie: Lie) -> None:
    """The victim is sent what `lie` makes of the coordinator's message of this kind."""
    key = load_signing_key(federation.consortium.hub.signing_key)

    def told(part: Part) -> list[Part]:
        message = wire.decode_to_site(part.head) if part.kind == MESSAGE else None
        if not isinstance(message, ProtocolMessage) or kind.kind.encode() not in message.payload:
            return [part]
        opened = open_envelope(
            kind, Envelope.from_bytes(message.payload), key.public_key().public_bytes_raw(),
            sender=COORDINATOR, context=None,
        )  # fmt: skip
        payloads = [Envelope.sign(made.kind, made.to_payload(), key) for made in lie(opened)]
        return [
            Part(MESSAGE, wire.encode_to_site(replace(message, payload=payload.to_bytes())))
            for payload in payloads
        ]

    def to_site(site, number, message):
        frame = unseal(TO_SITE, from_content(message.content), key.public_key().public_bytes_raw())
        if site == VICTIM and frame.number:
            parts = tuple(made for part in frame.parts for made in told(part))
            message.content = to_content(seal(TO_SITE, frame._replace(parts=parts), key))
        return message

    federation.to_site = to_site


def said(federation: MaskedFederation) -> list[str]:
    """What the victim has said, answer by answer."""
    return [kind for reply in federation.answered[VICTIM] for kind in sorted(says(reply))]


@pytest.mark.parametrize("signer", ["a stranger", "another member"])
def test_keys_of_a_site_that_someone_else_signed_are_refused(federation, signer):
    stranger = Ed25519PrivateKey.generate()
    member = load_signing_key(federation.consortium.sites[SITES[0]].signing_key)

    def swapped(message: KeyRoster) -> list[Message]:
        adverts = []
        for envelope in message.adverts:
            key = federation.consortium.roster.signing_key(OTHER)
            if OTHER.encode() in envelope.payload:
                advert = open_envelope(KeyAdvert, envelope, key, sender=OTHER, context=None)
                forged = replace(advert, mask_key=bytes([9]) + bytes(31)).to_payload()
                by = stranger if signer == "a stranger" else member
                envelope = Envelope.sign(KeyAdvert.kind, forged, by)
            adverts.append(envelope)
        return [replace(message, adverts=tuple(adverts))]

    tell(federation, KeyRoster, swapped)
    strategy = federation.strategy()

    start(strategy, federation.grid())

    assert "share-deal" not in said(federation)
    assert VICTIM not in strategy.rounds[0].sites


def test_a_site_that_is_told_two_survivor_sets_votes_once_and_gives_no_shares(federation):
    """With one it would give a share of OTHER's self seed, with the other of its mask seed."""

    def both(message: SurvivorProposal) -> list[Message]:
        left = tuple(one for one in message.survivors if one[0] != OTHER)
        return [message, replace(message, survivors=left)]

    tell(federation, SurvivorProposal, both)

    start(federation.strategy(), federation.grid())

    assert "unmask-shares" not in said(federation)


def test_a_site_that_voted_for_another_set_than_the_quorum_gives_no_shares(federation):
    def other(message: SurvivorProposal) -> list[Message]:
        return [replace(message, survivors=tuple(s for s in message.survivors if s[0] != OTHER))]

    tell(federation, SurvivorProposal, other)

    start(federation.strategy(), federation.grid())

    assert said(federation).count("survivor-vote") == 1
    assert "unmask-shares" not in said(federation)


@pytest.mark.parametrize("votes", ["too few", "one voter again and again"])
def test_a_certificate_without_a_quorum_of_voters_gets_no_shares(federation, votes):
    def short(message: SurvivorCertificate) -> list[Message]:
        few = message.votes[:3] if votes == "too few" else message.votes[:1] * 5
        return [replace(message, votes=tuple(few))]

    tell(federation, SurvivorCertificate, short)

    start(federation.strategy(), federation.grid())

    assert "unmask-shares" not in said(federation)


def test_a_plan_that_withstands_fewer_helpers_than_sites_insist_on_is_refused(federation):
    strategy = federation.strategy(replace(SPEC, colluders=0))

    with pytest.raises(AggregationError, match="was aborted"):
        start(strategy, federation.grid())

    assert "key-advert" not in said(federation)
