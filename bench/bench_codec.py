"""Encoding, decoding and adding with every codec, and the public rotation. One thread.

VEILSUM_BENCH_COORDINATES is how many values an update has (2^24), VEILSUM_BENCH_CODECS names
the codecs, separated by commas; without it all are timed, and five of the ring's widths.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from harness import Report

from veilsum import Aggregator, ModelLayout, _native, codecs, decode, encode

SIZE = int(os.environ.get("VEILSUM_BENCH_COORDINATES", str(1 << 24)))
SITES = 4
BLOCK = 64
# Ring codecs differ in width alone; these are widths that rounds use, and one that is no integer.
RINGS = {"ring8", "ring12", "ring16", "ring22", "ring32"}
CODECS = [
    name
    for name in codecs()
    if name in os.environ.get("VEILSUM_BENCH_CODECS", name).split(",")
    and (name in RINGS or not re.fullmatch(r"ring\d+", name))
]
# Squared error of normal values, as a share of their squares, must be below.
ERRORS = {
    "f32": 0.0,
    "f16": 1e-6,
    "bf16": 1e-4,
    "int8": 1e-4,
    "int4": 0.05,
    "nf4": 0.02,
    "fp4": 0.05,
    "fp8_e4m3": 2e-3,
    "fp8_e5m2": 6e-3,
    "sign": 0.4,
    "topk": 0.99,
    "eden1": 0.6,
    "eden2": 0.15,
    "eden3": 0.04,
    "eden4": 0.011,
    "ring8": 2e-3,
}
RING_ERROR = 1e-5


@pytest.fixture(scope="module")
def values() -> np.ndarray[Any, Any]:
    return np.random.default_rng(1).normal(size=SIZE).astype(np.float32)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VEILSUM_THREADS", "1")


def options_of(codec: str) -> dict[str, Any]:
    return {"clip": 8.0} if codec.startswith("ring") else {}


def require_close(codec: str, found: np.ndarray[Any, Any], exact: np.ndarray[Any, Any]) -> None:
    error = float(np.square(found - exact).sum() / np.square(exact).sum())
    assert error <= ERRORS.get(codec, RING_ERROR)


def numpy_encode(codec: str, values: np.ndarray[Any, Any]) -> Callable[[], object] | None:
    """The usual few lines, where there are some."""
    blocks = values.reshape(-1, BLOCK)

    def int8() -> object:
        scales = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
        return scales, np.rint(blocks / scales).astype(np.int8)

    def ring() -> object:
        steps = values * np.float32(2**15 / 8.0) + np.random.default_rng().random(
            SIZE, dtype=np.float32
        )
        return np.floor(steps).astype(np.int32)

    return {"int8": int8, "f16": lambda: values.astype(np.float16), "ring16": ring}.get(codec)


@pytest.mark.parametrize("codec", CODECS)
def test_encode(report: Report, values: np.ndarray[Any, Any], codec: str) -> None:
    layout = ModelLayout.from_arrays({"w": values})

    def ours() -> Any:
        return encode({"w": values}, codec, layout=layout, seed=seed, **options_of(codec))

    # int8 and int4 to nearest, as their yardstick; the others round as they always do.
    seed = 1 if codec.startswith("ring") else None
    require_close(codec, decode(ours())["w"], values)
    report(ours, numpy=numpy_encode(codec, values), size=4 * SIZE, coordinates=SIZE)


@pytest.mark.parametrize("hadamard", [1024, 4096])
def test_encode_rotated_ring16(report: Report, values: np.ndarray[Any, Any], hadamard: int) -> None:
    layout = ModelLayout.from_arrays({"w": values})

    def ours() -> Any:
        return encode(
            {"w": values},
            "ring16",
            layout=layout,
            seed=1,
            clip=8.0,
            hadamard=hadamard,
            rotation_seed=1,
        )

    require_close("ring16", decode(ours())["w"], values)
    report(ours, size=4 * SIZE, coordinates=SIZE)


@pytest.mark.parametrize("codec", CODECS)
def test_decode(report: Report, values: np.ndarray[Any, Any], codec: str) -> None:
    update = encode({"w": values}, codec, seed=1, **options_of(codec))
    if codec != "int4":  # rounded to nearest above, and here at random: twice the error
        require_close(codec, decode(update)["w"], values)

    report(lambda: decode(update), size=4 * SIZE, coordinates=SIZE)


@pytest.mark.parametrize("codec", CODECS)
def test_screen_weigh_and_add(report: Report, values: np.ndarray[Any, Any], codec: str) -> None:
    """What a server does with updates: all but their digest, over a quarter of the values."""
    few = values[: SIZE // SITES]
    layout = ModelLayout.from_arrays({"w": few})
    updates = [encode({"w": few}, codec, layout=layout, **options_of(codec)) for _ in range(SITES)]

    def ours() -> Any:
        mean = Aggregator(layout, threads=1)
        for site, update in enumerate(updates):
            mean.add(update, site=str(site), weight=site + 1, copy=False)
        return mean._native.finish()

    weighed = sum((site + 1) * decode(update)["w"] for site, update in enumerate(updates)) / 10
    assert np.allclose(ours()[0], weighed, rtol=1e-5, atol=1e-6)
    report(ours, size=4 * SIZE, coordinates=SITES * few.size)


@pytest.mark.parametrize("block", [1024, 4096])
def test_rotate(report: Report, values: np.ndarray[Any, Any], block: int) -> None:
    rotated = values.copy()

    def rotate(*, inverse: bool) -> None:
        _native.rotate(rotated, block=block, key=bytes(8), first=0, inverse=inverse, threads=1)

    rotate(inverse=False)
    assert not np.array_equal(rotated, values)
    rotate(inverse=True)
    assert np.allclose(rotated, values, rtol=1e-4, atol=1e-5)
    report(lambda: rotate(inverse=False), size=8 * SIZE, coordinates=SIZE)
