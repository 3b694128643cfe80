"""The sum of a round in the ring: fold words, remove masks, check the range, decode once.

The same code sums masked chunks and chunks without masks, so "masked equals plain" is a
comparison of two digests. Three vectors are summed, one per group of chunks:

    0  scalars, 64 bits: [weight, 1, then per metric (weight * steps, weight)]
    1  floating-point tensors, `ring_bits` bits: value * scale of the tensor * weight / weight_cap
    2  integer tensors, 64 bits: value * weight

With a rotation the words of group 1 are steps of the rotated update, and the sum is rotated
back once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

from veilsum import _native
from veilsum.aggregate.ring_spec import METRIC_STEPS, WORD_BITS, RingSpec, Stream, SumChunk
from veilsum.aggregate.step_sums import StepSums, check_range, trip
from veilsum.aggregate.tile_audit import SEED_BYTES, TileAudit
from veilsum.errors import ConfigError, DecodeError, DeviceError, RoundAborted
from veilsum.model import NUMPY_DTYPES

_BLOCK = 2**20  # coordinates decoded at a time: bounds what decoding needs beside the result


@dataclass(frozen=True, slots=True)
class RingMean:
    """Decoded result of a sum.

    Attributes:
        arrays: weighted mean per tensor in layout order and dtype, bf16 as uint16 patterns.
        total_weight: sum of the weights.
        metrics: weighted mean over the sites that reported each; absent if none did.
    """

    arrays: tuple[NDArray[Any], ...]
    total_weight: int
    metrics: Mapping[str, float]


class SecureSum:
    """Accumulates ring words of many updates, masked or not.

    Args:
        backend: where words are added, "cpu" or a device such as "cuda:0". The bits are the same.
        audit_seed: 32 fresh random bytes, which choose the tiles that are summed a second time
            (tile_audit.py). A device needs them; None leaves the sum of a CPU unchecked. After a
            DeviceError the sum is of no use, and every call raises another.

    Raises:
        ConfigError: a device without a seed, or a seed of another size.
    """

    def __init__(
        self,
        spec: RingSpec,
        *,
        threads: int = 1,
        backend: str = "cpu",
        audit_seed: bytes | None = None,
    ) -> None:
        self._spec = spec
        self._threads = threads
        self._backend = backend
        self._audits = _audits(spec, backend, audit_seed, threads)
        self._failed = False
        self._words: dict[int, NDArray[np.uint32] | NDArray[np.uint64]] = {}
        for stream in spec.streams:
            # Bits above the ring's are scratch, so a ring of 22 bits sums in 32.
            narrow = stream.bits <= 32
            self._words[stream.group] = (
                np.zeros(stream.elements, np.uint32)
                if narrow
                else np.zeros(stream.elements, np.uint64)
            )

    @property
    def spec(self) -> RingSpec:
        """How its words come about."""
        return self._spec

    def fold(self, *uploads: Sequence[Buffer]) -> None:
        """Adds complete, already checked uploads: all chunks of each in (group, index) order.

        Several at a time are faster: the sum is then read and written once per four.

        Raises:
            ConfigError: not the number of chunks an upload has; nothing is added.
            DeviceError: the device failed.
        """
        self._require_whole()
        expected = sum(self._spec.chunk_count(stream) for stream in self._spec.streams)
        for chunks in uploads:
            if len(chunks) != expected:
                raise ConfigError(f"an upload has {expected} chunks, got {len(chunks)}")
        first = 0
        for stream in self._spec.streams:
            count = self._spec.chunk_count(stream)
            pieces = [chunks[first : first + count] for chunks in uploads]
            with self._broken_by_the_device():
                _native.fold_ring_chunks(
                    self._words[stream.group],
                    pieces,
                    bits=stream.bits,
                    chunk_coordinates=self._spec.chunk_coordinates,
                    threads=self._threads,
                    backend=self._backend,
                )
            if stream.group in self._audits:
                self._audits[stream.group].fold(pieces, self._spec.chunk_coordinates)
            first += count

    def add_masks(self, keys: Sequence[_native.Secret], signs: Sequence[int]) -> None:
        """Adds sign * mask of every key to every stream.

        Raises:
            DeviceError: the device failed.
        """
        self._require_whole()
        for stream in self._spec.streams:
            with self._broken_by_the_device():
                _native.add_masks(
                    self._words[stream.group],
                    keys,
                    signs,
                    generator=self._spec.mask_generator,
                    stream=stream.group,
                    first=0,
                    bits=stream.bits,
                    threads=self._threads,
                    backend=self._backend,
                )
            if stream.group in self._audits:
                self._audits[stream.group].add_masks(keys, signs, self._spec.mask_generator)

    def chunks(self) -> Iterator[SumChunk]:
        """The words of the sum as they are now, in (group, index) order.

        Raises:
            DeviceError: the device failed before.
        """
        for stream in self._spec.streams:
            for index in range(self._spec.chunk_count(stream)):
                yield self.chunk(stream, index)

    def chunk(self, stream: Stream, index: int) -> SumChunk:
        """The words of one chunk as they are now.

        Raises:
            DeviceError: the device failed before.
        """
        self._require_whole()
        place = self._spec.chunk_range(stream, index)
        words = self._words[stream.group][place.start : place.stop]
        return SumChunk(stream.group, place.start, _native.pack_ring(words, stream.bits))

    def load(self, chunks: Iterable[SumChunk]) -> None:
        """Takes the place of a sum that was made elsewhere: its chunks, in any order.

        Elements of which no chunk comes are left as they are. Whether the chunks are those of a
        round is for the caller to check (secagg/sum_tree.py).

        Raises:
            DecodeError: there is no such stream or element, or a chunk has another size than its
                elements have.
        """
        streams = {stream.group: stream for stream in self._spec.streams}
        for chunk in chunks:
            stream = streams.get(chunk.stream)
            index, rest = divmod(chunk.first, self._spec.chunk_coordinates)
            if stream is None or rest or not 0 <= index < self._spec.chunk_count(stream):
                raise DecodeError(f"no sum has a chunk at {chunk.first} of stream {chunk.stream}")
            place = self._spec.chunk_range(stream, index)
            words = _native.unpack_ring(chunk.words, len(place), stream.bits)
            self._words[stream.group][place.start : place.stop] = words

    def check_tiles(self) -> None:
        """finish() does it; for those who read the sum's words only.

        Raises:
            DeviceError: a tile that was summed twice has two sums, or the device failed before.
        """
        self._require_whole()
        for group, audit in self._audits.items():
            audit.check(self._words[group], self._backend)

    @contextmanager
    def _broken_by_the_device(self) -> Iterator[None]:
        """A device that fails leaves sums that are part old and part new."""
        try:
            yield
        except DeviceError:
            self._failed = True
            raise

    def _require_whole(self) -> None:
        if self._failed:
            raise DeviceError(f"{self._backend} failed before: there is no sum")

    def finish(self, contributors: int) -> RingMean:
        """Checks that the sum is one that `contributors` honest updates can have, and decodes it.

        A mask that is left over makes every coordinate uniform in the ring, and each then
        passes with a probability of 2^-headroom at most.

        Raises:
            RoundAborted: a value is out of range; nothing of the sum is published.
            DeviceError: the device failed, or a tile that was summed twice has two sums.
        """
        self._require_whole()
        with self._broken_by_the_device():
            self.check_tiles()
        scalars = [int(word) for word in _native.center_ring(self._words[0], WORD_BITS)]
        total_weight = self._total_weight(scalars, contributors)
        metrics = self._metrics(scalars[2:], total_weight)
        floats, scales = self._float_sums(contributors), iter(self._spec.scales)
        arrays: dict[int, NDArray[Any]] = {}
        for stream in self._spec.streams[1:]:
            if not stream.rotated:
                self._check_gaps(stream)
            for number, first, count in self._spec.layout.native.offsets(stream.group):
                if stream.group == 1:
                    factor = self._spec.weight_cap / (next(scales) * total_weight)
                    values = floats.values(self._tensor(number)[0], first, count, factor=factor)
                    arrays[number] = self._float_mean(number, count, values)
                else:
                    words = self._words[stream.group][first : first + count]
                    arrays[number] = self._integer_mean(number, words, total_weight)
        return RingMean(tuple(arrays[number] for number in sorted(arrays)), total_weight, metrics)

    def _total_weight(self, scalars: list[int], contributors: int) -> int:
        weight, count = scalars[:2]
        if count != contributors:
            trip(f"it counts {count} updates instead of {contributors}")
        if not 0 <= weight <= contributors * self._spec.weight_cap:
            trip("the sum of the weights is out of range")
        if weight == 0:
            raise RoundAborted("all weights are 0, so there is no mean")
        return weight

    def _metrics(self, words: list[int], total_weight: int) -> dict[str, float]:
        means = {}
        for name, steps, weight in zip(self._spec.metrics, words[0::2], words[1::2], strict=True):
            bound = weight * self._spec.metric_limit * METRIC_STEPS
            if not 0 <= weight <= total_weight or abs(steps) > bound:
                trip(f"metric {name!r} is out of range")
            if weight:
                means[name] = steps / (weight * METRIC_STEPS)
        return means

    def _check_gaps(self, stream: Stream) -> None:
        """Between tensors an update holds zeros, so their sum is zero."""
        position = 0
        for _, first, count in (
            *self._spec.layout.native.offsets(stream.group),
            (0, stream.elements, 0),
        ):
            gap = self._words[stream.group][position:first]
            if gap.size and _native.center_ring(gap, stream.bits).any():
                trip("a gap between tensors is not zero")
            position = first + count

    def _tensor(self, number: int) -> tuple[str, str, tuple[int, ...]]:
        return self._spec.layout.native.tensors[number]

    def _float_sums(self, contributors: int) -> StepSums:
        spec = self._spec
        return StepSums(
            words=self._words.get(1, np.zeros(0, np.uint32)),
            bits=spec.ring_bits,
            limit=contributors * spec.step_limit,
            rotation_block=spec.hadamard,
            rotation_key=spec.rotation_key,
            threads=self._threads,
        )

    def _float_mean(
        self, number: int, count: int, pieces: Iterable[tuple[slice, NDArray[np.float64]]]
    ) -> NDArray[Any]:
        name, dtype, shape = self._tensor(number)
        mean = np.empty(count, NUMPY_DTYPES[dtype])
        for place, values in pieces:
            with np.errstate(over="ignore"):  # an overflow is looked for right below
                mean[place] = round_to_bfloat16(values) if dtype == "bf16" else values
            if dtype != "bf16" and not np.isfinite(mean[place]).all():
                trip(f"the mean of {name!r} does not fit {dtype}")
        return mean.reshape(shape)

    def _integer_mean(self, number: int, words: NDArray[Any], total_weight: int) -> NDArray[Any]:
        name, dtype, shape = self._tensor(number)
        limits = np.iinfo(NUMPY_DTYPES[dtype])
        mean = np.empty(words.size, NUMPY_DTYPES[dtype])
        for block in _blocks(words.size):
            sums = _native.center_ring(words[block], WORD_BITS)
            check_range(sums, self._spec.integer_limit * total_weight, f"tensor {name!r}")
            values = divide_half_even(sums, total_weight)
            if values.size and not limits.min <= values.min() <= values.max() <= limits.max:
                trip(f"the mean of {name!r} does not fit {dtype}")
            mean[block] = values
        return mean.reshape(shape)


def _audits(spec: RingSpec, backend: str, seed: bytes | None, threads: int) -> dict[int, TileAudit]:
    if backend == "cpu" and seed is None:
        return {}
    if seed is None or len(seed) != SEED_BYTES:
        raise ConfigError(
            f"a sum on backend {backend!r} is audited: it needs audit_seed",
            hint=f"pass {SEED_BYTES} fresh random bytes",
        )
    return {
        stream.group: TileAudit(
            seed,
            group=stream.group,
            elements=stream.elements,
            bits=stream.bits,
            threads=threads,
        )
        for stream in spec.streams
    }


def divide_half_even(sums: NDArray[np.int64], divisor: int) -> NDArray[np.int64]:
    """sums / divisor, rounded half to even. 0 < divisor < 2**62."""
    quotient, rest = np.divmod(sums, np.int64(divisor))
    twice = 2 * rest
    up = (twice > divisor) | ((twice == divisor) & (quotient & 1 == 1))
    result: NDArray[np.int64] = quotient + up
    return result


def round_to_bfloat16(values: NDArray[np.float64]) -> NDArray[np.uint16]:
    """Bit patterns of the nearest bfloat16, ties to even, rounded once from double."""
    narrow = values.astype(np.float32)
    bits = narrow.view(np.uint32).copy()
    # Rounding to float first can make a tie of a value that was none: step back towards
    # where the double lies before the second rounding decides.
    false_tie = ((bits & 0xFFFF) == 0x8000) & (narrow != values)
    larger = np.abs(values) > np.abs(narrow)
    bits = np.where(false_tie, np.where(larger, bits + 1, bits - 1), bits)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return rounded.astype(np.uint16)


def _blocks(size: int) -> Iterator[slice]:
    for first in range(0, size, _BLOCK):
        yield slice(first, min(first + _BLOCK, size))
