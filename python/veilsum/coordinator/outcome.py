"""How a round ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Finished:
    """A mean update.

    Attributes:
        mean: one array per tensor in layout order; bfloat16 as uint16 bit patterns.
        digest: hex SHA-256 of the mean, as of model.result_digest.
        total_weight: sum of the weights of `sites`.
        sites: whose updates are in the mean, sorted.
        metrics: weighted means over the sites that reported each.
    """

    mean: Mapping[str, NDArray[Any]] = field(repr=False)
    digest: str
    total_weight: int
    sites: tuple[str, ...]
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Failed:
    """No result, and why.

    Attributes:
        final: another attempt at the round would be no use, or is not wanted.
    """

    reason: str
    final: bool = False


Outcome: TypeAlias = Finished | Failed
