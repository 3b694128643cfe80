"""Chunks of plain updates, compressed without loss for the way (docs/format.md).

Only a form for transport: a compressed chunk is expanded where it comes in, and behind that
door there are plain chunks only. Nothing of it is for masked updates. Their words look random, so
nothing would be gained, and a size that depends on content would tell about the content.
"""

from __future__ import annotations

import struct
from types import ModuleType
from typing import Any

from typing_extensions import Buffer

from veilsum.errors import ConfigError, DecodeError

LEVELS = range(1, 20)
DEFAULT_LEVEL = 3

_HEADER_BYTES = 64
_FLAGS = struct.Struct("<H")
_FLAGS_OFFSET = 10
_COMPRESSED = 16
_SIZE = struct.Struct("<I")
_SIZE_OFFSET = 56  # reserved, 0, in chunks that are not compressed
_FRAME_MAGIC = b"\x28\xb5\x2f\xfd"
_WINDOW_LIMIT = 8 << 20  # what RFC 8878 asks every decoder for; no chunk is much larger


def compressed(chunk: Buffer, level: int) -> bytes | memoryview:
    """A chunk in its compressed form, or as it is if that would not be shorter.

    Raises:
        ConfigError: the package zstandard is not installed.
    """
    view = memoryview(chunk)
    compressor = _zstandard().ZstdCompressor(
        level=level, write_content_size=True, write_checksum=False, write_dict_id=False
    )
    frame: bytes = compressor.compress(view[_HEADER_BYTES:])
    if len(frame) >= view.nbytes - _HEADER_BYTES:
        return view
    header = bytearray(view[:_HEADER_BYTES])
    (flags,) = _FLAGS.unpack_from(header, _FLAGS_OFFSET)
    _FLAGS.pack_into(header, _FLAGS_OFFSET, flags | _COMPRESSED)
    _SIZE.pack_into(header, _SIZE_OFFSET, len(frame))
    return bytes(header) + frame


def is_compressed(piece: Buffer) -> bool:
    """Whether the header of a piece says that it is a compressed chunk."""
    view = memoryview(piece)
    if view.nbytes < _HEADER_BYTES:
        return False
    return bool(_FLAGS.unpack_from(view, _FLAGS_OFFSET)[0] & _COMPRESSED)


def piece_size(data: memoryview, chunk_size: int) -> int:
    """Bytes of the piece at the front of `data`, which stands for a chunk of `chunk_size` bytes.

    Raises:
        DecodeError: it would be as long as the chunk or longer.
    """
    if not is_compressed(data):
        return chunk_size
    (frame_bytes,) = _SIZE.unpack_from(data, _SIZE_OFFSET)
    size = _HEADER_BYTES + int(frame_bytes)
    if size >= chunk_size:
        raise DecodeError(
            f"a compressed chunk has {size} bytes, expected fewer than the {chunk_size} it "
            "stands for"
        )
    return size


def expanded(piece: Buffer, chunk_size: int) -> bytes | memoryview:
    """The chunk that a piece stands for; the piece itself if it is not compressed.

    What comes out is not checked, but it has `chunk_size` bytes, and nothing larger was made
    on the way. Its checksum is that of the chunk before it was compressed.

    Args:
        piece: foreign bytes.
        chunk_size: bytes that the chunk must have, from codec and coordinates.

    Raises:
        DecodeError: the piece does not expand to just so many bytes.
        ConfigError: the package zstandard is not installed.
    """
    view = memoryview(piece)
    if not is_compressed(view):
        return view
    expected = piece_size(view, chunk_size)
    if view.nbytes != expected:
        raise DecodeError(f"a compressed chunk has {view.nbytes} bytes, its header says {expected}")
    header = bytearray(view[:_HEADER_BYTES])
    (flags,) = _FLAGS.unpack_from(header, _FLAGS_OFFSET)
    _FLAGS.pack_into(header, _FLAGS_OFFSET, flags & ~_COMPRESSED)
    _SIZE.pack_into(header, _SIZE_OFFSET, 0)
    return bytes(header) + _expand_frame(view[_HEADER_BYTES:], chunk_size - _HEADER_BYTES)


def _expand_frame(frame: memoryview, size: int) -> bytes:
    zstandard = _zstandard()
    try:
        _check_frame(zstandard.get_frame_parameters(frame), bytes(frame[:4]), size)
        decompressor = zstandard.ZstdDecompressor(max_window_size=max(_WINDOW_LIMIT, size))
        body: bytes = decompressor.decompress(
            frame, max_output_size=size, read_across_frames=False, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise DecodeError(f"a compressed chunk is not a zstd frame: {error}") from error
    if len(body) != size:
        raise DecodeError(f"a compressed chunk expands to {len(body)} bytes, expected {size}")
    return body


def _check_frame(frame: Any, magic: bytes, size: int) -> None:
    """Before anything is allocated by what a frame's header says."""
    if magic != _FRAME_MAGIC:
        raise DecodeError(f"a compressed chunk starts with {magic.hex()}, not with a zstd frame")
    if frame.content_size != size:
        raise DecodeError(
            f"a compressed chunk expands to {frame.content_size} bytes, expected {size}"
        )
    if frame.dict_id != 0:
        raise DecodeError("a compressed chunk needs a dictionary; there is none")
    if frame.window_size > max(_WINDOW_LIMIT, size):
        raise DecodeError(
            f"a compressed chunk has a window of {frame.window_size} bytes, the limit is "
            f"{max(_WINDOW_LIMIT, size)}"
        )


def _zstandard() -> ModuleType:
    try:
        import zstandard
    except ImportError as error:
        raise ConfigError(
            "compressed chunks need the package zstandard", hint="pip install 'veilsum[zstd]'"
        ) from error
    return zstandard
