"""What devices decode themselves: sums of packed updates have the bits of the CPU's, and one update
alone comes out as what decode() makes of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import veilsum
from support.codec_options import SUBSAMPLED, every_codec, required_options
from support.devices import every_device, results_of_losses
from veilsum import Aggregator, ModelLayout, _native, encode
from veilsum.arrays import round_to_bfloat16, widen_bfloat16
from veilsum.errors import ConfigError

Update = Any
WINDOW_BYTES = 1 << 22

# Ends of tensors, gaps and short last tiles around every size of a rotation block.
LAYOUTS = {
    "gaps": [
        ("a", "f32", (5000,)),
        ("b", "f16", (77,)),
        ("c", "bf16", (8200,)),
        ("d", "f32", (1,)),
    ],
    "tiny": [("a", "f32", (3,))],
    "64": [("a", "f32", (64,)), ("b", "f32", (65,)), ("c", "f32", (63,))],
    "256": [("a", "f32", (255,)), ("b", "f32", (257,))],
    "1024": [("a", "f32", (1023,)), ("b", "f32", (1025 + 256,))],
    "4096": [("a", "f32", (4095,)), ("b", "f32", (4097,)), ("c", "f32", (3 * 1024 + 3 * 256,))],
    "wide": [("a", "f64", (4100,)), ("b", "f32", (70,))],
}
every_layout = pytest.mark.parametrize("shape", LAYOUTS)


def layout_of(shape: str) -> ModelLayout:
    return ModelLayout(_native.Layout(LAYOUTS[shape]))


def as_dtype(values: np.ndarray[Any, Any], dtype: str) -> np.ndarray[Any, Any]:
    if dtype == "bf16":
        return widen_bfloat16(round_to_bfloat16(values.astype(np.float32)))
    return values.astype({"f16": "f2", "f32": "f4", "f64": "f8"}[dtype])


def arrays_of(number: int, layout: ModelLayout) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(number)
    return {
        name: as_dtype(np.clip(rng.normal(size=shape) / 8, -0.9, 0.9), dtype)
        for name, dtype, shape in layout.native.tensors
    }


def updates_of(codec: str, layout: ModelLayout, count: int = 3, **options: Any) -> list[Update]:
    return [
        encode(arrays_of(number, layout), codec=codec, layout=layout, seed=number, **options)
        for number in range(count)
    ]


def digest_of(updates: list[Update], layout: ModelLayout, backend: str) -> str:
    mean = Aggregator(layout, backend=backend, threads=2)
    for number, update in enumerate(updates):
        mean.add(update, weight=1 + 3**number, site=f"s{number}")
    return mean.finish().digest


def tables(layout: ModelLayout) -> list[dict[str, Any]]:
    """Every way of scaling a ring codec: one scale, one per tensor, one per block."""
    tensors = len(layout.native.tensors)
    coordinates = layout.native.group_size(1)
    return [
        {"clip": 1.0},
        {"clip": [1.0 + number / 3 for number in range(tensors)], "scales": "tensor"},
        *(
            {
                "clip": [1.0 + number / 7 for number in range(-(-coordinates // block))],
                "scales": "block",
                "block": block,
            }
            for block in (256, 1024, 4096)
        ),
    ]


@every_device
@every_layout
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_eden_updates_sum_as_on_the_cpu(bits: int, shape: str, backend: str) -> None:
    layout = layout_of(shape)
    updates = updates_of(f"eden{bits}", layout)
    _native.use_pass_memory(window_bytes=WINDOW_BYTES, window_tiles=2)

    assert digest_of(updates, layout, backend) == digest_of(updates, layout, "cpu")


@every_device
@pytest.mark.parametrize("bits", [*range(2, 65)])
def test_ring_words_of_every_width_sum_as_on_the_cpu(bits: int, backend: str) -> None:
    layout = layout_of("gaps")
    updates = updates_of(f"ring{bits}", layout, clip=1.0)

    assert digest_of(updates, layout, backend) == digest_of(updates, layout, "cpu")


@every_device
@every_layout
@pytest.mark.parametrize("hadamard", [0, 64, 256, 1024, 4096])
def test_ring_updates_with_every_rotation_and_table_sum_as_on_the_cpu(
    hadamard: int, shape: str, backend: str
) -> None:
    layout = layout_of(shape)
    _native.use_pass_memory(window_bytes=WINDOW_BYTES, window_tiles=2)
    for options in tables(layout):
        rotation = {"hadamard": hadamard, "overrange": "clip"} if hadamard else {}
        updates = updates_of("ring11", layout, **options, **rotation)
        assert digest_of(updates, layout, backend) == digest_of(updates, layout, "cpu")


@every_device
@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("eden3", {}),
        ("ring5", {"clip": 1.0}),
        ("ring33", {"clip": 1.0, "hadamard": 1024, "overrange": "clip"}),
    ],
)
def test_one_update_alone_comes_out_as_it_is_decoded(
    codec: str, options: dict[str, Any], backend: str
) -> None:
    layout = layout_of("4096")
    [update] = updates_of(codec, layout, 1, **options)
    mean = Aggregator(layout, backend=backend)
    mean.add(update, weight=1, site="s")

    found = mean.finish().arrays
    for name, array in veilsum.decode(update).items():
        # Sums are exact to 2^-61 of the largest value of a tile and more.
        assert np.allclose(found[name], array, rtol=2**-24, atol=2.0**-55)


@every_device
@pytest.mark.parametrize("empty", [0, 1])
def test_blocks_of_zeros_have_no_scale_and_stay_zeros(empty: int, backend: str) -> None:
    layout = layout_of("4096")
    arrays = arrays_of(0, layout)
    arrays[("a", "c")[empty]][:] = 0
    updates = [encode(arrays, codec="eden2", layout=layout, seed=1)]

    assert digest_of(updates, layout, backend) == digest_of(updates, layout, "cpu")


@every_device
def test_noise_in_gaps_is_no_value_beyond_the_screened_ones(backend: str) -> None:
    layout = layout_of("tiny")  # 3 values and 61 coordinates of nobody

    # In one of these it is larger than all three.
    for update in updates_of("ring2", layout, 40, clip=1.0, hadamard=64, overrange="clip"):
        assert digest_of([update], layout, backend) == digest_of([update], layout, "cpu")


# --- topk ------------------------------------------------------------------------------------


def sparse_updates(layout: ModelLayout, count: int = 3, **options: Any) -> list[Update]:
    """Most of what is kept lies in one tile, some tiles keep nothing, and tiles begin with either
    of the two indices that share three bytes."""
    updates = []
    for number in range(count):
        arrays = arrays_of(number, layout)
        for array in arrays.values():
            array.reshape(-1)[300:4700] *= 0.001
        updates.append(encode(arrays, codec="topk", layout=layout, **options))
    return updates


@every_device
@every_layout
@pytest.mark.parametrize("density", [0.5, 0.1, 0.001])
@pytest.mark.parametrize("values", ["f32", "f16"])
def test_topk_updates_sum_as_on_the_cpu(
    values: str, density: float, shape: str, backend: str
) -> None:
    layout = layout_of(shape)
    _native.use_pass_memory(window_bytes=WINDOW_BYTES, window_tiles=2)
    for chunk in (4096, 1 << 20):
        updates = sparse_updates(layout, density=density, values=values, chunk_coordinates=chunk)
        assert digest_of(updates, layout, backend) == digest_of(updates, layout, "cpu")


# --- subsamples --------------------------------------------------------------------------------

SUBSAMPLED_HERE = {codec: required_options(codec, 1.0) for codec in (*SUBSAMPLED, "ring64")}


def subsampled_updates(codec: str, layout: ModelLayout, keep: int, **options: Any) -> list[Update]:
    return [
        encode(
            arrays_of(number, layout),
            codec=codec,
            layout=layout,
            seed=number,
            subsample=keep / 64,
            subsample_seed=number,
            **SUBSAMPLED_HERE[codec],
            **options,
        )
        for number in range(3)
    ]


def test_every_codec_that_can_be_subsampled_is_tried() -> None:
    layout = layout_of("tiny")
    families = {codec.partition("/")[0] for codec in SUBSAMPLED_HERE} - {
        "ring5",
        "ring22",
        "ring64",
    }
    for codec in every_codec():
        if codec == "i64" or codec.partition("/")[0] in families or codec.startswith("ring"):
            continue
        with pytest.raises(ConfigError, match="cannot be subsampled"):
            encode(
                arrays_of(0, layout), codec=codec, layout=layout, subsample=0.5, subsample_seed=1
            )


@every_device
@pytest.mark.parametrize("shape", ["gaps", "4096", "wide"])
@pytest.mark.parametrize("codec", SUBSAMPLED_HERE)
def test_subsampled_updates_sum_as_on_the_cpu(codec: str, shape: str, backend: str) -> None:
    layout = layout_of(shape)
    _native.use_pass_memory(window_bytes=WINDOW_BYTES, window_tiles=2)
    for keep, rescale in ((1, True), (44, False), (63, True)):
        # Kept blocks of a tile lie in two chunks.
        updates = subsampled_updates(codec, layout, keep, rescale=rescale, chunk_coordinates=4096)
        assert digest_of(updates, layout, backend) == digest_of(updates, layout, "cpu")


def mixed(layout: ModelLayout) -> list[Update]:
    return [
        *updates_of("eden4", layout, 2),
        *updates_of("ring7", layout, 2, clip=1.0, hadamard=4096, overrange="clip"),
        *updates_of("ring20", layout, 1, clip=1.0),
        *updates_of("int8", layout, 1),
        *sparse_updates(layout, 2, density=0.1),
        *subsampled_updates("fp4/f32", layout, 20)[:2],
    ]


@every_device
def test_neither_order_nor_launch_shape_nor_window_shows(backend: str) -> None:
    layout = layout_of("gaps")
    updates = mixed(layout)
    expected = digest_of(updates, layout, "cpu")

    for seed, blocks, threads, tiles in [(1, 1, 32, 1), (2, 2, 96, 2), (3, 3, 256, 256)]:
        _native.use_emulator(seed=seed)
        _native.use_launch_shape(blocks=blocks, threads=threads)
        _native.use_pass_memory(window_bytes=WINDOW_BYTES, window_tiles=tiles)
        assert digest_of(updates, layout, backend) == expected


# Beside codes and scales: what a kernel is told of a tile of each update, and of each tile.
TABLE_BYTES = 160


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("eden1", {}),
        ("ring5", {"clip": 1.0}),
        ("topk", {"density": 0.02}),
        ("topk", {"density": 0.1, "values": "f16"}),
        ("int8", {"subsample": 0.25, "subsample_seed": 1}),
        ("nf4", {"subsample": 8 / 64, "subsample_seed": 2}),
        ("f32", {"subsample": 4 / 64, "subsample_seed": 3}),
        ("ring3", {"clip": 1.0, "subsample": 0.5, "subsample_seed": 4}),
    ],
)
def test_codes_cross_the_bus_as_they_are(codec: str, options: dict[str, Any]) -> None:
    layout = ModelLayout(_native.Layout([("a", "f32", (8 * 4096,))]))
    updates = updates_of(codec, layout, 8, **options)
    _native.use_emulator()
    digest_of(updates, layout, "emu")

    codes = sum(update.nbytes for update in updates)
    assert _native.emulator_copied_bytes() < codes + (len(updates) + 4) * 8 * TABLE_BYTES


def test_a_device_that_is_lost_on_the_way_gives_no_sum_and_keeps_nothing() -> None:
    layout = layout_of("gaps")
    updates = mixed(layout)
    expected = digest_of(updates, layout, "cpu")
    _native.use_pass_memory(window_bytes=WINDOW_BYTES, window_tiles=2)

    found = results_of_losses(lambda: digest_of(updates, layout, "emu"), step=3)

    done = found.index(expected)
    assert found == [None] * done + [expected] * (len(found) - done)
    assert done > len(found) // 2
