"""How well scores tell two classes apart."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from veilsum.errors import ConfigError


def auc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Area under the ROC curve: how often a positive example scores above a negative one.

    The rank statistic of Mann and Whitney (1947); a tie counts one half.

    Args:
        scores: shape (n,), higher means more likely positive.
        labels: shape (n,), 1 positive, 0 negative.

    Raises:
        ConfigError: the shapes differ, a score is not a number, or a class is missing.
    """
    values = np.asarray(scores, np.float64)
    positive = np.asarray(labels) > 0
    if values.shape != positive.shape or values.ndim != 1:
        raise ConfigError(f"scores have shape {values.shape}, labels {positive.shape}")
    if np.isnan(values).any():
        raise ConfigError("a score is not a number")
    positives = int(positive.sum())
    negatives = len(values) - positives
    if not positives or not negatives:
        raise ConfigError("AUC needs examples of both classes")
    rank_sum = float(_mean_ranks(values)[positive].sum())
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)


def _mean_ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    """Ranks from 1; equal values share the mean of theirs."""
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(sizes)
    ranks: NDArray[np.float64] = (last - (sizes - 1) / 2)[group]
    return ranks
