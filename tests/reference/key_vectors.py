"""Writes tests/vectors/x25519.json and ed25519.json: python -m reference.key_vectors FOLDER

Public keys and signatures at every edge of RFC 7748 and RFC 8032, in the layout of Project
Wycheproof's files. `result` is what a member of this project must make of one; where a standard
leaves that open, or says otherwise, the comment tells.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reference import curve25519 as curve
from reference.curve25519 import L, P

Test = dict[str, Any]

# --- X25519 ---------------------------------------------------------------------------------------

PRIVATE = bytes.fromhex("4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d")
"""Of the exchanges that no standard prints."""

LOW_ORDER_U = (
    (0, "order 2"),
    (1, "order 4"),
    (P - 1, "order 4, on the twist"),
    (325606250916557431795983626356110631294008115727848805560023387167927233504, "order 8"),
    (39382357235489614581723060781553021112529911719440698176882885853963445705823, "order 8"),
)

RFC_7748 = (
    (
        "section 5.2, first vector",
        "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4",
        "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c",
        "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552",
    ),
    (
        "section 6.1, Bob's private key and Alice's public one",
        "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb",
        "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a",
        "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742",
    ),
    (
        "section 6.1, Bob's private key and the base point",
        "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb",
        "0900000000000000000000000000000000000000000000000000000000000000",
        "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f",
    ),
)


def _le(number: int, size: int = 32) -> bytes:
    return number.to_bytes(size, "little")


def _exchange(
    comment: str,
    public: bytes,
    refused_as: str | None = None,
    *,
    flags: tuple[str, ...] = (),
    private: bytes = PRIVATE,
) -> Test:
    usable = len(public) == 32
    return {
        "comment": comment,
        "flags": list(flags),
        "public": public.hex(),
        "private": private.hex(),
        "shared": curve.x25519(private, public).hex() if usable else "",
        "result": "invalid" if refused_as else "valid",
        "refusedAs": refused_as,
    }


def _good_exchanges() -> Iterator[Test]:
    for where, private, public, shared in RFC_7748:
        test = _exchange(
            f"RFC 7748, {where}", bytes.fromhex(public), private=bytes.fromhex(private)
        )
        assert test["shared"] == shared, where
        yield test
    for u in (2, 3, 4, 5, 6, 10, 2**254, 2**254 - 1, 2**255 - 21, 2**255 - 22, P // 2, 2**128):
        flags = () if curve.on_curve(u) else ("Twist",)
        where = "on the twist, which is as safe" if flags else "on the curve"
        yield _exchange(f"u = {u:#x}, {where}", _le(u), flags=flags)


def _low_order_exchanges() -> Iterator[Test]:
    for u, order in LOW_ORDER_U:
        yield _exchange(
            f"{order}: whatever the private key, the shared secret is zero (section 6.1)",
            _le(u),
            "low order",
            flags=("LowOrder",),
        )


def _aliases() -> Iterator[Test]:
    """RFC 7748 takes all of these: it reduces, and ignores the top bit."""
    for u in range(19):
        low = any(u == low for low, _ in LOW_ORDER_U)
        yield _exchange(
            f"p + {u}: a second spelling of u = {u}",
            _le(P + u),
            "not canonical",
            flags=("NonCanonical", "LowOrder") if low else ("NonCanonical",),
        )
    for u, order in LOW_ORDER_U:
        yield _exchange(
            f"the top bit set on a point of {order}",
            _le(u | 1 << 255),
            "not canonical",
            flags=("NonCanonical", "LowOrder"),
        )
    for u in (9, 10, 2**254, P + 9):
        yield _exchange(
            f"the top bit set on u = {u:#x}",
            _le(u | 1 << 255),
            "not canonical",
            flags=("NonCanonical",),
        )
    second = bytes.fromhex("e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493")
    yield _exchange(
        "RFC 7748, section 5.2, second vector: its u has the top bit set",
        second,
        "not canonical",
        flags=("NonCanonical",),
    )
    yield _exchange("all bits set", b"\xff" * 32, "not canonical", flags=("NonCanonical",))


def _wrong_lengths() -> Iterator[Test]:
    for size in (0, 1, 31, 33, 64):
        public = (b"\x09" + bytes(63))[:size]
        yield _exchange(f"{size} bytes", public, "not canonical", flags=("WrongLength",))


def x25519() -> dict[str, Any]:
    tests = [*_good_exchanges(), *_low_order_exchanges(), *_aliases(), *_wrong_lengths()]
    return _document(
        "X25519",
        {
            "LowOrder": "The shared secret is zero.",
            "NonCanonical": "Not the encoding of a reduced coordinate. Refused: two spellings of "
            "one key would pass for two keys.",
            "Twist": "No point of the curve; the arithmetic is that of its twist.",
            "WrongLength": "Not 32 bytes.",
        },
        [{"type": "XdhComp", "curve": "curve25519", "tests": tests}],
    )


# --- Ed25519 --------------------------------------------------------------------------------------

RFC_8032 = (
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
        "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
        "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
)
SEED = bytes.fromhex(RFC_8032[1][0])
PUBLIC = bytes.fromhex(RFC_8032[1][1])
KIND, PAYLOAD = "survivor-vote", b"this set and no other"


def _key(comment: str, public: bytes, refused_as: str | None = None, *flags: str) -> Test:
    return {
        "comment": comment,
        "flags": list(flags),
        "public": public.hex(),
        "result": "invalid" if refused_as else "valid",
        "refusedAs": refused_as,
    }


def _keys() -> Iterator[Test]:
    for _, public, _, _ in RFC_8032:
        yield _key("RFC 8032, section 7.1", bytes.fromhex(public))
    yield _key("the base point", curve.encode(curve.BASE))
    yield _key("the base point, negated", curve.encode((P - curve.BASE[0], curve.BASE[1])))
    mixed = curve.add(curve.times(curve.scalar_of(SEED), curve.BASE), curve.small_order()[1])
    yield _key(
        "a key plus a point of order 8: who has the private part can sign for it, and one "
        "verifier for all is why nobody disagrees on what",
        curve.encode(mixed),
        None,
        "MixedOrder",
    )
    yield from _small_order_keys()
    for y in range(2, 19):
        yield _key(f"p + {y}: y is not reduced", _le(P + y), "not canonical", "NonCanonical")
    yield _key("all bits set", b"\xff" * 32, "not canonical", "NonCanonical")
    for y in (2, 7, P - 2):
        assert curve.x_of(y) is None
        yield _key(f"y = {y:#x} has no x: nobody can sign", _le(y), "no point", "NoPoint")
    for size in (0, 31, 33, 64):
        yield _key(f"{size} bytes", (PUBLIC * 2)[:size], "wrong length", "WrongLength")


def _small_order_keys() -> Iterator[Test]:
    """All spellings that verifiers take: both signs, and y below 2^255 where that leaves room."""
    ys = sorted({y for _, y in curve.small_order()})
    orders = {1: "order 1", P - 1: "order 2", 0: "order 4"}
    for y in ys:
        name = orders.get(y, "order 8")
        for sign in (0, 1):
            spelt = f"{name}, sign {sign}"
            yield _key(spelt, _le(y | sign << 255), "small order", "SmallOrder")
            if P + y < 2**255:
                yield _key(
                    f"{spelt}, y is not reduced",
                    _le(P + y | sign << 255),
                    "not canonical",
                    "SmallOrder",
                    "NonCanonical",
                )


def signed_bytes(kind: str, payload: bytes) -> bytes:
    """What is signed of a message of the protocol (docs/protocol.md)."""
    return b"veilsum/v1/sig/" + kind.encode() + b"\0" + hashlib.sha256(payload).digest()


def _signature(comment: str, signature: bytes, *flags: str, valid: bool = False) -> Test:
    return {
        "comment": comment,
        "flags": list(flags),
        "kind": KIND,
        "payload": PAYLOAD.hex(),
        "sig": signature.hex(),
        "result": "valid" if valid else "invalid",
    }


def _signatures() -> Iterator[Test]:
    message = signed_bytes(KIND, PAYLOAD)
    good = curve.sign(SEED, message)
    commitment, s = good[:32], int.from_bytes(good[32:], "little")
    yield _signature("signed as section 5.1.6 says", good, valid=True)
    neutral = curve.sign(SEED, message, nonce=0)
    yield _signature(
        "R is the neutral point, with the S that goes with it: the key's owner gave the key away",
        neutral,
        "SmallOrderR",
        valid=True,
    )
    yield _signature(
        "the same R in a second spelling, y = p + 1", _le(P + 1) + neutral[32:], "NonCanonicalR"
    )
    for number in range(1, 16):
        if s + number * L < 2**256:
            yield _signature(
                f"S + {number} L (section 5.1.7 asks for S < L)",
                commitment + _le(s + number * L),
                "Malleable",
            )
    yield _signature("S = L", commitment + _le(L), "Malleable")
    yield _signature("S = 2^256 - 1", commitment + b"\xff" * 32, "Malleable")
    yield _signature("all zero", bytes(64))
    yield _signature("R is zero", bytes(32) + good[32:])
    yield _signature("S is zero", commitment + bytes(32))
    yield _signature("R and S exchanged", good[32:] + commitment)
    yield _signature("S negated", commitment + _le(L - s))
    for place in (0, 31, 32, 63):
        flipped = bytearray(good)
        flipped[place] ^= 1
        yield _signature(f"a bit of byte {place} flipped", bytes(flipped))
    yield _signature("of another key", curve.sign(bytes(32), message))
    yield _signature("of the payload itself", curve.sign(SEED, PAYLOAD))
    for kind in ("key-advert", "survivor-vot", ""):
        other = curve.sign(SEED, signed_bytes(kind, PAYLOAD))
        yield _signature(f"of the payload as a {kind or 'nameless'} message", other, "OtherKind")
    torsion = curve.small_order()[1]
    r = curve.hash_scalar(b"some nonce")
    twisted = curve.encode(curve.add(curve.times(r, curve.BASE), torsion))
    k = curve.hash_scalar(twisted, PUBLIC, message)
    yield _signature(
        "R plus a point of order 8: holds in the equation times 8 alone. RFC 8032 allows both; "
        "verifiers that differ would split the members",
        twisted + _le((r + k * curve.scalar_of(SEED)) % L),
        "CofactorOnly",
    )
    for size in (0, 32, 63, 65, 128):
        yield _signature(f"{size} bytes", (good * 2)[:size], "WrongLength")


def ed25519() -> dict[str, Any]:
    printed = [
        {
            "comment": "RFC 8032, section 7.1",
            "flags": [],
            "private": private,
            "public": public,
            "msg": message,
            "sig": signature,
            "result": "valid",
        }
        for private, public, message, signature in RFC_8032
    ]
    return _document(
        "EDDSA",
        {
            "CofactorOnly": "Holds for verifiers that multiply by 8, and for no others.",
            "Malleable": "A second signature made of a first without the key.",
            "MixedOrder": "Neither in the prime-order group nor of small order.",
            "NoPoint": "No point of the curve has this y.",
            "NonCanonical": "y is not reduced: a second spelling of another key.",
            "NonCanonicalR": "R is not reduced.",
            "OtherKind": "A signature for one type of message is none for another.",
            "SmallOrder": "Anyone can sign for it.",
            "SmallOrderR": "R is of small order.",
            "WrongLength": "Not 32 bytes of a key, or 64 of a signature.",
        },
        [
            {"type": "EddsaVerify", "curve": "edwards25519", "tests": printed},
            {"type": "EddsaPublicKey", "curve": "edwards25519", "tests": list(_keys())},
            {
                "type": "EnvelopeVerify",
                "curve": "edwards25519",
                "public": PUBLIC.hex(),
                "tests": list(_signatures()),
            },
        ],
    )


# --- files ----------------------------------------------------------------------------------------


def _document(
    algorithm: str, notes: dict[str, str], groups: list[dict[str, Any]]
) -> dict[str, Any]:
    numbered = 0
    for group in groups:
        for test in group["tests"]:
            numbered += 1
            test["tcId"] = numbered
    return {
        "algorithm": algorithm,
        "header": (__doc__ or "").split("\n\n")[1].strip().split("\n"),
        "notes": notes,
        "numberOfTests": numbered,
        "testGroups": groups,
    }


def text(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=1, sort_keys=True) + "\n"


DOCUMENTS = {"x25519.json": x25519, "ed25519.json": ed25519}

if __name__ == "__main__":
    for name, make in DOCUMENTS.items():
        (Path(sys.argv[1]) / name).write_text(text(make()))
