"""encode() and decode(): every codec against the reference, for every kind of array."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

import veilsum
from reference import codecs as reference
from reference.rounding import FORMATS, round_to
from veilsum import EncodedUpdate, ModelLayout, _native, decode, encode
from veilsum._native import Secret
from veilsum.errors import ConfigError, DecodeError

CHUNK = 4096
SEED = bytes(range(7, 39))
BLOCK_CODECS = (
    "int8",
    "int8/b32/f16",
    "int4",
    "nf4",
    "fp4",
    "fp8_e4m3",
    "fp8_e5m2/b32",
    "fp8_e4m3/raw",
    "sign",
)
CODECS = ("f32", "f16", "bf16", *BLOCK_CODECS, "ring5", "ring16", "ring32", "ring64")
TENSORS = [
    ("a", "f32", (5, 7)),
    ("n", "i64", (3, 2)),
    ("b", "f32", (4500,)),
    ("empty", "f32", (0, 4)),
    ("scalar", "f32", ()),
    ("c", "u8", (70,)),
]


def options_of(codec: str) -> dict[str, Any]:
    return {"clip": 2.0} if codec.startswith("ring") else {}


def model() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(4)
    b = (rng.normal(size=4500) * 0.1).astype(np.float32)
    b[64:128] = 0  # a block of zeros
    b[200] = 2.0**-140  # a subnormal number
    b[128:192] = b[128:192] * 2.0**-130  # a block whose scale would be subnormal
    return {
        "a": rng.uniform(-1.9, 1.9, (5, 7)).astype(np.float32),
        "n": rng.integers(-(2**63), 2**63, (3, 2)),
        "b": b,
        "empty": np.zeros((0, 4), np.float32),
        "scalar": np.array(-1.25, np.float32),
        "c": rng.integers(0, 256, 70).astype(np.uint8),
    }


def plain(arrays: dict[str, np.ndarray]) -> list[list[float]]:
    return [array.reshape(-1).tolist() for array in arrays.values()]


def native_chunks(codec: str, seed: bytes | None, threads: int = 1) -> list[bytes]:
    is_ring = codec.startswith("ring")
    return _native.encode_chunks(
        _native.Layout(TENSORS),
        list(model().values()),
        codec=_native.codec_number(codec),
        scale=7.0 if is_ring else 0.0,
        limit=2.0 if is_ring else 0.0,
        rounding=None if seed is None else Secret.from_bytes(seed),
        least_error=False,
        plan_digest=SEED,
        update_id=99,
        chunk_coordinates=CHUNK,
        threads=threads,
    )


@pytest.mark.parametrize("seed", [None, SEED], ids=["nearest", "stochastic"])
@pytest.mark.parametrize("codec", CODECS)
def test_chunks_are_those_of_the_reference_on_every_instruction_set(
    codec: str, seed: bytes | None
) -> None:
    expected = reference.encode_update(
        TENSORS,
        plain(model()),
        codec,
        scale=7.0,
        seed=seed,
        plan=SEED,
        update_id=99,
        chunk_coordinates=CHUNK,
    )

    for isa in _native.supported_isas():
        _native.use_isa(isa)
        assert native_chunks(codec, seed) == expected
        assert native_chunks(codec, seed, threads=2) == expected


@pytest.mark.parametrize("codec", CODECS)
def test_decoded_values_are_those_of_the_reference(codec: str) -> None:
    update = encode(model(), codec, seed=3, chunk_coordinates=CHUNK, **options_of(codec))
    values: list[float] = []
    for chunk in update.body[:2]:
        _, _, _, _, _, _, _, _, count, _, scale_bytes, code_bytes, *_ = reference.HEADER.unpack(
            chunk[:60]
        )
        scales = bytes(chunk[64 : 64 + scale_bytes])
        begin = 64 + len(reference.pad(scales))
        codes = bytes(chunk[begin : begin + code_bytes])
        values += reference.decoded(codec, scales, codes, count, update.form.scale)
    spans, _ = reference.offsets(TENSORS, 1)

    for isa in _native.supported_isas():
        _native.use_isa(isa)
        decoded = list(decode(update).values())
        for number, first, elements in spans:
            assert decoded[number].reshape(-1).tolist() == values[first : first + elements]


@pytest.mark.parametrize("codec", CODECS)
def test_shapes_dtypes_and_integers_survive_exactly(codec: str) -> None:
    decoded = decode(encode(model(), codec, **options_of(codec)).to_bytes())

    assert list(decoded) == list(model())
    for name, array in model().items():
        assert decoded[name].shape == array.shape
        assert decoded[name].dtype == array.dtype
        if array.dtype.kind in "iu":
            assert np.array_equal(decoded[name], array)


@pytest.mark.parametrize(
    ("codec", "bound"),
    [
        ("f32", lambda _: 0.0),
        ("f16", lambda x: np.maximum(np.abs(x) * 2.0**-11, 2.0**-25)),
        ("bf16", lambda x: np.abs(x) * 2.0**-8),
        ("ring16", lambda _: 2.0 / (2**15 - 1) * 1.0001),
    ],
)
def test_casts_and_steps_are_off_by_no_more_than_their_rounding(
    codec: str, bound: Callable[[np.ndarray], np.ndarray | float]
) -> None:
    values = np.random.default_rng(5).uniform(-2, 2, 10_000).astype(np.float32)

    decoded = decode(encode({"w": values}, codec, **options_of(codec)))["w"]

    assert (np.abs(decoded - values) <= bound(values)).all()


def test_int8_is_off_by_at_most_half_a_step_of_its_block() -> None:
    values = (np.random.default_rng(6).normal(size=6400) * 10.0 ** np.repeat(
        np.arange(-5, 5), 640)).astype(np.float32)  # fmt: skip

    decoded = decode(encode({"w": values}, "int8"))["w"].astype(np.float64)

    steps = np.abs(values).reshape(-1, 64).max(axis=1) / 127
    errors = np.abs(decoded - values).reshape(-1, 64)
    assert (errors <= steps[:, None] * (0.5 + 1e-5)).all()


@pytest.mark.parametrize(("codec", "step"), [("int8", 1 / 127), ("ring6", 1 / 31)])
def test_stochastic_rounding_is_right_on_average(codec: str, step: float) -> None:
    # 0.3 of a step above a step, in blocks whose largest value is 1
    values = np.full(64 * 2000, 10.3 * step, np.float32)
    values[::64] = 1.0
    options = {"clip": 1.0} if codec != "int8" else {}

    decoded = decode(encode({"w": values}, codec, seed=11, **options))["w"]

    mask = np.arange(values.size) % 64 != 0
    up = np.mean(decoded[mask] > 10.6 * step)
    deviation = math.sqrt(0.3 * 0.7 / mask.sum())
    assert abs(up - 0.3) < 5 * deviation
    assert set(np.rint(decoded[mask] / step)) == {10.0, 11.0}


def test_the_same_seed_rounds_alike_and_another_does_not() -> None:
    values = {"w": np.random.default_rng(7).normal(size=5000).astype(np.float32)}

    def encoded(seed: int | bytes | None) -> bytes:
        return encode(values, "int8", seed=seed).to_bytes()

    assert encoded(1) == encoded(1) != encoded(2)
    assert encoded(b"a seed") == encoded(b"a seed") != encoded(b"another")
    assert encoded(None) == encoded(None)
    ring = [encode(values, "ring8", clip=8.0).to_bytes() for _ in range(2)]
    assert ring[0] != ring[1], "without a seed the operating system gives one"


def test_chunk_size_does_not_change_a_value() -> None:
    values = {"w": np.random.default_rng(8).normal(size=20_000).astype(np.float32)}
    for codec in ("int8", "ring12"):
        options = {"clip": 8.0} if codec != "int8" else {}
        decoded = [
            decode(encode(values, codec, seed=5, chunk_coordinates=size, **options))["w"]
            for size in (4096, 8192, 2**20)
        ]
        assert np.array_equal(decoded[0], decoded[1])
        assert np.array_equal(decoded[0], decoded[2])


def test_the_largest_float_survives_int8() -> None:
    largest = float(np.finfo(np.float32).max)
    values = np.array([largest, -largest, 0.5 * largest], np.float32)

    decoded = decode(encode({"w": values}, "int8"))["w"]

    assert np.isfinite(decoded).all()
    assert np.abs(decoded / values - 1).max() < 1 / 127


def test_blocks_too_small_for_a_scale_become_zero() -> None:
    values = np.full(64, 2.0**-130, np.float32)

    assert not decode(encode({"w": values}, "int8"))["w"].any()


@pytest.mark.parametrize("codec", ["f16", "bf16"])
def test_float64_is_rounded_once(codec: str) -> None:
    # Just beside points half-way between two numbers of the format, and just off by less than
    # an f32 shows: rounding to f32 first would make ties of them.
    precision = FORMATS[codec][0]
    halves = 1 + (2 * np.arange(0, 2 ** (precision - 1)) + 1) * 2.0**-precision
    values = np.concatenate([halves * (1 + 2.0**-40), halves * (1 - 2.0**-40), halves])

    decoded = decode(encode({"w": np.concatenate([values, -values])}, codec))["w"]

    expected = [float(round_to(Fraction(v), codec)) for v in values.tolist()]
    assert decoded.dtype == np.float64
    assert decoded.tolist() == expected + [-value for value in expected]


def test_every_half_is_widened_and_narrowed_exactly() -> None:
    patterns = np.arange(2**16, dtype=np.uint16)
    finite = patterns[(patterns & 0x7C00) != 0x7C00].view(np.float16)
    brains = patterns[(patterns & 0x7F80) != 0x7F80]
    layout = ModelLayout(_native.Layout([("w", "bf16", brains.shape)]))

    for isa in _native.supported_isas():
        _native.use_isa(isa)
        for codec in ("f16", "f32"):
            same = decode(encode({"w": finite}, codec))["w"]
            assert np.array_equal(same.view(np.uint16), finite.view(np.uint16))
        as_float = decode(encode({"w": brains}, "f32", layout=layout))["w"]
        again = decode(encode({"w": brains}, "bf16", layout=layout))["w"]
        expected = np.left_shift(brains, 16, dtype=np.uint32)
        assert np.array_equal(as_float.view(np.uint32), expected)
        assert np.array_equal(again.view(np.uint32), expected)


def test_float32_is_narrowed_to_halves_as_numpy_does() -> None:
    rng = np.random.default_rng(9)
    patterns = rng.integers(0, 2**32, 300_000, dtype=np.uint64).astype(np.uint32)
    near = (rng.integers(0x33000000, 0x47800000, 300_000)).astype(np.uint32)  # f16's own range
    ties = (near & 0xFFFFE000) | 0x1000
    values = np.concatenate([patterns, near, ties, ties + 1, ties - 1]).view(np.float32)
    values = values[np.abs(values) < 65520]

    for isa in _native.supported_isas():
        _native.use_isa(isa)
        decoded = decode(encode({"w": values}, "f16"))["w"]
        assert np.array_equal(decoded, values.astype(np.float16).astype(np.float32))


# --- arrays of every kind ----------------------------------------------------------


def as_kinds(values: np.ndarray) -> dict[str, Any]:
    frozen = values.copy()
    frozen.flags.writeable = False
    strided = np.zeros((values.shape[0], 2 * values.shape[1]), values.dtype)
    strided[:, ::2] = values
    odd = np.zeros(values.nbytes + 1, np.uint8)[1:].view(values.dtype).reshape(values.shape)
    odd[:] = values
    return {
        "numpy": values,
        "read-only": frozen,
        "big-endian": values.astype(values.dtype.newbyteorder(">")),
        "strided": strided[:, ::2],
        "transposed": np.asfortranarray(values),
        "unaligned": odd,
        "torch": torch.from_numpy(values.copy()),
        "torch strided": torch.from_numpy(np.ascontiguousarray(values.T)).T,
        "torch with gradient": torch.from_numpy(values.copy()).requires_grad_(),
        "array interface": type("Array", (), {"__array_interface__": values.__array_interface__})(),
        "dlpack": type("Array", (), {"__dlpack__": lambda _: values.__dlpack__()})(),
    }


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_arrays_of_every_kind_encode_to_the_same_bytes(dtype: type) -> None:
    values = np.random.default_rng(10).normal(size=(30, 50)).astype(dtype)
    expected = encode({"w": values}, "int8").to_bytes()

    for kind, array in as_kinds(values).items():
        assert encode({"w": array}, "int8").to_bytes() == expected, kind


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((0,), np.float32),
        np.zeros((3, 0, 2), np.float64),
        np.array(1.5, np.float16),
        np.float32(2.5),
        torch.tensor(3.5),
        torch.zeros(0, 5),
        np.arange(6, dtype=np.int8).reshape(2, 3)[:, ::-1],
    ],
)
@pytest.mark.parametrize("codec", CODECS)
def test_empty_scalar_and_reversed_arrays_survive(array: Any, codec: str) -> None:
    expected = np.asarray(array)
    options = {"clip": 16.0} if codec.startswith("ring") else {}

    decoded = decode(encode({"w": array}, codec, **options))["w"]

    assert decoded.shape == expected.shape
    assert decoded.dtype == expected.dtype
    assert np.abs(decoded.astype(float) - expected).max(initial=0) <= (
        1.1 if codec == "ring5" else 0.02
    )


def test_bfloat16_of_torch_keeps_its_values() -> None:
    values = torch.linspace(-3, 3, 200).to(torch.bfloat16)

    update = encode({"w": values.requires_grad_()}, "bf16")
    decoded = decode(update)["w"]

    assert update.layout.native.tensors == (("w", "bf16", (200,)),)
    assert decoded.dtype == np.float32
    assert np.array_equal(decoded, values.detach().float().numpy())


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.array([True]), "dtype bool"),
        (np.array([1j]), "dtype complex128"),
        (np.array(["x"]), "dtype <U1"),
        (np.array([None]), "dtype object"),
        (torch.tensor([True]), "'w'"),
        (torch.tensor([1j]), "'w'"),
        ([1.0, 2.0], "a list, not an array"),
        (torch.zeros(3, device="meta"), "'w'"),
    ],
)
def test_what_cannot_be_averaged_is_refused_by_name(array: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        encode({"w": array}, "f32")


# --- refusals -----------------------------------------------------------------------


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_counted_and_refused(codec: str, bad: float) -> None:
    values = np.zeros(10_000, np.float32)
    values[[5, 9000]] = bad

    for isa in _native.supported_isas():
        _native.use_isa(isa)
        with pytest.raises(ConfigError, match="tensor 'w' has 2 values that are not finite"):
            encode({"ok": np.ones(3), "w": values}, codec, **options_of(codec))


@pytest.mark.parametrize(
    ("codec", "array", "reason"),
    [
        ("f16", np.array([1.0, 65520.0], np.float32), "1 values too large for codec f16"),
        ("bf16", np.array([3.4e38], np.float32), "1 values too large for codec bf16"),
        ("f32", np.array([1e39, -1e300]), "2 values too large for codec f32"),
        ("int8", np.array([1e39]), "1 values too large for codec int8"),
        ("ring16", np.array([2.001]), "1 values beyond its limit"),
    ],
)
def test_values_too_large_for_the_codec_are_refused(
    codec: str, array: np.ndarray, reason: str
) -> None:
    with pytest.raises(ConfigError, match=f"tensor 'w' has {reason}"):
        encode({"w": array}, codec, **options_of(codec))


def test_the_largest_value_a_codec_rounds_down_to_is_accepted() -> None:
    decoded = decode(encode({"w": np.array([65519.996], np.float32)}, "f16"))["w"]

    assert decoded == 65504


def test_an_unsigned_value_beyond_63_bits_is_refused() -> None:
    encode({"n": np.array([2**63 - 1], np.uint64)}, "f32")
    with pytest.raises(ConfigError, match=r"tensor 'n' has a value above 2\*\*63-1"):
        encode({"n": np.array([2**63], np.uint64)}, "f32")


@pytest.mark.parametrize(
    ("codec", "options", "reason"),
    [
        ("int9", {}, "unknown codec 'int9'"),
        ("i64", {}, "unknown codec 'i64'"),
        ("ring1", {"clip": 1.0}, "unknown codec 'ring1'"),
        ("ring65", {"clip": 1.0}, "unknown codec 'ring65'"),
        ("int8", {"clip": 1.0}, "codec int8 has no option 'clip'"),
        ("ring8", {}, "needs a positive, finite clip, got None"),
        ("ring8", {"clip": 0.0}, "got 0.0"),
        ("ring8", {"clip": math.inf}, "got inf"),
        ("ring8", {"clip": 1.0, "steps": 128}, "has 1 to 127 steps, got 128"),
        ("ring8", {"clip": 1.0, "steps": 0}, "got 0"),
        ("f32", {"chunk_coordinates": 1000}, "multiple of 4096"),
        ("f32", {"update_id": -1}, "update_id"),
        ("int8", {"seed": -1}, "seed must be"),
        ("int8", {"seed": 1.5}, "seed must be"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    codec: str, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        encode({"w": np.zeros(3, np.float32)}, codec, **options)


def test_fewer_steps_are_coarser() -> None:
    values = np.linspace(-1, 1, 101, dtype=np.float32)

    decoded = decode(encode({"w": values}, "ring8", clip=1.0, steps=4, seed=1))["w"]

    assert set(decoded.tolist()) <= {step / 4 for step in range(-4, 5)}


def test_every_codec_that_is_listed_encodes() -> None:
    for codec in veilsum.codecs():
        update = encode({"w": np.linspace(-1, 1, 9)}, codec, **options_of(codec))
        assert update.codec == codec


def test_a_layout_given_fixes_the_order_and_the_dtypes() -> None:
    layout = ModelLayout.from_arrays({"a": np.zeros(2, np.float32), "b": np.zeros(1)})
    arrays = {"b": np.ones(1), "a": np.ones(2, np.float32)}

    assert list(decode(encode(arrays, "f32", layout=layout))) == ["a", "b"]
    with pytest.raises(ConfigError, match="'a' is f64, the layout has f32"):
        encode(arrays | {"a": np.ones(2)}, "f32", layout=layout)


def test_a_decoded_value_that_does_not_fit_its_tensor_is_refused() -> None:
    big = encode({"w": np.array([7e4], np.float32)}, "f32")
    form = big.form
    for dtype, tensors in (("f16", [("w", "f16", (1,))]),):
        layout = ModelLayout(_native.Layout(tensors))
        with pytest.raises(DecodeError, match=f"tensor 'w' does not fit {dtype}"):
            _native.decode_chunks(
                layout.native,
                big.body,
                codec=form.number,
                scale=0.0,
                plan_digest=form.plan_digest,
                update_id=0,
                chunk_coordinates=form.chunk_coordinates,
            )


@pytest.mark.parametrize("codec", [*CODECS, "i64"])
def test_a_gap_that_is_not_zero_is_refused(codec: str) -> None:
    group = 2 if codec == "i64" else 1
    dtype = "i64" if codec == "i64" else "f32"
    layout = ModelLayout(_native.Layout([("w", dtype, (3,)), ("v", dtype, (64,))]))
    number = 1 if codec == "i64" else reference.codec_number(codec)
    scale = 1.0 if codec.startswith("ring") else 0.0
    plan = bytes(32)
    kind = int if codec == "i64" else float
    values = [kind(value) for value in [0] * 3 + [-1] + [0] * 124]
    body = reference.sections(codec, values, 0, 1.0, None)
    chunk = reference.chunk(codec, group, 0, 0, True, body, 128, plan, 0)

    with pytest.raises(DecodeError, match="coordinate 3 lies between tensors and is not zero"):
        _native.decode_chunks(
            layout.native,
            [chunk],
            codec=number,
            scale=scale,
            plan_digest=plan,
            update_id=0,
            chunk_coordinates=4096,
        )


def test_an_update_shows_what_it_is_and_no_value() -> None:
    update = encode({"w": np.full(3, 123.25, np.float32)}, "f32")

    assert isinstance(update, EncodedUpdate)
    assert repr(update) == f"<EncodedUpdate f32, 3 elements, {update.nbytes} bytes>"
