"""Layouts, chunks and codecs from docs/format.md: slow, with struct, integers and fractions."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from fractions import Fraction

from reference import blocks
from reference.ring import centered, packed, uniform24, unpacked
from reference.rounding import f32, round_to

DTYPES = ["f16", "bf16", "f32", "f64", "i8", "i16", "i32", "i64", "u8", "u16", "u32", "u64"]
CODECS = {"f32": 1, "f16": 2, "bf16": 3, "i64": 5}
HEADER = struct.Struct("<4sBBHHHIQIIII8sQI")

Tensors = Sequence[tuple[str, str, tuple[int, ...]]]


# --- layout ----------------------------------------------------------------------


def layout_bytes(tensors: Tensors) -> bytes:
    out = b"VLL1" + struct.pack("<I", len(tensors))
    for name, dtype, shape in tensors:
        encoded = name.encode()
        out += struct.pack("<H", len(encoded)) + encoded
        out += bytes([DTYPES.index(dtype) + 1, len(shape)])
        out += b"".join(struct.pack("<Q", dimension) for dimension in shape)
    return out


def group_of(dtype: str) -> int:
    return 1 if dtype in DTYPES[:4] else 2


def aligned(coordinate: int) -> int:
    return -(-coordinate // 64) * 64


def offsets(tensors: Tensors, group: int) -> tuple[list[tuple[int, int, int]], int]:
    """(tensor, first coordinate, elements) of a group, and the group's coordinates."""
    found, end = [], 0
    for number, (_, dtype, shape) in enumerate(tensors):
        if group_of(dtype) == group:
            found.append((number, end, math.prod(shape)))
            end = aligned(end + math.prod(shape))
    return found, end


def grid(tensors: Tensors, values: Sequence[Sequence[float]], group: int) -> list[float]:
    """Values of a group by coordinate, the integer 0 in the gaps."""
    spans, size = offsets(tensors, group)
    out: list[float] = [0] * size
    for number, first, elements in spans:
        out[first : first + elements] = values[number]
    return out


# --- floats -------------------------------------------------------------------------


def bf16_bits(value: float) -> int:
    rounded = math.copysign(float(round_to(Fraction(value), "bf16")), value)
    return struct.unpack("<I", struct.pack("<f", rounded))[0] >> 16


def bf16_value(bits: int) -> float:
    return struct.unpack("<f", struct.pack("<I", bits << 16))[0]


# --- sections of a chunk --------------------------------------------------------------


def sections(
    codec: str, values: Sequence[float], first: int, scale: float, seed: bytes | None
) -> tuple[bytes, bytes]:
    """Scales and codes of one chunk. Values are f32, or integers for i64."""
    if blocks.is_known(codec):
        return blocks.sections(codec, values, first, seed)
    if codec.startswith("ring"):
        bits = int(codec[4:])
        if seed is None:
            steps = [round(value * scale) for value in values]
        else:
            steps = [
                math.floor(value * scale + uniform24(seed, first + place, 1) * 2.0**-24)
                for place, value in enumerate(values)
            ]
        return b"", packed(steps, bits)
    if codec == "bf16":
        return b"", struct.pack(f"<{len(values)}H", *map(bf16_bits, values))
    letter = {"f32": "f", "f16": "e", "i64": "q"}[codec]
    return b"", struct.pack(f"<{len(values)}{letter}", *values)


def decoded(codec: str, scales: bytes, codes: bytes, count: int, scale: float) -> list[float]:
    """What a chunk's sections say, each value rounded once to f32."""
    if blocks.is_known(codec):
        return blocks.decoded(codec, scales, codes, count)
    if codec.startswith("ring"):
        bits = int(codec[4:])
        return [f32(centered(word, bits) / scale) for word in unpacked(codes, count, bits)]
    if codec == "bf16":
        return [bf16_value(bits) for bits in struct.unpack(f"<{count}H", codes)]
    letter = {"f32": "f", "f16": "e", "i64": "q"}[codec]
    return list(struct.unpack(f"<{count}{letter}", codes))


# --- chunks ----------------------------------------------------------------------------


def _crc32c_of(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


_CRC32C = [_crc32c_of(byte) for byte in range(256)]


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC32C[(crc ^ byte) & 255]
    return crc ^ 0xFFFFFFFF


def pad(section: bytes) -> bytes:
    return section + bytes(-len(section) % 16)


# Family, what else the number says: the code of the block or sparsity, the code of the scale.
SPARSE = {
    "topk": 12,
    "topk/d2": 12 | 1 << 9,
    "topk/d10/f16": 12 | 3 << 9 | 2 << 12,
    "topk/d1000": 12 | 7 << 9,
    "topk/d1000/f16": 12 | 7 << 9 | 2 << 12,
    **{f"eden{bits}": 0x20 | bits for bits in range(1, 5)},
}


def codec_number(codec: str) -> int:
    if blocks.is_known(codec):
        return blocks.parse(codec).number
    if codec in SPARSE:
        return SPARSE[codec]
    return 0x100 | int(codec[4:]) if codec.startswith("ring") else CODECS[codec]


def sealed(header: bytes, body: bytes) -> bytes:
    """A chunk from the first 60 bytes of its header and its body."""
    return header + struct.pack("<I", crc32c(header + body)) + body


def chunk(
    codec: str,
    group: int,
    index: int,
    first: int,
    last: bool,
    sections: tuple[bytes, bytes],
    count: int,
    plan: bytes,
    update_id: int,
) -> bytes:
    scales, codes = sections
    header = HEADER.pack(
        b"VLC1", 1, 0, 64, codec_number(codec), 8 if last else 0, group, first, count, index,
        len(scales), len(codes), plan[:8], update_id, 0,
    )  # fmt: skip
    return sealed(header, pad(scales) + pad(codes))


def encode_update(
    tensors: Tensors,
    values: Sequence[Sequence[float]],
    codec: str,
    *,
    scale: float,
    seed: bytes | None,
    plan: bytes,
    update_id: int,
    chunk_coordinates: int,
) -> list[bytes]:
    """All chunks of an update. `values` per tensor, flattened; floats are f32 values."""
    chunks = []
    for group, name in ((1, codec), (2, "i64")):
        coordinates = grid(tensors, values, group)
        for index, first in enumerate(range(0, len(coordinates), chunk_coordinates)):
            part = coordinates[first : first + chunk_coordinates]
            last = first + len(part) == len(coordinates)
            body = sections(name, part, first, scale, seed)
            chunks.append(chunk(name, group, index, first, last, body, len(part), plan, update_id))
    return chunks
