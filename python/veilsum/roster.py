"""Who belongs to the consortium: one file, the same bytes at every member.

A roster names every site with the Ed25519 key it signs protocol messages with, and
the coordinator's. Its hash is inside every round's context, so two parties with
different rosters cannot complete a round together (docs/protocol.md).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property

from veilsum.errors import ConfigError

_KEY_BYTES = 32
_MAX_SITES = 255  # a complete mask graph above this belongs into several cohorts
_MAX_ID_BYTES = 64
_FORMAT = "veilsum-roster-1"


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

    Raises:
        ConfigError: no sites, over 255 sites, a name or key that is malformed or repeated.
    """

    consortium: str
    epoch: int
    coordinator_key: bytes
    entries: tuple[RosterEntry, ...]

    def __post_init__(self) -> None:
        ordered = tuple(sorted(self.entries, key=lambda entry: entry.site.encode()))
        object.__setattr__(self, "entries", ordered)
        if not 1 <= len(ordered) <= _MAX_SITES:
            raise ConfigError(f"a roster holds 1 to {_MAX_SITES} sites, got {len(ordered)}")
        for name in (self.consortium, *(entry.site for entry in ordered)):
            if not 1 <= len(name.encode()) <= _MAX_ID_BYTES or not name.isprintable():
                raise ConfigError(
                    f"a name must be 1 to {_MAX_ID_BYTES} printable bytes, got {name!r}"
                )
        keys = [entry.signing_key for entry in ordered] + [self.coordinator_key]
        if any(len(key) != _KEY_BYTES for key in keys):
            raise ConfigError("a signing key must be 32 bytes")
        if len({entry.site for entry in ordered}) != len(ordered):
            raise ConfigError("a site is listed twice in the roster")
        if len(set(keys)) != len(keys):
            raise ConfigError("two members of the roster share one signing key")
        if not 0 <= self.epoch < 2**32:
            raise ConfigError(f"a roster's epoch must be 0 to 2**32-1, got {self.epoch}")

    @property
    def sites(self) -> tuple[str, ...]:
        """Names, sorted by their bytes."""
        return tuple(entry.site for entry in self.entries)

    def signing_key(self, site: str) -> bytes:
        """The site's raw Ed25519 public key.

        Raises:
            ConfigError: the site is not a member.
        """
        for entry in self.entries:
            if entry.site == site:
                return entry.signing_key
        raise ConfigError(f"site {site!r} is not in the roster of {self.consortium!r}")

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
            "sites": [
                {"site": e.site, "signing_key": e.signing_key.hex(), "region": e.region}
                for e in self.entries
            ],
        }
        return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()

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
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(
                "not a roster file", hint="make one with `veilsum pki roster`"
            ) from error
        if roster.to_bytes() != data.strip():
            raise ConfigError("the roster file is not in canonical form and may have been edited")
        return roster
