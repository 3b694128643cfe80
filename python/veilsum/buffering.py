"""Buffered asynchronous runs (FedBuff, Nguyen et al. 2022): how many updates make a step, and what
an update counts for whose model has made steps since."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from veilsum.tasks import require

DEFAULT_STALENESS = 20
MAX_STALENESS = 1000
WEIGHT_CAP = 2**21 - 1
"""Largest weight cap of a buffered run: ten bits at least are left for fractions."""

_WEIGHT_BITS = 31  # of the integers that a mean takes as weights


@dataclass(frozen=True, slots=True)
class Buffering:
    """What a buffered run says of its buffers, checked against itself.

    Attributes:
        size: updates with which the model makes a step.
        max_staleness: an update is refused if its model has made more steps since.
        weight_cap: largest weight that a site may claim.
    """

    size: int
    max_staleness: int
    weight_cap: int

    def __post_init__(self) -> None:
        require(1 <= self.size < 2**31, f"buffer_size must be 1 or more, got {self.size}")
        require(
            0 <= self.max_staleness <= MAX_STALENESS,
            f"max_staleness must be 0 to {MAX_STALENESS}, got {self.max_staleness}",
        )
        require(
            1 <= self.weight_cap <= WEIGHT_CAP,
            f"weight_cap of a buffered run must be 1 to {WEIGHT_CAP}, got {self.weight_cap}: "
            "weights need room for fractions (docs/numerics.md)",
        )

    @property
    def fraction_bits(self) -> int:
        """Weights count in units of 2 to the power of minus this."""
        return _WEIGHT_BITS - self.weight_cap.bit_length()

    def counted(self, weight: int, staleness: int) -> int:
        """weight / sqrt(1 + staleness) in these units: the nearest integer, half up. At least 1.

        Args:
            weight: 1 to weight_cap.
            staleness: 0 to max_staleness.
        """
        # Of integers only, so that no machine rounds otherwise: the root is twice the weight,
        # rounded down.
        twice = math.isqrt((4 * weight**2 << 2 * self.fraction_bits) // (1 + staleness))
        return (twice + 1) // 2


def require_alone(masked: bool, error_feedback: bool, waits: Sequence[str]) -> None:
    """Refuses what a buffered run cannot have beside its buffers.

    Args:
        waits: settings that were made and say how a round waits for its sites.

    Raises:
        ConfigError: says which setting, and why.
    """
    require(
        not masked,
        "buffer_size is for plain runs: masks cancel out only in the sum of sites that began a "
        "round together",
    )
    require(
        not error_feedback,
        "error_feedback is for rounds: in a buffered run an update may count for less than the one "
        "that makes up for what it lost",
    )
    require(
        not waits,
        f"{' and '.join(waits)} cannot be set in a buffered run: its rounds wait for no site",
    )
