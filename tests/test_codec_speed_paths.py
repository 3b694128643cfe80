"""Ways that codecs take because they are faster, against those that they stand for."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from reference import ring as reference
from support.codec_options import required_options
from veilsum import ModelLayout, _native, codecs, decode, encode
from veilsum.errors import ConfigError

WIDTHS = {"ring1", "ring2", "ring7", "ring8", "ring16", "ring22", "ring31", "ring32", "ring40"}
CODECS = [name for name in codecs() if not name.startswith("ring") or name in WIDTHS - {"ring1"}]
SEED = 3
UPDATE_ID = 5


def options_of(codec: str, largest: float) -> dict[str, Any]:
    return {"update_id": UPDATE_ID, "seed": SEED, **required_options(codec, largest)}


def values_of(count: int) -> np.ndarray:
    return np.random.default_rng(count).uniform(-1, 1, count).astype(np.float32)


@pytest.mark.parametrize("codec", CODECS)
def test_the_number_of_threads_changes_no_bit(codec: str) -> None:
    arrays = {"w": values_of(5 * 4096 + 70), "n": np.arange(9000)}
    options = {**options_of(codec, 1.0), "chunk_coordinates": 4096}

    one = encode(arrays, codec, threads=1, **options)
    four = encode(arrays, codec, threads=4, **options)

    assert one.to_bytes() == four.to_bytes()
    for name, alone in decode(one, threads=1).items():
        assert alone.tobytes() == decode(one, threads=3)[name].tobytes()


@pytest.mark.parametrize(
    ("threads", "error"),
    [(0, ConfigError), (-1, ConfigError), (1025, ConfigError), (1.5, TypeError), ("2", TypeError)],
)
def test_a_number_of_threads_that_cannot_be_is_refused(
    threads: Any, error: type[Exception]
) -> None:
    update = encode({"w": values_of(64)}, "int8")

    with pytest.raises(error, match="threads"):
        encode({"w": values_of(64)}, "int8", threads=threads)
    with pytest.raises(error, match="threads"):
        decode(update, threads=threads)


@pytest.mark.parametrize("codec", CODECS)
def test_values_are_read_in_place_as_from_a_copy(codec: str) -> None:
    """An array at an odd address, and tiles with a gap, are gathered; the others are not."""
    values = values_of(2 * 4096 + 130)
    room = np.zeros(values.nbytes + 1, np.uint8)
    unaligned = room[1:].view(np.float32)
    unaligned[:] = values
    options = options_of(codec, 1.0)

    in_place = encode({"w": values}, codec, **options)

    assert in_place.to_bytes() == encode({"w": unaligned}, codec, **options).to_bytes()
    wide = encode({"w": values.astype(np.float64)}, codec, **options)
    same = decode(in_place)["w"] == decode(wide)["w"]
    assert codec.startswith("eden") or same.all()  # its rotation is bound to the layout


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("codec", CODECS)
def test_a_value_that_is_not_finite_is_found_wherever_it_lies(codec: str, bad: float) -> None:
    for place in (0, 4095, 4096, 8191, 8200):
        values = values_of(8201)
        values[place] = bad
        with pytest.raises(ConfigError, match="'w' has 1 values that are not finite"):
            encode({"w": values}, codec, **options_of(codec, 1.0))


@pytest.mark.parametrize("count", [1, 15, 16, 17, 4096, 4096 + 63, 2 * 4096])
@pytest.mark.parametrize("bits", [1, 2, 3, 7, 8, 12, 16, 22, 31, 32, 33, 40, 64])
@pytest.mark.parametrize("scale", [2.0**-3, 2.0**40, 3.7, 1e-3, 2.0**-1021, 2.0**1023])
def test_ring_words_are_divided_by_every_scale_as_one_by_one(
    bits: int, count: int, scale: float
) -> None:
    rng = np.random.default_rng(bits)
    words = [int(word) for word in rng.integers(0, 2**bits, count, np.uint64, endpoint=False)]
    words[0] = 2 ** (bits - 1)  # the most negative step
    if scale < 1e-200:
        words = [0] * count  # nothing else is a finite value then
    layout = ModelLayout.from_arrays({"w": np.zeros(count, np.float32)})
    form = {"codec": _native.codec_number(f"ring{bits}"), "chunk_coordinates": 65536}
    place = {"plan_digest": bytes(32), "update_id": 0}
    padded = np.zeros(layout.native.group_size(1), np.uint64)
    padded[:count] = words
    chunks = _native.ring_word_chunks(
        padded, bits=bits, group=1, keys=[], signs=[], generator="chacha20", threads=1,
        chunk_coordinates=65536, **place,
    )  # fmt: skip

    (decoded,) = _native.decode_chunks(layout.native, chunks, scale=scale, **form, **place)

    expected = np.array(
        [float(reference.centered(word, bits)) / scale for word in words], np.float64
    ).astype(np.float32)
    assert decoded.tobytes() == expected.tobytes()
