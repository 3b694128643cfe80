"""The same results through NVFLARE's own weighted mean, through ours, and in float64."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("nvflare", reason="nvflare is not installed (extra `nvflare`)")

from nvflare.apis.dxo import from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.aggregators.intime_accumulate_model_aggregator import (
    InTimeAccumulateWeightedAggregator,
)

from support.nvflare_results import assert_rounded_once, begin, end_runs, mean, result
from veilsum.integrations.nvflare import VeilsumAggregator

SITES = ("site-1", "site-2", "site-3")


@pytest.fixture(autouse=True)
def runs_end() -> Iterator[None]:
    yield
    end_runs()


def both(updates: dict[str, Any], steps: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The aggregate of NVFLARE's in-time aggregator and of ours."""
    ours = VeilsumAggregator()
    fl_ctx = begin(ours, updates["site-1"])
    host = InTimeAccumulateWeightedAggregator(expected_data_kind="WEIGHTS")
    host.handle_event(EventType.START_RUN, FLContext())
    for site, update in updates.items():
        assert host.accept(result(site, update, steps=steps), fl_ctx)
        assert ours.accept(result(site, update, steps=steps), fl_ctx)
    return from_shareable(host.aggregate(fl_ctx)).data, from_shareable(ours.aggregate(fl_ctx)).data


def test_half_precision_results_with_large_weights() -> None:
    # NVFLARE 2.9 adds value times weight in the payload's dtype; float16 ends at 65,504.
    values = {"site-1": 1.0, "site-2": 2.0, "site-3": 3.0}
    updates = {site: {"w": np.full(4, value, np.float16)} for site, value in values.items()}

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "overflow encountered", RuntimeWarning)
        host, ours = both(updates, steps=30_000)

    assert np.isinf(host["w"]).all()
    assert ours["w"].dtype == np.float16
    assert_rounded_once(ours, mean(updates, dict.fromkeys(SITES, 30_000)))


def test_counters() -> None:
    # NVFLARE 2.9 multiplies by a float and divides, so that integers come back as float64.
    updates = {
        site: {"n": np.array([41 + number, 2**60 + number])} for number, site in enumerate(SITES)
    }

    host, ours = both(updates, steps=7)

    assert host["n"].dtype == np.float64
    assert ours["n"].dtype == np.int64
    assert ours["n"].tolist() == [42, 2**60 + 1]
    assert host["n"].tolist() != [42, 2**60 + 1]
    exact = [sum(int(updates[site]["n"][place]) for site in SITES) // 3 for place in range(2)]
    assert ours["n"].tolist() == exact


def test_the_order_of_arrival() -> None:
    # NVFLARE's FedAvg says that two orders may differ in the last digits; ours has one result.
    random = np.random.default_rng(11)
    updates = {site: {"w": random.normal(size=4096).astype(np.float32)} for site in SITES}
    turned = dict(reversed(updates.items()))

    _, first = both(updates, steps=17)
    _, second = both(turned, steps=17)

    assert np.array_equal(first["w"], second["w"])
    assert_rounded_once(first, mean(updates, dict.fromkeys(SITES, 17)))
