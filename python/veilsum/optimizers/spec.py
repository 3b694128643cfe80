"""A server optimizer as a run names it."""

from __future__ import annotations

from dataclasses import dataclass

from veilsum.optimizers.settings import OptimizerSettings, optimizer_settings


@dataclass(frozen=True, slots=True)
class OptimizerSpec:
    """What the coordinator does with a mean (docs/numerics.md). The learning rate is the run's
    server_learning_rate.

    Attributes:
        name: "fedavg", "fedavgm", "fedadagrad", "fedadam" or "fedyogi".
        momentum: of fedavgm.
        beta1, beta2: of fedadam and fedyogi.
        tau: of fedadagrad, fedadam and fedyogi.
        state_file: the name of a state in the coordinator's models folder to go on from.

    None takes the optimizer's own default.
    """

    name: str = "fedavg"
    momentum: float | None = None
    beta1: float | None = None
    beta2: float | None = None
    tau: float | None = None
    state_file: str = ""

    def settings(self, learning_rate: float) -> OptimizerSettings:
        """The optimizer's settings.

        Raises:
            ConfigError: unknown, a value is out of range, or not one of this optimizer's.
        """
        given = {
            name: value
            for name in ("momentum", "beta1", "beta2", "tau")
            if (value := getattr(self, name)) is not None
        }
        return optimizer_settings(self.name, learning_rate=learning_rate, **given)
