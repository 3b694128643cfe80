"""ChaCha20 as RFC 8439 prints it, one word at a time."""

from __future__ import annotations

import struct

# Words of the state that each quarter round mixes: columns, then diagonals.
QUARTERS = (
    (0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
    (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14),
)  # fmt: skip


def rotated(word: int, bits: int) -> int:
    return (word << bits | word >> (32 - bits)) % 2**32


def quarter_round(a: int, b: int, c: int, d: int) -> tuple[int, int, int, int]:
    for left, right in ((16, 12), (8, 7)):
        a = (a + b) % 2**32
        d = rotated(d ^ a, left)
        c = (c + d) % 2**32
        b = rotated(b ^ c, right)
    return a, b, c, d


def block(key: bytes, counter: int, nonce: bytes) -> bytes:
    state = list(
        struct.unpack("<16I", b"expand 32-byte k" + key + struct.pack("<I", counter) + nonce)
    )
    mixed = list(state)
    for _ in range(10):
        for places in QUARTERS:
            words = quarter_round(*(mixed[place] for place in places))
            for place, word in zip(places, words, strict=True):
                mixed[place] = word
    return struct.pack("<16I", *((a + b) % 2**32 for a, b in zip(mixed, state, strict=True)))
