"""eden1 to eden4: centroids, bytes, refusals, and the errors that theory predicts."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reference import codecs as reference
from reference import eden
from veilsum import Aggregator, ModelLayout, Streaming, _native, decode, encode
from veilsum.errors import ConfigError, DecodeError, PeerError

PLAN = bytes(range(32))
UPDATE_ID = 0x0123456789ABCDEF
CHUNK = 8192
BITS = (1, 2, 3, 4)
SIZES = [1, 64, 300, 4096, 4096 + 64 * 63, 8192, 20_000]
every_bits = pytest.mark.parametrize("bits", BITS)

# Error of the mean of many and of one update, N(0, 1) and ideal rotation: D / (1 - D) and D for
# the distortion D of Lloyd and Max (Vargaftik et al. 2022).
UNBIASED = {1: 0.570796, 2: 0.133121, 3: 0.035784, 4: 0.009592}
BIASED = {1: 0.363380, 2: 0.117482, 3: 0.034548, 4: 0.009501}


def values_of(size: int) -> np.ndarray:
    rng = np.random.default_rng(size)
    values = (rng.lognormal(size=size) * rng.choice([-1, 1], size)).astype(np.float32)
    values[size // 3 : size // 2] = 0.0
    return values


def native_chunks(
    bits: int, values: np.ndarray, *, biased: bool = False, threads: int = 1
) -> list[bytes]:
    return _native.encode_chunks(
        _native.Layout([("w", "f32", values.shape)]),
        [values],
        codec=0x20 | bits,
        scale=0.0,
        limit=0.0,
        rounding=None,
        least_error=biased,
        plan_digest=PLAN,
        update_id=UPDATE_ID,
        chunk_coordinates=CHUNK,
        threads=threads,
    )


def native_decoded(bits: int, chunks: list[bytes], size: int) -> np.ndarray:
    return _native.decode_chunks(
        _native.Layout([("w", "f32", (size,))]),
        chunks,
        codec=0x20 | bits,
        scale=0.0,
        plan_digest=PLAN,
        update_id=UPDATE_ID,
        chunk_coordinates=CHUNK,
    )[0]


def parts_of(values: np.ndarray) -> list[tuple[int, np.ndarray]]:
    padded = np.concatenate([values, np.zeros(-values.size % 64, np.float32)])
    return [(first, padded[first : first + CHUNK]) for first in range(0, padded.size, CHUNK)]


def chunk_of(
    bits: int, sections: tuple[bytes, bytes], count: int, index: int = 0, last: bool = True
) -> bytes:
    return reference.chunk(
        f"eden{bits}", 1, index, index * CHUNK, last, sections, count, PLAN, UPDATE_ID
    )


def check(bits: int, chunk: bytes, count: int) -> int:
    return _native.check_chunk(
        chunk,
        codec=0x20 | bits,
        group=1,
        group_size=count,
        masked=False,
        plan_digest=PLAN,
        update_id=UPDATE_ID,
        chunk_coordinates=CHUNK,
    )


def centroids_of(bits: int) -> tuple[float, ...]:
    """The core's centroids, from what decodes of every code: a block that is rotated back, and
    forth again by the reference."""
    codes = np.arange(64) % 2**bits
    sections = (struct.pack("<f", 1.0), eden.packed(codes.tolist(), bits))
    values = native_decoded(bits, [chunk_of(bits, sections, 64)], 64)
    turned = eden.rotate(values.astype(np.float64), 4096, eden.key_of(UPDATE_ID, PLAN), 0)
    return tuple(turned[: 2**bits].tolist())


# --- bytes ---------------------------------------------------------------------------


@every_bits
def test_centroids_are_those_of_lloyd_and_max(bits: int) -> None:
    assert np.allclose(centroids_of(bits), eden.lloyd_max(bits), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
@every_bits
@pytest.mark.parametrize("biased", [False, True], ids=["unbiased", "biased"])
def test_chunks_are_those_of_the_reference_on_every_instruction_set(
    bits: int, size: int, biased: bool
) -> None:
    values = values_of(size)
    centroids = eden.lloyd_max(bits)
    parts = parts_of(values)
    expected = [
        chunk_of(
            bits,
            eden.sections(part, first, bits, UPDATE_ID, PLAN, centroids, biased),
            part.size,
            index,
            index == len(parts) - 1,
        )
        for index, (first, part) in enumerate(parts)
    ]

    for isa in _native.supported_isas():
        _native.use_isa(isa)
        assert native_chunks(bits, values, biased=biased) == expected
        assert native_chunks(bits, values, biased=biased, threads=2) == expected


@pytest.mark.parametrize("size", SIZES)
@every_bits
def test_decoded_values_are_those_of_the_reference(bits: int, size: int) -> None:
    values = values_of(size)
    chunks = native_chunks(bits, values)
    expected = np.concatenate(
        [
            eden.decoded(
                *eden.sections(part, first, bits, UPDATE_ID, PLAN, eden.lloyd_max(bits)),
                part.size, first, bits, UPDATE_ID, PLAN, eden.lloyd_max(bits),
            )
            for first, part in parts_of(values)
        ]
    )[:size]  # fmt: skip

    for isa in _native.supported_isas():
        _native.use_isa(isa)
        assert native_decoded(bits, chunks, size).tobytes() == expected.tobytes()


@every_bits
def test_the_size_of_a_chunk_follows_from_its_coordinates_alone(bits: int) -> None:
    for values in (np.zeros(9000), np.ones(9000), np.random.default_rng(1).normal(size=9000)):
        sizes = [len(chunk) for chunk in native_chunks(bits, values.astype(np.float32))]
        # 9024 coordinates: a chunk of two blocks of 4096, and one of 832 = 3 * 256 + 64.
        assert sizes == [64 + 16 + 1024 * bits, 64 + 16 + -(-104 * bits // 16) * 16]


@every_bits
def test_zeros_have_no_scale_no_codes_and_no_sign(bits: int) -> None:
    values = np.zeros(5000, np.float32)
    values[4096:] = -0.0
    chunks = native_chunks(bits, values)

    assert not any(chunks[0][64:])
    assert native_decoded(bits, chunks, 5000).tobytes() == bytes(4 * 5000)


@every_bits
def test_blocks_too_small_for_a_scale_become_zero(bits: int) -> None:
    values = np.full(64, 2.0**-130, np.float32)

    assert not native_decoded(bits, native_chunks(bits, values), 64).any()


@every_bits
def test_a_spike_is_exact(bits: int) -> None:
    # Rotated, all coordinates have one magnitude, which is then the scale's.
    values = np.zeros(4096, np.float32)
    values[123] = -7.0

    decoded = native_decoded(bits, native_chunks(bits, values), 4096)

    assert np.abs(decoded - values).max() < 1e-6


def test_chunk_size_does_not_change_a_value() -> None:
    values = values_of(20_000)
    decoded = [
        decode(encode({"w": values}, "eden3", update_id=9, chunk_coordinates=size))["w"]
        for size in (4096, 8192, 2**20)
    ]

    assert np.array_equal(decoded[0], decoded[1])
    assert np.array_equal(decoded[0], decoded[2])


def test_tensors_share_rotation_blocks_and_the_gaps_between_them_are_not_looked_at() -> None:
    arrays = {
        "a": values_of(35).reshape(5, 7),
        "empty": np.zeros((0, 3), np.float32),
        "s": np.array(2.5, np.float32),
        "b": values_of(5000).astype(np.float64),
    }

    decoded = decode(encode(arrays, "eden4").to_bytes())

    for name, array in arrays.items():
        assert decoded[name].shape == array.shape
        assert decoded[name].dtype == array.dtype
    error = np.sum((decoded["b"] - arrays["b"]) ** 2) / np.sum(arrays["b"] ** 2)
    assert error < 0.012


# --- refusals --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scale", [-1.0, -0.0, math.nan, math.inf, 2.0**-127, 2.0**-149, 3.4e38, -math.inf]
)
@every_bits
def test_a_scale_outside_the_format_is_refused(bits: int, scale: float) -> None:
    scales, codes = eden.sections(values_of(64), 0, bits, UPDATE_ID, PLAN, eden.lloyd_max(bits))
    assert check(bits, chunk_of(bits, (scales, codes), 64), 64) == 0

    for isa in _native.supported_isas():
        _native.use_isa(isa)
        with pytest.raises(DecodeError, match="coordinate 0 of group 1 has a block scale"):
            check(bits, chunk_of(bits, (struct.pack("<f", scale), codes), 64), 64)


@every_bits
def test_codes_without_a_scale_are_refused_where_their_block_begins(bits: int) -> None:
    count = 4096 + 256
    scales, codes = eden.sections(values_of(count), 0, bits, UPDATE_ID, PLAN, eden.lloyd_max(bits))

    with pytest.raises(DecodeError, match="coordinate 4096 of group 1 has codes but no scale"):
        check(bits, chunk_of(bits, (scales[:4] + bytes(4), codes), count), count)


@every_bits
def test_the_largest_scale_decodes_to_finite_values(bits: int) -> None:
    scale = struct.pack("<f", (2 - 2.0**-23) * 2.0**127 / 256)
    codes = b"\xff" * (512 * bits)  # every value the largest centroid

    decoded = native_decoded(bits, [chunk_of(bits, (scale, codes), 4096)], 4096)

    assert np.isfinite(decoded).all()


@every_bits
def test_any_sections_decode_or_are_refused(bits: int) -> None:
    rng = np.random.default_rng(bits)
    for _ in range(200):
        scales, codes = rng.bytes(8), rng.bytes((4096 + 64) // 8 * bits)
        chunk = chunk_of(bits, (scales, codes), 4160)
        try:
            check(bits, chunk, 4160)
        except DecodeError:
            continue
        assert np.isfinite(native_decoded(bits, [chunk], 4160)).all()


def test_values_that_do_not_fit_or_are_not_finite_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="'w' has 1 values too large for codec eden2"):
        encode({"w": np.array([1.0, 2.0**120])}, "eden2")
    with pytest.raises(ConfigError, match="'w' has 2 values that are not finite"):
        encode({"w": np.array([math.nan, 1.0, math.inf])}, "eden1")
    encode({"w": np.array([1.0, 2.0**119])}, "eden2")


@pytest.mark.parametrize(
    ("codec", "options", "reason"),
    [
        ("eden4", {"variant": "best"}, "variants biased or unbiased, got 'best'"),
        ("eden5", {}, "unknown codec 'eden5'"),
        ("eden0", {}, "unknown codec"),
        ("eden4/b64", {}, "unknown codec"),
        ("eden4", {"block": 64}, "no option 'block'"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    codec: str, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        encode({"w": np.ones(3)}, codec, **options)


# --- own rotations -----------------------------------------------------------------------


def test_every_update_is_rotated_by_itself() -> None:
    values = {"w": values_of(5000)}
    first, second = encode(values, "eden4"), encode(values, "eden4")

    assert first.form.update_id != second.form.update_id
    assert not np.array_equal(decode(first)["w"], decode(second)["w"])
    again = encode(values, "eden4", update_id=first.form.update_id)
    assert again.to_bytes() == first.to_bytes()


def mean_error(values: np.ndarray, updates: int, *, shared: bool) -> float:
    """n times the error of the mean of n encodings of one vector."""
    total = np.zeros(values.size)
    for number in range(updates):
        update = encode({"w": values}, "eden4", update_id=1 if shared else 1000 + number)
        total += decode(update)["w"]
    true = values.astype(float)
    return updates * float(np.sum((total / updates - true) ** 2) / np.sum(true**2))


def test_errors_average_out_if_and_only_if_rotations_differ() -> None:
    values = np.random.default_rng(3).lognormal(size=2**18).astype(np.float32)

    for updates in (1, 8, 64):
        assert 0.0092 < mean_error(values, updates, shared=False) < 0.0099
    assert mean_error(values, 8, shared=True) > 8 * 0.0090


# --- sums ------------------------------------------------------------------------------


def test_means_are_those_of_the_decoded_values_everywhere(tmp_path: Path) -> None:
    models = [{"w": values_of(9000) * np.float32(k + 1), "v": values_of(100)} for k in range(4)]
    layout = ModelLayout.from_arrays(models[0])
    updates = [
        encode(model, f"eden{bits}", update_id=bits)
        for model, bits in zip(models, BITS, strict=True)
    ]
    weights = (3, 100, 7, 50)
    digests = set()

    for isa in _native.supported_isas():
        _native.use_isa(isa)
        for aggregator in (Aggregator(layout), Aggregator(layout, spool=tmp_path)):
            for number, (update, weight) in enumerate(zip(updates, weights, strict=True)):
                aggregator.add(update, weight=weight, site=f"s{number}")
            aggregator.remove("s0")
            result = aggregator.finish()
            digests.add(result.digest)
            for name in ("w", "v"):
                total = sum(
                    weight * decode(update)[name].astype(np.float64)
                    for update, weight in list(zip(updates, weights, strict=True))[1:]
                )
                assert np.allclose(result.arrays[name], total / 157, rtol=2.0**-23, atol=1e-9)
    assert len(digests) == 1


def test_streamed_means_are_right_and_bounds_hold() -> None:
    values = values_of(3000)
    layout = ModelLayout.from_arrays({"w": values})
    aggregator = Aggregator(layout, streaming=Streaming(max_abs=64.0, max_total_weight=100))
    update = encode({"w": values}, "eden4", update_id=5)
    aggregator.add(update, weight=3, site="a")
    with pytest.raises(PeerError, match="max_abs"):
        aggregator.add(encode({"w": values * 100}, "eden4"), weight=1, site="b")

    found = aggregator.finish().arrays["w"]

    assert np.abs(found - decode(update)["w"]).max() < 1e-6


# --- yardsticks ------------------------------------------------------------------------


def error_of(values: np.ndarray, codec: str, **options: Any) -> float:
    decoded = decode(encode({"w": values}, codec, update_id=77, **options))["w"]
    true = values.astype(float)
    return float(np.sum((decoded - true) ** 2) / np.sum(true**2))


@every_bits
@pytest.mark.parametrize("distribution", ["normal", "lognormal", "laplace"])
def test_the_error_is_the_one_of_an_ideal_rotation(bits: int, distribution: str) -> None:
    values = getattr(np.random.default_rng(21), distribution)(size=2**20).astype(np.float32)

    unbiased = error_of(values, f"eden{bits}")
    biased = error_of(values, f"eden{bits}", variant="biased")

    assert abs(unbiased / UNBIASED[bits] - 1) < 0.02
    assert abs(biased / BIASED[bits] - 1) < 0.01


@every_bits
def test_the_mean_of_ten_clients_is_ten_times_better(bits: int) -> None:
    """The experiment of QUIC-FL's code: 10 clients with LogNormal(0, 1) vectors."""
    rng = np.random.default_rng(22)
    size, clients = 2**17, 10
    total, true, squares = np.zeros(size), np.zeros(size), 0.0
    for client in range(clients):
        values = rng.lognormal(size=size).astype(np.float32)
        total += decode(encode({"w": values}, f"eden{bits}", update_id=client))["w"]
        true += values
        squares += float(np.sum(values.astype(float) ** 2)) / clients

    error = float(np.sum(((total - true) / clients) ** 2)) / squares

    assert abs(error * clients / UNBIASED[bits] - 1) < 0.03
