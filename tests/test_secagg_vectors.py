"""The key schedule against golden vectors and against the slow reference."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from reference import secagg as reference
from veilsum._native import Secret
from veilsum.errors import PeerError
from veilsum.secagg import keys, merkle
from veilsum.secagg.keys import Label
from veilsum.secagg.messages import SealedShare, ShareDeal

VECTORS = json.loads((Path(__file__).parent / "vectors" / "secagg.json").read_text())
INPUTS = VECTORS["inputs"]
A, B = "site-A", "site-B"


def sha(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def secret(value: str) -> Secret:
    return Secret.from_bytes(bytes.fromhex(value))


def chan(site: str) -> Secret:
    return secret(INPUTS["channel_private"][site])


CONTEXT = bytes.fromhex(VECTORS["context"])
T1, T2 = bytes.fromhex(VECTORS["t1"]), bytes.fromhex(VECTORS["t2"])


def package_context() -> bytes:
    return keys.digest(
        Label.CONTEXT,
        keys.length_prefixed(INPUTS["consortium"]),
        sha(INPUTS["roster_hash_of"]),
        keys.length_prefixed(INPUTS["task_id"]),
        INPUTS["round"].to_bytes(8, "little") + INPUTS["attempt"].to_bytes(4, "little"),
        sha(INPUTS["manifest_hash_of"]),
    )


def reference_context() -> bytes:
    return reference.context(
        INPUTS["consortium"],
        sha(INPUTS["roster_hash_of"]),
        INPUTS["task_id"],
        INPUTS["round"],
        INPUTS["attempt"],
        sha(INPUTS["manifest_hash_of"]),
    )


def test_the_context_is_the_golden_one():
    assert package_context() == reference_context() == CONTEXT


def test_the_key_of_the_rotation_is_the_golden_one():
    mine = keys.digest(Label.ROTATION, CONTEXT)[:8]

    assert mine == reference.rotation_key(CONTEXT)
    assert mine.hex() == VECTORS["rotation_key"]


@pytest.mark.parametrize("site", [A, B])
def test_the_public_mask_key_follows_from_the_mask_seed(site):
    seed = INPUTS["mask_seed"][site]

    mine = keys.public_key(keys.mask_private_key(CONTEXT, secret(seed), site))

    private = reference.mask_private(bytes.fromhex(seed), CONTEXT, site)
    assert mine.hex() == reference.public(private).hex() == VECTORS["mask_public"][site]


def test_the_self_seed_is_committed_to_as_in_the_golden_vector():
    seed = INPUTS["self_seed"][A]

    mine = keys.self_commitment(CONTEXT, secret(seed), A)

    assert mine == reference.self_commitment(CONTEXT, A, bytes.fromhex(seed))
    assert mine.hex() == VECTORS["self_commitment"][A]


def test_the_transcript_chain_is_the_golden_one():
    adverts = {site: sha(text) for site, text in INPUTS["advert_payload"].items()}
    deals = {site: sha(text) for site, text in INPUTS["deal_payload"].items()}

    t1 = keys.transcript(Label.TRANSCRIPT_KEYS, CONTEXT, adverts)
    t2 = keys.transcript(Label.TRANSCRIPT_SHARES, t1, deals)

    assert (t1, t2) == (T1, T2)
    assert t1 == reference.chain("T1", CONTEXT, adverts)
    assert t2 == reference.chain("T2", t1, deals)


def test_the_transcript_does_not_depend_on_the_order_of_arrival():
    digests = {A: sha("1"), B: sha("2")}
    turned = dict(reversed(digests.items()))

    assert keys.transcript(Label.TRANSCRIPT_KEYS, CONTEXT, digests) == keys.transcript(
        Label.TRANSCRIPT_KEYS, CONTEXT, turned
    )


def test_both_ends_of_a_pair_derive_the_golden_key():
    private = {
        site: keys.mask_private_key(CONTEXT, secret(INPUTS["mask_seed"][site]), site)
        for site in (A, B)
    }
    public = {site: (site, keys.public_key(private[site])) for site in (A, B)}

    forwards = keys.pair_mask_key(T2, private[A], public[A], public[B])
    backwards = keys.pair_mask_key(T2, private[B], public[B], public[A])

    assert bytes(forwards) == bytes(backwards)
    assert bytes(forwards).hex() == VECTORS["pair_key"]
    assert bytes(forwards) == reference.pair_key(T2, bytes(private[A]), A, B, public[B][1])


def test_a_key_that_is_loaded_once_agrees_with_every_peer_as_one_loaded_for_each():
    own = keys.public_key(chan(A))
    peers = [(f"site-{n}", keys.public_key(Secret.from_bytes(bytes([n]) * 32))) for n in range(3)]
    loaded = keys.Agreement(chan(A))

    assert loaded.public_key() == own
    for peer in peers:
        for sending in (True, False):
            once = keys.channel_key(T1, loaded, (A, own), peer, sending=sending)
            each = keys.channel_key(T1, chan(A), (A, own), peer, sending=sending)
            assert bytes(once) == bytes(each)
        once = keys.pair_mask_key(T2, loaded, (A, own), peer)
        assert bytes(once) == reference.pair_key(T2, bytes(chan(A)), A, *peer)
    with pytest.raises(PeerError, match="'oslo' advertised a public key of low order"):
        loaded.derive(T1, ("oslo", bytes(32)), Label.CHANNEL, ())


def test_the_self_mask_key_is_the_golden_one():
    seed = INPUTS["self_seed"][A]

    mine = bytes(keys.self_mask_key(T2, secret(seed), A))

    assert mine == reference.self_key(T2, bytes.fromhex(seed), A)
    assert mine.hex() == VECTORS["self_key"][A]


@pytest.mark.parametrize(("dealer", "receiver"), [(A, B), (B, A)])
def test_each_direction_of_a_channel_has_its_own_golden_key_known_to_both_ends(dealer, receiver):
    ends = {site: (site, keys.public_key(chan(site))) for site in (A, B)}

    sent = keys.channel_key(T1, chan(dealer), ends[dealer], ends[receiver], sending=True)
    received = keys.channel_key(T1, chan(receiver), ends[receiver], ends[dealer], sending=False)

    assert bytes(sent) == bytes(received)
    assert bytes(sent).hex() == VECTORS["channel_key"][f"{dealer} to {receiver}"]
    assert bytes(sent) == reference.box_key(T1, bytes(chan(dealer)), ends[dealer], ends[receiver])


def test_a_box_is_sealed_as_in_the_golden_vector_and_opens_again():
    key = secret(VECTORS["channel_key"][f"{A} to {B}"])

    box = keys.seal_box(key, T1, A, B, Secret.zeros(64))

    assert box[:32].hex() == VECTORS["box_head"]
    assert box == reference.seal(bytes(key), T1, A, B, bytes(64))
    assert bytes(keys.open_box(key, T1, A, B, box)) == bytes(64)


def test_share_commitments_agree_with_the_reference():
    share = bytes(range(32))
    for label, kind in ((Label.MASK_SHARE_COMMITMENT, "m"), (Label.SELF_SHARE_COMMITMENT, "b")):
        mine = keys.share_commitment(label, T1, A, B, share)
        assert mine == reference.share_commitment(kind, T1, A, B, share)


@pytest.mark.parametrize("receivers", [1, 2, 3, 5, 8])
def test_the_signed_header_of_a_deal_is_the_golden_one(receivers):
    """Receiver number i gets bytes i for both shares and 80 bytes i for a box."""
    pairs = [(f"site-{chr(65 + number)}", bytes([number])) for number in range(receivers)]
    shares = [
        SealedShare(
            keys.share_commitment(Label.MASK_SHARE_COMMITMENT, T1, A, receiver, byte * 32),
            keys.share_commitment(Label.SELF_SHARE_COMMITMENT, T1, A, receiver, byte * 32),
            byte * 80,
        )
        for receiver, byte in pairs
    ]
    root = merkle.root_hash([share.entry.leaf for share in shares])

    header = ShareDeal(CONTEXT, A, T1, root).to_payload()

    expected = reference.dealt_root(
        [
            (
                reference.share_commitment("m", T1, A, receiver, byte * 32),
                reference.share_commitment("b", T1, A, receiver, byte * 32),
                byte * 80,
            )
            for receiver, byte in pairs
        ]
    )
    assert root.hex() == expected.hex() == VECTORS["deal_root"][str(receivers)]
    assert header == reference.share_deal(CONTEXT, A, T1, expected)


@pytest.mark.parametrize(
    "row", VECTORS["masks"], ids=lambda row: f"{row['generator']}-{row['bits']}"
)
def test_the_reference_generator_reproduces_the_golden_masks(row):
    key, bits = bytes.fromhex(VECTORS["pair_key"]), row["bits"]

    words = reference.mask_words(key, 1, 0, 1024, bits, row["generator"])

    assert [f"{word:x}" for word in words[:4]] == row["first"]
    assert [f"{word:x}" for word in words[511:513]] == row["at_511"]
    (far,) = reference.mask_words(key, 1, 2**29 + 5, 1, bits, row["generator"])
    assert f"{far:x}" == row["at_536870917"]
    packed = b"".join(word.to_bytes(8, "little") for word in words)
    assert hashlib.sha256(packed).hexdigest()[:16] == row["sha256_of_1024"]


def test_the_reference_shares_are_the_golden_ones_and_any_three_rebuild_the_secret():
    given = VECTORS["shares"]
    secret_bytes = bytes.fromhex(given["secret"])
    coefficients = b"".join(sha(text)[:16] for text in given["coefficients_of"])

    shares = reference.deal(secret_bytes, coefficients, range(1, 6))

    assert [share.hex() for share in shares] == list(given["of_index"].values())
    assert reference.combine({5: shares[4], 2: shares[1], 3: shares[2]}) == secret_bytes


@pytest.mark.parametrize(
    "spelling",
    [
        bytes(32),
        b"\1" + bytes(31),
        (2**255 - 20).to_bytes(32, "little"),
        bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
        bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    ],
)
def test_public_keys_of_low_order_are_refused(spelling):
    assert keys.public_key_fault(spelling) == "a public key of low order"


@pytest.mark.parametrize(
    "spelling",
    [
        (2**255 - 19 + 9).to_bytes(32, "little"),
        (9 + 2**255).to_bytes(32, "little"),
        (2**255 - 19).to_bytes(32, "little"),
        bytes(31),
    ],
)
def test_public_keys_that_are_not_canonical_are_refused(spelling):
    assert keys.public_key_fault(spelling) == "a public key that is not in canonical form"


def test_the_base_point_is_a_fine_public_key():
    assert keys.public_key_fault((9).to_bytes(32, "little")) is None


def test_every_label_of_the_table_separates_its_own_domain():
    values = [label.value for label in Label]

    assert len(set(values)) == len(values)
    assert not any(b"\0" in value for value in values)
