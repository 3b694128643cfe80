"""Public keys and signatures of every kind that a peer could send, against tests/vectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from reference import curve25519 as curve
from reference import key_vectors
from veilsum._native import Secret
from veilsum.errors import DecodeError, PeerError
from veilsum.roster import identity_key_fault, key_id
from veilsum.secagg import keys
from veilsum.secagg.envelope import Envelope

FOLDER = Path(__file__).parent / "vectors"
REASONS = {
    "low order": "a public key of low order",
    "not canonical": "is not in canonical form",
    "small order": "is of small order: anyone can sign for it",
    "no point": "is no point of the curve: nobody can sign for it",
    "wrong length": "must have 32 bytes",
}


def document(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((FOLDER / name).read_text())
    return loaded


def group(name: str, kind: str) -> dict[str, Any]:
    (one,) = [one for one in document(name)["testGroups"] if one["type"] == kind]
    return one


def cases(name: str, kind: str) -> list[Any]:
    return [
        pytest.param(test, id=f"{test['tcId']} {test['comment'][:48]}")
        for test in group(name, kind)["tests"]
    ]


@pytest.mark.parametrize("name", key_vectors.DOCUMENTS)
def test_the_files_are_what_their_script_writes(name):
    assert (FOLDER / name).read_text() == key_vectors.text(key_vectors.DOCUMENTS[name]())


def test_every_flag_is_explained_and_every_kind_of_fault_is_there():
    for name in key_vectors.DOCUMENTS:
        loaded = document(name)
        tests = [test for one in loaded["testGroups"] for test in one["tests"]]
        assert [test["tcId"] for test in tests] == list(range(1, loaded["numberOfTests"] + 1))
        assert {flag for test in tests for flag in test["flags"]} == set(loaded["notes"])
        assert {test["result"] for test in tests} == {"valid", "invalid"}


# --- X25519 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("test", cases("x25519.json", "XdhComp"))
def test_a_public_key_is_taken_only_if_it_is_canonical_and_not_of_low_order(test):
    public, private = bytes.fromhex(test["public"]), bytes.fromhex(test["private"])

    fault = keys.public_key_fault(public)

    assert (fault is None) == (test["result"] == "valid")
    if fault is not None:
        assert REASONS[test["refusedAs"]] in fault or "canonical" in fault
    if len(public) == 32:
        zero = test["shared"] == "00" * 32
        assert zero == ("LowOrder" in test["flags"])
        assert agreed(private, public) == (None if zero else derived_from(test["shared"], public))


def agreed(private: bytes, public: bytes) -> bytes | None:
    """What the package derives with this key, were it not refused; None where the second line
    of defence refuses it, because the exchange gives zero."""
    peer, own = ("b", public), ("a", bytes(32))
    try:
        return bytes(keys.pair_mask_key(bytes(32), Secret.from_bytes(private), own, peer))
    except PeerError:
        return None


def derived_from(shared: str, public: bytes) -> bytes:
    secret = Secret.from_bytes(bytes.fromhex(shared))
    parts = (keys.length_prefixed("a"), keys.length_prefixed("b"), bytes(32), public)
    return bytes(keys.derive(bytes(32), secret, keys.Label.PAIR_MASK, *parts))


@pytest.mark.parametrize("u", [0, 1, curve.P - 1, 9, 3])
def test_the_reference_knows_low_order_by_its_ladder(u):
    """A multiple of 8 of such a point is the point at infinity, whose u is written as 0."""
    assert (curve.ladder(8, u) == 0) == (u in (0, 1, curve.P - 1))


# --- Ed25519 --------------------------------------------------------------------------------------


@pytest.mark.parametrize("test", cases("ed25519.json", "EddsaVerify"))
def test_the_library_and_the_reference_sign_as_the_standard_prints(test):
    private, public, message, signature = (
        bytes.fromhex(test[name]) for name in ("private", "public", "msg", "sig")
    )

    assert Ed25519PrivateKey.from_private_bytes(private).sign(message) == signature
    assert curve.sign(private, message) == signature
    Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    assert curve.verifies(public, message, signature)


@pytest.mark.parametrize("test", cases("ed25519.json", "EddsaPublicKey"))
def test_a_member_has_a_key_that_it_alone_can_sign_with(test):
    fault = identity_key_fault(bytes.fromhex(test["public"]))

    assert (fault is None) == (test["result"] == "valid")
    if fault is not None:
        assert REASONS[test["refusedAs"]] in fault


def small_order_keys() -> list[bytes]:
    tests = group("ed25519.json", "EddsaPublicKey")["tests"]
    return [bytes.fromhex(test["public"]) for test in tests if "SmallOrder" in test["flags"]]


@pytest.mark.parametrize("key", small_order_keys(), ids=bytes.hex)
def test_a_key_of_small_order_is_one_that_signatures_are_made_for_without_it(key):
    """In every spelling: with S = 0 it takes an R of small order that the hash agrees with, and
    one message in eight has one."""
    message, signature = next(
        (message, found)
        for message in (b"message %d" % number for number in range(1000))
        for found in [forged(key, message)]
        if found
    )

    assert curve.verifies(key, message, signature)


def forged(key: bytes, message: bytes) -> bytes | None:
    point = curve.decode(key)
    assert point in curve.small_order()
    for commitment in curve.small_order():
        spelt = curve.encode(commitment)
        k = curve.hash_scalar(spelt, key, message)
        if curve.add(commitment, curve.times(k % 8, point)) == curve.NEUTRAL:
            return spelt + bytes(32)
    return None


def envelope(test: dict[str, Any]) -> Envelope:
    public = bytes.fromhex(group("ed25519.json", "EnvelopeVerify")["public"])
    return Envelope(bytes.fromhex(test["payload"]), bytes.fromhex(test["sig"]), key_id(public))


@pytest.mark.parametrize("test", cases("ed25519.json", "EnvelopeVerify"))
def test_an_envelope_is_verified_as_the_vectors_say(test):
    public = bytes.fromhex(group("ed25519.json", "EnvelopeVerify")["public"])

    if test["result"] == "valid":
        envelope(test).verify(test["kind"], public)
    else:
        with pytest.raises(DecodeError, match="the signature of a survivor-vote message is wrong"):
            envelope(test).verify(test["kind"], public)


@pytest.mark.parametrize("test", cases("ed25519.json", "EnvelopeVerify"))
def test_a_signature_travels_as_64_bytes_or_not_at_all(test):
    sent = envelope(test)
    if "WrongLength" in test["flags"]:
        with pytest.raises(DecodeError):
            Envelope.from_bytes(sent.to_bytes())
    else:
        assert Envelope.from_bytes(sent.to_bytes()) == sent


@pytest.mark.parametrize("flag", ["CofactorOnly", "Malleable"])
def test_these_signatures_are_ones_that_other_verifiers_take(flag):
    """Else refusing them would show nothing: they hold in an equation that the standard allows,
    or held before S was bounded."""
    one = group("ed25519.json", "EnvelopeVerify")
    public = bytes.fromhex(one["public"])
    signed = next(test for test in one["tests"] if flag in test["flags"])
    message = key_vectors.signed_bytes(signed["kind"], bytes.fromhex(signed["payload"]))
    signature = bytes.fromhex(signed["sig"])

    assert curve.verifies(public, message, signature, cofactor=8)
    assert curve.verifies(public, message, signature) == (flag == "Malleable")
    with pytest.raises(InvalidSignature):
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
