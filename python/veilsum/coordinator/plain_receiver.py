"""Receiving one plain upload, chunk by chunk."""

from __future__ import annotations

import hashlib
import struct

from typing_extensions import Buffer

from veilsum import _native, plain
from veilsum.control import PlainPlan
from veilsum.errors import DecodeError, PeerError
from veilsum.model import ModelLayout

# Where a chunk's header says which chunk it is (docs/format.md).
_GROUP_OFFSET = 12
_INDEX_OFFSET = 28
_CHUNK_HEADER_BYTES = 64


class PlainReceiver:
    """Checks the chunks of one upload as they arrive, in (group, index) order.

    Keeps 32 bytes per chunk and no chunk. A chunk that was received already may come again.
    """

    def __init__(self, plan: PlainPlan, layout: ModelLayout, site: str, update_id: int) -> None:
        self._plan = plan
        self._site = site
        self._update_id = update_id
        codec = plain.codec_settings(plan.codec, plan.clip).number
        self._grid = [
            (group, index)
            for group in plain.chunk_groups(layout, codec)
            for index in range(group.chunks)
        ]
        self._positions = {
            (group.group, index): position for position, (group, index) in enumerate(self._grid)
        }
        self._hashes: list[bytes] = []

    @property
    def chunk_count(self) -> int:
        """Chunks of a complete upload."""
        return len(self._grid)

    @property
    def max_chunk_bytes(self) -> int:
        """No chunk of this upload is larger."""
        sizes = [
            _native.chunk_size(group.codec, min(group.size, plain.CHUNK_COORDINATES))
            for group, _ in self._grid
        ]
        return max(sizes, default=0)

    @property
    def next_index(self) -> int:
        """Number of the chunk expected next, over all groups; chunk_count when complete."""
        return len(self._hashes)

    def add(self, chunk: Buffer) -> None:
        """Takes the next chunk, or one that was taken before.

        Raises:
            DecodeError: the chunk breaks the format, or is not one of this upload's.
            PeerError: out of order, or different from what was received in its place.
        """
        position = self._position(chunk)
        if position > self.next_index:
            raise PeerError(
                self._site, f"sent chunk {position} where chunk {self.next_index} is next"
            )
        found = hashlib.sha256(chunk).digest()
        if position < self.next_index:
            if found != self._hashes[position]:
                raise PeerError(self._site, f"sent chunk {position} again with other bytes")
            return
        self._check(chunk, position)
        self._hashes.append(found)

    def finish(self) -> None:
        """Raises:
        PeerError: chunks are missing.
        """
        if self.next_index != self.chunk_count:
            raise PeerError(self._site, f"sent {self.next_index} of {self.chunk_count} chunks")

    def _position(self, chunk: Buffer) -> int:
        view = memoryview(chunk)
        if view.nbytes < _CHUNK_HEADER_BYTES:
            raise DecodeError(f"a chunk has {view.nbytes} bytes, fewer than its header")
        (group,) = struct.unpack_from("<I", view, _GROUP_OFFSET)
        (index,) = struct.unpack_from("<I", view, _INDEX_OFFSET)
        position = self._positions.get((group, index))
        if position is None:
            raise DecodeError(f"an upload of this round has no chunk {index} of group {group}")
        return position

    def _check(self, chunk: Buffer, position: int) -> None:
        group, _ = self._grid[position]
        _native.check_chunk(
            chunk,
            codec=group.codec,
            group=group.group,
            group_size=group.size,
            masked=False,
            plan_digest=self._plan.digest,
            update_id=self._update_id,
            chunk_coordinates=self._plan.chunk_coordinates,
        )
