"""Server optimizers from their papers' formulas, one coordinate at a time, in Python floats.

Reddi et al. 2021 (arXiv 2003.00295), algorithm 2; Hsu et al. 2019 (arXiv 1909.06335) for
FedAvgM. Python's floats are IEEE doubles and round each operation once, so where the order of
operations is that of docs/numerics.md, results are equal to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from reference.codecs import round_to


@dataclass
class Optimizer:
    """State and parameters; `name` as in veilsum.optimizers."""

    name: str
    learning_rate: float
    beta1: float = 0.0
    beta2: float = 0.0
    tau: float = 0.0
    first: dict[str, list[float]] = field(default_factory=dict)
    second: dict[str, list[float]] = field(default_factory=dict)

    def step(
        self, tensor: str, dtype: str, model: Sequence[float], mean: Sequence[float], gain: float
    ) -> list[float]:
        """The new values of one floating-point tensor."""
        moment = "f64" if dtype == "f64" else "f32"
        first = self.first.setdefault(tensor, [0.0] * len(model))
        second = self.second.setdefault(tensor, [rounded(self.tau * self.tau, moment)] * len(model))
        updated = []
        for i, (x, raw) in enumerate(zip(model, mean, strict=True)):
            delta = raw * gain
            if self.name == "fedavgm":
                first[i] = rounded(self.beta1 * first[i] + delta, moment)
            elif self.name in ("fedadam", "fedyogi"):
                first[i] = rounded(self.beta1 * first[i] + (1 - self.beta1) * delta, moment)
            second[i] = rounded(self._second(second[i], delta * delta), moment)
            updated.append(rounded(x + self._change(delta, first[i], second[i]), dtype))
        return updated

    def _second(self, v: float, square: float) -> float:
        match self.name:
            case "fedadagrad":
                return v + square
            case "fedadam":
                return self.beta2 * v + (1 - self.beta2) * square
            case "fedyogi":
                sign = (v > square) - (v < square)
                return v - (1 - self.beta2) * square * sign
        return v

    def _change(self, delta: float, m: float, v: float) -> float:
        match self.name:
            case "fedavg":
                return self.learning_rate * delta
            case "fedavgm":
                return self.learning_rate * m
            case "fedadagrad":
                return self.learning_rate * delta / (math.sqrt(v) + self.tau)
        return self.learning_rate * m / (math.sqrt(v) + self.tau)


def rounded(value: float, dtype: str) -> float:
    return math.copysign(float(round_to(Fraction(value), dtype)), value)  # fractions lack -0
