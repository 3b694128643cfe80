"""Updates of which only a share of the blocks travels, drawn by a public seed."""

from __future__ import annotations

import hashlib
import re
import struct
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

import veilsum
from reference import codecs as whole
from reference import mean as reference_mean
from reference import subsample as reference
from reference.ring_transform import scale as ring_scale
from support.codec_options import SUBSAMPLED, required_options
from veilsum import EncodedUpdate, ErrorFeedback, ModelLayout, _native, decode, encode, rules
from veilsum.codecs.imports import export_ggml
from veilsum.codecs.subsample import parse_options
from veilsum.codecs.transform import public_key
from veilsum.errors import ConfigError, DecodeError, PeerError

ISAS = _native.supported_isas()
CODECS = {codec: required_options(codec, 8.0) for codec in SUBSAMPLED}
STOCHASTIC = ("int8", "int4", "ring")
every_codec = pytest.mark.parametrize("codec", CODECS)
SEED = hashlib.sha256(b"veilsum/rounding\0bytes\0seed").digest()

# More than two tiles, many small tensors, gaps, a last tile of 14 blocks, integers.
SHAPES: list[tuple[str, str, tuple[int, ...]]] = [
    ("first", "f32", (61, 70)),
    *((f"small {number}", "f32", (number % 5 * 31,)) for number in range(40)),
    ("scalar", "f32", ()),
    ("count", "i64", (3,)),
    ("last", "f32", (1640,)),
]
TENSORS = [(name, dtype, shape) for name, dtype, shape in SHAPES]
DTYPES = {"f32": np.float32, "f16": np.float16, "f64": np.float64, "i64": np.int64}


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    return {
        name: draw.standard_normal(shape).astype(np.float32)
        if dtype == "f32"
        else draw.integers(-9, 9, shape)
        for name, dtype, shape in SHAPES
    }


def listed(made: dict[str, np.ndarray]) -> list[list[float]]:
    return [values.reshape(-1).tolist() for values in made.values()]


def key(seed: Any) -> bytes:
    return public_key("subsample", seed)


def scale_of(codec: str) -> float:
    bits = int(codec[4:]) if codec.startswith("ring") else 0
    return ring_scale(2 ** (bits - 1) - 1, 8.0) if bits else 0.0


def subsampled(made: dict[str, np.ndarray], codec: str = "f32", **options: Any) -> EncodedUpdate:
    settings = {"subsample": 0.25, "subsample_seed": 5, **CODECS.get(codec, {}), **options}
    return encode(made, codec, **settings)


SIZE = whole.offsets(TENSORS, 1)[1]


def test_the_layout_has_a_short_last_tile() -> None:
    assert (SIZE // 4096, SIZE % 4096 // 64) == (2, 14)


# --- bytes and values --------------------------------------------------------------------


@cache
def expected_bytes(codec: str, plan: bytes, seed: bytes | None) -> tuple[bytes, ...]:
    chunks = reference.encode_update(
        TENSORS, listed(arrays()), codec, key=key(5), keep=44, scale=scale_of(codec), seed=seed,
        plan=plan, update_id=77, chunk_coordinates=4096,
    )  # fmt: skip
    return tuple(chunks)


@pytest.mark.parametrize("isa", ISAS)
@every_codec
def test_every_level_writes_the_bytes_of_the_definition(isa: str, codec: str) -> None:
    _native.use_isa(isa)
    seed = b"seed" if codec.startswith(STOCHASTIC) else None
    update = subsampled(
        arrays(), codec, subsample=44 / 64, seed=seed, update_id=77, chunk_coordinates=4096
    )

    assert update.body == expected_bytes(codec, update.form.plan_digest, SEED if seed else None)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rescale", [True, False])
@every_codec
def test_every_level_decodes_to_the_values_of_the_definition(
    isa: str, codec: str, rescale: bool
) -> None:
    _native.use_isa(isa)
    update = subsampled(
        arrays(), codec, subsample=44 / 64, seed=b"seed", rescale=rescale, chunk_coordinates=4096
    )

    expected = reference.decoded_group(
        update.body, codec, size=SIZE, key=key(5), keep=44, rescale=rescale, scale=scale_of(codec)
    )
    decoded = decode(update.to_bytes())
    for number, first, elements in whole.offsets(TENSORS, 1)[0]:
        found = decoded[TENSORS[number][0]].reshape(-1)
        wanted = np.array(expected[first : first + elements], np.float32)
        assert found.tobytes() == wanted.tobytes(), TENSORS[number][0]
    assert np.array_equal(decoded["count"], arrays()["count"])


@pytest.mark.parametrize("keep", [1, 2, 31, 32, 63])
@pytest.mark.parametrize("size", [1, 64, 65, 64 * 63, 4096, 4097, 3 * 4096 + 64 * 5])
def test_any_share_of_any_length_is_drawn_as_defined(keep: int, size: int) -> None:
    made = {"w": np.arange(1, size + 1, dtype=np.float32)}
    update = subsampled(made, subsample=keep / 64, subsample_seed=b"bytes", rescale=False)

    blocks = reference.kept_blocks(key(b"bytes"), -(-size // 64) * 64, keep)
    wanted = np.zeros(size, np.float32)
    for first, _ in blocks:
        wanted[first : first + 64] = made["w"][first : first + 64]
    assert np.array_equal(decode(update)["w"], wanted)
    assert struct.unpack_from("<I", update.body[-1], 24)[0] == 64 * len(blocks)


def test_dtypes_that_floats_do_not_hold_are_rounded_once_each_way() -> None:
    draw = np.random.default_rng(3)
    made = {
        "half": draw.standard_normal(500).astype(np.float16),
        "wide": draw.standard_normal(5000),
    }
    update = subsampled(made, "f16", subsample=0.75)
    decoded = decode(update)

    layout = ModelLayout.from_arrays(made)
    starts = [first for _, first, _ in layout.native.offsets(1)]
    for (name, values), start in zip(made.items(), starts, strict=True):
        wanted = np.zeros_like(values)
        for first, gain in reference.kept_blocks(key(5), layout.native.group_size(1), 48):
            part = slice(max(first - start, 0), max(first - start + 64, 0))
            sent = values[part].astype(np.float16).astype(np.float64)
            wanted[part] = (sent * float(gain)).astype(np.float32)
        assert np.array_equal(decoded[name], wanted), name


def test_a_model_of_integers_alone_has_nothing_to_subsample() -> None:
    made = {"count": np.arange(5)}

    assert np.array_equal(decode(subsampled(made).to_bytes())["count"], made["count"])


# --- means -------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("codec", ["f32", "int8", "nf4", "ring22"])
def test_a_mean_is_that_of_the_definition(isa: str, codec: str) -> None:
    _native.use_isa(isa)
    layout = ModelLayout.from_arrays(arrays())
    aggregator = veilsum.Aggregator(layout)
    members = []
    for number in range(3):
        update = subsampled(arrays(number), codec, seed=number, subsample_seed=number)
        aggregator.add(update, weight=number + 1, site=f"site {number}")
        values = reference.decoded_group(
            update.body, codec, size=SIZE, key=key(number), keep=16, rescale=True,
            scale=scale_of(codec),
        )  # fmt: skip
        members.append((number + 1, values))
    expected = reference_mean.mean(members, ["f32"] * SIZE)

    mean = aggregator.finish().arrays
    for number, first, elements in whole.offsets(TENSORS, 1)[0]:
        found = mean[TENSORS[number][0]].reshape(-1)
        wanted = np.array(expected[first : first + elements], np.float32)
        assert np.array_equal(found, wanted), TENSORS[number][0]


@every_codec
def test_every_way_of_adding_gives_the_mean_of_what_is_decoded(codec: str, tmp_path: Any) -> None:
    layout = ModelLayout.from_arrays(arrays())
    updates = [
        subsampled(arrays(i), codec, seed=i, subsample_seed=i, chunk_coordinates=4096)
        for i in range(3)
    ]
    decoded = veilsum.Aggregator(layout)
    for number, update in enumerate(updates):
        decoded.add(decode(update), weight=number + 1, site=f"site {number}")
    wanted = decoded.finish().digest

    for settings in ({}, {"spool": tmp_path}):
        aggregator = veilsum.Aggregator(layout, **settings)
        aggregator.add(updates[0], weight=9, site="gone")
        for number in (2, 0, 1):
            aggregator.add(updates[number].to_bytes(), weight=number + 1, site=f"site {number}")
        aggregator.remove("gone")
        assert aggregator.finish().digest == wanted


def test_subsampled_and_whole_updates_are_added_together() -> None:
    layout = ModelLayout.from_arrays(arrays())
    mixed, decoded = veilsum.Aggregator(layout), veilsum.Aggregator(layout)
    sent = [
        subsampled(arrays(0)),
        encode(arrays(1), "bf16"),
        subsampled(arrays(2), "nf4"),
    ]
    for number, update in enumerate(sent):
        mixed.add(update, weight=number + 1, site=f"site {number}")
        decoded.add(decode(update), weight=number + 1, site=f"site {number}")
    mixed.add(arrays(3), site="arrays", weight=1)
    decoded.add(arrays(3), site="arrays", weight=1)

    assert mixed.finish().digest == decoded.finish().digest


def test_streamed_updates_do_not_depend_on_their_order() -> None:
    layout = ModelLayout.from_arrays(arrays())
    updates = [subsampled(arrays(i), "int8", seed=i, subsample_seed=i) for i in range(3)]
    digests = set()
    for order in ((0, 1, 2), (2, 0, 1)):
        bound = veilsum.Streaming(max_abs=1000.0, max_total_weight=100)
        aggregator = veilsum.Aggregator(layout, streaming=bound)
        for number in order:
            aggregator.add(updates[number], weight=number + 1, site=f"site {number}")
        digests.add(aggregator.finish().digest)

    assert len(digests) == 1


def test_rules_and_clipping_see_the_decoded_values() -> None:
    layout = ModelLayout.from_arrays(arrays())
    for rule in ("median", rules.NormClipping(max_norm=1.0)):
        coded, decoded = (veilsum.Aggregator(layout, rule=rule) for _ in range(2))
        for number in range(3):
            update = subsampled(arrays(number), "int8", seed=number, subsample=0.75)
            coded.add(update, site=f"site {number}", weight=1)
            decoded.add(decode(update), site=f"site {number}", weight=1)
        assert coded.finish().digest == decoded.finish().digest


# --- what is lost ------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [4, 16, 48])
def test_the_error_is_that_of_random_k(keep: int) -> None:
    size = 2**20
    values = np.random.default_rng(1).standard_normal(size).astype(np.float32)
    share = keep / 64

    for rescale, expected in ((True, 1 / share - 1), (False, 1 - share)):
        update = subsampled({"w": values}, subsample=share, rescale=rescale, subsample_seed=9)
        error = np.square(decode(update)["w"].astype(np.float64) - values).sum()
        # Which blocks are left out of 2**14 such: their norms differ by sqrt(2/64).
        assert error / np.square(values, dtype=np.float64).sum() == pytest.approx(
            expected, rel=0.03
        )


def test_the_mean_over_seeds_is_the_update() -> None:
    values = np.ones(4096 + 64 * 5, np.float32)
    seeds = 400
    total = np.zeros(values.size)
    for seed in range(seeds):
        total += decode(subsampled({"w": values}, subsample_seed=seed))["w"]

    blocks = total.reshape(-1, 64)[:, 0] / seeds
    # Blocks of a whole tile count 4 times with probability 1/4; of five, two count 2.5 times.
    assert abs(blocks[:64] - 1).max() < 4.5 * np.sqrt(3 / seeds)
    assert abs(blocks[64:] - 1).max() < 4.5 * np.sqrt(1.5 / seeds)
    assert blocks.mean() == pytest.approx(1)


def test_blocks_are_drawn_independently_of_their_neighbours() -> None:
    values = np.ones(4096 * 256, np.float32)
    kept = decode(subsampled({"w": values}, subsample=0.5, rescale=False))["w"]
    kept = kept.reshape(-1, 64, 64)[:, :, 0]

    assert (kept.sum(axis=1) == 32).all()
    neighbours = (kept[:, 1:] * kept[:, :-1]).mean()
    assert neighbours == pytest.approx(32 * 31 / (64 * 63), abs=0.01)


# --- what is refused ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codec", "options", "reason"),
    [
        ("f32", {"subsample": 0.1}, "multiple of 1/64, got 0.1.*0.09375 or 0.109375"),
        ("f32", {"subsample": 0.001}, "multiple of 1/64, got 0.001.*give 0.015625"),
        ("f32", {"subsample": 0.999}, "multiple of 1/64, got 0.999.*give 0.984375"),
        ("f32", {"subsample": 0}, "between 0 and 1, got 0"),
        ("f32", {"subsample": 1.0}, "between 0 and 1, got 1.0"),
        ("f32", {"subsample": True}, "between 0 and 1, got True"),
        ("f32", {"subsample": "half"}, "between 0 and 1, got 'half'"),
        ("f32", {"subsample": float("nan")}, "between 0 and 1, got nan"),
        ("f32", {"subsample_seed": -1}, "subsample_seed must be bytes or an integer"),
        ("f32", {"subsample_seed": "1"}, "subsample_seed must be bytes or an integer"),
        ("f32", {"rescale": 1}, "rescale must be True or False, got 1"),
        ("sign", {}, "sign cannot be subsampled.*where they lie"),
        ("topk", {}, "topk cannot be subsampled"),
        ("eden2", {}, "eden2 cannot be subsampled"),
        ("int8", {"block": 128}, "int8/b128 cannot be subsampled.*block=64"),
        ("fp8_e4m3", {"block": 256}, "fp8_e4m3/b256 cannot be subsampled"),
        ("ring8", {"clip": 8.0, "hadamard": 64}, "with a rotation or a table of clips"),
        (
            "ring8",
            {"clip": 8.0, "scales": "block", "block": 4096},
            "with a rotation or a table of clips",
        ),
    ],
)
def test_options_that_cannot_work_are_refused(
    codec: str, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        subsampled(arrays(), codec, **options)
    text = f"{refused.value} {refused.value.hint}".replace("\n", " ")
    assert re.search(reason, text), text


def test_a_seed_is_asked_for_and_goes_with_a_subsample_only() -> None:
    with pytest.raises(ConfigError, match="needs a subsample_seed"):
        encode(arrays(), "f32", subsample=0.5)
    for option in ({"subsample_seed": 1}, {"rescale": True}):
        with pytest.raises(ConfigError, match="is of a subsample, and there is none"):
            encode(arrays(), "f32", **option)


def test_values_that_are_not_finite_are_refused_wherever_they_lie() -> None:
    made = arrays()
    made["first"][:, 3] = np.nan

    with pytest.raises(ConfigError, match="'first' has 61 values that are not finite"):
        subsampled(made, subsample=1 / 64)
    assert subsampled(made, nonfinite="zero").zeroed == 61


def test_values_that_do_not_fit_once_they_are_rescaled_are_refused() -> None:
    half = {"w": np.full(4096, 20000, np.float16)}
    wide = {"w": np.full(4096, 3e38, np.float32)}

    for made, dtype in ((half, "f16"), (wide, "f32")):
        with pytest.raises(ConfigError, match=f"1024 values that do not fit {dtype} once"):
            subsampled(made)
        kept = decode(subsampled(made, rescale=False))["w"]
        assert np.count_nonzero(kept == made["w"]) == 1024
    most = {"w": np.full(4096, 65504 / 4, np.float16)}
    assert decode(subsampled(most))["w"].max() == 65504


def test_a_value_beyond_a_ring_clip_or_an_f16_is_named() -> None:
    made = {"a": np.ones(4096, np.float32), "b": np.full(64, 70000, np.float32)}

    with pytest.raises(ConfigError, match="'b' has 64 values"):
        subsampled(made, "ring8", subsample=63 / 64, clip=2.0)
    with pytest.raises(ConfigError, match="'b' has 64 values too large for codec f16"):
        subsampled(made, "f16", subsample=63 / 64)


def test_error_feedback_takes_no_rescaled_subsample_and_a_fresh_seed_each_round() -> None:
    with pytest.raises(ConfigError, match="must not be rescaled too"):
        ErrorFeedback("f32", subsample=0.5)
    with pytest.raises(ConfigError, match="is of one update"):
        ErrorFeedback("f32", subsample=0.5, rescale=False, subsample_seed=1)

    feedback = ErrorFeedback("f32", subsample=0.5, rescale=False)
    made = {"w": np.random.default_rng(2).standard_normal(8192).astype(np.float32)}
    total, rounds = np.zeros(8192), 30
    for number in range(rounds):
        total += decode(feedback.encode(made, subsample_seed=number))["w"]
    assert np.square(total / rounds - made["w"]).sum() < 0.01 * np.square(made["w"]).sum()


def test_no_ggml_blocks_are_made_of_a_part() -> None:
    made = {"w": np.ones(4096, np.float32)}

    with pytest.raises(ConfigError, match="this one is subsampled"):
        export_ggml(subsampled(made, "int8/b32/f16"))


# --- foreign bytes -----------------------------------------------------------------------


@every_codec
def test_a_container_keeps_the_subsample(codec: str) -> None:
    update = subsampled(arrays(), codec, seed=1, rescale=False, chunk_coordinates=4096)
    parsed = EncodedUpdate.from_bytes(update.to_bytes())
    pieces = EncodedUpdate.from_chunks(update.chunks())

    assert parsed.to_bytes() == pieces.to_bytes() == update.to_bytes()
    assert parsed.form.options == reference.options(key(5), 16, False)
    assert parsed.form.subsample == update.form.subsample


def test_a_compressed_container_keeps_the_subsample() -> None:
    pytest.importorskip("zstandard")
    plain = subsampled({"w": np.ones(8192, np.float32)})
    update = subsampled({"w": np.ones(8192, np.float32)}, compression="zstd")

    assert update.nbytes < plain.nbytes
    assert EncodedUpdate.from_bytes(update.to_bytes()).to_bytes() == plain.to_bytes()


def test_subsampled_chunks_say_so() -> None:
    assert [chunk[10] for chunk in subsampled(arrays()).body] == [8 | 4, 8]


@pytest.mark.parametrize("change", [{"keep": 17}, {"key": bytes(8)}, {"rescale": False}])
def test_the_subsample_is_bound_into_every_chunk(change: dict[str, Any]) -> None:
    # One tile of one block: whatever is kept, chunks have the same size.
    update = subsampled({"w": np.ones(64, np.float32)})
    other = replace(update.form.subsample, **change)
    forged = EncodedUpdate(replace(update.form, subsample=other), update.body)

    with pytest.raises(DecodeError, match="made for another plan"):
        EncodedUpdate.from_bytes(forged.to_bytes())


ITEM = reference.options(bytes(8), 16, True)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (b"\4", "end within an item"),
        (ITEM[:-1], "one option of 10 bytes.* have 15 bytes"),
        (struct.pack("<HI", 4, 9) + ITEM[6:], "one option of 10 bytes"),
        (struct.pack("<HI", 4, 0), "one option of 10 bytes"),
        (reference.options(bytes(8), 0, True), "keeps 1 to 63 blocks and rescales or not: 0, 1"),
        (reference.options(bytes(8), 64, True), "keeps 1 to 63 blocks"),
        (reference.options(bytes(8), 255, False), "keeps 1 to 63 blocks"),
        (struct.pack("<HIBB", 4, 10, 16, 2) + bytes(8), "rescales or not: 16, 2"),
        (ITEM + ITEM, "goes with no other"),
        (struct.pack("<HIQ", 1, 8, 127) + ITEM, "option 4 is unknown"),
        (ITEM + struct.pack("<HI", 5, 0), "goes with no other"),
        (struct.pack("<HI", 5, 0), "option 5 is unknown"),
    ],
)
def test_options_that_are_not_canonical_are_refused(options: bytes, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        parse_options(options)


def resealed(update: EncodedUpdate, options: bytes) -> bytes:
    """The same update with other options in its head."""
    data = bytearray(update.to_bytes())
    data[36:40] = struct.pack("<I", len(options))
    layout_end = 40 + len(update.layout.to_bytes())
    head = bytes(data[:layout_end]) + options
    joined = head + bytes(-len(head) % 16) + b"".join(update.body)
    return joined + hashlib.sha256(joined).digest()


@pytest.mark.parametrize(
    ("codec", "reason"),
    [
        ("sign", "sign cannot be subsampled"),
        ("topk", "topk cannot be subsampled"),
        ("eden1", "eden1 cannot be subsampled"),
        ("int8/b128", "int8/b128 cannot be subsampled"),
        ("f32", "the update has [0-9]+ bytes, its head asks for"),
    ],
)
def test_options_that_do_not_fit_the_update_are_refused(codec: str, reason: str) -> None:
    update = encode({"w": np.ones(4096, np.float32)}, codec)

    with pytest.raises(DecodeError, match=reason):
        EncodedUpdate.from_bytes(resealed(update, ITEM))


def crafted(tensors: whole.Tensors, values: list[float], keep: int = 16) -> bytes:
    """An f32 update whose coded grid is filled with `values`, whatever tensors are there."""
    layout = whole.layout_bytes(tensors)
    options = reference.options(bytes(8), keep, True)
    settings = struct.pack("<Hd", 1, 0.0) + options
    plan = hashlib.sha256(
        b"veilsum/update\0" + ModelLayout.from_bytes(layout).digest + settings
    ).digest()
    header = whole.HEADER.pack(
        b"VLC1", 1, 0, 64, 1, 8 | 4, 1, 0, len(values), 0, 0, 4 * len(values), plan[:8], 0, 0
    )
    chunk = whole.sealed(header, struct.pack(f"<{len(values)}f", *values))
    head = struct.pack("<4sBBHIIQdII", b"VLU1", 1, 0, 1, len(layout), 1, 0, 0.0, 4096, len(options))
    head += layout + options
    joined = head + bytes(-len(head) % 16) + chunk
    return joined + hashlib.sha256(joined).digest()


@pytest.mark.parametrize(
    ("shape", "dtype", "value", "reason"),
    [
        ((60,), "f32", 1.0, "lies between tensors and is not zero"),
        ((64,), "f32", 3.3e38, None),
        ((4096,), "f32", 3.3e38, "beyond every f32 value"),
        ((4096,), "f16", 20000.0, "fit f16"),
    ],
)
def test_values_that_no_tensor_can_hold_are_refused(
    shape: tuple[int, ...], dtype: str, value: float, reason: str | None
) -> None:
    tensors = [("w", dtype, shape)]
    coded = 64 if shape[0] <= 64 else 1024
    data = crafted(tensors, [value] * coded)
    layout = ModelLayout.from_bytes(whole.layout_bytes(tensors))
    aggregator = veilsum.Aggregator(layout)
    if reason is None:  # a tile of one block is kept whole, with a gain of 1
        assert decode(data)["w"][0] == np.float32(value)
        aggregator.add(data, site="site", weight=1)
        return
    with pytest.raises(DecodeError, match=reason):
        decode(data)
    with pytest.raises((DecodeError, PeerError), match=reason):
        aggregator.add(data, site="site", weight=1)


def test_a_layout_of_astronomic_size_is_refused_before_anything_is_made_of_it() -> None:
    data = crafted([("w", "f32", (2**40,))], [1.0] * 64)

    with pytest.raises(DecodeError, match="chunk count is 1, the layout needs 67108864"):
        EncodedUpdate.from_bytes(data)


def test_the_native_core_refuses_what_python_would_have() -> None:
    for keep in (0, 64):
        with pytest.raises(ConfigError, match="keeps 1 to 63 blocks of 64"):
            _native.Transform.subsample(codec=1, keep=keep, key=bytes(8), rescale=True)
    with pytest.raises(ConfigError, match="subsample key"):
        _native.Transform.subsample(codec=1, keep=1, key=bytes(7), rescale=True)
    transform = _native.Transform.subsample(codec=1, keep=1, key=bytes(8), rescale=True)
    assert transform.chunk_flags == 4
