"""Flower's strategies, on replies as its server has them: a .npy file for each tensor."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from veilsum.bench.contenders import Checked, Contender, Work
from veilsum.bench.reference import Reference

if TYPE_CHECKING:
    from veilsum.bench.mean import MeanPayload
    from veilsum.bench.rule import RulePayload

WEIGHT_KEY = "num-examples"
_RUN = 1


def quiet() -> None:
    """Flower logs each round to stderr, and its messages need to know whose task this is."""
    from flwr.supercore.task_identity import TaskIdentity

    logging.getLogger("flwr").setLevel(logging.ERROR)
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = _RUN, 1, 1


def record_of(update: Mapping[str, bytes], shapes: Mapping[str, tuple[int, ...]]) -> Any:
    """An ArrayRecord of .npy bytes, which are not copied."""
    from flwr.app import Array, ArrayRecord

    return ArrayRecord(
        {
            name: Array(dtype="float32", shape=shapes[name], stype="numpy.ndarray", data=data)
            for name, data in update.items()
        }
    )


def replies_of(payload: MeanPayload) -> list[Any]:
    """What a strategy's aggregate_train gets: a message from each node."""
    from flwr.app import Message, MetricRecord, RecordDict

    quiet()
    shapes = {name: array.shape for name, array in payload.updates[0].items()}
    replies = []
    for number, (update, weight) in enumerate(zip(payload.npy, payload.weights, strict=True)):
        asked = Message(RecordDict(), dst_node_id=number + 1, message_type="train")
        content = RecordDict(
            {"arrays": record_of(update, shapes), "metrics": MetricRecord({WEIGHT_KEY: weight})}
        )
        replies.append(Message(content, reply_to=asked))
    return replies


def strategy_work(
    make: Callable[[], Any], payload: MeanPayload, check: Callable[[Mapping[str, Any]], Checked]
) -> Work:
    """A strategy's aggregate_train over all replies; decoding its record is not timed.

    Strategies may take replies apart, so each call gets new ones, of the same bytes.
    """
    strategy = make()

    def call(replies: list[Any]) -> Any:
        arrays, _ = strategy.aggregate_train(1, replies)
        return arrays

    return Work(call, lambda record: check(_arrays(record)), fresh=lambda: (replies_of(payload),))


def _aggregate_train(payload: MeanPayload, threads: int) -> Work:
    from flwr.serverapp.strategy import FedAvg

    return strategy_work(FedAvg, payload, payload.reference.rounded_on_the_way)


def _adapter(payload: MeanPayload, threads: int) -> Work:
    from veilsum.integrations.flower import FedAvg

    return strategy_work(lambda: FedAvg(threads=threads), payload, payload.reference.once_rounded)


def _fed_median(payload: RulePayload, threads: int) -> Work:
    from flwr.serverapp.strategy import FedMedian

    return strategy_work(FedMedian, payload, payload.check_median)


def _krum(payload: RulePayload, threads: int) -> Work:
    from flwr.serverapp.strategy import Krum

    return strategy_work(
        lambda: Krum(num_malicious_nodes=payload.byzantine), payload, payload.check_krum
    )


def _legacy_median(payload: RulePayload, threads: int) -> Work:
    from flwr.server.strategy.aggregate import aggregate_median

    results = [(list(update.values()), 1) for update in payload.updates]
    return Work(
        lambda: aggregate_median(results), lambda arrays: payload.check_median({"w": arrays[0]})
    )


def _legacy_krum(payload: RulePayload, threads: int) -> Work:
    from flwr.server.strategy.aggregate import aggregate_krum

    results = [(list(update.values()), 1) for update in payload.updates]
    return Work(
        lambda: aggregate_krum(results, payload.byzantine, 0),
        lambda arrays: payload.check_krum({"w": arrays[0]}),
    )


def _arrays(record: Any) -> dict[str, Any]:
    return {name: array.numpy() for name, array in record.items()}


def _legacy(payload: MeanPayload, threads: int) -> Work:
    from flwr.server.strategy.aggregate import aggregate

    names = list(payload.updates[0])
    results = [
        (list(update.values()), weight)
        for update, weight in zip(payload.updates, payload.weights, strict=True)
    ]
    return Work(lambda: aggregate(results), _by_name(names, payload.reference))


def _legacy_in_place(payload: MeanPayload, threads: int) -> Work:
    from flwr.common import Code, FitRes, Parameters, Status
    from flwr.server.strategy.aggregate import aggregate_inplace

    status = Status(Code.OK, "")
    results: Any = [
        (None, FitRes(status, Parameters(list(update.values()), "numpy.ndarray"), weight, {}))
        for update, weight in zip(payload.npy, payload.weights, strict=True)
    ]
    names = list(payload.updates[0])
    return Work(lambda: aggregate_inplace(results), _by_name(names, payload.reference))


def _by_name(names: list[str], reference: Reference) -> Callable[[list[Any]], Checked]:
    return lambda arrays: reference.rounded_on_the_way(dict(zip(names, arrays, strict=True)))


MEANS = (
    Contender("Flower FedAvg.aggregate_train", _aggregate_train, host="flwr", form="npy"),
    Contender(
        "Flower aggregate_inplace (legacy)", _legacy_in_place, host="flwr", form="npy", memory=5.0
    ),
    # A weighted copy of every update at once.
    Contender("Flower aggregate (legacy)", _legacy, host="flwr", memory=float("inf")),
)
MEDIANS = (
    Contender(
        "Flower FedMedian.aggregate_train",
        _fed_median,
        host="flwr",
        form="npy",
        memory=float("inf"),
    ),
    Contender("Flower aggregate_median (legacy)", _legacy_median, host="flwr", memory=float("inf")),
)
KRUMS = (
    Contender("Flower Krum.aggregate_train", _krum, host="flwr", form="npy", memory=float("inf")),
    Contender("Flower aggregate_krum (legacy)", _legacy_krum, host="flwr", memory=float("inf")),
)
ADAPTERS: list[tuple[str, Contender, tuple[Contender, ...]]] = [
    (
        "Flower",
        Contender(
            "veilsum.integrations.flower.FedAvg",
            _adapter,
            host="flwr",
            form="npy",
            memory=float("inf"),
            threads=True,
        ),
        MEANS[:1],
    )
]
