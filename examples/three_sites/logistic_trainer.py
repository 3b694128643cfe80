"""A trainer in plain NumPy: logistic regression on synthetic patients.

Each site draws its own patients, shifted a little from the others', so that no site alone
sees the whole picture. `python logistic_trainer.py FILE` writes the model to start from.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from veilsum.control import TaskSettings
from veilsum.site.trainer import EvaluationResult, TrainingResult

FEATURES = 8
TRUTH = np.array([1.5, -2.0, 0.7, 0.0, 1.0, -0.5, 0.3, -1.2])

Model = Mapping[str, NDArray[np.float32]]


class LogisticTrainer:
    """One site's patients and the optimizer."""

    def __init__(self, seed: int, patients: int) -> None:
        random = np.random.default_rng(seed)
        shift = random.normal(scale=0.5, size=FEATURES)
        features = random.normal(size=(patients, FEATURES)) + shift
        chance = 1.0 / (1.0 + np.exp(-features @ TRUTH))
        self.labels = (random.random(patients) < chance).astype(np.float64)
        self.features = features
        self.held_out = patients // 5

    def fit(
        self, model: Model, task: TaskSettings, report: Callable[[float], None]
    ) -> TrainingResult:
        """Plain mini-batch gradient descent from the model received."""
        weight = model["weight"].astype(np.float64)
        bias = model["bias"].astype(np.float64)
        features, labels = self.features[self.held_out :], self.labels[self.held_out :]
        order = np.random.default_rng(task.seed)
        for epoch in range(task.epochs):
            shuffled = order.permutation(len(labels))
            for start in range(0, len(labels), task.batch_size):
                batch = shuffled[start : start + task.batch_size]
                error = _predict(features[batch], weight, bias) - labels[batch]
                weight = weight - task.learning_rate * features[batch].T @ error / len(batch)
                bias = bias - task.learning_rate * error.mean()
            report((epoch + 1) / task.epochs)
        trained = {"weight": weight.astype(np.float32), "bias": bias.astype(np.float32)}
        return TrainingResult(trained, weight=len(labels))

    def evaluate(self, model: Model, task: TaskSettings) -> EvaluationResult:
        """Share of the held-out patients that the received model gets right."""
        features, labels = self.features[: self.held_out], self.labels[: self.held_out]
        predicted = _predict(features, model["weight"], model["bias"]) > 0.5
        return EvaluationResult({"accuracy": float((predicted == labels).mean())}, len(labels))


def make_trainer(*, seed: int, patients: int) -> LogisticTrainer:
    """What site.toml names; called with its [trainer_settings]."""
    return LogisticTrainer(seed, patients)


def _predict(
    features: NDArray[np.float64], weight: NDArray[np.floating], bias: NDArray[np.floating]
) -> NDArray[np.float64]:
    return np.asarray(1.0 / (1.0 + np.exp(-(features @ weight + bias))))


if __name__ == "__main__":
    zeros = {"weight": np.zeros(FEATURES, np.float32), "bias": np.zeros(1, np.float32)}
    save_file(zeros, sys.argv[1])
