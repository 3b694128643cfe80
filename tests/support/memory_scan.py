"""Finds secrets in foreign bytes, in whatever form they may be written down.

A secret is looked for by two runs of 16 bytes from its inside: the first and the last byte of an
X25519 key are changed by clamping, and a part of a secret is a leak as well.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

RUN = 16
_HASH_BITS = 20


def reversed_in(size: int, data: bytes) -> bytes:
    """Each group of `size` bytes the other way round, as limbs of that size are in memory."""
    return b"".join(data[at : at + size][::-1] for at in range(0, len(data), size))


def forms(secret: bytes) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of each form in which 32 secret bytes may lie somewhere."""
    assert len(secret) == 32
    assert len(set(secret)) > 8, "looks like a placeholder, and would be found everywhere"
    for first in (1, 15):
        run = slice(first, first + RUN)
        yield "raw", secret[run]
        for size in (4, 8, 16, 32):
            yield f"in limbs of {size} bytes", reversed_in(size, secret)[run]
        yield "HMAC inner key", bytes(byte ^ 0x36 for byte in secret[run])
        yield "HMAC outer key", bytes(byte ^ 0x5C for byte in secret[run])
        yield "hex", secret[run].hex().encode()
        yield "HEX", secret[run].hex().upper().encode()
    for first in (1, 2, 3):  # where a group of three bytes begins, for each place of the secret
        yield "base64", base64.b64encode(secret[first : first + 27])
        yield "base64 for URLs", base64.urlsafe_b64encode(secret[first : first + 27])


class Scanner:
    """Looks for many secrets at once.

    Args:
        secrets: name -> 32 bytes.
    """

    def __init__(self, secrets: Mapping[str, bytes]) -> None:
        self._patterns: dict[bytes, list[tuple[str, bytes]]] = {}  # by their first 8 bytes
        for name, secret in secrets.items():
            for form, pattern in forms(secret):
                self._patterns.setdefault(pattern[:8], []).append((f"{name}, {form}", pattern))
        starts = np.frombuffer(b"".join(start[:4] for start in self._patterns), np.uint32)
        self._begins: NDArray[np.bool_] = np.zeros(1 << _HASH_BITS, np.bool_)
        self._begins[_hash(starts)] = True

    def found_in(self, data: bytes) -> set[str]:
        """Names and forms of all secrets that are in the data."""
        found = set()
        for at in self._candidates(data):
            for name, pattern in self._patterns.get(data[at : at + 8], ()):
                if data.startswith(pattern, at):
                    found.add(name)
        return found

    def _candidates(self, data: bytes) -> Iterator[int]:
        """Where a pattern may begin, by a table of hashes of their first four bytes."""
        for shift in range(min(4, len(data))):
            words = np.frombuffer(data, np.uint32, count=(len(data) - shift) // 4, offset=shift)
            yield from (4 * np.flatnonzero(self._begins[_hash(words)]) + shift).tolist()


def _hash(words: NDArray[np.uint32]) -> NDArray[np.uint32]:
    return (words * np.uint32(2654435761)) >> np.uint32(32 - _HASH_BITS)
