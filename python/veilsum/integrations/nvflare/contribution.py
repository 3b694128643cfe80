"""One site's result, from either of the forms in which NVFLARE hands it to an aggregator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nvflare.apis.fl_constant import ReservedKey
from nvflare.apis.shareable import Shareable
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.utils.fl_model_utils import FLModelUtils

from veilsum.errors import PeerError

_NOBODY = "(no name)"  # in errors only: what has no name is refused


@dataclass(frozen=True, slots=True)
class Contribution:
    """A result that has not been looked at closely yet.

    Attributes:
        site: whose it is, as its connection says, not as its payload does.
        round: for which it was made; None if the host does not say, in a workflow that lets no
            results of other rounds through.
        is_difference: whether params are a difference to the round's model.
        params: name -> tensor, or what a filter made of them.
        meta: of its DXO.
        metrics: name -> value; None if the site sent none.
    """

    site: str
    round: int | None
    is_difference: bool
    params: Mapping[str, Any]
    meta: Mapping[str, Any]
    metrics: Mapping[str, Any] | None


def from_model(model: FLModel) -> Contribution:
    """Of what FedAvg gives to accept_model(); its controller has written the name into the meta.

    Raises:
        PeerError: it has no name, or holds no model.
    """
    site = _named((model.meta or {}).get("client_name"))
    return _contribution(site, model, model.current_round)


def from_shareable(shareable: Shareable) -> Contribution:
    """Of what ScatterAndGather gives to accept().

    Raises:
        PeerError: it has no name, or holds no model.
    """
    site = _named(shareable.get_peer_prop(ReservedKey.IDENTITY_NAME, None))
    made_for = shareable.get_cookie(AppConstants.CONTRIBUTION_ROUND)
    if made_for is None:
        raise PeerError(site, "sent a result that does not say for which round it is")
    try:
        model = FLModelUtils.from_shareable(shareable)
    except (KeyError, TypeError, ValueError) as error:
        raise PeerError(site, f"sent a result that holds no model: {error}") from error
    return _contribution(site, model, made_for)


def _named(site: object) -> str:
    if not isinstance(site, str) or not site:
        raise PeerError(_NOBODY, "sent a result, and NVFLARE does not say whose it is")
    return site


def _contribution(site: str, model: FLModel, made_for: Any) -> Contribution:
    if not isinstance(model.params, Mapping) or not model.params:
        raise PeerError(site, "sent a result without a model")
    if not all(isinstance(name, str) for name in model.params):
        raise PeerError(site, "sent tensors whose names are no text")
    if made_for is not None and not isinstance(made_for, int):
        raise PeerError(site, f"sent a result of round {made_for!r}, which is no number")
    if model.metrics is not None and not isinstance(model.metrics, Mapping):
        raise PeerError(site, f"sent metrics that are a {type(model.metrics).__name__}, no mapping")
    return Contribution(
        site=site,
        round=made_for,
        is_difference=model.params_type == ParamsType.DIFF,
        params=model.params,
        meta=model.meta or {},
        metrics=model.metrics,
    )
