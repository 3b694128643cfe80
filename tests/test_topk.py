"""topk: which coordinates are kept, the bytes that say so, and what a receiver refuses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import codecs as reference
from reference import mean as reference_mean
from reference import topk
from veilsum import Aggregator, ModelLayout, Streaming, _native, decode, encode
from veilsum.errors import ConfigError, DecodeError

PLAN = bytes(range(32))
CHUNK = 8192
VARIANTS = {
    "topk": (100, "f"),
    "topk/d2": (2, "f"),
    "topk/d10/f16": (10, "e"),
    "topk/d1000": (1000, "f"),
    "topk/d1000/f16": (1000, "e"),
}
SIZES = [1, 63, 64, 100, 4095, 4096, 4097, 8192, 8193, 20_000]


def values_of(size: int) -> np.ndarray:
    """Values with ties, zeros of both signs, and magnitudes from subnormal to large."""
    rng = np.random.default_rng(size)
    values = (rng.normal(size=size) * 2.0 ** rng.integers(-30, 12, size)).astype(np.float32)
    values[rng.random(size) < 0.3] = 0.0
    values[rng.random(size) < 0.1] = -0.0
    ties = rng.random(size) < 0.2
    values[ties] = np.where(rng.random(size) < 0.5, 3.5, -3.5)[ties]
    values[size // 2] = 2.0**-140
    return values


def native_chunks(codec: str, values: np.ndarray, threads: int = 1) -> list[bytes]:
    return _native.encode_chunks(
        _native.Layout([("w", "f32", values.shape)]),
        [values],
        codec=_native.codec_number(codec),
        scale=0.0,
        limit=0.0,
        rounding=None,
        least_error=False,
        plan_digest=PLAN,
        update_id=5,
        chunk_coordinates=CHUNK,
        threads=threads,
    )


def grid_of(values: np.ndarray) -> list[list[float]]:
    """The chunks' coordinates: the group ends on a multiple of 64."""
    padded = values.tolist() + [0.0] * (-values.size % 64)
    return [padded[first : first + CHUNK] for first in range(0, len(padded), CHUNK)]


def chunk_of(
    codec: str, sections: tuple[bytes, bytes], count: int, index: int = 0, last: bool = True
) -> bytes:
    return reference.chunk(codec, 1, index, index * CHUNK, last, sections, count, PLAN, 5)


def check(chunk: bytes, codec: str, count: int) -> int:
    return _native.check_chunk(
        chunk,
        codec=_native.codec_number(codec),
        group=1,
        group_size=count,
        masked=False,
        plan_digest=PLAN,
        update_id=5,
        chunk_coordinates=CHUNK,
    )


# --- bytes ---------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("codec", VARIANTS)
def test_chunks_are_those_of_the_reference_on_every_instruction_set(codec: str, size: int) -> None:
    values = values_of(size)
    parts = grid_of(values)
    expected = [
        chunk_of(codec, topk.sections(part, *VARIANTS[codec]), len(part), index,
                 index == len(parts) - 1)
        for index, part in enumerate(parts)
    ]  # fmt: skip

    for isa in _native.supported_isas():
        _native.use_isa(isa)
        assert native_chunks(codec, values) == expected
        assert native_chunks(codec, values, threads=2) == expected


@pytest.mark.parametrize("codec", VARIANTS)
def test_decoded_values_are_the_kept_ones_and_zeros(codec: str) -> None:
    values = values_of(20_000)
    sparsity, letter = VARIANTS[codec]
    expected = [
        value
        for part in grid_of(values)
        for value in topk.decoded(*topk.sections(part, sparsity, letter), len(part), sparsity,
                                  letter)
    ][: values.size]  # fmt: skip

    update = encode({"w": values}, codec, chunk_coordinates=CHUNK)

    for isa in _native.supported_isas():
        _native.use_isa(isa)
        assert decode(update.to_bytes())["w"].tolist() == expected
    assert np.count_nonzero(expected) <= sum(
        topk.kept_of(len(part), sparsity) for part in grid_of(values)
    )


def test_the_size_of_a_chunk_follows_from_its_coordinates_alone() -> None:
    for codec in VARIANTS:
        for values in (np.zeros(9000), np.ones(9000), np.random.default_rng(1).normal(size=9000)):
            sizes = [len(chunk) for chunk in native_chunks(codec, values.astype(np.float32))]
            number = _native.codec_number(codec)
            assert sizes == [_native.chunk_size(number, n) for n in (CHUNK, 832)]


def test_of_equal_magnitudes_the_first_are_kept() -> None:
    values = np.full(4096, -2.0, np.float32)
    values[::2] = 2.0

    kept = np.flatnonzero(decode(encode({"w": values}, "topk/d10"))["w"])

    assert kept.tolist() == list(range(410))


def test_zeros_fill_the_first_places_without_a_sign() -> None:
    values = np.full(4096, -0.0, np.float32)
    values[[7, 4000]] = [-1.0, 2.0]

    (chunk,) = native_chunks("topk", values)

    entries = [(place, 0.0) for place in range(7)] + [(7, -1.0)]
    entries += [(place, 0.0) for place in range(8, 40)] + [(4000, 2.0)]
    assert chunk == chunk_of("topk", topk.from_entries(4096, entries), 4096)


def test_halves_are_chosen_as_they_are_sent() -> None:
    # Both round to the half 1.0, so the first one is kept although the other is larger; what
    # rounds to zero is a zero.
    values = np.zeros(64, np.float32)
    values[[3, 9, 20]] = [2.0**-26, 1.0, 1.0 + 2.0**-13]

    decoded = decode(encode({"w": values}, "topk", density=0.02, values="f16"))["w"]

    assert np.flatnonzero(decoded).tolist() == [9, 20]  # one of 50: two of 64
    values[3] = 3.0
    decoded = decode(encode({"w": values}, "topk", density=0.02, values="f16"))["w"]
    assert np.flatnonzero(decoded).tolist() == [3, 9]


# --- refusals --------------------------------------------------------------------------

GOOD = [(place * 20, 1.0 + place) for place in range(41)]  # 41 of 4096


def entries(changes: dict[int, tuple[int, float]]) -> list[tuple[int, float]]:
    return [changes.get(number, entry) for number, entry in enumerate(GOOD)]


def test_the_chunk_that_the_refusals_change_is_accepted() -> None:
    assert check(chunk_of("topk", topk.from_entries(4096, GOOD), 4096), "topk", 4096) == 0


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        (topk.from_entries(4096, entries({3: (40, 1.0)})), "do not ascend"),
        (topk.from_entries(4096, entries({3: (39, 1.0)})), "do not ascend"),
        (topk.from_entries(4096, entries({3: (60, math.nan)})), "coordinate 60 .* not finite"),
        (topk.from_entries(4096, entries({3: (60, -math.inf)})), "coordinate 60 .* not finite"),
        (topk.from_entries(4096, entries({3: (60, -0.0)})), "negative zero"),
        (topk.from_entries(4096, entries({3: (60, 0.0)})), "kept although it is zero"),
        (topk.from_entries(4096, entries({0: (0, -0.0)})), "negative zero"),
    ],
)  # fmt: skip
def test_entries_that_no_encoder_writes_are_refused(
    sections: tuple[bytes, bytes], reason: str
) -> None:
    for isa in _native.supported_isas():
        _native.use_isa(isa)
        with pytest.raises(DecodeError, match=reason):
            check(chunk_of("topk", sections, 4096), "topk", 4096)


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        ((60, 21), "fewer coordinates than it must"),
        ((60, 23), "keeps more than the chunk does"),
        ((65535, 65535), "keeps more than the chunk does"),
        ((82, 0), "do not ascend"),
    ],
)
def test_counts_per_tile_must_be_those_of_the_entries(counts: tuple[int, int], reason: str) -> None:
    places = [(place * 60, 1.0) for place in range(60)]
    places += [(4096 + place * 60, 1.0) for place in range(22)]
    scales, codes = topk.from_entries(8192, places)
    assert check(chunk_of("topk", (scales, codes), 8192), "topk", 8192) == 0
    wrong = b"".join(count.to_bytes(2, "little") for count in counts)

    with pytest.raises(DecodeError, match=reason):
        check(chunk_of("topk", (wrong, codes), 8192), "topk", 8192)


def test_an_index_beyond_a_short_tile_and_a_set_padding_bit_are_refused() -> None:
    good = topk.from_entries(64, [(63, 1.0)])
    assert check(chunk_of("topk", good, 64), "topk", 64) == 0
    scales, codes = topk.from_entries(64, [(64, 1.0)])
    with pytest.raises(DecodeError, match="beyond its end"):
        check(chunk_of("topk", (scales, codes), 64), "topk", 64)

    padded = (good[0], bytes([good[1][0], good[1][1] | 0x10]) + good[1][2:])
    with pytest.raises(DecodeError, match="padding bit"):
        check(chunk_of("topk", padded, 64), "topk", 64)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_sections_are_read_as_the_reference_reads_them_or_refused(data: st.DataObject) -> None:
    codec = data.draw(st.sampled_from(["topk", "topk/d2", "topk/d1000/f16"]))
    count = data.draw(st.sampled_from([64, 128, 4160]))
    sparsity, letter = VARIANTS[codec]
    scales, codes = map(bytearray, topk.sections(values_of(count).tolist(), sparsity, letter))
    for section in (scales, codes):
        for _ in range(data.draw(st.integers(0, 3))):
            section[data.draw(st.integers(0, len(section) - 1))] = data.draw(st.integers(0, 255))
    chunk = chunk_of(codec, (bytes(scales), bytes(codes)), count)

    try:
        check(chunk, codec, count)
    except DecodeError:
        return
    decoded = _native.decode_chunks(
        _native.Layout([("w", "f32", (count,))]),
        [chunk],
        codec=_native.codec_number(codec),
        scale=0.0,
        plan_digest=PLAN,
        update_id=5,
        chunk_coordinates=CHUNK,
    )[0]
    assert decoded.tolist() == topk.decoded(bytes(scales), bytes(codes), count, sparsity, letter)


def test_a_kept_value_between_tensors_is_refused() -> None:
    chunk = chunk_of("topk", topk.from_entries(128, [(2, 1.0), (3, 1.0)]), 128)

    with pytest.raises(DecodeError, match="coordinate 3 lies between tensors"):
        _native.decode_chunks(
            _native.Layout([("v", "f32", (3,)), ("w", "f32", (64,))]),
            [chunk],
            codec=_native.codec_number("topk"),
            scale=0.0,
            plan_digest=PLAN,
            update_id=5,
            chunk_coordinates=CHUNK,
        )


@pytest.mark.parametrize(
    ("codec", "options", "reason"),
    [
        ("topk", {"density": 0.3}, "density 0.5, 0.25, 0.1, 0.05, 0.02, 0.01, 0.005, 0.001"),
        ("topk", {"density": True}, "got True"),
        ("topk", {"values": "bf16"}, "has values f32 or f16, got 'bf16'"),
        ("topk/d10", {"density": 0.1}, "by name, and option 'density' again"),
        ("topk/d100", {}, "unknown codec"),
        ("topk/b64", {}, "unknown codec"),
        ("topk/d3", {}, "unknown codec"),
        ("topk", {"clip": 1.0}, "no option 'clip'"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    codec: str, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        encode({"w": np.ones(3)}, codec, **options)


def test_values_that_do_not_fit_or_are_not_finite_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="'w' has 1 values too large for codec topk/f16"):
        encode({"w": np.array([1.0, 7e4])}, "topk", values="f16")
    with pytest.raises(ConfigError, match="'w' has 2 values that are not finite"):
        encode({"w": np.array([math.nan, 1.0, math.inf])}, "topk")


@pytest.mark.parametrize("density", [0.5, 0.25, 0.1, 0.05, 0.02, 0.01, 0.005, 0.001])
@pytest.mark.parametrize("values", ["f32", "f16"])
def test_options_and_names_mean_the_same(density: float, values: str) -> None:
    update = encode({"w": values_of(5000)}, "topk", density=density, values=values)

    assert encode({"w": values_of(5000)}, update.codec).to_bytes() == update.to_bytes()
    name = "topk" if density == 0.01 else f"topk/d{round(1 / density)}"
    assert update.codec == (name if values == "f32" else name + "/f16")


# --- sums ------------------------------------------------------------------------------


def test_means_are_those_of_the_decoded_values(tmp_path: Path) -> None:
    models = [{"w": values_of(9000) * np.float32(k + 1)} for k in range(4)]
    weights = (3, 1000, 7, 50)
    layout = ModelLayout.from_arrays(models[0])
    updates = [encode(model, codec) for model, codec in zip(models, VARIANTS, strict=False)]
    decoded = [decode(update)["w"].tolist() for update in updates]
    expected = reference_mean.mean(list(zip(weights, decoded, strict=True))[:3], ["f32"] * 9000)

    for isa in _native.supported_isas():
        _native.use_isa(isa)
        for aggregator in (Aggregator(layout), Aggregator(layout, spool=tmp_path)):
            for number, (update, weight) in enumerate(zip(updates, weights, strict=True)):
                aggregator.add(update, weight=weight, site=f"s{number}")
            aggregator.remove("s3")
            assert aggregator.finish().arrays["w"].tolist() == expected


def test_a_streamed_mean_is_right() -> None:
    values = [values_of(9000) * np.float32(k + 1) for k in range(3)]
    layout = ModelLayout.from_arrays({"w": values[0]})
    aggregator = Aggregator(layout, streaming=Streaming(max_abs=2.0**20, max_total_weight=100))
    total = np.zeros(9000)
    for number, array in enumerate(values):
        update = encode({"w": array}, "topk/d10")
        aggregator.add(update, weight=number + 1, site=f"s{number}")
        total += decode(update)["w"].astype(np.float64) * (number + 1)

    found = aggregator.finish().arrays["w"]

    assert np.allclose(found, total / 6, rtol=1e-6, atol=1e-9)


# --- yardsticks ------------------------------------------------------------------------


@pytest.mark.parametrize(("density", "lost"), [(0.1, 0.560), (0.01, 0.915), (0.001, 0.987)])
def test_what_is_lost_of_a_normal_vector(density: float, lost: float) -> None:
    """Closed form: the share of the squares of N(0, 1) below the cut."""
    values = np.random.default_rng(12).normal(size=2**20).astype(np.float32)

    decoded = decode(encode({"w": values}, "topk", density=density))["w"]

    found = np.sum((values - decoded).astype(float) ** 2) / np.sum(values.astype(float) ** 2)
    assert abs(found / lost - 1) < 0.01


def test_nothing_is_rounded_by_a_seed() -> None:
    assert (
        encode({"w": values_of(5000)}, "topk", seed=1).body
        == encode({"w": values_of(5000)}, "topk", seed=2).body
    )
