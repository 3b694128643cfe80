"""One upload on its way in: each chunk is checked, then written to a file, then forgotten.

Memory holds one frame per open call and 8 MiB of what a compressed one expands to, whatever the
number and size of updates; file descriptors are open only while something is written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

from veilsum.control import UpdateHeader
from veilsum.coordinator.events import UpdateArrived
from veilsum.coordinator.round import Receiver
from veilsum.errors import DecodeError, PeerError, VeilsumError
from veilsum.transport.spool import Spool, SpooledChunks, SpoolFile
from veilsum.transport.spool_format import SpoolDamaged
from veilsum.transport.threads import in_thread

Check: TypeAlias = Callable[[str, UpdateHeader], Awaitable[Receiver]]
Deliver: TypeAlias = Callable[[UpdateArrived], None]

# Of one call. Chunks that came compressed are larger than the frame that they were in.
_MOST_UNWRITTEN = 8 << 20

# Chunks that are held may come again, but not for ever: each costs as much as a new one.
_MOST_TIMES = 8
_MOST_MORE = 1024

_T = TypeVar("_T")


class Superseded(VeilsumError):  # noqa: N818  nobody's fault: the site began anew
    """A newer call goes on with the same upload."""


class Workers:
    """Threads for file work alone: a disk that hangs must not hold up the core's."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(thread_name_prefix="spool")

    async def run(self, work: Callable[[], _T]) -> _T:
        """Runs `work` in a thread, to its end: a call that broke off must not go on writing while
        the next call of the site writes, or after the file was freed."""
        return await in_thread(work, self._threads)


@dataclass(eq=False)
class Upload:
    """One site's update of one round.

    Attributes:
        receiver, file: None once they are not needed any more; `file` also while there is no
            room for one.
        held: chunks that are in the file.
        came: chunks that came, those again that came again.
        call: number of the call that may write.
        delivered: the core has it, and owes the answer.
        settled: set by the answer; `refusal` is None if the update counts.
    """

    site: str
    header: UpdateHeader
    receiver: Receiver | None
    file: SpoolFile | None = None
    held: int = 0
    came: int = 0
    call: int = 0
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    delivered: bool = False
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    refusal: str | None = None

    @property
    def over(self) -> bool:
        """Whether no chunk is awaited any more."""
        return self.delivered or self.settled.is_set()

    @property
    def counts(self) -> bool:
        """Whether the core has accepted it."""
        return self.settled.is_set() and self.refusal is None

    def settle(self, refusal: str | None) -> None:
        """The answer; the first one stays."""
        if not self.settled.is_set():
            self.refusal = refusal
            self.receiver = None
            self.call += 1  # a call that still writes finds that it may not
            self.settled.set()

    def drop_file(self) -> None:
        """Frees what it holds on disk."""
        if self.file is not None:
            self.file.remove()
            self.file = None


@dataclass(frozen=True)
class Handling:
    """What all calls share.

    Attributes:
        discard: an upload whose file is lost; it begins anew.
    """

    spool: Spool
    workers: Workers
    deliver: Deliver
    discard: Callable[[Upload], None]


class IncomingUpload:
    """One call's part of an upload."""

    def __init__(self, upload: Upload, first_chunk: int, handling: Handling) -> None:
        self._upload = upload
        self._position = first_chunk
        self._handling = handling
        self._call = upload.call

    @property
    def settled(self) -> bool:
        """Whether the upload was complete before; what still comes need not be read."""
        return self._upload.over

    @property
    def complete(self) -> bool:
        """Whether all chunks are held, so that commit() can do its work."""
        return self.settled or self._upload.held == self._upload.header.chunk_count

    async def prepare(self) -> None:
        """Sets room aside for all of the upload.

        Raises:
            SpoolUnavailable: there is none now.
        """
        upload = self._upload
        if upload.over or upload.file is not None:
            return
        async with upload.writing:
            if upload.call == self._call and upload.file is None:
                try:
                    await self._handling.workers.run(self._create)
                finally:
                    self._free_if_over()

    def _create(self) -> None:
        """Runs in a thread."""
        upload = self._upload
        if (receiver := upload.receiver) is not None:
            most = receiver.max_chunk_bytes
            upload.file = self._handling.spool.create(upload.site, upload.header, most)

    async def take(self, chunks: Sequence[memoryview]) -> int:
        """Checks consecutive chunks and writes those that are new; returns their bytes.

        Raises:
            DecodeError, PeerError: why a chunk is refused; those before it are held.
            SpoolUnavailable: they cannot be written now; those before are held.
            SpoolDamaged: what was held is lost.
            Superseded: a newer call took over, or the round is over.
        """
        upload = self._upload
        async with upload.writing:
            self._check_current()
            if self._position + len(chunks) > upload.header.chunk_count:
                raise DecodeError(f"the update has more than {upload.header.chunk_count} chunks")
            self._count(len(chunks))
            written = await self._file_work(lambda: _take(upload, chunks, self._position))
        self._position += len(chunks)
        return written

    def _count(self, chunks: int) -> None:
        upload = self._upload
        upload.came += chunks
        most = _MOST_TIMES * upload.header.chunk_count + _MOST_MORE
        if upload.came > most:
            raise PeerError(
                upload.site, f"sent more than {most} chunks of one update, over and over"
            )

    async def commit(self) -> None:
        """Brings a complete upload to disk, hands it to the core and waits for its answer.

        Raises:
            DecodeError, PeerError: it is incomplete, or refused.
            SpoolDamaged: it is lost.
            Superseded: a newer call took over.
        """
        upload = self._upload
        if not upload.over:
            async with upload.writing:
                self._check_current()
                chunks = await self._file_work(lambda: _seal(upload))
                self._check_current()
                upload.delivered = True
                self._handling.deliver(UpdateArrived(upload.site, upload.header, chunks))
        await upload.settled.wait()
        if upload.refusal is not None:
            raise PeerError(upload.site, upload.refusal)

    async def _file_work(self, work: Callable[[], _T]) -> _T:
        try:
            return await self._handling.workers.run(work)
        except SpoolDamaged:
            self._check_current()  # it may be gone because the round is over
            self._handling.discard(self._upload)
            raise
        finally:
            self._free_if_over()

    def _free_if_over(self) -> None:
        """The round may have ended while a thread was at work; what is delivered stays."""
        if self._upload.settled.is_set() and not self._upload.delivered:
            self._upload.drop_file()

    def receipt(self) -> tuple[int, bool]:
        """(first chunk that is not held, whether the update counts)."""
        return self._upload.held, self._upload.counts

    def _check_current(self) -> None:
        if self._call != self._upload.call:
            raise Superseded("this upload was taken over by a newer call, or its round is over")


def _take(upload: Upload, chunks: Sequence[memoryview], position: int) -> int:
    """Runs in a thread, one at a time per upload. A chunk is held once it is in the file;
    returns the bytes of those that are new."""
    receiver, file = upload.receiver, upload.file
    if receiver is None or file is None:
        raise Superseded("the round is over")
    accepted: list[memoryview] = []
    written = 0
    try:
        for index, chunk in enumerate(chunks, position):
            held = upload.held + len(accepted)
            if index > held:
                raise DecodeError(f"chunk {index} came where chunk {held} is next")
            kept = _checked(receiver, chunk, index)
            if index == held:
                accepted.append(kept)
            if sum(chunk.nbytes for chunk in accepted) > _MOST_UNWRITTEN:
                written += _write(upload, file, accepted)
    finally:
        # Also after a bad chunk: the receiver has taken those before it.
        written += _write(upload, file, accepted)
    return written


def _checked(receiver: Receiver, chunk: memoryview, index: int) -> memoryview:
    if chunk.nbytes > receiver.max_chunk_bytes:
        raise DecodeError(
            f"chunk {index} has {chunk.nbytes} bytes, the largest of this update has "
            f"{receiver.max_chunk_bytes}"
        )
    # A repeated chunk in the place of the next one would be in the file twice.
    if (found := receiver.position(chunk)) != index:
        raise DecodeError(f"chunk {found} came in the place of chunk {index}")
    return memoryview(receiver.add(chunk))


def _write(upload: Upload, file: SpoolFile, accepted: list[memoryview]) -> int:
    """Appends chunks to the file and forgets them; returns their bytes."""
    size = sum(chunk.nbytes for chunk in accepted)
    if accepted:
        file.append(accepted)
        upload.held = len(file.ends)
        accepted.clear()
    return size


def _seal(upload: Upload) -> SpooledChunks:
    """Runs in a thread."""
    receiver, file = upload.receiver, upload.file
    if receiver is None or file is None:
        raise Superseded("the round is over")
    receiver.finish()
    file.seal()
    return file.chunks()
