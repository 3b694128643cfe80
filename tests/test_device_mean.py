"""The mean on devices has the bits of the mean on the CPU, whatever the device does in which order,
and a device that fails never gives a sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import veilsum
from reference import codecs as reference_codecs
from reference import mean as reference
from support.codec_options import every_codec, required_options
from support.devices import every_device
from veilsum import Aggregator, ModelLayout, _native, encode
from veilsum.arrays import round_to_bfloat16, widen_bfloat16
from veilsum.errors import ConfigError, DeviceError
from veilsum.optimizers import FedAdam

Arrays = Mapping[str, np.ndarray[Any, Any]]

# Tensors of three widths that end anywhere in a tile, counters, and a last tile that is short.
TENSORS = [
    ("a", "f32", (5000,)),
    ("b", "f16", (77,)),
    ("steps", "i64", (3,)),
    ("c", "bf16", (8200,)),
    ("d", "f32", (13,)),
]
LAYOUT = ModelLayout(_native.Layout(TENSORS))
WIDE = ModelLayout(_native.Layout([*TENSORS, ("e", "f64", (4101,))]))


def values_of(number: int, layout: ModelLayout = LAYOUT) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(number)
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for name, dtype, shape in layout.native.tensors:
        values = rng.normal(size=shape) * 2.0 ** rng.integers(-20, 3)
        if dtype == "i64":
            arrays[name] = rng.integers(-1000, 1000, size=shape)
        elif dtype == "bf16":
            arrays[name] = widen_bfloat16(round_to_bfloat16(values.astype(np.float32)))
        else:
            arrays[name] = values.astype({"f16": "f2", "f32": "f4", "f64": "f8"}[dtype])
    return arrays


def digest_of(
    updates: Sequence[Any], backend: str, layout: ModelLayout = LAYOUT, **options: Any
) -> str:
    mean = Aggregator(layout, backend=backend, threads=2)
    for number, update in enumerate(updates):
        mean.add(update, weight=1 + 3**number % 1009, site=f"s{number}", **options)
    return mean.finish().digest


def encoded(codec: str, count: int, layout: ModelLayout = LAYOUT) -> list[Any]:
    updates = [values_of(number, layout) for number in range(count)]
    largest = max(float(np.abs(array).max()) for update in updates for array in update.values())
    return [
        encode(update, codec=codec, layout=layout, seed=5, **required_options(codec, largest))
        for update in updates
    ]


@every_device
@pytest.mark.parametrize("codec", veilsum.codecs())
def test_every_codec_gives_the_bits_of_the_cpu(codec: str, backend: str) -> None:
    updates = encoded(codec, 4)
    _native.use_pass_memory(window_bytes=1 << 20, window_tiles=2)
    assert digest_of(updates, backend) == digest_of(updates, "cpu")


EVERY_FORM = [name for name in every_codec() if name not in ("i64", "ring1")]


# Of one tensor, so that blocks of every size are allowed.
@every_device
@pytest.mark.parametrize("codec", EVERY_FORM)
def test_every_block_and_scale_format_gives_the_bits_of_the_cpu(codec: str, backend: str) -> None:
    layout = ModelLayout(_native.Layout([("w", "f32", (4096 * 2 + 1000,))]))
    rng = np.random.default_rng(7)
    arrays = [{"w": rng.normal(size=9192).astype(np.float32)} for _ in range(3)]
    updates = [
        encode(update, codec=codec, layout=layout, **required_options(codec, 10.0))
        for update in arrays
    ]
    assert digest_of(updates, backend, layout) == digest_of(updates, "cpu", layout)


@every_device
@pytest.mark.parametrize("layout", [LAYOUT, WIDE], ids=["f32", "f64"])
def test_a_set_of_all_kinds_of_updates_gives_the_bits_of_the_cpu(
    layout: ModelLayout, backend: str
) -> None:
    codecs = ["f32", "f16", "int8", "int4", "fp8_e4m3", "sign", "eden2", "ring20", "topk", "bf16"]
    updates: list[Any] = [values_of(20, layout)]
    for codec in codecs:
        updates += encoded(codec, 2, layout)
    updates.append(
        encode(values_of(3, layout), codec="int8", layout=layout, subsample=0.25, subsample_seed=1)
    )
    for tiles in (1, 3, 256):
        _native.use_pass_memory(window_bytes=1 << 30, window_tiles=tiles)
        assert digest_of(updates, backend, layout) == digest_of(updates, "cpu", layout)


@every_device
def test_arrays_that_are_kept_borrowed_and_spooled_give_the_bits_of_the_cpu(
    backend: str, tmp_path: Any
) -> None:
    updates = [values_of(number) for number in range(3)]
    expected = digest_of(updates, "cpu")
    assert digest_of(updates, backend) == expected
    assert digest_of(updates, backend, copy=False) == expected
    spooled = Aggregator(LAYOUT, backend=backend, spool=tmp_path)
    for number, update in enumerate(updates):
        spooled.add(update, weight=1 + 3**number % 1009, site=f"s{number}")
    assert spooled.finish().digest == expected


@every_device
def test_the_mean_of_a_device_is_the_mean_in_fractions(backend: str) -> None:
    tensors = [("w", "f32", (4500,)), ("v", "f16", (70,))]
    layout = ModelLayout(_native.Layout(tensors))
    rng = np.random.default_rng(3)
    updates = [
        {
            "w": (rng.normal(size=4500) * 2.0**-130).astype(np.float32),  # subnormal means
            "v": rng.normal(size=70).astype(np.float16) * np.float16(2.0**-14),
        }
        for _ in range(3)
    ]
    weights = [1, 2, 2**31 - 1]
    grids = [
        reference_codecs.grid(tensors, [u[name].astype(float).tolist() for name in ("w", "v")], 1)
        for u in updates
    ]
    spans, size = reference_codecs.offsets(tensors, 1)
    dtypes = ["f64"] * size
    for number, first, elements in spans:
        dtypes[first : first + elements] = [tensors[number][1]] * elements

    mean = Aggregator(layout, backend=backend)
    for number, (weight, update) in enumerate(zip(weights, updates, strict=True)):
        mean.add(update, weight=weight, site=str(number))
    arrays = mean.finish().arrays

    found = reference_codecs.grid(
        tensors, [arrays[n].astype(float).tolist() for n in ("w", "v")], 1
    )
    assert found == reference.mean(list(zip(weights, grids, strict=True)), dtypes)


@st.composite
def _columns(draw: st.DrawFn) -> tuple[str, list[tuple[int, list[float]]]]:
    dtype = draw(st.sampled_from(["f16", "f32", "f64"]))
    width = {"f16": 16, "f32": 32, "f64": 64}[dtype]
    size = draw(st.integers(1, 5))
    value = st.floats(width=width, allow_nan=False, allow_infinity=False)
    column = st.tuples(st.integers(1, 2**31 - 1), st.lists(value, min_size=size, max_size=size))
    return dtype, draw(st.lists(column, min_size=1, max_size=4))


@given(_columns())
def test_any_values_and_weights_average_on_a_device_as_on_the_cpu(
    columns: tuple[str, list[tuple[int, list[float]]]],
) -> None:
    dtype, updates = columns
    layout = ModelLayout(_native.Layout([("w", dtype, (len(updates[0][1]),))]))
    digests = []
    for backend in ("cpu", "emu"):
        mean = Aggregator(layout, backend=backend, threads=1)
        for number, (weight, values) in enumerate(updates):
            array = np.array(values, {"f16": "f2", "f32": "f4", "f64": "f8"}[dtype])
            mean.add({"w": array}, weight=weight, site=str(number))
        digests.append(mean.finish().digest)
    assert digests[0] == digests[1]


@every_device
def test_gains_and_the_server_step_give_the_bits_of_the_cpu(backend: str) -> None:
    updates = [values_of(number, WIDE) for number in range(3)]
    digests = []
    for where in ("cpu", backend):
        mean = Aggregator(WIDE, backend=where)
        for number, update in enumerate(updates):
            mean.add(update, weight=number + 1, site=f"s{number}", gain=0.3)
        digests.append(mean.finish_step(values_of(9, WIDE), FedAdam().start(WIDE)).digest)
    assert digests[0] == digests[1]


SHAPES = [(0, 0), (1, 32), (3, 96), (1000, 256)]


@every_device
@pytest.mark.parametrize(("blocks", "threads"), SHAPES)
def test_the_shape_of_a_launch_does_not_show(blocks: int, threads: int, backend: str) -> None:
    updates = [values_of(0), *encoded("int8", 2), *encoded("nf4", 2)]
    _native.use_launch_shape(blocks=blocks, threads=threads)
    assert digest_of(updates, backend) == digest_of(updates, "cpu")


@pytest.mark.parametrize("seed", range(1, 9))
def test_the_order_of_threads_blocks_and_streams_does_not_show(seed: int) -> None:
    updates = [values_of(0), *encoded("int8", 2), *encoded("sign", 2)]
    _native.use_pass_memory(window_bytes=1 << 20, window_tiles=1)
    _native.use_emulator(seed=seed)
    assert digest_of(updates, "emu") == digest_of(updates, "cpu")


@every_device
@pytest.mark.parametrize("window_bytes", [1, 20_000, 100_000])
def test_a_set_that_is_larger_than_the_memory_of_a_pass_is_summed_in_parts(
    window_bytes: int, backend: str
) -> None:
    updates = [values_of(number) for number in range(7)] + encoded("int8", 5)
    _native.use_pass_memory(window_bytes=window_bytes, window_tiles=256)
    assert digest_of(updates, backend) == digest_of(updates, "cpu")


def test_the_memory_of_a_pass_does_not_grow_with_the_model() -> None:
    _native.use_pass_memory(window_bytes=1 << 20, window_tiles=4)
    _native.use_emulator(memory_bytes=4 << 20)
    layout = ModelLayout(_native.Layout([("w", "f32", (4 << 20,))]))
    mean = Aggregator(layout, backend="emu", threads=2)
    for number in range(2):
        mean.add({"w": np.full(4 << 20, number, np.float32)}, weight=1, site=str(number))
    assert (mean.finish().arrays["w"] == 0.5).all()


@every_device
@pytest.mark.parametrize("layout", [LAYOUT, WIDE], ids=["f32", "f64"])
@pytest.mark.parametrize("changed", [np.inf, np.nan, 1e9])
def test_borrowed_arrays_that_were_changed_are_refused(
    changed: float, layout: ModelLayout, backend: str
) -> None:
    mean = Aggregator(layout, backend=backend)
    update = values_of(1, layout)
    mean.add(update, weight=1, site="a", copy=False)
    mean.add(values_of(2, layout), weight=1, site="b")
    update["a"][4999] = changed
    with pytest.raises(ConfigError, match="changed"):
        mean.finish()


def test_devices_are_chosen_by_name_and_never_replaced() -> None:
    updates = [values_of(number) for number in range(2)]
    assert digest_of(updates, "emu:1") == digest_of(updates, "cpu")
    with pytest.raises(DeviceError, match="no device 'emu:2': this machine has 2"):
        Aggregator(LAYOUT, backend="emu:2")
    for name in ("emu:", "emu:x", "emu:01", "emu:-1", "emu:1 ", "gpu", "", "cpu:0"):
        with pytest.raises(ConfigError, match=r"names no device|unknown backend"):
            Aggregator(LAYOUT, backend=name)


def test_a_device_without_enough_memory_says_what_was_needed() -> None:
    mean = Aggregator(LAYOUT, backend="emu")
    mean.add(values_of(0), weight=1, site="a")
    _native.use_emulator(memory_bytes=10_000)
    with pytest.raises(DeviceError, match=r"allocating memory on emu:0 \(\d+ bytes\) failed: out"):
        mean.finish()
    assert _native.emulator_bytes() == 0


def finished_on_lost(mean: Aggregator, call: int) -> str:
    """The digest; or "" if the device was lost on the way."""
    _native.use_emulator(lost_at_call=call)
    try:
        return mean.finish().digest
    except DeviceError as error:
        if "lost" not in str(error):
            raise
        return ""
    finally:
        _native.use_emulator()


def test_a_device_that_is_lost_at_any_call_gives_no_sum_and_keeps_nothing() -> None:
    updates = [values_of(0), *encoded("int8", 2)]
    expected = digest_of(updates, "cpu")
    _native.use_pass_memory(window_bytes=1 << 20, window_tiles=1)
    mean = Aggregator(LAYOUT, backend="emu", threads=2)
    for number, update in enumerate(updates):
        mean.add(update, weight=1 + 3**number % 1009, site=f"s{number}")
    _native.use_emulator()
    mean.finish()
    calls = _native.emulator_calls()

    found = []
    for call in range(1, calls + 2):
        found.append(finished_on_lost(mean, call))
        assert _native.emulator_bytes() == 0
    # Losing it while memory is given back, when everything has been copied, does no harm.
    done = found.index(expected)
    assert found == [""] * done + [expected] * (calls + 1 - done)
    assert done > calls // 2
