"""Whole federations in Flower: five sites, three rounds, one of them lost on the way."""

from __future__ import annotations

import importlib
import logging
import time
import tomllib
from collections.abc import Iterable

import numpy as np
import pytest

pytest.importorskip("flwr", reason="flwr is not installed (extra `flower`)")

from flwr.app import Context
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.common import ndarrays_to_parameters
from flwr.server import ServerAppComponents, ServerConfig
from flwr.serverapp import Grid, ServerApp

from support.flower_engine import run_federation
from support.flower_example import APP, ROUNDS, SITES, digests, node_config, reference, task
from support.flower_grid import record_of
from support.flower_processes import Program, federation
from veilsum.integrations.flower import FedAvg, LegacyFedAvg, encode_mod
from veilsum.integrations.flower.arrays import read_arrays

client_app = importlib.import_module("fedexample.client_app")
server_app = importlib.import_module("fedexample.server_app")


def digests_said(lines: Iterable[str]) -> list[str]:
    return [line.split()[-1] for line in lines if "Digest of the model" in line]


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


def test_the_example_comes_to_the_same_digests_as_it_stands(caplog):
    config = tomllib.loads((APP / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]

    with caplog.at_level(logging.INFO, "flwr"):
        run_federation(server_app.app, client_app.app, nodes=len(SITES),
                       node_config=node_config, run_config=config)  # fmt: skip

    assert digests_said(caplog.messages) == digests()


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


@pytest.mark.slow
def test_a_superlink_and_five_supernodes_come_to_the_same_digests(tmp_path):
    deadline = time.monotonic() + 1200  # nobody waits so long for anything but a deadlock
    configs = [{"partition-id": site, **node_config(site)} for site in SITES]

    with federation(tmp_path, configs, deadline) as environment:
        run = Program("flwr", ("run", str(APP), "local", "--stream"), environment)
        try:
            run.wait_for("Strategy execution finished", deadline)
        finally:
            run.stop()

    said = "".join(run.lines)
    assert digests_said(run.lines) == digests()
    assert said.count("aggregate_train: Received 5 results and 0 failures") == 2
    assert said.count("aggregate_train: Received 4 results and 1 failures") == 1


class LegacyClient(NumPyClient):
    """The example's training in Flower's legacy client API; tensors have numbers for names."""

    def __init__(self, site: int) -> None:
        self.site = site

    def fit(self, parameters, config):
        model = dict(zip(task.initial_model(), parameters, strict=True))
        trained = task.train(model, self.site)
        return list(trained.values()), len(task.data_of(self.site)[0]), {}


@pytest.mark.parametrize("difference", [False, True], ids=["models", "differences"])
def test_a_legacy_app_with_encoded_updates(difference):
    seen = {}
    strategy = LegacyFedAvg(
        evaluate_fn=lambda number, arrays, config: seen.update({number: arrays}),
        min_fit_clients=5,
        min_available_clients=5,
        fraction_evaluate=0.0,
        difference=difference,
        initial_parameters=ndarrays_to_parameters(list(task.initial_model().values())),
    )
    server = ServerApp(
        server_fn=lambda context: ServerAppComponents(
            strategy=strategy, config=ServerConfig(num_rounds=1)
        )
    )
    client = ClientApp(
        client_fn=lambda context: LegacyClient(context.node_config["partition-id"]).to_client(),
        mods=[encode_mod("f32", difference=difference)],
    )

    run_federation(server, client, nodes=len(SITES))

    model = task.initial_model()
    updates = [list(task.train(model, site).values()) for site in SITES]
    weights = [len(task.data_of(site)[0]) for site in SITES]
    assert len(strategy.rounds[1].sites) == 5
    assert strategy.rounds[1].total_weight == sum(weights)
    for number, found in enumerate(seen[1]):
        expected = np.average([update[number].astype(float) for update in updates], 0, weights)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
