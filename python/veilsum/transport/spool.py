"""The spool: uploads on disk, each in a file of its own, whose chunks are checked when read.

A file is as large as its upload can become from the start, so that a full disk refuses uploads and
breaks off none; seal() gives the rest back. How it looks inside is in spool_format.py.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import overload

from veilsum.control import UpdateHeader
from veilsum.coordinator.events import FiledChunks
from veilsum.transport.durable import Points, no_points, sync_folder
from veilsum.transport.spool_format import (
    FRAME,
    PASSING,
    SUFFIX,
    Found,
    SpoolDamaged,
    SpoolUnavailable,
    checksum,
    damaged,
    file_name,
    identity_of,
    make_head,
    read_all,
    read_file,
    seed_of,
    unavailable,
    write_all,
)

_WINDOW_BYTES = 1 << 20


class Spool:
    """A folder of uploads, and how much room they may take. Safe to use from several threads.

    Args:
        limit_bytes: of all files together, with what is set aside for open uploads; 0 for what
            the disk has.
        points: told what is about to be done.
    """

    def __init__(self, folder: Path, *, limit_bytes: int = 0, points: Points = no_points) -> None:
        self.folder = folder
        self.points = points
        self._limit = limit_bytes
        self._claimed: dict[Path, int] = {}
        self._mutex = threading.Lock()

    def create(self, site: str, header: UpdateHeader, most_chunk_bytes: int) -> SpoolFile:
        """A file for an upload, with room for all of it. A file of the same upload goes.

        Raises:
            SpoolUnavailable: there is no room for it, or the folder cannot be written.
        """
        path = self.folder / file_name(header.round, site)
        head = make_head(site, header, most_chunk_bytes)
        file = SpoolFile(self, path, site, head)
        size = len(head) + header.chunk_count * (FRAME.size + most_chunk_bytes)
        self.claim(path, size)
        try:
            self._make(file, size)
        except OSError as error:
            file.remove()
            raise unavailable(error) from error
        return file

    def _make(self, file: SpoolFile, size: int) -> None:
        self.points("spool.create")
        file.path.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(file.path, flags, 0o600)
        try:
            self.points("spool.reserve")
            os.posix_fallocate(descriptor, 0, size)
            self.points("spool.head")
            write_all(descriptor, [file.head], 0)
            file.identity = identity_of(descriptor)
        finally:
            os.close(descriptor)

    def read_complete(self, site: str, header: UpdateHeader) -> SpoolFile:
        """The file of an upload that was sealed, maybe by an earlier process, after all of it was
        read and checked.

        Raises:
            SpoolDamaged: it is gone, torn, changed, or of another upload.
        """
        path = self.folder / file_name(header.round, site)
        found = read_file(path, lambda found, chunk: None)
        if (found.site, found.header) != (site, header):
            raise damaged(path, site, "is of another upload")
        if found.fault or len(found.ends) != header.chunk_count:
            held = f"holds {len(found.ends)} of {header.chunk_count} chunks"
            raise damaged(path, site, f"{held}{': ' if found.fault else ''}{found.fault}")
        if found.size != found.ends[-1]:
            raise damaged(path, site, "goes on after its last chunk")
        self.claim(path, found.size)
        return SpoolFile(self, path, site, found.head, found.ends, found.identity)

    def take_up(self, path: Path, found: Found) -> SpoolFile:
        """The file of an upload that an earlier process left unfinished, without what follows
        its last whole chunk and with room for the rest.

        Raises:
            SpoolUnavailable: there is no room for it, or it cannot be written.
        """
        count = found.header.chunk_count
        size = len(found.head) + count * (FRAME.size + found.most_chunk_bytes)
        self.claim(path, size)
        file = SpoolFile(self, path, found.site, found.head, found.ends, found.identity)
        with file.opened() as descriptor:
            self.points("spool.cut")
            os.ftruncate(descriptor, file.size)
            self.points("spool.reserve")
            os.posix_fallocate(descriptor, 0, size)
        return file

    def files(self) -> list[Path]:
        """Of all uploads in the folder."""
        return sorted(self.folder.glob(f"*{SUFFIX}"))

    def remove(self, path: Path) -> None:
        """Frees a file. One that cannot be removed is not the round's business: its room stays
        taken, and the next start tries again."""
        self.points("spool.remove")
        try:
            path.unlink(missing_ok=True)
        except OSError:
            return
        with self._mutex:
            self._claimed.pop(path, None)

    def claim(self, path: Path, size: int) -> None:
        """Sets room aside for a file, instead of what it had.

        Raises:
            SpoolUnavailable: so much is not left.
        """
        with self._mutex:
            others = sum(self._claimed.values()) - self._claimed.get(path, 0)
            if self._limit and others + size > self._limit:
                raise SpoolUnavailable(
                    f"the spool has no room: an upload needs {size} bytes, others hold {others} "
                    f"of {self._limit}",
                    hint="raise the coordinator's spool_limit_bytes; uploads go on by themselves "
                    "when there is room",
                )
            self._claimed[path] = size


@dataclass(eq=False)
class SpoolFile:
    """The file of one upload. Written by one thread at a time; open only while it is.

    Attributes:
        head: its first bytes.
        ends: of each frame that it holds.
        identity: which file it is; another one may have its name by now.
    """

    spool: Spool
    path: Path
    site: str
    head: bytes
    ends: list[int] = field(default_factory=list)
    identity: tuple[int, int] = (0, 0)

    @property
    def size(self) -> int:
        """Bytes up to the end of the last chunk."""
        return self.ends[-1] if self.ends else len(self.head)

    def append(self, chunks: Sequence[memoryview]) -> None:
        """Writes the chunks that come next, all or none.

        Raises:
            SpoolUnavailable: the disk is full or takes nothing; the same chunks may come again.
            SpoolDamaged: the file is not what it was; the upload must begin anew.
        """
        buffers: list[bytes | memoryview] = []
        ends = []
        seed, end = seed_of(self.head), self.size
        for number, chunk in enumerate(chunks, len(self.ends)):
            buffers += (FRAME.pack(chunk.nbytes, checksum(seed, number, chunk)), chunk)
            end += FRAME.size + chunk.nbytes
            ends.append(end)
        with self.opened() as descriptor:
            self.spool.points("spool.chunks")
            # Where the last frame ended: an earlier write may have failed half-way.
            write_all(descriptor, buffers, self.size)
        self.ends += ends

    def seal(self) -> None:
        """Brings the file to disk as it is, and gives back the room that it does not need.

        Raises:
            SpoolDamaged: the file is not what it was, or the disk failed. The upload must begin
                anew: what the system could not write it may forget, and the next try succeeds.
        """
        try:
            with self.opened() as descriptor:
                self.spool.points("spool.cut")
                os.ftruncate(descriptor, self.size)
                self.spool.points("spool.sync")
                os.fsync(descriptor)
                self.spool.points("spool.folder")
                sync_folder(self.path.parent)
        except SpoolUnavailable as error:
            raise self.damaged(f"could not be brought to disk: {error}") from error
        self.spool.claim(self.path, self.size)
        self.spool.points("spool.sealed")

    def chunks(self) -> SpooledChunks:
        """The chunks, read when they are asked for. They stay readable when the file is removed.

        Raises:
            SpoolDamaged: the file is not what it was.
        """
        return SpooledChunks(self._open(os.O_RDONLY), self)

    def remove(self) -> None:
        """Frees the file."""
        self.spool.remove(self.path)

    def damaged(self, what: str) -> SpoolDamaged:
        """What to raise."""
        return damaged(self.path, self.site, what)

    @contextmanager
    def opened(self) -> Iterator[int]:
        """A descriptor to write the file with; errors of the system become the spool's.

        Raises:
            SpoolUnavailable, SpoolDamaged: see append.
        """
        descriptor = self._open(os.O_WRONLY)
        try:
            yield descriptor
        except OSError as error:
            if error.errno in PASSING:
                raise unavailable(error) from error
            raise self.damaged(f"cannot be written: {error.strerror}") from error
        finally:
            os.close(descriptor)

    def _open(self, flags: int) -> int:
        try:
            descriptor = os.open(self.path, flags | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in PASSING:
                raise unavailable(error) from error
            gone = error.errno == errno.ENOENT
            what = "is gone" if gone else f"cannot be opened: {error.strerror}"
            raise self.damaged(what) from error
        whole = os.fstat(descriptor).st_size >= self.size
        if whole and identity_of(descriptor) == self.identity:
            return descriptor
        os.close(descriptor)
        raise self.damaged("was cut" if not whole else "is another file than was made")


class SpooledChunks(FiledChunks):
    """The chunks of a file, read and checked each time they are asked for: one alone, a slice as a
    whole, all of them a window at a time. Keeps a descriptor and no bytes.

    Read and not mapped: a file that is cut, or a disk that fails, is an error here, and would end
    the process there. Only the mean maps it, after it has looked how long it is.

    Every access raises SpoolDamaged for bytes that are not those that were written.
    """

    def __init__(self, descriptor: int, file: SpoolFile) -> None:
        self._descriptor = descriptor
        self._file = file
        self._seed = seed_of(file.head)
        self._bounds = [len(file.head), *file.ends]

    def __del__(self) -> None:
        os.close(self._descriptor)

    @property
    def file(self) -> int:
        """See FiledChunks."""
        return self._descriptor

    @property
    def places(self) -> list[tuple[int, int]]:
        """See FiledChunks."""
        begins = (begin + FRAME.size for begin in self._bounds)
        return [(begin, end - begin) for begin, end in zip(begins, self._bounds[1:], strict=False)]

    @property
    def nbytes(self) -> int:
        """Of all chunks together."""
        return self._size(0, len(self)) - FRAME.size * len(self)

    def __len__(self) -> int:
        return len(self._bounds) - 1

    @overload
    def __getitem__(self, place: int) -> memoryview: ...
    @overload
    def __getitem__(self, place: slice) -> list[memoryview]: ...
    def __getitem__(self, place: int | slice) -> memoryview | list[memoryview]:
        numbers = range(len(self))[place]
        if isinstance(numbers, int):
            return self._read(numbers, numbers + 1)[0]
        if numbers.step != 1:
            return [self._read(number, number + 1)[0] for number in numbers]
        return self._read(numbers.start, numbers.stop)

    def __iter__(self) -> Iterator[memoryview]:
        first = 0
        while first < len(self):
            last = first + 1
            while last < len(self) and self._size(first, last + 1) <= _WINDOW_BYTES:
                last += 1
            yield from self._read(first, last)
            first = last

    def _size(self, first: int, last: int) -> int:
        return self._bounds[last] - self._bounds[first]

    def _read(self, first: int, last: int) -> list[memoryview]:
        start = self._bounds[first]
        window = memoryview(bytearray(self._bounds[max(first, last)] - start))
        try:
            read_all(self._descriptor, window, start)
        except OSError as error:
            raise self._file.damaged(f"cannot be read: {error.strerror or error}") from error
        view, chunks = window.toreadonly(), []
        for number in range(first, last):
            begin, end = self._bounds[number] - start, self._bounds[number + 1] - start
            size, expected = FRAME.unpack_from(view, begin)
            chunk = view[begin + FRAME.size : end]
            if size != chunk.nbytes or expected != checksum(self._seed, number, chunk):
                raise self._file.damaged(f"has other bytes than were written, in chunk {number}")
            chunks.append(chunk)
        return chunks
