"""T02: the coordinator, or who runs the authority, enrols sites of its own.

The defence: members decide who is a member, by a quorum of signatures under each roster.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from support.rosters import TWELVE, key_of, public_key, roster_of, signed_by
from veilsum.errors import ConfigError
from veilsum.pki.files import write_public
from veilsum.pki.roster_file import load_roster, read_signed
from veilsum.pki.roster_signing import SignedRoster
from veilsum.roster import Roster, RosterEntry

FIRST = roster_of(TWELVE)
SYBILS = tuple(f"sybil-{number:02}" for number in range(30))
HELPERS = TWELVE[:4]  # c = 4 of 12
Load = Callable[[Path], Roster]


def _write(folder: Path, signed: SignedRoster) -> Path:
    file = folder / "roster-2.json"
    write_public(file, signed.to_bytes())
    return file


@pytest.fixture
def first(tmp_path: Path) -> Path:
    file = tmp_path / "roster-1.json"
    write_public(file, signed_by(FIRST, TWELVE, None).to_bytes())
    return file


def _whoever_wrote_it(file: Path) -> Roster:
    """The variant: a roster is what its file says."""
    return read_signed(file).roster


def test_sybils_come_in_where_nobody_signs_and_stay_out_where_members_do(
    first: Path, tmp_path: Path
) -> None:
    packed = roster_of((*TWELVE[:5], *SYBILS), epoch=2, previous=FIRST)
    file = _write(tmp_path, signed_by(packed, HELPERS, FIRST))

    assert set(SYBILS) <= set(_whoever_wrote_it(file).sites)
    with pytest.raises(ConfigError, match="lacks 5 signatures of the sites of epoch 1"):
        load_roster(file, previous=first)


def test_a_member_is_not_given_another_key_without_the_members(first: Path, tmp_path: Path) -> None:
    entries = tuple(
        RosterEntry(site, public_key("mallory" if site == "site-11" else site)) for site in TWELVE
    )
    rekeyed = Roster(FIRST.consortium, 2, FIRST.coordinator_key, entries, FIRST.hash)
    file = _write(tmp_path, signed_by(rekeyed, HELPERS, FIRST))

    assert _whoever_wrote_it(file).signing_key("site-11") == public_key("mallory")
    with pytest.raises(ConfigError, match="lacks 5 signatures"):
        load_roster(file, previous=first)
    with pytest.raises(ConfigError, match="not the one that the roster lists"):
        read_signed(file).signed("site-11", key_of("mallory"), FIRST)  # the new key has no say


def test_a_first_roster_of_sybils_is_not_the_one_a_site_has_pinned(tmp_path: Path) -> None:
    """All sites of a first roster sign it, and Sybils sign anything. What stops them is the pin."""
    own = ("site-11", *SYBILS)
    file = _write(tmp_path, signed_by(roster_of(own, epoch=2), own, None))

    assert load_roster(file).sites == tuple(sorted(own))
    with pytest.raises(ConfigError, match="not the roster that this member agreed to"):
        load_roster(file, pin=FIRST.hash.hex())


def test_helpers_cannot_split_the_members_into_two_rosters_of_one_epoch(
    first: Path, tmp_path: Path
) -> None:
    one = roster_of((*TWELVE, "sybil-00"), epoch=2, previous=FIRST)
    other = roster_of((*TWELVE, "sybil-01"), epoch=2, previous=FIRST)
    halves = (*HELPERS, *TWELVE[4:8]), (*HELPERS, *TWELVE[8:])

    for roster, half in zip((one, other), halves, strict=True):
        signed = signed_by(roster, half, FIRST)
        # The variant: two thirds are enough, so both rosters hold.
        assert len(signed.signatures) >= 2 * len(TWELVE) / 3
        with pytest.raises(ConfigError, match="lacks 1 signatures"):
            signed.check(FIRST)
