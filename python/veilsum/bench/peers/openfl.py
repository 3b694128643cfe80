"""OpenFL's default aggregation function, called for one tensor after the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from veilsum.bench.contenders import Contender, Work

if TYPE_CHECKING:
    from veilsum.bench.mean import MeanPayload


def _weighted_average(payload: MeanPayload, threads: int) -> Work:
    from openfl.interface.aggregation_functions import WeightedAverage
    from openfl.utilities import LocalTensor

    # Its aggregator hands over shares of the examples, not their numbers.
    total = sum(payload.weights)
    function = WeightedAverage()
    tensors = {
        name: [
            LocalTensor(f"site-{number}", update[name], weight / total)
            for number, (update, weight) in enumerate(
                zip(payload.updates, payload.weights, strict=True)
            )
        ]
        for name in payload.updates[0]
    }

    def call() -> Mapping[str, Any]:
        nothing: Any = iter(())  # the history of tensors, which it does not look at
        return {name: function.call(given, nothing, name, 0, ()) for name, given in tensors.items()}

    return Work(call, payload.reference.rounded_on_the_way)


MEANS = (Contender("OpenFL WeightedAverage", _weighted_average, host="openfl"),)
