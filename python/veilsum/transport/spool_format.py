"""The file of an upload in the spool, byte by byte.

    file   = head, frames
    head   = magic (8 bytes), u32 size of the body, u32 CRC-32 of the body, body
    body   = u64 bytes of the largest chunk, u16 bytes of the site's name, the name, the first
             message of the upload (UpdateFrame with its header)
    frame  = u32 bytes of the chunk, u32 CRC-32, chunk

All little-endian. The CRC-32 of a frame goes on from that of the head's body, over the number of
the chunk, its size and its bytes: a frame counts in its own file and place only. Behind the last
frame there may be zeros, room that was set aside; a frame is never all zeros.
"""

from __future__ import annotations

import errno
import hashlib
import os
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from veilsum.control import RoundId, UpdateHeader
from veilsum.errors import DecodeError, VeilsumError
from veilsum.transport import wire_data

SUFFIX = ".update"
FRAME = struct.Struct("<II")

_MAGIC = b"veilspl\x01"
_HEAD = struct.Struct("<8sII")
_BODY = struct.Struct("<QH")
_PLACE = struct.Struct("<QI")
_MOST_BODY = 16 << 20
_MOST_BUFFERS = 1024  # of one system call; Linux takes no more

# What is written stays as it is, and a later try may do better. After any other error it is not
# known what of the file is on the disk.
PASSING = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "files may not become so large",
    errno.EROFS: "the disk is read-only",
    errno.EACCES: "the folder may not be written",
    errno.EPERM: "the folder may not be written",
    errno.EMFILE: "too many files are open",
    errno.ENFILE: "too many files are open",
}


class SpoolUnavailable(VeilsumError):  # noqa: N818  a passing state, not a mistake
    """An upload cannot be kept now: no room, or the disk takes nothing. Others are kept."""


class SpoolDamaged(VeilsumError):  # noqa: N818  found, not made
    """A file of the spool is gone, torn or changed. Nothing of it may be used."""


def unavailable(error: OSError) -> SpoolUnavailable:
    """What to raise where the system takes no more."""
    what = PASSING.get(error.errno or 0, error.strerror or "the disk failed")
    return SpoolUnavailable(
        f"the spool takes no more: {what}",
        hint="make room on the coordinator's disk, or let it write there; uploads go on by "
        "themselves",
    )


def damaged(path: Path, site: str | None, what: str) -> SpoolDamaged:
    """What to raise about a file."""
    whose = f" with the upload of site {site!r}" if site is not None else ""
    return SpoolDamaged(
        f"{path.name} in the spool{whose} {what}",
        hint="see to the coordinator's disk; nothing of the file is used",
    )


def file_name(round_id: RoundId, site: str) -> str:
    """Of the file of a site's upload: the same in every process, and a name whatever they are."""
    parts = (round_id.run_id, str(round_id.number), str(round_id.attempt), site)
    encoded = [part.encode() for part in parts]
    named = b"".join(struct.pack("<I", len(part)) + part for part in encoded)
    return hashlib.sha256(named).hexdigest()[:32] + SUFFIX


# --- writing -----------------------------------------------------------------------------


def make_head(site: str, header: UpdateHeader, most_chunk_bytes: int) -> bytes:
    """The first bytes of a file."""
    name = site.encode()
    first = wire_data.encode_update_header(header, 0)
    body = _BODY.pack(most_chunk_bytes, len(name)) + name + first
    return _HEAD.pack(_MAGIC, len(body), zlib.crc32(body)) + body


def seed_of(head: bytes) -> int:
    """What the checksums of a file's frames go on from."""
    return int(_HEAD.unpack_from(head)[2])


def checksum(seed: int, number: int, chunk: bytes | memoryview) -> int:
    """Of a chunk, in its file and place."""
    return zlib.crc32(chunk, zlib.crc32(_PLACE.pack(number, len(chunk)), seed))


def write_all(descriptor: int, buffers: Sequence[bytes | memoryview], begin: int) -> None:
    """Writes buffers one after the other, from a place in a file on. Copies none.

    Raises:
        OSError: some may be written.
    """
    waiting = [memoryview(buffer) for buffer in buffers]
    first = 0
    while first < len(waiting):
        written = os.pwritev(descriptor, waiting[first : first + _MOST_BUFFERS], begin)
        begin += written
        while first < len(waiting) and written >= waiting[first].nbytes:
            written -= waiting[first].nbytes
            first += 1
        if written:
            waiting[first] = waiting[first][written:]


# --- reading -----------------------------------------------------------------------------


@dataclass
class Found:
    """What the beginning of a file holds that is whole.

    Attributes:
        ends: of its frames.
        fault: why there are no more; "" where all are there, or nothing but zeros follows.
        size: of the file.
        identity: which file it was, whatever has its name later.
    """

    site: str
    header: UpdateHeader
    head: bytes
    most_chunk_bytes: int
    ends: list[int] = field(default_factory=list)
    fault: str = ""
    size: int = 0
    identity: tuple[int, int] = (0, 0)


def read_file(path: Path, take: Callable[[Found, bytes], None] | None = None) -> Found:
    """Reads and checks a file that another process wrote, up to the first frame that is not whole.

    Args:
        take: is given what was found before a chunk, and the chunk. What it raises as a
            VeilsumError ends the file before that chunk. None: only the head is read.

    Raises:
        SpoolDamaged: not even its head can be read.
    """
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as stream:
            found = _read_head(path, stream)
            if take is not None:
                found.fault = _read_frames(found, stream, take)
            found.identity = identity_of(stream.fileno())
            found.size = os.fstat(stream.fileno()).st_size
    except FileNotFoundError as error:
        raise damaged(path, None, "is gone") from error
    except OSError as error:
        raise damaged(path, None, f"cannot be read: {error.strerror}") from error
    return found


def _read_head(path: Path, stream: BinaryIO) -> Found:
    start = stream.read(_HEAD.size)
    magic, size, expected = _HEAD.unpack(start) if len(start) == _HEAD.size else (b"", 0, 0)
    if magic != _MAGIC or size > _MOST_BODY:
        raise damaged(path, None, "does not begin as an upload does")
    body = stream.read(size)
    if len(body) != size or zlib.crc32(body) != expected:
        raise damaged(path, None, "has a torn or changed head")
    try:
        largest, length = _BODY.unpack_from(body)
        site = body[_BODY.size :][:length].decode()
        header, _ = wire_data.decode_update_header(body[_BODY.size + length :])
    except (struct.error, UnicodeDecodeError, DecodeError) as error:
        raise damaged(path, None, f"has a head of another version: {error}") from error
    return Found(site, header, start + body, largest)


def _read_frames(found: Found, stream: BinaryIO, take: Callable[[Found, bytes], None]) -> str:
    seed, end = seed_of(found.head), len(found.head)
    while len(found.ends) < found.header.chunk_count:
        start = stream.read(FRAME.size)
        if not any(start):
            return ""
        size, expected = FRAME.unpack(start) if len(start) == FRAME.size else (0, 0)
        if not 0 < size <= found.most_chunk_bytes:
            return "it is torn or changed between two chunks"
        chunk = stream.read(size)
        number = len(found.ends)
        if len(chunk) != size or expected != checksum(seed, number, chunk):
            return f"chunk {number} is torn or changed"
        try:
            take(found, chunk)
        except VeilsumError as error:
            return str(error)
        end += FRAME.size + size
        found.ends.append(end)
    return ""


def read_all(descriptor: int, window: memoryview, begin: int) -> None:
    """Fills a window from a place in a file on.

    Raises:
        OSError: the disk failed, or the file ends before.
    """
    done = 0
    while done < window.nbytes:
        count = os.preadv(descriptor, [window[done:]], begin + done)
        if count == 0:
            raise OSError(f"it ends after {begin + done} bytes")
        done += count


def identity_of(descriptor: int) -> tuple[int, int]:
    """Of an open file: device and number."""
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino
