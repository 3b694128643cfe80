"""What a coordinator forgets without being asked."""

from __future__ import annotations

from dataclasses import dataclass

from veilsum.errors import ConfigError

_LEAST_EVENTS = 1000


@dataclass(frozen=True, slots=True)
class RetentionSettings:
    """The table [retention] of coordinator.toml: what is forgotten without being asked, hourly.

    Attributes:
        days: runs that ended longer ago are forgotten; 0: none for that reason.
        runs: of those that are over, so many that ended last are kept; 0: all.
        proofs: also their receipts, evidence and links.
        events: of each run so many are kept, the last ones.

    Raises:
        ConfigError: out of range.
    """

    days: float = 0.0
    runs: int = 0
    proofs: bool = False
    events: int = 100_000

    def __post_init__(self) -> None:
        if not 0 <= self.days <= 36_500:
            raise ConfigError(f"retention.days must be 0 to 36500, got {self.days}")
        if self.runs < 0:
            raise ConfigError(f"retention.runs must be 0 or positive, got {self.runs}")
        if self.events < _LEAST_EVENTS:
            raise ConfigError(
                f"retention.events must be {_LEAST_EVENTS} or more, got {self.events}"
            )
