"""The model and the data of one site: logistic regression on points that only it has seen."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[np.generic]]

_FEATURES = 16
_TRUTH = np.linspace(-1.0, 1.0, _FEATURES)


def initial_model() -> Arrays:
    """Weights, an intercept and a counter of steps, as many frameworks keep one."""
    return {
        "weight": np.zeros(_FEATURES, np.float32),
        "intercept": np.zeros((), np.float32),
        "steps": np.zeros((), np.int64),
    }


def data_of(site: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points and labels; each site has another number of them."""
    random = np.random.default_rng(site)
    points = random.normal(size=(100 + 40 * site, _FEATURES))
    return points, (points @ _TRUTH + random.normal(scale=0.5, size=len(points)) > 0).astype(float)


def train(model: Arrays, site: int, steps: int = 10) -> Arrays:
    """Some steps of gradient descent on the site's data."""
    points, labels = data_of(site)
    weight, intercept = model["weight"].astype(float), float(model["intercept"])
    for _ in range(steps):
        error = _probability(points, weight, intercept) - labels
        weight -= 0.5 * (error[:, None] * points).mean(axis=0)
        intercept -= 0.5 * error.mean()
    return {
        "weight": weight.astype(np.float32),
        "intercept": np.array(intercept, np.float32),
        "steps": np.array(int(model["steps"]) + steps, np.int64),
    }


def accuracy(model: Arrays, site: int) -> float:
    """The share of the site's points that the model puts on the right side."""
    points, labels = data_of(site)
    chances = _probability(points, model["weight"].astype(float), float(model["intercept"]))
    return float(((chances > 0.5) == (labels > 0.5)).mean())


def _probability(
    points: NDArray[np.float64], weight: NDArray[np.float64], intercept: float
) -> NDArray[np.float64]:
    return 1.0 / (1.0 + np.exp(-((points * weight).sum(axis=1) + intercept)))
