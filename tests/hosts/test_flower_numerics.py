"""The same replies, averaged by Flower 1.4x, by veilsum inside Flower, and in double precision.

Each test shows a case in which the first two differ, and by how much. The figures for Flower are
those of the version that is installed; a test that fails because Flower's result has come closer
to the reference is good news and wants its figures changed.
"""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("flwr", reason="flwr is not installed (extra `flower`)")

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.common import parameters_to_ndarrays
from flwr.server.strategy import FedAvg as HostLegacy
from flwr.serverapp import strategy as host

from support.flower_grid import LocalGrid, record_of, train_reply
from support.flower_legacy import fit_result
from veilsum.integrations.flower import FedAvg, LegacyFedAvg
from veilsum.integrations.flower.arrays import read_arrays

pytestmark = pytest.mark.usefixtures("flower_task")


def averaged(strategy, updates, weights) -> np.ndarray:
    """What a strategy makes of one tensor."""
    nodes = range(len(updates))
    grid = LocalGrid(dict.fromkeys(nodes, lambda message: None))
    model = record_of({"x": np.zeros_like(updates[0])})
    messages: list[Message] = list(strategy.configure_train(1, model, ConfigRecord(), grid))
    messages.sort(key=lambda message: message.metadata.dst_node_id)
    replies = [
        train_reply(message, {"x": values}, weight)
        for message, values, weight in zip(messages, updates, weights, strict=True)
    ]
    arrays, _ = strategy.aggregate_train(1, replies)
    assert isinstance(arrays, ArrayRecord)
    return read_arrays(arrays)["x"]


def both(updates, weights) -> tuple[np.ndarray, np.ndarray]:
    """Flower's result and ours."""
    return averaged(host.FedAvg(), updates, weights), averaged(FedAvg(), updates, weights)


def test_a_thousand_equal_models_of_float16_have_themselves_as_their_mean():
    updates = [np.full(4, 1e-4, np.float16)] * 1000
    reference = np.average([u.astype(float) for u in updates], 0)

    flower, ours = both(updates, [1] * 1000)

    # Flower adds in float16, which is too coarse for a thousandth of 1e-4.
    assert np.all(flower / reference > 1.15)
    assert np.array_equal(ours, reference.astype(np.float16))


def test_counters_stay_integers():
    updates = [np.array([7, 2**53 + 1]), np.array([8, 2**53 + 3])]

    flower, ours = both(updates, [1, 1])

    # PyTorch's num_batches_tracked, for one. Doubles hold no odd number beyond 2**53.
    assert flower.dtype == np.float64
    assert ours.dtype == np.int64
    assert list(ours) == [8, 2**53 + 2]  # 7.5 is rounded half to even


def test_a_site_with_values_that_are_not_finite_has_no_part_in_the_model():
    good = [np.full(3, 1.0, np.float32), np.full(3, 3.0, np.float32)]
    diverged = np.full(3, np.nan, np.float32)

    flower, ours = both([*good, diverged], [1, 1, 1])

    assert np.isnan(flower).all()
    assert np.array_equal(ours, np.average(good, 0))


@pytest.mark.parametrize(("weight", "expected"), [(-1.0, -97.0), (np.nan, np.nan)], ids=str)
def test_a_weight_that_is_not_a_count_has_no_part_in_the_model(weight, expected):
    good = [np.full(3, 1.0, np.float32), np.full(3, 2.0, np.float32)]
    outlier = np.full(3, 100.0, np.float32)

    flower, ours = both([*good, outlier], [1, 1, weight])

    # With weights 1, 1 and -1 the "mean" of 1, 2 and 100 is -97.
    np.testing.assert_array_equal(flower, np.full(3, expected, np.float32))
    assert np.array_equal(ours, np.average(good, 0))


def test_the_order_of_replies_does_not_change_a_bit():
    random = np.random.default_rng(1)
    updates = [random.normal(size=1000).astype(np.float32) for _ in range(12)]
    weights = [int(weight) for weight in random.integers(1, 1000, 12)]

    forward = both(updates, weights)
    backward = both(updates[::-1], weights[::-1])

    assert not np.array_equal(forward[0], backward[0])
    assert np.array_equal(forward[1], backward[1])


def test_the_same_holds_for_the_legacy_strategies():
    updates = [np.full(4, 1e-4, np.float16)] * 1000
    results = [fit_result(str(number), [values], 1) for number, values in enumerate(updates)]

    flower, _ = HostLegacy().aggregate_fit(1, results, [])
    ours, _ = LegacyFedAvg().aggregate_fit(1, results, [])

    assert np.all(parameters_to_ndarrays(flower)[0] / 1e-4 > 1.15)
    assert np.array_equal(parameters_to_ndarrays(ours)[0], updates[0])
