"""Ring codecs with public rotations and tables of clips, in plain updates."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import veilsum
from reference import ring
from reference import ring_transform as reference
from veilsum import EncodedUpdate, ModelLayout, _native, decode, encode
from veilsum.codecs.transform import RingTransform, rotation_key
from veilsum.errors import ConfigError, DecodeError

SEED = hashlib.sha256(b"veilsum/rounding\0bytes\0seed").digest()
# A whole tile, a tail of 1024 + 256 + 64 * 2, gaps, and three dtypes.
SHAPES: dict[str, tuple[tuple[int, ...], Any]] = {
    "first": ((61, 50), np.float32),
    "bias": ((3,), np.float32),
    "wide": ((1500,), np.float64),
    "half": ((836,), np.float16),
}
SIZE = 5568
BLOCKS = -(-SIZE // 256)

OPTIONS: dict[str, dict[str, Any]] = {
    "rotated": {"clip": 8.0, "hadamard": 4096, "rotation_seed": 7},
    "rotated in small blocks": {"clip": 8.0, "hadamard": 64, "rotation_seed": b"public"},
    "a clip per tensor": {"clip": [8.0, 0.5, 6.5, 7.0], "scales": "tensor"},
    "a clip per block": {
        "clip": [8.0 + i / 7 for i in range(BLOCKS)],
        "scales": "block",
        "block": 256,
    },
    "a clip per tensor, rotated": {
        "clip": [8.0, 0.5, 6.5, 7.0],
        "scales": "tensor",
        "hadamard": 1024,
    },
    "a clip per block, rotated": {
        "clip": [8.0, 9.0],
        "scales": "block",
        "block": 4096,
        "hadamard": 256,
    },
}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    made = {
        name: draw.standard_normal(shape).astype(dtype) for name, (shape, dtype) in SHAPES.items()
    }
    made["bias"] *= np.float32(0.05)
    return made


def starts(layout: ModelLayout) -> list[int]:
    return [first for _, first, _ in layout.native.offsets(1)]


def coordinates(layout: ModelLayout, made: dict[str, np.ndarray]) -> np.ndarray:
    grid = np.zeros(layout.native.group_size(1))
    for name, first in zip(made, starts(layout), strict=True):
        grid[first : first + made[name].size] = made[name].reshape(-1)
    return grid


def gains(layout: ModelLayout, options: dict[str, Any], steps: int) -> np.ndarray:
    if "scales" not in options:
        return np.full(SIZE, reference.scale(steps, options["clip"]))
    block = options.get("block", 0)
    return reference.scales(options["clip"], steps, block=block, starts=starts(layout), size=SIZE)


def rotation(options: dict[str, Any]) -> dict[str, Any]:
    return {
        "block": options.get("hadamard", 0),
        "key": rotation_key(options.get("rotation_seed", 0)),
    }


def codes(update: EncodedUpdate) -> bytes:
    """The codes of all chunks of group 1, without header and padding."""
    found = b""
    for chunk in update.body:
        size = struct.unpack_from("<I", chunk, 36)[0]
        found += bytes(chunk[64 : 64 + size])
    return found


@pytest.mark.parametrize("isa", _native.supported_isas())
@every_option
def test_every_level_writes_the_steps_of_the_definition(isa: str, options: dict[str, Any]) -> None:
    _native.use_isa(isa)
    update = encode(arrays(), "ring11", seed=b"seed", chunk_coordinates=4096, **options)

    layout = update.layout
    assert layout.native.group_size(1) == SIZE
    table = gains(layout, options, 1023)
    expected = reference.steps_of(coordinates(layout, arrays()), table, SEED, **rotation(options))
    assert codes(update) == ring.packed(expected[:4096], 11) + ring.packed(expected[4096:], 11)


@pytest.mark.parametrize("isa", _native.supported_isas())
@pytest.mark.parametrize("bits", [9, 40])
@every_option
def test_every_level_decodes_to_the_values_of_the_definition(
    isa: str, bits: int, options: dict[str, Any]
) -> None:
    _native.use_isa(isa)
    update = encode(arrays(), f"ring{bits}", seed=b"seed", chunk_coordinates=8192, **options)

    table = gains(update.layout, options, veilsum.codecs.families.ring_steps(bits))
    steps = [ring.centered(word, bits) for word in ring.unpacked(codes(update), SIZE, bits)]
    expected = reference.values_of(steps, table, **rotation(options))
    decoded = decode(update.to_bytes())
    for (name, (_, dtype)), first in zip(SHAPES.items(), starts(update.layout), strict=True):
        values = decoded[name].reshape(-1)
        wanted = expected[first : first + values.size].astype(np.float32).astype(dtype)
        assert values.tobytes() == wanted.tobytes(), name


@every_option
def test_a_mean_of_transformed_updates_is_the_mean_of_what_they_decode_to(
    options: dict[str, Any], tmp_path: Any
) -> None:
    # Without f16, to which decoding would round once more than the mean does.
    sent = [{name: one.astype(np.float32) for name, one in arrays(i).items()} for i in range(3)]
    layout = ModelLayout.from_arrays(sent[0])
    updates = [encode(one, "ring8", seed=i, **options) for i, one in enumerate(sent)]
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


@every_option
def test_streamed_updates_do_not_depend_on_their_order(options: dict[str, Any]) -> None:
    layout = ModelLayout.from_arrays(arrays())
    updates = [encode(arrays(i), "ring8", layout=layout, seed=i, **options) for i in range(3)]
    digests = set()
    for order in ((0, 1, 2), (2, 0, 1)):
        bound = veilsum.Streaming(max_abs=1000.0, max_total_weight=100)
        aggregator = veilsum.Aggregator(layout, streaming=bound)
        for number in order:
            aggregator.add(updates[number], weight=number + 1, site=f"site {number}")
        digests.add(aggregator.finish().digest)

    assert len(digests) == 1


# --- what is refused -------------------------------------------------------------------


def test_a_rotated_value_beyond_the_clip_is_refused_or_clamped() -> None:
    made = {"w": np.full(4096, 1.0, np.float32)}
    signs = made["w"].copy()  # all in one coordinate after the rotation: 64
    _native.rotate(signs, block=4096, key=rotation_key(0), first=0, inverse=True, threads=1)
    flat = {"w": np.zeros(4096, np.float32)}
    flat["w"][0] = 64
    _native.rotate(flat["w"], block=4096, key=rotation_key(0), first=0, inverse=True, threads=1)

    encode(flat, "ring8", clip=64.0, hadamard=4096, seed=1)
    with pytest.raises(ConfigError, match="1 values of the rotated update are beyond its limit"):
        encode(flat, "ring8", clip=63.9, hadamard=4096, seed=1)

    clamped = encode(flat, "ring8", clip=32.0, hadamard=4096, seed=1, overrange="clip")
    rotated = decode(clamped)["w"].copy()
    _native.rotate(rotated, block=4096, key=rotation_key(0), first=0, inverse=False, threads=1)
    assert rotated[0] == pytest.approx(32.0)
    assert abs(rotated[1:]).max() < 1e-3


def test_values_that_no_rotation_can_hold_are_counted_and_not_spread() -> None:
    made = arrays()
    made["wide"][7] = 1e300
    made["first"][0, :2] = 3e38  # finite, and far beyond what may reach the rotation

    with pytest.raises(ConfigError, match="'wide' has 1 values that are not finite as f32"):
        encode(made, "ring8", clip=8.0, hadamard=4096)
    made["wide"][7] = 0
    with pytest.raises(ConfigError, match="of the rotated update are beyond its limit"):
        encode(made, "ring8", clip=8.0, hadamard=4096)
    decoded = decode(encode(made, "ring8", clip=8.0, hadamard=4096, overrange="clip"))
    assert all(np.isfinite(values).all() for values in decoded.values())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@every_option
def test_what_is_not_finite_is_refused_by_name(value: float, options: dict[str, Any]) -> None:
    made = arrays()
    made["half"][[3, 5]] = value

    with pytest.raises(ConfigError, match="'half' has 2 values that are not finite"):
        encode(made, "ring8", overrange="clip", **options)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"clip": 1.0, "hadamard": 128}, "rotates 64 or 256 or 1024 or 4096 coordinates, got 128"),
        ({"clip": 1.0, "hadamard": True}, "got True"),
        ({"clip": 1.0, "rotation_seed": 1}, "is of a rotation, and there is none"),
        ({"clip": 1.0, "hadamard": 64, "rotation_seed": -1}, "rotation_seed must be"),
        ({"clip": 1.0, "hadamard": 64, "rotation_seed": 1.5}, "rotation_seed must be"),
        ({"clip": 1.0, "overrange": "wrap"}, "'refuse' or 'clip', got 'wrap'"),
        ({"clip": [1.0], "scales": "row"}, "'tensor' or 'block', got 'row'"),
        ({"clip": [1.0], "scales": "tensor", "block": 256}, "cannot have block=256"),
        ({"clip": [1.0], "scales": "block"}, "cannot have block=0"),
        ({"clip": [1.0], "scales": "block", "block": 64}, "cannot have block=64"),
        ({"clip": [1.0, 2.0], "scales": "tensor"}, "needs 4 entries, got 2"),
        ({"clip": [1.0], "scales": "block", "block": 4096}, "needs 2 entries, got 1"),
        ({"clip": [1, 1, 1, 0], "scales": "tensor"}, "positive, finite clips"),
        ({"clip": [1, 1, 1, np.inf], "scales": "tensor"}, "positive, finite clips"),
        ({"clip": [1, 1, 1, 1e-40], "scales": "tensor"}, "positive, finite clips"),
        ({"scales": "tensor"}, "positive, finite clips"),
        ({"clip": {"first": 1.0}, "scales": "tensor"}, "clips are given for"),
        ({"clip": "wide", "scales": "tensor"}, "needs a table of clips"),
        ({"clip": [1.0] * 4}, "needs a positive, finite clip"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        encode(arrays(), "ring8", **options)


def test_clips_may_be_given_by_name() -> None:
    by_name = {"half": 7.0, "first": 8.0, "wide": 6.5, "bias": 0.5}
    in_order = [8.0, 0.5, 6.5, 7.0]

    assert (
        encode(arrays(), "ring8", seed=1, scales="tensor", clip=by_name).to_bytes()
        == encode(arrays(), "ring8", seed=1, scales="tensor", clip=in_order).to_bytes()
    )


# --- the bytes around the chunks ---------------------------------------------------


@every_option
def test_a_container_keeps_the_transform(options: dict[str, Any]) -> None:
    update = encode(arrays(), "ring8", seed=1, **options)
    parsed = EncodedUpdate.from_bytes(update.to_bytes())
    pieces = EncodedUpdate.from_chunks(update.chunks())

    assert parsed.to_bytes() == pieces.to_bytes() == update.to_bytes()
    assert len(update.to_bytes()) == update.nbytes
    assert parsed.form.options == update.form.options != b""


def test_rotated_chunks_say_so_and_others_are_refused_in_their_place() -> None:
    plain = encode(arrays(), "ring8", seed=1, clip=8.0)
    rotated = encode(arrays(), "ring8", seed=1, clip=8.0, hadamard=4096)

    assert [chunk[10] for chunk in plain.body] == [8]
    assert [chunk[10] for chunk in rotated.body] == [8 | 2]
    common = {
        "codec": 0x108,
        "group": 1,
        "group_size": SIZE,
        "masked": False,
        "update_id": 0,
        "chunk_coordinates": 65536,
    }
    digest = plain.form.plan_digest
    with pytest.raises(DecodeError, match="flags is 8, expected 10"):
        _native.check_chunk(plain.body[0], plan_digest=digest, transforms=2, **common)


def test_the_transform_is_bound_into_every_chunk() -> None:
    update = encode(arrays(), "ring8", seed=1, clip=8.0, hadamard=4096, rotation_seed=1)
    other = replace(update.form.transform, rotation_key=rotation_key(2))
    forged = EncodedUpdate(replace(update.form, transform=other), update.body)

    with pytest.raises(DecodeError, match="made for another plan"):
        EncodedUpdate.from_bytes(forged.to_bytes())


def item(tag: int, content: bytes) -> bytes:
    return struct.pack("<HI", tag, len(content)) + content


STEPS = item(1, struct.pack("<Q", 127))
ROTATION = item(2, struct.pack("<I", 64) + bytes(8))
CLIPS = item(3, struct.pack("<If", 0, 1.0))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (b"\1", "end within an item"),
        (STEPS + b"\2\0\xff\xff\xff\xff", "option 2 has 0 bytes of the 4294967295"),
        (ROTATION, "do not say the number of steps"),
        (ROTATION + STEPS, "option 1 is there twice, or behind a later one"),
        (STEPS + STEPS + ROTATION, "option 1 is there twice, or behind a later one"),
        # Seen before what is behind it: foreign options may be long.
        (STEPS + STEPS + b"\1", "option 1 is there twice, or behind a later one"),
        (bytes(7), "option 0 is unknown"),
        (item(1, bytes(8)) + ROTATION, "largest step is 0"),
        (item(1, b"\xff" * 8) + ROTATION, "largest step is 18446744073709551615"),
        (item(1, bytes(7)) + ROTATION, "option 1 cannot have 7 bytes"),
        (STEPS + item(2, struct.pack("<I", 128) + bytes(8)), "not 128"),
        (STEPS + item(2, struct.pack("<I", 0) + bytes(8)), "not 0"),
        (STEPS + item(2, bytes(3)), "option 2 cannot have 3 bytes"),
        (STEPS + item(3, b""), "option 3 cannot have 0 bytes"),
        (STEPS + item(3, struct.pack("<I", 0) + bytes(3)), "option 3 cannot have 7 bytes"),
        (STEPS + item(3, struct.pack("<If", 64, 1.0)), "not 64"),
        (STEPS + item(3, struct.pack("<If", 0, -1.0)), "clip is negative"),
        (STEPS + item(3, struct.pack("<If", 0, 1e-40)), "clip is negative"),
        (STEPS + item(3, struct.pack("<If", 0, float("nan"))), "clip is negative"),
        (STEPS + ROTATION + item(9, b""), "option 9 is unknown"),
    ],
)
def test_options_that_are_not_canonical_are_refused(options: bytes, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        RingTransform.from_bytes(options)


@pytest.mark.parametrize(
    ("codec", "options", "reason"),
    [
        ("ring8", STEPS, "a rotation or a table of clips, or both"),
        ("ring8", STEPS + CLIPS, "needs 4 entries, got 1"),
        ("int8", STEPS + ROTATION, "codec int8 has no rotation"),
    ],
)
def test_options_that_do_not_fit_the_update_are_refused(
    codec: str, options: bytes, reason: str
) -> None:
    extra = {"clip": 8.0} if codec == "ring8" else {}
    update = encode(arrays(), codec, seed=1, **extra)
    data = bytearray(update.to_bytes()[:-32])
    layout_end = 40 + len(update.layout.to_bytes())
    data[36:40] = struct.pack("<I", len(options))
    head = bytes(data[:layout_end]) + options
    head += bytes(-len(head) % 16)
    data = head + b"".join(update.body)

    with pytest.raises(DecodeError, match=reason):
        EncodedUpdate.from_bytes(data + hashlib.sha256(data).digest())


def test_options_are_read_back_as_they_were_written() -> None:
    clips = np.array([1.0, 2.5], np.float32)
    transform = RingTransform(
        steps=127, rotation_block=64, rotation_key=b"12345678", clip_block=256, clips=clips
    )

    parsed = RingTransform.from_bytes(transform.to_bytes())

    assert parsed.to_bytes() == transform.to_bytes()
    assert (parsed.rotation_key, parsed.clip_block) == (b"12345678", 256)
    assert np.array_equal(parsed.clips, clips)
