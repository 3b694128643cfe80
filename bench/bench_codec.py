"""Encoding and decoding with every codec, and the public rotation. One thread."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from harness import Report

from veilsum import ModelLayout, _native, codecs, decode, encode

SIZE = 1 << 24
BLOCK = 64
# Ring codecs differ in width alone; these are the widths that rounds use.
RINGS = {"ring8", "ring16", "ring22", "ring32"}
CODECS = [name for name in codecs() if not re.fullmatch(r"ring\d+", name) or name in RINGS]


@pytest.fixture(scope="module")
def values() -> np.ndarray[Any, Any]:
    return np.random.default_rng(1).normal(size=SIZE).astype(np.float32)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VEILSUM_THREADS", "1")


def options_of(codec: str) -> dict[str, Any]:
    return {"clip": 8.0} if codec.startswith("ring") else {}


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

    def ours() -> object:
        return encode({"w": values}, codec, layout=layout, seed=1, **options_of(codec))

    update = encode({"w": values}, codec, layout=layout, seed=1, **options_of(codec))
    error = np.square(decode(update)["w"] - values).sum() / np.square(values).sum()
    assert error < 1.001
    report(ours, numpy=numpy_encode(codec, values), size=4 * SIZE, coordinates=SIZE)


@pytest.mark.parametrize("codec", CODECS)
def test_decode(report: Report, values: np.ndarray[Any, Any], codec: str) -> None:
    update = encode({"w": values}, codec, seed=1, **options_of(codec))
    assert decode(update)["w"].shape == values.shape

    report(lambda: decode(update), size=4 * SIZE, coordinates=SIZE)


@pytest.mark.parametrize("block", [1024, 4096])
def test_rotate(report: Report, values: np.ndarray[Any, Any], block: int) -> None:
    rotated = values.copy()

    def rotate(*, inverse: bool) -> None:
        _native.rotate(rotated, block=block, key=bytes(32), first=0, inverse=inverse, threads=1)

    rotate(inverse=False)
    assert not np.array_equal(rotated, values)
    rotate(inverse=True)
    assert np.allclose(rotated, values, rtol=1e-4, atol=1e-5)
    report(lambda: rotate(inverse=False), size=8 * SIZE, coordinates=SIZE)
