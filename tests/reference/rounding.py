"""Rounding to floating-point formats, in fractions."""

from __future__ import annotations

import struct
from fractions import Fraction

# Bits of the significand, exponent of the last place of the smallest numbers.
FORMATS = {"f16": (11, -24), "bf16": (8, -133), "f32": (24, -149), "f64": (53, -1074)}


def round_to(value: Fraction, dtype: str) -> Fraction:
    """The nearest number of a format, ties to even, as if exponents had no upper end."""
    precision, least = FORMATS[dtype]
    if value == 0:
        return value
    # 2**exponent <= |value| < 2**(exponent + 1)
    exponent = abs(value.numerator).bit_length() - value.denominator.bit_length()
    if abs(value) < Fraction(2) ** exponent:
        exponent -= 1
    place = Fraction(2) ** max(exponent + 1 - precision, least)
    return round(value / place) * place  # round() takes halves to even


def f32(value: float) -> float:
    return struct.unpack("<f", struct.pack("<f", value))[0]
