"""One encoded update, and the container in which it travels by itself (docs/format.md)."""

from __future__ import annotations

import hashlib
import itertools
import struct
from collections.abc import Iterable, Sequence
from functools import cached_property

from typing_extensions import Buffer

from veilsum import _native
from veilsum.codecs import zstd
from veilsum.codecs.form import UpdateForm, check_form
from veilsum.codecs.subsample import parse_options
from veilsum.errors import DecodeError
from veilsum.model import ModelLayout

_HEADER = struct.Struct("<4sBBHIIQdII")
_MAGIC = b"VLU1"
_VERSION = (1, 0)
_ALIGNMENT = 16
_DIGEST_BYTES = 32

EXPANDED_LIMIT = 1 << 30
"""Bytes that the chunks of a compressed update may have, unless the caller says otherwise."""


class EncodedUpdate:
    """An update in its wire form: made by encode(), or parsed from foreign bytes.

    Every chunk of it has been checked, so using it again does not fail over its format. An
    update that arrived compressed is a plain one from then on.
    """

    def __init__(
        self,
        form: UpdateForm,
        chunks: Sequence[bytes | memoryview],
        *,
        compression_level: int | None = None,
        zeroed: int | None = None,
    ) -> None:
        """Takes checked chunks; see from_bytes, from_chunks and encode()."""
        self.form = form
        self.zeroed = zeroed
        """Values that were not finite and that encode() replaced by 0, as it was told to. None
        for an update that was parsed: that does not travel with it."""
        self._chunks = tuple(chunks)
        self._level = compression_level

    @property
    def layout(self) -> ModelLayout:
        """Tensors of the model."""
        return self.form.layout

    @property
    def codec(self) -> str:
        """Name of the codec of the floating-point tensors."""
        return _native.codec_name(self.form.number)

    @property
    def nbytes(self) -> int:
        """Length of to_bytes()."""
        return len(self._head()) + sum(map(len, self._pieces)) + _DIGEST_BYTES

    @property
    def body(self) -> tuple[bytes | memoryview, ...]:
        """The chunks as the native core takes them, in (group, index) order."""
        return self._chunks

    def chunks(self) -> tuple[bytes | memoryview, ...]:
        """The pieces to send one by one: a head that names layout and codec, then the chunks.

        Every piece but the head carries a checksum of its own; from_chunks() puts them
        together again. Compressed if encode() was told so.
        """
        return (self._head(), *self._pieces)

    @cached_property
    def _pieces(self) -> tuple[bytes | memoryview, ...]:
        if self._level is None:
            return self._chunks
        return tuple(zstd.compressed(chunk, self._level) for chunk in self._chunks)

    def to_bytes(self) -> bytes:
        """The pieces of chunks() and the SHA-256 of them all."""
        joined = b"".join(self.chunks())
        return joined + hashlib.sha256(joined).digest()

    @classmethod
    def from_chunks(
        cls, chunks: Iterable[Buffer], *, max_bytes: int = EXPANDED_LIMIT
    ) -> EncodedUpdate:
        """Parses the pieces of chunks(), in order.

        Args:
            max_bytes: that chunks may have once they are expanded; of no account if none is
                compressed, because then there is no more than was sent.

        Raises:
            DecodeError: a piece is missing, repeated, out of order or not as it must be.
            ConfigError: a piece is compressed, and the package zstandard is not installed.
        """
        pieces = iter(chunks)
        head = next(pieces, None)
        if head is None:
            raise DecodeError("the update has no pieces")
        view = memoryview(_as_bytes(head))
        form, end = _parse_head(view)
        if end != len(view):
            raise DecodeError(f"the head has {len(view)} bytes, expected {end}")
        # One piece too many is enough to refuse the update; those behind it are not kept.
        kept = [_as_bytes(piece) for piece in itertools.islice(pieces, form.count + 1)]
        body = _expand(kept, form, max_bytes) if len(kept) == form.count else kept
        form.check(body)
        return cls(form, body)

    @classmethod
    def from_bytes(cls, data: Buffer, *, max_bytes: int = EXPANDED_LIMIT) -> EncodedUpdate:
        """Parses to_bytes().

        Args:
            max_bytes: see from_chunks.

        Raises:
            DecodeError: says which field, what was found and what was expected.
            ConfigError: a chunk is compressed, and the package zstandard is not installed.
        """
        # Bytes that nobody can change any more; the chunks are views into them.
        view = memoryview(_as_bytes(data))
        form, end = _parse_head(view)
        pieces = _split(view[end : max(end, len(view) - _DIGEST_BYTES)], form)
        expected = end + sum(map(len, pieces)) + _DIGEST_BYTES
        if len(view) != expected:
            raise DecodeError(f"the update has {len(view)} bytes, its head asks for {expected}")
        if hashlib.sha256(view[:-_DIGEST_BYTES]).digest() != view[-_DIGEST_BYTES:]:
            raise DecodeError("the update's digest does not match its bytes")
        body = _expand(pieces, form, max_bytes)
        form.check(body)
        return cls(form, body)

    def _head(self) -> bytes:
        form = self.form
        layout = form.layout.to_bytes()
        fields = _HEADER.pack(
            _MAGIC,
            *_VERSION,
            form.number,
            len(layout),
            len(self._chunks),
            form.update_id,
            form.scale,
            form.chunk_coordinates,
            len(form.options),
        )
        head = fields + layout + form.options
        return head + bytes(-len(head) % _ALIGNMENT)

    def __repr__(self) -> str:
        return f"<EncodedUpdate {self.codec}, {self.layout.size} elements, {self.nbytes} bytes>"


def _as_bytes(data: Buffer) -> bytes:
    # bytes() of a number would be so many zeros; a memoryview of one is a TypeError.
    return data if isinstance(data, bytes) else bytes(memoryview(data))


def _split(body: memoryview, form: UpdateForm) -> list[memoryview]:
    """The pieces of a container.

    Raises:
        DecodeError: it ends before the last one does. Nothing is kept of what a strange
            layout asks for beyond that.
    """
    pieces: list[memoryview] = []
    for chunk_size in form.chunk_sizes():
        size = zstd.piece_size(body, chunk_size)
        if size > len(body):
            raise DecodeError(
                f"the update's head asks for {form.count} chunks, and chunk {len(pieces)} ends "
                f"{size - len(body)} bytes behind its end"
            )
        pieces.append(body[:size])
        body = body[size:]
    return pieces


def _expand(
    pieces: Sequence[bytes | memoryview], form: UpdateForm, max_bytes: int
) -> list[bytes | memoryview]:
    """As many chunks as there are pieces."""
    if not any(map(zstd.is_compressed, pieces)):
        return list(pieces)
    if form.size > max_bytes:
        raise DecodeError(
            f"the compressed update has chunks of {form.size} bytes, the limit is {max_bytes}",
            hint="give a larger max_bytes if you expect that much",
        )
    return [
        zstd.expanded(piece, size) for piece, size in zip(pieces, form.chunk_sizes(), strict=True)
    ]


def _parse_head(view: memoryview) -> tuple[UpdateForm, int]:
    """The form, and where the head ends."""
    if len(view) < _HEADER.size:
        raise DecodeError(f"an update's head has at least {_HEADER.size} bytes, got {len(view)}")
    (
        magic,
        major,
        minor,
        number,
        layout_bytes,
        count,
        update_id,
        scale,
        coordinates,
        option_bytes,
    ) = _HEADER.unpack_from(view)
    if magic != _MAGIC:
        raise DecodeError(f"an update starts with {_MAGIC!r}, got {magic!r}")
    if (major, minor) != _VERSION:
        raise DecodeError(f"format version is {major}.{minor}, this is a reader of 1.0")
    layout_end = _HEADER.size + layout_bytes
    end = layout_end + option_bytes
    padded = end + -end % _ALIGNMENT
    if padded > len(view):
        raise DecodeError(
            f"a layout of {layout_bytes} bytes with {option_bytes} bytes of options goes beyond "
            f"the {len(view)} there are"
        )
    if any(view[end:padded]):
        raise DecodeError("padding at the end of the head is not zero")
    transform, subsample = parse_options(bytes(view[layout_end:end]))
    form = UpdateForm(
        layout=ModelLayout.from_bytes(bytes(view[_HEADER.size : layout_end])),
        number=number,
        scale=scale,
        update_id=update_id,
        chunk_coordinates=coordinates,
        transform=transform,
        subsample=subsample,
    )
    check_form(form)
    if count != form.count:
        raise DecodeError(f"chunk count is {count}, the layout needs {form.count}")
    return form, padded
