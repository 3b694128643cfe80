"""T34: masks from a small seed, with a bias, or of a modulus that is off by one.

The defences: keys of 256 bits from HKDF, and masks that equal an independent cipher's. The
statistical battery (support/battery.py) sees each of these weaknesses; what the package makes
passes it in test_statistics.py, at all widths.
"""

from __future__ import annotations

import base64
import hashlib
import random
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from support.battery import failing, fixed_bits, missing_values
from support.secagg import Federation, fixed_entropy, make_plan
from veilsum import _native
from veilsum._native import Secret
from veilsum.secagg import dealing

COUNT = 2**17
BITS = 8

# --- weak generators ----------------------------------------------------------------------------


def fresh() -> np.random.Generator:
    return np.random.default_rng(34)


def off_by_one(count: int) -> NDArray:
    """randint(0, M - 1) where the upper end is exclusive: the largest value never comes."""
    return fresh().integers(0, 2**BITS - 1, count, np.uint32)


def modulo(count: int) -> NDArray:
    """A draw from 1000 values, reduced: the low 232 come more often than the others."""
    return fresh().integers(0, 1000, count, np.uint32) % np.uint32(2**BITS)


def stuck_bit(count: int) -> NDArray:
    """Signed values where unsigned ones are meant: the top bit is never set."""
    return fresh().integers(0, 2 ** (BITS - 1), count, np.uint32)


def short_cycle(count: int) -> NDArray:
    """A keystream that starts again after 64 words, as a counter that is not carried on does."""
    return np.resize(fresh().permutation(2**BITS)[:64].astype(np.uint32), count)


def counter(count: int) -> NDArray:
    """Every value as often, in order."""
    return np.arange(count, dtype=np.uint32) % np.uint32(2**BITS)


WEAK = {
    off_by_one: {"chi-square"},
    modulo: {"chi-square"},
    stuck_bit: {"monobit"},
    short_cycle: {"serial correlation"},
    counter: {"serial correlation"},
}


@pytest.mark.parametrize("weak", WEAK, ids=lambda weak: weak.__name__)
def test_the_battery_sees_a_weak_generator(weak: Callable[[int], NDArray]):
    assert WEAK[weak] <= failing(weak(COUNT), BITS)


def test_a_value_that_never_comes_is_missed():
    assert missing_values(off_by_one(COUNT), BITS) == 1


def test_the_masks_of_a_round_are_not_weak():
    words = np.zeros(COUNT, np.uint32)
    _native.add_masks(
        words,
        [masks_of_a_site()[0]],
        [1],
        generator="chacha20",
        stream=1,
        first=0,
        bits=BITS,
        threads=1,
    )
    words &= np.uint32(2**BITS - 1)

    assert not failing(words, BITS)
    assert missing_values(words, BITS) == 0


# --- small seeds --------------------------------------------------------------------------------


def folded(seed: bytes) -> bytes:
    """A seed as text, folded by XOR to 32 bits: each byte of text has its top bit clear, so of
    the 32 bits 28 are left. A search of these takes minutes."""
    text = base64.b64encode(seed)
    value = 0
    for at in range(0, len(text), 4):
        value ^= int.from_bytes(text[at : at + 4], "little")
    return value.to_bytes(32, "little")


def from_a_small_state(seed: int) -> bytes:
    """32 bytes of a generator that was seeded with 12 bits."""
    return random.Random(seed % 2**12).randbytes(32)


def masks_of_a_site(seed: int = 1) -> list[Secret]:
    """The mask keys of one site in one round."""
    kept: list[Secret] = []
    federation = Federation(make_plan(4), seed=seed)
    federation.contribute = lambda site: []  # type: ignore[method-assign]
    federation.run()
    for session in federation.sites.values():
        kept += session._phase.masks.keys
    return kept


def test_the_tests_of_keys_see_a_small_seed():
    some = [hashlib.sha256(b"%d" % number).digest() for number in range(1000)]

    never, _ = fixed_bits(folded(one) for one in some)
    assert never == 256 - 28
    assert len({from_a_small_state(number) for number in range(2**14)}) == 2**12


def test_the_keys_of_rounds_have_no_bit_that_is_fixed_and_none_comes_twice():
    """16 keys a round: four of self masks, and six pairs at both ends."""
    rounds = [masks_of_a_site(seed) for seed in range(20)]
    found = [bytes(key) for keys in rounds for key in keys]

    assert fixed_bits(found) == (0, 0)
    assert len(set(found)) == 20 * (4 + 6)


def test_seeds_are_as_long_as_keys():
    secrets = dealing.make_secrets(bytes(32), "basel", fixed_entropy(1))

    for secret in (secrets.mask_seed, secrets.self_seed, secrets.channel_private):
        assert len(secret) == 32
