"""Receiving one upload, chunk by chunk: what plain and masked rounds have in common."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from typing_extensions import Buffer

from veilsum import _native
from veilsum.codecs import zstd
from veilsum.codecs.form import ChunkGroup
from veilsum.errors import DecodeError, PeerError

# Where a chunk's header says which chunk it is (docs/format.md).
_GROUP_OFFSET = 12
_INDEX_OFFSET = 28
_CHUNK_HEADER_BYTES = 64


class ChunkReceiver:
    """Checks the chunks of one upload as they arrive, in (group, index) order.

    Keeps 32 bytes per chunk and no chunk. A chunk that was received already may come again.

    Args:
        site: who uploads, for errors.
        groups: the groups of the upload, in order.
        masked, plan_digest, update_id: what every chunk's header must say.
        hash_chunk: hash by which a chunk is remembered, 32 bytes.
        compressed: whether chunks may come compressed.
    """

    def __init__(
        self,
        site: str,
        groups: Sequence[ChunkGroup],
        *,
        masked: bool,
        plan_digest: bytes,
        update_id: int,
        hash_chunk: Callable[[Buffer], bytes],
        compressed: bool = False,
    ) -> None:
        self._site = site
        self._masked = masked
        self._plan_digest = plan_digest
        self._update_id = update_id
        self._hash_chunk = hash_chunk
        self._compressed = compressed
        self._max_chunk_bytes = max((group.largest_size for group in groups), default=0)
        self._grid = [(group, index) for group in groups for index in range(group.count)]
        self._positions = {
            (group.number, index): position for position, (group, index) in enumerate(self._grid)
        }
        self._hashes: list[bytes] = []

    @property
    def chunk_count(self) -> int:
        """Chunks of a complete upload."""
        return len(self._grid)

    @property
    def max_chunk_bytes(self) -> int:
        """No chunk of this upload is larger."""
        return self._max_chunk_bytes

    @property
    def next_index(self) -> int:
        """Number of the chunk expected next, over all groups; chunk_count when complete."""
        return len(self._hashes)

    @property
    def hashes(self) -> tuple[bytes, ...]:
        """What the chunks so far are remembered by, in order."""
        return tuple(self._hashes)

    def add(self, chunk: Buffer) -> Buffer:
        """Takes the next chunk, or one that was taken before.

        Returns:
            The chunk, expanded if it came compressed.

        Raises:
            DecodeError: the chunk breaks the format, or is not one of this upload's.
            PeerError: out of order, or different from what was received in its place.
        """
        position = self.position(chunk)
        if position > self.next_index:
            raise PeerError(
                self._site, f"sent chunk {position} where chunk {self.next_index} is next"
            )
        chunk = self._expanded(chunk, position)
        found = self._hash_chunk(chunk)
        if position < self.next_index:
            if found != self._hashes[position]:
                raise PeerError(self._site, f"sent chunk {position} again with other bytes")
            return chunk
        self.check(chunk, position)
        self._hashes.append(found)
        return chunk

    def finish(self) -> None:
        """Raises:
        PeerError: chunks are missing.
        """
        if self.next_index != self.chunk_count:
            raise PeerError(self._site, f"sent {self.next_index} of {self.chunk_count} chunks")

    def position(self, chunk: Buffer) -> int:
        """Where in the upload a chunk belongs, by its header; nothing else of it is looked at.

        Raises:
            DecodeError: it is no chunk of this upload.
        """
        view = memoryview(chunk)
        if view.nbytes < _CHUNK_HEADER_BYTES:
            raise DecodeError(f"a chunk has {view.nbytes} bytes, fewer than its header")
        (group,) = struct.unpack_from("<I", view, _GROUP_OFFSET)
        (index,) = struct.unpack_from("<I", view, _INDEX_OFFSET)
        position = self._positions.get((group, index))
        if position is None:
            raise DecodeError(f"an upload of this round has no chunk {index} of group {group}")
        return position

    def _expanded(self, chunk: Buffer, position: int) -> Buffer:
        if not zstd.is_compressed(chunk):
            return chunk
        if not self._compressed:
            raise DecodeError(
                f"chunk {position} is compressed, the round's plan has no compression"
            )
        group, index = self._grid[position]
        size = group.last_size if index == group.count - 1 else group.full_size
        return zstd.expanded(chunk, size)

    def check(self, chunk: Buffer, position: int) -> None:
        """The form of the chunk at a position, and all that its header says.

        Raises:
            DecodeError: it is not as the upload's has to be.
        """
        group, _ = self._grid[position]
        _native.check_chunk(
            chunk,
            codec=group.codec,
            group=group.number,
            group_size=group.coordinates,
            masked=self._masked,
            plan_digest=self._plan_digest,
            update_id=self._update_id,
            chunk_coordinates=group.chunk_coordinates,
            transforms=group.transforms,
        )
