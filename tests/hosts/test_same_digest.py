"""The same updates come to the same digest in every host, and it is that of the exact mean.

OpenFL's part is in test_openfl.py, which runs in an environment of its own.
"""

from __future__ import annotations

import numpy as np
import pytest

from support.same_updates import (
    DIGEST,
    LAYOUT,
    MODEL,
    WEIGHTS,
    assert_is_the_mean,
    reference,
    trained,
)
from veilsum import Aggregator

FLOWER = "flwr is not installed (extra `flower`)"
NVFLARE = "nvflare is not installed (extra `nvflare`)"


def test_the_reference_is_float64_arithmetic_rounded_once() -> None:
    for name, found in reference().items():
        wide = np.average(
            [trained(site)[name].astype(np.float64) for site in WEIGHTS],
            axis=0,
            weights=list(WEIGHTS.values()),
        )
        rounded = np.rint(wide) if found.dtype.kind == "i" else wide
        np.testing.assert_array_equal(found, rounded.astype(found.dtype), err_msg=name)


def test_an_aggregator() -> None:
    aggregator = Aggregator(LAYOUT)
    for site, weight in WEIGHTS.items():
        aggregator.add(trained(site), weight=weight, site=str(site))
    result = aggregator.finish()

    assert_is_the_mean(result.arrays)
    assert result.digest == DIGEST


def test_flowers_message_api() -> None:
    pytest.importorskip("flwr", reason=FLOWER)
    from support.flower_grid import LocalGrid, flower_task, record_of, train_reply
    from veilsum.integrations.flower import FedAvg
    from veilsum.integrations.flower.arrays import read_arrays

    def answer(message):
        node = message.metadata.dst_node_id
        return train_reply(message, trained(node), WEIGHTS[node])

    strategy = FedAvg(fraction_evaluate=0.0)
    grid = LocalGrid(dict.fromkeys(WEIGHTS, answer))
    with flower_task():
        result = strategy.start(grid, record_of(MODEL), num_rounds=1)

    assert_is_the_mean(read_arrays(result.arrays))
    assert strategy.rounds[1].digest == DIGEST


def test_flowers_legacy_strategies() -> None:
    pytest.importorskip("flwr", reason=FLOWER)
    from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays
    from flwr.server.client_manager import SimpleClientManager

    from support.flower_legacy import fit_result
    from veilsum.integrations.flower import LegacyFedAvg

    strategy = LegacyFedAvg(min_available_clients=0, min_fit_clients=0)
    initial = ndarrays_to_parameters(list(MODEL.values()))
    strategy.configure_fit(1, initial, SimpleClientManager())
    results = [
        fit_result(str(site), list(trained(site).values()), weight)
        for site, weight in WEIGHTS.items()
    ]
    parameters, _ = strategy.aggregate_fit(1, results, [])

    # Its arrays have no names, so its own digest is of another layout.
    assert_is_the_mean(dict(zip(MODEL, parameters_to_ndarrays(parameters), strict=True)))


def test_nvflares_scatter_and_gather() -> None:
    pytest.importorskip("nvflare", reason=NVFLARE)
    from nvflare.apis.dxo import from_shareable

    from support.nvflare_results import begin, result
    from veilsum.integrations.nvflare import VeilsumAggregator

    aggregator = VeilsumAggregator()
    fl_ctx = begin(aggregator, MODEL)
    for site, weight in WEIGHTS.items():
        assert aggregator.accept(result(f"site-{site}", trained(site), steps=weight), fl_ctx)
    dxo = from_shareable(aggregator.aggregate(fl_ctx))

    assert_is_the_mean(dxo.data)
    assert dxo.meta["veilsum.digest"] == DIGEST


def test_nvflares_fed_avg() -> None:
    pytest.importorskip("nvflare", reason=NVFLARE)
    from support.nvflare_results import begin, model_of
    from veilsum.integrations.nvflare import VeilsumAggregator

    aggregator = VeilsumAggregator()
    begin(aggregator, MODEL)
    for site, weight in reversed(WEIGHTS.items()):
        aggregator.accept_model(model_of(f"site-{site}", trained(site), steps=weight))
    model = aggregator.aggregate_model()

    assert_is_the_mean(model.params)
    assert model.meta["veilsum.digest"] == DIGEST
