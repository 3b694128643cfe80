"""Foreign bytes for tests: changes to valid updates, and what makes them look valid again."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable

import numpy as np
from hypothesis import strategies as st

from reference import codecs as reference

HEAD = struct.Struct("<4sBBHIIQdII")
Mutation = Callable[[bytes], bytes]


def overwrite(data: bytes, place: int, new: bytes) -> bytes:
    return data[:place] + new + data[place + len(new) :]


def chunks_begin(data: bytes) -> int:
    """Where the first chunk of a container lies, by its head."""
    fields = HEAD.unpack_from(data)
    end = HEAD.size + fields[4] + fields[9]
    return end + -end % 16


def plan_digest(data: bytes) -> bytes:
    """What the chunks behind this head must be bound to."""
    _, _, _, codec, layout_bytes, _, _, scale, _, option_bytes = HEAD.unpack_from(data)
    layout = data[HEAD.size : HEAD.size + layout_bytes]
    options = data[HEAD.size + layout_bytes : HEAD.size + layout_bytes + option_bytes]
    settings = struct.pack("<Hd", codec, scale) + options
    return hashlib.sha256(b"veilsum/update\0" + hashlib.sha256(layout).digest() + settings).digest()


def resealed(data: bytes) -> bytes:
    """The same with plan fields, checksums and digest that fit, so that only what they cover can
    be wrong. Behind a compressed chunk nothing but the digest is made to fit."""
    if len(data) < HEAD.size + 32:
        return data
    body, begin, plan = data[:-32], chunks_begin(data), plan_digest(data)
    while begin + 64 <= len(body) and not body[begin + 10] & 16:
        scales, codes = struct.unpack_from("<II", body, begin + 32)
        end = begin + 64 + scales + -scales % 16 + codes + -codes % 16
        if end > len(body):
            break
        body = overwrite(body, begin + 40, plan[:8])
        checksum = reference.crc32c(body[begin : begin + 60] + body[begin + 64 : end])
        body = overwrite(body, begin + 60, struct.pack("<I", checksum))
        begin = end
    return body + hashlib.sha256(body).digest()


INTEGERS = (0, 1, 127, 128, 255, 2**31 - 1, 2**31, 2**32 - 1)
FLOATS = (0.0, -0.0, -1.0, 1e-45, 1e-39, np.inf, -np.inf, np.nan)
WORDS = tuple(struct.pack("<I", n) for n in INTEGERS) + tuple(struct.pack("<f", x) for x in FLOATS)


def mutation() -> st.SearchStrategy[Mutation]:
    """Bytes are replaced, inserted, taken out, or cut off."""
    place = st.integers(0, 2**16)
    new = st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from(WORDS))
    return st.one_of(
        st.builds(lambda at, b: lambda d: overwrite(d, at % len(d), b)[: len(d)], place, new),
        st.builds(lambda at, b: lambda d: d[: at % len(d)] + b + d[at % len(d) :], place, new),
        st.builds(lambda at, n: lambda d: d[: at % len(d)] + d[at % len(d) + n :], place, place),
        st.builds(lambda at: lambda d: d[: at % len(d)], place),
    )


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """One or two changes by a generator of numbers, most of the time made to look valid."""
    for _ in range(rng.integers(1, 3)):
        # A quarter of them near the front, where lengths and counts are.
        at = int(rng.integers(len(data) if rng.random() < 0.75 else min(len(data), 200)))
        new = WORDS[rng.integers(len(WORDS))] if rng.random() < 0.5 else rng.bytes(2)
        kind = rng.random()
        if kind < 0.8:
            data = overwrite(data, at, new)[: len(data)]
        elif kind < 0.9:
            data = data[:at] + new + data[at:]
        else:
            data = (data[:at] + data[at + int(rng.integers(1, 64)) :]) or b"\0"
    return resealed(data) if rng.random() < 0.8 else data
