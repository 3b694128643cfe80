"""Whole federations in Flower: five sites, three rounds, one of them lost on the way."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

from veilsum import Aggregator, ModelLayout

pytest.importorskip("flwr", reason="flwr is not installed (extra `flower`)")

from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from support.flower_engine import run_federation
from support.flower_grid import record_of
from veilsum.integrations.flower import FedAvg, encode_mod
from veilsum.integrations.flower.arrays import read_arrays

sys.path.append(str(Path(__file__).parents[2] / "examples" / "flower_app"))
client_app = importlib.import_module("fedexample.client_app")
task = importlib.import_module("fedexample.task")

SITES, ROUNDS = range(5), 3
LOST = {2: 3}  # round -> site


def present(number: int) -> list[int]:
    return [site for site in SITES if LOST.get(number) != site]


def reference() -> dict[str, np.ndarray]:
    """The federation in plain NumPy, averaged in double precision."""
    model = task.initial_model()
    for number in range(1, ROUNDS + 1):
        sites = present(number)
        updates = [task.train(model, site) for site in sites]
        weights = [len(task.data_of(site)[0]) for site in sites]
        model = {
            name: np.asarray(
                np.average([u[name].astype(float) for u in updates], 0, weights)
            ).astype(old.dtype)
            for name, old in model.items()
        }
    return model


def digests() -> list[str]:
    """Of an Aggregator in this process, round by round."""
    model, found = task.initial_model(), []
    for number in range(1, ROUNDS + 1):
        aggregator = Aggregator(ModelLayout.from_arrays(model))
        for site in present(number):
            weight = len(task.data_of(site)[0])
            aggregator.add(task.train(model, site), weight=weight, site=str(site))
        result = aggregator.finish()
        found.append(result.digest)
        model = result.arrays
    return found


def node_config(site: int) -> dict[str, int]:
    rounds = [number for number, lost in LOST.items() if lost == site]
    return {"fails-in-round": rounds[0]} if rounds else {}


def federate(strategy: FedAvg, app: ClientApp):
    def main(grid: Grid, context: Context):
        return strategy.start(grid, record_of(task.initial_model()), num_rounds=ROUNDS)

    return run_federation(main, app, nodes=len(SITES), node_config=node_config)


def test_five_sites_and_three_rounds_with_one_site_lost():
    strategy = FedAvg(min_train_nodes=5, min_available_nodes=5, fraction_evaluate=0.0)

    result = federate(strategy, client_app.app)

    assert [strategy.rounds[number].digest for number in (1, 2, 3)] == digests()
    assert [len(strategy.rounds[number].sites) for number in (1, 2, 3)] == [5, 4, 5]
    found = read_arrays(result.arrays)
    for name, expected in reference().items():
        assert found[name].dtype == expected.dtype
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-6)
    assert result.train_metrics_clientapp[3]["accuracy"] > 0.8


def test_encoded_differences_train_the_same_model_to_what_the_codec_keeps():
    strategy = FedAvg(
        min_train_nodes=5, min_available_nodes=5, fraction_evaluate=0.0, difference=True
    )
    app = ClientApp(mods=[encode_mod("int8", difference=True, stochastic=True)])
    app.train()(client_app.train_here)

    result = federate(strategy, app)

    assert [len(strategy.rounds[number].sites) for number in (1, 2, 3)] == [5, 4, 5]
    found = read_arrays(result.arrays)
    expected = reference()
    np.testing.assert_allclose(found["weight"], expected["weight"], atol=0.02)
    assert found["steps"] == expected["steps"] == 30
