"""Rosters whose sites' keys follow from their names, and signatures under them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from veilsum.pki.roster_signing import SignedRoster
from veilsum.roster import Roster, RosterEntry

TWELVE = tuple(f"site-{number:02}" for number in range(12))


def key_of(name: str) -> Ed25519PrivateKey:
    """A member's signing key."""
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())


def public_key(name: str) -> bytes:
    return key_of(name).public_key().public_bytes_raw()


def roster_of(sites: Iterable[str], epoch: int = 1, previous: Roster | None = None) -> Roster:
    """A roster of these sites."""
    entries = tuple(RosterEntry(site, public_key(site)) for site in sites)
    before = b"" if previous is None else previous.hash
    return Roster("alps", epoch, public_key("the coordinator"), entries, before)


def signed_by(roster: Roster, sites: Iterable[str], previous: Roster | None) -> SignedRoster:
    """The roster with signatures of these sites."""
    signed = SignedRoster(roster)
    for site in sites:
        signed = signed.signed(site, key_of(site), previous)
    return signed
