"""The public rotation, from docs/format.md: signs from Philox, then Hadamard blocks."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reference.ring import philox4x32

TILE = 4096


def blocks(count: int, block: int) -> list[int]:
    """Sizes of the blocks of `count` coordinates, in order."""
    sizes = []
    for tile in range(0, count, TILE):
        left = min(TILE, count - tile)
        for size in (4096, 1024, 256, 64):
            if size <= block:
                sizes += [size] * (left // size)
                left %= size
    return sizes


@functools.cache
def sign(coordinate: int, key: bytes, group: int = 1) -> int:
    """-1 or 1."""
    run, place = divmod(coordinate, 128)
    words = philox4x32(
        (run % 2**32, run >> 32, group, 1),
        (int.from_bytes(key[:4], "little"), int.from_bytes(key[4:], "little")),
    )
    return -1 if words[place // 32] >> place % 32 & 1 else 1


def signs(first: int, count: int, key: bytes) -> NDArray[Any]:
    return np.array([sign(coordinate, key) for coordinate in range(first, first + count)])


def hadamard(values: NDArray[Any]) -> NDArray[Any]:
    """Orthonormal Walsh-Hadamard transform, butterflies of strides 1, 2, 4 and so on, in the
    arithmetic of the array's dtype."""
    values = values * values.dtype.type(1 / np.sqrt(values.size))
    stride = 1
    while stride < values.size:
        pairs = values.reshape(-1, 2, stride)
        values = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1).reshape(
            -1
        )
        stride *= 2
    return values


def hadamard_matrix(size: int) -> NDArray[Any]:
    """Entry (i, j) is (-1)^(number of common one bits of i and j), not normalized."""
    numbers = np.arange(size)
    common = np.bitwise_and.outer(numbers, numbers)
    return 1 - 2 * (np.bitwise_count(common).astype(np.int64) % 2)


def rotate(values: NDArray[Any], block: int, key: bytes, first: int = 0) -> NDArray[Any]:
    values = values * signs(first, values.size, key).astype(values.dtype)
    return _transformed(values, block)


def unrotate(values: NDArray[Any], block: int, key: bytes, first: int = 0) -> NDArray[Any]:
    return _transformed(values, block) * signs(first, values.size, key).astype(values.dtype)


def _transformed(values: NDArray[Any], block: int) -> NDArray[Any]:
    parts, begin = [], 0
    for size in blocks(values.size, block):
        parts.append(hadamard(values[begin : begin + size]))
        begin += size
    return np.concatenate(parts) if parts else values
