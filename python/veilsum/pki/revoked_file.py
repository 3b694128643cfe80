"""The list of certificates that are not to be believed any more, although they have not expired.

A text file, one entry a line: the serial number of a certificate in hexadecimal, or the identity
URI of a member, which revokes all of its certificates. What follows a # is a remark.
"""

from __future__ import annotations

import os
import string
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from veilsum.errors import ConfigError, DecodeError
from veilsum.pki.identity import parse_identity

Entry: TypeAlias = int | str
"""A serial number, or an identity URI."""

_HEX = frozenset(string.hexdigits)
_MOST_DIGITS = 40  # 20 bytes, RFC 5280 4.1.2.2


@dataclass(frozen=True, slots=True)
class RevocationList:
    """Who is not to be believed.

    Attributes:
        serials: of certificates.
        identities: URIs of members.
    """

    serials: frozenset[int] = frozenset()
    identities: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(self.serials) + len(self.identities)

    def names(self, uri: str, serial: int) -> bool:
        """Whether a certificate, or whom it is for, is in the list."""
        return serial in self.serials or uri in self.identities


def read_revoked(file: Path) -> RevocationList:
    """Reads a list.

    Raises:
        ConfigError: it cannot be read, or a line of it is no entry; names the line.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(
            f"cannot read the list of revoked certificates {file}: {error.strerror}",
            hint="where nobody is revoked, the file is empty",
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is no text: {error}") from error
    entries: list[Entry] = []
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        try:
            entries.append(parse_entry(text))
        except ConfigError as error:
            raise ConfigError(f"{file}, line {number}: {error}", hint=error.hint) from error
    return RevocationList(
        frozenset(entry for entry in entries if isinstance(entry, int)),
        frozenset(entry for entry in entries if isinstance(entry, str)),
    )


def parse_entry(text: str) -> Entry:
    """A serial number, or an identity URI.

    Raises:
        ConfigError: neither.
    """
    if set(text) <= _HEX and len(text) <= _MOST_DIGITS:
        return int(text, 16)
    try:
        return parse_identity(text).uri
    except DecodeError as error:
        raise ConfigError(
            f"expected a serial number in hexadecimal or an identity URI, got {text[:200]!r}",
            hint="`veilsum pki revoke` writes such lines",
        ) from error


def revoke(file: Path, entry: Entry, remark: str = "") -> bool:
    """Adds an entry to a list, which is made if there is none. It is on disk when this returns.

    Returns:
        False if it was there already.

    Raises:
        ConfigError: the list cannot be read or written, or the remark has several lines.
    """
    if not remark.isprintable():
        raise ConfigError(f"a remark must be one printable line, got {remark!r}")
    if file.exists():
        known = read_revoked(file)
        if entry in known.serials or entry in known.identities:
            return False
    text = f"{entry:x}" if isinstance(entry, int) else entry
    line = f"{text}  # {remark}\n" if remark else f"{text}\n"
    try:
        # Behind a line that was not ended by hand, it would be lost.
        ended = not file.exists() or file.read_bytes()[-1:] in (b"", b"\n")
        with open(file, "a", encoding="utf-8") as stream:
            stream.write(line if ended else f"\n{line}")
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror}") from error
    return True
