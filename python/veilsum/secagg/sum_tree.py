"""Hash trees over the integer sum Z of a round, one per stream.

    leaf = SHA-256(0x00 || LE32 stream || LE64 first element || packed words of one chunk)

A leaf covers the elements of one chunk of an upload, so that a part of the sum and the same part
of every upload are proven side by side. Inner nodes and proofs as in merkle.py.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from typing_extensions import Buffer

from veilsum.aggregate.ring_spec import RingSpec, Stream, SumChunk
from veilsum.errors import DecodeError
from veilsum.secagg import merkle


@dataclass(frozen=True, slots=True)
class StreamRoot:
    """One stream of a sum: its number, elements, bits of a word, and the root over its leaves."""

    stream: int
    elements: int
    bits: int
    root: bytes


@dataclass(frozen=True, slots=True)
class SumTree:
    """The leaves of every stream of one sum. 32 bytes for each chunk."""

    spec: RingSpec = field(repr=False)
    leaves: Mapping[int, Sequence[bytes]] = field(repr=False)

    @classmethod
    def over(cls, spec: RingSpec, chunks: Iterable[SumChunk]) -> SumTree:
        """The tree of a sum, of which no more than one chunk is held at a time.

        Args:
            chunks: all of the sum, in (group, index) order, as SecureSum.chunks() gives them.

        Raises:
            DecodeError: a chunk is missing, too much, out of order, or not of its size.
        """
        leaves: dict[int, list[bytes]] = {stream.group: [] for stream in spec.streams}
        places = ((one, number) for one in spec.streams for number in range(spec.chunk_count(one)))
        left = iter(chunks)
        for stream, index in places:
            chunk = next(left, None)
            if chunk is None:
                raise DecodeError(f"the sum ends before chunk {index} of stream {stream.group}")
            check_place(spec, stream, index, chunk)
            leaves[stream.group].append(leaf_hash(chunk))
        if next(left, None) is not None:
            raise DecodeError("chunks follow the last one of the sum")
        return cls(spec, leaves)

    @property
    def roots(self) -> tuple[StreamRoot, ...]:
        """One per stream, in order."""
        return tuple(
            StreamRoot(
                stream.group,
                stream.elements,
                stream.bits,
                merkle.root_hash(self.leaves[stream.group]),
            )
            for stream in self.spec.streams
        )

    def proof(self, stream: int, index: int) -> tuple[bytes, ...]:
        """That chunk `index` of a stream is under its root."""
        return merkle.inclusion_proof(self.leaves[stream], index)


def chunks_of(spec: RingSpec, words: Buffer) -> Iterator[SumChunk]:
    """The chunks of a sum whose words lie one chunk after the other.

    Raises:
        DecodeError: there are more or fewer bytes than the sum has.
    """
    view, begin = memoryview(words), 0
    for stream in spec.streams:
        for index in range(spec.chunk_count(stream)):
            elements = spec.chunk_range(stream, index)
            end = begin + -(-len(elements) * stream.bits // 8)
            if end > view.nbytes:
                raise DecodeError(f"the sum ends within chunk {index} of stream {stream.group}")
            yield SumChunk(stream.group, elements.start, bytes(view[begin:end]))
            begin = end
    if begin != view.nbytes:
        raise DecodeError(f"{view.nbytes - begin} bytes follow the last chunk of the sum")


def leaf_hash(chunk: SumChunk) -> bytes:
    """Leaf of one chunk of a sum, 32 bytes."""
    return merkle.leaf_hash(struct.pack("<IQ", chunk.stream, chunk.first) + chunk.words)


def check_roots(spec: RingSpec, roots: Sequence[StreamRoot]) -> None:
    """Whether roots that came from elsewhere are of the streams that a plan has.

    Raises:
        DecodeError: they are not.
    """
    expected = [(stream.group, stream.elements, stream.bits) for stream in spec.streams]
    found = [(root.stream, root.elements, root.bits) for root in roots]
    if found != expected:
        raise DecodeError(
            f"the roots of the sum are of streams {found} (number, elements, bits), the plan has "
            f"{expected}"
        )


def check_place(spec: RingSpec, stream: Stream, index: int, chunk: SumChunk) -> None:
    """Whether a chunk is the one at this place of a sum, by its form.

    Raises:
        DecodeError: it is of another place or has another size.
    """
    place = spec.chunk_range(stream, index)
    size, spare = divmod(len(place) * stream.bits, 8)
    padded = size + (spare > 0)
    if (chunk.stream, chunk.first, len(chunk.words)) != (stream.group, place.start, padded):
        raise DecodeError(
            f"chunk {index} of stream {stream.group} of the sum begins at element {place.start} "
            f"and has {padded} bytes, got one of stream {chunk.stream} at {chunk.first} with "
            f"{len(chunk.words)}"
        )
    if spare and chunk.words[-1] >> spare:
        raise DecodeError(
            f"chunk {index} of stream {stream.group} of the sum has a padding bit set"
        )


def check_chunk(
    spec: RingSpec, roots: Sequence[StreamRoot], index: int, chunk: SumChunk, proof: Sequence[bytes]
) -> None:
    """Whether a chunk is under the root of its stream.

    Args:
        roots: checked by check_roots.
        index: of the chunk that was asked for in the stream that the chunk names.

    Raises:
        DecodeError: it is not, or there is no such chunk.
    """
    for stream, root in zip(spec.streams, roots, strict=True):
        if stream.group == chunk.stream:
            count = spec.chunk_count(stream)
            try:
                merkle.check_inclusion(root.root, count, index, leaf_hash(chunk), proof)
            except DecodeError as error:
                raise DecodeError(f"stream {stream.group} of the sum: {error}") from error
            check_place(spec, stream, index, chunk)
            return
    raise DecodeError(f"the sum has no stream {chunk.stream}")
