"""Ring codecs with a rotation and tables of clips, from docs/format.md."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reference import ring, rotation


def scale(steps: int, clip: float) -> float:
    """The largest double for which clip times it is at most `steps`."""
    found = steps / clip
    while found * clip > steps:
        found = math.nextafter(found, 0)
    return found


def scales(
    clips: Sequence[float], steps: int, *, block: int, starts: Sequence[int], size: int
) -> NDArray[Any]:
    """The scale of every coordinate. A gap belongs to the tensor before it."""
    table = [scale(steps, float(np.float32(clip))) for clip in clips]
    if block:
        return np.array([table[coordinate // block] for coordinate in range(size)])
    found = np.zeros(size)
    for start, one in zip(starts, table, strict=True):
        found[start:] = one
    return found


def steps_of(
    values: NDArray[Any], gains: NDArray[Any], seed: bytes, *, block: int, key: bytes
) -> list[int]:
    """Steps of a whole group without anything clamped; `values` are its coordinates, gaps 0."""
    if not block:
        scaled = [float(value) * float(gain) for value, gain in zip(values, gains, strict=True)]
    else:
        products = values.astype(np.float32).astype(np.float64) * gains
        scaled = [float(v) for v in rotation.rotate(products.astype(np.float32), block, key)]
    uniforms = (ring.uniform24(seed, at, 1) for at in range(len(scaled)))
    return [math.floor(y + u * 2.0**-24) for y, u in zip(scaled, uniforms, strict=True)]


def values_of(steps: Sequence[int], gains: NDArray[Any], *, block: int, key: bytes) -> NDArray[Any]:
    """What the steps decode to, as doubles before the last rounding."""
    unrotated = np.array(steps, np.float64)
    if block:
        unrotated = rotation.unrotate(unrotated, block, key)
    return unrotated / gains
