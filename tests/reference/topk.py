"""topk from docs/format.md: sorting, bit strings, nothing clever."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from reference.ring import packed, unpacked

TILE = 4096
SPARSITIES = {0: 100, 1: 2, 2: 4, 3: 10, 4: 20, 5: 50, 6: 200, 7: 1000}


def kept_of(count: int, sparsity: int) -> int:
    return -(-count // sparsity)


def as_sent(value: float, letter: str) -> float:
    """A value as the receiver will read it; never a negative zero."""
    return struct.unpack("<" + letter, struct.pack("<" + letter, value))[0] + 0.0


def chosen(values: Sequence[float], kept: int) -> list[int]:
    """The coordinates with the largest magnitudes; of equal ones the first."""
    by_size = sorted(range(len(values)), key=lambda place: (-abs(values[place]), place))
    return sorted(by_size[:kept])


def sections(values: Sequence[float], sparsity: int, letter: str = "f") -> tuple[bytes, bytes]:
    sent = [as_sent(value, letter) for value in values]
    places = chosen(sent, kept_of(len(values), sparsity))
    return from_entries(len(values), [(place, sent[place]) for place in places], letter)


def from_entries(
    count: int, entries: Sequence[tuple[int, float]], letter: str = "f"
) -> tuple[bytes, bytes]:
    """Sections that say just this, right or wrong."""
    per_tile = [0] * -(-count // TILE)
    for place, _ in entries:
        per_tile[place // TILE] += 1
    indices = packed([place % TILE for place, _ in entries], 12)
    values = struct.pack(f"<{len(entries)}{letter}", *(value for _, value in entries))
    return struct.pack(f"<{len(per_tile)}H", *per_tile), indices + values


def decoded(
    scales: bytes, codes: bytes, count: int, sparsity: int, letter: str = "f"
) -> list[float]:
    kept = kept_of(count, sparsity)
    index_bytes = -(-kept * 12 // 8)
    indices = unpacked(codes[:index_bytes], kept, 12)
    values = struct.unpack(f"<{kept}{letter}", codes[index_bytes:])
    out, entry = [0.0] * count, 0
    for tile, entries in enumerate(struct.unpack(f"<{len(scales) // 2}H", scales)):
        for _ in range(entries):
            out[tile * TILE + indices[entry]] = values[entry]
            entry += 1
    return out
