"""Buffered rounds from docs/numerics.md, in fractions. Slow and short."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from reference.mean import integer_mean, mean


@dataclass(frozen=True)
class Update:
    """One update of a buffer: values of floating-point coordinates, and of integer ones."""

    weight: int
    staleness: int
    floats: Sequence[float]
    integers: Sequence[int]


def fraction_bits(weight_cap: int) -> int:
    """The most with which weight_cap stays below 2**31."""
    bits = 0
    while weight_cap * 2 ** (bits + 1) < 2**31:
        bits += 1
    return bits


def counted(weight: int, staleness: int, weight_cap: int) -> int:
    """The integer nearest to weight * 2**fraction_bits / sqrt(1 + staleness), halves up: the n
    with n - 1/2 <= that < n + 1/2, found by halving, compared as squares."""
    square = Fraction(weight * 2 ** fraction_bits(weight_cap)) ** 2 / (1 + staleness)
    low, high = 0, 2**31
    while high - low > 1:
        middle = (low + high) // 2
        if (middle - Fraction(1, 2)) ** 2 <= square:
            low = middle
        else:
            high = middle
    return low


def buffer_mean(
    updates: Sequence[Update], dtypes: Sequence[str], weight_cap: int
) -> tuple[list[float], list[int]]:
    """Of floating-point coordinates, rounded to their dtypes, and of integer ones."""
    weights = [counted(one.weight, one.staleness, weight_cap) for one in updates]
    floats = mean(
        [(weight, one.floats) for weight, one in zip(weights, updates, strict=True)], dtypes
    )
    integers = integer_mean(
        [(weight, one.integers) for weight, one in zip(weights, updates, strict=True)]
    )
    return floats, integers
