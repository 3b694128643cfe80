"""How the chunks of an update are cut and what their codes mean."""

from __future__ import annotations

import hashlib
import itertools
import math
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from typing_extensions import Buffer

from veilsum import _native
from veilsum.codecs.subsample import Subsample
from veilsum.codecs.transform import RingTransform
from veilsum.errors import ConfigError, DecodeError
from veilsum.model import ModelLayout

_RING = 0x100  # the bit of ring codecs' numbers
_CHUNK_STEP = 4096
_CHUNK_LIMIT = 2**20

CHUNK_ROTATED = 2
"""Flag of a chunk whose values were rotated (docs/format.md)."""


def plan_digest(layout: ModelLayout, codec: int, scale: float, options: bytes = b"") -> bytes:
    """What the chunks of an update outside any round are bound to, 32 bytes."""
    settings = struct.pack("<Hd", codec, scale) + options
    return hashlib.sha256(b"veilsum/update\0" + layout.digest + settings).digest()


@dataclass(frozen=True, slots=True)
class ChunkGroup:
    """The chunks of one tensor group: group number, codec number, coordinates, step, and the
    flags of a transform in their headers."""

    number: int
    codec: int
    coordinates: int
    chunk_coordinates: int
    transforms: int = 0

    @property
    def count(self) -> int:
        """Chunks of the group."""
        return -(-self.coordinates // self.chunk_coordinates)

    @property
    def full_size(self) -> int:
        """Bytes of every chunk but the last."""
        return _native.chunk_size(self.codec, self.chunk_coordinates)

    @property
    def largest_size(self) -> int:
        """No chunk of the group has more bytes."""
        return _native.chunk_size(self.codec, min(self.coordinates, self.chunk_coordinates))

    @property
    def last_size(self) -> int:
        """Bytes of the last chunk."""
        last = self.coordinates - (self.count - 1) * self.chunk_coordinates
        return _native.chunk_size(self.codec, last)

    @property
    def size(self) -> int:
        """Bytes of all chunks. Computed, never counted: the layout may be a stranger's."""
        return (self.count - 1) * self.full_size + self.last_size


@dataclass(frozen=True, kw_only=True)
class UpdateForm:
    """How the chunks of an update are cut and what their codes mean.

    Attributes:
        layout: tensors of the model.
        number: codec number of the floating-point tensors; integer ones travel as i64.
        scale: steps per model unit for ring codecs without a table of clips, else 0.
        update_id: in the header of every chunk; tells updates apart.
        chunk_coordinates: of every chunk but the last of a group.
        transform: what else lies between values and steps of a ring codec.
        subsample: which blocks of the floating-point tensors travel; None for all.
    """

    layout: ModelLayout
    number: int
    scale: float
    update_id: int
    chunk_coordinates: int
    transform: RingTransform | None = None
    subsample: Subsample | None = None

    @cached_property
    def plan_digest(self) -> bytes:
        """See plan_digest()."""
        return plan_digest(self.layout, self.number, self.scale, self.options)

    @cached_property
    def options(self) -> bytes:
        """What the head of an update says about transform and subsample; empty without."""
        if self.subsample is not None:
            return self.subsample.to_bytes()
        return b"" if self.transform is None else self.transform.to_bytes()

    @cached_property
    def native_transform(self) -> _native.Transform | None:
        """Transform or subsample as the native core takes it."""
        if self.subsample is not None:
            return self.subsample.native(self.number)
        return None if self.transform is None else self.transform.native(self.layout)

    def groups(self) -> tuple[ChunkGroup, ...]:
        """The groups that are not empty, in order."""
        return chunk_groups(self.layout, self.number, self.chunk_coordinates, self.subsample)

    @property
    def count(self) -> int:
        """Chunks of the update."""
        return sum(group.count for group in self.groups())

    @property
    def size(self) -> int:
        """Bytes of all chunks."""
        return sum(group.size for group in self.groups())

    def chunk_sizes(self) -> Iterator[int]:
        """Bytes of each chunk, in order."""
        for group in self.groups():
            yield from itertools.repeat(group.full_size, group.count - 1)
            yield group.last_size

    def check(self, chunks: Sequence[Buffer]) -> None:
        """Checks every chunk and that all are there, in order.

        Raises:
            DecodeError: says which chunk and what is wrong with it.
        """
        if len(chunks) != self.count:
            raise DecodeError(f"the update has {len(chunks)} chunks, its layout needs {self.count}")
        left = iter(chunks)
        for group in self.groups():
            for index in range(group.count):
                self._check_chunk(next(left), group, index)

    def _chunk_flags(self, group: ChunkGroup) -> int:
        transform = self.native_transform if group.number == 1 else None
        return 0 if transform is None else transform.chunk_flags

    def _check_chunk(self, chunk: Buffer, group: ChunkGroup, index: int) -> None:
        found = _native.check_chunk(
            chunk,
            codec=group.codec,
            group=group.number,
            group_size=group.coordinates,
            masked=False,
            plan_digest=self.plan_digest,
            update_id=self.update_id,
            chunk_coordinates=self.chunk_coordinates,
            transforms=self._chunk_flags(group),
        )
        if found != index:
            raise DecodeError(
                f"chunk {index} of group {group.number} is missing or out of order: "
                f"chunk {found} is in its place"
            )


def chunk_groups(
    layout: ModelLayout, codec: int, chunk_coordinates: int, subsample: Subsample | None = None
) -> tuple[ChunkGroup, ...]:
    """The groups of an update without masks, in order; a group without tensors has none."""
    floats, integers = layout.native.group_size(1), layout.native.group_size(2)
    if subsample is not None:
        floats = subsample.coded(floats)
    groups = (
        ChunkGroup(1, codec, floats, chunk_coordinates),
        ChunkGroup(2, _native.codec_number("i64"), integers, chunk_coordinates),
    )
    return tuple(group for group in groups if group.coordinates)


def check_form(form: UpdateForm) -> None:
    """Raises:
    DecodeError: a field of a foreign form is not as it must be, or does not go with another.
    """
    try:
        name = _native.codec_name(form.number)
    except ConfigError as error:
        raise DecodeError(str(error)) from error
    is_ring = form.number & _RING != 0
    if form.number == _native.codec_number("i64"):
        raise DecodeError(f"codec {name} carries integer tensors only")
    if form.transform is not None and not is_ring:
        raise DecodeError(f"codec {name} has no rotation and no table of clips")
    _check_native_transform(form)
    scaled = is_ring and (form.transform is None or form.transform.clips is None)
    if not (sys.float_info.min <= form.scale < math.inf if scaled else form.scale == 0):
        raise DecodeError(f"scale {form.scale} does not go with codec {name}")
    if not is_chunk_size(form.chunk_coordinates):
        raise DecodeError(
            f"{form.chunk_coordinates} coordinates per chunk: expected a multiple of "
            f"{_CHUNK_STEP} up to {_CHUNK_LIMIT}"
        )


def _check_native_transform(form: UpdateForm) -> None:
    try:
        form.native_transform  # noqa: B018 (makes and so checks it)
    except ConfigError as error:
        raise DecodeError(f"the options do not fit the layout: {error}") from error


def is_chunk_size(coordinates: int) -> bool:
    """Whether a chunk may cover so many coordinates."""
    return 0 < coordinates <= _CHUNK_LIMIT and coordinates % _CHUNK_STEP == 0
