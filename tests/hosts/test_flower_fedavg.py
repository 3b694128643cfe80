"""FedAvg for Flower's Message API, against plain NumPy in double precision."""

from __future__ import annotations

import gc
import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import veilsum
from veilsum import ConfigError, Streaming, rules

pytest.importorskip("flwr", reason="flwr is not installed (extra `flower`)")

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import strategy as host
from flwr.serverapp.exception import AggregationError

from support.flower_grid import error_reply, record_of, train_reply
from support.flower_round import (
    INITIAL,
    WEIGHTS,
    aggregator_digest,
    assert_is_reference,
    honest,
    reference,
    run,
    trained,
)
from veilsum.integrations.flower import FedAvg
from veilsum.integrations.flower.arrays import read_arrays
from veilsum.optimizers import FedAvgM

pytestmark = pytest.mark.usefixtures("flower_task")


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


def test_a_weight_may_be_a_float_that_is_a_whole_number(grid):
    grid.nodes[2] = lambda message: train_reply(message, trained(2), float(WEIGHTS[2]))

    strategy, _ = run(grid, FedAvg(fraction_evaluate=0.0))

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


def test_a_model_that_is_only_evaluated_need_not_be_one_that_can_be_summed(grid):
    strategy = FedAvg(fraction_train=0.0)

    result = strategy.start(grid, record_of({"mask": np.zeros(2, bool)}), num_rounds=1)

    assert list(result.evaluate_metrics_clientapp) == [1]


def test_the_strategy_can_start_again(grid):
    strategy, first = run(grid, FedAvg(optimizer="fedadam"))
    _, second = run(grid, strategy)

    assert first.arrays == second.arrays


def test_importing_veilsum_imports_no_host():
    code = "import sys, veilsum.integrations; assert 'flwr' not in sys.modules"
    environment = {"PYTHONPATH": str(Path(veilsum.__file__).parents[1])}
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


def test_flowers_wrapper_for_differential_privacy_takes_it(grid):
    def node(message: Message) -> Message:
        number = message.metadata.dst_node_id
        return train_reply(message, {"weight": trained(number)["weight"]}, WEIGHTS[number])

    grid.nodes = dict.fromkeys(WEIGHTS, node)
    strategy = FedAvg(fraction_evaluate=0.0)
    private = host.DifferentialPrivacyServerSideFixedClipping(
        strategy, noise_multiplier=1e-12, clipping_norm=1e3, num_sampled_clients=5
    )

    result = private.start(grid, record_of({"weight": INITIAL["weight"]}), num_rounds=1)

    assert strategy.rounds[1].sites == ("1", "2", "3", "4", "5")
    found, expected = read_arrays(result.arrays)["weight"], reference(WEIGHTS)["weight"]
    np.testing.assert_allclose(found, expected, atol=1e-5)
