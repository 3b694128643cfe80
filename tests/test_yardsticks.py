"""Codecs against figures that need no data set: known errors, other libraries' roundings, formulas.

Errors are vNMSE, E|x - decoded|^2 / |x|^2, on a million numbers of a distribution; the figures
were computed once on 2^22 samples, and hold to 1 % for codes of few bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from support.secagg import Federation, make_contributions, make_plan
from veilsum import ModelLayout, _native, decode, encode
from veilsum.secagg import UploadInput
from veilsum.secagg.receiver import stream_headers
from veilsum.secagg.rehearsal import make_consortium
from veilsum.secagg.thresholds import smallest_ring

COUNT = 2**20
DISTRIBUTIONS: dict[str, Callable[[np.random.Generator], Any]] = {
    "normal": lambda rng: rng.standard_normal(COUNT),
    "lognormal": lambda rng: rng.lognormal(size=COUNT),
    "laplace": lambda rng: rng.laplace(size=COUNT),
}


def sample(distribution: str) -> Any:
    return DISTRIBUTIONS[distribution](np.random.default_rng(2026)).astype(np.float32)


def vnmse(values: Any, codec: str, *, seed: int | None = None, **options: Any) -> float:
    decoded = decode(encode({"x": values}, codec, seed=seed, **options))["x"]
    exact = values.astype(np.float64)
    return float(np.sum((exact - decoded) ** 2) / np.sum(exact**2))


# --- codes in blocks -------------------------------------------------------------------

BLOCK_ERRORS = [
    # codec, seed, error on normal, lognormal and Laplace numbers
    ("int8", None, (3.52e-5, 1.25e-4, 6.13e-5)),
    ("int8", 11, (7.04e-5, 2.48e-4, 1.23e-4)),
    ("int8/b256", None, (4.85e-5, 2.94e-4, 1.01e-4)),
    ("int4/b32", None, (9.41e-3, 2.43e-2, 1.47e-2)),
    ("int4", None, (1.158e-2, 3.77e-2, 1.98e-2)),
    ("nf4", None, (8.46e-3, 1.51e-2, 1.08e-2)),
    ("fp8_e4m3/b128", None, (6.62e-4, 4.94e-4, 6.16e-4)),
]

# Of the distribution N(0, 1): the distortion D of Lloyd and Max, and D / (1 - D) for a scale
# that makes the mean of many right.
EDEN_ERRORS = [(1, 0.363380, 0.570796), (2, 0.117482, 0.133121), (3, 0.034548, 0.035784),
               (4, 0.009501, 0.009592)]  # fmt: skip


@pytest.mark.parametrize(("codec", "seed", "errors"), BLOCK_ERRORS)
def test_codes_in_blocks_lose_what_they_must_lose(
    codec: str, seed: int | None, errors: tuple[float, float, float]
) -> None:
    for distribution, error in zip(DISTRIBUTIONS, errors, strict=True):
        # The tails of a lognormal sample decide its error: two samples differ by a few percent.
        tolerance = 0.05 if distribution == "lognormal" else 0.01
        found = vnmse(sample(distribution), codec, seed=seed)
        assert found == pytest.approx(error, rel=tolerance), distribution


@pytest.mark.parametrize(("bits", "biased", "unbiased"), EDEN_ERRORS)
def test_eden_loses_what_an_optimal_quantizer_loses(
    bits: int, biased: float, unbiased: float
) -> None:
    # Whatever the values are: the rotation makes them normal.
    for distribution in DISTRIBUTIONS:
        values = sample(distribution)
        for variant, error in (("biased", biased), ("unbiased", unbiased)):
            found = vnmse(values, f"eden{bits}", variant=variant, update_id=9)
            assert found == pytest.approx(error, rel=0.02), (distribution, variant)


@pytest.mark.parametrize(("codec", "error"), [("f16", 4.3e-8), ("bf16", 2.8e-6)])
def test_casts_of_normal_numbers_lose_what_they_must_lose(codec: str, error: float) -> None:
    assert vnmse(sample("normal"), codec) == pytest.approx(error, rel=0.02)


# --- roundings of another library ------------------------------------------------------------

CASTS = {"f16": np.float16, "bf16": ml_dtypes.bfloat16}


def interesting_floats(largest: float) -> Any:
    """All patterns of the upper half of a float and neighbours of the lower, up to `largest`."""
    high = np.arange(2**16, dtype=np.uint32) << 16
    low = np.array([0, 1, 0x0FFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    floats = (high[:, None] | low).reshape(-1).view(np.float32)
    return floats[np.isfinite(floats) & (np.abs(floats) < largest)]


@pytest.mark.parametrize("isa", _native.supported_isas())
@pytest.mark.parametrize("codec", CASTS)
def test_casts_round_as_another_library_does(codec: str, isa: str) -> None:
    _native.use_isa(isa)
    # From half-way between the largest number and the next power of two on a value is refused.
    largest = {"f16": 65520.0, "bf16": (2 - 2.0**-8) * 2.0**127}[codec]
    values = interesting_floats(largest)

    decoded = decode(encode({"x": values}, codec))["x"]

    expected = values.astype(CASTS[codec]).astype(np.float32)
    assert decoded.tobytes() == expected.tobytes()


# --- traffic of masked rounds --------------------------------------------------------------------


def ring_word(sites: int) -> int:
    """Bits of a sum of 16-bit inputs, as of Bonawitz et al. (CCS 2017), section 7."""
    return math.ceil(math.log2(sites * (2**16 - 1) + 1))


def traffic_expansion(sites: int, entries: int) -> float:
    """Bytes of one client in that protocol over those of its inputs in the clear."""
    keys, shares = 2 * sites * 256, (5 * sites - 4) * 256
    return (keys + shares + sites + entries * ring_word(sites)) / (16 * entries)


def overhead(sites: int) -> int:
    """Bytes of keys and shares of one client in that protocol, before they are sent on."""
    return (2 * sites * 256 + (5 * sites - 4) * 256 + sites) // 8


PUBLISHED = [(2**10, 2**20, 1.7344), (2**14, 2**24, 1.9844)]  # the paper says 1.73 and 1.98


@pytest.mark.parametrize(("sites", "entries", "expansion"), PUBLISHED)
def test_the_published_traffic_expansion_follows_from_its_formula(
    sites: int, entries: int, expansion: float
) -> None:
    assert traffic_expansion(sites, entries) == pytest.approx(expansion, abs=5e-5)


@pytest.mark.parametrize(("sites", "entries", "expansion"), PUBLISHED)
def test_masked_chunks_in_the_published_ring_travel_in_as_many_bytes(
    sites: int, entries: int, expansion: float
) -> None:
    # Such cohorts are larger than ours; the words and their bytes are the same.
    assert smallest_ring(sites, 2**15 - 1, 0) == ring_word(sites)
    number, whole = _native.codec_number(f"ring{ring_word(sites)}"), 65536
    sent = overhead(sites) + entries // whole * _native.chunk_size(number, whole)

    # The only difference are the headers: 64 bytes per 65,536 entries.
    headers = 64 / (2 * whole)
    assert sent / (2 * entries) == pytest.approx(expansion + headers, abs=1e-4)


@pytest.mark.parametrize(
    ("sites", "expansion"), [(16, 1.25), (128, 1.4375), (1024, 1.625), (16384, 1.875)]
)
def test_masked_words_are_as_long_as_the_published_ring_and_the_headroom(
    sites: int, expansion: float
) -> None:
    headroom = 2
    bits = smallest_ring(sites, 2**15 - 1, headroom)

    assert ring_word(sites) / 16 == expansion
    assert bits == ring_word(sites) + headroom
    # What travels: 65,536 coordinates in one chunk, with its header of 64 bytes.
    number = _native.codec_number(f"ring{bits}")
    assert _native.chunk_size(number, 65536) == 64 + 65536 * bits // 8


@pytest.mark.parametrize(("sites", "expansion"), [(16, 1.25), (128, 1.4375)])
def test_a_plans_own_count_of_masked_bytes_is_the_published_one_and_two_bits_per_entry(
    sites: int, expansion: float
) -> None:
    entries = 2**20
    names = tuple(f"site{number:03}" for number in range(sites))
    plan = make_plan(
        sites,
        roster=make_consortium(names).roster,
        cohort=names,
        layout=ModelLayout(_native.Layout([("w", "f32", (entries,))])),
    )

    scalars, floats = stream_headers(plan)  # what every upload's signed header must say

    chunks = entries // plan.chunk_coordinates
    assert floats.byte_length - 64 * chunks == (expansion * 16 + plan.headroom) * entries / 8
    # Weight, count and one metric, and their chunk's header.
    assert scalars.byte_length == 64 + 4 * 8


def test_a_site_sends_as_many_masked_bytes_as_its_plan_counts() -> None:
    layout = ModelLayout.from_arrays({"w": np.zeros(5000, np.float32)})
    plan = make_plan(5, layout=layout, chunk_coordinates=4096)
    values = {"w": np.linspace(-1, 1, 5000, dtype=np.float32)}
    federation = Federation(plan, contributions=make_contributions(plan, lambda _: values))

    federation.run()

    promised = sum(stream.byte_length for stream in stream_headers(plan))
    uploads = [message for _, _, message in federation.sent if isinstance(message, UploadInput)]
    assert [sum(map(len, upload.chunks)) for upload in uploads] == [promised] * 5
    # 5,056 coordinates with the gap at the end, 21 bits each: ceil(log2(5 (2^16 - 2) + 1)) + 2.
    assert promised == 3 * 64 + 4 * 8 + -(-5056 * 21 // 128) * 16
