"""How much a site counts: the whole-number rule of the sum, for weights that hosts carry."""

from __future__ import annotations

from veilsum.arrays import whole_number
from veilsum.errors import PeerError

_MOST_WEIGHT = 2**31 - 1


def whole_weight(site: str, weight: object, key: str) -> int:
    """A weight of the sum: a whole number, also as a float that is one.

    Raises:
        PeerError: it is another.
    """
    whole = whole_number(weight)
    if whole is None:
        raise PeerError(
            site,
            f"has weight {weight!r} ({key!r}), which is not a whole number",
            hint="weights are counts: send whole numbers, for example the fraction times 1000000",
        )
    if not 1 <= whole <= _MOST_WEIGHT:
        raise PeerError(
            site,
            f"has weight {whole} ({key!r}), expected 1 to {_MOST_WEIGHT}",
            hint="count in larger units; a site without examples has no part in the mean",
        )
    return whole
