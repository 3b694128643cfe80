"""FedNova: sites that made more local steps do not pull the model harder (Wang et al. 2020).

With p_i the site's share of all examples, t_i its local steps and D_i its update,

    x += (sum of p_i t_i) * (sum of p_i D_i / t_i)

The second factor is a weighted mean of updates with a gain of 1/t_i each, the first is a gain of
the whole mean:

    aggregator.add(update, weight=examples, site=site, gain=fednova_gain(steps))
    optimizer.step(model, mean, gain=effective_steps(weights, steps))

so any optimizer can take the step. Formula and weights are those of plain SGD at the sites; for
other local solvers t_i is the norm of their accumulation vector (the paper's equation 5). In a
masked round a site divides its own update and reports its steps as a metric, whose weighted mean
is the first factor.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from veilsum.errors import ConfigError


def fednova_gain(local_steps: int) -> float:
    """What to multiply the update of a site by that made so many local steps: 1 / steps.

    Raises:
        ConfigError: not at least one step.
    """
    return 1.0 / _checked(local_steps)


def effective_steps(weights: Mapping[str, int], local_steps: Mapping[str, int]) -> float:
    """The weighted mean of the sites' local steps, rounded once.

    Args:
        weights: site -> weight, as given to the aggregator.
        local_steps: site -> local steps; the same sites.

    Raises:
        ConfigError: different sites, none, or a number below 1.
    """
    if not weights or set(weights) != set(local_steps):
        raise ConfigError("weights and local steps must be of the same sites, at least one")
    total = sum(_checked(weight) for weight in weights.values())
    return float(
        Fraction(
            sum(weight * _checked(local_steps[site]) for site, weight in weights.items()), total
        )
    )


def _checked(number: int) -> int:
    if number < 1:
        raise ConfigError(f"weights and local steps must be at least 1, got {number}")
    return number
