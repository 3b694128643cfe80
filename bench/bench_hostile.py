"""Numbers that cost some CPUs many times as much as others: subnormal ones, NaN and infinities.

Scales that would make them are refused; beside each refusal runs the check of an ordinary update.
Those that a format allows, and subnormal values, run beside ordinary ones: "x ordinary" is how
many times faster than these, so 1 is as it should be. One thread. VEILSUM_BENCH_COORDINATES is how
many values an update has (2^22).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from harness import Report

from veilsum import Aggregator, EncodedUpdate, decode, encode
from veilsum.errors import DecodeError, PeerError

SIZE = int(os.environ.get("VEILSUM_BENCH_COORDINATES", str(1 << 22)))
# With private scales: bytes of one, and the smallest code but 0.
SCALED = {
    "int8": (4, 1.0),
    "int8/f16": (2, 1.0),
    "int4": (2, 1.0),
    "int4/f32": (4, 1.0),
    "nf4": (2, 0.0795803),
    "nf4/f32": (4, 0.0795803),
    "fp4": (2, 0.5),
    "fp4/f32": (4, 0.5),
    "fp8_e4m3": (4, 2.0**-9),
    "fp8_e5m2": (4, 2.0**-16),
    "sign": (2, 1.0),
    "sign/f32": (4, 1.0),
    "eden1": (4, 1.0),
    "eden4": (4, 1.0),
}
BAD = {
    4: {"subnormal": 1, "NaN": 0x7FC00000, "infinite": 0x7F800000},
    2: {"negative subnormal": 0x8001, "NaN": 0x7E00, "infinite": 0x7C00},
}
REFUSALS = [(codec, kind) for codec, (size, _) in SCALED.items() for kind in BAD[size]]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VEILSUM_THREADS", "1")


@cache
def values() -> np.ndarray[Any, Any]:
    return np.random.default_rng(1).normal(size=SIZE).astype(np.float32)


@cache
def ordinary(codec: str) -> EncodedUpdate:
    return encode({"w": values()}, codec, update_id=1)


# --- changed scales ------------------------------------------------------------------------


def crc32c_table() -> list[int]:
    table = []
    for entry in range(256):
        crc = entry
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return table


TABLE = crc32c_table()


def sealed(chunk: bytes) -> bytes:
    """The chunk with the checksum that belongs to it."""
    crc = 0xFFFFFFFF
    for byte in chunk[:60] + chunk[64:]:
        crc = crc >> 8 ^ TABLE[(crc ^ byte) & 0xFF]
    return chunk[:60] + struct.pack("<I", crc ^ 0xFFFFFFFF) + chunk[64:]


def with_scales(update: EncodedUpdate, scale: bytes, *, every: bool) -> list[bytes]:
    """The pieces of the update with other scales: every one, or the last one of all."""
    pieces = [bytes(piece) for piece in update.chunks()]
    for place in range(1, len(pieces)) if every else [len(pieces) - 1]:
        (size,) = struct.unpack_from("<I", pieces[place], 32)
        count = size // len(scale) if every else 1
        end = 64 + size
        begin = end - count * len(scale)
        pieces[place] = sealed(pieces[place][:begin] + scale * count + pieces[place][end:])
    return pieces


def refusal(pieces: list[bytes]) -> Callable[[], bool]:
    def refuse() -> bool:
        try:
            EncodedUpdate.from_chunks(pieces)
        except DecodeError as error:
            return "block scale" in str(error)
        return False

    return refuse


@pytest.mark.parametrize(("codec", "kind"), REFUSALS)
def test_refuse(report: Report, codec: str, kind: str) -> None:
    """The last scale of all is bad, so that nothing is saved by refusing."""
    size, _ = SCALED[codec]
    bad = BAD[size][kind].to_bytes(size, "little")
    refuse = refusal(with_scales(ordinary(codec), bad, every=False))
    pieces = ordinary(codec).chunks()

    assert refuse()
    report(refuse, peers={"ordinary": lambda: EncodedUpdate.from_chunks(pieces)}, coordinates=SIZE)


# --- what is allowed, and smallest -------------------------------------------------------------


def smallest_scale(codec: str) -> bytes:
    size, code = SCALED[codec]
    if size == 2:
        return struct.pack("<H", 1)  # 2^-24, subnormal as f16
    return struct.pack("<f", np.nextafter(np.float32(2.0**-126 / code), np.float32(1)))


def add(update: EncodedUpdate) -> Callable[[], Any]:
    def added() -> Any:
        mean = Aggregator(update.layout, threads=1)
        mean.add(update, site="a", weight=3, copy=False)
        return mean._native.finish()

    return added


def compare(report: Report, small: EncodedUpdate, usual: EncodedUpdate, what: str) -> None:
    """Decoding, or screening and adding."""
    found = decode(small)["w"]
    assert 0 < np.abs(found).max() < 2.0**-10
    if what == "decode":
        report(lambda: decode(small), peers={"ordinary": lambda: decode(usual)}, coordinates=SIZE)
        return
    assert np.array_equal(add(small)()[0], found)
    report(add(small), peers={"ordinary": add(usual)}, coordinates=SIZE)


@pytest.mark.parametrize("what", ["decode", "add"])
@pytest.mark.parametrize("codec", SCALED)
def test_smallest_scales(report: Report, codec: str, what: str) -> None:
    pieces = with_scales(ordinary(codec), smallest_scale(codec), every=True)

    compare(report, EncodedUpdate.from_chunks(pieces), ordinary(codec), what)


def subnormal(codec: str) -> np.ndarray[Any, Any]:
    """Values that the format holds as subnormal numbers, of both signs."""
    patterns = np.random.default_rng(2).integers(1, 2**7, SIZE)
    signs = np.random.default_rng(3).integers(0, 2, SIZE)
    if codec == "f32":
        return (patterns << 16 | signs << 31).astype(np.uint32).view(np.float32)
    halves = (patterns | signs << 15).astype(np.uint16)
    dtype = np.float16 if codec == "f16" else ml_dtypes.bfloat16
    return halves.view(dtype).astype(np.float32)


@pytest.mark.parametrize("what", ["decode", "add"])
@pytest.mark.parametrize("codec", ["f32", "f16", "bf16"])
def test_subnormal_values(report: Report, codec: str, what: str) -> None:
    small = encode({"w": subnormal(codec)}, codec)

    assert np.array_equal(decode(small)["w"], subnormal(codec))
    compare(report, small, ordinary(codec), what)


@pytest.mark.parametrize("screened", ["subnormal", "NaN", "infinite"])
def test_screen_arrays(report: Report, screened: str) -> None:
    """Arrays rather than chunks; the bad value is the last one."""
    usual = {"w": values()}
    small = {"w": subnormal("f32") if screened == "subnormal" else values().copy()}
    if screened != "subnormal":
        small["w"][-1] = np.nan if screened == "NaN" else np.inf

    def take(update: dict[str, Any]) -> bool:
        mean = Aggregator(ordinary("f32").layout, threads=1)
        try:
            mean.add(update, site="a", weight=1, copy=False)
        except PeerError as error:
            return "finite" in str(error)
        return False

    assert take(small) == (screened != "subnormal")
    report(lambda: take(small), peers={"ordinary": lambda: take(usual)}, coordinates=SIZE)
