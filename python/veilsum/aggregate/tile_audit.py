"""Whether sums are what they should be: some tiles of a stream, computed a second time.

A processor, a memory or a device that gives a wrong bit gives no error. So some tiles are computed
again on the CPU, with its weakest instruction set, whatever computed the rest. Which tiles is
random, and known to nobody outside the process. A fault that spoils a share p of the tiles is seen
with a probability of 1 - (1 - p)^64; one that spoils a single tile of many is most likely not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from itertools import count

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

from veilsum import _native
from veilsum.errors import DeviceError

TILE = 512
"""Elements of a tile of masks (docs/protocol.md)."""

AUDITED_TILES = 64
SEED_BYTES = 32

_HINT = 'run "veilsum doctor" there, and use backend = "cpu" until it is mended'
_CPU_HINT = 'run "veilsum doctor" there: its processor or its memory is at fault'


def chosen_tiles(seed: bytes, group: int, tiles: int, wanted: int = AUDITED_TILES) -> list[int]:
    """So many different ones in order, all if there are no more."""
    if tiles <= wanted:
        return list(range(tiles))
    chosen: set[int] = set()
    for number in count():
        words = np.frombuffer(
            hashlib.sha256(
                seed + group.to_bytes(4, "little") + number.to_bytes(4, "little")
            ).digest(),
            "<u8",
        )
        for word in words.tolist():
            chosen.add(word % tiles)
            if len(chosen) == wanted:
                return sorted(chosen)
    raise AssertionError("numbers do not end")


class TileAudit:
    """The sum of one stream in some of its tiles.

    Args:
        seed: SEED_BYTES fresh random bytes.
        group, elements, bits: of the stream.
        threads: to make masks with.
    """

    def __init__(
        self, seed: bytes, *, group: int, elements: int, bits: int, threads: int = 1
    ) -> None:
        self._group, self._elements, self._bits = group, elements, bits
        self._threads = threads
        self._tiles = chosen_tiles(seed, group, -(-elements // TILE))
        size = TILE * len(self._tiles)
        self._sums: NDArray[np.uint32] | NDArray[np.uint64] = (
            np.zeros(size, np.uint32) if bits <= 32 else np.zeros(size, np.uint64)
        )

    def fold(self, uploads: Sequence[Sequence[Buffer]], chunk_coordinates: int) -> None:
        """Adds the words of uploads, as fold_ring_chunks does with all of them."""
        _native.fold_ring_tiles(
            self._sums,
            uploads,
            tiles=self._tiles,
            elements=self._elements,
            bits=self._bits,
            chunk_coordinates=chunk_coordinates,
        )

    def add_masks(
        self, keys: Sequence[_native.Secret], signs: Sequence[int], generator: str
    ) -> None:
        """Adds masks, as add_masks does to all of them."""
        _native.add_mask_tiles(
            self._sums,
            keys,
            signs,
            generator=generator,
            stream=self._group,
            tiles=self._tiles,
            bits=self._bits,
            threads=self._threads,
        )

    def check(self, words: NDArray[np.uint32] | NDArray[np.uint64], backend: str) -> None:
        """Compares with the sum of all tiles.

        Raises:
            DeviceError: a tile differs.
        """
        kept = np.uint64((1 << self._bits) - 1)
        for place, tile in enumerate(self._tiles):
            theirs = words[tile * TILE : (tile + 1) * TILE]
            ours = self._sums[place * TILE : place * TILE + theirs.size]
            if ((theirs.astype(np.uint64) ^ ours.astype(np.uint64)) & kept).any():
                other = "its plainest code" if backend == "cpu" else "the CPU"
                raise DeviceError(
                    f"{backend} computed another sum than {other} in tile {tile} of stream "
                    f"{self._group}",
                    hint=_CPU_HINT if backend == "cpu" else _HINT,
                )


def audit_encoding(
    seed: bytes,
    chunks: Sequence[Buffer],
    encode: Callable[[list[int]], NDArray[np.uint64]],
    *,
    group: int,
    elements: int,
    bits: int,
    chunk_coordinates: int,
    backend: str,
) -> None:
    """Compares some tiles of an upload that a device has made with those that the CPU makes.

    Args:
        seed: SEED_BYTES fresh random bytes.
        chunks: of the stream.
        encode: the words of tiles, made on the CPU, one tile behind the other.
        group, elements, bits, chunk_coordinates: of the stream.
        backend: the device.

    Raises:
        DeviceError: a tile differs.
    """
    tiles = chosen_tiles(seed, group, -(-elements // TILE))
    found = np.zeros(TILE * len(tiles), np.uint64)
    _native.fold_ring_tiles(
        found,
        [chunks],
        tiles=tiles,
        elements=elements,
        bits=bits,
        chunk_coordinates=chunk_coordinates,
    )
    differs = ((found ^ encode(tiles)) & np.uint64((1 << bits) - 1)).reshape(-1, TILE).any(axis=1)
    if differs.any():
        raise DeviceError(
            f"{backend} encoded tile {tiles[int(differs.argmax())]} of stream {group} to other "
            "words than the CPU",
            hint=_HINT,
        )
