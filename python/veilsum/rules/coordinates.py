"""Rules that look at each coordinate alone."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from veilsum.errors import ConfigError
from veilsum.rules.base import Outcome, Rows, Rule, check_count, require


@dataclass(frozen=True, slots=True)
class CoordinateMedian(Rule):
    """The middle value of each coordinate, or the mean of the middle two (Yin et al. 2018,
    arXiv 1803.01498). Holds while fewer than half of the updates are byzantine."""

    per_coordinate: ClassVar[bool] = True

    def apply(self, rows: Rows) -> Outcome:
        """Exact: selects values, and rounds the mean of two of them once."""
        return Outcome(rows.snapshot.median(rows.matrix))


@dataclass(frozen=True, slots=True)
class TrimmedMean(Rule):
    """The mean of each coordinate without its smallest and largest values (Yin et al. 2018,
    arXiv 1803.01498). Holds against as many byzantine updates as are cut off at each end.

    Attributes:
        trim: how many values are cut off at each end; or, below 0.5, which share of them,
            rounded down.
    """

    trim: int | float
    per_coordinate: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if isinstance(self.trim, float):
            if not 0 <= self.trim < 0.5:
                raise ConfigError(f"a share to trim must be at least 0 and below 0.5: {self.trim}")
        else:
            check_count("trim", self.trim, 0)

    def cut(self, rows: int) -> int:
        """How many values are cut off at each end."""
        if isinstance(self.trim, float):
            return int(Fraction(self.trim) * rows)
        return self.trim

    def check(self, rows: int) -> None:
        """Needs a value that is left over."""
        require(self, rows, max(1, 2 * self.cut(rows) + 1))

    def apply(self, rows: Rows) -> Outcome:
        """Exact: an integer sum, rounded once."""
        cut = self.cut(rows.count)
        kept = rows.count - 2 * cut
        return Outcome(rows.snapshot.middle(rows.matrix, first=cut, kept=kept))


@dataclass(frozen=True, slots=True)
class Meamed(Rule):
    """The mean of the n - f values nearest to each coordinate's median (Xie et al. 2018,
    arXiv 1802.10116). Of two equally far values the smaller one is kept.

    Attributes:
        byzantine: f, how many updates may be anything.
    """

    byzantine: int
    per_coordinate: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_count("byzantine", self.byzantine, 0)

    def check(self, rows: int) -> None:
        """n >= 2 f + 1."""
        require(self, rows, 2 * self.byzantine + 1)

    def apply(self, rows: Rows) -> Outcome:
        """Exact: an integer sum, rounded once."""
        return Outcome(rows.snapshot.nearest(rows.matrix, kept=rows.count - self.byzantine))
