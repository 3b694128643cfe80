"""The public randomized Hadamard transform: one definition, the same bits on every level."""

from __future__ import annotations

import numpy as np
import pytest

from reference import rotation as reference
from veilsum import _native
from veilsum.errors import ConfigError

KEY = bytes.fromhex("0123456789abcdef")
BLOCKS = (64, 256, 1024, 4096)
# Whole tiles, tails of every decomposition, and a group smaller than a block.
COUNTS = (64, 192, 1024 + 256 + 64, 4096, 4096 + 64 * 63, 2 * 4096 + 1024)


def rotated(values, block, *, first=0, inverse=False, threads=1, key=KEY):
    result = values.copy()
    _native.rotate(result, block=block, key=key, first=first, inverse=inverse, threads=threads)
    return result


def normal(count, dtype=np.float32, seed=1):
    return np.random.default_rng(seed).standard_normal(count).astype(dtype)


@pytest.mark.parametrize("isa", _native.supported_isas())
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("count", COUNTS)
def test_a_rotation_is_signs_and_then_butterflies_to_the_last_bit(isa, dtype, block, count):
    _native.use_isa(isa)
    values = normal(count, dtype)
    values[::7] = 0

    assert rotated(values, block).tobytes() == reference.rotate(values, block, KEY).tobytes()
    assert (
        rotated(values, block, inverse=True).tobytes()
        == reference.unrotate(values, block, KEY).tobytes()
    )


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_is_the_hadamard_matrix_over_the_root_of_its_size(block):
    values = np.random.default_rng(2).integers(-1000, 1000, block)
    signed = values * reference.signs(0, block, KEY)
    expected = reference.hadamard_matrix(block) @ signed / np.sqrt(block)  # exact: a power of 2

    assert np.array_equal(rotated(values.astype(np.float64), block), expected)


@pytest.mark.parametrize("block", BLOCKS)
def test_the_inverse_gives_integers_back_exactly(block):
    values = np.random.default_rng(3).integers(-(2**20), 2**20, 4096 + 320).astype(np.float64)

    assert np.array_equal(rotated(rotated(values, block), block, inverse=True), values)


def test_a_tile_is_rotated_alike_by_itself_and_among_others():
    values = normal(5 * 4096 + 640)
    whole = rotated(values, 4096)

    for first in range(0, values.size, 4096):
        tile = values[first : first + 4096]
        assert np.array_equal(rotated(tile, 4096, first=first), whole[first : first + 4096])


def test_threads_do_not_show():
    values = normal(40 * 4096 + 64)

    assert np.array_equal(rotated(values, 1024, threads=4), rotated(values, 1024))


def test_signs_depend_on_the_coordinate_beyond_32_bits():
    first = 2**40 + 4096
    values = normal(4096)

    assert np.array_equal(
        rotated(values, 256, first=first), reference.rotate(values, 256, KEY, first)
    )
    assert not np.array_equal(rotated(values, 256, first=first), rotated(values, 256, first=4096))


def test_another_key_flips_other_signs_and_half_of_them():
    flips = np.array([reference.sign(i, KEY) != reference.sign(i, bytes(8)) for i in range(4096)])

    assert 1800 < flips.sum() < 2300  # 2048 +- 7 standard deviations


def test_a_spike_is_spread_to_one_magnitude():
    spike = np.zeros(4096, np.float32)
    spike[1234] = 64

    assert set(np.abs(rotated(spike, 4096))) == {1.0}


def test_the_length_of_a_vector_stays():
    values = normal(4096, np.float64)

    assert np.linalg.norm(rotated(values, 4096)) == pytest.approx(np.linalg.norm(values))


def test_block_0_rotates_nothing():
    values = normal(128)

    assert rotated(values, 0).tobytes() == values.tobytes()


@pytest.mark.parametrize("block", [1, 32, 128, 512, 2048, 8192])
def test_other_block_sizes_are_refused(block):
    with pytest.raises(ConfigError, match="mixes 64, 256, 1024 or 4096 coordinates"):
        rotated(normal(64), block)


def test_places_off_the_grid_are_refused():
    with pytest.raises(ConfigError, match="multiple of 4096"):
        rotated(normal(64), 64, first=64)
    with pytest.raises(ConfigError, match="multiple of 64"):
        rotated(normal(65), 64)
    with pytest.raises(ConfigError, match="rotation key must have 8 bytes"):
        rotated(normal(64), 64, key=b"short")
