"""Metrics that sites report with their models: the weighted mean of each, as NVFLARE takes it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from veilsum.arrays import plain_number

_LARGEST = sys.float_info.max


class MetricsMean:
    """The weighted means of a round's metrics; not dependent on the order of arrival.

    As in NVFLARE's FedAvg, a metric is averaged over the sites that sent it, booleans count as 0
    and 1, and there are no means if a site sent no metrics at all. What is not a finite number has
    no part in a mean.
    """

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Fraction, int]] = {}
        self._complete = True

    def add(self, metrics: Mapping[str, Any] | None, weight: int) -> list[str]:
        """Adds one site's metrics.

        Returns:
            Names of those that are not finite numbers.
        """
        if metrics is None:
            self._complete = False
            return []
        left_out = []
        for name, value in metrics.items():
            number = _number(value)
            if number is None:
                left_out.append(str(name))
                continue
            total, weights = self._sums.get(name, (Fraction(0), 0))
            self._sums[name] = (total + number * weight, weights + weight)
        return left_out

    def means(self) -> dict[str, float] | None:
        """Name -> mean, rounded once, by name in order; None if there are none."""
        if not self._complete or not self._sums:
            return None
        return {
            name: float(total / weights)
            for name, (total, weights) in sorted(self._sums.items(), key=lambda one: str(one[0]))
        }


def _number(value: Any) -> Fraction | None:
    value = plain_number(value)
    if not isinstance(value, int | float) or not abs(value) <= _LARGEST:
        return None
    return Fraction(value)
