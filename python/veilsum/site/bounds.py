"""What a site is willing to do for a round, whatever the coordinator asks."""

from __future__ import annotations

import math
from dataclasses import dataclass

from veilsum.control import TaskSettings
from veilsum.errors import ConfigError


@dataclass(frozen=True, slots=True)
class TaskBounds:
    """Limits of this site's own configuration.

    Attributes:
        max_epochs, max_batch_size: largest accepted.
        min_learning_rate, max_learning_rate: accepted range, ends included.
        max_proximal: largest accepted FedProx coefficient.
        plain_rounds: take part in rounds whose updates the coordinator can read. Off unless
            the site says otherwise: the coordinator alone must not be able to unmask a site
            by opening another kind of round.
    """

    max_epochs: int = 50
    max_batch_size: int = 4096
    min_learning_rate: float = 1e-8
    max_learning_rate: float = 1.0
    max_proximal: float = 10.0
    plain_rounds: bool = False

    def __post_init__(self) -> None:
        if self.max_epochs < 1:
            raise ConfigError(f"max_epochs must be 1 or more, got {self.max_epochs}")
        if self.max_batch_size < 1:
            raise ConfigError(f"max_batch_size must be 1 or more, got {self.max_batch_size}")
        if not 0.0 < self.min_learning_rate <= self.max_learning_rate < math.inf:
            raise ConfigError(
                "learning rates must be 0 < min_learning_rate <= max_learning_rate, got "
                f"{self.min_learning_rate} and {self.max_learning_rate}"
            )
        if not 0.0 <= self.max_proximal < math.inf:
            raise ConfigError(f"max_proximal must be 0 or more, got {self.max_proximal}")

    def check(self, task: TaskSettings) -> None:
        """Accepts the task or says which setting is out of bounds.

        Raises:
            ConfigError: names the setting, what was asked for and this site's limit.
        """
        limits = (
            ("epochs", task.epochs, 1, self.max_epochs),
            ("batch_size", task.batch_size, 1, self.max_batch_size),
            ("learning_rate", task.learning_rate, self.min_learning_rate, self.max_learning_rate),
            ("proximal", task.proximal, 0.0, self.max_proximal),
        )
        for name, asked, low, high in limits:
            if not low <= asked <= high:
                raise ConfigError(
                    f"the task asks for {name} {asked}, this site accepts {low} to {high}"
                )
