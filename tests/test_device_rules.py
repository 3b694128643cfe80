"""Robust rules on devices have the bits of those on the CPU, whatever the device does in which
order, and a device that fails gives no result and keeps no memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from support.devices import every_device, on_device, small_windows
from support.every_rule import EVERY_RULE
from veilsum import Aggregator, ModelLayout, _native, decode, encode, rules
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


HADAMARD = {"clip": 4.0, "hadamard": 256, "overrange": "clip"}
KEPT = {"subsample": 20 / 64, "subsample_seed": 7, "chunk_coordinates": 4096}
ENCODED: list[tuple[str, dict[str, Any]]] = [
    ("f32", {}),
    ("f16", {}),
    ("bf16", {}),
    ("int8", {}),
    ("int8/b256/f16", {}),
    ("int4", {}),
    ("nf4", {}),
    ("fp4", {}),
    ("fp8_e4m3", {}),
    ("fp8_e5m2/raw", {}),
    ("sign", {}),
    ("sign/b1024", {}),
    ("topk", {"density": 0.1}),
    ("topk", {"density": 0.02, "values": "f16"}),
    ("eden1", {}),
    ("eden4", {}),
    ("ring9", {"clip": 4.0}),
    ("ring40", HADAMARD),
    ("ring9", {"clip": [4.0, 2.0, 3.0], "scales": "tensor"}),
    ("f32", KEPT),
    ("bf16", KEPT),
    ("fp4/f32", KEPT),
    ("ring5", {"clip": 4.0, **KEPT}),
]
every_encoding = pytest.mark.parametrize(
    ("codec", "options"), ENCODED, ids=[f"{c}-{'-'.join(o)}" for c, o in ENCODED]
)
# A short last tile, gaps, tensors on blocks of 1024, and tiles, blocks and rotations of zeros.
CODED = [("w", "f32", (5100,)), ("v", "f16", (1000,)), ("z", "f32", (4700,))]
CODED_LAYOUTS = {
    "f32": ModelLayout(_native.Layout(CODED)),
    "f64": ModelLayout(_native.Layout([("w", "f64", (5100,)), *CODED[1:]])),
}


def encoded_updates(layout: ModelLayout, codec: str, options: Any, count: int = 7) -> list[Any]:
    updates = []
    for number in range(count):
        rng = np.random.default_rng(number)
        arrays = {
            name: (np.round(rng.normal(size=size) * 64) / 64).clip(-2, 2).astype(NUMPY[dtype])
            for name, dtype, (size,) in layout.native.tensors
        }
        arrays["z"][600:] = 0
        arrays["w"][::7] = -0.0
        updates.append(encode(arrays, codec=codec, layout=layout, seed=number, **options))
    return updates


@every_device
@pytest.mark.parametrize("kind", CODED_LAYOUTS)
@every_encoding
def test_encoded_updates_give_the_bits_of_the_cpu(
    backend: str, codec: str, options: Any, kind: str
) -> None:
    layout = CODED_LAYOUTS[kind]
    updates = encoded_updates(layout, codec, options)
    with small_windows(2):
        on_device = digests(filled(layout, updates, backend), SOME_RULES)

    assert on_device == digests(filled(layout, updates, "cpu"), SOME_RULES)


@every_device
@pytest.mark.parametrize("kind", CODED_LAYOUTS)
@every_encoding
def test_inner_products_of_encoded_updates_have_the_bits_of_the_cpu(
    backend: str, codec: str, options: Any, kind: str
) -> None:
    layout = CODED_LAYOUTS[kind]
    updates = encoded_updates(layout, codec, options, 3)  # gaps count too
    grams = [
        _native.UpdateSnapshot(filled(layout, updates, name)._native).gram(center=None)
        for name in (backend, "cpu")
    ]

    assert grams[0].tobytes() == grams[1].tobytes()


@every_device
@pytest.mark.parametrize("kind", CODED_LAYOUTS)
@every_encoding
def test_the_median_of_one_encoded_update_is_what_it_decodes_to(
    backend: str, codec: str, options: Any, kind: str
) -> None:
    layout = CODED_LAYOUTS[kind]
    [update] = encoded_updates(layout, codec, options, 1)

    median = filled(layout, [update], backend).finish(rule="median").arrays

    for name, values in decode(update).items():
        assert np.array_equal(median[name], values), name  # but for the signs of zeros


@every_device
def test_updates_of_every_kind_are_looked_at_together(backend: str) -> None:
    layout = CODED_LAYOUTS["f32"]
    encoded = [encoded_updates(layout, codec, options, 1)[0] for codec, options in ENCODED[::3]]
    plain = [
        {name: np.full(size, 0.25 * k, NUMPY[dtype]) for name, dtype, (size,) in CODED}
        for k in (1, 2)
    ]
    moved = [on_device(update, backend, layout) for update in plain]
    # In another order than the forms come in.
    mixed = [moved[0], *encoded, plain[1], moved[1], plain[0]]
    same = [plain[0], *encoded, plain[1], plain[1], plain[0]]
    with small_windows(1):
        found = digests(filled(layout, mixed, backend, copy=False), SOME_RULES)

    assert found == digests(filled(layout, same, "cpu"), SOME_RULES)


# What a kernel is told of a tile of each update and of each tile, and of rows.
TABLE_BYTES = 160


@pytest.mark.parametrize("rule", ["median", "krum"])
@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("f16", {}),
        ("int8", {}),
        ("nf4", {}),
        ("sign", {}),
        ("eden2", {}),
        ("ring9", {"clip": 4.0}),
        ("topk", {"density": 0.02}),
        ("int8", {"subsample": 0.25, "subsample_seed": 7}),
    ],
)
def test_codes_cross_the_bus_as_they_are(codec: str, options: Any, rule: str) -> None:
    layout = ModelLayout(_native.Layout([("w", "f32", (16 * 4096,)), ("z", "f32", (4096,))]))
    updates = encoded_updates(layout, codec, options)
    aggregator = filled(layout, updates, "emu")
    _native.use_emulator()
    aggregator.finish(rule=SOME_RULES[rule])

    codes = sum(update.nbytes for update in updates)
    assert _native.emulator_copied_bytes() < codes + (len(updates) + 1) * 17 * TABLE_BYTES


@pytest.mark.parametrize("rule", ["median", "krum"])
def test_values_in_device_memory_do_not_cross_the_bus(rule: str) -> None:
    layout = LAYOUTS["f32"]
    updates = [on_device(update, "emu", layout) for update in updates_of(layout, 5)]
    aggregator = filled(layout, updates, "emu", copy=False)
    _native.use_emulator()
    aggregator.finish(rule=SOME_RULES[rule])

    assert _native.emulator_copied_bytes() < 4096


@every_device
@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("rule", ["median", "krum", "bucketed trimmed"])
@pytest.mark.parametrize("value", [np.inf, np.nan, 1e5])
def test_arrays_in_device_memory_that_were_changed_are_refused(
    backend: str, kind: str, rule: str, value: float
) -> None:
    layout = LAYOUTS[kind]
    updates = [
        {name: np.clip(array, -9, 9) for name, array in update_of(layout, number).items()}
        for number in range(5)
    ]
    moved = [on_device(update, backend, layout) for update in updates]
    aggregator = filled(layout, moved, backend, copy=False)
    last = list(updates[3])[-1]
    updates[3][last][-1] = value
    changed = on_device(updates[3], backend, layout)
    _native.overwrite_device_array(moved[3][last], changed[last])

    with pytest.raises(ConfigError, match="changed"):
        aggregator.finish(rule=SOME_RULES[rule])


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

    assert digests(resident, EVERY_RULE) == digests(filled(layout, updates, "cpu"), EVERY_RULE)
