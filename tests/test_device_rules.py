"""Robust rules on devices have the bits of those on the CPU, whatever the device does in which
order, and a device that fails gives no result and keeps no memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from support.devices import every_device, on_device, small_windows
from veilsum import Aggregator, ModelLayout, _native, encode, rules
from veilsum.errors import ConfigError, DeviceError

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


@every_device
@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("count", [11, 16, 17, 40])
def test_every_rule_and_pre_step_has_the_bits_of_the_cpu(
    backend: str, kind: str, count: int
) -> None:
    layout = LAYOUTS[kind]
    updates = updates_of(layout, count)

    on_device = digests(filled(layout, updates, backend), EVERY_RULE)

    assert on_device == digests(filled(layout, updates, "cpu"), EVERY_RULE)


@every_device
@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_inner_products_have_the_bits_of_the_cpu_over_several_ranges(
    backend: str, kind: str
) -> None:
    dtype = NUMPY[kind]
    layout = ModelLayout(_native.Layout([("w", kind, (2 * 65536 + 5000,))]))
    rng = np.random.default_rng(1)
    updates = [{"w": rng.normal(size=2 * 65536 + 5000).astype(dtype)} for _ in range(3)]
    center = [rng.normal(size=2 * 65536 + 5000).astype(dtype)]
    grams = {
        (name, tiles): _native.UpdateSnapshot(filled(layout, updates, name)._native).gram(
            center=center
        )
        for name, tiles in ((backend, 256), ("cpu", 256))
    }
    expected = grams["cpu", 256]

    assert grams[backend, 256].tobytes() == expected.tobytes()
    for tiles in (1, 3, 16, 20):
        with small_windows(tiles):
            snapshot = _native.UpdateSnapshot(filled(layout, updates, backend)._native)
            assert snapshot.gram(center=center).tobytes() == expected.tobytes(), tiles


SOME_RULES = {
    "median": rules.CoordinateMedian(),
    "krum": rules.Krum(byzantine=1),
    "meamed": rules.Meamed(byzantine=2),
    "clipped": rules.NormClipping(max_norm=3.0),
    "bucketed trimmed": [
        rules.Bucketing(size=2, seed=3),
        rules.NearestNeighborMixing(byzantine=1),
        rules.TrimmedMean(trim=1),
    ],
}


@every_device
@pytest.mark.parametrize("codec", ["f32", "f16", "int8", "int4", "sign", "topk", "eden2"])
def test_encoded_updates_give_the_bits_of_the_cpu(backend: str, codec: str) -> None:
    layout = ModelLayout(_native.Layout([("w", "f32", (9000,)), ("v", "f16", (100,))]))
    rng = np.random.default_rng(5)
    updates: list[Any] = []
    for _ in range(7):
        arrays = {"w": rng.normal(size=9000).astype("f4"), "v": rng.normal(size=100).astype("f2")}
        options = {"density": 0.1} if codec == "topk" else {}
        updates.append(encode(arrays, codec=codec, layout=layout, seed=2, **options))

    on_device = digests(filled(layout, updates, backend), SOME_RULES)

    assert on_device == digests(filled(layout, updates, "cpu"), SOME_RULES)


@every_device
def test_launch_shapes_windows_and_orders_of_the_device_do_not_show(backend: str) -> None:
    layout = LAYOUTS["f64"]
    updates = updates_of(layout, 40)
    expected = digests(filled(layout, updates, "cpu"), SOME_RULES)
    for seed, blocks, threads, tiles in ((1, 1, 32, 1), (2, 3, 96, 256), (3, 7, 256, 1)):
        _native.use_emulator(seed=seed)
        _native.use_launch_shape(blocks=blocks, threads=threads)
        with small_windows(tiles):
            assert digests(filled(layout, updates, backend), SOME_RULES) == expected


@every_device
def test_more_rows_than_shared_memory_holds_are_sorted_in_device_memory(backend: str) -> None:
    layout = ModelLayout(_native.Layout([("w", "f32", (300,))]))
    updates = updates_of(layout, 300)  # 512 sorted rows of a piece: 512 KiB

    on_device = digests(filled(layout, updates, backend), ORDER)

    assert on_device == digests(filled(layout, updates, "cpu"), ORDER)


@every_device
@pytest.mark.parametrize("rule", ["median", "krum", "bucketed trimmed"])
def test_arrays_that_were_changed_after_they_were_added_are_refused(
    backend: str, rule: str
) -> None:
    layout = LAYOUTS["f32"]
    updates = updates_of(layout, 5)
    aggregator = filled(layout, updates, backend, copy=False)
    updates[3]["w"][4700] = np.inf

    with pytest.raises(ConfigError, match="changed"):
        aggregator.finish(rule=SOME_RULES[rule])


def finished_on_lost(aggregator: Aggregator, rule: Any, call: int) -> str:
    """The digest; or "" if the device was lost on the way."""
    _native.use_emulator(lost_at_call=call)
    try:
        return aggregator.finish(rule=rule).digest
    except DeviceError as error:
        if "lost" not in str(error):
            raise
        return ""
    finally:
        _native.use_emulator()


@pytest.mark.parametrize("name", SOME_RULES)
def test_a_device_that_is_lost_at_any_call_gives_no_result_and_keeps_no_memory(name: str) -> None:
    layout = LAYOUTS["mixed"]
    rule = SOME_RULES[name]
    aggregator = filled(layout, updates_of(layout, 8), "emu")
    _native.use_emulator()
    with small_windows(1):
        expected = aggregator.finish(rule=rule).digest
        calls = _native.emulator_calls()
        found = {}
        for lost in range(1, calls + 1):
            found[lost] = finished_on_lost(aggregator, rule, lost)
            assert _native.emulator_bytes() == 0, lost

    # Only calls that end streams come when the result is there.
    given = [lost for lost, digest in found.items() if digest]
    assert {found[lost] for lost in given} <= {expected}
    assert min(given, default=calls) > calls - 4


@every_device
@pytest.mark.parametrize("kind", LAYOUTS)
def test_every_rule_takes_updates_that_lie_in_device_memory(backend: str, kind: str) -> None:
    layout = LAYOUTS[kind]
    updates = updates_of(layout, 11)
    moved = [on_device(update, backend, layout) for update in updates]
    resident = filled(layout, moved, backend, copy=False)
    wanted = EVERY_RULE | {"median": rules.CoordinateMedian()}

    assert digests(resident, wanted) == digests(filled(layout, updates, "cpu"), wanted)
