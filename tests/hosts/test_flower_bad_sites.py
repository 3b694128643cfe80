"""What one bad site costs a round in Flower: itself, and nobody else."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("flwr", reason="flwr is not installed (extra `flower`)")

from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.exception import AggregationError

from support.flower_grid import error_reply, train_reply
from support.flower_objects import UNREADABLE_REPLIES, pulled
from support.flower_round import (
    WEIGHTS,
    aggregator_digest,
    assert_is_reference,
    honest,
    run,
    trained,
)
from veilsum.integrations.flower import FedAvg

pytestmark = pytest.mark.usefixtures("flower_task")


def bad(change: Callable[..., Any]) -> Callable[[Message], Message]:
    """A node whose update is changed, and whose evaluations are as they should be."""

    def node(message: Message) -> Message:
        if message.metadata.message_type == "evaluate":
            return honest(message)
        arrays, weight = trained(2), WEIGHTS[2]
        arrays, weight = change(arrays, weight)
        return train_reply(message, arrays, weight, loss=1.0)

    return node


def sent_to(node: int) -> Message:
    return Message(RecordDict(), dst_node_id=node, message_type="train")


def without(arrays, name):
    return {key: values for key, values in arrays.items() if key != name}


def with_nan(arrays):
    arrays["weight"][3, 4] = np.nan
    return arrays


BAD = {
    "missing tensor": (lambda a, w: (without(a, "bias"), w), "1 ('bias') missing"),
    "unknown tensor": (lambda a, w: ({**a, "more": np.zeros(1)}, w), "'more'"),
    "shape": (lambda a, w: ({**a, "bias": np.zeros(41, np.float32)}, w), "has shape (41,)"),
    "dtype": (lambda a, w: ({**a, "bias": np.zeros(40)}, w), "is f64, the layout has f32"),
    "nan": (lambda a, w: (with_nan(a), w), "finite"),
    "zero weight": (lambda a, w: (a, 0), "has weight 0"),
    "negative weight": (lambda a, w: (a, -5), "has weight -5"),
    "nan weight": (lambda a, w: (a, float("nan")), "not a whole number"),
    "fraction": (lambda a, w: (a, 0.5), "send whole numbers"),
    "huge weight": (lambda a, w: (a, 2**31), "expected 1 to 2147483647"),
    "weights": (lambda a, w: (a, [1, 2]), "a list of 2 weights"),
}


@pytest.mark.parametrize(("change", "reason"), BAD.values(), ids=BAD)
def test_a_bad_update_costs_its_site_the_round_and_no_other(grid, caplog, change, reason):
    grid.nodes[2] = bad(change)

    with caplog.at_level(logging.WARNING, "flwr"):
        strategy, result = run(grid)

    rest = [1, 3, 4, 5]
    assert_is_reference(result.arrays, rest)
    assert strategy.rounds[1].digest == aggregator_digest(rest)
    assert list(strategy.rounds[1].refused) == ["2"]
    assert reason in strategy.rounds[1].refused["2"]
    assert reason in caplog.text


@pytest.mark.parametrize("kind", UNREADABLE_REPLIES)
def test_a_reply_that_flower_cannot_read_costs_its_site_the_round_and_no_other(grid, caplog, kind):
    grid.nodes[2] = lambda message: pulled(kind, message)

    _, result = run(grid)

    assert_is_reference(result.arrays, [1, 3, 4, 5])
    assert "cannot be read and is left out" in caplog.text


def test_an_error_reply_is_logged_and_the_others_go_on(grid, caplog):
    grid.nodes[2] = lambda message: error_reply(message, "out of memory at site 2")

    with caplog.at_level(logging.INFO, "flwr"):
        _, result = run(grid)

    assert_is_reference(result.arrays, [1, 3, 4, 5])
    assert "aggregate_train: Received 4 results and 1 failures" in caplog.text
    assert "out of memory at site 2" in caplog.text


def test_a_node_that_never_answers_is_waited_for_until_the_timeout(grid, caplog):
    grid.nodes[2] = lambda message: None

    with caplog.at_level(logging.WARNING, "flwr"):
        strategy, result = run(grid, timeout=0.0)

    assert_is_reference(result.arrays, [1, 3, 4, 5])
    assert "1 of 5 nodes sent no reply within 0.0 s" in caplog.text
    assert "2" not in strategy.rounds[1].sites


def test_a_late_reply_within_the_timeout_counts(grid):
    asked = []

    def late(message: Message) -> Message | None:
        asked.append(message.metadata.message_type)
        return honest(message) if len(asked) > 1 else None

    grid.nodes[2] = late
    _, result = run(grid, timeout=60.0)

    assert_is_reference(result.arrays, WEIGHTS)


def test_a_reply_that_flower_cannot_read_costs_its_site_the_round(grid, caplog):
    def garbled(message: Message) -> Message:
        raise ValueError("unexpected set of children")

    grid.nodes[2] = garbled
    with caplog.at_level(logging.ERROR, "flwr"):
        _, result = run(grid)

    assert_is_reference(result.arrays, [1, 3, 4, 5])
    assert "unexpected set of children" in caplog.text


def test_where_no_reply_can_be_read_it_is_an_error(grid):
    def garbled(message: Message) -> Message:
        raise ValueError("unexpected set of children")

    grid.nodes = dict.fromkeys(WEIGHTS, garbled)

    with pytest.raises(AggregationError, match="no reply of 5 can be used: 5 cannot be read"):
        run(grid)


def test_where_every_site_is_refused_it_is_an_error_with_every_reason(grid):
    grid.nodes = dict.fromkeys(WEIGHTS, bad(lambda a, w: (a, 0.25)))

    with pytest.raises(AggregationError, match=r"no reply of 5 can be used.*send whole numbers"):
        run(grid)


@pytest.mark.parametrize("lost", [lambda m: error_reply(m, "down"), lambda m: None])
def test_where_every_site_but_a_lost_one_is_refused_it_is_an_error_too(grid, lost):
    grid.nodes = dict.fromkeys(WEIGHTS, bad(lambda a, w: (a, 0.25)))
    grid.nodes[2] = lost

    with pytest.raises(AggregationError, match=r"no reply of 5 can be used.*send whole numbers"):
        run(grid, timeout=0.0)


def test_where_no_evaluation_can_be_used_it_is_an_error_with_every_reason(grid):
    def without_weight(message: Message) -> Message:
        return Message(RecordDict({"metrics": MetricRecord({"loss": 0.5})}), reply_to=message)

    grid.nodes = dict.fromkeys(WEIGHTS, without_weight)

    with pytest.raises(
        AggregationError, match=r"aggregate_evaluate: no reply of 5.*lacks 'num-exa"
    ):
        run(grid, FedAvg(fraction_train=0.0))


def test_a_first_reply_that_looks_like_no_other_is_not_the_model(grid):
    replies = [honest(sent_to(node)) for node in (1, 3, 4, 5)]
    replies.insert(0, train_reply(sent_to(2), {"weight": np.full(1, 666, np.float32)}, 10))

    with pytest.raises(AggregationError, match=r"no model to start from.*4 others were refused"):
        FedAvg().aggregate_train(1, replies)


def test_where_no_site_is_left_the_model_stays(grid):
    grid.nodes = dict.fromkeys(WEIGHTS, lambda m: error_reply(m, "down"))
    grid.nodes[2] = bad(lambda a, w: (a, 0.25))

    strategy, result = run(grid)

    assert strategy.rounds == {}
    assert result.arrays == ArrayRecord()


def test_metrics_that_fit_no_others_are_left_out_and_the_update_counts(grid, caplog):
    grid.nodes[1] = lambda m: train_reply(m, trained(1), WEIGHTS[1], accuracy=[1.0, 2.0])

    with caplog.at_level(logging.WARNING, "flwr"):
        _, result = run(grid, FedAvg(fraction_evaluate=0.0))

    rest = [2, 3, 4, 5]
    expected = np.average(rest, weights=[WEIGHTS[node] for node in rest])
    assert_is_reference(result.arrays, WEIGHTS)
    assert result.train_metrics_clientapp[1]["loss"] == pytest.approx(expected)
    assert "Metrics of node 1 are left out" in caplog.text


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf"), [1]], ids=str)
def test_a_bad_weight_in_an_evaluation_costs_its_site_the_evaluation(grid, weight):
    def node(message: Message) -> Message:
        metrics = MetricRecord({"num-examples": weight, "loss": 1e9})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    grid.nodes[2] = node
    _, result = run(grid, FedAvg(fraction_train=0.0))

    rest = [1, 3, 4, 5]
    expected = np.average(np.array(rest) / 10, weights=[WEIGHTS[node] for node in rest])
    assert result.evaluate_metrics_clientapp[1]["loss"] == pytest.approx(expected)


def test_replies_pulled_one_by_one_are_read_once(grid):
    class Peeking(FedAvg):
        def aggregate_train(self, server_round, replies):
            assert len(list(replies)) == 5
            return super().aggregate_train(server_round, replies)

    with pytest.raises(AggregationError, match="can be iterated over once"):
        run(grid, Peeking())
