"""However values lie in memory and however many come together, the mean has the same bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from reference import codecs as reference_codecs
from reference import mean as reference
from reference.rounding import FORMATS
from veilsum import Aggregator, ModelLayout, _native, decode, encode

ISAS = _native.supported_isas()
every_isa = pytest.mark.parametrize("isa", ISAS)

# Tensors that end anywhere in a tile, so that tiles hold parts of many; and one of another
# width between them.
TENSORS = [
    (f"t{number}", "f16" if number == 7 else "f32", (size,))
    for number, size in enumerate([1, 63, 64, 4096, 4095, 3, 1000, 130, 8191, 17, 12_289, 5])
]
LAYOUT = ModelLayout(_native.Layout(TENSORS))


def update_of(number: int) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(number)
    return {
        name: (rng.normal(size=shape) * 2.0 ** rng.integers(-9, 3)).astype(
            np.float16 if dtype == "f16" else np.float32
        )
        for name, dtype, shape in TENSORS
    }


def flat(arrays: dict[str, Any]) -> list[float]:
    values = [np.asarray(arrays[name], np.float64).tolist() for name, _, _ in TENSORS]
    return reference_codecs.grid(TENSORS, values, 1)


def dtypes() -> list[str]:
    spans, size = reference_codecs.offsets(TENSORS, 1)
    found = ["f64"] * size
    for number, first, elements in spans:
        found[first : first + elements] = [TENSORS[number][1]] * elements
    return found


def mean_of(columns: Sequence[tuple[int, Sequence[float]]], dtype: str) -> list[float]:
    """The native mean of one tensor's updates."""
    mean = Aggregator(ModelLayout(_native.Layout([("w", dtype, (len(columns[0][1]),))])), threads=1)
    for number, (weight, values) in enumerate(columns):
        array = np.array(values, np.float16 if dtype == "f16" else np.float32)
        mean.add({"w": array}, weight=weight, site=str(number))
    found: list[float] = mean.finish().arrays["w"].tolist()
    return found


@every_isa
def test_tiles_with_parts_of_many_tensors_average_as_fractions_do(isa: str) -> None:
    _native.use_isa(isa)
    updates = [update_of(number) for number in range(3)]
    weights = [3, 2**20 + 1, 77]
    expected = reference.mean(
        [(weight, flat(update)) for weight, update in zip(weights, updates, strict=True)], dtypes()
    )

    for copy in (True, False):
        mean = Aggregator(LAYOUT, threads=2)
        for number, (weight, update) in enumerate(zip(weights, updates, strict=True)):
            mean.add(update, weight=weight, site=str(number), copy=copy)
        assert flat(mean.finish().arrays) == expected


@every_isa
def test_copied_borrowed_and_encoded_updates_of_a_set_add_up_alike(isa: str) -> None:
    _native.use_isa(isa)
    updates = {codec: [] for codec in ("f32", "f16", "bf16", "int8")}
    for codec, encoded in updates.items():
        for number in range(18):  # more than are added in one pass
            options = {"layout": LAYOUT, "chunk_coordinates": 8192}
            encoded.append(encode(update_of(number), codec, **options))
    one_by_one, mixed = Aggregator(LAYOUT, threads=1), Aggregator(LAYOUT, threads=2)
    for number in range(18):
        for codec in ("f32", "f16", "bf16"):
            values = decode(updates[codec][number])
            for mean, form in ((one_by_one, "copy"), (mixed, codec)):
                site = f"{codec}-{number}"
                if form == "copy" or number % 3 == 0:
                    mean.add(values, weight=number + 1, site=site)
                elif number % 3 == 1:
                    mean.add(values, weight=number + 1, site=site, copy=False)
                else:
                    mean.add(updates[codec][number], weight=number + 1, site=site)

    assert mixed.finish().digest == one_by_one.finish().digest


@every_isa
def test_any_number_of_int8_updates_is_summed_as_integers(isa: str) -> None:
    _native.use_isa(isa)
    size = 200
    mean = Aggregator(ModelLayout(_native.Layout([("w", "f32", (size,))])), threads=1)
    columns = []
    for number in range(35):
        values = np.random.default_rng(number).normal(size=size).astype(np.float32)
        update = encode({"w": values}, "int8")
        scales, codes = reference_sections(update.body[0])
        columns.append((number + 1, scales, codes))
        mean.add(update, weight=number + 1, site=str(number))

    expected = reference.int8_mean(columns, ["f32"] * size)
    assert mean.finish().arrays["w"].tolist() == expected


def reference_sections(chunk: bytes) -> tuple[list[float], list[int]]:
    header = reference_codecs.HEADER.unpack(chunk[:60])
    count, scale_bytes = header[8], header[10]
    begin = 64 + -(-scale_bytes // 16) * 16
    scales = np.frombuffer(chunk, "<f4", scale_bytes // 4, 64).tolist()
    return scales, np.frombuffer(chunk, "i1", count, begin).tolist()


@every_isa
@pytest.mark.parametrize("codec", ["f16", "bf16"])
def test_every_half_adds_its_exact_value(codec: str, isa: str) -> None:
    _native.use_isa(isa)
    bits = np.arange(2**16, dtype=np.uint16)
    if codec == "f16":
        values = bits.view(np.float16).astype(np.float32)
    else:
        values = (bits.astype(np.uint32) << 16).view(np.float32)
    values = values[np.isfinite(values)]
    values = values[np.argsort(np.abs(values), kind="stable")]  # tiles of like magnitudes
    mean = Aggregator(ModelLayout(_native.Layout([("w", "f32", values.shape)])), threads=1)
    mean.add(encode({"w": values}, codec), weight=1, site="a")

    assert np.array_equal(mean.finish().arrays["w"], values)


@every_isa
@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
@pytest.mark.parametrize(
    "weights",
    [(1,), (1, 1), (100, 100), (2**31 - 1,) * 2, (2**30,) * 4, (3, 5), (2**31 - 1, 2**31 - 3, 2)],
)
def test_ties_in_long_rows_go_to_the_even_number(
    dtype: str, weights: tuple[int, ...], isa: str
) -> None:
    # Neighbouring numbers of the format, of either sign and of many magnitudes, a block or
    # more of them: their means are very often exact ties.
    _native.use_isa(isa)
    precision, least = FORMATS[dtype]
    rng = np.random.default_rng(len(weights))
    exponents = rng.integers(max(least, -60), -2 if dtype == "f16" else 40, 200).tolist()
    signs = rng.choice([-1.0, 1.0], 200).tolist()
    columns = [
        (
            weight,
            [
                sign * (2 ** (precision - 1) + step) * 2.0**exponent
                for sign, step, exponent in zip(
                    signs, rng.integers(0, 4, 200).tolist(), exponents, strict=True
                )
            ],
        )
        for weight in weights
    ]

    assert mean_of(columns, dtype) == reference.mean(columns, [dtype] * 200)


@every_isa
@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
def test_subnormal_means_among_normal_ones_are_rounded_once(dtype: str, isa: str) -> None:
    _native.use_isa(isa)
    _, least = FORMATS[dtype]
    rng = np.random.default_rng(4)
    columns = [(weight, (rng.integers(-9, 9, 300) * 2.0**least).tolist()) for weight in (1, 1, 5)]

    assert mean_of(columns, dtype) == reference.mean(columns, [dtype] * 300)


def test_large_results_keep_their_memory_while_anyone_looks_at_them() -> None:
    size = 3 << 18  # 3 MiB as f32: memory that is used again
    layout = ModelLayout(_native.Layout([("w", "f32", (size,))]))

    def mean_of_constant(value: float) -> Any:
        mean = Aggregator(layout, threads=2)
        for site in ("a", "b"):
            mean.add({"w": np.full(size, value, np.float32)}, weight=1, site=site)
        return mean.finish().arrays["w"]

    kept = [mean_of_constant(value) for value in (1.0, 2.0)]
    views = [array[-5:] for array in kept]
    del kept
    again = [mean_of_constant(value) for value in (3.0, 4.0, 5.0)]

    assert [float(view[0]) for view in views] == [1.0, 2.0]
    assert [set(np.unique(array).tolist()) for array in again] == [{3.0}, {4.0}, {5.0}]
    again[0][:] = 6.0
    assert float(again[1][0]) == 4.0


def test_memory_used_again_shows_nothing_of_what_was_there() -> None:
    # Tensors with gaps between them: what is kept of an update has to be zero there.
    tensors = [("a", "f32", (300_001,)), ("b", "f32", (300_001,))]
    layout = ModelLayout(_native.Layout(tensors))
    digests = set()
    for fill in (np.nextafter(np.float32(1), np.float32(2)), np.float32(1)):
        for value in (fill, np.float32(-3)):
            mean = Aggregator(layout, threads=1)
            mean.add({n: np.full(s, value, np.float32) for n, _, s in tensors}, weight=1, site="a")
            if value == np.float32(-3):
                digests.add(mean.finish().digest)
            del mean

    assert len(digests) == 1
