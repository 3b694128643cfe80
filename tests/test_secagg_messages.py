"""Messages: one encoding each, and nothing else decodes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.secagg import Federation, consortium, make_plan
from veilsum import secagg
from veilsum.errors import DecodeError
from veilsum.secagg import merkle, messages
from veilsum.secagg.envelope import Envelope
from veilsum.secagg.messages import SealedDeal
from veilsum.secagg.payload import COORDINATOR, Message, open_envelope, read_payload
from veilsum.secagg.wire import Reader, Writer

KINDS = {
    kind.kind: kind
    for kind in vars(messages).values()
    if isinstance(kind, type) and issubclass(kind, Message) and kind is not Message
}


@pytest.fixture(scope="module")
def round_messages() -> dict[str, bytes]:
    """One payload of every kind, from a real round with a dropout."""
    federation = Federation(make_plan(4))
    federation.hold("masked-input", origin="oslo")
    federation.from_coordinator(federation.coordinator.lost("oslo", "is gone"))
    federation.run()
    assert federation.result.sites == ("basel", "kyoto", "lyon")
    return {kind: next(iter(federation.payloads(kind).values())) for kind in KINDS}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_message_encodes_back_to_the_bytes_it_came_from(kind, round_messages):
    payload = round_messages[kind]

    message = read_payload(KINDS[kind], payload, context=make_plan(4).context)

    assert message.to_payload() == payload
    assert message.kind == kind


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_message_cut_short_or_lengthened_is_refused(kind, round_messages):
    payload = round_messages[kind]

    for data in (payload[:-1], payload[: len(payload) // 2], payload + b"\0", b""):
        with pytest.raises(DecodeError):
            read_payload(KINDS[kind], data, context=None)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_message_of_another_round_is_refused(kind, round_messages):
    with pytest.raises(DecodeError, match="another round or attempt"):
        read_payload(KINDS[kind], round_messages[kind], context=make_plan(4, attempt=1).context)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_message_is_no_message_of_another_kind(kind, round_messages):
    for other in KINDS.values():
        if other.kind != kind:
            with pytest.raises(DecodeError, match="expected a"):
                read_payload(other, round_messages[kind], context=None)


@given(data=st.data())
def test_any_changed_byte_breaks_the_signature(data, round_messages):
    kind = data.draw(st.sampled_from(sorted(KINDS)))
    signer = read_payload(KINDS[kind], round_messages[kind], context=None).sender
    keys = consortium()
    key = keys.site_keys[signer] if signer else keys.coordinator_key
    sealed = bytearray(Envelope.sign(kind, round_messages[kind], key).to_bytes())
    sealed[data.draw(st.integers(0, len(sealed) - 1))] ^= data.draw(st.integers(1, 255))

    with pytest.raises(DecodeError):
        open_envelope(
            KINDS[kind],
            Envelope.from_bytes(bytes(sealed)),
            key.public_key().public_bytes_raw(),
            sender=signer,
            context=None,
        )


@given(data=st.binary(max_size=300))
def test_any_bytes_decode_or_are_refused(data):
    for parse in (Envelope.from_bytes, SealedDeal.from_bytes):
        try:
            again = parse(data).to_bytes()
        except DecodeError:
            continue
        assert again == data
    for kind in KINDS.values():
        with pytest.raises(DecodeError):
            read_payload(kind, data, context=None)


def test_the_signed_part_of_a_deal_is_found_without_its_shares():
    federation = Federation(make_plan(4))
    deal = federation.hold("share-deal", origin="kyoto")
    header = SealedDeal.from_bytes(deal).header

    for message in (deal, deal[:-1], header.to_bytes()):
        assert messages.signed_part(message) == header
        assert messages.kind_of_message(message) == "share-deal"
    for message in (deal[:100], b"", b"\0" * 200):
        with pytest.raises(DecodeError):
            messages.kind_of_message(message)


def test_a_signature_for_one_kind_is_none_for_another(round_messages):
    key = consortium().coordinator_key
    vote = Envelope.sign("key-roster", round_messages["round-open"], key)

    with pytest.raises(DecodeError, match="signature"):
        vote.verify("round-open", key.public_key().public_bytes_raw())


def test_a_message_that_names_another_sender_than_its_signer_is_refused(round_messages):
    key = consortium().site_keys["basel"]
    stolen = Envelope.sign("round-open", round_messages["round-open"], key)

    with pytest.raises(DecodeError, match="names another sender"):
        open_envelope(
            messages.RoundOpen,
            stolen,
            key.public_key().public_bytes_raw(),
            sender="basel",
            context=None,
        )


def test_an_envelope_signed_with_another_key_is_refused(round_messages):
    keys = consortium()
    envelope = Envelope.sign("round-open", round_messages["round-open"], keys.site_keys["basel"])

    with pytest.raises(DecodeError, match="another key"):
        open_envelope(
            messages.RoundOpen,
            envelope,
            keys.roster.coordinator_key,
            sender=COORDINATOR,
            context=None,
        )


def test_an_unknown_suite_is_refused(round_messages):
    payload = bytearray(round_messages["survivor-vote"])
    payload[4 + len("survivor-vote")] = 2

    with pytest.raises(DecodeError, match="expected suite 1, got 2"):
        read_payload(messages.SurvivorVote, bytes(payload), context=None)


def test_counts_and_lengths_are_bounded_before_anything_is_read():
    with pytest.raises(DecodeError, match="at most 255"):
        Reader(b"\xff\xff").sequence(255, "votes", lambda reader: reader.raw(1, "a vote"))
    with pytest.raises(DecodeError, match="at most 64"):
        Reader(b"\xff\xff\xff\xff").text(64, "a name")
    with pytest.raises(DecodeError, match="not UTF-8"):
        Reader(Writer().blob(b"\xff\xfe").bytes()).text(64, "a name")


def test_shares_and_boxes_do_not_show_in_the_repr_of_a_message(round_messages):
    shown = repr(
        read_payload(KINDS["unmask-shares"], round_messages["unmask-shares"], context=None)
    )

    assert "self_shares" not in shown
    assert "mask_shares" not in shown


# Leaf data and roots of growing trees, from the certificate-transparency test suite.
TREE_LEAVES = [
    "",
    "00",
    "10",
    "2021",
    "3031",
    "40414243",
    "5051525354555657",
    "606162636465666768696a6b6c6d6e6f",
]
TREE_ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


@pytest.mark.parametrize("count", range(1, 9))
def test_the_merkle_root_is_the_one_of_rfc_9162(count):
    leaves = [merkle.leaf_hash(bytes.fromhex(leaf)) for leaf in TREE_LEAVES[:count]]

    assert merkle.root_hash(leaves).hex() == TREE_ROOTS[count - 1]


def test_a_consortium_is_made_with_one_key_per_member():
    made = secagg.make_consortium(["a", "b"], name="alps", epoch=4)

    assert (made.roster.consortium, made.roster.epoch, made.roster.sites) == ("alps", 4, ("a", "b"))
    assert made.site_keys["a"].public_key().public_bytes_raw() == made.roster.signing_key("a")
