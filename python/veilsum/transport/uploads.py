"""Uploads on their way in: each chunk is checked, then written to a file, then forgotten.

Memory holds one frame per open call and 8 MiB of what a compressed one expands to, whatever the
number and size of updates; file
descriptors are open only while something is written. A complete upload is mapped and handed
to the core as views of the file.
"""

from __future__ import annotations

import asyncio
import itertools
import mmap
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from veilsum.control import RoundId, UpdateHeader
from veilsum.coordinator.events import UpdateArrived
from veilsum.coordinator.round import Receiver
from veilsum.errors import DecodeError, PeerError, VeilsumError

Check: TypeAlias = Callable[[str, UpdateHeader], Awaitable[Receiver]]
Deliver: TypeAlias = Callable[[UpdateArrived], None]

_REMEMBERED_ROUNDS = 256
# Of one call. Chunks that came compressed are larger than the frame that they were in.
_MOST_UNWRITTEN = 8 << 20


class Superseded(VeilsumError):  # noqa: N818  nobody's fault: the site began anew
    """A newer call goes on with the same upload."""


@dataclass(eq=False)
class _Upload:
    """One site's update of one round."""

    header: UpdateHeader
    receiver: Receiver
    file: Path
    ends: list[int] = field(default_factory=list)  # of each chunk in the file
    call: int = 0  # number of the call that may write
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    answer: asyncio.Future[None] | None = None  # once complete; fails if it is refused

    @property
    def next_chunk(self) -> int:
        return len(self.ends)


@dataclass(eq=False)
class _Round:
    """Uploads of one round; `closed` says why there are no more."""

    sites: frozenset[str]
    uploads: dict[str, _Upload] = field(default_factory=dict)
    closed: str | None = None


class Uploads:
    """All uploads of a coordinator. Used from the event loop; file work is done in threads.

    Args:
        spool: folder for the files of uploads that are not complete or not summed yet.
        check: asks the core whether it takes this upload; raises its refusal.
        deliver: takes complete uploads; answer() must follow for each.
    """

    def __init__(self, spool: Path, check: Check, deliver: Deliver) -> None:
        self._spool = spool
        self._check = check
        self._deliver = deliver
        self._rounds: dict[RoundId, _Round] = {}
        self._numbers = itertools.count()

    # --- what the core says ---------------------------------------------------------

    def open(self, round_id: RoundId, sites: Sequence[str]) -> None:
        """Takes uploads of these sites from now on."""
        self._rounds[round_id] = _Round(frozenset(sites))

    def answer(self, round_id: RoundId, site: str, refusal: str | None) -> None:
        """The core's answer to a complete upload: None if it counts. Frees its file."""
        open_round = self._rounds.get(round_id)
        upload = open_round.uploads.get(site) if open_round else None
        if upload is not None:
            self._settle(site, upload, refusal)

    def close(self, round_id: RoundId, reason: str) -> None:
        """Refuses what still comes for this round, and frees what it holds."""
        closing = self._rounds.setdefault(round_id, _Round(frozenset()))
        closing.closed = reason
        for site, upload in closing.uploads.items():
            self._settle(site, upload, f"sent an update for a round that is over: {reason}")
        over = [known for known, state in self._rounds.items() if state.closed is not None]
        for oldest in over[:-_REMEMBERED_ROUNDS]:
            del self._rounds[oldest]

    def close_run(self, run_id: str, reason: str) -> None:
        """Closes whatever rounds of a run are open."""
        for round_id, state in list(self._rounds.items()):
            if round_id.run_id == run_id and state.closed is None:
                self.close(round_id, reason)

    def _settle(self, site: str, upload: _Upload, refusal: str | None) -> None:
        upload.call += 1  # a call that still writes finds that it may not
        upload.file.unlink(missing_ok=True)
        if upload.answer is None:
            upload.answer = asyncio.get_running_loop().create_future()
        if upload.answer.done():
            return
        if refusal is None:
            upload.answer.set_result(None)
        else:
            upload.answer.set_exception(PeerError(site, refusal))
            upload.answer.exception()  # nobody may be waiting, and that is fine

    # --- what sites do --------------------------------------------------------------

    def status(self, site: str, round_id: RoundId, update_id: int) -> tuple[int, bool]:
        """(first chunk that is not held, whether the update counts).

        Raises:
            PeerError: the round takes no updates, or holds another of this site.
        """
        upload = self._open_round(site, round_id).uploads.get(site)
        if upload is None:
            return 0, False
        if upload.header.update_id != update_id:
            raise PeerError(site, "sent another update in this round before")
        return upload.next_chunk, _counts(upload)

    async def begin(self, site: str, header: UpdateHeader, first_chunk: int) -> IncomingUpload:
        """Opens an upload, or goes on with one that broke off.

        Raises:
            PeerError: why it is refused.
            DecodeError: first_chunk leaves a gap.
        """
        state = self._round_for_header(site, header)
        upload = state.uploads.get(site)
        if upload is None:
            receiver = await self._check(site, header)
            # Another call of this site may have been faster while the core was asked.
            state = self._round_for_header(site, header)
            file = self._spool / f"{next(self._numbers):08d}.update"
            upload = state.uploads.setdefault(site, _Upload(header, receiver, file))
        if upload.header != header:
            raise PeerError(site, "sent a second, different update in this round")
        if first_chunk > upload.next_chunk:
            raise DecodeError(
                f"the upload goes on at chunk {first_chunk}, {upload.next_chunk} is the next"
            )
        if upload.answer is None:
            upload.call += 1
        return IncomingUpload(site, upload, first_chunk, self._deliver)

    def _round_for_header(self, site: str, header: UpdateHeader) -> _Round:
        state = self._open_round(site, header.round)
        upload = state.uploads.get(site)
        if state.closed is not None and (upload is None or not _counts(upload)):
            raise PeerError(site, f"sent an update for a round that is over: {state.closed}")
        return state

    def _open_round(self, site: str, round_id: RoundId) -> _Round:
        state = self._rounds.get(round_id)
        if state is None:
            raise PeerError(
                site,
                f"sent an update for round {round_id.number} of run {round_id.run_id!r}, "
                "which takes none now",
            )
        if state.closed is None and site not in state.sites:
            raise PeerError(site, "may not send an update in this round")
        return state


class IncomingUpload:
    """One call's part of an upload."""

    def __init__(self, site: str, upload: _Upload, first_chunk: int, deliver: Deliver) -> None:
        self._site = site
        self._upload = upload
        self._position = first_chunk
        self._deliver = deliver
        self._call = upload.call

    @property
    def settled(self) -> bool:
        """Whether the upload was complete before; what still comes need not be read."""
        return self._upload.answer is not None

    @property
    def complete(self) -> bool:
        """Whether all chunks are held, so that commit() can do its work."""
        return self.settled or self._upload.next_chunk == self._upload.receiver.chunk_count

    async def take(self, chunks: Sequence[memoryview]) -> int:
        """Checks consecutive chunks and writes those that are new; returns their bytes.

        Raises:
            DecodeError, PeerError: why a chunk is refused; those before it are held.
            Superseded: a newer call took over, or the round is over.
        """
        upload = self._upload
        async with upload.writing:
            self._check_current()
            if self._position + len(chunks) > upload.receiver.chunk_count:
                raise DecodeError(f"the update has more than {upload.receiver.chunk_count} chunks")
            try:
                written = await _to_its_end(_take, upload, chunks, self._position)
            finally:
                # The round may have ended while the thread was writing.
                if self._call != upload.call:
                    upload.file.unlink(missing_ok=True)
        self._position += len(chunks)
        return written

    async def commit(self) -> None:
        """Hands a complete upload to the core and waits for its answer.

        Raises:
            DecodeError, PeerError: it is incomplete, or refused.
            Superseded: a newer call took over.
        """
        upload = self._upload
        if upload.answer is None:
            async with upload.writing:
                self._check_current()
                await asyncio.to_thread(upload.receiver.finish)
                self._check_current()
                views = await self._map_chunks()
            if upload.answer is None:
                upload.answer = asyncio.get_running_loop().create_future()
                self._deliver(UpdateArrived(self._site, upload.header, views))
        # Shielded: the site may hang up and ask again, the answer is still the upload's.
        await asyncio.shield(upload.answer)

    async def _map_chunks(self) -> tuple[memoryview, ...]:
        try:
            views = await asyncio.to_thread(_map_chunks, self._upload)
        except FileNotFoundError:
            views = ()  # the round ended and freed it just now, which the next line notices
        self._check_current()
        return views

    def receipt(self) -> tuple[int, bool]:
        """(first chunk that is not held, whether the update counts)."""
        return self._upload.next_chunk, _counts(self._upload)

    def _check_current(self) -> None:
        if self._call != self._upload.call:
            raise Superseded("this upload was taken over by a newer call, or its round is over")


def _counts(upload: _Upload) -> bool:
    answer = upload.answer
    return answer is not None and answer.done() and answer.exception() is None


async def _to_its_end(
    work: Callable[[_Upload, Sequence[memoryview], int], int],
    upload: _Upload,
    chunks: Sequence[memoryview],
    position: int,
) -> int:
    """Runs `work` in a thread and returns only when the thread has, cancelled or not.

    A thread cannot be stopped: one left behind by a call that broke off would go on writing
    while the next call of the site writes, or after the file was freed.
    """
    thread = asyncio.ensure_future(asyncio.to_thread(work, upload, chunks, position))
    try:
        return await asyncio.shield(thread)
    except asyncio.CancelledError:
        await asyncio.wait((thread,))
        thread.exception()  # the call is over: nobody is left to tell
        raise


def _take(upload: _Upload, chunks: Sequence[memoryview], position: int) -> int:
    """Runs in a thread, one at a time per upload. A chunk is held once it is in the file;
    returns the bytes of those that are new."""
    accepted: list[memoryview] = []
    written = 0
    try:
        for index, chunk in enumerate(chunks, position):
            held = len(upload.ends) + len(accepted)
            if index > held:
                raise DecodeError(f"chunk {index} came where chunk {held} is next")
            if chunk.nbytes > upload.receiver.max_chunk_bytes:
                raise DecodeError(
                    f"chunk {index} has {chunk.nbytes} bytes, the largest of this update has "
                    f"{upload.receiver.max_chunk_bytes}"
                )
            # A repeated chunk in the place of the next one would be in the file twice.
            if (found := upload.receiver.position(chunk)) != index:
                raise DecodeError(f"chunk {found} came in the place of chunk {index}")
            kept = upload.receiver.add(chunk)
            if index == held:
                accepted.append(memoryview(kept))
            if sum(chunk.nbytes for chunk in accepted) > _MOST_UNWRITTEN:
                written += _write(upload, accepted)
    finally:
        # Also after a bad chunk: the receiver has taken those before it.
        written += _write(upload, accepted)
    return written


def _write(upload: _Upload, accepted: list[memoryview]) -> int:
    """Appends chunks to the file and forgets them; returns their bytes."""
    size = sum(chunk.nbytes for chunk in accepted)
    if accepted:
        _append(upload, accepted)
        accepted.clear()
    return size


def _append(upload: _Upload, chunks: Sequence[memoryview]) -> None:
    begin = upload.ends[-1] if upload.ends else 0
    descriptor = os.open(upload.file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as stream:
        # Not "append": an earlier write may have failed half-way, on a full disk.
        stream.seek(begin)
        stream.writelines(chunks)
    upload.ends += itertools.accumulate(
        (chunk.nbytes for chunk in chunks[1:]), initial=begin + chunks[0].nbytes
    )


def _map_chunks(upload: _Upload) -> tuple[memoryview, ...]:
    with open(upload.file, "rb") as stream:
        view = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
    begins = [0, *upload.ends[:-1]]
    return tuple(view[begin:end] for begin, end in zip(begins, upload.ends, strict=True))
