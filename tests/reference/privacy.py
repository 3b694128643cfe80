"""Central differential privacy from its papers: slow, with integers and fractions.

Canonne, Kamath and Steinke 2020 (arXiv 2004.00010), algorithms 1 to 3; Balle and Wang 2018
(arXiv 1805.06530), theorem 8.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction

from Crypto.Cipher import ChaCha20
from scipy import optimize, stats

from reference.mean import mean_of_sum

TILE = 4096


# --- noise ------------------------------------------------------------------------


def words(key: bytes, stream: int) -> Iterator[int]:
    """The 64-bit elements of a mask stream: nonce LE32(stream) || 0 || "VSM1"."""
    cipher = ChaCha20.new(key=key, nonce=stream.to_bytes(4, "little") + bytes(4) + b"VSM1")
    while True:
        block = cipher.encrypt(bytes(8 * 512))
        for begin in range(0, len(block), 8):
            yield int.from_bytes(block[begin : begin + 8], "little")


def below(bound: int, source: Iterator[int]) -> int:
    """Uniform on 0 .. bound - 1: the top of a product, if enough numbers lead to it."""
    while True:
        top, low = divmod(next(source) * bound, 2**64)
        if low >= 2**64 % bound:
            return top


def exp_minus(numerator: int, denominator: int, source: Iterator[int]) -> bool:
    """True with probability exp(-fraction), for a fraction below 1: algorithm 1, where the k-th
    trial, of probability fraction / k, is one of the fraction and one of 1 / k."""
    k = 1
    while below(denominator, source) < numerator and (k == 1 or below(k, source) == 0):
        k += 1
    return k % 2 == 1


def exp_minus_one(source: Iterator[int]) -> bool:
    """The same for a fraction of 1, whose first trial needs no draw."""
    k = 2
    while below(k, source) == 0:
        k += 1
    return k % 2 == 1


def discrete_laplace(t: int, source: Iterator[int]) -> int:
    while True:
        u = below(t, source)
        if not exp_minus(u, t, source):
            continue
        v = 0
        while exp_minus_one(source):
            v += 1
        magnitude = u + t * v
        negative = next(source) % 2 == 1
        if negative and magnitude == 0:
            continue
        return -magnitude if negative else magnitude


def discrete_gaussian(sigma: int, source: Iterator[int]) -> int:
    while True:
        y = discrete_laplace(sigma, source)
        whole, rest = divmod((abs(y) - sigma) ** 2, 2 * sigma**2)
        if all(exp_minus_one(source) for _ in range(whole)) and exp_minus(
            rest, 2 * sigma**2, source
        ):
            return y


def probability(x: int, sigma: int) -> float:
    """Of the discrete Gaussian."""
    reach = 40 * sigma
    total = math.fsum(math.exp(-(k**2) / (2 * sigma**2)) for k in range(-reach, reach + 1))
    return math.exp(-(x**2) / (2 * sigma**2)) / total


# --- the mean ---------------------------------------------------------------------


def gain(values: Sequence[float], clip: float) -> float:
    """min(1, clip / norm), the norm taken a little too long and rounded like the core's."""
    squares = 0.0
    for begin in range(0, len(values), TILE):
        squares += math.fsum(value * value for value in values[begin : begin + TILE])
    norm = math.sqrt(squares) * (1 + 2.0**-22)
    return clip / norm if norm > clip else 1.0


def steps(values: Sequence[float], factor: float) -> list[int]:
    """Each value times its gain in units of the grid."""
    return [round(Fraction(value * factor)) for value in values]


def mean(sums: Sequence[int], exponent: int, denominator: int, dtype: str) -> list[float]:
    return [mean_of_sum(total, exponent, denominator, dtype) for total in sums]


# --- accounting -------------------------------------------------------------------


def analytic_delta(epsilon: float, noise_multiplier: float) -> float:
    """Of one Gaussian mechanism, exactly."""
    a, b = 1 / (2 * noise_multiplier), epsilon * noise_multiplier
    return float(stats.norm.cdf(a - b) - math.exp(epsilon) * stats.norm.cdf(-a - b))


def analytic_epsilon(delta: float, noise_multiplier: float) -> float:
    return float(
        optimize.brentq(
            lambda e: analytic_delta(e, noise_multiplier) - delta, 1e-9, 500, xtol=1e-12
        )
    )
