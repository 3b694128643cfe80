"""The consortium's roster: the same bytes at every member, and nothing else accepted."""

from __future__ import annotations

import hashlib
import json

import pytest

from veilsum.errors import ConfigError
from veilsum.roster import Roster, RosterEntry


def key(number: int) -> bytes:
    return bytes([number]) * 32


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
        ({"entries": ()}, "1 to 255 sites, got 0"),
        (
            {
                "entries": tuple(
                    RosterEntry(f"s{n}", n.to_bytes(32, "little")) for n in range(1, 257)
                )
            },
            "1 to 255 sites, got 256",
        ),
        ({"entries": (RosterEntry("a", key(1)), RosterEntry("a", key(2)))}, "listed twice"),
        (
            {"entries": (RosterEntry("a", key(1)), RosterEntry("b", key(1)))},
            "share one signing key",
        ),
        ({"entries": (RosterEntry("a", key(9)),)}, "share one signing key"),
        ({"entries": (RosterEntry("a", b"short"),)}, "32 bytes"),
        ({"entries": (RosterEntry("", key(1)),)}, "printable"),
        ({"entries": (RosterEntry("a\n", key(1)),)}, "printable"),
        ({"entries": (RosterEntry("a" * 65, key(1)),)}, "printable"),
        ({"consortium": ""}, "printable"),
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
        edited(format="veilsum-roster-2"),
        edited(extra=1),
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
