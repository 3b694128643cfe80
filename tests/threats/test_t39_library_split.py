"""T39: a signature that some members accept and others do not, or that anyone can make.

The defence: one verifier for all, and no member whose key is of small order or has a second
spelling. Under such keys a vote binds nobody.
"""

from __future__ import annotations

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from support.rosters import TWELVE, public_key, roster_of, signed_by
from veilsum.errors import ConfigError
from veilsum.pki.roster_signing import SignedRoster
from veilsum.roster import Roster, RosterEntry

P = 2**255 - 19
NEUTRAL = (1).to_bytes(32, "little")
# Spellings of the neutral point: its key "signs" every message with R = its own bytes, S = 0.
SPELLINGS = (NEUTRAL, (1 | 1 << 255).to_bytes(32, "little"), (P + 1).to_bytes(32, "little"))
FORGED = NEUTRAL + bytes(32)


def _verifies(key: bytes, signature: bytes, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except InvalidSignature:
        return False
    return True


def _roster_with(key: bytes) -> Roster:
    entries = [RosterEntry(site, public_key(site)) for site in TWELVE]
    return Roster("alps", 1, public_key("hub"), (*entries, RosterEntry("zed", key)))


def test_the_library_alone_accepts_what_nobody_signed() -> None:
    """The variant: keys are taken as they come."""
    for message in (b"for", b"against"):
        assert _verifies(NEUTRAL, FORGED, message)


@pytest.mark.parametrize("key", SPELLINGS, ids=bytes.hex)
def test_no_member_has_such_a_key(key: bytes) -> None:
    with pytest.raises(ConfigError, match=r"site 'zed' is (of small order|not in canonical form)"):
        _roster_with(key)


def test_one_signature_has_one_spelling() -> None:
    """S + L would be a second signature of the same message for lenient verifiers (RFC 8032,
    section 5.1.7, asks for S < L)."""
    roster = roster_of(TWELVE)
    signed = signed_by(roster, TWELVE, None)
    order = 2**252 + 27742317777372353535851937790883648493
    good = signed.signatures["site-00"]
    second = good[:32] + (int.from_bytes(good[32:], "little") + order).to_bytes(32, "little")

    assert signed.check(None) == roster
    with pytest.raises(ConfigError, match="signature of site 'site-00'"):
        SignedRoster(roster, {**signed.signatures, "site-00": second}).check(None)
