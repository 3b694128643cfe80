"""The float64 reference that every result is held against before it is timed.

The error of a value is given in *roundings*: units of eps / 2 times the weighted mean of the
absolute values that went into it, eps being that of the result's dtype. A sum that is rounded once
is off by 1 at most. One that is rounded at each of n multiplications, n additions and a division
may be off by n + 3, however the values cancel (Higham, Accuracy and Stability of Numerical
Algorithms, section 4.2), and that is what is allowed to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veilsum.bench.contenders import Checked

Update = Mapping[str, NDArray[Any]]

_PIECE = 1 << 16
# The reference is rounded too: by n of float64's, 2**-29 of a float32's.
_SLACK = 1e-3


@dataclass(frozen=True, slots=True)
class Reference:
    """The weighted mean in float64, and the weighted mean of absolute values.

    Attributes:
        mean, magnitude: by tensor.
        count: number of updates.
    """

    mean: Mapping[str, NDArray[np.float64]]
    magnitude: Mapping[str, NDArray[np.float32]]
    count: int

    @classmethod
    def of(cls, updates: Sequence[Update], weights: Sequence[int]) -> Reference:
        """Computed with NumPy, piece by piece so that it takes little beside the result."""
        total = float(sum(weights))
        means, magnitudes = {}, {}
        for name in updates[0]:
            arrays = [update[name].reshape(-1) for update in updates]
            mean = np.zeros(arrays[0].size)
            magnitude = np.zeros(arrays[0].size)
            for first in range(0, mean.size, _PIECE):
                piece = slice(first, first + _PIECE)
                for array, weight in zip(arrays, weights, strict=True):
                    share = array[piece].astype(np.float64) * weight
                    mean[piece] += share
                    magnitude[piece] += np.abs(share)
            means[name] = mean / total
            magnitudes[name] = (magnitude / total).astype(np.float32)
        return cls(means, magnitudes, len(updates))

    def once_rounded(self, result: Mapping[str, Any]) -> Checked:
        """Of a result that should be exact but for its last rounding."""
        return Checked(self.error(result), 1.0 + _SLACK)

    def rounded_once_before(self, result: Mapping[str, Any]) -> Checked:
        """Of a result whose reference was taken of values that were rounded to float32."""
        return Checked(self.error(result), 2.0 + _SLACK)

    def rounded_on_the_way(self, result: Mapping[str, Any]) -> Checked:
        """Of a result that was summed in its own dtype."""
        return Checked(self.error(result), self.count + 3.0)

    def error(self, result: Mapping[str, Any]) -> float:
        """The largest error in roundings; infinite if the result has other tensors or shapes."""
        if set(result) != set(self.mean):
            return float("inf")
        return max(self._error_of(name, np.asarray(array)) for name, array in result.items())

    def _error_of(self, name: str, array: NDArray[Any]) -> float:
        mean = self.mean[name]
        if array.size != mean.size or not np.issubdtype(array.dtype, np.floating):
            return float("inf")
        # What is wider than float32 is no better than the float32 values it came from.
        eps = max(np.finfo(array.dtype).eps, np.finfo(np.float32).eps)
        values, worst = array.reshape(-1), 0.0
        for first in range(0, mean.size, _PIECE):
            piece = slice(first, first + _PIECE)
            unit = self.magnitude[name][piece] * (eps / 2)
            unit += np.finfo(array.dtype).smallest_subnormal
            off = np.abs(values[piece].astype(np.float64) - mean[piece]) / unit
            largest = float(off.max())
            if not np.isfinite(largest):  # max() would pass over a NaN
                return float("inf")
            worst = max(worst, largest)
        return worst
