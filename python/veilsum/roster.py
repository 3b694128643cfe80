"""Who belongs to the consortium: one file, the same bytes at every member.

A roster names every site with the Ed25519 key it signs protocol messages with, and
the coordinator's. Its hash is inside every round's context, so two parties with
different rosters cannot complete a round together (docs/protocol.md). A roster names the one
before it by hash; who signs it is in pki/roster_signing.py.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property

from veilsum.errors import ConfigError

_KEY_BYTES = 32
_KEY_ID_BYTES = 8
_PRIME = 2**255 - 19
_EDWARDS_D = -121665 * pow(121666, -1, _PRIME) % _PRIME
# The y-coordinates of the points whose order divides 8. Each comes with both signs, and where
# x is 0 the second sign is one more spelling of the same point.
_SMALL_ORDER = frozenset(
    {
        0,
        1,
        _PRIME - 1,
        2707385501144840649318225287225658788936804267575313519463743609750303402022,
        55188659117513257062467267217118295137698188065244968500265048394206261417927,
    }
)
MAX_SITES = 4096
"""Of a consortium. A masked round invites fewer of them (secagg.thresholds)."""

_MAX_ID_BYTES = 64
_HASH_BYTES = 32
_FORMAT = "veilsum-roster-2"


def canonical_json(document: object) -> bytes:
    """The one spelling that is signed and hashed: sorted keys, no spaces, ASCII."""
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def key_id(public_key: bytes) -> bytes:
    """Short name of a signing key: the head of its SHA-256, 8 bytes."""
    return hashlib.sha256(public_key).digest()[:_KEY_ID_BYTES]


def identity_key_fault(key: bytes) -> str | None:
    """Why an Ed25519 public key must not stand for anyone, or None.

    Under a point of small order signatures can be made without any private key (RFC 8032 lets
    verifiers accept such keys, and the library at hand does), so what such a member "signs" binds
    nobody. A y-coordinate that is not reduced is a second spelling of some other key.
    """
    if len(key) != _KEY_BYTES:
        return f"must have {_KEY_BYTES} bytes, got {len(key)}"
    y = int.from_bytes(key, "little") % 2**255  # without the sign of x
    if y >= _PRIME:
        return "is not in canonical form"
    if y in _SMALL_ORDER:
        return "is of small order: anyone can sign for it"
    # x^2 = (y^2 - 1) / (d y^2 + 1) must have a solution (RFC 8032, section 5.1.3).
    square = (y * y - 1) * pow(_EDWARDS_D * y * y + 1, -1, _PRIME) % _PRIME
    if pow(square, (_PRIME - 1) // 2, _PRIME) != 1:
        return "is no point of the curve: nobody can sign for it"
    return None


@dataclass(frozen=True)
class RosterEntry:
    """One site.

    Attributes:
        site: the name in its certificate, 1 to 64 UTF-8 bytes.
        signing_key: raw Ed25519 public key, 32 bytes.
        region: where its data may stay; free text, may be empty.
    """

    site: str
    signing_key: bytes
    region: str = ""


@dataclass(frozen=True)
class Roster:
    """The members of one epoch, sorted by the bytes of their names.

    Attributes:
        consortium: its name, as in the certificates.
        epoch: goes up from roster to roster; who is missing in the next one is revoked.
        coordinator_key: raw Ed25519 public key, 32 bytes.
        entries: the sites.
        previous: hash of the roster whose members agreed to this one, 32 bytes; empty for the
            consortium's first.

    Raises:
        ConfigError: no sites, over MAX_SITES sites, a name or key that is malformed or repeated, a
            key that anyone can sign for.
    """

    consortium: str
    epoch: int
    coordinator_key: bytes
    entries: tuple[RosterEntry, ...]
    previous: bytes = b""

    def __post_init__(self) -> None:
        ordered = tuple(sorted(self.entries, key=lambda entry: entry.site.encode()))
        object.__setattr__(self, "entries", ordered)
        if not 1 <= len(ordered) <= MAX_SITES:
            raise ConfigError(f"a roster holds 1 to {MAX_SITES} sites, got {len(ordered)}")
        for name in (self.consortium, *(entry.site for entry in ordered)):
            if not 1 <= len(name.encode()) <= _MAX_ID_BYTES or not name.isprintable():
                raise ConfigError(
                    f"a name must be 1 to {_MAX_ID_BYTES} printable bytes, got {name!r}"
                )
        if len({entry.site for entry in ordered}) != len(ordered):
            raise ConfigError("a site is listed twice in the roster")
        self._check_keys()
        if not 0 <= self.epoch < 2**32:
            raise ConfigError(f"a roster's epoch must be 0 to 2**32-1, got {self.epoch}")
        if len(self.previous) not in (0, _HASH_BYTES):
            raise ConfigError(
                f"the hash of the previous roster must have {_HASH_BYTES} bytes, "
                f"got {len(self.previous)}"
            )

    def _check_keys(self) -> None:
        keys = {f"site {entry.site!r}": entry.signing_key for entry in self.entries}
        keys["the coordinator"] = self.coordinator_key
        for member, key in keys.items():
            fault = identity_key_fault(key)
            if fault is not None:
                raise ConfigError(
                    f"the signing key of {member} {fault}",
                    hint="have it make a new key pair: veilsum pki issue",
                )
        if len(set(keys.values())) != len(keys):
            raise ConfigError("two members of the roster share one signing key")
        # Messages name their signer by the id alone: the owner of a second key with the id of
        # another member's would get that member's messages attributed to itself.
        if len({key_id(key) for key in keys.values()}) != len(keys):
            raise ConfigError(
                "two signing keys of the roster have one id",
                hint="that does not happen by chance: ask who made the newer of the two",
            )

    @property
    def sites(self) -> tuple[str, ...]:
        """Names, sorted by their bytes."""
        return tuple(entry.site for entry in self.entries)

    def signing_key(self, site: str) -> bytes:
        """The site's raw Ed25519 public key.

        Raises:
            ConfigError: the site is not a member.
        """
        key = self._keys.get(site)
        if key is None:
            raise ConfigError(f"site {site!r} is not in the roster of {self.consortium!r}")
        return key

    @cached_property
    def _keys(self) -> dict[str, bytes]:
        return {entry.site: entry.signing_key for entry in self.entries}

    @cached_property
    def hash(self) -> bytes:
        """SHA-256 over the canonical bytes, 32 bytes."""
        return hashlib.sha256(self.to_bytes()).digest()

    def to_bytes(self) -> bytes:
        """Canonical JSON: sorted keys, no spaces, ASCII."""
        document = {
            "format": _FORMAT,
            "consortium": self.consortium,
            "epoch": self.epoch,
            "coordinator_key": self.coordinator_key.hex(),
            "previous": self.previous.hex(),
            "sites": [
                {"site": e.site, "signing_key": e.signing_key.hex(), "region": e.region}
                for e in self.entries
            ],
        }
        return canonical_json(document)

    @classmethod
    def from_bytes(cls, data: bytes) -> Roster:
        """Parses what to_bytes wrote, and nothing else.

        Raises:
            ConfigError: not JSON, unknown or missing fields, or not in canonical form.
        """
        try:
            document = json.loads(data)
            entries = tuple(
                RosterEntry(e["site"], bytes.fromhex(e["signing_key"]), e["region"])
                for e in document["sites"]
            )
            roster = cls(
                document["consortium"],
                document["epoch"],
                bytes.fromhex(document["coordinator_key"]),
                entries,
                bytes.fromhex(document["previous"]),
            )
            # JSON has other numbers than integers, and other things than text, that would be
            # written as they were read.
            texts = (entry.region for entry in entries)
            if type(roster.epoch) is not int or not all(isinstance(text, str) for text in texts):
                raise TypeError("an epoch is an integer, a region text")
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(
                "not a roster file", hint="make one with `veilsum pki roster`"
            ) from error
        if roster.to_bytes() != data.strip():
            raise ConfigError("the roster file is not in canonical form and may have been edited")
        return roster
