"""What rules have in common: rows to aggregate, requirements, outcomes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from veilsum import _native
from veilsum.errors import ConfigError
from veilsum.model import ModelLayout

# Integer tensors take real factors in steps of 2**-30.
COUNT_TOTAL = 2**30


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a rule makes of a set.

    Attributes:
        arrays: one per tensor of the layout.
        weights: site -> its factor in the result; None for rules that choose anew for each
            coordinate.
        selected: sites with a part in the result; None if that is all of them or differs from
            coordinate to coordinate.
    """

    arrays: list[NDArray[Any]]
    weights: dict[str, float] | None = None
    selected: tuple[str, ...] | None = None


@dataclass(slots=True)
class Rows:
    """What a rule is applied to: updates in the order of their sites' names, or means of some.

    Attributes:
        snapshot: the updates of one moment.
        layout: what each of them looks like.
        matrix: shape (rows, updates); row r is sum(matrix[r, i] * update i) / sum(matrix[r]).
        weights: of each row; all 1 if rows are not updates.
    """

    snapshot: _native.UpdateSnapshot
    layout: ModelLayout
    matrix: NDArray[np.int64]
    weights: tuple[int, ...]
    _products: NDArray[np.float64] | None = field(default=None)

    @classmethod
    def of(cls, snapshot: _native.UpdateSnapshot, layout: ModelLayout) -> Rows:
        """Each update as a row of its own."""
        matrix = np.eye(len(snapshot.sites), dtype=np.int64)
        return cls(snapshot, layout, matrix, snapshot.weights)

    @property
    def count(self) -> int:
        """Number of rows."""
        return len(self.matrix)

    @property
    def are_updates(self) -> bool:
        """Whether each row is one update and each update one row."""
        return self.matrix.shape[0] == self.matrix.shape[1] and bool(
            np.array_equal(self.matrix, np.eye(self.count, dtype=np.int64))
        )

    def mixed(self, matrix: NDArray[np.int64]) -> Rows:
        """Other rows over the same updates."""
        return Rows(self.snapshot, self.layout, matrix, (1,) * len(matrix), self._products)

    def snapshot_products(self) -> NDArray[np.float64]:
        """Gram matrix of the updates; computed once."""
        if self._products is None:
            self._products = self.snapshot.gram(center=None)
        return self._products

    def gram(self) -> NDArray[np.float64]:
        """Gram matrix of the rows over floating-point tensors. Updates beyond 2**448 count in it
        as what the snapshot's `shrinks` make of them."""
        products = self.snapshot_products()
        return products if self.are_updates else _native.mixed_gram(products, self.matrix)

    def distances(self) -> NDArray[np.float64]:
        """Squared distances between rows."""
        return _native.squared_distances(self.gram())

    def norms(self) -> list[float]:
        """L2 norms of the rows over floating-point tensors, model units."""
        if self.are_updates:
            return [float(norm) for norm in self.snapshot.norms()]
        return [math.sqrt(max(0.0, float(square))) for square in self.gram().diagonal()]

    def average(self, chosen: Sequence[int]) -> Outcome:
        """The exact mean of some rows, each counting the same."""
        weights, total = self.whole_weights(chosen)
        arrays = self.snapshot.combine(
            weights=weights,
            gains=np.ones(len(weights)),
            total=total,
            counts=weights,
            count_total=total,
            center=None,
        )
        return self.outcome(arrays, [int(weight) / total for weight in weights])

    def combination(self, factors: Sequence[float]) -> Outcome:
        """sum(factor * row), in floating-point tensors and, to 30 bits, in integer ones."""
        gains = self.fold(factors)
        counts = np.array([int(gain * COUNT_TOTAL) for gain in gains], dtype=np.int64)
        return self.weighted(gains, counts, max(1, int(counts.sum())))

    def weighted(self, gains: list[float], counts: NDArray[np.int64], count_total: int) -> Outcome:
        """sum(gain * update) in floating-point tensors, the mean by counts in integer ones."""
        arrays = self.snapshot.combine(
            weights=np.ones(len(gains), dtype=np.int64),
            gains=np.array(gains),
            total=1,
            counts=counts,
            count_total=count_total,
            center=None,
        )
        return self.outcome(arrays, gains)

    def fold(self, factors: Sequence[float]) -> list[float]:
        """Factors of rows as factors of updates. Rounding takes none of them beyond 1.

        Those that follow from gram() were found for updates as they are in it.
        """
        shrinks = [float(shrink) for shrink in self.snapshot.shrinks]
        folded = [float(factor) for factor in factors]
        if not self.are_updates:
            totals = self.matrix.sum(axis=1)
            folded = [
                math.fsum(
                    f * int(w) / int(t) for f, w, t in zip(factors, column, totals, strict=True)
                )
                for column in self.matrix.T
            ]
        return [min(1.0, f) * shrink for f, shrink in zip(folded, shrinks, strict=True)]

    def whole_weights(self, chosen: Sequence[int]) -> tuple[NDArray[np.int64], int]:
        """The mean of some rows as whole weights of updates, and what they add up to."""
        rows = [[int(weight) for weight in self.matrix[r]] for r in chosen]
        common = math.lcm(*(sum(row) for row in rows))
        sums = [0] * self.matrix.shape[1]
        for row in rows:
            for i, weight in enumerate(row):
                sums[i] += weight * (common // sum(row))
        shared = math.gcd(*sums)
        total = sum(sums) // shared
        if total >= 2**31:
            raise ConfigError(
                f"the pre-steps make means over {total} parts, 2**31-1 are possible",
                hint="use fewer pre-steps, or smaller buckets",
            )
        return np.array([weight // shared for weight in sums], dtype=np.int64), total

    def outcome(self, arrays: list[NDArray[Any]], factors: Sequence[float]) -> Outcome:
        """With a factor per update."""
        sites = self.snapshot.sites
        weights = {site: float(w) for site, w in zip(sites, factors, strict=True)}
        return Outcome(arrays, weights, tuple(site for site in sites if weights[site] != 0))


class Rule:
    """A function of the set of updates. Subclasses are frozen dataclasses.

    Attributes:
        weighted: whether weights that differ mean something to the rule.
        per_coordinate: whether each coordinate of the result depends on that coordinate of the
            updates alone, so that tensors may also come one at a time (docs/embedding.md).
    """

    weighted: ClassVar[bool] = False
    per_coordinate: ClassVar[bool] = False

    def check(self, rows: int) -> None:
        """Refuses too few rows.

        Raises:
            ConfigError: the rule's guarantee needs more, with how many.
        """
        require(self, rows, 1)

    def apply(self, rows: Rows) -> Outcome:
        """The rule's result; check() has passed."""
        raise NotImplementedError


class PreStep:
    """Turns rows into others, before a rule. Subclasses are frozen dataclasses."""

    def apply(self, rows: Rows) -> Rows:
        """The rows that the next step sees.

        Raises:
            ConfigError: there are too few rows.
        """
        raise NotImplementedError


def require(step: Rule | PreStep, rows: int, least: int) -> None:
    """Refuses fewer rows than a step needs."""
    if rows < least:
        raise ConfigError(
            f"{step} needs at least {least} updates, there are {rows}",
            hint="wait for more sites, or assume fewer byzantine ones",
        )


def check_count(what: str, number: object, least: int) -> None:
    """Refuses a setting that is not a whole number from `least` on."""
    if isinstance(number, bool) or not isinstance(number, int) or number < least:
        raise ConfigError(f"{what} must be a whole number of at least {least}, got {number!r}")


def check_positive(what: str, number: object) -> None:
    """Refuses a setting that is not a positive, finite number."""
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise ConfigError(f"{what} must be a number, got {number!r}")
    if not 0 < number < math.inf:
        raise ConfigError(f"{what} must be positive and finite, got {number}")
