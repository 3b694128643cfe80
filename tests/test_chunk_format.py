"""Chunks and containers, byte by byte, and everything that is refused in them."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import blocks
from reference import codecs as reference
from veilsum import EncodedUpdate, _native, encode
from veilsum.errors import ConfigError, DecodeError

PLAN = bytes(range(32))
UPDATE_ID = 0x0123456789ABCDEF
CHUNK = 4096
GROUP_SIZE = 5056  # one full chunk and one of 960
CODECS = (
    "f32",
    "f16",
    "bf16",
    "int8",
    "int4/b32",
    "nf4",
    "fp4",
    "fp8_e4m3",
    "fp8_e5m2/raw",
    "sign/b128",
    "i64",
    "ring1",
    "ring7",
    "ring22",
    "ring64",
)


def check(chunk: bytes, name: str, **changes: Any) -> int:
    expected: dict[str, Any] = {
        "codec": reference.codec_number(name),
        "group": 2 if name == "i64" else 1,
        "group_size": GROUP_SIZE,
        "masked": False,
        "plan_digest": PLAN,
        "update_id": UPDATE_ID,
        "chunk_coordinates": CHUNK,
    }
    return _native.check_chunk(chunk, **expected | changes)


def values_of(codec: str, count: int) -> list[float]:
    if codec == "i64":
        return [place * 2**40 - 2**50 for place in range(count)]
    return [reference.f32(((place * 37) % 101 - 50) / 64) for place in range(count)]


@cache
def make_chunk(codec: str, index: int = 1, sections: tuple[bytes, bytes] | None = None) -> bytes:
    first = index * CHUNK
    count = min(CHUNK, GROUP_SIZE - first)
    if sections is None:
        values = [0.0] * count if codec == "ring1" else values_of(codec, count)
        sections = reference.sections(codec, values, first, 1.0, None)
    group = 2 if codec == "i64" else 1
    return reference.chunk(codec, group, index, first, index == 1, sections, count, PLAN, UPDATE_ID)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("index", [0, 1])
def test_a_chunk_built_by_the_page_is_accepted_on_every_instruction_set(
    codec: str, index: int
) -> None:
    chunk = make_chunk(codec, index)

    assert len(chunk) == _native.chunk_size(
        reference.codec_number(codec), CHUNK if index == 0 else 960
    )
    for isa in _native.supported_isas():
        _native.use_isa(isa)
        assert check(chunk, codec) == index


def test_the_checksum_is_crc32c_at_every_length_and_on_every_instruction_set() -> None:
    assert reference.crc32c(b"123456789") == 0xE3069283  # the check value of RFC 3720

    for count in (1, 2, 3, 7, 8, 9, 15, 16, 17, 63, 64, 65):
        body = bytes(range(1, 1 + count))
        chunk = reference.chunk("ring8", 1, 0, 0, True, (b"", body), count, PLAN, UPDATE_ID)
        for isa in _native.supported_isas():
            _native.use_isa(isa)
            assert check(chunk, "ring8", group_size=count) == 0


# One line per way in which a header can be wrong: offset, bytes, what the error must say.
WRONG_FIELDS = [
    (0, b"VLC2", "magic"),
    (4, b"\x02", "major version is 2, expected 1"),
    (5, b"\x01", "minor version is 1, expected 0"),
    (6, b"\x60\x00", "header size is 96, expected 64"),
    (8, b"\x02\x00", "codec is 2, expected 4"),
    (8, b"\xff\xff", "codec is 65535"),
    (10, b"\x00\x00", "flags is 0, expected 8"),
    (10, b"\x09\x00", "flags is 9, expected 8"),
    (10, b"\x0a\x00", "flags is 10, expected 8"),
    (10, b"\x08\x80", "flags is"),
    (12, b"\x02\x00\x00\x00", "group is 2, expected 1"),
    (16, struct.pack("<Q", 0), "coordinate offset is 0, expected 4096"),
    (16, struct.pack("<Q", 2**64 - 1), "coordinate offset"),
    (24, struct.pack("<I", 0), "coordinate count is 0, expected 960"),
    (24, struct.pack("<I", 961), "coordinate count is 961"),
    (24, struct.pack("<I", 2**32 - 1), "coordinate count is 4294967295"),
    (28, struct.pack("<I", 2), "index is 2, group 1 has 2 chunks"),
    (28, struct.pack("<I", 2**32 - 1), "index is 4294967295"),
    (28, struct.pack("<I", 0), "flags is 8, expected 0"),
    (32, struct.pack("<I", 64), "scale bytes is 64, expected 60"),
    (32, struct.pack("<I", 2**32 - 1), "scale bytes"),
    (36, struct.pack("<I", 976), "code bytes is 976, expected 960"),
    (36, struct.pack("<I", 2**32 - 1), "code bytes"),
    (40, b"\xff", "another plan"),
    (48, b"\x00", "another update"),
    (56, b"\x01", "reserved field is 1, expected 0"),
    (60, b"\x00\x00\x00\x00", "checksum"),
]


@pytest.mark.parametrize(("offset", "wrong", "reason"), WRONG_FIELDS)
def test_a_wrong_header_field_is_refused_by_name(offset: int, wrong: bytes, reason: str) -> None:
    chunk = make_chunk("int8")
    changed = chunk[:offset] + wrong + chunk[offset + len(wrong) :]
    if offset < 60:  # with a checksum that is right, so that only the field can be refused
        changed = reference.sealed(changed[:60], changed[64:])

    with pytest.raises(DecodeError, match=reason):
        check(changed, "int8")


@pytest.mark.parametrize("codec", CODECS)
def test_every_truncation_and_every_extra_byte_is_refused(codec: str) -> None:
    chunk = make_chunk(codec)

    for end in [*range(65), len(chunk) - 16, len(chunk) - 1]:
        with pytest.raises(DecodeError):
            check(chunk[:end], codec)
    with pytest.raises(DecodeError, match="size"):
        check(chunk + b"\0", codec)


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_any_changed_byte_is_refused(data: st.DataObject) -> None:
    codec = data.draw(st.sampled_from(CODECS))
    chunk = bytearray(make_chunk(codec))
    chunk[data.draw(st.integers(0, len(chunk) - 1))] ^= data.draw(st.integers(1, 255))

    with pytest.raises(DecodeError):
        check(bytes(chunk), codec)


@given(st.binary(max_size=300))
def test_junk_is_refused_with_a_decode_error(junk: bytes) -> None:
    for data in (junk, make_chunk("int8")[:64] + junk):
        with pytest.raises(DecodeError):
            check(data, "int8")


@pytest.mark.parametrize(
    "changes",
    [
        {"codec": 2},
        {"group": 2},
        {"group_size": GROUP_SIZE + 64},
        {"masked": True},
        {"plan_digest": bytes(32)},
        {"update_id": 0},
        {"chunk_coordinates": 8192},
    ],
)
def test_a_good_chunk_in_the_wrong_place_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(DecodeError):
        check(make_chunk("bf16"), "bf16", **changes)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"chunk_coordinates": 0}, "multiple of 4096"),
        ({"chunk_coordinates": 100}, "multiple of 4096"),
        ({"chunk_coordinates": 2**21}, "multiple of 4096"),
        ({"codec": 99}, "unknown codec number 99"),
        ({"plan_digest": b"short"}, "32 bytes"),
    ],
)
def test_expectations_that_cannot_be_are_the_callers_mistake(
    changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        check(make_chunk("int8"), "int8", **changes)


# --- alphabets -------------------------------------------------------------------


def int8_chunk(change: Callable[[bytearray, bytearray], None]) -> bytes:
    scales, codes = reference.sections("int8", values_of("int8", 960), CHUNK, 1.0, None)
    changed_scales, changed_codes = bytearray(scales), bytearray(codes)
    change(changed_scales, changed_codes)
    return make_chunk("int8", sections=(bytes(changed_scales), bytes(changed_codes)))


@pytest.mark.parametrize(
    "scale",
    [
        float("nan"),
        float("inf"),
        -1.0,
        -0.0,
        2.0**-127,
        2.0**-149,
        3.4028234663852886e38,
        2.679498e36,
    ],
)
def test_an_int8_scale_outside_the_format_is_refused(scale: float) -> None:
    def change(scales: bytearray, _: bytearray) -> None:
        struct.pack_into("<f", scales, 4 * 14, scale)

    for isa in _native.supported_isas():
        _native.use_isa(isa)
        with pytest.raises(DecodeError, match="coordinate 4992 of group 1 has a block scale"):
            check(int8_chunk(change), "int8")


@pytest.mark.parametrize("place", [0, 63, 64, 500, 959])
def test_the_int8_code_minus_128_is_refused(place: int) -> None:
    def change(_: bytearray, codes: bytearray) -> None:
        codes[place] = 0x80

    for isa in _native.supported_isas():
        _native.use_isa(isa)
        with pytest.raises(DecodeError, match="code -128"):
            check(int8_chunk(change), "int8")


def test_codes_without_a_scale_are_refused() -> None:
    def change(scales: bytearray, _: bytearray) -> None:
        struct.pack_into("<f", scales, 0, 0.0)

    with pytest.raises(DecodeError, match="codes but no scale"):
        check(int8_chunk(change), "int8")


def test_the_largest_scale_that_decodes_to_a_finite_value_is_accepted() -> None:
    largest = blocks.block_scale(blocks.parse("int8"), [3.4028234663852886e38], 1)

    def change(scales: bytearray, _: bytearray) -> None:
        struct.pack_into("<f", scales, 0, largest)

    assert check(int8_chunk(change), "int8") == 1


@pytest.mark.parametrize(
    ("codec", "pattern"),
    [
        ("f32", struct.pack("<f", float("nan"))),
        ("f32", struct.pack("<f", float("-inf"))),
        ("f32", b"\x01\x00\x80\x7f"),  # a signalling NaN
        ("f16", b"\x00\x7c"),
        ("f16", b"\x01\xfc"),
        ("bf16", b"\x80\xff"),
        ("bf16", b"\xc0\x7f"),
    ],
)
@pytest.mark.parametrize("place", [0, 17, 959])
def test_a_float_that_is_not_finite_is_refused_with_its_coordinate(
    codec: str, pattern: bytes, place: int
) -> None:
    _, codes = reference.sections(codec, values_of(codec, 960), CHUNK, 1.0, None)
    changed = codes[: place * len(pattern)] + pattern + codes[(place + 1) * len(pattern) :]

    for isa in _native.supported_isas():
        _native.use_isa(isa)
        with pytest.raises(
            DecodeError, match=f"coordinate {CHUNK + place} of group 1 is not finite"
        ):
            check(make_chunk(codec, sections=(b"", changed)), codec)


@pytest.mark.parametrize("bits", [1, 3, 7, 13, 22, 63])
def test_a_set_bit_behind_the_last_ring_word_is_refused(bits: int) -> None:
    count = 61
    size = -(-count * bits // 8)
    good = bytes(size)
    bad = bytes(size - 1) + b"\x80"
    for body, accepted in ((good, True), (bad, False)):
        chunk = reference.chunk(f"ring{bits}", 0, 0, 0, True, (b"", body), count, PLAN, UPDATE_ID)
        if accepted:
            assert check(chunk, f"ring{bits}", group=0, group_size=count) == 0
        else:
            with pytest.raises(DecodeError, match="padding bit"):
                check(chunk, f"ring{bits}", group=0, group_size=count)


@pytest.mark.parametrize("offset", [-1, -8])
def test_padding_that_is_not_zero_is_refused(offset: int) -> None:
    chunk = reference.chunk("ring8", 1, 0, 0, True, (b"", b"\1" * 5), 5, PLAN, UPDATE_ID)
    body = bytearray(chunk[64:])
    body[offset] = 1

    with pytest.raises(DecodeError, match="padding after the chunk's codes"):
        check(reference.sealed(chunk[:60], bytes(body)), "ring8", group_size=5)


def test_padding_between_scales_and_codes_must_be_zero_too() -> None:
    chunk = make_chunk("int8")  # 60 bytes of scales, 4 of padding
    body = bytearray(chunk[64:])
    body[60] = 1

    with pytest.raises(DecodeError, match="padding after the chunk's scales"):
        check(reference.sealed(chunk[:60], bytes(body)), "int8")


@pytest.mark.parametrize(
    ("name", "number"),
    [("f32", 1), ("f16", 2), ("bf16", 3), ("int8", 4), ("i64", 5), ("ring1", 257), ("ring64", 320)],
)
def test_codec_names_and_numbers_are_those_of_the_format(name: str, number: int) -> None:
    assert _native.codec_number(name) == number
    assert _native.codec_name(number) == name


@pytest.mark.parametrize(
    "name", ["", "f64", "ring", "ring0", "ring65", "ring08", "ring1x", "RING8"]
)
def test_an_unknown_codec_name_is_an_error_that_lists_the_known_ones(name: str) -> None:
    with pytest.raises(ConfigError, match="unknown codec") as caught:
        _native.codec_number(name)
    for known in ("f32, f16, bf16, int8", "topk", "eden4", "ring1 to ring64"):
        assert known in str(caught.value.hint)


@pytest.mark.parametrize("number", [0, 31, 255, 256, 321, 512, 0xFFFF])
def test_an_unknown_codec_number_is_refused(number: int) -> None:
    with pytest.raises(ConfigError, match=f"unknown codec number {number}"):
        _native.codec_name(number)
    with pytest.raises(ConfigError):
        _native.chunk_size(number, 64)


# --- the container ------------------------------------------------------------------


def small_update() -> EncodedUpdate:
    arrays = {"w": np.linspace(-1, 1, 70, dtype=np.float32), "n": np.arange(3)}
    return encode(arrays, "int8", update_id=UPDATE_ID, chunk_coordinates=CHUNK)


def test_a_container_is_laid_out_as_the_page_says() -> None:
    update = small_update()
    layout = update.layout.to_bytes()
    head = struct.pack("<4sBBHIIQdII", b"VLU1", 1, 0, 4, len(layout), 2, UPDATE_ID, 0.0, CHUNK, 0)
    plan = hashlib.sha256(
        b"veilsum/update\0" + update.layout.digest + struct.pack("<Hd", 4, 0.0)
    ).digest()
    chunks = reference.encode_update(
        [("w", "f32", (70,)), ("n", "i64", (3,))],
        [np.linspace(-1, 1, 70, dtype=np.float32).tolist(), [0, 1, 2]],
        "int8",
        scale=0.0,
        seed=None,
        plan=plan,
        update_id=UPDATE_ID,
        chunk_coordinates=CHUNK,
    )
    joined = reference.pad(head + layout) + b"".join(chunks)

    assert update.to_bytes() == joined + hashlib.sha256(joined).digest()
    assert update.nbytes == len(update.to_bytes())
    assert b"".join(update.chunks()) == joined


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_any_changed_byte_of_a_container_is_refused(data: st.DataObject) -> None:
    encoded = bytearray(small_update().to_bytes())
    encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= data.draw(st.integers(1, 255))

    with pytest.raises(DecodeError):
        EncodedUpdate.from_bytes(encoded)


def resealed(change: Callable[[bytearray], None]) -> bytes:
    """A container changed by somebody who knows how its digest is made."""
    body = bytearray(small_update().to_bytes()[:-32])
    change(body)
    return bytes(body) + hashlib.sha256(body).digest()


@pytest.mark.parametrize(
    ("offset", "wrong", "reason"),
    [
        (0, b"VLU2", "starts with"),
        (4, b"\x02", "version is 2.0"),
        (6, struct.pack("<H", 5), "integer tensors only"),
        (6, struct.pack("<H", 999), "unknown codec"),
        (6, struct.pack("<H", 0x110), "scale 0.0 does not go with codec ring16"),
        (8, struct.pack("<I", 2**32 - 1), "goes beyond"),
        (12, struct.pack("<I", 3), "chunk count is 3, the layout needs 2"),
        (16, struct.pack("<Q", 1), "another update"),
        (24, struct.pack("<d", 1.0), "scale 1.0 does not go with codec int8"),
        (24, struct.pack("<d", float("nan")), "scale nan"),
        (32, struct.pack("<I", 0), "coordinates per chunk"),
        (32, struct.pack("<I", 2**31), "coordinates per chunk"),
        (36, struct.pack("<I", 1), "options end within an item"),
        (40, b"VLL2", "layout starts with"),
    ],
)
def test_a_wrong_field_of_a_container_is_refused_by_name(
    offset: int, wrong: bytes, reason: str
) -> None:
    def change(body: bytearray) -> None:
        body[offset : offset + len(wrong)] = wrong

    with pytest.raises(DecodeError, match=reason):
        EncodedUpdate.from_bytes(resealed(change))


def test_a_container_that_claims_a_huge_layout_costs_nothing() -> None:
    layout = reference.layout_bytes([("w", "f32", (2**40,))])
    head = struct.pack("<4sBBHIIQdII", b"VLU1", 1, 0, 1, len(layout), 2**28, 0, 0.0, 4096, 0)
    body = reference.pad(head + layout)

    with pytest.raises(DecodeError, match="head asks for"):
        EncodedUpdate.from_bytes(body + hashlib.sha256(body).digest())
    with pytest.raises(DecodeError, match="has 0 chunks"):
        EncodedUpdate.from_chunks([body])


@given(st.binary(max_size=200))
def test_junk_is_no_container(junk: bytes) -> None:
    for data in (junk, b"VLU1\1\0" + junk):
        with pytest.raises(DecodeError):
            EncodedUpdate.from_bytes(data)


def test_chunks_put_together_again_are_the_same_update() -> None:
    update = small_update()

    for pieces in (list(update.chunks()), iter(map(memoryview, update.chunks()))):
        assert EncodedUpdate.from_chunks(pieces).to_bytes() == update.to_bytes()
    for data in (update.to_bytes(), bytearray(update.to_bytes()), memoryview(update.to_bytes())):
        assert EncodedUpdate.from_bytes(data).to_bytes() == update.to_bytes()


def test_missing_repeated_and_reordered_chunks_are_refused() -> None:
    arrays = {"w": np.ones(10_000, np.float32)}
    head, a, b, c = encode(arrays, "f16", chunk_coordinates=CHUNK).chunks()

    for wrong in ([], [head], [head, a, b], [head, a, b, c, c], [head, a, c, b], [head, a, a, c]):
        with pytest.raises(DecodeError):
            EncodedUpdate.from_chunks(wrong)
    with pytest.raises(DecodeError):
        EncodedUpdate.from_chunks([a, b, c])


def test_a_number_is_not_taken_for_so_many_zero_bytes() -> None:
    with pytest.raises(TypeError):
        EncodedUpdate.from_bytes(100)  # type: ignore[arg-type]
