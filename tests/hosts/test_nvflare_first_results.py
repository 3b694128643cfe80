"""What a result may do to others in NVFLARE: nothing, whenever it comes and whatever is in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from veilsum import ConfigError, PeerError, RoundAborted

pytest.importorskip("nvflare", reason="nvflare is not installed (extra `nvflare`)")

from nvflare.apis.dxo import DataKind, from_shareable
from nvflare.app_common.app_constant import AppConstants

from support.nvflare_results import begin, end_runs, model_of, result
from veilsum.integrations.nvflare import VeilsumAggregator

MODEL = {"w": np.zeros(8, np.float32), "b": np.zeros(2, np.float32)}
UPDATE = {"w": np.full(8, 1.001, np.float32), "b": np.ones(2, np.float32)}
HONEST = ("site-1", "site-2", "site-3", "site-4")


@pytest.fixture(autouse=True)
def runs_end() -> Iterator[None]:
    yield
    end_runs()


class Unreadable:
    """A reference to a tensor on disk that cannot be read."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def materialize(self) -> Any:
        raise self.error


def accepted(first: Any, **settings: Any) -> tuple[VeilsumAggregator, Any, list[bool]]:
    """One result and then those of the honest sites; which have a part in the round."""
    aggregator = VeilsumAggregator(**settings)
    fl_ctx = begin(aggregator, {} if settings.get("layout") == "first" else MODEL)
    taken = [aggregator.accept(first, fl_ctx)]
    taken += [aggregator.accept(result(site, UPDATE), fl_ctx) for site in HONEST]
    return aggregator, fl_ctx, taken


def test_a_first_result_of_another_kind_than_all_others_is_not_the_model() -> None:
    loud = {name: 666 * values for name, values in UPDATE.items()}
    aggregator, fl_ctx, _ = accepted(result("quick", loud, kind=DataKind.WEIGHT_DIFF))

    with pytest.raises(RoundAborted, match=r"4 others were refused, 1 summed") as caught:
        aggregator.aggregate(fl_ctx)

    assert "expected_data_kind" in str(caught.value.hint)


def test_where_the_kind_is_set_a_first_result_of_another_costs_itself_the_round() -> None:
    aggregator, fl_ctx, taken = accepted(
        result("quick", UPDATE, kind=DataKind.WEIGHT_DIFF), expected_data_kind="WEIGHTS"
    )

    found = from_shareable(aggregator.aggregate(fl_ctx)).data

    assert taken == [False, True, True, True, True]
    assert np.array_equal(found["w"], UPDATE["w"])


def test_a_first_result_that_looks_like_no_other_is_not_the_model() -> None:
    aggregator, fl_ctx, _ = accepted(result("quick", {"w": np.ones(1, "f4")}), layout="first")

    with pytest.raises(RoundAborted, match="the first contribution decided"):
        aggregator.aggregate(fl_ctx)


def test_a_result_that_was_refused_does_not_decide_the_dtype_of_the_model() -> None:
    coarse = {
        "w": torch.full((8,), float("nan"), dtype=torch.bfloat16),
        "b": torch.zeros(2, dtype=torch.bfloat16),
    }
    aggregator, fl_ctx, taken = accepted(result("quick", coarse), layout="first")

    found = from_shareable(aggregator.aggregate(fl_ctx)).data

    assert taken == [False, True, True, True, True]
    assert found["w"].dtype == np.float32
    assert np.array_equal(found["w"], UPDATE["w"])


def of_round(number: Any) -> Any:
    made = result("bad", UPDATE)
    made.add_cookie(AppConstants.CONTRIBUTION_ROUND, number)
    return made


BAD = {
    "file is gone": lambda: result("bad", {**UPDATE, "w": Unreadable(OSError("gone"))}),
    "key is gone": lambda: result("bad", {**UPDATE, "w": Unreadable(KeyError("gone"))}),
    "name is a number": lambda: result("bad", {**UPDATE, 1: UPDATE["w"]}),
    "rounds": lambda: of_round(np.array([0, 1])),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_what_cannot_be_read_costs_its_site_the_round_and_no_other(bad: Any) -> None:
    aggregator, fl_ctx, taken = accepted(bad())

    found = from_shareable(aggregator.aggregate(fl_ctx)).data

    assert taken == [False, True, True, True, True]
    assert np.array_equal(found["w"], UPDATE["w"])


def test_metrics_that_are_no_mapping_are_refused_before_the_update_is_in_the_sum() -> None:
    aggregator = VeilsumAggregator()
    begin(aggregator, MODEL)
    bad = model_of("bad", MODEL)
    bad.metrics = [0.5]

    with pytest.raises(PeerError, match="sent metrics that are a list"):
        aggregator.accept_model(bad)
    aggregator.accept_model(model_of("site-1", UPDATE))

    assert np.array_equal(aggregator.aggregate_model().params["w"], UPDATE["w"])


def test_the_order_of_arrival_does_not_decide_the_order_of_metrics() -> None:
    aggregator = VeilsumAggregator()
    begin(aggregator, MODEL)
    for site in reversed(HONEST):
        aggregator.accept_model(model_of(site, UPDATE, metrics={site: 1.0}))

    assert tuple(aggregator.aggregate_model().metrics) == HONEST


def test_a_round_without_weights_ends_with_what_every_site_failed_to_send() -> None:
    aggregator = VeilsumAggregator()
    fl_ctx = begin(aggregator, MODEL)
    for site in HONEST:
        aggregator.accept(result(site, UPDATE, steps=None), fl_ctx)

    with pytest.raises(RoundAborted, match=r"site-1' sent no NUM_STEPS.*site-4' sent no NUM_STEPS"):
        aggregator.aggregate(fl_ctx)


def test_a_model_that_cannot_be_summed_ends_the_run_of_fed_avg_too() -> None:
    aggregator = VeilsumAggregator()
    begin(aggregator, {**MODEL, "mask": np.zeros(2, bool)})
    for site in HONEST:
        with pytest.raises(ConfigError, match="cannot be summed"):  # FedAvg logs it and goes on
            aggregator.accept_model(model_of(site, UPDATE))

    with pytest.raises(ConfigError, match=r"the model that was sent out cannot be summed.*'mask'"):
        aggregator.aggregate_model()
