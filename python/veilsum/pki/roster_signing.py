"""Who decides that a roster holds: the members of the roster before it, by their signatures.

    signature = Ed25519(site's key, "veilsum/v1/sig/roster" || 0x00 || roster hash)

Signatures are outside of the hash, so one more of them changes no round's context. Neither the
coordinator nor the certificate authority can add, drop or re-key a member without the members.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from veilsum.errors import ConfigError
from veilsum.roster import Roster, canonical_json

# No message type of the protocol is called "roster": a signature under one is none under the other.
_DOMAIN = b"veilsum/v1/sig/roster\0"


def required_signatures(sites: int, colluders: int) -> int:
    """Members of an epoch that must sign the next: max(ceil(2n/3), floor((n+c)/2) + 1).

    Two thirds alone are too few: with n = 12 and c = 4, two halves of the honest eight, each with
    the four colluders, would make two rosters of one epoch. By the second term two sets of signers
    share more than c sites, so an honest one, which signs one roster per epoch.
    """
    return max(-(-2 * sites // 3), (sites + colluders) // 2 + 1)


@dataclass(frozen=True)
class SignedRoster:
    """A roster and what its members said to it: site -> signature of 64 bytes, not yet checked."""

    roster: Roster
    signatures: Mapping[str, bytes] = field(default_factory=dict)

    def signed(self, site: str, key: Ed25519PrivateKey, previous: Roster | None) -> SignedRoster:
        """This roster with one site's signature.

        Raises:
            ConfigError: the site has no say in this epoch, or that is not its key.
        """
        signers = _signers(self.roster, previous)
        if key.public_key().public_bytes_raw() != signers.signing_key(site):
            raise ConfigError(f"the key is not the one that the roster lists for site {site!r}")
        signature = key.sign(_DOMAIN + self.roster.hash)
        return SignedRoster(self.roster, {**self.signatures, site: signature})

    def missing(self, previous: Roster | None, colluders: int | None = None) -> int:
        """How many signatures are still needed.

        Args:
            previous: the roster before; None for a consortium's first, which all of its sites sign.
            colluders: sites that may sign anything; None for a third of the previous ones.

        Raises:
            ConfigError: it does not follow `previous`, or a signature is wrong or of a stranger.
        """
        signers = _signers(self.roster, previous)
        for site, signature in self.signatures.items():
            _check_signature(self.roster, site, signers.signing_key(site), signature)
        total = len(signers.sites)
        needed = total
        if previous is not None:
            needed = required_signatures(total, total // 3 if colluders is None else colluders)
        return max(0, needed - len(self.signatures))

    def check(self, previous: Roster | None, colluders: int | None = None) -> Roster:
        """The roster, if enough members stand for it. Arguments as for missing().

        Raises:
            ConfigError: as missing(), or signatures are missing.
        """
        missing = self.missing(previous, colluders)
        if missing:
            raise ConfigError(
                f"the roster of epoch {self.roster.epoch} lacks {missing} signatures of "
                + ("its sites" if previous is None else f"the sites of epoch {previous.epoch}"),
                hint="have more sites sign it: veilsum pki sign-roster",
            )
        return self.roster

    def to_bytes(self) -> bytes:
        """Canonical JSON: sorted keys, no spaces, ASCII."""
        signatures = [
            {"site": site, "signature": self.signatures[site].hex()}
            for site in sorted(self.signatures, key=str.encode)
        ]
        return canonical_json(
            {"roster": json.loads(self.roster.to_bytes()), "signatures": signatures}
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> SignedRoster:
        """Parses what to_bytes wrote, and nothing else.

        Raises:
            ConfigError: not JSON, unknown or missing fields, or not in canonical form.
        """
        try:
            document = json.loads(data)
            roster = Roster.from_bytes(canonical_json(document["roster"]))
            signatures = {s["site"]: bytes.fromhex(s["signature"]) for s in document["signatures"]}
            signed = cls(roster, signatures)
            canonical = signed.to_bytes()
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(
                "not a roster file", hint="make one with `veilsum pki roster`"
            ) from error
        if canonical != data.strip():
            raise ConfigError("the roster file is not in canonical form and may have been edited")
        return signed


def _signers(roster: Roster, previous: Roster | None) -> Roster:
    """The roster whose sites decide about this one."""
    if previous is None:
        if roster.previous:
            raise ConfigError(
                f"the roster of epoch {roster.epoch} was agreed to by the members of the epoch "
                "before, whose roster is not given",
                hint="give that file as well: previous_roster, or --previous",
            )
        return roster
    if roster.previous != previous.hash or roster.consortium != previous.consortium:
        raise ConfigError(
            f"the roster of epoch {roster.epoch} does not follow the one of epoch {previous.epoch}",
            hint="compare their hashes: veilsum inspect",
        )
    if roster.epoch <= previous.epoch:
        raise ConfigError(
            f"epochs only go up, and {roster.epoch} is not above {previous.epoch}, the one before"
        )
    return previous


def _check_signature(roster: Roster, site: str, key: bytes, signature: bytes) -> None:
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, _DOMAIN + roster.hash)
    except InvalidSignature as error:
        raise ConfigError(
            f"the signature of site {site!r} under the roster of epoch {roster.epoch} is wrong"
        ) from error
