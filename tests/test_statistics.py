"""Masks, keys and shares look random. All seeds are fixed, so nothing here fails by chance.

That the masks are right is shown by equality with an independent cipher; the rest would tell a
generator, an encoding or a key schedule that is wrong in both.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from reference import secagg as reference
from support.battery import (
    SMALLEST,
    chi_square,
    failing,
    fixed_bits,
    missing_values,
    same_distribution,
)
from support.secagg import Federation, fixed_entropy, make_contributions, make_plan
from support.unmasking import with_masks, words_of
from veilsum import _native, secagg
from veilsum._native import Secret
from veilsum.model import ModelLayout
from veilsum.secagg import keys
from veilsum.secagg.keys import Label
from veilsum.secagg.masks import MaskKeys, pair_sign
from veilsum.secagg.upload import encode_upload

WIDTHS = (1, 2, 3, 4, 7, 8, 12, 16, 20, 22, 24, 25, 26, 31, 32, 33, 48, 57, 58, 63, 64)
GENERATORS = ("chacha20", "aes256ctr")
KEY = bytes(range(32))

# --- 1. masks -----------------------------------------------------------------------------------


def mask(bits: int, count: int, generator: str, *, first: int = 0, key: bytes = KEY) -> NDArray:
    words = np.zeros(count, np.uint32 if bits <= 32 else np.uint64)
    _native.add_masks(
        words,
        [Secret.from_bytes(key)],
        [1],
        generator=generator,
        stream=1,
        first=first,
        bits=bits,
        threads=1,
    )
    return words & words.dtype.type(2**bits - 1)


@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize("bits", WIDTHS)
def test_masks_are_those_of_the_cipher_and_pass_every_test(bits, generator):
    words = mask(bits, 2**16, generator)

    oracle = reference.mask_words(KEY, 1, 0, 1024, bits, generator)
    assert words[:1024].tolist() == oracle
    assert not failing(words, bits)


# --- 2. coverage --------------------------------------------------------------------------------


@pytest.mark.parametrize("generator", GENERATORS)
def test_all_values_of_a_byte_appear(generator):
    assert missing_values(mask(8, 2**17, generator), 8) == 0


# --- 3. keys ------------------------------------------------------------------------------------


def derived_keys(count: int) -> Iterator[bytes]:
    """Mask keys of pairs that differ in their contexts alone."""
    shared = Secret.from_bytes(KEY)
    for number in range(count):
        yield bytes(keys.derive(struct.pack("<32xQ", number), shared, Label.PAIR_MASK))


def test_no_bit_of_derived_keys_is_fixed():
    assert fixed_bits(derived_keys(20_000)) == (0, 0)


@pytest.mark.parametrize("count", [50_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_derived_keys_do_not_repeat(count):
    assert len(set(derived_keys(count))) == count


FIELDS = {
    "consortium": b"consortium-A",
    "roster hash": bytes(range(32)),
    "task": b"task-1",
    "round": struct.pack("<Q", 7),
    "attempt": struct.pack("<I", 0),
    "manifest hash": bytes(range(32, 64)),
}


def key_of(fields: Mapping[str, bytes]) -> int:
    """A mask key at the end of the chain: context, T1, T2."""
    context = keys.digest(
        Label.CONTEXT,
        keys.length_prefixed(fields["consortium"]),
        fields["roster hash"],
        keys.length_prefixed(fields["task"]),
        fields["round"] + fields["attempt"],
        fields["manifest hash"],
    )
    t1 = keys.transcript(Label.TRANSCRIPT_KEYS, context, {"a": bytes(32)})
    t2 = keys.transcript(Label.TRANSCRIPT_SHARES, t1, {"a": bytes(32)})
    return int.from_bytes(bytes(keys.self_mask_key(t2, Secret.from_bytes(KEY), "a")), "big")


@pytest.mark.parametrize("field", FIELDS)
def test_each_bit_of_what_names_a_round_changes_half_of_a_keys_bits(field):
    before = key_of(FIELDS)
    value = FIELDS[field]
    for bit in range(8 * len(value)):
        changed = bytearray(value)
        changed[bit // 8] ^= 1 << bit % 8

        apart = (key_of({**FIELDS, field: bytes(changed)}) ^ before).bit_count()

        assert abs(apart - 128) <= 40, (field, bit, apart)


# --- 4. hiding ----------------------------------------------------------------------------------

SIZE = 2**14
BITS = 20  # of a word in these rounds
VICTIM, PARTNER, *COLLUDERS = ("basel", "kyoto", "lyon", "oslo")


class Masked:
    """A round of four sites whose tensors hold one value, up to the uploads."""

    def __init__(self, value: float, *, seed: int, attempt: int = 0) -> None:
        arrays = {"weight": np.full(SIZE, value, np.float32)}
        layout = ModelLayout.from_arrays(arrays)
        self.plan = make_plan(4, layout=layout, metrics=(), attempt=attempt)
        assert self.plan.ring_bits == BITS
        contributions = {
            site: given._replace(weight=100)
            for site, given in make_contributions(self.plan, lambda _: arrays).items()
        }
        self.federation = federation = Federation(self.plan, contributions=contributions, seed=seed)
        self.masks: dict[str, MaskKeys] = {}
        for site, session in federation.sites.items():
            self._keep_masks(site, session)
        federation.run()

    def _keep_masks(self, site: str, session: secagg.SiteSession) -> None:
        contribute = session.contribute

        def keeping(*args, **settings):
            kept = session._phase.masks
            self.masks[site] = MaskKeys(
                [Secret.from_bytes(bytes(key)) for key in kept.keys], list(kept.signs)
            )
            return contribute(*args, **settings)

        session.contribute = keeping  # type: ignore[method-assign]

    def words(self, site: str) -> NDArray:
        (upload,) = [
            effect
            for sender, effect in self.federation.site_effects
            if sender == site and isinstance(effect, secagg.UploadInput)
        ]
        return words_of(self.plan, upload.chunks)

    def plain(self, site: str) -> NDArray:
        given = self.federation.contributions[site]
        encoded = encode_upload(self.plan, given, MaskKeys(), update_id=0, threads=1)
        return words_of(self.plan, encoded.chunks)


@cache
def masked(value: float, seed: int, attempt: int = 0) -> Masked:
    return Masked(value, seed=seed, attempt=attempt)


def test_uploads_of_zeros_and_of_the_largest_values_cannot_be_told_apart():
    zeros, largest = masked(0.0, 1).words(VICTIM), masked(1.0, 2).words(VICTIM)

    assert set(masked(0.0, 1).plain(VICTIM)) == {0}
    assert same_distribution(zeros, largest, BITS) > SMALLEST
    assert not failing(zeros, BITS)
    assert not failing(largest, BITS)


def test_uploads_of_one_value_in_two_attempts_differ_by_something_uniform():
    """Even where the site's generator repeats itself: another attempt has other masks."""
    first, second = masked(1.0, 2).words(VICTIM), masked(1.0, 2, attempt=1).words(VICTIM)

    assert not failing((first - second) & np.uint32(2**BITS - 1), BITS)


def test_all_colluders_but_one_other_strip_their_masks_and_learn_nothing():
    """What is left is the value under the site's own mask and the one it shares with the one
    other honest site, and of these either alone would do."""
    round_ = masked(1.0, 2)
    stripped = round_.words(VICTIM)
    own = round_.masks[VICTIM]
    peers = [site for site in sorted(round_.plan.cohort) if site != VICTIM]
    for site, key, sign in zip(peers, own.keys[1:], own.signs[1:], strict=True):
        assert sign == pair_sign(VICTIM, site)
        if site in COLLUDERS:
            # Both ends of a pair have the same key; a colluder knows it as well as the victim.
            colluders = [bytes(one) for one in round_.masks[site].keys]
            assert bytes(key) in colluders
            stripped = with_masks(round_.plan, stripped, [key], [-sign])

    partner = own.keys[1 + peers.index(PARTNER)]
    pad = with_masks(
        round_.plan, np.zeros_like(stripped), [own.keys[0], partner], [1, own.signs[1]]
    )
    left = (stripped - pad) & np.uint32(2**BITS - 1)
    np.testing.assert_array_equal(left, round_.plain(VICTIM))
    assert not failing(stripped, BITS)
    for mask_key, sign in ((own.keys[0], 1), (partner, own.signs[1])):
        assert not failing(with_masks(round_.plan, stripped, [mask_key], [-sign]), BITS)


# --- 5. shares ----------------------------------------------------------------------------------


def pooled_shares(secret: bytes, *, seed: int, deals: int = 500) -> NDArray:
    """Bytes of t - 1 shares of many deals of one secret."""
    entropy = fixed_entropy(seed)
    pools = []
    for _ in range(deals):
        shares = _native.deal_shares(Secret.from_bytes(secret), 5, range(1, 8), entropy(32 * 4))
        pools += [bytes(share) for share in shares[:4]]
    return np.frombuffer(b"".join(pools), np.uint8)


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32, KEY])
def test_shares_of_one_secret_are_uniform(secret):
    assert chi_square(pooled_shares(secret, seed=5), 8) > SMALLEST


def test_shares_of_two_secrets_cannot_be_told_apart():
    zeros, ones = pooled_shares(bytes(32), seed=6), pooled_shares(b"\xff" * 32, seed=7)

    assert same_distribution(zeros, ones, 8) > SMALLEST
    for place in range(32):  # and no byte of a share on its own
        assert same_distribution(zeros[place::32], ones[place::32], 8, most=4) > SMALLEST
