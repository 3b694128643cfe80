"""Pre-steps: what is done to updates before a rule sees them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from veilsum import _native
from veilsum.errors import ConfigError
from veilsum.rules.base import PreStep, Rows, check_count, require


@dataclass(frozen=True, slots=True)
class NearestNeighborMixing(PreStep):
    """Replaces each update by the mean of its n - f nearest, itself one of them (Allouah et
    al. 2023, arXiv 2302.01772): what honest updates differ in cannot hide a byzantine one.

    Attributes:
        byzantine: f, how many updates may be anything.
    """

    byzantine: int

    def __post_init__(self) -> None:
        check_count("byzantine", self.byzantine, 0)

    def apply(self, rows: Rows) -> Rows:
        """n >= 2 f + 1."""
        require(self, rows.count, 2 * self.byzantine + 1)
        near = _native.nearest_rows(rows.distances(), count=rows.count - self.byzantine)
        return rows.mixed(_means(rows, near))


@dataclass(frozen=True, slots=True)
class Bucketing(PreStep):
    """Replaces updates by the means of random buckets of them (Karimireddy et al. 2022,
    arXiv 2006.09365), which evens out how much honest ones differ. The rule behind it sees
    ceil(n / size) buckets, of which each byzantine update can spoil one.

    Attributes:
        size: updates per bucket; the last one may have fewer.
        seed: what the order is drawn from, and best drawn only when all updates are in: who
            knows it before can choose names that share a bucket.
    """

    size: int
    seed: int | bytes

    def __post_init__(self) -> None:
        check_count("size", self.size, 1)
        if not isinstance(self.seed, bytes):
            check_count("seed", self.seed, 0)

    def apply(self, rows: Rows) -> Rows:
        """Rows in the order of SHA-256 over seed and name, cut into buckets."""
        names = _names(rows)
        order = sorted(range(rows.count), key=lambda r: (self._draw(names[r]), names[r]))
        buckets = [order[i : i + self.size] for i in range(0, len(order), self.size)]
        return rows.mixed(_means(rows, buckets))

    def _draw(self, name: str) -> bytes:
        seed = self.seed if isinstance(self.seed, bytes) else str(self.seed).encode()
        text = b"veilsum bucketing" + len(seed).to_bytes(8, "little") + seed + name.encode()
        return hashlib.sha256(text).digest()


def _names(rows: Rows) -> list[str]:
    """Of each row: its site, or its number after another pre-step."""
    if rows.are_updates:
        return list(rows.snapshot.sites)
    return [str(r) for r in range(rows.count)]


def _means(rows: Rows, groups: list[list[int]]) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """One row per group: the mean of its rows, as whole weights over their sum."""
    matrix = np.array([rows.whole_weights(group)[0] for group in groups], dtype=np.int64)
    if matrix.ndim != 2:
        raise ConfigError("there is nothing to apply a pre-step to", hint="add updates first")
    return matrix
