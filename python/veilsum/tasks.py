"""How a round is trained, and how long its phases may take."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

from veilsum.errors import ConfigError


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True, slots=True)
class TaskSettings:
    """How a site trains in one round. A site checks each field against its own bounds.

    Attributes:
        epochs: passes over the site's data.
        batch_size: examples per step.
        learning_rate: of the local optimizer.
        proximal: FedProx coefficient mu (Li et al. 2020); 0 turns it off.
        seed: for the order of the data and the like; never for anything secret. A run's is
            that of its first round, and one more in every round after.
    """

    epochs: int = 1
    batch_size: int = 32
    learning_rate: float = 0.05
    proximal: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        require(1 <= self.epochs <= 10_000, f"epochs must be 1 to 10000, got {self.epochs}")
        require(
            1 <= self.batch_size <= 2**24, f"batch_size must be 1 to 2**24, got {self.batch_size}"
        )
        require(
            0.0 < self.learning_rate < 1e6,
            f"learning_rate must be positive, got {self.learning_rate}",
        )
        require(0.0 <= self.proximal < 1e6, f"proximal must be 0 or more, got {self.proximal}")
        require(0 <= self.seed < 2**63, f"seed must be 0 to 2**63-1, got {self.seed}")


def task_hash(task: TaskSettings) -> bytes:
    """SHA-256 over the settings in a fixed encoding, 32 bytes. A masked round's plan binds it."""
    return hashlib.sha256(
        b"veilsum/task\0"
        + struct.pack(
            "<IIddQ", task.epochs, task.batch_size, task.learning_rate, task.proximal, task.seed
        )
    ).digest()


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds each phase may take before the round goes on without the silent sites, and how long
    a run pauses (cooldown_s) before it holds a round again that failed."""

    join_s: float = 60.0
    keys_s: float = 30.0
    shares_s: float = 30.0
    inputs_s: float = 600.0
    votes_s: float = 30.0
    unmask_s: float = 30.0
    acks_s: float = 120.0
    cooldown_s: float = 5.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            require(
                0.0 < value <= 604_800.0, f"{name} must be above 0, at most a week, got {value}"
            )
