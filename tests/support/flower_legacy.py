"""Results of Flower's legacy Strategy API, as a server has them in hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flwr.common import Code, FitRes, NDArray, Parameters, Status, ndarrays_to_parameters
from flwr.server.client_proxy import ClientProxy


class NamedClient(ClientProxy):
    """A client that is only asked for its name."""

    def _unused(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    get_properties = get_parameters = fit = evaluate = reconnect = _unused


def fit_result(
    name: str, arrays: Sequence[NDArray] | Parameters, weight: int
) -> tuple[ClientProxy, FitRes]:
    """What one client sent; its metric `loss` is the length of its name."""
    parameters = arrays if isinstance(arrays, Parameters) else ndarrays_to_parameters(list(arrays))
    metrics = {"loss": float(len(name))}
    return NamedClient(name), FitRes(Status(Code.OK, ""), parameters, weight, metrics)
