"""Checks a sum against the uploads that it is said to be the sum of, chunk by chunk or as a whole.

    Z = sum of the survivors' uploads - the masks that are left in it        mod 2^b

Every upload is under a root that its site signed, and Z under one that the coordinator signed, so
any chunk of Z can be computed again from the same chunk of every upload, whoever keeps them. What
can be checked alone is a whole chunk, because that is what proofs of uploads are about.

A check of k chunks of each stream finds one wrong chunk of C with a probability of k / C; only the
check of all of them is one that a small forgery does not escape.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from typing_extensions import Buffer

from veilsum import _native
from veilsum.aggregate.ring_spec import RingSpec, Stream, SumChunk
from veilsum.aggregate.tile_audit import AUDITED_TILES, chosen_tiles
from veilsum.errors import AuditError, DecodeError
from veilsum.secagg import keys, merkle, sum_tree
from veilsum.secagg.certified import CertifiedRound
from veilsum.secagg.masks import MaskKeys
from veilsum.secagg.receiver import InputReceiver
from veilsum.secagg.sum_tree import StreamRoot

SAMPLED_CHUNKS = AUDITED_TILES
"""Of each stream, by those who check a sample."""

_HEADER_BYTES = 64  # of a chunk (docs/format.md); a ring codec's words follow it


def all_chunks(spec: RingSpec) -> Iterator[tuple[Stream, int]]:
    """(stream, number of the chunk in it) of a whole sum, in order."""
    for stream in spec.streams:
        for index in range(spec.chunk_count(stream)):
            yield stream, index


def sampled_chunks(
    spec: RingSpec, seed: bytes, per_stream: int = SAMPLED_CHUNKS
) -> list[tuple[Stream, int]]:
    """Different chunks of each stream in order, all if a stream has no more.

    Args:
        seed: 32 fresh random bytes that whoever made the sum cannot know.
    """
    return [
        (stream, index)
        for stream in spec.streams
        for index in chosen_tiles(seed, stream.group, spec.chunk_count(stream), per_stream)
    ]


def chunk_position(spec: RingSpec, stream: Stream, index: int) -> int:
    """Number of a chunk in a whole upload: its leaf in the tree of the site's root."""
    before = (one for one in spec.streams if one.group < stream.group)
    return sum(spec.chunk_count(one) for one in before) + index


class ChunkAudit:
    """One chunk of a sum, computed again. Holds its words, and no upload's.

    Args:
        certified: the round.
        receivers: input_receiver() of every survivor.
        masks: what is left in the sum (audit_keys.removal).
        stream, index: which chunk.
        threads: to make masks with.
    """

    def __init__(
        self,
        certified: CertifiedRound,
        receivers: Mapping[str, InputReceiver],
        masks: MaskKeys,
        stream: Stream,
        index: int,
        *,
        threads: int = 1,
    ) -> None:
        self._round = certified
        self._receivers = receivers
        self._masks = masks
        self._stream, self._index = stream, index
        self._threads = threads
        self._spec = certified.plan.ring
        self._place = self._spec.chunk_range(stream, index)
        self._sums = np.zeros(len(self._place), np.uint64)
        self._missing = set(certified.inputs)

    def add(self, site: str, chunk: Buffer, proof: Sequence[bytes]) -> None:
        """Takes this chunk of one survivor's upload.

        Raises:
            DecodeError: it is not the chunk that is under the root that the site signed.
        """
        if site not in self._missing:
            raise DecodeError(f"chunk {self._what} of site {site!r} is not awaited")
        receiver = self._receivers[site]
        position = chunk_position(self._spec, self._stream, self._index)
        root = self._round.inputs[site].root
        leaf = merkle.leaf_hash(chunk)
        try:
            merkle.check_inclusion(root, receiver.chunk_count, position, leaf, proof)
        except DecodeError as error:
            raise DecodeError(f"chunk {self._what} of site {site!r}: {error}") from error
        if receiver.position(chunk) != position:
            raise DecodeError(f"site {site!r} put another chunk in the place of {self._what}")
        receiver.check(chunk, position)
        size = len(self._place) * self._stream.bits // 8  # padding follows, which was checked
        words = memoryview(chunk)[_HEADER_BYTES : _HEADER_BYTES + size]
        self._sums += _native.unpack_ring(words, len(self._place), self._stream.bits)
        self._missing.discard(site)

    def check(self, roots: Sequence[StreamRoot], found: SumChunk, proof: Sequence[bytes]) -> None:
        """Compares with the chunk of the sum. Ends the audit of this chunk.

        Args:
            roots: that the coordinator signed; checked by sum_tree.check_roots.

        Raises:
            DecodeError: an upload's chunk has not come, or `found` is not under the root.
            AuditError: the sum is another one.
        """
        if self._missing:
            raise DecodeError(f"chunk {self._what} has not come of {sorted(self._missing)}")
        if found.stream != self._stream.group:
            raise DecodeError(f"a chunk of stream {found.stream} came for {self._what}")
        sum_tree.check_chunk(self._spec, roots, self._index, found, proof)
        _native.add_masks(
            self._sums,
            self._masks.keys,
            self._masks.signs,
            generator=self._spec.mask_generator,
            stream=self._stream.group,
            first=self._place.start,
            bits=self._stream.bits,
            threads=self._threads,
        )
        if _native.pack_ring(self._sums, self._stream.bits) != found.words:
            raise wrong_chunk(self._stream.group, self._index)

    @property
    def _what(self) -> str:
        return f"{self._index} of stream {self._stream.group}"


def input_receiver(certified: CertifiedRound, site: str) -> InputReceiver:
    """What checks a survivor's chunks against its signed header."""
    update_id = keys.update_id(certified.dealers.t2, site)
    return InputReceiver(certified.plan, site, certified.inputs[site], update_id)


def wrong_chunk(stream: int, index: int) -> AuditError:
    """The finding that ends every audit."""
    return AuditError(
        f"chunk {index} of stream {stream} of the sum is not the sum of the updates",
        hint="the coordinator signed both the updates it counts and this sum: keep the transcript",
    )
