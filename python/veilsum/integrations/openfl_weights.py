"""The sample counts behind the fractions that OpenFL weighs with.

OpenFL gives each collaborator the float64 quotient of its number of samples and everybody's; the
sum takes whole numbers. Fractions with denominators up to D lie at least 1 / D**2 apart, and a
quotient of at most 1 is rounded by at most 2**-54: for D**2 < 2**53 only one of them can be
behind a float. So up to D samples the very numbers come back. Of more, the weights are either
refused, or stand for smaller numbers with the very same quotients in float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

from veilsum.errors import ConfigError, PeerError

MOST_SAMPLES = math.isqrt(2**53)
"""Largest number of samples of all collaborators together: 94,906,265."""


def whole_weights(shares: Mapping[str, float]) -> dict[str, int]:
    """Whole numbers in exactly the proportions that the shares are the rounded quotients of.

    Args:
        shares: site -> its number of samples divided by everybody's in float64, or whole numbers.

    Returns:
        site -> its number of samples, divided by the greatest number that divides all of them.

    Raises:
        PeerError: a share is negative or not finite.
        ConfigError: they are not quotients by one whole number up to MOST_SAMPLES.
    """
    exact = {site: _fraction(site, share) for site, share in shares.items()}
    total = math.lcm(*(fraction.denominator for fraction in exact.values()))
    counts = {site: int(fraction * total) for site, fraction in exact.items()}
    if total > MOST_SAMPLES or any(counts[site] / total != shares[site] for site in shares):
        raise ConfigError(
            f"the weights of {len(shares)} collaborators are not numbers of samples divided by a "
            f"common total of at most {MOST_SAMPLES}, so what they stand for cannot be known",
            hint="let data sizes be whole numbers, counted in batches if they are larger",
        )
    shared = math.gcd(*counts.values()) or 1
    return {site: count // shared for site, count in counts.items()}


def _fraction(site: str, share: float) -> Fraction:
    if not 0 <= share < math.inf:
        raise PeerError(site, f"has weight {share!r}, which is no share of the samples")
    return Fraction(share).limit_denominator(MOST_SAMPLES)
