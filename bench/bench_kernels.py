"""Speed of the kernels, one thread. Every benchmark checks its result before it is timed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

from veilsum import _native
from veilsum._native import Secret

KEYS = 12
ELEMENTS = 1 << 21
# Initial counter 0, then the nonce: stream 1, first segment.
_NONCE = bytes(4) + (1).to_bytes(4, "little") + bytes(4) + b"VSM1"
Compare = Callable[[Callable[[], object], Callable[[], object], int], None]


def _keys() -> list[bytes]:
    return [hashlib.sha256(bytes([number])).digest() for number in range(KEYS)]


def _keystream(key: bytes, size: int) -> bytes:
    """The head of a mask stream, by `cryptography`."""
    return Cipher(ChaCha20(key, _NONCE), None).encryptor().update(bytes(size))


def test_expand_and_add_32_bit_masks_of_12_keys(report: Compare) -> None:
    total = np.zeros(ELEMENTS, np.uint32)
    secrets = [Secret.from_bytes(key) for key in _keys()]
    signs = [1 if number % 2 else -1 for number in range(KEYS)]

    def ours() -> None:
        _native.add_masks(
            total, secrets, signs, generator="chacha20", stream=1, first=0, bits=32, threads=1
        )

    zeros, stream = bytes(4 * ELEMENTS), bytearray(4 * ELEMENTS)
    theirs_total = np.zeros(ELEMENTS, np.uint32)

    def yardstick() -> None:
        for key, sign in zip(_keys(), signs, strict=True):
            Cipher(ChaCha20(key, _NONCE), None).encryptor().update_into(zeros, stream)
            words = np.frombuffer(stream, np.uint32)
            (np.add if sign > 0 else np.subtract)(theirs_total, words, out=theirs_total)

    ours()
    yardstick()
    assert np.array_equal(total, theirs_total)
    report(ours, yardstick, KEYS * 4 * ELEMENTS)


def test_expand_and_add_22_bit_masks_of_12_keys(report: Compare) -> None:
    total = np.zeros(ELEMENTS, np.uint32)
    secrets = [Secret.from_bytes(key) for key in _keys()]

    def ours() -> None:
        _native.add_masks(
            total, secrets, [1] * KEYS, generator="chacha20", stream=1, first=0, bits=22, threads=1
        )

    zeros, stream = bytes(22 * ELEMENTS // 8), bytearray(22 * ELEMENTS // 8)

    def yardstick() -> None:  # the stream alone: it neither unpacks nor adds
        for key in _keys():
            Cipher(ChaCha20(key, _NONCE), None).encryptor().update_into(zeros, stream)

    ours()
    packed = np.zeros(1024, np.uint64)
    for key in _keys():
        packed += _native.unpack_ring(_keystream(key, 1024 * 22 // 8), 1024, 22)
    assert np.array_equal(total[:1024] % 2**22, packed % 2**22)
    report(ours, yardstick, KEYS * 22 * ELEMENTS // 8)


@pytest.mark.parametrize("bits", [22])
def test_encode_and_mask_an_update_for_12_sites(bits: int, report: Compare) -> None:
    values = (np.random.default_rng(5).normal(size=ELEMENTS) * 0.1).astype(np.float32)
    values = np.clip(values, -1, 1)
    layout = _native.Layout([("w", "f32", (ELEMENTS,))])
    secrets = [Secret.from_bytes(key) for key in _keys()]
    rounding = Secret.from_bytes(bytes(range(32)))

    def encode(keys: list[Secret], rounding: Secret | None) -> list[bytes]:
        return _native.encode_ring_chunks(
            layout,
            [values],
            bits=bits,
            gains=np.array([32766.0]),
            limits=np.array([1.0]),
            clip=False,
            rounding=rounding,
            keys=keys,
            signs=[1] * len(keys),
            generator="chacha20",
            plan_digest=bytes(32),
            update_id=1,
            chunk_coordinates=65_536,
            threads=1,
        )[0]

    total = np.zeros(ELEMENTS, np.uint32)
    _native.fold_ring_chunks(
        total, [encode(secrets, None)], bits=bits, chunk_coordinates=65_536, threads=1
    )
    _native.add_masks(
        total, secrets, [-1] * KEYS, generator="chacha20", stream=1, first=0, bits=bits, threads=1
    )
    steps = np.rint(values.astype(np.float64) * 32766.0).astype(np.int64)
    assert np.array_equal(_native.center_ring(total, bits), steps)

    zeros, stream = bytes(bits * ELEMENTS // 8), bytearray(bits * ELEMENTS // 8)

    def yardstick() -> None:  # the twelve streams alone, without encoding, adding or packing
        for key in _keys():
            Cipher(ChaCha20(key, _NONCE), None).encryptor().update_into(zeros, stream)

    report(lambda: encode(secrets, rounding), yardstick, 4 * ELEMENTS)
