"""Codecs whose codes share scales in blocks, from docs/format.md: slow, in fractions.

Names are full names ("int8/b32/f16"). Numbers that are not exact are rounded by round_to(), one
step at a time, as the page says.
"""

from __future__ import annotations

import bisect
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from reference.ring import uniform24
from reference.rounding import f32, round_to

# Family -> (number, usual block, usual scale format).
FAMILIES = {
    "int8": (4, 64, "f32"),
    "int4": (6, 64, "f16"),
    "nf4": (7, 64, "f16"),
    "fp4": (8, 64, "f16"),
    "fp8_e4m3": (9, 64, "f32"),
    "fp8_e5m2": (10, 64, "f32"),
    "sign": (11, 64, "f16"),
}
# QLoRA (Dettmers et al. 2023), appendix E, as float32.
NF4 = [f32(value) for value in (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)]  # fmt: skip
FP4 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
TABLES = {
    "int4": [float(code if code < 8 else code - 16) for code in range(16)],
    "nf4": NF4,
    "fp4": FP4 + [-value for value in FP4],
}
LARGEST = {"int8": 127, "int4": 7, "nf4": 1, "fp4": 6, "fp8_e4m3": 448, "fp8_e5m2": 57344}
SMALLEST = {
    "int8": 1.0, "int4": 1.0, "nf4": NF4[8], "fp4": 0.5, "fp8_e4m3": 2.0**-9,
    "fp8_e5m2": 2.0**-16, "sign": 1.0,
}  # fmt: skip
HUGE = Fraction((2 - 2.0**-23) * 2.0**127)


@dataclass(frozen=True)
class Codec:
    family: str
    block: int  # 0: no scales
    scales: str

    @property
    def number(self) -> int:
        number, block, scales = FAMILIES[self.family]
        if self.block == 0:
            return number | 3 << 12
        if self.block != block:
            number |= (self.block.bit_length() - 5) << 9
        if self.scales != scales:
            number |= {"f32": 1, "f16": 2}[self.scales] << 12
        return number


def parse(name: str) -> Codec:
    family, *words = name.split("/")
    _, block, scales = FAMILIES[family]
    for word in words:
        if word == "raw":
            return Codec(family, 0, "")
        if word in ("f32", "f16"):
            scales = word
        else:
            block = int(word[1:])
    return Codec(family, block, scales)


def is_known(name: str) -> bool:
    return name.partition("/")[0] in FAMILIES


# --- 8-bit floats ----------------------------------------------------------------------


def fp8_value(family: str, code: int) -> float:
    mantissa_bits, bias = (3, 7) if family == "fp8_e4m3" else (2, 15)
    sign = -1.0 if code & 0x80 else 1.0
    exponent, mantissa = divmod(code & 0x7F, 1 << mantissa_bits)
    fraction = mantissa / (1 << mantissa_bits)
    if exponent == 0:
        return sign * fraction * 2.0 ** (1 - bias)
    return sign * (1 + fraction) * 2.0 ** (exponent - bias)


def fp8_code(family: str, quotient: float) -> int:
    """The nearest number, ties to the even code; the largest one for what lies beyond."""
    most = 0x7E if family == "fp8_e4m3" else 0x7B
    sign = 0x80 if math.copysign(1.0, quotient) < 0 else 0
    wanted = abs(Fraction(quotient))
    magnitudes = [fp8_value(family, code) for code in range(most + 1)]
    above = bisect.bisect_left(magnitudes, wanted)
    return sign | min(
        range(max(above - 1, 0), min(above, most) + 1),
        key=lambda code: (abs(Fraction(magnitudes[code]) - wanted), code % 2),
    )


# --- scales --------------------------------------------------------------------------------


def _step_down(value: float) -> float:
    (pattern,) = struct.unpack("<I", struct.pack("<f", value))
    return float(struct.unpack("<f", struct.pack("<I", pattern - 1))[0])


def block_scale(codec: Codec, block: Sequence[float], members: int) -> float:
    """Members: how many values of the block belong to a tensor."""
    if codec.family == "sign":
        scale = f32(_mean_magnitude(block, members))
    else:
        largest = LARGEST[codec.family]
        scale = float(round_to(Fraction(max(map(abs, block))) / largest, "f32"))
        if Fraction(scale) * largest > HUGE:
            scale = _step_down(scale)
    if codec.scales == "f16":
        scale = float(round_to(Fraction(scale), "f16"))
        if scale > 65504:
            raise OverflowError(f"{scale} is no f16")
    legal = min(Fraction(scale) * Fraction(SMALLEST[codec.family]), Fraction(scale)) >= 2.0**-126
    return scale if legal else 0.0


def _mean_magnitude(block: Sequence[float], members: int) -> float:
    if members == 0:
        return 0.0
    sums = [0.0] * 16
    for place, value in enumerate(block):
        sums[place % 16] += abs(value)
    while len(sums) > 1:
        half = len(sums) // 2
        sums = [sums[k] + sums[k + half] for k in range(half)]
    return sums[0] / members


# --- codes ----------------------------------------------------------------------------------


def _step_code(quotient: float, limit: int, uniform: int | None) -> int:
    step = round(quotient) if uniform is None else math.floor(quotient + uniform * 2.0**-24)
    return max(-limit, min(limit, step))


def _nearest_nf4(quotient: float) -> int:
    wanted = Fraction(quotient)
    above = bisect.bisect_left(NF4, quotient)
    return min(
        range(max(above - 1, 0), min(above, 15) + 1),
        key=lambda code: (abs(Fraction(NF4[code]) - wanted), code),
    )


def _nearest_fp4(quotient: float) -> int:
    wanted = abs(Fraction(quotient))
    code = min(range(8), key=lambda code: (abs(Fraction(FP4[code]) - wanted), code % 2))
    return code + (8 if math.copysign(1.0, quotient) < 0 else 0)


def zero_code(family: str) -> int:
    return 7 if family == "nf4" else 0


def code_of(codec: Codec, value: float, scale: float, uniform: int | None) -> int:
    family = codec.family
    if scale == 0:
        return zero_code(family)
    if family == "sign":
        return int(value < 0)
    if family in ("int8", "int4"):
        return _step_code(value / scale, LARGEST[family], uniform)
    quotient = math.copysign(float(round_to(Fraction(value) / Fraction(scale), "f32")), value)
    if family == "nf4":
        return _nearest_nf4(quotient)
    return _nearest_fp4(quotient) if family == "fp4" else fp8_code(family, quotient)


def code_value(family: str, code: int) -> float:
    if family in TABLES:
        return TABLES[family][code % 16]
    if family == "int8":
        return float(code)
    return (-1.0 if code else 1.0) if family == "sign" else fp8_value(family, code)


def packed_codes(family: str, codes: Sequence[int]) -> bytes:
    if family == "int8":
        return struct.pack(f"<{len(codes)}b", *codes)
    if family.startswith("fp8"):
        return bytes(codes)
    bits = 1 if family == "sign" else 4
    whole = sum((code % 2**bits) << bits * place for place, code in enumerate(codes))
    return whole.to_bytes(-(-len(codes) * bits // 8), "little")


def unpacked_codes(family: str, data: bytes, count: int) -> list[int]:
    if family == "int8":
        return list(struct.unpack(f"<{count}b", data))
    if family.startswith("fp8"):
        return list(data)
    bits = 1 if family == "sign" else 4
    whole = int.from_bytes(data, "little")
    return [whole >> bits * place & (2**bits - 1) for place in range(count)]


# --- sections of a chunk ------------------------------------------------------------------


def sections(
    name: str, values: Sequence[float], first: int, seed: bytes | None
) -> tuple[bytes, bytes]:
    """Scales and codes. Values are f32; those of gaps are the integer 0."""
    codec = parse(name)
    block = codec.block or len(values)
    scales, codes = b"", []
    for begin in range(0, len(values), block):
        part = values[begin : begin + block]
        members = sum(isinstance(value, float) for value in part)
        scale = block_scale(codec, part, members) if codec.block else 1.0
        if codec.block:
            scales += struct.pack("<f" if codec.scales == "f32" else "<e", scale)
        for place, value in enumerate(part):
            stochastic = seed is not None and codec.family in ("int8", "int4")
            uniform = uniform24(seed, first + begin + place, 1) if stochastic and seed else None
            codes.append(code_of(codec, value, scale, uniform))
    return scales, packed_codes(codec.family, codes)


def scale_list(codec: Codec, scales: bytes) -> list[float]:
    if codec.block == 0:
        return [1.0]
    size, letter = (4, "f") if codec.scales == "f32" else (2, "e")
    return list(struct.unpack(f"<{len(scales) // size}{letter}", scales))


def decoded(name: str, scales: bytes, codes: bytes, count: int) -> list[float]:
    """Values, each rounded once to f32."""
    codec = parse(name)
    by_block = scale_list(codec, scales)
    return [
        f32(code_value(codec.family, code) * by_block[place // (codec.block or count)])
        for place, code in enumerate(unpacked_codes(codec.family, codes, count))
    ]
