"""The exact weighted mean: arrival, the pass over all updates, and both together."""

from __future__ import annotations

import functools
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from harness import Report

from veilsum import Aggregator, ModelLayout, encode
from veilsum.bench import shapes as models

SITES = 12
RESNET = models.resnet50()
WEIGHTS = [100 + 37 * number for number in range(100)]
Arrays = list[np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def resnets() -> list[models.Update]:
    return models.updates(RESNET, SITES)


# --- how others do it ------------------------------------------------------------------


def numpy_in_place(updates: list[models.Update]) -> Arrays:
    """Multiply, add, divide; no temporary is made twice."""
    totals = [np.zeros_like(array) for array in updates[0].values()]
    products = [np.empty_like(array) for array in updates[0].values()]
    for weight, update in zip(WEIGHTS, updates, strict=False):
        for total, product, array in zip(totals, products, update.values(), strict=True):
            np.multiply(array, np.float32(weight), out=product)
            np.add(total, product, out=total)
    for total in totals:
        np.divide(total, np.float32(sum(WEIGHTS[: len(updates)])), out=total)
    return totals


def list_of_arrays(updates: list[models.Update]) -> Arrays:
    """The idiom of Flower's strategies: weigh every list of arrays, then reduce by layer."""
    weighted = [
        [array * weight for array in update.values()]
        for weight, update in zip(WEIGHTS, updates, strict=False)
    ]
    total = sum(WEIGHTS[: len(updates)])
    return [functools.reduce(np.add, layer) / total for layer in zip(*weighted, strict=True)]


def torch_add(torch: Any, updates: list[models.Update]) -> Callable[[], object]:
    tensors = [[torch.from_numpy(array) for array in update.values()] for update in updates]

    def call() -> object:
        totals = [torch.zeros_like(tensor) for tensor in tensors[0]]
        for weight, update in zip(WEIGHTS, tensors, strict=False):
            for total, tensor in zip(totals, update, strict=True):
                total.add_(tensor, alpha=weight)
        for total in totals:
            total.div_(sum(WEIGHTS[: len(updates)]))
        return totals

    return call


# --- ours ----------------------------------------------------------------------------------


def filled(layout: ModelLayout, updates: list[Any], threads: int, *, copy: bool) -> Aggregator:
    mean = Aggregator(layout, threads=threads)
    for number, (weight, update) in enumerate(zip(WEIGHTS, updates, strict=False)):
        mean.add(update, weight=weight, site=f"site-{number}", copy=copy)
    return mean


def layout_of(update: models.Update) -> ModelLayout:
    return ModelLayout.from_arrays(update)


def check(mean: dict[str, Any], updates: list[models.Update]) -> None:
    """A few values of every tensor against fractions."""
    weights = WEIGHTS[: len(updates)]
    for name, array in mean.items():
        for place in {0, array.size // 2, array.size - 1}:
            exact = sum(
                (
                    weight * Fraction(float(update[name].flat[place]))
                    for weight, update in zip(weights, updates, strict=True)
                ),
                Fraction(0),
            ) / sum(weights)
            assert abs(Fraction(float(array.flat[place])) - exact) <= abs(exact) / 2**24


def test_screening_one_update(report: Report, resnets: list[models.Update]) -> None:
    layout, update = layout_of(resnets[0]), resnets[0]

    def ours() -> None:
        Aggregator(layout, threads=1).add(update, weight=1, site="a", copy=False)

    def isfinite_and_max() -> None:
        for array in update.values():
            assert np.isfinite(array).all()
            np.abs(array).max()

    ours()
    report(ours, numpy=isfinite_and_max, size=4 * layout.size, coordinates=layout.size)


def test_the_pass_over_12_f32_updates(
    report: Report, resnets: list[models.Update], torch_one_thread: Any
) -> None:
    layout = layout_of(resnets[0])
    mean = filled(layout, resnets, 1, copy=False)
    check(mean.finish().arrays, resnets)

    report(
        mean._native.finish,
        numpy=lambda: numpy_in_place(resnets),
        torch=torch_add(torch_one_thread, resnets),
        peers={"list of arrays": lambda: list_of_arrays(resnets)},
        size=4 * SITES * layout.size,
        coordinates=SITES * layout.size,
    )


@pytest.mark.parametrize("copy", [False, True], ids=["borrowed", "copied"])
def test_add_and_finish_of_12_f32_updates(
    report: Report, resnets: list[models.Update], torch_one_thread: Any, *, copy: bool
) -> None:
    layout = layout_of(resnets[0])

    def ours() -> dict[str, Any]:
        return filled(layout, resnets, 1, copy=copy).finish().arrays

    check(ours(), resnets)
    report(
        ours,
        numpy=lambda: numpy_in_place(resnets),
        torch=torch_add(torch_one_thread, resnets),
        peers={"list of arrays": lambda: list_of_arrays(resnets)},
        size=4 * SITES * layout.size,
        coordinates=SITES * layout.size,
    )


@pytest.mark.parametrize("sites", [12, 100])
def test_the_pass_over_small_f32_updates(report: Report, sites: int) -> None:
    updates = models.updates(models.small_cnn(), sites)
    layout = layout_of(updates[0])
    mean = filled(layout, updates, 1, copy=False)
    check(mean.finish().arrays, updates)

    report(
        mean._native.finish,
        numpy=lambda: numpy_in_place(updates),
        size=4 * sites * layout.size,
        coordinates=sites * layout.size,
    )


CODED = ["f16", "bf16", "int8", "int4", "nf4", "fp4", "fp8_e4m3", "sign", "ring16", "ring22"]


@pytest.mark.parametrize("codec", CODED)
def test_the_pass_over_12_encoded_updates(
    report: Report, resnets: list[models.Update], codec: str
) -> None:
    layout = layout_of(resnets[0])
    options = {"clip": 32.0} if codec.startswith("ring") else {}
    encoded = [encode(update, codec, layout=layout, **options) for update in resnets]
    mean = filled(layout, encoded, 1, copy=False)
    found, exact = mean.finish().arrays, numpy_in_place(resnets)
    for ours, theirs in zip(found.values(), exact, strict=True):
        assert np.square(ours - theirs).sum() <= 0.5 * np.square(theirs).sum()

    report(
        mean._native.finish,
        numpy=lambda: numpy_in_place(resnets),
        size=sum(len(chunk) for update in encoded for chunk in update.body),
        coordinates=SITES * layout.size,
    )


def test_the_pass_over_12_f32_updates_on_2_threads(
    wall_report: Report, resnets: list[models.Update]
) -> None:
    layout = layout_of(resnets[0])
    one, two = (filled(layout, resnets, threads, copy=False) for threads in (1, 2))
    assert one.finish().digest == two.finish().digest

    wall_report(
        two._native.finish,
        peers={"one thread": one._native.finish},
        size=4 * SITES * layout.size,
        coordinates=SITES * layout.size,
    )
