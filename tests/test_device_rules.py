"""Robust rules on devices have the bits of those on the CPU, whatever the device does in which
order, and a device that fails gives no result and keeps no memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from support.devices import every_device, reset_devices
from veilsum import Aggregator, ModelLayout, _native, rules

Update = Mapping[str, np.ndarray[Any, Any]]

# Tensors that end anywhere in a piece, and integers, which stay on the host.
NARROW = [("a", "f32", (4500,)), ("h", "f16", (333,)), ("n", "i32", (5,)), ("b", "f32", (70,))]
WIDE = [*NARROW, ("d", "f64", (300,))]
LAYOUTS = {
    "f32": ModelLayout(_native.Layout([("w", "f32", (5000,))])),
    "mixed": ModelLayout(_native.Layout(NARROW)),
    "f64": ModelLayout(_native.Layout(WIDE)),
}
NUMPY = {"f16": "f2", "f32": "f4", "f64": "f8", "i32": "i4"}

ORDER: dict[str, Any] = {
    "median": rules.CoordinateMedian(),
    "trimmed": rules.TrimmedMean(trim=1),
    "trimmed by a third": rules.TrimmedMean(trim=0.34),
    "meamed": rules.Meamed(byzantine=1),
}
# Of at least eleven updates.
EVERY_RULE: dict[str, Any] = {
    "krum": rules.Krum(byzantine=2),
    "multi-krum": rules.MultiKrum(byzantine=2, select=5),
    "bulyan": rules.Bulyan(byzantine=2),
    "geometric median": rules.GeometricMedian(iterations=5),
    "centred clipping": rules.CenteredClipping(radius=30.0, iterations=3),
    "norm clipping": rules.NormClipping(max_norm=40.0),
    "norm filter": rules.NormFilter(multiplier=1.0),
    "mixed median": [rules.NearestNeighborMixing(byzantine=2), rules.CoordinateMedian()],
    "bucketed krum": [rules.Bucketing(size=2, seed=7), rules.Krum(byzantine=1)],
    "bucketed mixed trimmed": [
        rules.Bucketing(size=2, seed=b"seed"),
        rules.NearestNeighborMixing(byzantine=1),
        rules.TrimmedMean(trim=1),
    ],
    "bucketed meamed": [rules.Bucketing(size=3, seed=1), rules.Meamed(byzantine=1)],
}


@pytest.fixture(autouse=True)
def _devices_as_they_are() -> Any:
    yield
    reset_devices()


def update_of(layout: ModelLayout, number: int) -> Update:
    """Values of every size: ties, zeros of both signs, subnormal and huge ones among them."""
    rng = np.random.default_rng(number)
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for name, dtype, (size,) in layout.native.tensors:
        if dtype == "i32":
            arrays[name] = rng.integers(-1000, 1000, size=size).astype("i4")
            continue
        values = np.round(rng.normal(size=size) * 64) / 64  # many ties
        values[::7] = rng.normal(size=values[::7].size)
        values[1::11] = rng.choice([0.0, -0.0], size=values[1::11].size)
        smallest, largest = {"f16": (-24, 15), "f32": (-149, 127), "f64": (-1074, 1023)}[dtype]
        values[2:40:5] = (2.0**smallest) * rng.integers(-5, 6, size=values[2:40:5].size)
        values[3:40:5] = (2.0**largest) * rng.uniform(-1, 1, size=values[3:40:5].size)
        arrays[name] = values.astype(NUMPY[dtype])
    return arrays


def updates_of(layout: ModelLayout, count: int) -> list[Update]:
    return [update_of(layout, number) for number in range(count)]


def filled(
    layout: ModelLayout, updates: list[Any], backend: str, *, copy: bool = True
) -> Aggregator:
    aggregator = Aggregator(layout, backend=backend, threads=2)
    for number, update in enumerate(updates):
        aggregator.add(update, weight=1, site=f"site {number:03}", copy=copy)
    return aggregator


def digests(aggregator: Aggregator, wanted: Mapping[str, Any]) -> dict[str, str]:
    return {name: aggregator.finish(rule=rule).digest for name, rule in wanted.items()}


@every_device
@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("count", [3, 4, 5, 8, 9, 16, 17, 31, 32, 33, 64, 65, 70])
def test_rules_of_each_coordinate_have_the_bits_of_the_cpu(
    backend: str, kind: str, count: int
) -> None:
    layout = LAYOUTS[kind]
    updates = updates_of(layout, count)

    on_device = digests(filled(layout, updates, backend), ORDER)

    assert on_device == digests(filled(layout, updates, "cpu"), ORDER)


@every_device
def test_the_median_of_any_few_updates_has_the_bits_of_the_cpu(backend: str) -> None:
    layout = LAYOUTS["f64"]
    updates = updates_of(layout, 32)
    for count in range(1, 33):
        medians = {
            name: filled(layout, updates[:count], name).finish(rule="median").digest
            for name in (backend, "cpu")
        }
        assert medians[backend] == medians["cpu"], count
