"""How many sites a round of a run needs: whom it invites, when it closes, what is too little."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from veilsum.tasks import require

LateUpdates = Literal["refuse", "next"]

MAX_OVER_SELECT = 10.0


@dataclass(frozen=True, slots=True)
class Turnout:
    """What a run says of it, checked against itself; whether its cohort can come to so many is
    the coordinator's question.

    Attributes:
        min_sites, quorum, min_weight, select, over_select, late: see control.RunSpec.
    """

    min_sites: int
    quorum: int
    min_weight: int
    select: int
    over_select: float
    late: LateUpdates

    def __post_init__(self) -> None:
        for name, value in (("quorum", self.quorum), ("select", self.select)):
            require(
                value == 0 or self.min_sites <= value < 2**31,
                f"{name} must be 0 (for none), or min_sites ({self.min_sites}) or more, "
                f"got {value}",
            )
        require(
            0 <= self.min_weight < 2**63, f"min_weight must be 0 or more, got {self.min_weight}"
        )
        require(
            0.0 <= self.over_select <= MAX_OVER_SELECT,  # so written, it refuses nan as well
            f"over_select must be 0 to {MAX_OVER_SELECT:g}, got {self.over_select}",
        )
        require(
            not self.over_select or self.select > 0 or self.quorum > 0,
            "over_select is a fraction of select, or of quorum: set one of them",
        )
        require(
            not self.quorum or not self.invites or self.quorum <= self.invites,
            f"quorum is {self.quorum}, a round invites {self.invites} sites",
        )

    @property
    def closes_at(self) -> int:
        """Updates with which a round closes before its deadline; 0: with those of all it waits
        for."""
        return self.quorum or (self.select if self.over_select else 0)

    @property
    def invites(self) -> int:
        """Sites that a round invites if they are there; 0: everybody who is."""
        wanted = self.select or (self.quorum if self.over_select else 0)
        # The fraction as it was written: 0.07 of 100 is 7, though 100 * 0.07 is above 7.
        return wanted + math.ceil(wanted * Fraction(repr(self.over_select)))
