"""eden1 to eden4 from docs/format.md: NumPy, one rotation block after the other.

Adding, multiplying and comparing arrays of float32 rounds each element by itself, as IEEE 754
says, so the bits here are those of any correct implementation.
"""

from __future__ import annotations

import itertools
import math
import struct
from functools import cache

import numpy as np
from scipy.stats import norm

from reference.ring import packed, philox4x32, unpacked
from reference.rotation import blocks, rotate, unrotate

EDEN = 0x4E454445


@cache
def lloyd_max(bits: int) -> tuple[float, ...]:
    """The centroids of N(0, 1): each the mean of what is nearest to it (Lloyd 1982, Max 1960)."""
    centroids = norm.ppf((np.arange(2**bits) + 0.5) / 2**bits)
    while True:
        borders = np.concatenate([[-np.inf], (centroids[1:] + centroids[:-1]) / 2, [np.inf]])
        better = -np.diff(norm.pdf(borders)) / np.diff(norm.cdf(borders))
        better = (better - better[::-1]) / 2  # the distribution is symmetric
        if np.abs(better - centroids).max() < 1e-15:
            return tuple(better.tolist())
        centroids = better


def key_of(update_id: int, plan: bytes) -> bytes:
    counter = struct.unpack("<4I", struct.pack("<Q", update_id) + plan[:8])
    return struct.pack("<2I", *philox4x32(counter, (EDEN, 0))[:2])


def ranges(count: int) -> list[tuple[int, int]]:
    """(first coordinate, size) of every rotation block."""
    sizes = blocks(count, 4096)
    return list(zip(itertools.accumulate(sizes, initial=0), sizes, strict=False))


def dot(a: np.ndarray, b: np.ndarray) -> float:
    lanes = np.zeros(16)
    for row in (a.astype(np.float64) * b.astype(np.float64)).reshape(-1, 16):
        lanes = lanes + row
    while lanes.size > 1:
        half = lanes.size // 2
        lanes = lanes[:half] + lanes[half:]
    return float(lanes[0])


def block_sections(
    values: np.ndarray, bits: int, centroids: tuple[float, ...], biased: bool
) -> tuple[float, list[int]]:
    """Scale and codes of one rotated block."""
    squares = dot(values, values)
    deviation = math.sqrt(squares / values.size)
    borders = [(low + high) / 2 for low, high in itertools.pairwise(centroids)]
    codes = np.zeros(values.size, np.int64)
    for border in borders:
        codes += values > np.float32(border * deviation)
    chosen = np.array(centroids).astype(np.float32)[codes]
    scale = 0.0
    if squares > 0:
        product = dot(values, chosen)
        scale = product / dot(chosen, chosen) if biased else squares / product
    if np.float32(scale) < np.float32(2.0**-126):
        return 0.0, [0] * values.size
    return float(np.float32(scale)), codes.tolist()


def sections(
    values: np.ndarray, first: int, bits: int, update_id: int, plan: bytes,
    centroids: tuple[float, ...], biased: bool = False,
) -> tuple[bytes, bytes]:  # fmt: skip
    """Scales and codes of a chunk that starts at coordinate `first`."""
    turned = rotate(values, 4096, key_of(update_id, plan), first)
    scales, codes = b"", list[int]()
    for begin, size in ranges(values.size):
        scale, block = block_sections(turned[begin : begin + size], bits, centroids, biased)
        scales += struct.pack("<f", scale)
        codes += block
    return scales, packed(codes, bits)


def decoded(
    scales: bytes, codes: bytes, count: int, first: int, bits: int, update_id: int, plan: bytes,
    centroids: tuple[float, ...],
) -> np.ndarray:  # fmt: skip
    by_code = unpacked(codes, count, bits)
    values, empty = np.zeros(count, np.float32), np.zeros(count, bool)
    for (begin, size), scale in zip(
        ranges(count), struct.unpack(f"<{len(scales) // 4}f", scales), strict=True
    ):
        table = (np.array(centroids) * scale).astype(np.float32)
        values[begin : begin + size] = table[by_code[begin : begin + size]]
        empty[begin : begin + size] = scale == 0
    turned = unrotate(values, 4096, key_of(update_id, plan), first)
    turned[empty] = 0.0
    return turned
