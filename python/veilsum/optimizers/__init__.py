"""Server optimizers: what the mean of a round does to the model.

    optimizer = FedAdam(learning_rate=0.1).start(layout)
    model = optimizer.step(model, aggregator.finish().arrays)

`Aggregator.finish_step(model, optimizer)` does the same in one pass, with the same bits, and the
mean is never written to memory. Settings (`FedAdam`, ...) are frozen; what a run carries from
round to round is in the `ServerOptimizer` that `start` makes.
"""

from veilsum.optimizers.nova import effective_steps, fednova_gain
from veilsum.optimizers.server import ServerOptimizer
from veilsum.optimizers.settings import (
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedYogi,
    OptimizerSettings,
    optimizer_settings,
)
from veilsum.optimizers.step_rule import read_step_rule, step_rule_bytes

__all__ = [
    "FedAdagrad",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedYogi",
    "OptimizerSettings",
    "ServerOptimizer",
    "effective_steps",
    "fednova_gain",
    "optimizer_settings",
    "read_step_rule",
    "step_rule_bytes",
]
