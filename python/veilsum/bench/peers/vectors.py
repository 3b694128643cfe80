"""Weighted means as people write them with NumPy and torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from veilsum.bench.contenders import Contender, Work

if TYPE_CHECKING:
    from veilsum.bench.mean import MeanPayload


def _in_place(payload: MeanPayload, threads: int) -> Work:
    """Multiply into one scratch array, add, divide."""

    def call() -> Mapping[str, Any]:
        means = {}
        for name, first in payload.updates[0].items():
            total, product = np.zeros_like(first), np.empty_like(first)
            for update, weight in zip(payload.updates, payload.weights, strict=True):
                np.multiply(update[name], np.float32(weight), out=product)
                np.add(total, product, out=total)
            means[name] = np.divide(total, np.float32(sum(payload.weights)), out=total)
        return means

    return Work(call, payload.reference.rounded_on_the_way)


def _average(payload: MeanPayload, threads: int) -> Work:
    def call() -> Mapping[str, Any]:
        return {
            name: np.average(
                [update[name] for update in payload.updates], axis=0, weights=payload.weights
            )
            for name in payload.updates[0]
        }

    return Work(call, payload.reference.rounded_on_the_way)


Ways = Callable[[Any, list[list[Any]], list[int]], list[Any]]


def _torch(way: Ways) -> Callable[[MeanPayload, int], Work]:
    def prepare(payload: MeanPayload, threads: int) -> Work:
        import torch

        torch.set_num_threads(threads)
        names = list(payload.updates[0])
        tensors = [[torch.from_numpy(update[name]) for name in names] for update in payload.updates]

        def call() -> Mapping[str, Any]:
            totals = way(torch, tensors, list(payload.weights))
            return {name: total.numpy() for name, total in zip(names, totals, strict=True)}

        return Work(call, payload.reference.rounded_on_the_way)

    return prepare


def _add_(torch: Any, updates: list[list[Any]], weights: list[int]) -> list[Any]:
    totals = [torch.zeros_like(tensor) for tensor in updates[0]]
    for weight, update in zip(weights, updates, strict=True):
        for total, tensor in zip(totals, update, strict=True):
            total.add_(tensor, alpha=weight)
    return [total.div_(sum(weights)) for total in totals]


def _foreach(torch: Any, updates: list[list[Any]], weights: list[int]) -> list[Any]:
    totals = [torch.zeros_like(tensor) for tensor in updates[0]]
    for weight, update in zip(weights, updates, strict=True):
        torch._foreach_add_(totals, update, alpha=weight)
    torch._foreach_div_(totals, float(sum(weights)))
    return totals


MEANS = (
    Contender("NumPy in place", _in_place, host="numpy"),
    Contender("np.average", _average, host="numpy", memory=8.0),
    Contender("torch add_", _torch(_add_), host="torch", threads=True),
    Contender("torch _foreach_add_", _torch(_foreach), host="torch", threads=True),
)
