"""A trainer without a framework: moves each value a little, differently at each site."""

from __future__ import annotations

import hashlib

import numpy as np

from veilsum.control import TaskSettings
from veilsum.site.trainer import Arrays, EvaluationResult, Report, TrainingResult


class TinyTrainer:
    """Adds a pattern that follows from the site's number and the round's seed."""

    def __init__(self, number: int, examples: int = 10) -> None:
        self._number = number
        self._examples = examples

    def fit(self, model: Arrays, task: TaskSettings, report: Report) -> TrainingResult:
        report(0.5)
        arrays = {
            name: values + self._step(name, values, task.seed) for name, values in model.items()
        }
        report(1.0)
        return TrainingResult(arrays, self._examples, {"loss": 0.5 + self._number / 16})

    def evaluate(self, model: Arrays, task: TaskSettings) -> EvaluationResult:
        return EvaluationResult({"auc": 0.75}, examples=4)

    def _step(self, name: str, values: np.ndarray, seed: int) -> np.ndarray:
        material = hashlib.sha256(f"{name}/{self._number}/{seed}".encode()).digest()
        generator = np.random.default_rng(list(material))
        if values.dtype.kind in "iu":
            return generator.integers(0, 3, values.shape).astype(values.dtype)
        return (generator.integers(-64, 65, values.shape) / 256).astype(values.dtype)


def make(number: int = 0, examples: int = 10) -> TinyTrainer:
    """What a site's settings name."""
    return TinyTrainer(number, examples)
