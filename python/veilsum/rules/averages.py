"""Means: of all updates, and with a bound on what one update can move."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from veilsum.errors import ConfigError
from veilsum.rules.base import Outcome, Rows, Rule, check_positive


@dataclass(frozen=True, slots=True)
class Mean(Rule):
    """The exact mean by weight. One update can move it anywhere."""

    weighted: ClassVar[bool] = True
    per_coordinate: ClassVar[bool] = True

    def apply(self, rows: Rows) -> Outcome:
        """With pre-steps, of rows that count the same."""
        if not rows.are_updates:
            return rows.average(range(rows.count))
        return _weighted_mean(rows, [1.0] * rows.count, list(rows.weights))


@dataclass(frozen=True, slots=True)
class NormClipping(Rule):
    """The mean by weight of updates scaled down to a norm (Sun et al. 2019, arXiv 1911.07963).

    An update x counts as x * min(1, max_norm / |x|). Integer tensors are averaged as they are.

    Attributes:
        max_norm: largest L2 norm over all floating-point tensors together, model units.
    """

    max_norm: float
    weighted: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_positive("max_norm", self.max_norm)

    def apply(self, rows: Rows) -> Outcome:
        """One pass: norms were noted on arrival or cost one more."""
        gains = [min(1.0, self.max_norm / norm) if norm > 0 else 1.0 for norm in rows.norms()]
        if rows.are_updates:
            return _weighted_mean(rows, gains, list(rows.weights))
        whole, total = rows.whole_weights(range(rows.count))
        return rows.weighted(rows.fold([gain / rows.count for gain in gains]), whole, total)


@dataclass(frozen=True, slots=True)
class NormFilter(Rule):
    """The mean by weight of the updates whose norm is not too large.

    Exactly one of the two settings is given.

    Attributes:
        max_norm: largest L2 norm over all floating-point tensors together, model units.
        multiplier: largest norm in units of the median of the norms.
    """

    max_norm: float | None = None
    multiplier: float | None = None
    weighted: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if (self.max_norm is None) == (self.multiplier is None):
            raise ConfigError("NormFilter takes either max_norm or multiplier")
        check_positive("max_norm", 1.0 if self.max_norm is None else self.max_norm)
        check_positive("multiplier", 1.0 if self.multiplier is None else self.multiplier)

    def apply(self, rows: Rows) -> Outcome:
        """Raises ConfigError if no update passes."""
        norms = rows.norms()
        limit = self.max_norm if self.max_norm is not None else self._limit(norms)
        kept = [r for r, norm in enumerate(norms) if norm <= limit]
        if not kept:
            raise ConfigError(
                f"no update has a norm of at most {limit}",
                hint="raise max_norm; norms are taken over all floating-point tensors together",
            )
        if not rows.are_updates:
            return rows.average(kept)
        chosen = set(kept)
        weights = [weight if r in chosen else 0 for r, weight in enumerate(rows.weights)]
        return _weighted_mean(rows, [1.0] * rows.count, weights)

    def _limit(self, norms: list[float]) -> float:
        ordered = sorted(norms)
        middle = (ordered[(len(norms) - 1) // 2] + ordered[len(norms) // 2]) / 2
        return (self.multiplier or 1.0) * middle


def _weighted_mean(rows: Rows, gains: list[float], weights: list[int]) -> Outcome:
    total = sum(weights)
    whole = np.array(weights, dtype=np.int64)
    arrays = rows.snapshot.combine(
        weights=whole,
        gains=np.array(gains),
        total=total,
        counts=whole,
        count_total=total,
        center=None,
    )
    factors = [gain * weight / total for gain, weight in zip(gains, weights, strict=True)]
    return rows.outcome(arrays, factors)
