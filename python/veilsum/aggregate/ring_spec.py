"""How the values of a masked round become ring words: which vectors, how long, how wide."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from veilsum import _native
from veilsum.codecs.form import CHUNK_ROTATED
from veilsum.model import ModelLayout

METRIC_STEPS = 2**20
"""Steps per unit in which a metric is summed."""

WORD_BITS = 64


@dataclass(frozen=True, slots=True)
class Stream:
    """One summed vector: its group in chunks, its length, the bits of a word, and whether the
    words are steps of rotated values."""

    group: int
    elements: int
    bits: int
    rotated: bool = False

    @property
    def codec(self) -> int:
        """Codec number of its chunks."""
        return _native.codec_number(f"ring{self.bits}")

    @property
    def transforms(self) -> int:
        """Flags of a transform in the headers of its chunks."""
        return CHUNK_ROTATED if self.rotated else 0


@dataclass(frozen=True, kw_only=True)
class RingSpec:
    """How values become ring words.

    Attributes:
        layout: tensors of the model.
        ring_bits: width of a word of group 1.
        step_limit: largest |step| of one site.
        scales: steps per model unit at the full weight, one per floating-point tensor in
            layout order.
        weight_cap: the full weight.
        integer_limit: largest |value| of integer tensors.
        metrics, metric_limit: names in order; largest |metric|.
        chunk_coordinates: of every chunk but the last of a group.
        mask_generator: of the masks that are added.
        hadamard: coordinates that a rotation of group 1 mixes; 0 for none.
        rotation_key: of the rotation, 8 public bytes.
    """

    layout: ModelLayout
    ring_bits: int
    step_limit: int
    scales: tuple[float, ...]
    weight_cap: int
    integer_limit: int
    metrics: tuple[str, ...]
    metric_limit: int
    chunk_coordinates: int
    mask_generator: str
    hadamard: int = 0
    rotation_key: bytes = bytes(8)

    @cached_property
    def streams(self) -> tuple[Stream, ...]:
        """The vectors in order; a group without tensors has none."""
        native = self.layout.native
        candidates = (
            Stream(0, 2 + 2 * len(self.metrics), WORD_BITS),
            Stream(1, native.group_size(1), self.ring_bits, rotated=self.hadamard != 0),
            Stream(2, native.group_size(2), WORD_BITS),
        )
        return tuple(stream for stream in candidates if stream.elements)

    def chunk_count(self, stream: Stream) -> int:
        """Chunks that cover a stream."""
        return -(-stream.elements // self.chunk_coordinates)

    @property
    def all_chunk_count(self) -> int:
        """Chunks that cover all streams."""
        return sum(map(self.chunk_count, self.streams))

    def chunk_range(self, stream: Stream, index: int) -> range:
        """Elements of a stream that one chunk covers."""
        first = index * self.chunk_coordinates
        return range(first, min(first + self.chunk_coordinates, stream.elements))

    def chunk_bytes(self, stream: Stream, index: int) -> int:
        """Bytes of one chunk of an upload, header included."""
        return _native.chunk_size(stream.codec, len(self.chunk_range(stream, index)))

    def chunk_sizes(self, stream: Stream) -> list[int]:
        """Bytes of each chunk of a stream, headers included."""
        last = self.chunk_count(stream) - 1
        tail = stream.elements - last * self.chunk_coordinates
        full = _native.chunk_size(stream.codec, self.chunk_coordinates)
        return [full] * last + [_native.chunk_size(stream.codec, tail)]


@dataclass(frozen=True, slots=True)
class SumChunk:
    """Words of the sum at the place of one chunk of an upload.

    Attributes:
        stream: its group.
        first: element that the words begin with.
        words: `bits` bits each, packed as in chunks, zero padded to a whole byte.
    """

    stream: int
    first: int
    words: bytes = field(repr=False)
