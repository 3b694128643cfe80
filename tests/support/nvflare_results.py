"""Results of sites as NVFLARE's server hands them to an aggregator, without a server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from nvflare.apis.dxo import DXO, DataKind, MetaKey
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReservedHeaderKey, Shareable
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.app_event_type import AppEventType

from veilsum.integrations.nvflare import VeilsumAggregator

Arrays = Mapping[str, Any]

_begun: list[VeilsumAggregator] = []


def result(
    site: str | None,
    params: Arrays,
    *,
    steps: object = 1,
    number: int = 0,
    kind: str = DataKind.WEIGHTS,
    **meta: Any,
) -> Shareable:
    """What ScatterAndGather hands over: DXO, cookie of the round, identity of the peer."""
    dxo = DXO(kind, dict(params), {MetaKey.NUM_STEPS_CURRENT_ROUND: steps, **meta})
    shareable = dxo.to_shareable()
    shareable.add_cookie(AppConstants.CONTRIBUTION_ROUND, number)
    peer = {} if site is None else {ReservedKey.IDENTITY_NAME: site}
    shareable.set_header(ReservedHeaderKey.PEER_PROPS, peer)
    return shareable


def context(number: int = 0) -> FLContext:
    fl_ctx = FLContext()
    fl_ctx.set_prop(AppConstants.CURRENT_ROUND, number, private=True, sticky=True)
    return fl_ctx


def begin(aggregator: VeilsumAggregator, model: Arrays, number: int = 0) -> FLContext:
    """Tells the aggregator that a round begins, as a workflow does when its task goes out."""
    _begun.append(aggregator)
    fl_ctx = context(number)
    task = DXO(DataKind.WEIGHTS, dict(model)).to_shareable()
    task.set_header(AppConstants.CURRENT_ROUND, number)
    fl_ctx.set_prop(AppConstants.TRAIN_SHAREABLE, task, private=True, sticky=False)
    aggregator.handle_event(AppEventType.BEFORE_TRAIN_TASK, fl_ctx)
    return fl_ctx


def end_runs() -> None:
    """Ends the run of every aggregator that was told of a round, as a workflow does."""
    while _begun:
        _begun.pop().handle_event(EventType.END_RUN, context())


def model_of(
    site: str | None, params: Arrays, *, steps: object = 1, number: int | None = 0, **rest: Any
) -> FLModel:
    """What FedAvg hands over."""
    meta: dict[str, Any] = {MetaKey.NUM_STEPS_CURRENT_ROUND: steps}
    if site is not None:
        meta["client_name"] = site
    return FLModel(params=dict(params), meta=meta, current_round=number, **rest)


def mean(updates: Mapping[str, Arrays], weights: Mapping[str, float]) -> dict[str, np.ndarray]:
    """The weighted mean in float64, unrounded."""
    sites = sorted(updates)
    counts = [weights[site] for site in sites]
    return {
        name: np.average(
            np.stack([np.asarray(updates[site][name], np.float64) for site in sites]),
            axis=0,
            weights=counts,
        )
        for name in updates[sites[0]]
    }


def assert_rounded_once(
    found: Arrays, exact: Mapping[str, np.ndarray], *, atol: float = 1e-15
) -> None:
    """Each value is the exact one, rounded once to its tensor's dtype.

    The reference is a sum of float64 products and has an error itself, where they cancel.
    """
    assert list(found) == list(exact)
    for name, values in exact.items():
        array = np.asarray(found[name])
        if array.dtype.kind in "iu":
            assert np.array_equal(array, np.rint(values))
        else:
            half_a_step = 2.0 ** -(np.finfo(array.dtype).nmant + 1)
            np.testing.assert_allclose(array, values, rtol=half_a_step, atol=atol)
