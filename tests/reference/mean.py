"""The exact weighted mean from docs/numerics.md, in fractions. Slow and short."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from reference.rounding import round_to

TILE = 4096


def exponent_above(value: float) -> int:
    """The e with |value| < 2**e and 2**(e-1) <= |value|."""
    return math.frexp(value)[1]


def tile_exponent(largest: Sequence[float], weights: Sequence[int]) -> int:
    """The s of a tile, from the largest magnitude of each update in it."""
    exponents = [
        exponent_above(value) + weight.bit_length()
        for value, weight in zip(largest, weights, strict=True)
        if value > 0
    ]
    return scale_exponent(max(exponents), len(weights)) if exponents else 0


def scale_exponent(e: int, updates: int) -> int:
    return min(62 - e - (updates - 1).bit_length(), 960)


def term(value: float, weight: int, s: int) -> int:
    """round(weight * value * 2**s): the product rounds to a double, then to an integer."""
    product = Fraction(value) * weight * Fraction(2) ** s
    return round(Fraction(float(product)))


def mean_of_sum(total: int, s: int, weight: int, dtype: str) -> float:
    return float(round_to(Fraction(total) / Fraction(2) ** s / weight, dtype))


def mean(
    updates: Sequence[tuple[int, Sequence[float]]], dtypes: Sequence[str], first: int = 0
) -> list[float]:
    """Mean of floating-point coordinates.

    Args:
        updates: (weight, value per coordinate); coordinates start at a tile.
        dtypes: of each coordinate, to which its mean is rounded.
    """
    weights = [weight for weight, _ in updates]
    out: list[float] = []
    for begin in range(0, len(dtypes), TILE):
        tile = [values[begin : begin + TILE] for _, values in updates]
        s = tile_exponent([max(map(abs, values)) for values in tile], weights)
        for place, dtype in enumerate(dtypes[begin : begin + TILE]):
            total = sum(
                term(values[place], weight, s) for values, weight in zip(tile, weights, strict=True)
            )
            out.append(mean_of_sum(total, s, sum(weights), dtype))
    return out


def streamed_mean(
    updates: Sequence[tuple[int, Sequence[float]]],
    dtypes: Sequence[str],
    max_abs: float,
    max_total_weight: int,
) -> list[float]:
    """The same with one scale from declared bounds."""
    s = scale_exponent(exponent_above(max_abs) + max_total_weight.bit_length(), 1)
    weight = sum(weight for weight, _ in updates)
    return [
        mean_of_sum(
            sum(term(values[place], weight, s) for weight, values in updates), s, weight, dtype
        )
        for place, dtype in enumerate(dtypes)
    ]


def int8_mean(
    updates: Sequence[tuple[int, Sequence[float], Sequence[int]]], dtypes: Sequence[str]
) -> list[float]:
    """Mean of int8 updates: (weight, scale per 64 coordinates, code per coordinate)."""
    weights = [weight for weight, _, _ in updates]
    out: list[float] = []
    for begin in range(0, len(dtypes), TILE):
        end = min(begin + TILE, len(dtypes))
        largest = [
            max(abs(codes[place]) * scales[place // 64] for place in range(begin, end))
            for _, scales, codes in updates
        ]
        s = tile_exponent(largest, weights)
        for place in range(begin, end):
            total = sum(
                codes[place] * term(scales[place // 64], weight, s)
                for weight, scales, codes in updates
            )
            out.append(mean_of_sum(total, s, sum(weights), dtypes[place]))
    return out


def integer_mean(updates: Sequence[tuple[int, Sequence[int]]]) -> list[int]:
    """Mean of integer coordinates, halves to even."""
    total_weight = sum(weight for weight, _ in updates)
    sums = (
        sum(weight * value for (weight, _), value in zip(updates, column, strict=True))
        for column in zip(*(values for _, values in updates), strict=True)
    )
    return [round(Fraction(total, total_weight)) for total in sums]
