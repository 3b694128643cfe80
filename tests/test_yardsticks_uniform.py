"""Published errors of even levels rounded at random, met by the ring codecs.

A ring codec has an odd number of levels, -steps to steps. The comparisons have an even number
from a lowest to a highest value, which is the same grid moved by half a step: the values are
moved, encoded, decoded and moved back. Where a scheme takes its range from the vector itself, that
range is given to the codec as its public clip.

QSGD (Alistarh et al. 2017) with the norm of the whole vector is a ring codec, too: its clip is
that norm. Its Elias code is not ours, and is not part of its error. QUIC-FL and the uneven grids
of THC look up codes in tables of their own; those are no codecs of veilsum, so of QUIC-FL's
comparison (Ben Basat et al. 2024) there is here what it is compared with, and of THC's the
column of even levels.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.integrate import quad
from scipy.stats import norm

from reference.rotation import hadamard
from support.secagg import make_plan
from veilsum import ModelLayout, _native, decode, encode
from veilsum.codecs import ring_error
from veilsum.codecs.families import ring_bits, ring_steps
from veilsum.errors import ConfigError
from veilsum.secagg.rehearsal import make_consortium
from veilsum.secagg.thresholds import smallest_ring

Vector = NDArray[Any]
SIZE = 2**20
SIZE_OF_QUIC_FL = 2**19  # of the vectors in its experiment, drawn from LogNormal(0, 1)
VECTORS = 16


def grid_of(levels: int, low: float, high: float) -> tuple[int, float, float]:
    """Steps and clip of a ring codec that has these levels, and what is to be added to values."""
    step = (high - low) / (levels - 1)
    steps = levels // 2
    return steps, steps * step, steps * step - high


def rounded(values: Vector, levels: int, low: float, high: float, seed: int) -> Vector:
    """Values between low and high, each rounded to one of so many even levels, by the codec."""
    steps, clip, shift = grid_of(levels, low, high)
    moved = {"w": (values + shift).astype(np.float32)}
    sent = encode(moved, ring_for(steps), clip=clip, steps=steps, seed=seed, overrange="clip")
    result: Vector = decode(sent)["w"].astype(np.float64) - shift
    return result


def ring_for(steps: int) -> str:
    """The narrowest ring codec that has so many steps."""
    return next(f"ring{bits}" for bits in range(2, 65) if ring_steps(bits) >= steps)


def vnmse(values: Vector, decoded: Vector) -> float:
    exact = values.astype(np.float64)
    return float(np.sum((exact - decoded) ** 2) / np.sum(exact**2))


# --- a public clip ------------------------------------------------------------------------

# THC's clips and levels (Li et al., NSDI 2024): error of even levels, and of the clip.
EVEN_LEVELS = [
    (2.154, 16, 0.01332, 0.00727),
    (3.097, 16, 0.02837, 0.00028),
    (3.297, 16, 0.03218, 0.00013),
    (2.418, 8, 0.07834, 0.00315),
    (3.097, 4, 0.71398, 0.00028),
    # QUIC-FL's bounded support without shared randomness: 1 to 4 bits.
    (3.0973, 2, 8.597, 0.00028),
    (3.0973, 4, 0.7140, 0.00028),
    (3.0973, 8, 0.1303, 0.00028),
    (3.0973, 16, 0.02837, 0.00028),
]


@pytest.mark.parametrize(("clip", "levels", "noise", "clipped"), EVEN_LEVELS)
def test_even_levels_up_to_a_public_clip_lose_what_is_published(
    clip: float, levels: int, noise: float, clipped: float
) -> None:
    values = np.random.default_rng(33).standard_normal(SIZE)
    kept = np.clip(values, -clip, clip)

    found = rounded(kept, levels, -clip, clip, seed=levels)

    assert np.mean((found - kept) ** 2) == pytest.approx(noise, rel=0.01)
    # The noise of so many sites vanishes; of samples, too few lie beyond the clip.
    assert ring_error(clip, 4, 2**32) == pytest.approx(clipped, abs=0.6e-5)


@pytest.mark.parametrize("clip", [2.309, 3.422])
def test_a_mean_of_sites_loses_what_the_clip_takes_and_a_share_of_the_noise(clip: float) -> None:
    # 64 sites with the same values: the clip that is best for one of them, 2.309, is the wrong
    # one. The formula is held to published figures in test_yardsticks_ringx.py.
    sites = 64
    values = np.random.default_rng(40).standard_normal(2**17)
    kept = np.clip(values, -clip, clip)

    total = sum(rounded(kept, 16, -clip, clip, seed) for seed in range(sites))

    assert np.mean((total / sites - values) ** 2) == pytest.approx(
        ring_error(clip, 4, sites), rel=0.03
    )


# --- the vector's own range, after a rotation of all of it -----------------------------------

BITS = (1, 2, 3, 4)
HADAMARD_ERRORS = dict(zip(BITS, (21.54, 1.789, 0.303, 0.0663), strict=True))
QSGD_ERRORS = dict(zip(BITS, (218.8, 108.7, 53.9, 26.4), strict=True))


@cache
def lognormal_vectors() -> tuple[Vector, ...]:
    rng = np.random.default_rng(34)
    return tuple(rng.lognormal(size=SIZE_OF_QUIC_FL) for _ in range(VECTORS))


@cache
def rotated_vectors() -> tuple[Vector, ...]:
    """Rotated over their whole length, which no codec of ours does: its blocks end at 4096."""
    rng = np.random.default_rng(35)
    signs = rng.choice(np.array([-1.0, 1.0]), (VECTORS, SIZE_OF_QUIC_FL))
    return tuple(hadamard(x * s) for x, s in zip(lognormal_vectors(), signs, strict=True))


@pytest.mark.parametrize("bits", BITS)
def test_a_rotated_vectors_own_range_costs_what_is_published(bits: int) -> None:
    errors = [
        vnmse(vector, rounded(vector, 2**bits, vector.min(), vector.max(), seed))
        for seed, vector in enumerate(rotated_vectors())
    ]

    # The range of a vector goes by its largest coordinates: 8 % from one vector to the next.
    assert np.mean(errors) == pytest.approx(HADAMARD_ERRORS[bits], rel=0.04)


@pytest.mark.parametrize("bits", BITS)
def test_steps_of_the_whole_vectors_norm_cost_what_is_published(bits: int) -> None:
    errors = []
    for seed, vector in enumerate(lognormal_vectors()):
        options = {"clip": float(np.linalg.norm(vector)), "steps": 2**bits, "seed": seed}
        sent = encode({"w": vector.astype(np.float32)}, "ring8", overrange="clip", **options)
        errors.append(vnmse(vector, decode(sent)["w"]))

    assert np.mean(errors) == pytest.approx(QSGD_ERRORS[bits], rel=0.02)


# --- the vector's own range, after the codec's own rotation ----------------------------------


def largest_of_normal(count: int, power: int) -> float:
    """E[M^power] of the largest of so many normal numbers; all of any weight are positive."""
    found = quad(lambda x: power * x ** (power - 1) * (1 - norm.cdf(x) ** count), 0, 12)
    return float(found[0])


def largest_magnitude_squared(count: int) -> float:
    found = quad(lambda x: 2 * x * (1 - (1 - 2 * norm.sf(x)) ** count), 0, 12)
    return float(found[0])


def min_max_error(levels: int, size: int) -> float:
    """What even levels from the smallest to the largest of `size` normal numbers lose."""
    one, two = largest_of_normal(size, 1), largest_of_normal(size, 2)
    if levels == 2:
        return one**2 - 1  # E[(x - min)(max - x)]: the two ends of many are independent
    return (2 * two + 2 * one**2) / (levels - 1) ** 2 / 6


def rotated_blocks(values: Vector, size: int, *, inverse: bool = False) -> Vector:
    found = values.astype(np.float32).reshape(-1)
    key = encode({"w": found}, "ring8", clip=1e6, hadamard=size).form.transform
    assert key is not None
    _native.rotate(
        found, block=size, key=key.rotation_key, first=0, inverse=inverse, threads=1
    )  # fmt: skip
    return found.reshape(-1, size)


@pytest.mark.parametrize("size", [1024, 4096])
@pytest.mark.parametrize("levels", [2, 16, 256])
def test_the_codecs_own_rotation_and_a_blocks_own_range_lose_as_much(
    size: int, levels: int
) -> None:
    # Every block is a vector by itself, with a clip of its own: the table of clips is public.
    values = np.random.default_rng(36).standard_normal((SIZE // size, size))
    rotated = rotated_blocks(values, size)
    ranges = [
        grid_of(levels, float(low), float(high))
        for low, high in zip(rotated.min(axis=1), rotated.max(axis=1), strict=True)
    ]
    steps = ranges[0][0]
    clips = [clip for _, clip, _ in ranges]
    moved = np.repeat([shift for _, _, shift in ranges], size)
    shift = rotated_blocks(moved, size, inverse=True)

    sent = encode(
        {"w": (values + shift).astype(np.float32).reshape(-1)}, ring_for(steps), clip=clips,
        scales="block", block=size, hadamard=size, steps=steps, overrange="clip", seed=levels,
    )  # fmt: skip

    error = vnmse(values, decode(sent)["w"].reshape(values.shape) - shift)
    assert error == pytest.approx(min_max_error(levels, size), rel=0.02)


def test_a_blocks_largest_rotated_value_as_the_clip_needs_no_shift() -> None:
    # As a site would use it: levels around zero, 255 of them.
    size = 1024
    values = np.random.default_rng(37).standard_normal((SIZE // size, size))
    clips = np.abs(rotated_blocks(values, size)).max(axis=1)

    sent = encode(
        {"w": values.astype(np.float32).reshape(-1)}, "ring8", clip=clips * (1 + 1e-6),
        scales="block", block=size, hadamard=size, seed=3,
    )  # fmt: skip

    error = vnmse(values, decode(sent)["w"].reshape(values.shape))
    expected = largest_magnitude_squared(size) / 127**2 / 6
    assert error == pytest.approx(expected, rel=0.01)


def test_the_formula_gives_the_published_errors_of_other_lengths() -> None:
    # They were drawn from few vectors.
    for size, one, four, eight in [
        (2**10, 9.80, 0.0315, 1.06e-4),
        (2**13, 13.4, 0.0435, 1.46e-4),
        (2**16, 17.5, 0.0551, 1.87e-4),
        (2**20, 22.6, 0.0704, 2.45e-4),
    ]:
        found = [min_max_error(2**bits, size) for bits in (1, 4, 8)]
        assert found == pytest.approx([one, four, eight], rel=0.04)


# --- width of the ring -----------------------------------------------------------------------

# Ring bits, sites: the most levels without a wrap, n (L - 1) < 2^B, and the error of one site's
# normal values with a clip of four standard deviations.
WIDTHS = [
    (16, 10, 6554, 2.5e-7), (16, 100, 656, 2.5e-5), (16, 1000, 66, 2.5e-3),
    (20, 10, 104858, 9.7e-10), (20, 100, 10486, 9.7e-8), (20, 1000, 1049, 9.7e-6),
    (24, 10, 1677722, 3.8e-12), (24, 100, 167773, 3.8e-10), (24, 1000, 16778, 3.8e-8),
]  # fmt: skip


@pytest.mark.parametrize(("width", "sites", "levels", "error"), WIDTHS)
def test_a_ring_holds_as_many_levels_as_it_must_and_not_one_more(
    width: int, sites: int, levels: int, error: float
) -> None:
    assert sites * (levels - 1) <= 2**width - 1 < sites * levels
    # A step's sign is part of it, so a site has an odd number of levels.
    limit = (levels - 1) // 2
    assert smallest_ring(sites, limit, 0) == width
    assert smallest_ring(sites, limit + 1, 0) == width + 1

    values = np.clip(np.random.default_rng(38).standard_normal(SIZE), -4, 4).astype(np.float32)
    sent = encode({"w": values}, ring_for(limit), clip=4.0, steps=limit, seed=width)

    # Given to two digits, and for `levels`.
    fewer = ((levels - 1) / (2 * limit)) ** 2
    assert vnmse(values, decode(sent)["w"]) == pytest.approx(error * fewer, rel=0.025)


def test_32_bits_hold_a_thousand_sites_with_nothing_lost_that_a_float_shows() -> None:
    limit = (2**32 - 1) // 1000 // 2
    assert smallest_ring(1000, limit, 0) == 32

    values = np.clip(np.random.default_rng(39).standard_normal(SIZE), -4, 4).astype(np.float32)
    sent = encode({"w": values}, ring_for(limit), clip=4.0, steps=limit, seed=32)

    assert vnmse(values, decode(sent)["w"]) < 1e-12


@pytest.mark.parametrize("sites", [10, 100])
@pytest.mark.parametrize("width", [16, 20, 24])
def test_a_plan_takes_the_most_bits_per_value_that_a_ring_holds(sites: int, width: int) -> None:
    names = tuple(f"s{number:03}" for number in range(sites))
    fields: dict[str, Any] = {
        "roster": make_consortium(names).roster,
        "cohort": names,
        "layout": ModelLayout(_native.Layout([("w", "f32", (64,))])),
        "ring_bits": width + 2,  # two bits are left free for the check of the sum
    }
    most = (2**width - 1) // sites // 2
    bits = int(math.log2(most + 1)) + 1  # 2^(bits - 1) - 1 <= most

    plan = make_plan(sites, value_bits=bits, **fields)

    assert plan.step_limit <= most < 2 * plan.step_limit + 1
    assert ring_bits(f"ring{plan.ring.streams[1].bits}") == width + 2
    with pytest.raises(ConfigError, match=f"bits of headroom need a ring of {width + 3}"):
        make_plan(sites, value_bits=bits + 1, **fields)
