"""A round of five sites in Flower: what they train, and what it comes to in plain NumPy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import Result, Strategy

from support.flower_grid import LocalGrid, record_of, train_reply
from veilsum import Aggregator, ModelLayout
from veilsum.integrations.flower import FedAvg
from veilsum.integrations.flower.arrays import read_arrays

WEIGHTS = {1: 10, 2: 250, 3: 33, 4: 1, 5: 120}
INITIAL = {
    "weight": np.zeros((40, 30), np.float32),
    "bias": np.zeros(40, np.float32),
    "scale": np.zeros((), np.float32),
    "empty": np.zeros((0, 3), np.float32),
    "num_batches_tracked": np.zeros((), np.int64),
}


def trained(node: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(node)
    return {
        "weight": random.normal(size=(40, 30)).astype(np.float32),
        "bias": random.normal(size=40).astype(np.float32),
        "scale": np.array(random.normal(), np.float32),
        "empty": np.zeros((0, 3), np.float32),
        "num_batches_tracked": np.array(1000 * node + 1, np.int64),
    }


def reference(nodes: Iterable[int]) -> dict[str, np.ndarray]:
    """np.average in double precision; counters rounded half to even."""
    weights = [WEIGHTS[node] for node in nodes]
    means = {
        name: np.average([trained(node)[name].astype(np.float64) for node in nodes], 0, weights)
        for name in INITIAL
    }
    return {name: np.asarray(mean) for name, mean in means.items()}


def assert_is_reference(record: ArrayRecord, nodes: Iterable[int]) -> None:
    found = read_arrays(record)
    for name, expected in reference(nodes).items():
        assert found[name].dtype == INITIAL[name].dtype
        exact = np.rint(expected) if name == "num_batches_tracked" else expected
        np.testing.assert_allclose(found[name], exact, rtol=2e-7, atol=1e-7)


def aggregator_digest(nodes: Iterable[int]) -> str:
    aggregator = Aggregator(ModelLayout.from_arrays(INITIAL))
    for node in nodes:
        aggregator.add(trained(node), weight=WEIGHTS[node], site=str(node))
    return aggregator.finish().digest


def honest(message: Message) -> Message:
    node = message.metadata.dst_node_id
    if message.metadata.message_type == "evaluate":
        metrics = MetricRecord({"num-examples": WEIGHTS[node], "loss": node / 10})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)
    return train_reply(message, trained(node), WEIGHTS[node], loss=float(node))


def run(
    grid: LocalGrid, strategy: Strategy | None = None, rounds: int = 1, **options: Any
) -> tuple[Any, Result]:
    """A strategy, veilsum's by default, and what it makes of some rounds from zero."""
    strategy = strategy or FedAvg()
    return strategy, strategy.start(grid, record_of(INITIAL), num_rounds=rounds, **options)
