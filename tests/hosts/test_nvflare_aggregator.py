"""The aggregator of NVFLARE jobs, given results as NVFLARE's workflows hand them over."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from veilsum import Aggregator, ConfigError, ModelLayout, PeerError, RoundAborted, optimizers, rules

pytest.importorskip("nvflare", reason="nvflare is not installed (extra `nvflare`)")

from nvflare.apis.dxo import DataKind, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.app_common.abstract.fl_model import ParamsType

from support.nvflare_results import (
    assert_rounded_once,
    begin,
    context,
    end_runs,
    mean,
    model_of,
    result,
)
from support.nvflare_site import steps_of, trained
from veilsum.integrations.nvflare import VeilsumAggregator

MODEL = {
    "layer.weight": np.linspace(-1, 1, 35, dtype=np.float32).reshape(5, 7),
    "layer.bias": np.zeros(7, np.float32),
    "norm.num_batches_tracked": np.array(40, np.int64),
}
SITES = ("site-1", "site-2", "site-3")
UPDATES = {site: trained(MODEL, number, 0) for number, site in enumerate(SITES, 1)}
STEPS = {site: steps_of(number) for number, site in enumerate(SITES, 1)}


@pytest.fixture(autouse=True)
def runs_end() -> Iterator[None]:
    yield
    end_runs()


def in_process(updates: Any = UPDATES, weights: Any = STEPS, **settings: Any) -> Any:
    total = Aggregator(ModelLayout.from_arrays(MODEL), **settings)
    for site, update in updates.items():
        total.add(update, weight=weights[site], site=site)
    return total.finish()


def differences() -> dict[str, dict[str, np.ndarray]]:
    return {
        site: {name: values - MODEL[name] for name, values in update.items()}
        for site, update in UPDATES.items()
    }


def assert_same(found: Any, expected: Any) -> None:
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert found[name].dtype == values.dtype
        assert np.array_equal(found[name], values)


def test_results_of_scatter_and_gather_give_the_mean_and_the_digest_of_the_engine() -> None:
    aggregator = VeilsumAggregator()
    fl_ctx = begin(aggregator, MODEL)

    accepted = [
        aggregator.accept(result(site, UPDATES[site], steps=STEPS[site]), fl_ctx) for site in SITES
    ]
    dxo = from_shareable(aggregator.aggregate(fl_ctx))

    assert accepted == [True, True, True]
    assert dxo.data_kind == DataKind.WEIGHTS
    assert_rounded_once(dxo.data, mean(UPDATES, STEPS))
    expected = in_process()
    assert_same(dxo.data, expected.arrays)
    assert dxo.meta["veilsum.digest"] == expected.digest
    assert dxo.meta["veilsum.total_weight"] == sum(STEPS.values())
    assert aggregator.rounds[0].sites == SITES


def test_results_of_fed_avg_give_the_same() -> None:
    aggregator = VeilsumAggregator()
    begin(aggregator, MODEL)

    for site in reversed(SITES):
        aggregator.accept_model(model_of(site, UPDATES[site], steps=STEPS[site]))
    model = aggregator.aggregate_model()

    assert model.params_type == ParamsType.FULL
    assert model.meta["veilsum.digest"] == in_process().digest
    assert_same(model.params, in_process().arrays)


def test_differences_are_averaged_as_differences() -> None:
    aggregator = VeilsumAggregator(expected_data_kind="WEIGHT_DIFF")
    fl_ctx = begin(aggregator, MODEL)
    sent = differences()

    for site in SITES:
        aggregator.accept(result(site, sent[site], steps=STEPS[site], kind="WEIGHT_DIFF"), fl_ctx)
    dxo = from_shareable(aggregator.aggregate(fl_ctx))

    assert dxo.data_kind == DataKind.WEIGHT_DIFF
    assert_rounded_once(dxo.data, mean(sent, STEPS))


def test_torch_tensors_come_back_as_torch_tensors_bfloat16_as_bfloat16() -> None:
    sent = {"w": torch.randn(4, 5).to(torch.bfloat16), "b": torch.randn(5)}
    aggregator = VeilsumAggregator()
    fl_ctx = begin(aggregator, {name: torch.zeros_like(value) for name, value in sent.items()})

    aggregator.accept(result("site-1", sent), fl_ctx)
    data = from_shareable(aggregator.aggregate(fl_ctx)).data

    assert {name: value.dtype for name, value in data.items()} == {
        "w": torch.bfloat16,
        "b": torch.float32,
    }
    assert all(torch.equal(data[name], value) for name, value in sent.items())


def test_metrics_are_averaged_by_weight_over_the_sites_that_sent_them() -> None:
    aggregator = VeilsumAggregator()
    begin(aggregator, MODEL)
    sent = {
        "site-1": {"accuracy": 0.5, "converged": True, "loss": np.float32(2.0)},
        "site-2": {"accuracy": 0.75, "converged": False, "loss": float("nan"), "note": "text"},
        "site-3": {"accuracy": 1.0, "converged": True},
    }

    for site in SITES:
        aggregator.accept_model(
            model_of(site, UPDATES[site], steps=STEPS[site], metrics=sent[site])
        )
    metrics = aggregator.aggregate_model().metrics

    weights = [STEPS[site] for site in SITES]
    assert metrics is not None
    assert metrics == pytest.approx(
        {
            "accuracy": np.average([0.5, 0.75, 1.0], weights=weights),
            "converged": np.average([1.0, 0.0, 1.0], weights=weights),
            "loss": 2.0,
        }
    )


def test_there_are_no_metrics_if_a_site_sent_none() -> None:
    aggregator = VeilsumAggregator()
    begin(aggregator, MODEL)

    aggregator.accept_model(model_of("site-1", UPDATES["site-1"], metrics={"accuracy": 0.5}))
    aggregator.accept_model(model_of("site-2", UPDATES["site-2"]))

    assert aggregator.aggregate_model().metrics is None


def spoiled(name: str, values: Any) -> dict[str, Any]:
    return {**UPDATES["site-2"], name: values}


BAD: list[tuple[dict[str, Any], str]] = [
    ({"params": spoiled("layer.bias", np.full(7, np.nan, np.float32))}, "not finite"),
    ({"params": spoiled("layer.bias", np.full(7, np.inf, np.float32))}, "not finite"),
    ({"params": spoiled("layer.bias", np.zeros(8, np.float32))}, "has shape"),
    ({"params": spoiled("layer.bias", np.zeros(7))}, "is f64, the layout has f32"),
    ({"params": spoiled("layer.bias", np.zeros(7, bool))}, "bool"),
    ({"params": spoiled("layer.bias", "text")}, "not an array"),
    ({"params": spoiled("other", np.zeros(7, np.float32))}, "1 \\('other'\\) unknown"),
    ({"params": {"layer.bias": MODEL["layer.bias"]}}, "2 .* missing"),
    ({"params": {}}, "without a model"),
    ({"steps": 0}, "has weight 0"),
    ({"steps": -3}, "has weight -3"),
    ({"steps": 2.5}, "not a whole number"),
    ({"steps": True}, "not a whole number"),
    ({"steps": 2**31}, "expected 1 to"),
    ({"steps": None}, "sent no NUM_STEPS_CURRENT_ROUND"),
    ({"number": 4}, "of round 4, this is round 0"),
    ({"number": None}, "does not say for which round"),
    ({"kind": "WEIGHT_DIFF"}, "sent a difference, this round sums models"),
    ({"kind": "METRICS"}, "without a model"),
    ({"PROCESSED_ALGORITHM": "HE"}, "processed by 'HE', known are"),
    ({"PROCESSED_ALGORITHM": "veilsum.int8"}, "one array of raw bytes"),
]


@pytest.mark.parametrize(("change", "reason"), BAD)
def test_a_bad_result_costs_its_site_the_round_and_the_others_go_on(
    change: dict[str, Any], reason: str
) -> None:
    aggregator = VeilsumAggregator()
    fl_ctx = begin(aggregator, MODEL)
    bad = result("site-2", **{"params": UPDATES["site-2"], **change})

    accepted = [
        aggregator.accept(result("site-1", UPDATES["site-1"], steps=10), fl_ctx),
        aggregator.accept(bad, fl_ctx),
        aggregator.accept(result("site-3", UPDATES["site-3"], steps=24), fl_ctx),
    ]
    dxo = from_shareable(aggregator.aggregate(fl_ctx))

    assert accepted == [True, False, True]
    others = {site: UPDATES[site] for site in ("site-1", "site-3")}
    assert_same(dxo.data, in_process(others, STEPS).arrays)
    report = aggregator.rounds[0]
    assert report.sites == ("site-1", "site-3")
    assert list(report.refused) == ["site-2"]
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(report.refused["site-2"])


def test_a_bad_first_result_does_not_decide_what_the_others_must_look_like() -> None:
    aggregator = VeilsumAggregator()
    fl_ctx = begin(aggregator, MODEL)

    first = aggregator.accept(result("site-1", {"x": np.zeros(3, np.float32)}), fl_ctx)
    second = aggregator.accept(result("site-2", UPDATES["site-2"]), fl_ctx)

    assert (first, second) == (False, True)


def test_fed_avg_is_told_of_a_refusal_by_an_error_that_names_the_site() -> None:
    aggregator = VeilsumAggregator()
    begin(aggregator, MODEL)

    with pytest.raises(PeerError, match=r"site 'site-2'.*not finite"):
        aggregator.accept_model(
            model_of("site-2", spoiled("layer.bias", np.full(7, np.nan, np.float32)))
        )


def test_a_second_result_of_a_site_is_refused() -> None:
    aggregator = VeilsumAggregator()
    fl_ctx = begin(aggregator, MODEL)

    aggregator.accept(result("site-1", UPDATES["site-1"]), fl_ctx)
    again = aggregator.accept(result("site-1", UPDATES["site-2"]), fl_ctx)
    dxo = from_shareable(aggregator.aggregate(fl_ctx))

    assert not again
    assert_same(dxo.data, UPDATES["site-1"])


@pytest.mark.parametrize("site", [None, ""])
def test_a_result_without_a_name_is_refused(site: str | None) -> None:
    aggregator = VeilsumAggregator()
    fl_ctx = begin(aggregator, MODEL)

    accepted = aggregator.accept(result(site, UPDATES["site-1"]), fl_ctx)

    assert not accepted
    with pytest.raises(PeerError, match="does not say whose"):
        aggregator.accept_model(model_of(site, UPDATES["site-1"]))


def test_a_result_that_comes_when_its_round_is_over_is_refused() -> None:
    aggregator = VeilsumAggregator()
    fl_ctx = begin(aggregator, MODEL)
    aggregator.accept(result("site-1", UPDATES["site-1"]), fl_ctx)
    aggregator.aggregate(fl_ctx)

    late = aggregator.accept(result("site-2", UPDATES["site-2"]), fl_ctx)
    aggregator.reset(fl_ctx)
    later = aggregator.accept(result("site-2", UPDATES["site-2"]), context(1))

    assert (late, later) == (False, False)


def test_a_round_without_results_ends_the_run_and_says_why() -> None:
    aggregator = VeilsumAggregator()
    fl_ctx = begin(aggregator, MODEL)
    aggregator.accept(result("site-1", {"x": np.zeros(3, np.float32)}), fl_ctx)

    with pytest.raises(RoundAborted, match=r"round 0 has no contribution to sum.*site-1"):
        aggregator.aggregate(fl_ctx)


def test_rounds_follow_each_other_in_both_workflows() -> None:
    for takes_turns in ("reset before", "reset after"):
        aggregator = VeilsumAggregator()
        for number in range(2):
            if takes_turns == "reset before":
                aggregator.reset_stats()
            fl_ctx = begin(aggregator, MODEL, number)
            aggregator.accept(result("site-1", UPDATES["site-1"], number=number), fl_ctx)
            aggregator.aggregate(fl_ctx)
            if takes_turns == "reset after":
                aggregator.reset(fl_ctx)

        assert list(aggregator.rounds) == [0, 1]


@pytest.mark.parametrize(
    ("factors", "weights"),
    [
        ({"site-2": 3}, {"site-1": 10, "site-2": 51, "site-3": 24}),
        ({"site-1": 0.5, "site-2": 0.1}, {"site-1": 50, "site-2": 17, "site-3": 240}),
    ],
)
def test_aggregation_weights_multiply_the_steps(
    factors: dict[str, float], weights: dict[str, int]
) -> None:
    aggregator = VeilsumAggregator(aggregation_weights=factors)
    fl_ctx = begin(aggregator, MODEL)

    for site in SITES:
        aggregator.accept(result(site, UPDATES[site], steps=STEPS[site]), fl_ctx)
    dxo = from_shareable(aggregator.aggregate(fl_ctx))

    assert_rounded_once(dxo.data, mean(UPDATES, weights))
    assert dxo.meta["veilsum.total_weight"] == sum(weights.values())


def test_sites_count_alike_if_the_job_says_so() -> None:
    aggregator = VeilsumAggregator(weigh_by_local_iter=False)
    fl_ctx = begin(aggregator, MODEL)

    for site in SITES:
        aggregator.accept(result(site, UPDATES[site], steps=None), fl_ctx)
    dxo = from_shareable(aggregator.aggregate(fl_ctx))

    assert_rounded_once(dxo.data, mean(UPDATES, dict.fromkeys(SITES, 1)))


def test_a_rule_by_name_is_applied() -> None:
    aggregator = VeilsumAggregator(rule="median")
    fl_ctx = begin(aggregator, MODEL)

    for site in SITES:
        aggregator.accept(result(site, UPDATES[site], steps=STEPS[site]), fl_ctx)
    dxo = from_shareable(aggregator.aggregate(fl_ctx))

    stacked = [UPDATES[site]["layer.weight"] for site in SITES]
    assert np.array_equal(dxo.data["layer.weight"], np.median(stacked, axis=0))
    expected = in_process(weights=dict.fromkeys(SITES, 1), rule=rules.CoordinateMedian())
    assert dxo.meta["veilsum.digest"] == expected.digest


def test_the_settings_of_a_rule_are_plain_values() -> None:
    aggregator = VeilsumAggregator(rule="trimmed_mean", rule_settings={"trim": 1})
    fl_ctx = begin(aggregator, MODEL)

    for site in SITES:
        aggregator.accept(result(site, UPDATES[site], steps=STEPS[site]), fl_ctx)
    dxo = from_shareable(aggregator.aggregate(fl_ctx))

    stacked = np.sort([UPDATES[site]["layer.weight"] for site in SITES], axis=0)
    assert np.array_equal(dxo.data["layer.weight"], stacked[1])


@pytest.mark.parametrize("kind", ["WEIGHTS", "WEIGHT_DIFF"])
def test_an_optimizer_steps_the_model_by_the_mean_difference(kind: str) -> None:
    aggregator = VeilsumAggregator(
        optimizer="fedavgm", optimizer_settings={"learning_rate": 0.5, "momentum": 0.9}
    )
    sent = UPDATES if kind == "WEIGHTS" else differences()
    model = MODEL
    oracle = {name: np.asarray(values, np.float64) for name, values in MODEL.items()}
    velocity = {name: np.zeros_like(values) for name, values in oracle.items()}

    for number in range(2):
        fl_ctx = begin(aggregator, model, number)
        received = model
        for site in SITES:
            params = (
                sent[site]
                if kind == "WEIGHT_DIFF"
                else {name: received[name] + differences()[site][name] for name in received}
            )
            accepted = aggregator.accept(
                result(site, params, steps=STEPS[site], kind=kind, number=number), fl_ctx
            )
            assert accepted
        dxo = from_shareable(aggregator.aggregate(fl_ctx))
        assert dxo.data_kind == DataKind.WEIGHTS
        model = dxo.data
        for name, change in mean(differences(), STEPS).items():
            velocity[name] = 0.9 * velocity[name] + change
            oracle[name] = oracle[name] + 0.5 * velocity[name]

    for name in ("layer.weight", "layer.bias"):
        np.testing.assert_allclose(model[name], oracle[name], rtol=0, atol=1e-6)


def test_parts_of_a_model_are_summed_if_the_first_result_says_what_they_look_like() -> None:
    part = {site: {"layer.bias": UPDATES[site]["layer.bias"]} for site in SITES}
    aggregator = VeilsumAggregator(layout="first")
    fl_ctx = begin(aggregator, MODEL)

    for site in SITES:
        assert aggregator.accept(result(site, part[site], steps=STEPS[site]), fl_ctx)
    dxo = from_shareable(aggregator.aggregate(fl_ctx))

    assert_rounded_once(dxo.data, mean(part, STEPS))


def test_half_precision_results_are_widened_to_a_float32_model() -> None:
    halves = {
        site: {
            name: values.astype(np.float16) if values.dtype.kind == "f" else values
            for name, values in update.items()
        }
        for site, update in UPDATES.items()
    }
    aggregator = VeilsumAggregator()
    fl_ctx = begin(aggregator, MODEL)

    for site in SITES:
        assert aggregator.accept(result(site, halves[site], steps=STEPS[site]), fl_ctx)

    assert_rounded_once(from_shareable(aggregator.aggregate(fl_ctx)).data, mean(halves, STEPS))


def test_results_wait_on_disk_and_nothing_is_left_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    aggregator = VeilsumAggregator()
    fl_ctx = begin(aggregator, MODEL)

    aggregator.accept(result("site-1", UPDATES["site-1"]), fl_ctx)
    during = [path.is_dir() for path in tmp_path.iterdir()]
    aggregator.aggregate(fl_ctx)
    after = list(tmp_path.iterdir())
    begin(aggregator, MODEL, 1)
    aggregator.accept(result("site-1", UPDATES["site-1"], number=1), context(1))
    aggregator.handle_event(EventType.END_RUN, fl_ctx)

    assert during == [True]
    assert after == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "settings", [{"keep": "memory"}, {"max_abs": 10.0, "max_total_weight": 1000}]
)
def test_results_that_wait_elsewhere_or_nowhere_give_the_same_mean(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    aggregator = VeilsumAggregator(**settings)
    fl_ctx = begin(aggregator, MODEL)

    for site in SITES:
        aggregator.accept(result(site, UPDATES[site], steps=STEPS[site]), fl_ctx)
        assert list(tmp_path.iterdir()) == []

    assert_rounded_once(from_shareable(aggregator.aggregate(fl_ctx)).data, mean(UPDATES, STEPS))


def test_several_threads_may_hand_over_results() -> None:
    sites = [f"site-{number}" for number in range(1, 33)]
    updates = {site: trained(MODEL, number, 0) for number, site in enumerate(sites, 1)}
    aggregator = VeilsumAggregator()
    fl_ctx = begin(aggregator, MODEL)
    ready = threading.Barrier(8)

    def hand_over(first: int) -> None:
        ready.wait()
        for site in sites[first::8]:
            aggregator.accept(result(site, updates[site]), context())

    threads = [threading.Thread(target=hand_over, args=(first,)) for first in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    dxo = from_shareable(aggregator.aggregate(fl_ctx))
    assert dxo.meta["veilsum.digest"] == in_process(updates, dict.fromkeys(sites, 1)).digest


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"rule": "mediocre"}, "unknown rule"),
        ({"rule": "trimmed_mean"}, "needs 'trim'"),
        ({"rule": "median", "rule_settings": {"trim": 1}}, "does not take 'trim'"),
        ({"optimizer": "sgd"}, "unknown optimizer"),
        ({"optimizer_settings": {"learning_rate": 1.0}}, "no optimizer"),
        ({"optimizer": "fedavg", "layout": "first"}, "no meaning"),
        ({"keep": "/tmp"}, "expected one of disk, memory"),
        ({"layout": "x"}, "expected one of model, first"),
        ({"expected_data_kind": "METRICS"}, "expected one of"),
        ({"max_abs": 1.0}, "needs both bounds"),
        ({"keep": "memory", "threads": 0}, "threads"),
        ({"aggregation_weights": {"site-1": 0}}, "expected a positive number"),
        ({"aggregation_weights": {"site-1": "2"}}, "expected a positive number"),
        ({"rule": "median", "max_abs": 1.0, "max_total_weight": 5}, "streaming keeps no updates"),
    ],
)
def test_arguments_that_cannot_work_are_refused_when_the_job_is_made(
    arguments: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        VeilsumAggregator(**arguments)


def test_a_job_may_name_a_device_that_the_machine_it_is_written_on_lacks() -> None:
    VeilsumAggregator(backend="cuda:7")


def test_the_configuration_that_nvflare_writes_builds_the_same_aggregator() -> None:
    from nvflare.job_config.fed_job_config import FedJobConfig

    arguments = {
        "rule": "median",
        "aggregation_weights": {"site-1": 2},
        "weigh_by_local_iter": False,
        "expected_data_kind": "WEIGHT_DIFF",
        "keep": "memory",
    }
    job = FedJobConfig(job_name="job", min_clients=1)

    written = job._get_args(VeilsumAggregator(**arguments), "")

    assert json.loads(json.dumps(written)) == arguments
    assert VeilsumAggregator(**written)._settings == VeilsumAggregator(**arguments)._settings


def test_what_an_optimizer_starts_with_is_that_of_the_engine() -> None:
    aggregator = VeilsumAggregator(optimizer="fedadam")
    fl_ctx = begin(aggregator, MODEL)
    for site in SITES:
        aggregator.accept(result(site, UPDATES[site], steps=STEPS[site]), fl_ctx)

    found = from_shareable(aggregator.aggregate(fl_ctx)).data

    layout = ModelLayout.from_arrays(MODEL)
    step = optimizers.optimizer_settings("fedadam").start(layout)
    expected = step.step(MODEL, in_process(differences()).arrays)
    assert_same(found, expected)
