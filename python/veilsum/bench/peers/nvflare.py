"""NVFLARE's aggregation helper, which its in-time aggregator and its FedAvg fold results into."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from veilsum.bench.contenders import Checked, Contender, Work
from veilsum.bench.sides import ContenderFailed

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


# --- a whole aggregator, on results as ScatterAndGather hands them over --------------------


def _aggregator_work(
    make: Callable[[], Any], payload: MeanPayload, check: Callable[[Mapping[str, Any]], Checked]
) -> Work:
    """accept() of every result, and aggregate(), in the first round after a new start."""
    from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
    from nvflare.apis.fl_constant import ReservedKey
    from nvflare.apis.shareable import ReservedHeaderKey
    from nvflare.app_common.app_constant import AppConstants

    logging.getLogger("nvflare").setLevel(logging.ERROR)
    results = []
    for number, (update, weight) in enumerate(zip(payload.updates, payload.weights, strict=True)):
        meta = {MetaKey.NUM_STEPS_CURRENT_ROUND: weight}
        shareable = DXO(DataKind.WEIGHTS, dict(update), meta).to_shareable()
        shareable.add_cookie(AppConstants.CONTRIBUTION_ROUND, 0)
        peer = {ReservedKey.IDENTITY_NAME: f"site-{number}"}
        shareable.set_header(ReservedHeaderKey.PEER_PROPS, peer)
        results.append(shareable)

    def call(aggregator: Any, fl_ctx: Any) -> Any:
        for result in results:
            if not aggregator.accept(result, fl_ctx):
                raise ContenderFailed("a result was not accepted")
        return from_shareable(aggregator.aggregate(fl_ctx)).data

    return Work(call, check, fresh=lambda: _begun(make(), payload))


def _begun(aggregator: Any, payload: MeanPayload) -> tuple[Any, Any]:
    """An aggregator that has been told what it is told before a round's task goes out."""
    from nvflare.apis.dxo import DXO, DataKind
    from nvflare.apis.event_type import EventType
    from nvflare.apis.fl_context import FLContext
    from nvflare.app_common.app_constant import AppConstants
    from nvflare.app_common.app_event_type import AppEventType

    context = FLContext()
    context.set_prop(AppConstants.CURRENT_ROUND, 0, private=True, sticky=True)
    task = DXO(DataKind.WEIGHTS, dict(payload.updates[0])).to_shareable()
    task.set_header(AppConstants.CURRENT_ROUND, 0)
    context.set_prop(AppConstants.TRAIN_SHAREABLE, task, private=True, sticky=False)
    aggregator.handle_event(EventType.START_RUN, context)
    aggregator.handle_event(AppEventType.BEFORE_TRAIN_TASK, context)
    return aggregator, context


def _in_time(payload: MeanPayload, threads: int) -> Work:
    from nvflare.apis.dxo import DataKind
    from nvflare.app_common.aggregators import InTimeAccumulateWeightedAggregator

    return _aggregator_work(
        lambda: InTimeAccumulateWeightedAggregator(expected_data_kind=DataKind.WEIGHTS),
        payload,
        payload.reference.rounded_on_the_way,
    )


def _adapter(payload: MeanPayload, threads: int) -> Work:
    from veilsum.integrations.nvflare import VeilsumAggregator

    return _aggregator_work(
        lambda: VeilsumAggregator(threads=threads),
        payload,
        payload.reference.once_rounded,
    )


MEANS = (
    Contender("NVFLARE WeightedAggregationHelper", _helper(as_torch=False), host="nvflare"),
    Contender(
        "NVFLARE WeightedAggregationHelper, torch",
        _helper(as_torch=True),
        host="nvflare",
        threads=True,
    ),
)
ADAPTERS: list[tuple[str, Contender, tuple[Contender, ...]]] = [
    (
        "NVFLARE",
        Contender(
            "veilsum.integrations.nvflare.VeilsumAggregator",
            _adapter,
            host="nvflare",
            memory=float("inf"),
            threads=True,
        ),
        (Contender("NVFLARE InTimeAccumulateWeightedAggregator", _in_time, host="nvflare"),),
    )
]
