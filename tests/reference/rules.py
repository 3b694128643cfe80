"""Aggregation rules as their papers write them: rows of a float64 matrix, one per update."""

from __future__ import annotations

import hashlib
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


def median(rows: Matrix) -> Matrix:
    return np.median(rows, axis=0)


def trimmed_mean(rows: Matrix, cut: int) -> Matrix:
    ordered = np.sort(rows, axis=0)
    return ordered[cut : len(rows) - cut].mean(axis=0)


def meamed(rows: Matrix, byzantine: int) -> Matrix:
    """Xie et al. 2018; of equally far values the smaller one."""
    ordered = np.sort(rows, axis=0)
    distances = np.abs(ordered - np.median(rows, axis=0))
    nearest = np.argsort(distances, axis=0, kind="stable")[: len(rows) - byzantine]
    return np.take_along_axis(ordered, nearest, axis=0).mean(axis=0)


def squared_distances(rows: Matrix) -> Matrix:
    return np.array([[np.sum((a - b) ** 2) for b in rows] for a in rows])


def krum_scores(rows: Matrix, byzantine: int) -> list[float]:
    """Blanchard et al. 2017."""
    scores = []
    for i, distances in enumerate(squared_distances(rows)):
        others = sorted(np.delete(distances, i))
        scores.append(float(sum(others[: len(rows) - byzantine - 2])))
    return scores


def krum(rows: Matrix, byzantine: int) -> int:
    scores = krum_scores(rows, byzantine)
    return scores.index(min(scores))


def multi_krum(rows: Matrix, byzantine: int, select: int) -> list[int]:
    scores = krum_scores(rows, byzantine)
    return sorted(sorted(range(len(rows)), key=lambda i: scores[i])[:select])


def bulyan_selection(rows: Matrix, byzantine: int) -> list[int]:
    """El Mhamdi et al. 2018, step one; at least one neighbour counts."""
    left = list(range(len(rows)))
    selected = []
    while len(selected) < len(rows) - 2 * byzantine:
        distances = squared_distances(rows[left])
        neighbors = max(1, len(left) - byzantine - 2)
        scores = [sum(sorted(np.delete(d, i))[:neighbors]) for i, d in enumerate(distances)]
        selected.append(left.pop(scores.index(min(scores))))
    return sorted(selected)


def bulyan(rows: Matrix, byzantine: int) -> Matrix:
    return meamed(rows[bulyan_selection(rows, byzantine)], 2 * byzantine)


def geometric_median(
    rows: Matrix, weights: list[float], iterations: int, smoothing: float
) -> Matrix:
    """Pillutla et al. 2022, algorithm 2, from the weighted mean on."""
    alphas = np.array(weights) / sum(weights)
    point = alphas @ rows
    for _ in range(iterations):
        distances = np.sqrt(((rows - point) ** 2).sum(axis=1))
        betas = alphas / np.maximum(smoothing, distances)
        point = betas @ rows / betas.sum()
    return point


def centered_clipping(rows: Matrix, radius: float, iterations: int, center: Matrix) -> Matrix:
    """Karimireddy et al. 2021, algorithm 2."""
    point = center
    for _ in range(iterations):
        differences = rows - point
        norms = np.sqrt((differences**2).sum(axis=1))
        scales = np.minimum(1, radius / np.maximum(norms, 1e-300))
        point = point + (differences * scales[:, None]).mean(axis=0)
    return point


def norm_clipping(rows: Matrix, weights: list[int], max_norm: float) -> Matrix:
    norms = np.sqrt((rows**2).sum(axis=1))
    scales = np.minimum(1, max_norm / norms) * weights
    return scales @ rows / sum(weights)


def nearest_neighbor_mixing(rows: Matrix, byzantine: int) -> Matrix:
    """Allouah et al. 2023."""
    mixed = []
    for distances in squared_distances(rows):
        near = np.argsort(distances, kind="stable")[: len(rows) - byzantine]
        mixed.append(rows[near].mean(axis=0))
    return np.array(mixed)


def buckets(sites: list[str], size: int, seed: int) -> list[list[int]]:
    digits = str(seed).encode()
    prefix = b"veilsum bucketing" + len(digits).to_bytes(8, "little") + digits

    def drawn(i: int) -> bytes:
        return hashlib.sha256(prefix + sites[i].encode()).digest()

    order = sorted(range(len(sites)), key=drawn)
    return [order[i : i + size] for i in range(0, len(order), size)]


# --- integers, exactly ----------------------------------------------------------------


def _half_even(value: Fraction) -> int:
    return round(value)


def integer_median(column: list[int]) -> int:
    ordered = sorted(column)
    n = len(column)
    return _half_even(Fraction(ordered[(n - 1) // 2] + ordered[n // 2], 2))


def integer_trimmed(column: list[int], cut: int) -> int:
    kept = sorted(column)[cut : len(column) - cut]
    return _half_even(Fraction(sum(kept), len(kept)))


def integer_meamed(column: list[int], byzantine: int) -> int:
    ordered = sorted(column)
    n = len(column)
    middle = Fraction(ordered[(n - 1) // 2] + ordered[n // 2], 2)
    kept = sorted(ordered, key=lambda x: abs(x - middle))[: n - byzantine]
    return _half_even(Fraction(sum(kept), len(kept)))
