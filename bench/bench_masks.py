"""Speed of masks, ring words and stochastic steps, one thread.

VEILSUM_ISA and VEILSUM_AES choose the kernels. Every benchmark checks its result first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, modes
from cryptography.hazmat.primitives.ciphers.algorithms import AES, ChaCha20
from numpy.typing import NDArray

from veilsum import _native
from veilsum._native import Secret

SITES = 12
ELEMENTS = 1 << 22
CHUNK = 65_536
_NONCE = (1).to_bytes(4, "little") + bytes(4) + b"VSM1"  # stream 1, first segment
Report = Callable[..., object]


def keys() -> list[bytes]:
    return [hashlib.sha256(bytes([number])).digest() for number in range(SITES)]


def cipher(generator: str, key: bytes) -> Any:
    """The same keystream by `cryptography`."""
    if generator == "chacha20":
        return Cipher(ChaCha20(key, bytes(4) + _NONCE), None).encryptor()
    return Cipher(AES(key), modes.CTR(_NONCE + bytes(4))).encryptor()


@pytest.mark.parametrize("bits", [16, 20, 22, 24, 32, 64])
@pytest.mark.parametrize("generator", ["chacha20", "aes256ctr"])
def test_expand_and_add_masks_of_12_keys(generator: str, bits: int, report: Report) -> None:
    total = np.zeros(ELEMENTS, np.uint64) if bits > 32 else np.zeros(ELEMENTS, np.uint32)
    secrets = [Secret.from_bytes(key) for key in keys()]

    def ours() -> None:
        _native.add_masks(
            total,
            secrets,
            [1] * SITES,
            generator=generator,
            stream=1,
            first=0,
            bits=bits,
            threads=1,
        )

    size = bits * ELEMENTS // 8
    zeros, stream = bytes(size), bytearray(size)

    def the_streams_alone() -> None:  # neither unpacked nor added
        for key in keys():
            cipher(generator, key).update_into(zeros, stream)

    ours()
    expected = np.zeros(4096, np.uint64)
    for key in keys():
        head = cipher(generator, key).update(bytes(bits * 4096 // 8))
        expected += _native.unpack_ring(head, 4096, bits)
    assert np.array_equal(
        _native.center_ring(total[:4096], bits), _native.center_ring(expected, bits)
    )
    report(
        ours,
        size=SITES * size,
        coordinates=SITES * ELEMENTS,
        peers={"cryptography": the_streams_alone},
    )


def uploads(bits: int) -> tuple[list[list[bytes]], NDArray[np.uint64]]:
    """Words of every site as chunks, and their sum."""
    random = np.random.default_rng(bits)
    chunks, total = [], np.zeros(ELEMENTS, np.uint64)
    for _ in range(SITES):
        words = random.integers(0, 2**63, ELEMENTS).astype(np.uint64)
        total += words
        chunks.append(
            _native.ring_word_chunks(
                words,
                bits=bits,
                group=1,
                keys=[],
                signs=[],
                generator="chacha20",
                plan_digest=bytes(32),
                update_id=1,
                chunk_coordinates=CHUNK,
                threads=1,
            )
        )
    return chunks, total


@pytest.mark.parametrize("together", [1, SITES])
@pytest.mark.parametrize("bits", [16, 22, 32, 40])
def test_sum_of_ring_words_of_12_uploads(bits: int, together: int, report: Report) -> None:
    chunks, expected = uploads(bits)
    total = np.zeros(ELEMENTS, np.uint64) if bits > 32 else np.zeros(ELEMENTS, np.uint32)

    def ours() -> None:
        for first in range(0, SITES, together):
            _native.fold_ring_chunks(
                total,
                chunks[first : first + together],
                bits=bits,
                chunk_coordinates=CHUNK,
                threads=1,
            )

    vectors = [np.ones(ELEMENTS, np.int64) for _ in range(SITES)]
    vector_sum = np.zeros(ELEMENTS, np.int64)

    def int64_vectors() -> None:
        for vector in vectors:
            np.add(vector_sum, vector, out=vector_sum)

    ours()
    assert np.array_equal(_native.center_ring(total, bits), _native.center_ring(expected, bits))
    size = SITES * bits * ELEMENTS // 8
    report(ours, size=size, coordinates=SITES * ELEMENTS, numpy=int64_vectors)


def encoded(
    values: NDArray[np.float32], bits: int, rounding: Secret | None, masks: list[Secret], by: str
) -> list[bytes]:
    return _native.encode_ring_chunks(
        _native.Layout([("w", "f32", (values.size,))]),
        [values],
        bits=bits,
        gains=np.array([32766.0]),
        limits=np.array([1.0]),
        clip=False,
        rounding=rounding,
        keys=masks,
        signs=[1] * len(masks),
        generator=by,
        plan_digest=bytes(32),
        update_id=1,
        chunk_coordinates=CHUNK,
        threads=1,
    )[0]


def update() -> NDArray[np.float32]:
    random = np.random.default_rng(5)
    return np.clip(random.normal(size=ELEMENTS) * 0.1, -1, 1).astype(np.float32)


def decoded(chunks: list[bytes], bits: int) -> NDArray[np.int64]:
    total = np.zeros(ELEMENTS, np.uint32)
    _native.fold_ring_chunks(total, [chunks], bits=bits, chunk_coordinates=CHUNK, threads=1)
    return _native.center_ring(total, bits)


@pytest.mark.parametrize("stochastic", [True, False], ids=["stochastic", "nearest"])
@pytest.mark.parametrize("bits", [16, 22])
def test_encode_an_update_as_ring_words(bits: int, stochastic: bool, report: Report) -> None:
    values = update()
    rounding = Secret.from_bytes(bytes(range(32))) if stochastic else None
    random = np.random.default_rng(1)

    def the_numpy_way() -> NDArray[np.int64]:
        scaled = values.astype(np.float64) * 32766.0
        if stochastic:
            scaled += random.random(ELEMENTS)
            return np.floor(scaled).astype(np.int64)
        return np.rint(scaled).astype(np.int64)

    steps = decoded(encoded(values, bits, rounding, [], "chacha20"), bits)
    assert np.abs(steps - values.astype(np.float64) * 32766.0).max() < 1
    report(
        lambda: encoded(values, bits, rounding, [], "chacha20"),
        size=4 * ELEMENTS + bits * ELEMENTS // 8,
        coordinates=ELEMENTS,
        numpy=the_numpy_way,
    )


@pytest.mark.parametrize("generator", ["chacha20", "aes256ctr"])
def test_encode_and_mask_an_update_for_12_sites(generator: str, report: Report) -> None:
    values, bits = update(), 22
    masks = [Secret.from_bytes(key) for key in keys()]
    rounding = Secret.from_bytes(bytes(range(32)))

    total = np.zeros(ELEMENTS, np.uint32)
    chunks = encoded(values, bits, None, masks, generator)
    _native.fold_ring_chunks(total, [chunks], bits=bits, chunk_coordinates=CHUNK, threads=1)
    place = {"stream": 1, "first": 0, "bits": bits, "threads": 1}
    _native.add_masks(total, masks, [-1] * SITES, generator=generator, **place)
    expected = np.rint(values.astype(np.float64) * 32766.0).astype(np.int64)
    assert np.array_equal(_native.center_ring(total, bits), expected)

    zeros, stream = bytes(bits * ELEMENTS // 8), bytearray(bits * ELEMENTS // 8)

    def the_streams_alone() -> None:
        for key in keys():
            cipher(generator, key).update_into(zeros, stream)

    report(
        lambda: encoded(values, bits, rounding, masks, generator),
        size=SITES * bits * ELEMENTS // 8,
        coordinates=ELEMENTS,
        peers={"cryptography": the_streams_alone},
    )
