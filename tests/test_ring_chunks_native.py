"""From a site's values to masked chunks and from chunks into the sum, against the reference."""

from __future__ import annotations

import math
from functools import cache
from operator import mul

import numpy as np
import pytest

from reference import ring
from reference.secagg import mask_words
from veilsum import _native
from veilsum._native import Layout, Secret
from veilsum.errors import ConfigError, DecodeError

ISAS = _native.supported_isas()
CHUNK = 4096
HEADER = 64
PLAN = bytes(range(200, 232))
SEED = bytes(range(50, 82))
KEYS = (bytes(range(32)), b"\x77" * 32)
SIGNS = (1, -1)

# Gaps, an empty tensor, a scalar, every floating-point dtype, an integer tensor between
# them, and tensors that cross chunk boundaries.
TENSORS = [
    ("a", "f32", (37,)),
    ("empty", "f32", (0, 3)),
    ("n", "i64", (5,)),
    ("b", "f64", (70, 61)),
    ("scalar", "f16", ()),
    ("c", "bf16", (4000,)),
    ("d", "f16", (130,)),
]
LAYOUT = Layout(TENSORS)
GAINS = np.array([1000.0, 1.0, 250.5, 3.0, 777.0, 31.0])
LIMITS = np.array([1.0, 1.0, 4.0, 100.0, 2.5, 8.0])


def arrays() -> list[np.ndarray]:
    random = np.random.default_rng(7)
    made = []
    for _, dtype, shape in TENSORS:
        if dtype == "i64":
            made.append(np.arange(5, dtype=np.int64))
            continue
        values = random.uniform(-1, 1, shape)
        if dtype == "bf16":
            made.append((np.asarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16))
        else:
            numpy_dtype = {"f16": np.float16, "f32": np.float32, "f64": np.float64}[dtype]
            made.append(np.asarray(values, numpy_dtype))
    return made


def as_floats(array: np.ndarray, dtype: str) -> list[float]:
    if dtype == "bf16":
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return [float(value) for value in array.ravel()]


def encode(
    values=None,
    *,
    bits=22,
    gains=GAINS,
    limits=LIMITS,
    clip=False,
    seed=SEED,
    keys=KEYS,
    signs=SIGNS,
    generator="chacha20",
    threads=1,
    layout=LAYOUT,
):
    return _native.encode_ring_chunks(
        layout,
        arrays() if values is None else values,
        bits=bits,
        gains=gains,
        limits=limits,
        clip=clip,
        rounding=None if seed is None else Secret.from_bytes(seed),
        keys=[Secret.from_bytes(key) for key in keys],
        signs=list(signs),
        generator=generator,
        plan_digest=PLAN,
        update_id=99,
        chunk_coordinates=CHUNK,
        threads=threads,
    )


def expected_steps(values, seed) -> list[int]:
    steps = [0] * LAYOUT.group_size(1)
    for place, (tensor, first, _) in enumerate(LAYOUT.offsets(1)):
        for element, value in enumerate(as_floats(values[tensor], TENSORS[tensor][1])):
            steps[first + element] = ring.step(
                value, GAINS[place], LIMITS[place], seed, first + element
            )
    return steps


@cache
def mask_sum(count: int, bits: int, stream: int, generator: str) -> list[int]:
    """Masks of KEYS with SIGNS."""
    columns = [mask_words(key, stream, 0, count, bits, generator) for key in KEYS]
    return [sum(map(mul, SIGNS, column)) for column in zip(*columns, strict=True)]


def masked(words, bits, *, stream=1, generator="chacha20") -> list[int]:
    masks = mask_sum(len(words), bits, stream, generator)
    return [(word + mask) % 2**bits for word, mask in zip(words, masks, strict=True)]


def words_of(chunks, count, bits) -> list[int]:
    words: list[int] = []
    for index, chunk in enumerate(chunks):
        here = min(CHUNK, count - index * CHUNK)
        words += ring.unpacked(chunk[HEADER : HEADER + -(-here * bits // 8)], here, bits)
    return words


def check(chunks, *, bits, group, size, masked) -> list[int]:
    return [
        _native.check_chunk(
            chunk,
            codec=0x100 | bits,
            group=group,
            group_size=size,
            masked=masked,
            plan_digest=PLAN,
            update_id=99,
            chunk_coordinates=CHUNK,
        )
        for chunk in chunks
    ]


def test_the_uniforms_of_stochastic_rounding_are_philox_as_published():
    pi_counter = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    pi_key = (0xA4093822, 0x299F31D0)

    assert ring.philox4x32((0,) * 4, (0,) * 2) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    assert ring.philox4x32(pi_counter, pi_key) == (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)


# --- encoding ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [SEED, None], ids=["stochastic", "nearest"])
@pytest.mark.parametrize("bits", [18, 22, 32, 33, 64])
@pytest.mark.parametrize("isa", ISAS)
def test_masked_chunks_are_steps_plus_masks_on_every_instruction_set(isa, bits, seed):
    _native.use_isa(isa)
    values, size = arrays(), LAYOUT.group_size(1)

    chunks, clamped = encode(values, bits=bits, seed=seed)

    assert clamped == 0
    assert check(chunks, bits=bits, group=1, size=size, masked=True) == [0, 1, 2]
    assert words_of(chunks, size, bits) == masked(expected_steps(values, seed), bits)


def test_the_number_of_threads_does_not_show():
    assert encode(threads=2) == encode(threads=1)


def test_without_keys_the_chunks_are_not_flagged_masked():
    chunks, _ = encode(keys=(), signs=())

    size = LAYOUT.group_size(1)
    assert check(chunks, bits=22, group=1, size=size, masked=False) == [0, 1, 2]
    with pytest.raises(DecodeError):
        check(chunks, bits=22, group=1, size=size, masked=True)


@pytest.mark.parametrize("codec", ["ring22", "ring40"])
def test_chunks_without_masks_are_those_of_the_plain_ring_codec(codec):
    layout = Layout([("w", "f32", (5000,))])
    values = [np.random.default_rng(3).uniform(-1, 1, 5000).astype(np.float32)]
    number = _native.codec_number(codec)

    chunks, _ = encode(
        values, layout=layout, bits=number & 0xFF, gains=np.array([30_000.0]),
        limits=np.array([1.0]), keys=(), signs=(),
    )  # fmt: skip

    assert chunks == _native.encode_chunks(
        layout,
        values,
        codec=number,
        scale=30_000.0,
        limit=1.0,
        rounding=Secret.from_bytes(SEED),
        least_error=False,
        plan_digest=PLAN,
        update_id=99,
        chunk_coordinates=CHUNK,
        threads=1,
    )


def test_stochastic_rounding_has_no_bias():
    layout = Layout([("w", "f64", (65_536,))])
    value = [np.full(65_536, 0.3)]

    chunks, _ = encode(
        value, layout=layout, gains=np.array([1.0]), limits=np.array([1.0]), keys=(), signs=()
    )

    ups = sum(words_of(chunks, 65_536, 22))
    deviation = math.sqrt(65_536 * 0.3 * 0.7)
    assert abs(ups - 0.3 * 65_536) < 4 * deviation


# --- what values may be --------------------------------------------------------------------


def one(value, dtype="f32", **changes):
    """Encodes a tensor that holds `value` among zeros."""
    layout = Layout([("first", "f32", (3,)), ("w", dtype, (100,))])
    tensor = np.zeros(100, {"f32": np.float32, "f64": np.float64, "f16": np.float16}[dtype])
    tensor[41] = value
    arguments = {"gains": np.ones(2), "limits": np.full(2, 10.0), "keys": (), "signs": ()}
    chunks, clamped = encode(
        [np.zeros(3, np.float32), tensor], layout=layout, **{**arguments, **changes}
    )
    return ring.centered(words_of(chunks, 192, changes.get("bits", 22))[64 + 41], 22), clamped


@pytest.mark.parametrize("dtype", ["f16", "f32", "f64"])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("isa", ISAS)
def test_a_value_that_is_not_finite_is_refused_with_the_tensors_name(isa, value, clip, dtype):
    _native.use_isa(isa)
    with pytest.raises(ConfigError, match="tensor 'w' has 1 values that are not finite"):
        one(value, dtype, clip=clip)


def test_a_value_beyond_the_limit_is_refused_or_clamped_and_counted():
    with pytest.raises(ConfigError, match="tensor 'w' has 1 values beyond its limit of 10"):
        one(10.5)

    assert one(10.5, clip=True, seed=None) == (10, 1)
    assert one(-1e30, clip=True, seed=None) == (-10, 1)
    assert one(10.0, seed=None) == (10, 0)
    assert one(-10.0, seed=None) == (-10, 0)


@pytest.mark.parametrize("value", [0.5, 1.5, 2.5, -0.5, -1.5, 0.49999997, -0.0, 1e-45, -1e-45])
@pytest.mark.parametrize("isa", ISAS)
def test_rounding_to_nearest_takes_ties_to_even(isa, value):
    _native.use_isa(isa)

    assert one(value, seed=None) == (round(value), 0)


@pytest.mark.parametrize("isa", ISAS)
def test_steps_of_any_size_round_like_the_reference(isa):
    _native.use_isa(isa)
    values = [0.75, 2.0**29 - 0.5, 2.0**29 + 0.5, 2.0**51 + 0.5, 2.0**52 - 0.5, 2.0**53, 2.0**62]
    values += [-value for value in values]
    layout = Layout([("w", "f64", (len(values),))])
    for seed in (SEED, None):
        chunks, _ = encode(
            [np.array(values)], layout=layout, bits=64, gains=np.ones(1),
            limits=np.array([2.0**62]), seed=seed, keys=(), signs=(),
        )  # fmt: skip
        words = words_of(chunks, 64, 64)[: len(values)]
        assert [ring.centered(word, 64) for word in words] == [
            ring.step(value, 1.0, 2.0**62, seed, place) for place, value in enumerate(values)
        ]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"gains": np.array([1.0, 209715.2])}, "tensor 'w' can reach 2.09715e"),
        ({"gains": np.array([1.0, 0.0])}, "finite gain above 0"),
        ({"gains": np.array([1.0, math.inf])}, "finite gain above 0"),
        ({"limits": np.array([1.0, math.nan])}, "finite limit"),
        ({"limits": np.array([-1.0, 1.0])}, "tensor 'first' needs"),
        ({"limits": np.ones(3)}, "one gain and one limit per floating-point tensor"),
        ({"bits": 0}, "bits must be"),
        ({"bits": 65}, "bits must be"),
        ({"threads": 0}, "threads must be"),
        ({"keys": KEYS, "signs": (1,)}, "2 keys, 1 signs"),
    ],
)
def test_a_plan_that_cannot_hold_its_values_is_refused(change, reason):
    with pytest.raises(ConfigError, match=reason):
        one(0.0, **change)


def test_the_widest_step_that_fits_is_accepted():
    assert one(10.0, gains=np.array([1.0, (2**21 - 1) / 10]), seed=None)[0] == 2**21 - 1


@pytest.mark.parametrize(
    ("values", "error", "reason"),
    [
        (arrays()[:-1], ConfigError, "7 tensors, got 6 arrays"),
        ([*arrays(), np.zeros(1)], ConfigError, "7 tensors, got more arrays"),
        ([np.zeros(38, np.float32), *arrays()[1:]], ConfigError, "must have 37 elements, got 38"),
        ([np.zeros(37), *arrays()[1:]], TypeError, "must have dtype float32, got float64"),
        ([np.zeros(74, np.float32)[::2], *arrays()[1:]], TypeError, "must be C-contiguous"),
    ],
)
def test_arrays_that_are_not_the_layouts_are_refused_by_name(values, error, reason):
    with pytest.raises(error, match=reason):
        encode(values)


# --- ready words, and the sum ----------------------------------------------------------------


@pytest.mark.parametrize("generator", ["chacha20", "aes256ctr"])
@pytest.mark.parametrize(("bits", "group"), [(64, 0), (22, 1), (33, 2)])
def test_ready_words_are_masked_by_the_stream_of_their_group(bits, group, generator):
    words = np.arange(4100, dtype=np.uint64) * 0x9E3779B97F4A7C15
    before = words.copy()

    chunks = _native.ring_word_chunks(
        words,
        bits=bits,
        group=group,
        keys=[Secret.from_bytes(key) for key in KEYS],
        signs=list(SIGNS),
        generator=generator,
        plan_digest=PLAN,
        update_id=99,
        chunk_coordinates=CHUNK,
        threads=2,
    )

    assert check(chunks, bits=bits, group=group, size=4100, masked=True) == [0, 1]
    expected = masked([int(word) for word in words], bits, stream=group, generator=generator)
    assert words_of(chunks, 4100, bits) == expected
    assert np.array_equal(words, before)


@pytest.mark.parametrize("bits", [1, 7, 8, 16, 21, 22, 31, 32, 33, 57, 58, 64])
@pytest.mark.parametrize("isa", ISAS)
def test_folding_adds_the_words_of_complete_chunks(isa, bits):
    _native.use_isa(isa)
    count = 2 * CHUNK + 77
    dtype = np.uint32 if bits <= 32 else np.uint64
    sums = np.full(count, 5, dtype)
    expected = [5] * count
    for number in range(3):
        words = np.random.default_rng(number).integers(0, 2**63, count).astype(np.uint64)
        chunks = word_chunks(words, bits)
        _native.fold_ring_chunks(
            sums, [chunks], bits=bits, chunk_coordinates=CHUNK, threads=1 + number % 2
        )
        expected = [(a + int(b)) % 2**bits for a, b in zip(expected, words, strict=True)]

    assert [int(word) % 2**bits for word in sums] == expected


@pytest.mark.parametrize("bits", [1, 2, 8, 16, 21, 22, 31, 32, 33, 40, 57, 58, 64])
@pytest.mark.parametrize("isa", ISAS)
def test_folding_many_uploads_at_once_is_folding_them_one_by_one(isa, bits):
    """Their number goes through every way to split it: fours, twos, ones, and 32 at a time."""
    _native.use_isa(isa)
    dtype = np.uint32 if bits <= 32 else np.uint64
    random = np.random.default_rng(bits)
    for count, sizes in ((CHUNK + 2077, range(9)), (77, (31, 32, 33, 39))):
        for size in sizes:
            words = random.integers(0, 2**63, (size, count)).astype(np.uint64)
            sums = np.full(count, 5, dtype)
            uploads = [word_chunks(one, bits) for one in words]

            _native.fold_ring_chunks(
                sums, uploads, bits=bits, chunk_coordinates=CHUNK, threads=1 + size % 2
            )

            expected = (words.sum(axis=0, dtype=np.uint64) + np.uint64(5)) & np.uint64(2**bits - 1)
            assert np.array_equal(sums.astype(np.uint64) & np.uint64(2**bits - 1), expected)


def word_chunks(words, bits):
    return _native.ring_word_chunks(
        words,
        bits=bits,
        group=1,
        keys=[],
        signs=[],
        generator="chacha20",
        plan_digest=PLAN,
        update_id=99,
        chunk_coordinates=CHUNK,
        threads=1,
    )


def test_two_masked_updates_sum_to_the_sum_of_their_steps():
    values, size = arrays(), LAYOUT.group_size(1)
    sums = np.zeros(size, np.uint32)

    for signs in ((1, -1), (-1, 1)):
        chunks, _ = encode(values, signs=signs)
        _native.fold_ring_chunks(sums, [chunks], bits=22, chunk_coordinates=CHUNK, threads=1)

    steps = expected_steps(values, SEED)
    assert _native.center_ring(sums, 22).tolist() == [2 * step for step in steps]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda chunks: chunks[:-1], "3 chunks, got 2"),
        (lambda chunks: [*chunks, chunks[-1]], "3 chunks, got 4"),
        (lambda chunks: [chunks[1], chunks[0], chunks[2]], "chunk 0 .* out of order"),
        (lambda chunks: [chunks[0][:-1], *chunks[1:]], "chunk 0 must have .* bytes, got"),
        (lambda chunks: [b"", *chunks[1:]], "chunk 0 must have .* bytes, got 0"),
    ],
)
def test_chunks_that_are_not_the_whole_group_are_never_folded_out_of_bounds(change, reason):
    chunks = word_chunks(np.ones(2 * CHUNK + 64, np.uint64), 22)
    sums = np.zeros(2 * CHUNK + 64, np.uint32)

    with pytest.raises(DecodeError, match=reason):
        _native.fold_ring_chunks(
            sums, [chunks, change(chunks)], bits=22, chunk_coordinates=CHUNK, threads=1
        )
    assert not sums.any()
