"""The rotation on devices has the bits of its definition, in whatever order the device works."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from reference import rotation as reference
from support.devices import every_backend, every_device, results_of_losses
from veilsum import _native
from veilsum.errors import ConfigError, DeviceError

KEY = bytes.fromhex("0123456789abcdef")
every_block = pytest.mark.parametrize("block", [64, 256, 1024, 4096])
Values = np.ndarray[Any, Any]


def normal(count: int, dtype: Any = np.float32) -> Values:
    values = np.random.default_rng(count).standard_normal(count).astype(dtype)
    values[::7] = 0
    return values


def rotated(values: Values, block: int, backend: str, **place: Any) -> Values:
    result = values.copy()
    options: dict[str, Any] = {"first": 0, "inverse": False} | place
    _native.rotate(result, block=block, key=KEY, threads=1, backend=backend, **options)
    return result


# Tails of every decomposition, whole tiles, and groups smaller than a block.
@every_backend
@every_block
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "count", [64, 192, 256, 320, 1024 + 256 + 64, 4096 - 64, 4096, 4096 + 64, 2 * 4096 + 1024]
)
def test_a_rotation_is_signs_and_then_butterflies_to_the_last_bit(
    count: int, dtype: Any, block: int, backend: str
) -> None:
    values = normal(count, dtype)

    forth = rotated(values, block, backend)
    back = rotated(values, block, backend, inverse=True)

    assert forth.tobytes() == reference.rotate(values, block, KEY).tobytes()
    assert back.tobytes() == reference.unrotate(values, block, KEY).tobytes()


@every_device
@every_block
@pytest.mark.parametrize("inverse", [False, True])
def test_neither_order_nor_launch_shape_shows(block: int, inverse: bool, backend: str) -> None:
    values = normal(5 * 4096 + 1024 + 64)
    expected = rotated(values, block, "cpu", inverse=inverse).tobytes()

    for seed, blocks, threads in [(1, 0, 0), (2, 1, 32), (3, 2, 96), (4, 3, 128)]:
        _native.use_emulator(seed=seed)
        _native.use_launch_shape(blocks=blocks, threads=threads)
        assert rotated(values, block, backend, inverse=inverse).tobytes() == expected


@every_device
def test_signs_depend_on_the_coordinate_beyond_32_bits(backend: str) -> None:
    values = normal(4096)
    first = 2**40 + 4096

    assert np.array_equal(
        rotated(values, 256, backend, first=first), reference.rotate(values, 256, KEY, first)
    )


@every_device
def test_an_array_of_many_pieces_is_rotated_as_one(backend: str) -> None:
    values = normal(1024 * 4096 + 4096 + 64)  # a piece, and a bit

    assert np.array_equal(rotated(values, 1024, backend), rotated(values, 1024, "cpu"))


def test_special_values_go_through_as_on_the_cpu() -> None:
    values = normal(4096)
    values[[5, 100, 2000]] = [-0.0, 1e-44, 3e38]

    assert rotated(values, 64, "emu").tobytes() == rotated(values, 64, "cpu").tobytes()


def test_a_device_that_is_lost_on_the_way_is_an_error_and_leaves_nothing_behind() -> None:
    expected = rotated(normal(8192), 256, "cpu").tobytes()

    found = results_of_losses(lambda: rotated(normal(8192), 256, "emu").tobytes())

    # Losing it when everything has been copied does no harm.
    done = found.index(expected)
    assert found == [None] * done + [expected] * (len(found) - done)
    assert done > len(found) // 2


def test_a_device_without_room_says_how_much_was_asked_for() -> None:
    _native.use_emulator(memory_bytes=8192 * 4 - 1)

    with pytest.raises(DeviceError, match="32768 bytes"):
        rotated(normal(8192), 256, "emu")


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ConfigError, match="backend"):
        rotated(normal(64), 64, "gpu")
