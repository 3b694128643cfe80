"""Golden vectors for veilsum_replay: make_vectors.py FILE.

What this machine computes, through the module that the other tests hold against independent
references. The records are described in replay.h.
"""

from __future__ import annotations

import hashlib
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from reference.ring import uniform24
from support.codec_options import required_options
from veilsum import (
    Aggregator,
    EncodedUpdate,
    ModelLayout,
    Streaming,
    _native,
    codecs,
    decode,
    encode,
)
from veilsum.codecs.families import codec_settings

LAYOUT = ModelLayout(
    _native.Layout(
        [
            ("a", "f32", (4200,)),
            ("h", "f16", (70,)),
            ("n", "i64", (6,)),
            ("b", "bf16", (130,)),
            ("u", "u8", (9,)),
            ("s", "f32", ()),
        ]
    )
)
WEIGHTS = {"lyon": 1, "osaka": 2**31 - 1, "quito": 12_345, "oslo": 977, "bern": 3}
ORDERS = 1000
LARGEST = 64.0  # magnitude in model()


def record(kind: str, *fields: bytes) -> bytes:
    parts = [kind.encode(), *fields]
    return struct.pack("<I", len(parts)) + b"".join(
        struct.pack("<I", len(part)) + part for part in parts
    )


def model(number: int) -> dict[str, np.ndarray]:
    """Values over twenty powers of two, within +-64."""
    rng = np.random.default_rng(number)

    def floats(count: int, dtype: Any) -> np.ndarray:
        values = rng.uniform(-1, 1, count) * 2.0 ** rng.integers(-14, 6, count)
        return values.astype(dtype)

    brains = floats(130, np.float32).view(np.uint32) >> 16
    return {
        "a": floats(4200, np.float32),
        "h": floats(70, np.float16),
        "n": rng.integers(-(2**62), 2**62, 6),
        "b": brains.astype(np.uint16),
        "u": rng.integers(0, 256, 9).astype(np.uint8),
        "s": floats(1, np.float32).reshape(()),
    }


def raw(arrays: Sequence[np.ndarray]) -> bytes:
    return b"".join(array.tobytes() for array in arrays)


# --- masks -------------------------------------------------------------------------


WIDTHS = (1, 2, 7, 8, 12, 16, 20, 22, 24, 25, 31, 32, 33, 48, 57, 63, 64)


def masks() -> Iterator[bytes]:
    for number, bits in enumerate(WIDTHS):
        for generator in ("chacha20", "aes256ctr"):
            yield mask_vector(number, bits, generator)


def mask_vector(number: int, bits: int, generator: str) -> bytes:
    rng = np.random.default_rng(number)
    stream, first, count = number % 3, int(rng.integers(0, 2**31)), 1500 + number
    keys = [rng.bytes(32) for _ in range(3)]
    signs = [1, -1, 1]
    words = np.zeros(count, np.uint64 if bits > 32 else np.uint32)
    _native.add_masks(
        words,
        [_native.Secret.from_bytes(key) for key in keys],
        signs,
        generator=generator,
        stream=stream,
        first=first,
        bits=bits,
        threads=1,
    )
    place = [struct.pack("<I", stream), struct.pack("<I", bits)]
    place += [struct.pack("<Q", first), struct.pack("<Q", count)]
    key_fields = [b"".join(keys), struct.pack("<3i", *signs)]
    packed = _native.pack_ring(words, bits)
    return record("masks", generator.encode(), *place, *key_fields, packed)


def packing() -> Iterator[bytes]:
    for number, bits in enumerate(WIDTHS):
        full = np.random.default_rng(number).integers(0, 2**64, 777, np.uint64)
        packed = _native.pack_ring(full, bits)
        yield record("packing", struct.pack("<I", bits), full.tobytes(), packed)


# --- codecs ---------------------------------------------------------------------------


def form_fields(update: EncodedUpdate) -> list[bytes]:
    form = update.form
    return [
        struct.pack("<H", form.number),
        struct.pack("<d", form.scale),
        form.plan_digest[:8],
        struct.pack("<Q", form.update_id),
        struct.pack("<Q", form.chunk_coordinates),
    ]


def encoded(arrays: dict[str, np.ndarray], codec: str, seed: int | None = 7) -> EncodedUpdate:
    options = required_options(codec, LARGEST)
    return encode(
        arrays, codec, layout=LAYOUT, seed=seed, chunk_coordinates=4096, update_id=77, **options
    )


def rounding_key(seed: int | None) -> bytes:
    """The Philox key that encode() makes of a seed."""
    if seed is None:
        return b""
    named = b"integer\0" + seed.to_bytes(32, "little")
    return hashlib.sha256(b"veilsum/rounding\0" + named).digest()[:8]


def rounding_vectors() -> Iterator[bytes]:
    """By the reference, not by this machine's module: it takes no coordinates so far away."""
    key = bytes(range(8))
    values = np.resize(np.array([0.25, 0.5, 0.75], np.float32), 256)
    for first in (0, 2**33, 2**34, 2**34 + 2**20, 2**40 - 256):
        drawn = [uniform24(key, first + place, 1) * 2.0**-24 for place in range(values.size)]
        steps = np.floor(values + np.array(drawn)).astype(np.int32)
        place = [struct.pack("<Q", first), struct.pack("<I", 1), key]
        yield record("rounding", *place, values.tobytes(), steps.tobytes())


def decoding_vectors() -> Iterator[bytes]:
    for number, codec in enumerate(codecs()):
        update = encoded(model(number), codec)
        arrays = list(decode(update).values())
        yield record(
            "decoding", LAYOUT.to_bytes(), *form_fields(update), b"".join(update.body), raw(arrays)
        )


def encoding_vectors() -> Iterator[bytes]:
    for number, codec in enumerate(codecs()):
        arrays = model(100 + number)
        # Without a seed some codecs take one from the operating system.
        draws = codec_settings(codec, required_options(codec, LARGEST)).always_stochastic
        for seed in (7,) if draws else (None, 7):
            update = encoded(arrays, codec, seed)
            yield record(
                "encoding",
                LAYOUT.to_bytes(),
                *form_fields(update),
                struct.pack("<d", required_options(codec, LARGEST).get("clip", 0.0)),
                rounding_key(seed),
                raw(list(arrays.values())),
                b"".join(update.body),
            )


# --- means --------------------------------------------------------------------------------


def site_fields(number: int, site: str, weight: int, codec: str | None) -> tuple[Any, list[bytes]]:
    """A site's update, and the fields that say it."""
    arrays = model(200 + number)
    fields = [site.encode(), struct.pack("<q", weight), bytes([codec is not None])]
    if codec is None:
        return arrays, [*fields, raw(list(arrays.values()))]
    update = encoded(arrays, codec)
    return update, [*fields, *form_fields(update), b"".join(update.body)]


def bf16_bits(array: np.ndarray) -> np.ndarray:
    return (array.view(np.uint32) >> 16).astype(np.uint16)


def mean_vector(codec_of: dict[str, str | None], streaming: Streaming | None, orders: int) -> bytes:
    mean = Aggregator(LAYOUT, threads=1, streaming=streaming)
    fields = [struct.pack("<I", len(codec_of))]
    for number, (site, codec) in enumerate(codec_of.items()):
        update, said = site_fields(number, site, WEIGHTS[site], codec)
        fields += said
        mean.add(update, weight=WEIGHTS[site], site=site)
    bounds = (streaming.max_abs, streaming.max_total_weight) if streaming else (0.0, 0)
    result = mean.finish().arrays
    bits = [bf16_bits(array) if name == "b" else array for name, array in result.items()]
    return record(
        "mean",
        LAYOUT.to_bytes(),
        struct.pack("<d", bounds[0]),
        struct.pack("<Q", bounds[1]),
        struct.pack("<I", orders),
        *fields,
        raw(bits),
    )


def means() -> Iterator[bytes]:
    mixed = dict(zip(WEIGHTS, ["int8", "f32", "bf16", None, "ring16"], strict=True))
    declared = Streaming(max_abs=128.0, max_total_weight=sum(WEIGHTS.values()))
    yield mean_vector(mixed, None, ORDERS)
    yield mean_vector(mixed, declared, ORDERS)
    for codec in (*codecs(), None):
        yield mean_vector(dict.fromkeys(WEIGHTS, codec), None, 10)


def rules() -> Iterator[bytes]:
    codec_of = ["int8", "f32", "bf16", None, "ring16", None, "f16"]
    mean = Aggregator(LAYOUT, threads=1)
    fields = [struct.pack("<I", len(codec_of))]
    for number, codec in enumerate(codec_of):
        update, said = site_fields(number, f"site-{number}", 1, codec)
        fields += said
        mean.add(update, weight=1, site=f"site-{number}")
    snapshot = _native.UpdateSnapshot(mean._native)
    rows = np.eye(len(codec_of), dtype=np.int64)
    median = snapshot.median(rows)
    trimmed = snapshot.middle(rows, first=1, kept=len(codec_of) - 2)
    gram = snapshot.gram(center=None)
    yield record("rules", LAYOUT.to_bytes(), *fields, raw(median), raw(trimmed), raw([gram]))


def main() -> None:
    sources = (
        masks, packing, decoding_vectors, encoding_vectors, rounding_vectors, means, rules
    )  # fmt: skip
    with Path(sys.argv[1]).open("wb") as file:
        for source in sources:
            for one in source():
                file.write(one)


if __name__ == "__main__":
    main()
