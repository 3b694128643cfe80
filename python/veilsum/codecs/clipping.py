"""The clip of a ring codec that makes the error of a mean smallest.

A clip too small cuts values off, and the same way at every site; one too large makes steps
coarse, which averages out. So the best clip grows with the number of sites.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from veilsum.errors import ConfigError

_erf = np.frompyfunc(math.erf, 1, 1)
_FINE_BITS = 12  # from here on cells are so small that the density is constant in each


def ring_clip(bits: int, sites: int, *, levels: int | None = None) -> float:
    """The clip for which the mean of normally distributed values has the smallest error.

    For coordinates that are N(0, 1), which a rotation makes of most updates, and the worst
    case of sites with the same values under the same rotation: the minimum of ring_error().

    Args:
        bits: of a step, 1 to 32.
        sites: whose mean it is, 1 to 2**32.
        levels: equally spaced values from -clip to clip, 2**bits by default. A ring codec has
            one less, 2 * steps + 1.

    Returns:
        In units of the standard deviation.

    Raises:
        ConfigError: an argument is out of bounds.
    """
    found = _levels(bits, sites, levels)
    low, high = 0.05, 12.0
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(64):  # golden section: 12 * 0.618^64 is below 1e-12
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if _error(left, found, sites) <= _error(right, found, sites):
            high = right
        else:
            low = left
    return (low + high) / 2


def ring_error(clip: float, bits: int, sites: int, *, levels: int | None = None) -> float:
    """The expected squared error of the mean in units of the variance, for one clip: what
    clipping takes away, which all sites lose alike, and a site's noise of rounding over `sites`.

    Arguments as for ring_clip, `clip` in standard deviations.

    Raises:
        ConfigError: an argument is out of bounds.
    """
    if not 0.0 < clip < 100.0:
        raise ConfigError(f"clip must be above 0 and below 100 standard deviations, got {clip}")
    return _error(clip, _levels(bits, sites, levels), sites)


def _levels(bits: int, sites: int, levels: int | None) -> int:
    if not 1 <= bits <= 32:
        raise ConfigError(f"bits must be 1 to 32, got {bits}")
    if not 1 <= sites <= 2**32:
        raise ConfigError(f"sites must be 1 to 2**32, got {sites}")
    if levels is None:
        return int(2**bits)
    if not 2 <= levels <= 2**bits:
        raise ConfigError(f"levels must be 2 to 2**bits = {2**bits}, got {levels}")
    return levels


def _error(clip: float, levels: int, sites: int) -> float:
    return _clipped(clip) + _rounded(clip, levels) / sites


def _clipped(clip: float) -> float:
    """E[(|X| - clip)^2] over |X| > clip."""
    beyond = math.erfc(clip / math.sqrt(2)) / 2
    density = math.exp(-clip * clip / 2) / math.sqrt(2 * math.pi)
    return 2 * ((1 + clip * clip) * beyond - clip * density)


def _rounded(clip: float, levels: int) -> float:
    """E[(X - a)(b - X)] over |X| < clip, with a and b the levels around X: the variance of
    stochastic rounding."""
    if levels >= 2**_FINE_BITS:
        return (2 * clip / (levels - 1)) ** 2 / 6 * math.erf(clip / math.sqrt(2))
    edges = np.linspace(-clip, clip, levels)
    probability = np.diff(np.asarray(_erf(edges / math.sqrt(2)), np.float64)) / 2
    density = np.exp(-(edges**2) / 2) / math.sqrt(2 * math.pi)
    low, high = edges[:-1], edges[1:]
    first = density[:-1] - density[1:]
    second = probability + low * density[:-1] - high * density[1:]
    return float(np.sum(_cell(low, high, probability, first, second)))


def _cell(
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    probability: NDArray[np.float64],
    first: NDArray[np.float64],
    second: NDArray[np.float64],
) -> NDArray[np.float64]:
    """The integral of (x - low)(high - x) from the moments of the density in each cell."""
    result: NDArray[np.float64] = (low + high) * first - low * high * probability - second
    return result
