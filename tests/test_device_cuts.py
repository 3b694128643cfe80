"""Where a pass is cut has no effect on a bit: windows and ranges end at random tile borders."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import numpy as np
import pytest

from support.devices import every_device, small_windows
from veilsum import Aggregator, ModelLayout, _native, rules
from veilsum._native import Secret

TILE = 4096
TILES = 23
COUNT = TILES * TILE - 1000  # the last tile is short
LAYOUT = ModelLayout(
    _native.Layout([("a", "f32", (3 * TILE + 17,)), ("b", "f16", (COUNT - 4 * TILE,))])
)
KEY = bytes(range(8))
DRAWS = 6


def window_sizes(seed: int) -> list[int]:
    return random.Random(seed).sample(range(1, TILES), DRAWS)


def ranges(seed: int, count: int, unit: int) -> Iterator[tuple[int, int]]:
    """Cuts [0, count) at random multiples of `unit`: (begin, end) of each piece."""
    borders = random.Random(seed).sample(range(1, -(-count // unit)), DRAWS)
    cuts = [0, *(unit * border for border in sorted(borders)), count]
    yield from itertools.pairwise(cuts)


def digest(rule: rules.Rule, backend: str) -> str:
    aggregate = Aggregator(LAYOUT, backend=backend, rule=rule)
    for number in range(5):
        values = np.random.default_rng(number)
        arrays = {
            name: values.standard_normal(shape).astype(np.float32 if dtype == "f32" else np.float16)
            for name, dtype, shape in LAYOUT.native.tensors
        }
        aggregate.add(arrays, weight=7, site=f"site-{number}")
    return aggregate.finish().digest


@every_device
@pytest.mark.parametrize("rule", [rules.Mean(), rules.CoordinateMedian(), rules.Krum(byzantine=1)])
def test_windows_of_random_sizes_give_the_digest_of_the_cpu(rule: rules.Rule, backend: str) -> None:
    expected = digest(rule, "cpu")
    for tiles in window_sizes(1):
        with small_windows(tiles):
            assert digest(rule, backend) == expected, tiles


@every_device
@pytest.mark.parametrize("generator", ["chacha20", "aes256ctr"])
@pytest.mark.parametrize("bits", [22, 32])
def test_masks_of_random_ranges_are_those_of_the_whole(
    bits: int, generator: str, backend: str
) -> None:
    keys = [Secret.from_bytes(bytes([number]) * 32) for number in range(3)]

    def add(words: np.ndarray, first: int, where: str) -> None:
        _native.add_masks(
            words, keys, [1, -1, 1], generator=generator, stream=1, first=first, bits=bits,
            threads=1, backend=where,
        )  # fmt: skip

    expected = np.zeros(COUNT, np.uint32)
    add(expected, 0, "cpu")
    for seed, tiles in enumerate(window_sizes(2)[:3]):
        found = np.zeros(COUNT, np.uint32)
        with small_windows(tiles):
            for begin, end in ranges(seed, COUNT, 512):
                add(found[begin:end], begin, backend)
        low = np.uint32(2**bits - 1)
        assert np.array_equal(found & low, expected & low)


@every_device
def test_rotations_of_random_ranges_are_those_of_the_whole(backend: str) -> None:
    count = COUNT // 64 * 64
    values = np.random.default_rng(3).standard_normal(count, dtype=np.float32)

    def rotate(part: np.ndarray, first: int, where: str) -> None:
        _native.rotate(
            part, block=1024, key=KEY, first=first, inverse=False, threads=1, backend=where
        )

    expected = values.copy()
    rotate(expected, 0, "cpu")
    for seed in range(3):
        found = values.copy()
        for begin, end in ranges(seed, count, TILE):
            rotate(found[begin:end], begin, backend)
        assert found.tobytes() == expected.tobytes()
