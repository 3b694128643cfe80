"""Receiving one masked upload: the header's promises, then chunk by chunk."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from typing_extensions import Buffer

from veilsum import _native
from veilsum.aggregate.secure_sum import Stream
from veilsum.errors import DecodeError, PeerError
from veilsum.secagg import merkle
from veilsum.secagg.messages import InputHeader, StreamHeader
from veilsum.secagg.plan import Plan

# Where a chunk's header says which chunk it is (docs/format.md).
_GROUP_OFFSET = 12
_INDEX_OFFSET = 28
_CHUNK_HEADER_BYTES = 64


def stream_headers(plan: Plan) -> tuple[StreamHeader, ...]:
    """Shapes every upload of a round has; the plan fixes them completely."""
    return tuple(
        StreamHeader(stream.group, stream.elements, stream.bits, sum(plan.ring.chunk_sizes(stream)))
        for stream in plan.ring.streams
    )


def input_header(plan: Plan, site: str, t2: bytes, chunks: Sequence[Buffer]) -> InputHeader:
    """M5 for these chunks."""
    root = merkle.root_hash([merkle.leaf_hash(chunk) for chunk in chunks])
    return InputHeader(plan.context, site, t2, stream_headers(plan), root)


class InputReceiver:
    """Checks the chunks of one upload as they arrive, in (group, index) order.

    Keeps 32 bytes per chunk and no chunk. A chunk that was received already may come again.
    """

    def __init__(self, plan: Plan, site: str, header: InputHeader, update_id: int) -> None:
        self._plan = plan
        self._site = site
        self._root = header.root
        self._update_id = update_id
        self._grid: list[tuple[Stream, int]] = [
            (stream, index)
            for stream in plan.ring.streams
            for index in range(plan.ring.chunk_count(stream))
        ]
        self._positions = {
            (stream.group, index): position for position, (stream, index) in enumerate(self._grid)
        }
        self._leaves: list[bytes] = []

    @property
    def chunk_count(self) -> int:
        """Chunks of a complete upload."""
        return len(self._grid)

    @property
    def max_chunk_bytes(self) -> int:
        """No chunk of this upload is larger."""
        ring = self._plan.ring
        return max(max(ring.chunk_sizes(stream)) for stream in ring.streams)

    @property
    def next_index(self) -> int:
        """Number of the chunk expected next, over all groups; chunk_count when complete."""
        return len(self._leaves)

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
        leaf = merkle.leaf_hash(chunk)
        if position < self.next_index:
            if leaf != self._leaves[position]:
                raise PeerError(self._site, f"sent chunk {position} again with other bytes")
            return
        self._check(chunk, position)
        self._leaves.append(leaf)

    def finish(self) -> None:
        """Checks that everything came and is what the signed header promised.

        Raises:
            PeerError: chunks are missing, or the Merkle root differs.
        """
        if self.next_index != self.chunk_count:
            raise PeerError(self._site, f"sent {self.next_index} of {self.chunk_count} chunks")
        if merkle.root_hash(self._leaves) != self._root:
            raise PeerError(self._site, "sent chunks that do not match its signed Merkle root")

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
        stream, _ = self._grid[position]
        _native.check_chunk(
            chunk,
            codec=stream.codec,
            group=stream.group,
            group_size=stream.elements,
            masked=True,
            plan_digest=self._plan.context,
            update_id=self._update_id,
            chunk_coordinates=self._plan.chunk_coordinates,
        )
