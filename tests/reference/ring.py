"""Values to steps to packed ring words, in Python integers and exact fractions."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
PHILOX_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox4x32(counter: Sequence[int], key: Sequence[int]) -> tuple[int, ...]:
    """Ten rounds of Philox4x32 (Salmon et al. 2011)."""
    words, (low, high) = tuple(counter), key
    for _ in range(10):
        even, odd = PHILOX_MULTIPLIERS[0] * words[0], PHILOX_MULTIPLIERS[1] * words[2]
        words = (
            (odd >> 32) ^ words[1] ^ low,
            odd % 2**32,
            (even >> 32) ^ words[3] ^ high,
            even % 2**32,
        )
        low, high = (low + PHILOX_WEYL[0]) % 2**32, (high + PHILOX_WEYL[1]) % 2**32
    return words


@functools.cache
def uniform24(seed: bytes, coordinate: int, group: int) -> int:
    """The 24-bit uniform that decides how the value at a coordinate is rounded."""
    key = (int.from_bytes(seed[:4], "little"), int.from_bytes(seed[4:8], "little"))
    quad, place = divmod(coordinate, 4)
    return philox4x32((quad % 2**32, quad >> 32, group, 0), key)[place] >> 8


def step(value: float, gain: float, limit: float, seed: bytes | None, coordinate: int) -> int:
    """The integer for one value of group 1. Python floats are IEEE doubles: each operation
    here rounds once, as the format asks for."""
    scaled = min(max(value, -limit), limit) * gain
    if seed is None:
        return round(scaled)  # Python rounds halves to even
    return math.floor(scaled + uniform24(seed, coordinate, 1) * 2.0**-24)


def packed(words: Sequence[int], bits: int) -> bytes:
    """Word i is bits [i*bits, (i+1)*bits) of one little-endian bit string."""
    string = sum(word % 2**bits << (place * bits) for place, word in enumerate(words))
    return string.to_bytes(-(-len(words) * bits // 8), "little")


def unpacked(data: bytes, count: int, bits: int) -> list[int]:
    string = int.from_bytes(data, "little")
    return [(string >> (place * bits)) % 2**bits for place in range(count)]


def centered(word: int, bits: int) -> int:
    return (word + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1)
