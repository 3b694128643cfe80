"""How many votes, shares and bits a round needs, and its clips; numbers only."""

from __future__ import annotations

import math

from veilsum.control import ShareProfile
from veilsum.errors import ConfigError
from veilsum.secagg.wire import MAX_SITES

_MIN_SUMMED_SITES = 3

MAX_CLIPS = 2**16 - 1
"""As many clips as a manifest can hold."""


def require(condition: bool, message: str, *, hint: str | None = None) -> None:
    """Raises:
    ConfigError: the condition does not hold.
    """
    if not condition:
        raise ConfigError(message, hint=hint)


def smallest_ring(sites: int, step_limit: int, headroom: int) -> int:
    """Bits b of the smallest ring with 2^b >= 2^headroom * (2*sites*step_limit + 1).

    The sum of `sites` steps of at most `step_limit` then has a unique signed value, and a
    coordinate whose masks did not cancel stays in the legal range with probability of at
    most 2^-headroom.
    """
    return (((2 * sites * step_limit + 1) << headroom) - 1).bit_length()


def usual_colluders(members: int) -> int:
    """c where nobody says otherwise: a third of the roster's sites, however few are invited.

    Whom a round invites is the coordinator's choice: of a cohort of its own choosing a third may
    be none of its helpers, or two of three.
    """
    return members // 3


def vote_quorum(sites: int, colluders: int) -> int:
    """Votes that make a survivor set unique: floor((n+c)/2)+1.

    Two certified sets would need 2(q-c) <= n-c honest votes, which is false. It is
    computed for the invited n, so it also holds for the n' <= n that send keys.
    """
    return (sites + colluders) // 2 + 1


def share_threshold(profile: ShareProfile, sites: int, colluders: int) -> int:
    """Shares that rebuild a secret: the vote quorum ("strict"), or fewer, so that more sites
    may be lost between vote and unmasking ("available")."""
    if profile == "strict":
        return vote_quorum(sites, colluders)
    return max(colluders + 1, sites // 2 + 1)


def check_thresholds(
    *, sites: int, min_sites: int, colluders: int, quorum: int, threshold: int
) -> None:
    """Holds the thresholds of a round with `sites` invited sites against each other.

    Raises:
        ConfigError: names the one that does not protect or cannot be reached.
    """
    require(
        sites >= _MIN_SUMMED_SITES,
        f"a masked round needs {_MIN_SUMMED_SITES} sites or more, got {sites}: "
        "the sum of two shows each the other's update",
    )
    require(
        sites <= MAX_SITES,
        f"a masked round invites at most {MAX_SITES} sites, got {sites}: each of them masks "
        "against every other",
        hint="give the run a smaller cohort",
    )
    require(
        _MIN_SUMMED_SITES <= min_sites <= sites,
        f"min_sites must be {_MIN_SUMMED_SITES} to {sites} for a cohort of {sites}, "
        f"got {min_sites}",
    )
    require(
        0 <= colluders < sites,
        f"colluders must be 0 to {sites - 1} for a cohort of {sites}, got {colluders}",
        hint="invite more sites; colluders are counted among all of the roster, not the cohort",
    )
    require(
        2 * quorum > sites + colluders,
        f"vote_quorum {quorum} allows two survivor sets with {sites} sites and {colluders} "
        f"colluders: it must be {vote_quorum(sites, colluders)} or more",
    )
    require(
        quorum <= sites,
        f"{quorum} votes are needed but only {sites} sites are invited",
        hint="assume fewer colluders or invite more sites",
    )
    lowest = max(colluders + 1, 2)
    require(
        lowest <= threshold <= quorum,
        f"share_threshold must be {lowest} (above the colluders) to {quorum} (the vote "
        f"quorum), got {threshold}",
    )
    fewest = max(quorum, min_sites)
    require(
        fewest - colluders >= 2,
        f"a sum of {fewest} updates with {colluders} colluders would show them the one honest "
        "update in it",
        hint="raise min_sites or invite more sites",
    )


def check_clips(clip: float, clips: tuple[float, ...], tensors: int) -> None:
    """Holds the clip, and the table of clips if there is one, against the model.

    Raises:
        ConfigError: a clip is no clip, or the table is not one of this many tensors.
    """
    for one in (clip, *clips):
        require(
            math.isfinite(one) and 1e-30 < one < 1e30,
            f"clip must be positive and finite, got {one}",
        )
    if not clips:
        return
    require(
        len(clips) == tensors <= MAX_CLIPS,
        f"clips needs one entry for each of the {tensors} floating-point tensors, got {len(clips)}",
    )
    require(clip == max(clips), f"clip must be {max(clips)}, the largest of clips, got {clip}")
