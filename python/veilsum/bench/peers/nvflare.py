"""NVFLARE's aggregation helper, which its in-time aggregator and its FedAvg fold results into."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from veilsum.bench.contenders import Contender, Work

if TYPE_CHECKING:
    from veilsum.bench.mean import MeanPayload


def _helper(*, as_torch: bool) -> Callable[[MeanPayload, int], Work]:
    def prepare(payload: MeanPayload, threads: int) -> Work:
        from nvflare.app_common.aggregators.weighted_aggregation_helper import (
            WeightedAggregationHelper,
        )

        updates: Any = payload.updates
        if as_torch:
            import torch

            torch.set_num_threads(threads)
            updates = [
                {name: torch.from_numpy(array) for name, array in update.items()}
                for update in payload.updates
            ]

        def call() -> Mapping[str, Any]:
            helper = WeightedAggregationHelper()
            for number, (update, weight) in enumerate(zip(updates, payload.weights, strict=True)):
                helper.add(update, weight, f"site-{number}", 0)
            means: Mapping[str, Any] = helper.get_result()
            return means

        return Work(call, payload.reference.rounded_on_the_way)

    return prepare


MEANS = (
    Contender("NVFLARE WeightedAggregationHelper", _helper(as_torch=False), host="nvflare"),
    Contender(
        "NVFLARE WeightedAggregationHelper, torch",
        _helper(as_torch=True),
        host="nvflare",
        threads=True,
    ),
)
ADAPTERS: list[tuple[str, Contender, tuple[Contender, ...]]] = []
