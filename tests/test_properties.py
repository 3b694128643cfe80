"""Any bytes either decode or are refused, and cost no more than they declare."""

from __future__ import annotations

import hashlib
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
from veilsum import Aggregator, EncodedUpdate, ModelLayout, _native, codecs, decode, encode
from veilsum.codecs.families import FAMILIES, find_family
from veilsum.errors import DecodeError, PeerError

LAYOUT = ModelLayout(
    _native.Layout([("w", "f32", (70,)), ("h", "f16", (3,)), ("n", "i16", (5,)), ("s", "f32", ())])
)
LARGEST = 8.0
KIB = 1024


def valid(codec: str) -> bytes:
    rng = np.random.default_rng(3)
    arrays = {
        "w": rng.uniform(-LARGEST, LARGEST, 70).astype(np.float32),
        "h": np.array([1, -2, 0], np.float16),
        "n": np.arange(5, dtype=np.int16),
        "s": np.array(0.5, np.float32),
    }
    options = required_options(codec, LARGEST)
    return encode(arrays, codec, layout=LAYOUT, seed=1, **options).to_bytes()


# Of the ring codecs two: their decoders differ by a number only.
CODECS = tuple(dict.fromkeys(name for f in FAMILIES for name in (f.names[0], f.names[-1])))
VALID = {codec: valid(codec) for codec in CODECS}
HEAD = struct.Struct("<4sBBHIIQdII")


# --- mutations ---------------------------------------------------------------------------


def overwrite(data: bytes, place: int, new: bytes) -> bytes:
    return data[:place] + new + data[place + len(new) :]


def chunks_begin(data: bytes) -> int:
    layout_bytes = HEAD.unpack_from(data)[4]
    end = HEAD.size + layout_bytes
    return end + -end % 16


def resealed(data: bytes) -> bytes:
    """The same with checksums and digest that fit, so that only what they cover can be wrong."""
    if len(data) < HEAD.size + 32:
        return data
    body, begin = data[:-32], chunks_begin(data)
    while begin + 64 <= len(body):
        scales, codes = struct.unpack_from("<II", body, begin + 32)
        end = begin + 64 + scales + -scales % 16 + codes + -codes % 16
        if end > len(body):
            break
        checksum = reference.crc32c(body[begin : begin + 60] + body[begin + 64 : end])
        body = overwrite(body, begin + 60, struct.pack("<I", checksum))
        begin = end
    return body + hashlib.sha256(body).digest()


def mutation() -> st.SearchStrategy[Callable[[bytes], bytes]]:
    place = st.integers(0, 2**16)
    integers = st.sampled_from([0, 1, 127, 128, 255, 2**31 - 1, 2**31, 2**32 - 1])
    floats = st.sampled_from(
        [struct.pack("<f", x) for x in (0.0, -0.0, -1.0, 1e-45, 1e-39, np.inf, -np.inf, np.nan)]
    )
    new = st.one_of(
        st.binary(min_size=1, max_size=8), integers.map(lambda n: struct.pack("<I", n)), floats
    )
    return st.one_of(
        st.builds(lambda at, b: lambda d: overwrite(d, at % len(d), b)[: len(d)], place, new),
        st.builds(lambda at, b: lambda d: d[: at % len(d)] + b + d[at % len(d) :], place, new),
        st.builds(lambda at, n: lambda d: d[: at % len(d)] + d[at % len(d) + n :], place, place),
        st.builds(lambda at: lambda d: d[: at % len(d)], place),
    )


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


@pytest.mark.parametrize("codec", CODECS)
@given(mutations=st.lists(mutation(), min_size=1, max_size=3), sealed=st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_mutated_update_decodes_or_is_refused_within_its_size(
    codec: str, mutations: list[Callable[[bytes], bytes]], sealed: bool
) -> None:
    data = VALID[codec]
    for mutate in mutations:
        data = mutate(data) or b"\0"
    if sealed:
        data = resealed(data)

    decoded, decode_peak = peak_of(lambda: outcome(data))
    added, add_peak = peak_of(lambda: add(data))

    assert max(decode_peak, add_peak) < 4 * len(data) + 256 * KIB
    if decoded == "refused":
        assert added == "refused"


@pytest.mark.parametrize("codec", CODECS)
@given(mutations=st.lists(mutation(), min_size=1, max_size=2), where=st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_scales_and_codes_of_every_codec_decode_or_are_refused(
    codec: str, mutations: list[Callable[[bytes], bytes]], where: float
) -> None:
    # Past the header of the first chunk: with right checksums only the alphabet can be wrong.
    data, begin = VALID[codec], chunks_begin(VALID[codec]) + 64
    sizes = struct.unpack_from("<II", data, begin - 32)
    body = data[begin : begin + sum(size + -size % 16 for size in sizes)]
    changed = body
    for mutate in mutations:
        changed = mutate(changed) or b"\0"
    data = resealed(overwrite(data, begin, changed[: len(body)].ljust(len(body), b"\0")))

    if outcome(data) == "refused":
        assert add(data) == "refused"


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
        [sys.executable, "-c", CHILD], input=data, capture_output=True, timeout=120, check=False
    )

    assert done.returncode == 0, done.stderr.decode()


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
