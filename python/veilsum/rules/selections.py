"""Rules that select whole updates by their distances."""

from __future__ import annotations

from dataclasses import dataclass

from veilsum import _native
from veilsum.rules.base import Outcome, Rows, Rule, check_count, require


@dataclass(frozen=True, slots=True)
class Krum(Rule):
    """The update that is nearest to its n - f - 2 nearest others (Blanchard et al. 2017).

    Ties go to the site whose name comes first. Distances are over floating-point tensors.

    Attributes:
        byzantine: f, how many updates may be anything.
    """

    byzantine: int

    def __post_init__(self) -> None:
        check_count("byzantine", self.byzantine, 0)

    def check(self, rows: int) -> None:
        """n >= 2 f + 3."""
        require(self, rows, 2 * self.byzantine + 3)

    def apply(self, rows: Rows) -> Outcome:
        """An update to the last bit, or, after pre-steps, a mean of some."""
        best = _best(rows, self.byzantine)[0]
        if not rows.are_updates:
            return rows.average([best])
        sites = rows.snapshot.sites
        weights = {site: float(r == best) for r, site in enumerate(sites)}
        return Outcome(rows.snapshot.select(best), weights, (sites[best],))


@dataclass(frozen=True, slots=True)
class MultiKrum(Rule):
    """The mean of the updates with the best scores of Krum (Blanchard et al. 2017).

    Attributes:
        byzantine: f, how many updates may be anything.
        select: how many updates are averaged, at most n - f: more could not all be honest.
    """

    byzantine: int
    select: int

    def __post_init__(self) -> None:
        check_count("byzantine", self.byzantine, 0)
        check_count("select", self.select, 1)

    def check(self, rows: int) -> None:
        """n >= 2 f + 3 and n >= select + f."""
        require(self, rows, max(2 * self.byzantine + 3, self.select + self.byzantine))

    def apply(self, rows: Rows) -> Outcome:
        """The exact mean of the selected."""
        return rows.average(_best(rows, self.byzantine)[: self.select])


@dataclass(frozen=True, slots=True)
class Bulyan(Rule):
    """Krum's choice n - 2 f times over, then the mean of the n - 4 f values of each coordinate
    nearest to the median of the chosen (El Mhamdi et al. 2018, arXiv 1802.07927).

    Attributes:
        byzantine: f, how many updates may be anything.
    """

    byzantine: int

    def __post_init__(self) -> None:
        check_count("byzantine", self.byzantine, 0)

    def check(self, rows: int) -> None:
        """n >= 4 f + 3."""
        require(self, rows, 4 * self.byzantine + 3)

    def apply(self, rows: Rows) -> Outcome:
        """One Gram matrix for all rounds of the selection."""
        count = rows.count - 2 * self.byzantine
        chosen = _native.bulyan_selection(rows.distances(), byzantine=self.byzantine, count=count)
        matrix = rows.matrix[sorted(chosen)]
        arrays = rows.snapshot.nearest(matrix, kept=count - 2 * self.byzantine)
        part = matrix.sum(axis=0) != 0
        sites = rows.snapshot.sites
        return Outcome(arrays, None, tuple(s for s, has in zip(sites, part, strict=True) if has))


def _best(rows: Rows, byzantine: int) -> list[int]:
    scores = _native.krum_scores(rows.distances(), neighbors=rows.count - byzantine - 2)
    return sorted(range(rows.count), key=lambda r: (scores[r], r))
