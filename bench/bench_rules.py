"""Robust rules: the kernels' rates over committed updates, against NumPy and OpenBLAS.

The yardsticks get one float32 matrix that already lies in memory. The updates of the aggregator
are the rows of the same matrix. Inner products are compared with OpenBLAS on one core:
OPENBLAS_NUM_THREADS=1 must be set before NumPy is loaded.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

from veilsum import Aggregator, ModelLayout, _native, rules

SIZE = 1 << 18
WIDE = 1 << 20


def matrix(n: int, size: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(n).standard_normal((n, size), dtype=np.float32)


def filled(rows: np.ndarray[Any, Any]) -> Aggregator:
    aggregator = Aggregator(ModelLayout.from_arrays({"w": rows[0]}), threads=1)
    for number, row in enumerate(rows):
        aggregator.add({"w": row}, weight=1, site=f"{number:04}")
    return aggregator


@pytest.mark.parametrize("n", [8, 16, 32, 64, 100])
def test_median(report, n):
    rows = matrix(n, SIZE)
    snapshot = _native.UpdateSnapshot(filled(rows)._native)
    identity = np.eye(n, dtype=np.int64)
    expected = np.median(rows[:, :4096], axis=0).astype(np.float32)
    assert snapshot.median(identity)[0][:4096].tolist() == expected.tolist()

    report(
        lambda: snapshot.median(identity),
        numpy=lambda: np.median(rows, axis=0),
        size=rows.nbytes,
        coordinates=n * SIZE,
    )


@pytest.mark.parametrize("n", [8, 16, 32, 64])
@pytest.mark.parametrize("rule", ["trimmed", "meamed"])
def test_mean_of_what_is_kept(report, rule, n):
    rows = matrix(n, SIZE)
    snapshot = _native.UpdateSnapshot(filled(rows)._native)
    identity = np.eye(n, dtype=np.int64)
    cut = n // 4
    kept = n - 2 * cut

    def numpy_way() -> np.ndarray[Any, Any]:
        return np.sort(rows, axis=0)[cut : n - cut].mean(axis=0)

    def ours() -> list[np.ndarray[Any, Any]]:
        if rule == "meamed":
            return snapshot.nearest(identity, kept=kept)
        return snapshot.middle(identity, first=cut, kept=kept)

    if rule == "trimmed":
        np.testing.assert_allclose(ours()[0], numpy_way(), rtol=1e-3, atol=1e-6)
    report(ours, numpy=numpy_way, size=rows.nbytes, coordinates=n * SIZE)


@pytest.mark.skipif(
    os.environ.get("OPENBLAS_NUM_THREADS") != "1", reason="needs OPENBLAS_NUM_THREADS=1"
)
@pytest.mark.parametrize("n", [16, 64, 100])
def test_inner_products(report, n):
    rows = matrix(n, WIDE)
    snapshot = _native.UpdateSnapshot(filled(rows)._native)
    gram = snapshot.gram(center=None)
    wide = rows[:4].astype(np.float64)
    np.testing.assert_allclose(gram[:4, :4], wide @ wide.T, rtol=1e-9, atol=1e-6)

    report(
        lambda: snapshot.gram(center=None),
        numpy=lambda: rows @ rows.T,
        size=rows.nbytes,
        coordinates=n * WIDE,
    )


def test_krum_of_32_as_a_whole(report):
    rows = matrix(32, SIZE)
    aggregator = filled(rows)
    rule = rules.Krum(byzantine=8)

    def numpy_way() -> np.ndarray[Any, Any]:
        distances = np.array([[np.sum((a - b) ** 2) for b in rows] for a in rows])
        scores = np.sort(distances, axis=1)[:, 1 : 32 - 8 - 1].sum(axis=1)
        return rows[int(np.argmin(scores))]

    assert aggregator.finish(rule=rule).arrays["w"].tolist() == numpy_way().tolist()
    report(
        lambda: aggregator.finish(rule=rule),
        numpy=numpy_way,
        size=rows.nbytes,
        coordinates=32 * SIZE,
    )
