"""The mean by weight in fractions, rounded once: what no floating-point sum can be closer to."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reference.rounding import round_to

_FORMATS = {"float16": "f16", "float32": "f32", "float64": "f64"}


def exact_mean(arrays: Sequence[NDArray[Any]], weights: Sequence[int]) -> NDArray[Any]:
    """Of arrays of one shape and floating-point or integer dtype, which the mean has too.

    Args:
        weights: how much each array counts, whole numbers.
    """
    first = arrays[0]
    total = sum(weights)
    columns = zip(*(array.reshape(-1).tolist() for array in arrays), strict=True)
    exact = [
        sum(weight * Fraction(value) for weight, value in zip(weights, column, strict=True)) / total
        for column in columns
    ]
    rounded = [
        round(value) if first.dtype.kind in "iu" else float(round_to(value, _format(first.dtype)))
        for value in exact
    ]
    return np.array(rounded, dtype=first.dtype).reshape(first.shape)


def _format(dtype: np.dtype[Any]) -> str:
    return _FORMATS[dtype.name]
