"""T38: a processor, a memory or a device flips bits of the sum or of the masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from support.secagg import make_contributions, make_plan, small_arrays
from veilsum import _native, secagg
from veilsum._native import Secret
from veilsum.aggregate.secure_sum import SecureSum
from veilsum.aggregate.tile_audit import AUDITED_TILES, TILE, TileAudit, chosen_tiles
from veilsum.errors import ConfigError, DeviceError, RoundAborted
from veilsum.model import ModelLayout

SIZE = 20 * TILE
PLAN = make_plan(4, layout=ModelLayout.from_arrays(small_arrays(0, SIZE)), chunk_coordinates=4096)
CONTRIBUTIONS = make_contributions(PLAN, lambda seed: small_arrays(seed, SIZE))
BACKENDS = ["cpu", "emu"]


def result(backend: str) -> secagg.SecureResult:
    return secagg.run_in_process(PLAN, CONTRIBUTIONS, drop={"basel": "inputs"}, backend=backend)


@pytest.fixture
def unaudited(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Takes the defence away."""
    return lambda: monkeypatch.setattr(SecureSum, "check_tiles", lambda self: None)


def spoil(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """The lowest bit of one word, whenever the step is taken on what sums all words."""
    right = getattr(_native, step)

    def flipping(words: Any, *args: Any, **options: Any) -> None:
        right(words, *args, **options)
        if words.size > 64:
            words[3 * TILE + 17] ^= words.dtype.type(1)

    monkeypatch.setattr(_native, step, flipping)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("step", ["fold_ring_chunks", "add_masks"])
def test_a_flipped_bit_of_a_sum_ends_the_round(backend, step, monkeypatch, unaudited):
    with monkeypatch.context() as patch:
        right = result(backend)
        spoil(patch, step)
        with pytest.raises(RoundAborted, match=f"{backend} computed another sum than .* in tile 3"):
            result(backend)

    unaudited()
    assert result(backend).digest == right.digest
    spoil(monkeypatch, step)
    assert result(backend).digest != right.digest


def test_a_bit_that_flips_in_the_memory_of_the_sum_is_seen():
    """In every word of few tiles, whatever the bit."""
    total = SecureSum(PLAN.ring, audit_seed=bytes(32))
    for place in range(0, SIZE, 257):
        for bit in (0, PLAN.ring_bits - 1):
            total._words[1][place] ^= np.uint32(1 << bit)
            with pytest.raises(DeviceError, match=f"in tile {place // TILE} of stream 1"):
                total.finish(0)
            total = SecureSum(PLAN.ring, audit_seed=bytes(32))


@pytest.mark.parametrize("tiles", [65, 640, 6400])
def test_one_wrong_tile_of_many_is_seen_as_often_as_is_written(tiles):
    """64 of so many are looked at. 400 seeds, within five standard deviations."""
    seeds = [number.to_bytes(32, "little") for number in range(400)]
    wrong = tiles // 3
    seen = sum(wrong in chosen_tiles(seed, 1, tiles) for seed in seeds)

    rate = AUDITED_TILES / tiles
    assert abs(seen - 400 * rate) <= 5 * (400 * rate * (1 - rate)) ** 0.5 + 1


@pytest.mark.parametrize("generator", ["chacha20", "aes256ctr"])
@pytest.mark.parametrize("bits", [1, 22, 32, 33, 64])
@pytest.mark.parametrize("isa", _native.supported_isas())
def test_tiles_that_are_summed_twice_have_the_same_bits_on_every_instruction_set(
    isa, bits, generator
):
    keys = [Secret.from_bytes(bytes([number]) * 32) for number in range(1, 6)]
    signs = [1, -1, -1, 1, 1]
    elements = 130 * TILE - 64
    words = np.zeros(elements, np.uint32 if bits <= 32 else np.uint64)
    audit = TileAudit(bytes(32), group=2, elements=elements, bits=bits, threads=2)
    _native.use_isa(isa)
    try:
        _native.add_masks(
            words, keys, signs, generator=generator, stream=2, first=0, bits=bits, threads=1
        )
        audit.add_masks(keys, signs, generator)
        audit.check(words, "cpu")
        words[chosen_tiles(bytes(32), 2, 130)[-1] * TILE] ^= words.dtype.type(1)
        with pytest.raises(DeviceError, match="than its plainest code"):
            audit.check(words, "cpu")
    finally:
        _native.use_isa("")


def test_masks_of_tiles_are_refused_where_they_cannot_be():
    words = np.zeros(2 * TILE, np.uint32)
    keys = [Secret.zeros(32)]
    form = {"generator": "chacha20", "stream": 1, "threads": 1}
    for tiles, bits, match in (
        ([0], 22, "1 tiles are 512 sums"),
        ([0, 2**52], 22, "leave the mask stream"),
        ([0, 2**64 - 1], 22, "leave the mask stream"),
        ([0, 1], 33, "bits must be 1 to 32"),
    ):
        with pytest.raises(ConfigError, match=match):
            _native.add_mask_tiles(words, keys, [1], tiles=tiles, bits=bits, **form)
    assert not words.any()
