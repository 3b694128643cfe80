"""Any bytes either decode or are refused, and cost no more than they declare."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from reference import codecs as reference
from support.codec_options import every_codec, required_options
from support.mutations import HEAD, Mutation, chunks_begin, mutated, mutation, overwrite, resealed
from veilsum import Aggregator, EncodedUpdate, ModelLayout, _native, codecs, decode, encode
from veilsum.codecs import zstd
from veilsum.codecs.families import FAMILIES, find_family
from veilsum.codecs.form import CHUNK_ROTATED
from veilsum.codecs.receiver import ChunkReceiver
from veilsum.errors import DecodeError, PeerError

LAYOUT = ModelLayout(
    _native.Layout([("w", "f32", (70,)), ("h", "f16", (3,)), ("n", "i16", (5,)), ("s", "f32", ())])
)
LARGEST = 8.0
KIB = 1024


def valid(codec: str, **chosen: Any) -> bytes:
    rng = np.random.default_rng(3)
    arrays = {
        "w": rng.uniform(-LARGEST, LARGEST, 70).astype(np.float32),
        "h": np.array([1, -2, 0], np.float16),
        "n": np.arange(5, dtype=np.int16),
        "s": np.array(0.5, np.float32),
    }
    options = required_options(codec, LARGEST) | chosen
    return encode(arrays, codec, layout=LAYOUT, seed=1, **options).to_bytes()


# Of the ring codecs two: their decoders differ by a number only.
CODECS = tuple(dict.fromkeys(name for f in FAMILIES for name in (f.names[0], f.names[-1])))
VALID = {codec: valid(codec) for codec in CODECS} | {
    "rotated": valid("ring8", hadamard=64, overrange="clip"),
    "clip by tensor": valid("ring12", scales="tensor", clip=[8.0, 2.0, 1.0]),
    "clip by block": valid("ring16", scales="block", block=256, clip=[60.0], hadamard=256),
    "subsampled": valid("int8", subsample=0.5, subsample_seed=1),
}
COMPRESSED = {
    codec: valid(codec, compression="zstd", level=19) for codec in ("f32", "int8", "sign", "ring64")
}


# --- properties ----------------------------------------------------------------------------


def peak_of(action: Callable[[], Any]) -> tuple[Any, int]:
    """The result, and the most bytes that Python and NumPy had allocated meanwhile."""
    tracemalloc.start()
    try:
        return action(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def outcome(data: bytes) -> str:
    try:
        decode(data)
    except DecodeError:
        return "refused"
    return "decoded"


def add(data: bytes) -> str:
    mean = Aggregator(LAYOUT, threads=1)
    try:
        mean.add(data, weight=3, site="lyon")
    except (DecodeError, PeerError):
        assert mean.sites == ()
        return "refused"
    mean.finish()
    return "added"


@pytest.mark.parametrize("form", [*VALID, *(f"{codec}, compressed" for codec in COMPRESSED)])
@given(mutations=st.lists(mutation(), min_size=1, max_size=3), sealed=st.booleans())
@settings(max_examples=60)
def test_a_mutated_update_decodes_or_is_refused_within_its_size(
    form: str, mutations: list[Mutation], sealed: bool
) -> None:
    data = VALID[form] if form in VALID else COMPRESSED[form.partition(",")[0]]
    for mutate in mutations:
        data = mutate(data) or b"\0"
    if sealed:
        data = resealed(data)

    decoded, decode_peak = peak_of(lambda: outcome(data))
    added, add_peak = peak_of(lambda: add(data))

    assert max(decode_peak, add_peak) < 4 * len(data) + 256 * KIB
    if decoded == "refused":
        assert added == "refused"


@pytest.mark.parametrize("form", VALID)
@given(mutations=st.lists(mutation(), min_size=1, max_size=2))
@settings(max_examples=60)
def test_scales_and_codes_of_every_codec_decode_or_are_refused(
    form: str, mutations: list[Mutation]
) -> None:
    # Past the header of the first chunk: with right checksums only the alphabet can be wrong.
    data, begin = VALID[form], chunks_begin(VALID[form]) + 64
    sizes = struct.unpack_from("<II", data, begin - 32)
    body = data[begin : begin + sum(size + -size % 16 for size in sizes)]
    changed = body
    for mutate in mutations:
        changed = mutate(changed) or b"\0"
    data = resealed(overwrite(data, begin, changed[: len(body)].ljust(len(body), b"\0")))

    if outcome(data) == "refused":
        assert add(data) == "refused"


@pytest.mark.parametrize("form", ["f32", "int8", "sign", "eden4", "topk", "rotated", "compressed"])
@given(mutations=st.lists(mutation(), max_size=2), place=st.integers(0, 1))
@settings(max_examples=60)
def test_a_mutated_piece_of_an_upload_is_its_chunk_or_is_refused(
    form: str, mutations: list[Mutation], place: int
) -> None:
    update = EncodedUpdate.from_bytes(COMPRESSED["f32"] if form == "compressed" else VALID[form])
    pieces = [zstd.compressed(c, 3) if form == "compressed" else c for c in update.body]
    piece = bytes(pieces[place])
    for mutate in mutations:
        piece = mutate(piece) or b"\0"
    door = receiver(update)
    if place:
        door.add(pieces[0])

    try:
        taken, peak = peak_of(lambda: door.add(piece))
    except (DecodeError, PeerError):
        # Nothing is remembered of it.
        assert bytes(door.add(pieces[place])) == bytes(update.body[place])
        return
    assert bytes(taken) == bytes(update.body[place])
    assert peak < 4 * len(taken) + 64 * KIB


def receiver(update: EncodedUpdate) -> ChunkReceiver:
    form = update.form
    groups = [
        dataclasses.replace(group, transforms=CHUNK_ROTATED) if form.transform else group
        for group in form.groups()[:1]
    ]
    return ChunkReceiver(
        "lyon",
        [*groups, *form.groups()[1:]],
        masked=False,
        plan_digest=form.plan_digest,
        update_id=form.update_id,
        hash_chunk=lambda chunk: hashlib.sha256(chunk).digest(),
        compressed=True,
    )


@given(st.binary(max_size=400))
@example(b"")
def test_junk_is_refused(junk: bytes) -> None:
    for data in (junk, VALID["f32"][:40] + junk):
        assert outcome(data) == "refused"
        assert add(data) == "refused"


# --- claims --------------------------------------------------------------------------------


def claim(tensors: reference.Tensors, codec: int, chunks: int) -> bytes:
    """A head that promises much, and nothing behind it."""
    parts = [reference.layout_bytes([tensor])[8:] for tensor in tensors]
    layout = b"VLL1" + struct.pack("<I", len(tensors)) + b"".join(parts)
    head = HEAD.pack(b"VLU1", 1, 0, codec, len(layout), chunks, 0, 0.0, 65536, 0) + layout
    body = head + bytes(-len(head) % 16)
    return body + hashlib.sha256(body).digest()


CLAIMS = [
    claim([("w", "f32", (2**40,))], 1, 2**24),
    claim([("w", "f64", (2**20, 2**20))], 4, 2**24),
    claim([(f"t{number}", "i64", (2**24,)) for number in range(65536)], 1, 2**24),
    claim([("w", "f32", (2**40,))], 1, 2**32 - 1),
    # Blocks that reach from one tensor into the next.
    claim([("v", "f32", (64,)), ("w", "f32", (64,))], _native.codec_number("int8/b256"), 1),
]

CHILD = """
import resource, sys
import veilsum
from veilsum.errors import DecodeError
data = sys.stdin.buffer.read()
veilsum.decode(veilsum.encode({"w": __import__("numpy").ones(64, "f4")}, "f32"))  # all loaded
now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + 64 * 2**20, now + 64 * 2**20))
try:
    veilsum.decode(data)
except DecodeError:
    sys.exit(0)
sys.exit("was not refused")
"""


@pytest.mark.parametrize("data", CLAIMS, ids=["2**40", "f64", "65536 tensors", "chunks", "blocks"])
def test_a_claim_is_refused_in_64_mebibytes(data: bytes) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD], input=data, capture_output=True, timeout=600, check=False
    )

    assert done.returncode == 0, done.stderr.decode()


# The core is asked directly: nothing in front of it counts chunks.
NO_CHUNKS = """
import resource, sys
from veilsum import _native
from veilsum.errors import DecodeError
form = {"codec": 1, "scale": 0.0, "plan_digest": bytes(32), "update_id": 0,
        "chunk_coordinates": 65536}
layout = _native.Layout([("w", "f32", (2**34,))])
now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + 64 * 2**20, now + 64 * 2**20))
try:
    _native.decode_chunks(layout, [bytes(64)], **form)
except DecodeError:
    sys.exit(0)
sys.exit("was not refused")
"""


def test_arrays_are_allocated_only_when_the_chunks_that_fill_them_are_there() -> None:
    done = subprocess.run(
        [sys.executable, "-c", NO_CHUNKS], capture_output=True, timeout=600, check=False
    )

    assert done.returncode == 0, done.stderr.decode()


# Updates in one stream, each behind its length. Threads would reserve stacks; there is one.
MANY = """
import resource, sys
import numpy, veilsum, zstandard
from veilsum.errors import DecodeError, PeerError
arrays = {"w": numpy.ones(64, "f4")}
veilsum.decode(veilsum.encode(arrays, "int8", compression="zstd").to_bytes(), threads=1)
now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + 24 * 2**20, now + 24 * 2**20))
taken = 0
while size := int.from_bytes(sys.stdin.buffer.read(4), "little"):
    data = sys.stdin.buffer.read(size)
    try:
        update = veilsum.EncodedUpdate.from_bytes(data, max_bytes=2**20)
        veilsum.decode(update, threads=1)
        mean = veilsum.Aggregator(update.layout, threads=1)
        mean.add(data, weight=1, site="lyon")
        taken += 1
    except (DecodeError, PeerError):
        pass
print(taken)
"""


def claiming(data: bytes, size: int) -> bytes:
    """The update with another number of elements in its first tensor, and as many chunks as that
    layout needs, which are not there."""
    floats = size + -size % 64 + 64 + 64
    count = -(-floats // 65536) + 1
    head = overwrite(data, 12, struct.pack("<I", count % 2**32))
    dimension = HEAD.size + 4 + 4 + 2 + 1 + 1 + 1  # magic, tensors, length of "w", "w", dtype, rank
    return resealed(overwrite(head, dimension, struct.pack("<Q", size)))


def test_thousands_of_mutated_updates_are_taken_or_refused_in_24_mebibytes() -> None:
    # All memory counts here, that of the native core and of zstd, too.
    rng = np.random.default_rng(20260726)
    updates = [
        mutated(data, rng) for _ in range(100) for data in (*VALID.values(), *COMPRESSED.values())
    ]
    updates += [claiming(data, 2**power) for data in VALID.values() for power in range(8, 41, 4)]
    stream = b"".join(struct.pack("<I", len(update)) + update for update in updates)
    # A sanitizer would keep what is freed, and the limit counts it.
    keep_nothing = "quarantine_size_mb=0:thread_local_quarantine_size_kb=0"
    sanitizer = ":".join(filter(None, (os.environ.get("ASAN_OPTIONS"), keep_nothing)))

    done = subprocess.run(
        [sys.executable, "-c", MANY],
        input=stream,
        capture_output=True,
        timeout=600,
        check=False,
        env=os.environ | {"ASAN_OPTIONS": sanitizer},
    )

    assert done.returncode == 0, done.stderr.decode()[-2000:]
    assert len(updates) / 20 < int(done.stdout) < len(updates) / 2


# --- scales that cost time ---------------------------------------------------------------------


def one_chunk(codec: str) -> tuple[bytes, Any]:
    values = np.linspace(-LARGEST, LARGEST, 1024, dtype=np.float32)
    update = encode({"w": values}, codec, seed=1, **required_options(codec, LARGEST))
    return bytes(update.body[0]), update.form


def scale_size(codec: str) -> int:
    """2 or 4; 0 for a codec without scales."""
    base, *chosen = codec.split("/")
    formats = find_family(base).scales
    if not formats or "raw" in chosen:
        return 0
    return {"f16": 2, "f32": 4}[next((word for word in chosen if word in formats), formats[0])]


def codecs_with_scales() -> list[tuple[str, int]]:
    """Every codec and variant that has scales, and the bytes of one."""
    candidates = [codec for codec in every_codec() if codec.partition("/")[0] in codecs()]
    return [(codec, size) for codec in candidates if (size := scale_size(codec))]


# Subnormal (an f16 is not as an f32), negative, infinite, not a number.
BAD_SCALES = {
    4: [1, 0x007FFFFF, 0x80000000, 0x80000001, 0xBF800000, 0x7F800000, 0xFF800000, 0x7FC00000],
    2: [0x8000, 0x8001, 0xBC00, 0x7C00, 0xFC00, 0x7E00],
}


@pytest.mark.parametrize(("codec", "size"), codecs_with_scales())
def test_a_scale_that_would_cost_time_is_refused_before_anything_is_decoded(
    codec: str, size: int
) -> None:
    chunk, form = one_chunk(codec)
    (scales,) = struct.unpack_from("<I", chunk, 32)
    check = {
        "codec": form.number,
        "group": 1,
        "group_size": 1024,
        "masked": False,
        "plan_digest": form.plan_digest,
        "update_id": form.update_id,
        "chunk_coordinates": form.chunk_coordinates,
    }
    head = EncodedUpdate(form, [chunk]).chunks()[0]
    bad = [
        overwrite(chunk, 64 + place, pattern.to_bytes(size, "little"))
        for place in (0, scales - size)
        for pattern in BAD_SCALES[size]
    ]
    sealed = [reference.sealed(one[:60], one[64:]) for one in bad]
    for isa in _native.supported_isas():
        _native.use_isa(isa)
        assert _native.check_chunk(chunk, **check) == 0
        for one in sealed:
            # The checks of a chunk end in this error; nothing behind them sees the scale.
            with pytest.raises(DecodeError, match="scale"):
                _native.check_chunk(one, **check)
            with pytest.raises(DecodeError, match="scale"):
                EncodedUpdate.from_chunks([head, one])
