"""Native Shamir sharing against the golden shares, the reference and an independent library."""

from __future__ import annotations

import hashlib
import json
from itertools import combinations
from pathlib import Path

import pytest
from Crypto.Protocol.SecretSharing import Shamir
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import secagg as reference
from veilsum._native import Secret, combine_shares, deal_shares
from veilsum.errors import ConfigError

VECTORS = json.loads((Path(__file__).parent / "vectors" / "secagg.json").read_text())


def secret(data: bytes) -> Secret:
    return Secret.from_bytes(data)


def deal(data: bytes, threshold: int, indices: list[int], coefficients: bytes) -> list[bytes]:
    return [
        bytes(share)
        for share in deal_shares(secret(data), threshold, indices, secret(coefficients))
    ]


def combine(shares: dict[int, bytes]) -> bytes:
    (rebuilt,) = combine_shares(list(shares), [[secret(share) for share in shares.values()]])
    return bytes(rebuilt)


def test_shares_are_the_golden_ones():
    golden = VECTORS["shares"]
    coefficients = b"".join(
        hashlib.sha256(text.encode()).digest()[:16] for text in golden["coefficients_of"]
    )
    indices = [int(index) for index in golden["of_index"]]

    shares = deal(bytes.fromhex(golden["secret"]), golden["threshold"], indices, coefficients)

    assert [share.hex() for share in shares] == list(golden["of_index"].values())


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_dealing_and_combining_equal_the_reference(data):
    indices = data.draw(st.lists(st.integers(1, 2**32 - 1), min_size=2, max_size=7, unique=True))
    threshold = data.draw(st.integers(2, len(indices)))
    plain = data.draw(st.binary(min_size=32, max_size=32))
    size = 32 * (threshold - 1)
    coefficients = data.draw(st.binary(min_size=size, max_size=size))

    shares = deal(plain, threshold, indices, coefficients)

    assert shares == reference.deal(plain, coefficients, indices)
    chosen = dict(list(zip(indices, shares, strict=True))[-threshold:])
    assert combine(chosen) == reference.combine(chosen) == plain


def test_every_set_of_threshold_shares_rebuilds_and_fewer_do_not():
    indices, plain = [1, 2, 3, 4, 2**32 - 1], bytes(range(32))
    shares = dict(zip(indices, deal(plain, 3, indices, bytes(range(100, 164))), strict=True))

    for chosen in combinations(indices, 3):
        assert combine({index: shares[index] for index in chosen}) == plain
    for chosen in combinations(indices, 2):
        assert combine({index: shares[index] for index in chosen}) != plain


def test_many_secrets_rebuild_in_one_call():
    indices = [5, 1, 9]
    plains = [bytes([number]) * 32 for number in range(20)]
    dealt = [
        deal_shares(secret(plain), 3, indices, secret(bytes([number + 1]) * 64))
        for number, plain in enumerate(plains)
    ]

    rebuilt = combine_shares(indices, dealt)

    assert [bytes(one) for one in rebuilt] == plains


def test_another_library_combines_our_shares():
    plain, indices = bytes(range(32, 64)), [2, 3, 7, 200]
    shares = dict(zip(indices, deal(plain, 3, indices, bytes(range(64))), strict=True))
    chosen = [2, 7, 200]

    halves = [
        Shamir.combine([(index, shares[index][limb : limb + 16]) for index in chosen], ssss=False)
        for limb in (0, 16)
    ]

    assert b"".join(halves) == plain


def test_we_combine_the_shares_of_another_library():
    plain = bytes(range(64, 96))
    halves = [dict(Shamir.split(3, 5, plain[limb : limb + 16], ssss=False)) for limb in (0, 16)]

    shares = {index: halves[0][index] + halves[1][index] for index in (1, 4, 5)}

    assert combine(shares) == plain


@pytest.mark.parametrize(
    ("plain", "threshold", "indices", "coefficients", "reason"),
    [
        (31, 2, [1, 2], 32, "a shared secret must have 32 bytes, got 31"),
        (32, 0, [1, 2], 32, "threshold must be at least 2"),
        (32, 1, [1, 2], 32, "with 1 every share is the secret"),
        (32, 3, [1, 2], 64, "threshold 3 exceeds the 2 indices"),
        (32, 2, [1, 2], 64, "threshold 2 needs 32 coefficient bytes, got 64"),
        (32, 2, [0, 1], 32, "index must not be 0"),
        (32, 2, [7, 1, 7], 32, "index 7 is given twice"),
        (32, 2, [1, 2**32], 32, "indices must be"),
        (32, 2, [1, -1], 32, "indices must be"),
    ],
)
def test_shares_that_could_not_protect_or_rebuild_are_not_dealt(
    plain, threshold, indices, coefficients, reason
):
    with pytest.raises(ConfigError, match=reason):
        deal_shares(Secret.zeros(plain), threshold, indices, Secret.zeros(coefficients))


@pytest.mark.parametrize(
    ("indices", "shares", "reason"),
    [
        ([], [], "at least one share"),
        ([0, 1], [[32, 32]], "index must not be 0"),
        ([2, 2], [[32, 32]], "index 2 is given twice"),
        ([1, 2], [[32]], "one share per index: 2, got 1"),
        ([1, 2], [[32, 16]], "a share must have 32 bytes, got 16"),
    ],
)
def test_shares_that_do_not_belong_together_are_refused(indices, shares, reason):
    with pytest.raises(ConfigError, match=reason):
        combine_shares(indices, [[Secret.zeros(size) for size in sizes] for sizes in shares])


def test_a_wiped_share_is_refused_instead_of_counting_as_zero():
    shares = [Secret.zeros(32), Secret.zeros(32)]
    shares[1].wipe()

    with pytest.raises(ConfigError, match="was wiped"):
        combine_shares([1, 2], [shares])
