"""What a site's training code provides: arrays in, arrays and a weight out.

A trainer knows nothing of rounds, masks or the network. Any framework will do;
torch_trainer.py has one for PyTorch modules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from numpy.typing import NDArray

from veilsum.control import TaskSettings
from veilsum.errors import ConfigError

Arrays: TypeAlias = Mapping[str, NDArray[Any]]
"""One array per tensor of the model, in layout order; bfloat16 as uint16 bit patterns."""

Report: TypeAlias = Callable[[float], None]
"""Called with the fraction of the training that is done, 0 to 1. It may raise to stop it."""


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """A locally trained model.

    Attributes:
        arrays: the whole trained model (not the difference), names, shapes and dtypes as received.
        weight: number of examples it was trained on; how much it counts.
        metrics: finite numbers by name, such as {"train_loss": 0.3}; names the round did not
            ask for stay on the site.
    """

    arrays: Arrays = field(repr=False)
    weight: int
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """How good a model is on this site's own held-out examples.

    Attributes:
        metrics: numbers by name, such as {"auc": 0.8}.
        examples: how many it was measured on.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    examples: int = 0


class Trainer(Protocol):
    """One site's model, data and optimizer."""

    def fit(self, model: Arrays, task: TaskSettings, report: Report) -> TrainingResult:
        """Trains from `model` as `task` says and calls `report` now and then.

        `model` is not changed. What it raises costs this site the round, and nothing of it
        leaves the site.
        """

    def evaluate(self, model: Arrays, task: TaskSettings) -> EvaluationResult:
        """Measures `model`, which is not changed. Without held-out examples: EvaluationResult()."""


TrainerFactory: TypeAlias = Callable[..., Trainer]
"""What a site's configuration names; called with its settings as keyword arguments."""


def train_and_evaluate(
    trainer: Trainer, model: Arrays, task: TaskSettings, report: Report
) -> tuple[TrainingResult, EvaluationResult]:
    """What the effect Train asks for: measures the model as received, then trains from it."""
    evaluation = trainer.evaluate(model, task)
    return trainer.fit(model, task, report), evaluation


def merged_metrics(result: TrainingResult, evaluation: EvaluationResult) -> dict[str, float]:
    """Metrics of both, by name.

    Raises:
        ConfigError: fit and evaluate use one name for two things.
    """
    twice = sorted(set(result.metrics) & set(evaluation.metrics))
    if twice:
        raise ConfigError(
            f"fit and evaluate both report metric {twice[0]!r}",
            hint="give one of them another name",
        )
    return {**result.metrics, **evaluation.metrics}
