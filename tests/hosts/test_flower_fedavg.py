"""FedAvg for Flower's Message API, against plain NumPy in double precision."""

from __future__ import annotations

import gc
import inspect
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from veilsum import Aggregator, ConfigError, ModelLayout, Streaming, rules

pytest.importorskip("flwr", reason="flwr is not installed (extra `flower`)")

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as host
from flwr.serverapp.exception import AggregationError

from support.flower_grid import LocalGrid, error_reply, flower_task, record_of, train_reply
from veilsum.integrations.flower import FedAvg
from veilsum.integrations.flower.arrays import read_arrays
from veilsum.optimizers import FedAvgM

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


def reference(nodes) -> dict[str, np.ndarray]:
    """np.average in double precision; counters rounded half to even."""
    weights = [WEIGHTS[node] for node in nodes]
    means = {
        name: np.average([trained(node)[name].astype(np.float64) for node in nodes], 0, weights)
        for name in INITIAL
    }
    return {name: np.asarray(mean) for name, mean in means.items()}


def assert_is_reference(record: ArrayRecord, nodes) -> None:
    found = read_arrays(record)
    for name, expected in reference(nodes).items():
        assert found[name].dtype == INITIAL[name].dtype
        exact = np.rint(expected) if name == "num_batches_tracked" else expected
        np.testing.assert_allclose(found[name], exact, rtol=2e-7, atol=1e-7)


def aggregator_digest(nodes) -> str:
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


@pytest.fixture(autouse=True)
def _in_a_task():
    with flower_task():
        yield


@pytest.fixture
def grid() -> LocalGrid:
    return LocalGrid(dict.fromkeys(WEIGHTS, honest))


def run(grid, strategy=None, rounds=1, **options):
    strategy = strategy or FedAvg()
    return strategy, strategy.start(grid, record_of(INITIAL), num_rounds=rounds, **options)


def test_the_constructor_is_flowers_and_keywords_more():
    ours = inspect.signature(FedAvg.__init__).parameters.values()
    theirs = inspect.signature(host.FedAvg.__init__).parameters.values()

    shared = [p for p in ours if p.kind is not p.KEYWORD_ONLY]

    assert [(p.name, p.default, p.kind) for p in shared] == [
        (p.name, p.default, p.kind) for p in theirs
    ]
    assert all(p.default is not p.empty for p in ours if p.kind is p.KEYWORD_ONLY)


def test_a_round_is_the_mean_and_its_digest_that_of_an_aggregator(grid):
    strategy, result = run(grid)

    assert_is_reference(result.arrays, WEIGHTS)
    assert strategy.rounds[1].digest == aggregator_digest(WEIGHTS)
    assert strategy.rounds[1].sites == ("1", "2", "3", "4", "5")
    assert strategy.rounds[1].total_weight == sum(WEIGHTS.values())


def test_metrics_are_flowers(grid):
    _, result = run(grid)
    _, expected = run(grid, host.FedAvg())

    assert result.train_metrics_clientapp[1]["loss"] == pytest.approx(
        expected.train_metrics_clientapp[1]["loss"]
    )
    assert result.evaluate_metrics_clientapp[1]["loss"] == pytest.approx(
        expected.evaluate_metrics_clientapp[1]["loss"]
    )


@pytest.fixture
def _without_garbage_collection():
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_without_garbage_collection")
@pytest.mark.parametrize("settings", [{}, {"difference": True}, {"rule": "median"},
                                      {"streaming": Streaming(8.0, 1000)}], ids=str)  # fmt: skip
def test_one_reply_is_held_at_a_time(grid, settings):
    run(grid, FedAvg(**settings), rounds=2)

    assert grid.most_at_once == 1
    assert all(len(pull) == 1 for pull in grid.pulls)


def test_flowers_own_strategy_holds_all_replies_at_once(grid):
    run(grid, host.FedAvg(fraction_evaluate=0.0))

    assert grid.most_at_once == len(WEIGHTS)


@pytest.mark.parametrize(
    "kept", [{}, {"in_memory": True}, {"streaming": Streaming(8.0, 1000)}], ids=str
)
def test_where_updates_are_kept_changes_nothing(grid, kept):
    strategy, result = run(grid, FedAvg(**kept))

    assert_is_reference(result.arrays, WEIGHTS)
    if "streaming" not in kept:  # whose scale is that of the declared bound
        assert strategy.rounds[1].digest == aggregator_digest(WEIGHTS)


def test_updates_lie_in_a_private_directory_until_the_round_is_over(grid, tmp_path):
    seen = []

    def look(message: Message) -> Message:
        seen.extend((path, path.stat().st_mode & 0o777) for path in tmp_path.iterdir())
        return honest(message)

    grid.nodes[5] = look
    run(grid, FedAvg(spool=tmp_path, fraction_evaluate=0.0))

    assert [mode for _, mode in seen] == [0o700]
    assert list(tmp_path.iterdir()) == []


def test_replies_may_come_as_any_iterable_and_in_any_order(grid):
    strategy = FedAvg()
    messages = strategy.configure_train(1, record_of(INITIAL), ConfigRecord(), grid)
    replies = [honest(message) for message in messages]

    forward, _ = strategy.aggregate_train(1, iter(replies))
    backward, _ = strategy.aggregate_train(2, replies[::-1])

    assert forward == backward
    assert_is_reference(forward, WEIGHTS)


def test_without_a_configured_round_the_first_reply_says_what_the_model_looks_like(grid):
    replies = [honest(m) for m in FedAvg().configure_train(1, record_of(INITIAL),
                                                           ConfigRecord(), grid)]  # fmt: skip

    arrays, _ = FedAvg().aggregate_train(1, replies)

    assert_is_reference(arrays, WEIGHTS)


def test_no_replies_are_no_model():
    assert FedAvg().aggregate_train(1, []) == (None, None)
    assert FedAvg().aggregate_evaluate(1, []) is None


# --- what one bad site costs ---------------------------------------------------------------


def bad(change) -> object:
    def node(message: Message) -> Message:
        if message.metadata.message_type == "evaluate":
            return honest(message)
        arrays, weight = trained(2), WEIGHTS[2]
        arrays, weight = change(arrays, weight)
        return train_reply(message, arrays, weight, loss=1.0)

    return node


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


# --- weights, dtypes, settings ---------------------------------------------------------------


def test_a_weight_may_be_a_float_that_is_a_whole_number(grid):
    grid.nodes[2] = bad(lambda a, w: (a, float(w)))

    strategy, _ = run(grid)

    assert strategy.rounds[1].digest == aggregator_digest(WEIGHTS)


def test_a_rule_that_counts_sites_alike_takes_any_weights(grid):
    strategy, result = run(grid, FedAvg(rule=rules.CoordinateMedian()))

    medians = np.median([trained(node)["weight"] for node in WEIGHTS], axis=0)
    assert np.array_equal(read_arrays(result.arrays)["weight"], medians)
    assert strategy.rounds[1].total_weight == 5


def test_a_server_optimizer_steps_by_the_mean_difference(grid):
    _, result = run(grid, FedAvg(optimizer=FedAvgM(momentum=0.5)), rounds=2)

    mean = reference(WEIGHTS)["weight"]
    first = mean  # the model was 0
    expected = first + 0.5 * mean + (mean - first)
    found = read_arrays(result.arrays)["weight"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_differences_summed_and_added_are_the_mean_of_the_models(grid):
    strategy, result = run(grid, FedAvg(difference=True), rounds=2)

    assert_is_reference(result.arrays, WEIGHTS)
    assert len(strategy.rounds) == 2


@pytest.mark.parametrize(("settings", "complaint"), [
    ({"rule": "medium"}, "unknown rule 'medium'"),
    ({"optimizer": "adam"}, "unknown optimizer 'adam'"),
    ({"spool": "/nowhere/at/all"}, "is not a directory"),
    ({"in_memory": True, "streaming": Streaming(1.0, 9)}, "each say where updates are kept"),
    ({"rule": "median", "streaming": Streaming(1.0, 9)}, "streaming keeps no updates"),
    ({"threads": 0}, "threads"),
], ids=str)  # fmt: skip
def test_settings_that_cannot_work_are_refused_before_there_is_any_traffic(settings, complaint):
    with pytest.raises(ConfigError, match=complaint):
        FedAvg(**settings)


def test_a_model_that_cannot_be_summed_is_refused_before_there_is_any_traffic(grid):
    with pytest.raises(ConfigError, match="the model cannot be summed: tensor 'mask'"):
        FedAvg().start(grid, record_of({"mask": np.zeros(3, bool)}))

    assert grid.pulls == []


def test_the_strategy_can_start_again(grid):
    strategy, first = run(grid, FedAvg(optimizer="fedadam"))
    _, second = run(grid, strategy)

    assert first.arrays == second.arrays


def test_importing_veilsum_imports_no_host():
    code = "import sys, veilsum.integrations; assert 'flwr' not in sys.modules"
    environment = {"PYTHONPATH": str(Path(__file__).parents[2] / "python")}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_a_torch_model_with_its_buffers_comes_back_as_it_went(grid):
    torch = pytest.importorskip("torch", reason="torch is not installed (extra `torch`)")
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))

    def node(message: Message) -> Message:
        state = message.content["arrays"].to_torch_state_dict()
        moved = {name: values + message.metadata.dst_node_id for name, values in state.items()}
        return train_reply(message, ArrayRecord(moved), WEIGHTS[message.metadata.dst_node_id])

    grid.nodes = dict.fromkeys(WEIGHTS, node)
    before = model.state_dict()
    result = FedAvg(fraction_evaluate=0.0).start(grid, ArrayRecord(before), num_rounds=1)

    after = result.arrays.to_torch_state_dict()
    moved = np.average(list(WEIGHTS), weights=list(WEIGHTS.values()))
    assert [(n, v.dtype, v.shape) for n, v in after.items()] == [
        (n, v.dtype, v.shape) for n, v in before.items()
    ]
    assert after["1.num_batches_tracked"] == round(moved)
    np.testing.assert_allclose(after["0.weight"], before["0.weight"].numpy() + moved, rtol=1e-6)


def test_a_round_with_too_few_replies_for_its_rule_is_an_error(grid):
    grid.nodes[1] = grid.nodes[2] = lambda message: error_reply(message, "down")

    with pytest.raises(AggregationError, match="needs at least 5 updates, there are 3"):
        run(grid, FedAvg(rule=rules.Krum(byzantine=1)))


def test_an_app_that_starts_without_a_model_takes_the_first_replys_layout(grid):
    result = FedAvg(fraction_evaluate=0.0).start(grid, ArrayRecord(), num_rounds=2)

    assert_is_reference(result.arrays, WEIGHTS)


def test_differences_need_a_model_to_start_from(grid):
    with pytest.raises(AggregationError, match="is not known"):
        FedAvg(difference=True).start(grid, ArrayRecord(), num_rounds=1)
