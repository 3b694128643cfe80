"""Names and parameters of the server optimizers, as the literature has them.

With mean update D (docs/numerics.md, "The server step", gives the arithmetic to the last bit):

    FedAvg      x += eta D                                   McMahan et al. 2017
    FedAvgM     m = beta m + D;  x += eta m                  Hsu, Qi and Brown 2019
    FedAdagrad  v += D^2;        x += eta D / (sqrt v + tau) Reddi et al. 2021, algorithm 2
    FedAdam     m = b1 m + (1 - b1) D;  v = b2 v + (1 - b2) D^2
                x += eta m / (sqrt v + tau)                  the same
    FedYogi     as FedAdam with v -= (1 - b2) D^2 sign(v - D^2)

First moments start at 0 and second moments at tau^2, the least that the paper's algorithm 2
allows. Its algorithm has no correction of the bias towards those first values, and neither have
these; a learning rate tuned for Adam with the correction has to be tuned again.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from veilsum.errors import ConfigError

if TYPE_CHECKING:
    from veilsum.model import ModelLayout
    from veilsum.optimizers.server import ServerOptimizer


def _check_positive(name: str, value: float) -> None:
    if not 0.0 < value < math.inf:
        raise ConfigError(f"{name} must be positive and finite, got {value}")


def _check_decay(name: str, value: float) -> None:
    if not 0.0 <= value < 1.0:
        raise ConfigError(f"{name} must be at least 0 and below 1, got {value}")


class _Startable:
    """What all settings can do."""

    def start(
        self, layout: ModelLayout, *, threads: int | None = None, device: str | None = None
    ) -> ServerOptimizer:
        """An optimizer with these settings that has not made a step yet.

        Args:
            layout: of the model.
            threads: most threads one step may use; by default one per processor.
            device: "cuda:0", for example: its moments lie there, and its steps are those of
                aggregators with this backend. By default they lie in host memory.

        Raises:
            DeviceError: there is no such device, or no room on it.
        """
        from veilsum.optimizers.server import ServerOptimizer

        return ServerOptimizer(self, layout, threads=threads, device=device)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class FedAvg(_Startable):
    """Adds the mean update times `learning_rate`; at 1 it is plain federated averaging."""

    name: ClassVar[str] = "fedavg"
    learning_rate: float = 1.0

    def __post_init__(self) -> None:
        _check_positive("learning_rate", self.learning_rate)


@dataclass(frozen=True, slots=True)
class FedAvgM(_Startable):
    """Adds a sum of all mean updates in which older ones count `momentum` times less each."""

    name: ClassVar[str] = "fedavgm"
    learning_rate: float = 1.0
    momentum: float = 0.9

    def __post_init__(self) -> None:
        _check_positive("learning_rate", self.learning_rate)
        _check_decay("momentum", self.momentum)


@dataclass(frozen=True, slots=True)
class FedAdagrad(_Startable):
    """Divides by the root of the sum of squares so far; `tau` bounds the division."""

    name: ClassVar[str] = "fedadagrad"
    learning_rate: float = 0.1
    tau: float = 1e-3

    def __post_init__(self) -> None:
        _check_positive("learning_rate", self.learning_rate)
        _check_positive("tau", self.tau)


@dataclass(frozen=True, slots=True)
class FedAdam(_Startable):
    """Divides a moving average by the root of a moving average of squares."""

    name: ClassVar[str] = "fedadam"
    learning_rate: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        _check_adaptive(self)


@dataclass(frozen=True, slots=True)
class FedYogi(_Startable):
    """FedAdam whose second moment changes by at most (1 - beta2) times the square."""

    name: ClassVar[str] = "fedyogi"
    learning_rate: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        _check_adaptive(self)


def _check_adaptive(settings: FedAdam | FedYogi) -> None:
    _check_positive("learning_rate", settings.learning_rate)
    _check_decay("beta1", settings.beta1)
    _check_decay("beta2", settings.beta2)
    _check_positive("tau", settings.tau)


OptimizerSettings: TypeAlias = FedAvg | FedAvgM | FedAdagrad | FedAdam | FedYogi

_KINDS: tuple[type[Any], ...] = (FedAvg, FedAvgM, FedAdagrad, FedAdam, FedYogi)


def optimizer_settings(name: str, **parameters: float) -> OptimizerSettings:
    """Settings by name, for configuration files.

    Args:
        name: "fedavg", "fedavgm", "fedadagrad", "fedadam" or "fedyogi".
        parameters: what its class takes; the rest has defaults.

    Raises:
        ConfigError: no such optimizer, it has no such parameter, or a value is out of range.
    """
    kinds = {kind.name: kind for kind in _KINDS}
    if name not in kinds:
        raise ConfigError(f"unknown optimizer {name!r}", hint=f"known: {', '.join(kinds)}")
    known = [field.name for field in dataclasses.fields(kinds[name])]
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        raise ConfigError(
            f"optimizer {name!r} has no parameter {unknown[0]!r}",
            hint=f"it has {', '.join(known)}",
        )
    settings: OptimizerSettings = kinds[name](**parameters)
    return settings
