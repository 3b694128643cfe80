"""From what training made to what a site contributes."""

from __future__ import annotations

import math

from veilsum._native import Secret
from veilsum.difference import model_difference
from veilsum.site.contribution import LocalUpdate
from veilsum.site.effects import Note, SiteEffect
from veilsum.site.events import TrainingDone
from veilsum.site.phases import Training
from veilsum.site.trainer import merged_metrics


def local_update(
    phase: Training, event: TrainingDone, rounding: Secret
) -> tuple[LocalUpdate, list[SiteEffect]]:
    """The difference that training made, and what was left out of its metrics.

    Args:
        rounding: 32 secret bytes.

    Raises:
        ConfigError: the trained model has other tensors than the one received, or a difference
            does not fit its dtype.
    """
    metrics = merged_metrics(event.result, event.evaluation)
    asked = {name: metrics[name] for name in phase.part.terms.metrics if name in metrics}
    finite = {name: value for name, value in asked.items() if math.isfinite(value)}
    notes: list[SiteEffect] = [
        Note(f"metric {name!r} is {value} and is not sent")
        for name, value in asked.items()
        if name not in finite
    ]
    difference = model_difference(phase.layout, event.result.arrays, phase.received)
    return LocalUpdate(difference, event.result.weight, finite, rounding), notes
