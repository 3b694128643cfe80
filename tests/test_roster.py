"""The consortium's roster: the same bytes at every member, and nothing else accepted."""

from __future__ import annotations

import hashlib
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from reference import curve25519 as curve
from support.rosters import public_key
from veilsum import roster as roster_module
from veilsum.errors import ConfigError
from veilsum.roster import Roster, RosterEntry, identity_key_fault, key_id

P = 2**255 - 19
D = -121665 * pow(121666, -1, P) % P
Point = tuple[int, int]


def key(number: int) -> bytes:
    return public_key(f"key {number}")


def roster(**changes) -> Roster:
    fields = {
        "consortium": "alps",
        "epoch": 3,
        "coordinator_key": key(9),
        "entries": (
            RosterEntry("turin", key(1), "it"),
            RosterEntry("basel", key(2), "ch"),
            RosterEntry("Äänekoski", key(3)),
        ),
    }
    return Roster(**{**fields, **changes})


def test_sites_are_sorted_by_the_bytes_of_their_names():
    assert roster().sites == ("basel", "turin", "Äänekoski")


def test_a_roster_survives_its_file_form():
    again = Roster.from_bytes(roster().to_bytes())

    assert again == roster()
    assert again.hash == roster().hash == hashlib.sha256(roster().to_bytes()).digest()


def test_a_line_end_after_the_document_is_fine():
    assert Roster.from_bytes(roster().to_bytes() + b"\n") == roster()


def test_the_order_in_which_sites_are_listed_does_not_change_the_hash():
    assert roster(entries=roster().entries[::-1]).hash == roster().hash


@pytest.mark.parametrize(
    "change",
    [
        {"consortium": "andes"},
        {"epoch": 4},
        {"coordinator_key": key(8)},
        {"previous": bytes(32)},
        {"entries": (RosterEntry("basel", key(2), "ch"),)},
        {"entries": (RosterEntry("basel", key(2), "de"), *roster().entries[1:])},
        {"entries": (RosterEntry("basel", key(5), "ch"), *roster().entries[1:])},
    ],
)
def test_every_field_changes_the_hash(change):
    assert roster(**change).hash != roster().hash


def test_a_key_is_found_by_name_and_strangers_have_none():
    assert roster().signing_key("basel") == key(2)
    with pytest.raises(ConfigError, match="'oslo' is not in the roster of 'alps'"):
        roster().signing_key("oslo")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"entries": ()}, "1 to 4096 sites, got 0"),
        (
            {
                "entries": tuple(
                    RosterEntry(f"s{n}", n.to_bytes(32, "little")) for n in range(2, 4099)
                )
            },
            "1 to 4096 sites, got 4097",
        ),
        ({"entries": (RosterEntry("a", key(1)), RosterEntry("a", key(2)))}, "listed twice"),
        (
            {"entries": (RosterEntry("a", key(1)), RosterEntry("b", key(1)))},
            "share one signing key",
        ),
        ({"entries": (RosterEntry("a", key(9)),)}, "share one signing key"),
        ({"entries": (RosterEntry("a", b"short"),)}, "site 'a' must have 32 bytes, got 5"),
        ({"coordinator_key": bytes(33)}, "the coordinator must have 32 bytes, got 33"),
        ({"entries": (RosterEntry("", key(1)),)}, "printable"),
        ({"entries": (RosterEntry("a\n", key(1)),)}, "printable"),
        ({"entries": (RosterEntry("a" * 65, key(1)),)}, "printable"),
        ({"consortium": ""}, "printable"),
        ({"previous": bytes(31)}, "must have 32 bytes, got 31"),
        ({"epoch": -1}, "epoch"),
        ({"epoch": 2**32}, "epoch"),
    ],
)
def test_a_roster_that_names_nobody_clearly_is_refused(change, reason):
    with pytest.raises(ConfigError, match=reason):
        roster(**change)


def edited(**changes) -> bytes:
    document = json.loads(roster().to_bytes()) | changes
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not json",
        b"[]",
        b"{}",
        b"null",
        edited(format="veilsum-roster-1"),
        edited(extra=1),
        edited(previous="AB" * 32),
        edited(previous=None),
        edited(sites=[{"site": "a"}]),
        edited(sites="abc"),
        edited(coordinator_key="zz"),
        json.dumps(json.loads(roster().to_bytes()), indent=1).encode(),
        roster().to_bytes().replace(b'"epoch":3', b'"epoch":3,"epoch":3'),
    ],
)
def test_a_file_that_is_not_the_canonical_form_is_refused(data):
    with pytest.raises(ConfigError):
        Roster.from_bytes(data)


# --- keys that stand for nobody -------------------------------------------------------------


def added(one: Point, other: Point) -> Point:
    """Sum of two points of edwards25519 (RFC 8032, section 5.1.4, in affine coordinates)."""
    (x1, y1), (x2, y2) = one, other
    product = D * x1 * x2 * y1 * y2 % P
    return (
        (x1 * y2 + x2 * y1) * pow(1 + product, -1, P) % P,
        (y1 * y2 + x1 * x2) * pow(1 - product, -1, P) % P,
    )


def points_of(y: int) -> list[Point]:
    """The points of the curve with this y: x^2 = (y^2 - 1) / (d y^2 + 1)."""
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    root = pow(square, (P + 3) // 8, P)
    if root * root % P != square:
        root = root * pow(2, (P - 1) // 4, P) % P
    return sorted({(root, y), (-root % P, y)}) if root * root % P == square else []


def multiple(count: int, point: Point) -> Point:
    total = (0, 1)
    for bit in reversed(range(count.bit_length())):
        total = added(total, total)
        if count >> bit & 1:
            total = added(total, point)
    return total


def small_order_points() -> set[Point]:
    """All eight points whose order divides 8: what is left of a point after the prime order."""
    prime_order = 2**252 + 27742317777372353535851937790883648493
    for point in (point for y in range(2, 100) for point in points_of(y)):
        rest = multiple(prime_order, point)
        found = {multiple(count, rest) for count in range(8)}
        if len(found) == 8:
            return found
    raise AssertionError("no point of order 8 below y = 100")


def spellings(point: Point) -> set[bytes]:
    """Every 32 bytes that a lenient decoder takes for this point: y reduced or not, and a sign
    that means nothing where x is 0."""
    x, y = point
    signs = {0, 1} if x == 0 else {x & 1}
    return {
        (value | sign << 255).to_bytes(32, "little")
        for value in (y, y + P)
        if value < 2**255
        for sign in signs
    }


SMALL_ORDER = sorted(set().union(*map(spellings, small_order_points())))


def test_there_are_fourteen_spellings_of_keys_of_small_order():
    assert len(SMALL_ORDER) == 14
    assert bytes(32) in SMALL_ORDER  # what an empty field decodes to


@pytest.mark.parametrize("fake", SMALL_ORDER, ids=bytes.hex)
@pytest.mark.parametrize(
    "change",
    [
        lambda fake: {"coordinator_key": fake},
        lambda fake: {"entries": (RosterEntry("basel", key(2)), RosterEntry("turin", fake))},
    ],
    ids=["coordinator", "site"],
)
def test_a_key_of_small_order_is_refused_in_every_spelling(fake, change):
    with pytest.raises(ConfigError, match=r"small order|canonical"):
        roster(**change(fake))


def test_anyone_can_sign_for_such_a_key():
    """Why it is refused: this signature was made without a private key, and holds for all
    messages under the point 0, 1."""
    neutral = (1).to_bytes(32, "little")

    for message in (b"a vote", b"another vote"):
        Ed25519PublicKey.from_public_bytes(neutral).verify(neutral + bytes(32), message)


@pytest.mark.parametrize("excess", range(19))
@pytest.mark.parametrize("sign", [0, 1])
def test_a_y_that_is_not_reduced_is_refused(excess, sign):
    spelled = (P + excess | sign << 255).to_bytes(32, "little")

    assert identity_key_fault(spelled) == "is not in canonical form"


def test_a_file_with_such_a_key_is_refused():
    data = roster().to_bytes().replace(key(2).hex().encode(), bytes(32).hex().encode())

    with pytest.raises(ConfigError, match="site 'basel' is of small order"):
        Roster.from_bytes(data)


def test_canonical_keys_of_full_order_are_accepted():
    found = [y for y in (*range(2, 20), *range(P - 20, P - 1)) if curve.x_of(y) is not None]
    assert len(found) > 10
    for y in found:
        for sign in (0, 1):
            assert identity_key_fault((y | sign << 255).to_bytes(32, "little")) is None


def test_a_key_that_is_no_point_of_the_curve_is_refused():
    y = next(y for y in range(2, 20) if curve.x_of(y) is None)

    assert "nobody can sign for it" in (identity_key_fault(y.to_bytes(32, "little")) or "")


def test_two_keys_with_one_id_are_refused(monkeypatch):
    """Two keys whose 8-byte ids are equal take 2^32 tries to find; with 1 byte it is 20."""
    monkeypatch.setattr(roster_module, "_KEY_ID_BYTES", 1)
    seen: dict[bytes, bytes] = {}
    number = 10
    while (first := seen.get(key_id(key(number)))) is None:
        seen[key_id(key(number))] = key(number)
        number += 1
    second = key(number)

    with pytest.raises(ConfigError, match="two signing keys of the roster have one id"):
        roster(entries=(RosterEntry("basel", first), RosterEntry("turin", second)))
    with pytest.raises(ConfigError, match="have one id"):
        roster(entries=(RosterEntry("basel", first),), coordinator_key=second)
