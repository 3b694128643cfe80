"""The example app for Flower, and what its federation must come to without Flower."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from veilsum import Aggregator, ModelLayout

APP = Path(__file__).parents[2] / "examples" / "flower_app"
sys.path.append(str(APP))
task = importlib.import_module("fedexample.task")

SITES, ROUNDS = range(5), 3
LOST = {2: 3}
"""Round -> the site that is lost in it."""


def node_config(site: int) -> dict[str, int]:
    """What makes a site fail in its round."""
    rounds = [number for number, lost in LOST.items() if lost == site]
    return {"fails-in-round": rounds[0]} if rounds else {}


def reference() -> dict[str, np.ndarray]:
    """The model after all rounds, averaged in double precision by NumPy."""
    model = task.initial_model()
    for number in range(1, ROUNDS + 1):
        updates, weights = _trained(model, number)
        model = {
            name: np.asarray(
                np.average([u[name].astype(float) for u in updates.values()], 0, weights)
            ).astype(old.dtype)
            for name, old in model.items()
        }
    return model


def digests() -> list[str]:
    """Of each round's model, from an Aggregator that no host is around."""
    model, found = task.initial_model(), []
    for number in range(1, ROUNDS + 1):
        aggregator = Aggregator(ModelLayout.from_arrays(model))
        updates, weights = _trained(model, number)
        for (site, update), weight in zip(updates.items(), weights, strict=True):
            aggregator.add(update, weight=weight, site=str(site))
        result = aggregator.finish()
        found.append(result.digest)
        model = result.arrays
    return found


def _trained(model: Mapping[str, Any], number: int) -> tuple[dict[int, Any], list[int]]:
    """Site -> what it trains in a round, and how much each counts."""
    sites = [site for site in SITES if LOST.get(number) != site]
    return {site: task.train(model, site) for site in sites}, [
        len(task.data_of(site)[0]) for site in sites
    ]
