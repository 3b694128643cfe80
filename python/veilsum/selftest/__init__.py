"""Known answers for every kernel table of this machine.

A compiler, a CPU or a driver that computes one bit differently would make masks that do
not cancel or results that nobody can reproduce. Each check compares with constants that
were not made by the code under test, or with exact rational arithmetic.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veilsum import _native
from veilsum._native import Secret
from veilsum.errors import DeviceError, VeilsumError
from veilsum.selftest.known import (
    AES256CTR,
    CHACHA20,
    COORDINATES,
    ENCODED,
    KEPT,
    KEY,
    PUBLIC_KEY,
    ROTATED,
    SHARES,
    STREAM,
    UPLOADS,
)


@dataclass(frozen=True, slots=True)
class Check:
    """One self-test: what was tested, on which kernel table or device, and how it went."""

    name: str
    on: str
    passed: bool
    problem: str = ""


class _WrongAnswerError(Exception):
    """A known answer was not met."""


def cpu_checks() -> list[Check]:
    """Every check on every instruction-set level that this CPU can run, and masks of AES by
    every implementation."""
    found: list[Check] = []
    try:
        for isa in _native.supported_isas():
            _native.use_isa(isa)
            found += [_run(name, isa, check) for name, check in _CPU_CHECKS]
            found += _aes_checks(isa)
    finally:
        _native.use_isa("")
        _native.use_aes("")
    return found


def _aes_checks(isa: str) -> list[Check]:
    # The bitsliced one is another one on every level, those of AES instructions are not.
    first = isa == _native.supported_isas()[0]
    found = []
    for name in _native.supported_aes() if first else ("bitsliced",):
        _native.use_aes(name)
        on = f"{isa}, {name}" if name == "bitsliced" else name
        found.append(_run("AES masks", on, partial(_masks, "aes256ctr", AES256CTR)))
    return found


def require_working(backend: str) -> None:
    """Every check on what this process is going to compute with: the instruction set and the AES
    in use, the weakest one, with which sums are checked, and a device. Takes less than a second.

    Args:
        backend: "cpu" or a device such as "cuda:0".

    Raises:
        DeviceError: one failed; names it.
    """
    checks = [_run(name, _native.active_isa(), check) for name, check in _CPU_CHECKS]
    checks += [
        _run("AES masks", _native.active_aes(), partial(_masks, "aes256ctr", AES256CTR)),
        _run("tiles of masks", "base", _mask_tiles),
    ]
    if backend != "cpu":
        checks += [_run(name, backend, partial(check, backend)) for name, check in _DEVICE]
    for check in checks:
        if not check.passed:
            raise DeviceError(
                f"this machine does not compute as it must: the self-test of {check.name} on "
                f"{check.on} failed: {check.problem}",
                hint="run `veilsum doctor`; VEILSUM_ISA=base avoids the faster kernels if only "
                "those fail",
            )


def device_checks(*, emulated: bool = False) -> list[Check]:
    """Masks, ring sums and masked uploads on every CUDA device, and on the first emulated one if
    asked for."""
    _, devices, _ = _native.cuda_status()
    names = [f"cuda:{number}" for number in range(len(devices))] + ["emu:0"] * emulated
    return [
        _run(name, device, partial(check, device)) for device in names for name, check in _DEVICE
    ]


def _run(name: str, on: str, check: Callable[[], None]) -> Check:
    try:
        check()
    except (_WrongAnswerError, VeilsumError) as error:
        return Check(name, on, passed=False, problem=str(error))
    except Exception as error:  # noqa: BLE001  whatever breaks here, the kernel failed its test
        return Check(name, on, passed=False, problem=repr(error))
    return Check(name, on, passed=True)


def _expect(condition: bool, problem: str) -> None:
    if not condition:
        raise _WrongAnswerError(problem)


def _mask_words(
    generator: str, bits: int, first: int, count: int, backend: str = "cpu"
) -> NDArray[np.uint64]:
    words: NDArray[np.uint32] | NDArray[np.uint64]
    words = np.zeros(count, np.uint64) if bits > 32 else np.zeros(count, np.uint32)
    _native.add_masks(
        words,
        [Secret.from_bytes(KEY)],
        [1],
        generator=generator,
        stream=STREAM,
        first=first,
        bits=bits,
        threads=1,
        backend=backend,
    )
    return words.astype(np.uint64) & np.uint64(2**bits - 1)


def _masks(
    generator: str, known: Mapping[int, tuple[tuple[int, ...], str]], backend: str = "cpu"
) -> None:
    for bits, (first, sha256) in known.items():
        words = _mask_words(generator, bits, 0, 1024, backend)
        _expect(tuple(words[:4].tolist()) == first, f"{bits}-bit masks begin with other words")
        found = hashlib.sha256(words.astype("<u8").tobytes()).hexdigest()[:16]
        _expect(found == sha256, f"{bits}-bit masks have other words")


def _mask_tiles() -> None:
    for generator, known in (("chacha20", CHACHA20), ("aes256ctr", AES256CTR)):
        for bits, (_, sha256) in known.items():
            words = np.zeros(1024, np.uint64)
            _native.add_mask_tiles(
                words,
                [Secret.from_bytes(KEY)],
                [1],
                generator=generator,
                stream=STREAM,
                tiles=[0, 1],
                bits=bits,
                threads=1,
            )
            kept = words & np.uint64(2**bits - 1)
            found = hashlib.sha256(kept.astype("<u8").tobytes()).hexdigest()[:16]
            _expect(found == sha256, f"tiles of {bits}-bit masks have other words")


def _shamir() -> None:
    secret = Secret.from_bytes(bytes(range(32)))
    coefficients = b"".join(
        hashlib.sha256(f"coef{number}".encode()).digest()[:16] for number in (1, 2, 3, 4)
    )
    shares = _native.deal_shares(secret, 3, [1, 2, 3, 4, 5], Secret.from_bytes(coefficients))
    for number, (share, expected) in enumerate(zip(shares, SHARES, strict=True), start=1):
        _expect(bytes(share) == bytes.fromhex(expected), f"share {number} is another one")
    chosen = [shares[number - 1] for number in (5, 2, 4)]
    rebuilt = _native.combine_shares([5, 2, 4], [chosen])[0]
    _expect(rebuilt.equals(secret), "three shares rebuild another secret")


_TENSORS = [("weight", "f32", (12, 50)), ("steps", "i64", (3,))]


def _fractions(first: int, count: int) -> NDArray[np.float64]:
    """Values within 1 that need rounding in every codec; the same on every machine."""
    index = np.arange(first, first + count, dtype=np.float64)
    return ((index * 2654435761.0) % 8191.0 - 4095.0) / 4096.0


def _sample(number: int) -> list[NDArray[Any]]:
    values = _fractions(600 * number, 600)
    steps = np.array([number, -7 * number, 2**40 + number], np.int64)
    return [values.astype(np.float32).reshape(12, 50), steps]


def _codecs() -> None:
    layout = _native.Layout(_TENSORS)
    for name, (scale, limit, expected) in ENCODED.items():
        chunks = _native.encode_chunks(
            layout,
            _sample(1),
            codec=_native.codec_number(name),
            scale=scale,
            limit=limit,
            rounding=None,
            least_error=False,
            plan_digest=bytes(32),
            update_id=7,
            chunk_coordinates=4096,
            threads=1,
        )
        found = hashlib.sha256(b"".join(chunks)).hexdigest()[:16]
        _expect(found == expected, f"{name} encodes to other bytes")


def _rotation() -> None:
    values = _fractions(0, COORDINATES)
    for block, expected in ROTATED.items():
        for dtype, inverse, sha256 in zip(("f4", "f8"), (False, True), expected, strict=True):
            rotated = values.astype(dtype)
            _native.rotate(
                rotated, block=block, key=PUBLIC_KEY, first=0, inverse=inverse, threads=1
            )
            found = hashlib.sha256(rotated.tobytes()).hexdigest()[:16]
            _expect(found == sha256, f"blocks of {block} are rotated to other {dtype} values")


def _subsample() -> None:
    layout = _native.Layout([("weight", "f32", (COORDINATES,))])
    codec = _native.codec_number("f32")
    form: dict[str, Any] = {
        "codec": codec,
        "scale": 0.0,
        "plan_digest": bytes(32),
        "update_id": 7,
        "chunk_coordinates": 4096,
        "threads": 1,
        "transform": _native.Transform.subsample(
            codec=codec, keep=16, key=PUBLIC_KEY, rescale=False
        ),
    }
    ones = [np.ones(COORDINATES, np.float32)]
    chunks = _native.encode_chunks(
        layout, ones, limit=0.0, rounding=None, least_error=False, **form
    )
    values = _native.decode_chunks(layout, chunks, **form)[0]
    kept = np.flatnonzero(values.reshape(-1, 64).all(axis=1))
    _expect(tuple(kept.tolist()) == KEPT, "a subsample keeps other blocks")


def _mean() -> None:
    mean = _native.MeanAggregator(
        _native.Layout(_TENSORS),
        threads=1,
        spool="",
        streaming_max_abs=0.0,
        streaming_max_total_weight=0,
    )
    weights = (1, 1000, 77)
    for number, weight in enumerate(weights):
        mean.add_arrays(f"site-{number}", weight, _sample(number))
    values, steps = mean.finish()
    total = sum(weights)
    for position in range(0, 600, 7):
        exact = Fraction(0)
        for number, weight in enumerate(weights):
            exact += weight * Fraction(float(_sample(number)[0].ravel()[position]))
        found = values.ravel()[position]
        _expect(_is_nearest(found, exact / total), f"element {position} is another number")
    for position, step in enumerate(steps.tolist()):
        sums = sum(w * int(_sample(n)[1][position]) for n, w in enumerate(weights))
        _expect(step == round(Fraction(sums, total)), f"integer {position} is another number")


def _is_nearest(value: np.float32, exact: Fraction) -> bool:
    """Whether no neighbour of a float32 is closer to an exact number."""
    distance = abs(Fraction(float(value)) - exact)
    neighbours = (np.nextafter(value, np.float32(side)) for side in (-np.inf, np.inf))
    return all(distance <= abs(Fraction(float(other)) - exact) for other in neighbours)


def _device_masks(generator: str, backend: str) -> None:
    _masks(generator, CHACHA20 if generator == "chacha20" else AES256CTR, backend)
    for bits in (1, 20, 22, 33):
        for first in (509, 2**29 - 700):  # inside a tile, and across two nonces
            on_device = _mask_words(generator, bits, first, 5000, backend)
            _expect(
                np.array_equal(on_device, _mask_words(generator, bits, first, 5000)),
                f"{bits}-bit masks from element {first} on differ from the CPU's",
            )


def _device_ring_sums(backend: str) -> None:
    count = 4096 + 700
    for bits in (1, 22, 32, 33, 64):
        words = np.arange(3 * count, dtype=np.uint64).reshape(3, count)
        words = words * np.uint64(0x9E3779B97F4A7C15)
        uploads = [
            _native.ring_word_chunks(
                one,
                bits=bits,
                group=1,
                keys=[],
                signs=[],
                generator="chacha20",
                plan_digest=bytes(32),
                update_id=7,
                chunk_coordinates=4096,
                threads=1,
            )
            for one in words
        ]
        sums = np.zeros(count, np.uint64)
        _native.fold_ring_chunks(
            sums, uploads, bits=bits, chunk_coordinates=4096, threads=1, backend=backend
        )
        expected = words.sum(axis=0, dtype=np.uint64)
        same = (sums ^ expected) & np.uint64(2**bits - 1) == 0
        _expect(bool(same.all()), f"sums of {bits}-bit words are other numbers")


def _masked_upload(
    bits: int, block: int, generator: str, backend: str, dtype: str = "f32"
) -> list[bytes]:
    """Chunks of one tensor under one mask that is subtracted."""
    values = _fractions(0, COORDINATES).astype("f8" if dtype == "f64" else "f4")
    chunks, _ = _native.encode_ring_chunks(
        _native.Layout([("weight", dtype, (COORDINATES,))]),
        [values],
        bits=bits,
        gains=np.array([1000.0]),
        limits=np.array([] if block else [0.75]),
        clip=True,
        rounding=Secret.from_bytes(bytes(range(32))),
        keys=[Secret.from_bytes(KEY)],
        signs=[-1],
        generator=generator,
        plan_digest=bytes(32),
        update_id=7,
        chunk_coordinates=4096,
        threads=1,
        rotation_block=block,
        rotation_key=PUBLIC_KEY,
        rotated_limit=750.0,
        backend=backend,
    )
    return chunks


def _device_encoding(backend: str) -> None:
    for (bits, block, generator), sha256 in UPLOADS.items():
        chunks = _masked_upload(bits, block, generator, backend)
        words = b"".join(chunk[_CHUNK_HEADER_BYTES:] for chunk in chunks)
        found = hashlib.sha256(words).hexdigest()[:16]
        _expect(found == sha256, f"an upload of {bits} bits, rotated by {block}, has other words")
    for bits in (12, 32, 64):
        for block in (0, 64, 256):
            on_device = _masked_upload(bits, block, "chacha20", backend, "f64")
            _expect(
                on_device == _masked_upload(bits, block, "chacha20", "cpu", "f64"),
                f"an upload of {bits} bits, rotated by {block}, differs from the CPU's",
            )


_CHUNK_HEADER_BYTES = 64

_CPU_CHECKS: tuple[tuple[str, Callable[[], None]], ...] = (
    ("masks", lambda: _masks("chacha20", CHACHA20)),
    ("shares", _shamir),
    ("codecs", _codecs),
    ("rotation", _rotation),
    ("subsample", _subsample),
    ("exact mean", _mean),
)

_DEVICE: tuple[tuple[str, Callable[[str], None]], ...] = (
    ("masks", partial(_device_masks, "chacha20")),
    ("AES masks", partial(_device_masks, "aes256ctr")),
    ("ring sums", _device_ring_sums),
    ("masked uploads", _device_encoding),
)
