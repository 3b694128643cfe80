"""Statistical tests of words that should be uniform. All of fixed seeds: one that fails, fails
every time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import scipy.stats
from numpy.typing import NDArray

SMALLEST = 1e-6
"""A p-value below this is a failure. A good generator has one in 10^6."""

Words = NDArray[Any]


def monobit(words: Words, bits: int) -> float:
    """Smallest p over all bit positions: as many ones as zeros."""
    ones = [
        int((words >> words.dtype.type(bit) & words.dtype.type(1)).sum()) for bit in range(bits)
    ]
    z = np.abs(np.array(ones) - words.size / 2) / np.sqrt(words.size / 4)
    return float(2 * scipy.stats.norm.sf(z.max()))


def top_bits(words: Words, bits: int, *, most: int = 8) -> Words:
    """The most significant bits, as small integers."""
    return (words >> words.dtype.type(bits - min(bits, most))).astype(np.int64)


def chi_square(words: Words, bits: int, *, most: int = 8) -> float:
    """All values of the top bits are as frequent."""
    counts = np.bincount(top_bits(words, bits, most=most), minlength=2 ** min(bits, most))
    return float(scipy.stats.chisquare(counts).pvalue)


def same_distribution(one: Words, other: Words, bits: int, *, most: int = 8) -> float:
    """Two samples, by the top bits of each."""
    shape = 2 ** min(bits, most)
    table = [
        np.bincount(top_bits(words, bits, most=most), minlength=shape) for words in (one, other)
    ]
    return float(scipy.stats.chi2_contingency(table).pvalue)


def kolmogorov_smirnov(words: Words, bits: int) -> float:
    """Against the continuous uniform distribution: for words of 16 bits or more. Coarser ones
    fail by being discrete."""
    return float(scipy.stats.kstest(words.astype(np.float64) / 2.0**bits, "uniform").pvalue)


def serial_correlation(words: Words, *, lags: Iterable[int] = range(1, 65)) -> float:
    """Smallest p over all lags: a word says nothing about later ones."""
    values = words.astype(np.float64)
    values = (values - values.mean()) / values.std()
    z = [abs(float(values[:-lag] @ values[lag:])) / np.sqrt(values.size - lag) for lag in lags]
    return float(2 * scipy.stats.norm.sf(max(z)))


def smallest_p(words: Words, bits: int) -> dict[str, float]:
    """Every test that fits the width."""
    found = {
        "monobit": monobit(words, bits),
        "chi-square": chi_square(words, bits),
        "serial correlation": serial_correlation(words),
    }
    if bits >= 16:
        found["Kolmogorov-Smirnov"] = kolmogorov_smirnov(words, bits)
    return found


def failing(words: Words, bits: int) -> set[str]:
    """Names of the tests that words of so many bits do not pass."""
    return {name for name, p in smallest_p(words, bits).items() if not p > SMALLEST}


def missing_values(words: Words, bits: int) -> int:
    """How many of the 2^bits values never come."""
    return 2**bits - np.unique(words).size


def fixed_bits(keys: Iterable[bytes]) -> tuple[int, int]:
    """(bits that are 0 in all keys, bits that are 1 in all keys)."""
    table = np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 32)
    never = np.bitwise_or.reduce(table)
    always = np.bitwise_and.reduce(table)
    return int(256 - np.bitwise_count(never).sum()), int(np.bitwise_count(always).sum())
