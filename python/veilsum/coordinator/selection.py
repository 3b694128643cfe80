"""Whom a round invites of the sites that are there. Pure functions of their arguments.

A sample is drawn as a whole, as one number below C(n, k): every set of k sites is as likely as
every other, exactly, and a replay of the same draws makes the same choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import TypeAlias

from veilsum.errors import ConfigError

Draw: TypeAlias = Callable[[int], bytes]
"""size -> that many fresh random bytes."""

_MOST_DRAWS = 128
"""Each is in range with a probability of more than a half."""


def invited(
    there: Sequence[str], wanted: int, before: Collection[str], draw: Draw
) -> tuple[str, ...]:
    """The sites that a round invites, in the order of `there`.

    Args:
        there: sites that may be invited.
        wanted: how many are; 0 for all. If no more are there, all are.
        before: whom the attempt before this one invited, if this is not the first at its round.
            They come first: their updates may not have left them yet, and then serve again.

    Raises:
        ConfigError: `draw` gives no random bytes.
    """
    if not wanted or len(there) <= wanted:
        return tuple(there)
    again = [site for site in there if site in before][:wanted]
    others = [site for site in there if site not in again]
    chosen = {*again, *sample(others, wanted - len(again), draw)}
    return tuple(site for site in there if site in chosen)


def sample(sites: Sequence[str], count: int, draw: Draw) -> tuple[str, ...]:
    """`count` of the sites, in their order.

    Raises:
        ConfigError: `draw` gives no random bytes.
    """
    number = below(math.comb(len(sites), count), draw)
    return tuple(sites[index] for index in subset(number, len(sites), count))


def below(bound: int, draw: Draw) -> int:
    """A whole number from 0 to bound - 1, each with the same probability.

    A number out of range is drawn again, not brought into range: as a remainder, some would come
    more often than others.

    Raises:
        ConfigError: `draw` gives no random bytes.
    """
    bits = (bound - 1).bit_length()
    for _ in range(_MOST_DRAWS):
        number = int.from_bytes(draw((bits + 7) // 8), "little") & ((1 << bits) - 1)
        if number < bound:
            return number
    raise ConfigError(
        f"none of {_MOST_DRAWS} numbers of {bits} random bits was below {bound}, which is not "
        "chance",
        hint="have the system's source of randomness looked at before this coordinator runs again",
    )


def subset(number: int, size: int, count: int) -> tuple[int, ...]:
    """The subset of range(size) with `count` elements that has this number in lexicographic order.

    Args:
        number: 0 to C(size, count) - 1.
    """
    chosen: list[int] = []
    sets, missing = math.comb(size, count), count  # of the elements that are left
    for element in range(size):
        # C(n - 1, k - 1) = C(n, k) * k / n: those of the sets that this element is in come first.
        with_it = sets * missing // (size - element)
        if number < with_it:
            chosen.append(element)
            sets, missing = with_it, missing - 1
        else:
            number -= with_it
            sets -= with_it
    return tuple(chosen)
