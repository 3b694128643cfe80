"""Rules whose iterates are combinations of the updates: they run on one Gram matrix, and the
updates themselves are summed once, at the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from veilsum import _native
from veilsum.errors import ConfigError, PeerError
from veilsum.model import fit_arrays
from veilsum.rules.base import COUNT_TOTAL, Outcome, Rows, Rule, check_count, check_positive


@dataclass(frozen=True, slots=True)
class GeometricMedian(Rule):
    """The point with the smallest weighted sum of distances to the updates: smoothed Weiszfeld
    iterations from the weighted mean on (RFA, Pillutla et al. 2022, arXiv 1912.13445).

    Attributes:
        iterations: how many, each of n * n operations for n updates. RFA takes three, enough for
            updates that are noisy. A single far update of three loses half of its pull in each,
            of more of them more: the default takes that off whatever a float32 holds.
        smoothing: distances below it count as it, model units.
    """

    iterations: int = 128
    smoothing: float = 1e-6
    weighted: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_count("iterations", self.iterations, 1)
        check_positive("smoothing", self.smoothing)

    def apply(self, rows: Rows) -> Outcome:
        """Integer tensors are averaged with the same factors, to 30 bits."""
        factors = _native.weiszfeld_factors(
            rows.gram(),
            weights=np.array(rows.weights, dtype=np.float64),
            iterations=self.iterations,
            smoothing=self.smoothing,
        )
        return rows.combination([float(factor) for factor in factors])


@dataclass(frozen=True, slots=True)
class CenteredClipping(Rule):
    """Steps from a centre by the mean of the differences to it, each clipped to a radius
    (Karimireddy et al. 2021, arXiv 2012.10333).

    Attributes:
        radius: largest L2 norm of a difference, model units.
        iterations: how many steps.
        center: arrays by name to start from, such as the last result; zero if left out.
    """

    radius: float
    iterations: int = 1
    center: Mapping[str, Any] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_positive("radius", self.radius)
        check_count("iterations", self.iterations, 1)

    def apply(self, rows: Rows) -> Outcome:
        """Integer tensors are combined with the same factors, to 30 bits."""
        if self.center is None:
            return self._combined(rows, self._factors(rows.gram(), rows.count), None)
        if not rows.are_updates:
            raise ConfigError(
                "CenteredClipping takes a center only without pre-steps",
                hint="subtract the center from the updates before they are added",
            )
        center = fit_arrays(rows.layout, self.center)
        try:
            gram = rows.snapshot.gram(center=center)
        except PeerError as error:
            raise ConfigError(f"the center holds values that are not finite: {error}") from error
        return self._combined(rows, self._factors(gram, rows.count), center)

    def _factors(self, gram: Any, rows: int) -> list[float]:
        factors = _native.clipping_factors(
            gram,
            rows=rows,
            iterations=self.iterations,
            radius=self.radius,
        )
        return [float(factor) for factor in factors]

    def _combined(self, rows: Rows, factors: list[float], center: Any) -> Outcome:
        of_center = factors[rows.count :]
        gains = rows.fold(factors[: rows.count]) + [min(1.0, factor) for factor in of_center]
        counts = [int(gain * COUNT_TOTAL) for gain in gains]
        if center is not None:  # what rounding down left over is the center's
            counts[-1] = COUNT_TOTAL - sum(counts[:-1])
        arrays = rows.snapshot.combine(
            weights=np.ones(len(gains), dtype=np.int64),
            gains=np.array(gains),
            total=1,
            counts=np.array(counts, dtype=np.int64),
            count_total=COUNT_TOTAL,
            center=center,
        )
        sites = rows.snapshot.sites
        return Outcome(arrays, dict(zip(sites, gains[: len(sites)], strict=True)), sites)
