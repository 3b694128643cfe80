"""Compressed chunks: the same update behind the door, and nothing larger than it at the door."""

from __future__ import annotations

import hashlib
import struct
import sys
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

import veilsum
from support.secagg import make_plan
from veilsum import Aggregator, EncodedUpdate, ModelLayout, decode, encode
from veilsum.codecs import zstd
from veilsum.codecs.receiver import ChunkReceiver
from veilsum.errors import ConfigError, DecodeError, PeerError
from veilsum.secagg.receiver import InputReceiver, input_header

HEADER = 64
FLAGS, SIZE = 10, 56


def model() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    return {
        "w": (rng.lognormal(size=9000) * rng.choice([-1, 1], 9000)).astype(np.float32),
        "zeros": np.zeros(20_000, np.float32),
        "n": np.arange(100),
    }


def options_of(codec: str) -> dict[str, Any]:
    return {"clip": 200.0} if codec.startswith("ring") else {}


def made(codec: str = "int8", **options: Any) -> EncodedUpdate:
    return encode(
        model(), codec, chunk_coordinates=8192, update_id=3, compression="zstd",
        **options_of(codec) | options,
    )  # fmt: skip


def resealed(container: bytes) -> bytes:
    return container[:-32] + hashlib.sha256(container[:-32]).digest()


@pytest.mark.parametrize("codec", veilsum.codecs())
def test_what_comes_out_is_what_was_encoded(codec: str) -> None:
    update = made(codec, seed=1)
    plain = encode(model(), codec, chunk_coordinates=8192, update_id=3, seed=1, **options_of(codec))

    by_bytes = EncodedUpdate.from_bytes(update.to_bytes())
    by_chunks = EncodedUpdate.from_chunks(update.chunks())

    assert list(map(bytes, by_bytes.body)) == list(map(bytes, by_chunks.body)) == list(plain.body)
    assert by_bytes.to_bytes() == plain.to_bytes(), "behind the door there are plain chunks only"
    assert len(update.to_bytes()) == update.nbytes < plain.nbytes
    assert decode(update.to_bytes())["w"].tobytes() == decode(plain)["w"].tobytes()


def test_the_aggregator_takes_compressed_updates() -> None:
    layout = ModelLayout.from_arrays(model())
    digests = set()
    for options in ({}, {"compression": "zstd"}, {"compression": "zstd", "level": 19}):
        aggregator = Aggregator(layout)
        update = encode(model(), "int8", **options)
        aggregator.add(update.to_bytes(), weight=2, site="a")
        aggregator.add(update, weight=2, site="b")
        digests.add(aggregator.finish().digest)

    assert len(digests) == 1


def test_a_piece_is_a_changed_header_and_one_frame_as_the_page_says() -> None:
    update = made()
    for piece, chunk in zip(update.chunks()[1:], update.body, strict=True):
        header = bytearray(chunk[:HEADER])
        frame = bytes(piece[HEADER:])
        header[FLAGS] |= 16
        header[SIZE : SIZE + 4] = struct.pack("<I", len(frame))
        assert bytes(piece[:HEADER]) == header
        assert zstandard.ZstdDecompressor().decompress(frame) == bytes(chunk[HEADER:])


def test_a_chunk_that_does_not_get_shorter_stays_as_it_is() -> None:
    noise = np.random.default_rng(1).integers(-(2**63), 2**63, 4096)

    update = encode({"w": noise}, "f32", compression="zstd")

    assert bytes(update.chunks()[1]) == bytes(update.body[0])
    assert EncodedUpdate.from_bytes(update.to_bytes()).to_bytes() == update.to_bytes()


# --- refusals --------------------------------------------------------------------------


def frames(body: bytes, size: int) -> dict[str, tuple[bytes, str]]:
    plain = zstandard.ZstdCompressor()
    half = len(body) // 2
    dictionary = zstandard.ZstdCompressionDict(
        body[:1000], dict_type=zstandard.DICT_TYPE_RAWCONTENT
    )
    trained = zstandard.train_dictionary(
        2000, [bytes([k, k + 1, 2 * k % 256] * 50) + body[k : k + 99] for k in range(120)]
    )
    assert dictionary.dict_id() == 0
    return {
        "shorter": (plain.compress(body[:-1]), f"expands to {size - 1} bytes, expected {size}"),
        "longer": (plain.compress(body + b"\0"), f"expands to {size + 1} bytes, expected {size}"),
        "a bomb": (plain.compress(bytes(50 << 20)), f"expands to {50 << 20} bytes"),
        "two frames": (plain.compress(body[:half]) + plain.compress(body[half:]), "expands to"),
        "bytes behind it": (plain.compress(body) + b"\0", "is not a zstd frame"),
        "an empty frame behind it": (plain.compress(body) + plain.compress(b""), "not a zstd"),
        "a skippable frame": (
            b"\x50\x2a\x4d\x18\4\0\0\0abcd" + plain.compress(body), "starts with 50"
        ),
        "of unknown size": (
            zstandard.ZstdCompressor(write_content_size=False).compress(body), "expands to"
        ),
        "of a dictionary": (
            zstandard.ZstdCompressor(dict_data=trained).compress(body), "needs a dictionary"
        ),
        "of a hidden dictionary": (
            zstandard.ZstdCompressor(dict_data=trained, write_dict_id=False).compress(body), "chunk"
        ),
        "cut": (plain.compress(body)[:-3], "is not a zstd frame"),
        "nothing": (b"", "is not a zstd frame"),
        "noise": (bytes(range(7, 200)), "is not a zstd frame"),
        "other bytes": (plain.compress(bytes(size)), "checksum"),
    }  # fmt: skip


KINDS = [
    "shorter", "longer", "a bomb", "two frames", "bytes behind it", "an empty frame behind it",
    "a skippable frame", "of unknown size", "of a dictionary", "of a hidden dictionary", "cut",
    "nothing", "noise", "other bytes",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_other_frame_is_refused(kind: str) -> None:
    update = made()
    chunk = bytes(update.body[1])
    size = len(chunk) - HEADER
    frame, reason = frames(chunk[HEADER:], size)[kind]
    header = bytearray(update.chunks()[2][:HEADER])
    header[SIZE : SIZE + 4] = struct.pack("<I", len(frame))
    pieces = list(update.chunks())
    pieces[2] = bytes(header) + frame

    assert list(frames(chunk[HEADER:], size)) == KINDS
    with pytest.raises(DecodeError, match=reason):
        EncodedUpdate.from_chunks(pieces)


def test_a_window_beyond_the_limit_is_refused() -> None:
    update = made()
    chunk = bytes(update.body[1])
    size = len(chunk) - HEADER
    # Magic, descriptor: 4-byte content size, no single segment; window 2^(10 + 17); no blocks.
    frame = b"\x28\xb5\x2f\xfd" + bytes([0x80, 17 << 3]) + struct.pack("<I", size) + b"\1\0\0"
    header = bytearray(update.chunks()[2][:HEADER])
    header[SIZE : SIZE + 4] = struct.pack("<I", len(frame))

    with pytest.raises(DecodeError, match="window of 134217728 bytes, the limit is 8388608"):
        zstd.expanded(bytes(header) + frame, len(chunk))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda piece: piece[:SIZE] + struct.pack("<I", 2**32 - 1) + piece[SIZE + 4 :], "fewer"),
        (lambda piece: piece[:SIZE] + bytes(4) + piece[SIZE + 4 :], "its header says 64"),
        (lambda piece: piece + b"\0", "its header says"),
        (lambda piece: piece[:-1], "its header says"),
        (lambda piece: piece[:20], "a chunk|bytes"),
    ],
)
def test_a_piece_has_the_size_its_header_says(change: Any, reason: str) -> None:
    pieces = list(made().chunks())
    pieces[2] = change(bytes(pieces[2]))

    with pytest.raises(DecodeError, match=reason):
        EncodedUpdate.from_chunks(pieces)


def test_every_truncation_of_a_container_is_refused() -> None:
    container = made().to_bytes()
    for length in (*range(200), *range(200, len(container), 97), len(container) - 1):
        with pytest.raises(DecodeError):
            EncodedUpdate.from_bytes(resealed(container[:length] + bytes(32)))
        with pytest.raises(DecodeError):
            EncodedUpdate.from_bytes(container[:length])


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_changed_piece_gives_the_same_chunk_or_is_refused(data: st.DataObject) -> None:
    update = made()
    pieces = list(update.chunks())
    piece = bytearray(pieces[2])
    for _ in range(data.draw(st.integers(1, 3))):
        piece[data.draw(st.integers(0, len(piece) - 1))] = data.draw(st.integers(0, 255))
    pieces[2] = bytes(piece)

    try:
        parsed = EncodedUpdate.from_chunks(pieces)
    except DecodeError:
        return
    assert bytes(parsed.body[1]) == bytes(update.body[1])


def test_a_compressed_update_expands_to_no_more_than_the_limit() -> None:
    huge = encode({"w": np.zeros(2**20, np.float32)}, "f32", compression="zstd")
    container = huge.to_bytes()
    assert len(container) < 4000

    with pytest.raises(DecodeError, match="chunks of 4195328 bytes, the limit is 1000000"):
        EncodedUpdate.from_bytes(container, max_bytes=1_000_000)
    with pytest.raises(DecodeError, match="the limit is 1000000"):
        EncodedUpdate.from_chunks(huge.chunks(), max_bytes=1_000_000)
    small = Aggregator(ModelLayout.from_arrays({"w": np.zeros(64, np.float32)}))
    with pytest.raises(DecodeError, match="chunks of 4195328 bytes, the limit is"):
        small.add(container, weight=1, site="a")
    assert EncodedUpdate.from_bytes(container, max_bytes=huge.form.size).form.size == 4195328


# --- settings ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"compression": "lz4"}, "compression must be 'zstd' or None, got 'lz4'"),
        ({"compression": "zstd", "level": 0}, "level must be 1 to 19, got 0"),
        ({"compression": "zstd", "level": 20}, "level must be 1 to 19, got 20"),
        ({"compression": "zstd", "level": True}, "level must be 1 to 19, got True"),
        ({"level": 3}, "there is none"),
    ],
)
def test_settings_that_cannot_work_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        encode(model(), "int8", **options)


def test_without_the_package_it_is_an_error_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    container = made().to_bytes()
    update = encode(model(), "int8", compression="zstd")
    monkeypatch.setitem(sys.modules, "zstandard", None)

    with pytest.raises(ConfigError, match="need the package zstandard") as failed:
        update.to_bytes()
    assert failed.value.hint == "pip install 'veilsum[zstd]'"
    with pytest.raises(ConfigError, match="need the package zstandard"):
        EncodedUpdate.from_bytes(container)
    encode(model(), "int8").to_bytes()


# --- uploads -----------------------------------------------------------------------------


def receiver(update: EncodedUpdate, *, compressed: bool) -> ChunkReceiver:
    form = update.form
    return ChunkReceiver(
        "a",
        form.groups(),
        masked=False,
        plan_digest=form.plan_digest,
        update_id=form.update_id,
        hash_chunk=lambda chunk: hashlib.sha256(chunk).digest(),
        compressed=compressed,
    )


def test_an_upload_is_expanded_chunk_by_chunk_where_it_comes_in() -> None:
    update = made()
    door = receiver(update, compressed=True)

    kept = [bytes(door.add(piece)) for piece in update.chunks()[1:]]

    assert kept == list(map(bytes, update.body))
    door.finish()


def test_a_chunk_may_come_again_in_another_form_but_not_as_another_chunk() -> None:
    update = made()
    door = receiver(update, compressed=True)
    door.add(update.chunks()[1])
    door.add(update.body[0])
    door.add(zstd.compressed(update.body[0], 19))
    other = encode(model() | {"w": np.ones(9000, np.float32)}, "int8", chunk_coordinates=8192,
                   update_id=3)  # fmt: skip

    with pytest.raises(PeerError, match="sent chunk 0 again with other bytes"):
        door.add(zstd.compressed(other.body[0], 3))
    assert door.next_index == 1


def test_a_compressed_chunk_is_refused_unless_the_plan_allows_it() -> None:
    update = made()
    door = receiver(update, compressed=False)

    with pytest.raises(DecodeError, match="chunk 0 is compressed, the round's plan has no"):
        door.add(update.chunks()[1])
    door.add(update.body[0])


def test_a_masked_upload_takes_no_compressed_chunk() -> None:
    plan = make_plan(4)
    site = plan.cohort[0]
    door = InputReceiver(plan, site, input_header(plan, site, bytes(32), []), update_id=7)
    header = bytearray(64)
    header[FLAGS] = 16 | 1
    header[12:16] = struct.pack("<I", plan.ring.streams[0].group)

    with pytest.raises(DecodeError, match="chunk 0 is compressed, the round's plan has no"):
        door.add(bytes(header) + zstandard.ZstdCompressor().compress(bytes(100)))
