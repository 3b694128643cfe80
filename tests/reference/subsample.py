"""Subsampled updates from docs/format.md: slow, with Python integers and fractions."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from fractions import Fraction

from reference import codecs
from reference.ring import philox4x32
from reference.rounding import round_to

TILE, BLOCK = 4096, 64


def kept_in_tile(key: bytes, tile: int, blocks: int, keep: int) -> list[int]:
    """Blocks kept of a tile, ascending."""
    missing = -(-blocks * keep // 64)
    found = []
    for block in range(blocks):
        quad = 16 * tile + block // 4
        words = philox4x32((quad % 2**32, quad >> 32, 1, 2), struct.unpack("<2I", key))
        if words[block % 4] * (blocks - block) < 2**32 * missing:
            found.append(block)
            missing -= 1
    assert missing == 0
    return found


def kept_blocks(key: bytes, size: int, keep: int) -> list[tuple[int, Fraction]]:
    """(first coordinate, gain) of every kept block of a group, in the order they travel."""
    found = []
    for tile, first in enumerate(range(0, size, TILE)):
        blocks = min(TILE, size - first) // BLOCK
        kept = kept_in_tile(key, tile, blocks, keep)
        found += [(first + BLOCK * block, Fraction(blocks, len(kept))) for block in kept]
    return found


def options(key: bytes, keep: int, rescale: bool) -> bytes:
    return struct.pack("<HIBB", 4, 10, keep, rescale) + key


def encode_update(
    tensors: codecs.Tensors,
    values: Sequence[Sequence[float]],
    codec: str,
    *,
    key: bytes,
    keep: int,
    scale: float,
    seed: bytes | None,
    plan: bytes,
    update_id: int,
    chunk_coordinates: int,
) -> list[bytes]:
    """All chunks of an update, as reference.codecs makes them of whole ones."""
    whole = codecs.grid(tensors, values, 1)
    coded: list[float] = []
    for first, _ in kept_blocks(key, len(whole), keep):
        coded += whole[first : first + BLOCK]
    chunks = []
    for group, name, coordinates in (
        (1, codec, coded),
        (2, "i64", codecs.grid(tensors, values, 2)),
    ):
        for index, first in enumerate(range(0, len(coordinates), chunk_coordinates)):
            part = coordinates[first : first + chunk_coordinates]
            last = first + len(part) == len(coordinates)
            scales, codes = codecs.sections(name, part, first, scale, seed)
            flags = (8 if last else 0) | (4 if group == 1 else 0)
            header = codecs.HEADER.pack(
                b"VLC1", 1, 0, 64, codecs.codec_number(name), flags, group, first, len(part), index,
                len(scales), len(codes), plan[:8], update_id, 0,
            )  # fmt: skip
            chunks.append(codecs.sealed(header, codecs.pad(scales) + codecs.pad(codes)))
    return chunks


def decoded_group(
    chunks: Sequence[bytes], codec: str, *, size: int, key: bytes, keep: int, rescale: bool,
    scale: float,
) -> list[float]:  # fmt: skip
    """Every coordinate of group 1, as f32."""
    coded: list[float] = []
    for chunk in chunks:
        group, count, scale_bytes, code_bytes = struct.unpack_from("<I8xI4xII", chunk, 12)
        if group != 1:
            continue
        begin = 64 + -(-scale_bytes // 16) * 16
        scales, codes = chunk[64 : 64 + scale_bytes], chunk[begin : begin + code_bytes]
        coded += codecs.decoded(codec, scales, codes, count, scale)
    out = [0.0] * size
    for number, (first, gain) in enumerate(kept_blocks(key, size, keep)):
        for place, value in enumerate(coded[number * BLOCK : (number + 1) * BLOCK]):
            product = float(Fraction(value) * Fraction(float(gain if rescale else 1)))
            rounded = float(round_to(Fraction(product), "f32"))
            out[first + place] = math.copysign(rounded, value)  # a zero keeps its sign
    return out
