"""Uploads: resumed, repeated, interrupted, refused, and freed; one site never harms another."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import itertools
import os
import resource
import stat
import threading
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from veilsum.control import RoundId, UpdateHeader
from veilsum.coordinator.events import UpdateArrived
from veilsum.errors import DecodeError, PeerError
from veilsum.transport.incoming import Superseded, Workers
from veilsum.transport.spool import SpoolFile
from veilsum.transport.spool_format import SpoolDamaged, SpoolUnavailable
from veilsum.transport.uploads import UploadLimits, Uploads

ROUND = RoundId("run", 1)
CHUNKS = [bytes([index]) * (100 + index) for index in range(6)]


def header(site: str = "a", update_id: int = 1) -> UpdateHeader:
    return UpdateHeader(ROUND, update_id, len(CHUNKS), 10, {}, b"")


class FakeReceiver:
    """Takes what begins with the byte of its position; remembers hashes."""

    chunk_count = len(CHUNKS)
    max_chunk_bytes = 200

    def __init__(self) -> None:
        self.hashes: list[bytes] = []
        self.finished = 0
        self.finish_error: Exception | None = None

    @property
    def next_index(self) -> int:
        return len(self.hashes)

    def position(self, chunk: memoryview) -> int:
        return chunk[0]

    def add(self, chunk: memoryview) -> memoryview:
        index = chunk[0]
        found = hashlib.sha256(chunk).digest()
        if index < self.next_index:
            if found != self.hashes[index]:
                raise PeerError("a", f"sent chunk {index} again with other bytes")
            return chunk
        if bytes(chunk) != CHUNKS[index]:
            raise DecodeError(f"chunk {index} is broken")
        self.hashes.append(found)
        return self.expanded(chunk)

    def expanded(self, chunk: memoryview) -> memoryview:
        return chunk

    def finish(self) -> None:
        self.finished += 1
        if self.finish_error:
            raise self.finish_error


class Desk:
    """Uploads with a fake core behind them."""

    def __init__(
        self, spool: Path, limits: UploadLimits | None = None, sites: Sequence[str] = ("a", "b")
    ) -> None:
        self.spool = spool
        self.reached: list[str] = []
        self.at_point: Callable[[str], None] = lambda point: None
        self.receivers: dict[str, FakeReceiver] = {}
        self.arrived: list[UpdateArrived] = []
        self.refusal: str | None = None
        self.answer_at_once = True
        self.uploads = Uploads(spool, self._check, self._deliver, limits, self._point)
        self.uploads.open(ROUND, sites)

    def _point(self, point: str) -> None:
        self.reached.append(point)
        self.at_point(point)

    def restarted(self) -> Desk:
        """As a new process finds it, with the round open again."""
        return Desk(self.spool)

    async def _check(self, site: str, header: UpdateHeader) -> FakeReceiver:
        await asyncio.sleep(0)  # the real core answers in its turn
        return self.receivers.setdefault(site, FakeReceiver())

    def _deliver(self, event: UpdateArrived) -> None:
        self.arrived.append(event)
        if self.answer_at_once:
            self.uploads.answer(event.header.round, event.site, self.refusal)

    async def push(self, site: str, chunks: list[bytes], first: int = 0, **change: Any) -> Any:
        upload = await self.uploads.begin(site, header(site, **change), first)
        if not upload.settled:
            await upload.take([memoryview(chunk) for chunk in chunks])
        if upload.complete:
            await upload.commit()
        return upload.receipt()

    def files(self) -> list[Path]:
        return sorted(self.spool.iterdir())


def scenario(
    test: Callable[[Desk], Coroutine[Any, Any, None]],
) -> Callable[[Path], None]:
    """Runs an async test with a fresh Desk."""

    def run(tmp_path: Path) -> None:
        async def main() -> None:
            await asyncio.wait_for(test(Desk(tmp_path)), 20)

        asyncio.run(main())

    run.__name__ = test.__name__
    return run


@scenario
async def test_a_whole_update_arrives_and_its_file_stays_until_the_round_is_forgotten(
    desk: Desk,
) -> None:
    assert await desk.push("a", CHUNKS) == (6, True)
    (event,) = desk.arrived
    assert event.site == "a"
    assert [bytes(chunk) for chunk in event.chunks] == CHUNKS
    assert all(memoryview(chunk).readonly for chunk in event.chunks)
    assert desk.receivers["a"].finished == 1
    desk.uploads.close(ROUND, "all updates are in")
    (file,) = desk.files()
    # Nothing of the room that was set aside is kept.
    assert file.stat().st_size < sum(map(len, CHUNKS)) + 200
    desk.uploads.forget(ROUND)
    assert desk.files() == []
    # What was handed to the core stays readable although its file has no name any more.
    assert [bytes(chunk) for chunk in event.chunks] == CHUNKS


@scenario
async def test_an_upload_that_broke_off_goes_on_where_it_stopped(desk: Desk) -> None:
    assert await desk.push("a", CHUNKS[:4]) == (4, False)
    assert desk.uploads.status("a", ROUND, 1) == (4, False)
    assert await desk.push("a", CHUNKS[4:], first=4) == (6, True)
    assert [bytes(chunk) for chunk in desk.arrived[0].chunks] == CHUNKS
    assert desk.uploads.status("a", ROUND, 1) == (6, True)


@scenario
async def test_chunks_that_are_held_may_come_again(desk: Desk) -> None:
    await desk.push("a", CHUNKS[:4])
    assert await desk.push("a", CHUNKS[1:], first=1) == (6, True)
    assert [bytes(chunk) for chunk in desk.arrived[0].chunks] == CHUNKS


@scenario
async def test_a_repeated_chunk_does_not_take_the_place_of_the_next(desk: Desk) -> None:
    with pytest.raises(DecodeError, match="chunk 0 came in the place of chunk 1"):
        await desk.push("a", [CHUNKS[0], CHUNKS[0]])

    assert await desk.push("a", CHUNKS[1:], first=1) == (len(CHUNKS), True)
    assert [bytes(chunk) for chunk in desk.arrived[0].chunks] == CHUNKS


@scenario
async def test_pushing_an_update_that_counts_gives_the_same_answer_again(desk: Desk) -> None:
    await desk.push("a", CHUNKS)
    assert await desk.push("a", CHUNKS) == (6, True)
    assert len(desk.arrived) == 1
    desk.uploads.close(ROUND, "the round is complete")
    assert await desk.push("a", CHUNKS) == (6, True)
    assert desk.uploads.status("a", ROUND, 1) == (6, True)


@scenario
async def test_a_second_different_update_is_refused_before_and_after_the_first_counts(
    desk: Desk,
) -> None:
    await desk.push("a", CHUNKS[:2])
    with pytest.raises(PeerError, match="second, different update"):
        await desk.push("a", CHUNKS, update_id=2)
    assert await desk.push("a", CHUNKS[2:], first=2) == (6, True)
    with pytest.raises(PeerError, match="second, different update"):
        await desk.push("a", CHUNKS, update_id=2)
    with pytest.raises(PeerError, match="sent another update"):
        desk.uploads.status("a", ROUND, 2)
    assert len(desk.arrived) == 1


@scenario
async def test_a_chunk_with_other_bytes_in_its_place_is_refused(desk: Desk) -> None:
    await desk.push("a", CHUNKS[:3])
    with pytest.raises(PeerError, match="again with other bytes"):
        await desk.push("a", [b"\x01" * 50], first=1)


@scenario
async def test_what_came_before_a_broken_chunk_is_held(desk: Desk) -> None:
    with pytest.raises(DecodeError, match="chunk 3 is broken"):
        await desk.push("a", [*CHUNKS[:3], b"\x03broken", CHUNKS[4]])
    assert desk.uploads.status("a", ROUND, 1) == (3, False)
    assert await desk.push("a", CHUNKS[3:], first=3) == (6, True)
    assert [bytes(chunk) for chunk in desk.arrived[0].chunks] == CHUNKS


@scenario
async def test_one_sites_broken_chunk_leaves_the_others_alone(desk: Desk) -> None:
    await desk.push("b", CHUNKS[:2])
    with pytest.raises(DecodeError):
        await desk.push("a", [b"\x00bad"])
    assert await desk.push("b", CHUNKS[2:], first=2) == (6, True)


@scenario
async def test_chunks_are_bounded_in_size_and_number(desk: Desk) -> None:
    with pytest.raises(DecodeError, match="has 201 bytes, the largest of this update has 200"):
        await desk.push("a", [bytes(201)])
    with pytest.raises(DecodeError, match="has more than 6 chunks"):
        await desk.push("a", [*CHUNKS, b"\x06"])
    with pytest.raises(DecodeError, match="goes on at chunk 3, 0 is the next"):
        await desk.push("a", CHUNKS[3:], first=3)
    assert desk.uploads.status("a", ROUND, 1) == (0, False)


@scenario
async def test_a_site_that_may_not_upload_is_refused(desk: Desk) -> None:
    with pytest.raises(PeerError, match="may not send an update in this round"):
        await desk.push("mallory", CHUNKS)
    with pytest.raises(PeerError, match="takes none now"):
        desk.uploads.status("a", RoundId("run", 2), 1)


@scenario
async def test_the_core_has_the_last_word_on_an_upload(desk: Desk) -> None:
    desk.refusal = "came too late"
    with pytest.raises(PeerError, match="came too late"):
        await desk.push("a", CHUNKS)
    with pytest.raises(PeerError, match="came too late"):
        await desk.push("a", CHUNKS)
    # It is found again after a restart, which hears the same refusal.
    assert len(desk.files()) == 1
    assert desk.uploads.status("a", ROUND, 1) == (6, False)


@scenario
async def test_an_upload_that_does_not_add_up_is_not_delivered(desk: Desk) -> None:
    desk.receivers["a"] = FakeReceiver()
    desk.receivers["a"].finish_error = PeerError("a", "announced another root")
    with pytest.raises(PeerError, match="another root"):
        await desk.push("a", CHUNKS)
    assert desk.arrived == []


@scenario
async def test_a_newer_call_takes_an_upload_over(desk: Desk) -> None:
    old = await desk.uploads.begin("a", header(), 0)
    await old.take([memoryview(CHUNKS[0])])
    new = await desk.uploads.begin("a", header(), 1)
    with pytest.raises(Superseded):
        await old.take([memoryview(CHUNKS[1])])
    await new.take([memoryview(chunk) for chunk in CHUNKS[1:]])
    with pytest.raises(Superseded):
        await old.commit()
    await new.commit()
    assert new.receipt() == (6, True)


@scenario
async def test_two_calls_at_once_open_one_upload(desk: Desk) -> None:
    first, second = await asyncio.gather(
        desk.uploads.begin("a", header(), 0), desk.uploads.begin("a", header(), 0)
    )
    with pytest.raises(Superseded):
        await first.take([memoryview(CHUNKS[0])])
    await second.take([memoryview(chunk) for chunk in CHUNKS])
    await second.commit()
    assert len(desk.arrived) == 1


@scenario
async def test_closing_a_round_ends_its_uploads_and_frees_those_that_are_not_complete(
    desk: Desk,
) -> None:
    desk.answer_at_once = False
    half = await desk.uploads.begin("a", header(), 0)
    await half.take([memoryview(CHUNKS[0])])
    waiting = asyncio.create_task(desk.push("b", CHUNKS))
    while not desk.arrived:
        await asyncio.sleep(0)
    assert len(desk.files()) == 2
    desk.uploads.close(ROUND, "stopped by ann")
    with pytest.raises(PeerError, match="round that is over: stopped by ann"):
        await waiting
    with pytest.raises(Superseded):
        await half.take([memoryview(CHUNKS[1])])
    with pytest.raises(PeerError, match="round that is over: stopped by ann"):
        await desk.push("a", CHUNKS)
    (file,) = desk.files()
    assert desk.restarted().uploads.recover("b", header()).site == "b"
    desk.uploads.close(ROUND, "again")
    assert desk.files() == [file]
    desk.uploads.forget(ROUND)
    assert desk.files() == []
    assert [bytes(chunk) for chunk in desk.arrived[0].chunks] == CHUNKS


@scenario
async def test_a_round_that_is_forgotten_takes_nothing_any_more(desk: Desk) -> None:
    await desk.push("a", CHUNKS[:2])
    await desk.push("b", CHUNKS)
    desk.uploads.forget(ROUND)
    assert desk.files() == []
    with pytest.raises(PeerError, match="a round that is over"):
        await desk.push("a", CHUNKS[2:], first=2)
    assert await desk.push("b", CHUNKS) == (6, True)
    desk.uploads.forget(RoundId("run", 9))


@scenario
async def test_the_end_of_a_run_frees_all_of_it(desk: Desk) -> None:
    await desk.push("a", CHUNKS)
    await desk.push("b", CHUNKS[:1])
    desk.uploads.close_run("another", "stopped")
    assert len(desk.files()) == 2
    desk.uploads.close_run("run", "stopped")
    assert desk.files() == []


@scenario
async def test_a_chunk_that_is_held_may_come_again_but_not_for_ever(desk: Desk) -> None:
    upload = await desk.uploads.begin("a", header(), 0)
    for _ in range((8 * len(CHUNKS) + 1024) // 4):
        await upload.take([memoryview(chunk) for chunk in CHUNKS[:4]])
        upload = await desk.uploads.begin("a", header(), 0)
    with pytest.raises(PeerError, match="sent more than 1072 chunks of one update"):
        await upload.take([memoryview(CHUNKS[0])])
    with pytest.raises(PeerError, match="sent more than 1072 chunks of one update"):
        await desk.push("a", CHUNKS[4:], first=4)
    assert await desk.push("b", CHUNKS) == (6, True)


@scenario
async def test_a_new_process_of_a_site_begins_its_upload_anew(desk: Desk) -> None:
    old = await desk.uploads.begin("a", header(), 0)
    await old.take([memoryview(chunk) for chunk in CHUNKS[:3]])
    await desk.push("b", CHUNKS)
    desk.receivers.clear()
    for site in ("a", "b", "c"):
        desk.uploads.restart(ROUND, site)
    desk.uploads.restart(RoundId("run", 9), "a")
    with pytest.raises(Superseded):
        await old.take([memoryview(CHUNKS[3])])
    assert desk.uploads.status("a", ROUND, 2) == (0, False)
    # Trained anew, it is another update. What counts stays.
    assert await desk.push("a", CHUNKS, update_id=2) == (6, True)
    assert desk.uploads.status("b", ROUND, 1) == (6, True)


@scenario
async def test_sites_may_come_to_a_round_one_by_one(desk: Desk) -> None:
    await desk.push("a", CHUNKS)
    await desk.push("b", CHUNKS[:2])
    desk.uploads.open(ROUND, ["b", "c"])
    desk.receivers.clear()
    assert desk.uploads.status("b", ROUND, 1) == (0, False)
    assert desk.uploads.status("a", ROUND, 1) == (6, True)
    assert await desk.push("c", CHUNKS) == (6, True)
    await desk.push("b", CHUNKS[:2])
    assert len(desk.files()) == 3
    desk.uploads.forget(ROUND, ["a", "b"])
    assert len(desk.files()) == 2
    assert await desk.push("a", CHUNKS) == (6, True)
    assert await desk.push("b", CHUNKS[2:], first=2) == (6, True)
    assert [event.site for event in desk.arrived] == ["a", "c", "b"]


# --- disks ----------------------------------------------------------------------------


def failing(call: str, code: int, after: int = 0) -> Callable[..., Any]:
    """The system call, which fails from so many calls on."""
    real, calls = getattr(os, call), itertools.count()

    def fails(*arguments: Any) -> Any:
        if next(calls) >= after:
            raise OSError(code, os.strerror(code))
        return real(*arguments)

    return fails


@pytest.mark.parametrize(
    ("call", "code", "reason"),
    [
        ("posix_fallocate", errno.ENOSPC, "the disk is full"),
        ("posix_fallocate", errno.EDQUOT, "the disk quota is used up"),
        ("open", errno.EROFS, "the disk is read-only"),
        ("open", errno.EMFILE, "too many files are open"),
        ("pwritev", errno.EIO, "Input/output error"),
    ],
)
def test_an_upload_for_which_there_is_no_room_waits_and_others_go_on(
    tmp_path: Path, call: str, code: int, reason: str
) -> None:
    @scenario
    async def test_it(desk: Desk) -> None:
        await desk.push("b", CHUNKS[:3])
        before = desk.files()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, call, failing(call, code))
            with pytest.raises(SpoolUnavailable, match=reason) as raised:
                await desk.push("a", CHUNKS)
        assert "uploads go on by themselves" in str(raised.value.hint)
        assert desk.files() == before
        assert desk.uploads.status("a", ROUND, 1) == (0, False)
        assert await desk.push("b", CHUNKS[3:], first=3) == (6, True)
        assert await desk.push("a", CHUNKS) == (6, True)
        assert [bytes(chunk) for chunk in desk.arrived[1].chunks] == CHUNKS

    test_it(tmp_path)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_write_that_fails_half_way_is_made_good_by_sending_again(
    tmp_path: Path, code: int
) -> None:
    @scenario
    async def test_it(desk: Desk) -> None:
        await desk.push("a", CHUNKS[:2])
        real, torn = os.pwritev, itertools.count()

        def half(descriptor: int, buffers: Any, begin: int) -> int:
            if next(torn):
                raise OSError(code, os.strerror(code))
            return real(descriptor, [memoryview(buffers[0]), memoryview(buffers[1])[:50]], begin)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "pwritev", half)
            with pytest.raises(SpoolUnavailable):
                await desk.push("a", CHUNKS[2:5], first=2)
        assert desk.uploads.status("a", ROUND, 1) == (2, False)
        assert await desk.push("a", CHUNKS[2:], first=2) == (6, True)
        assert [bytes(chunk) for chunk in desk.arrived[0].chunks] == CHUNKS

    test_it(tmp_path)


def test_files_that_may_not_grow_refuse_an_upload_and_not_the_next(tmp_path: Path) -> None:
    """A limit of the system, as a full disk would be, and nothing injected."""
    chunks, size = 6, 1 << 20

    @scenario
    async def test_it(desk: Desk) -> None:
        desk.receivers["a"] = FakeReceiver()
        desk.receivers["a"].max_chunk_bytes = size
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (chunks * size // 2, hard))
        try:
            with pytest.raises(SpoolUnavailable, match="files may not become so large"):
                await desk.push("a", CHUNKS)
            assert desk.files() == []
            assert await desk.push("b", CHUNKS) == (6, True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert await desk.push("a", CHUNKS) == (6, True)

    test_it(tmp_path)


@pytest.mark.parametrize("what", ["deleted", "cut", "replaced", "folder deleted"])
def test_a_file_that_changed_under_an_upload_makes_it_begin_anew(tmp_path: Path, what: str) -> None:
    @scenario
    async def test_it(desk: Desk) -> None:
        await desk.push("a", CHUNKS[:3])
        (file,) = desk.files()
        _spoil(file, what)
        with pytest.raises(SpoolDamaged, match=r"of site 'a' (is gone|was cut|is another file)"):
            await desk.push("a", CHUNKS[3:], first=3)
        desk.spool.mkdir(exist_ok=True)
        assert desk.uploads.status("a", ROUND, 1) == (0, False)
        desk.receivers.clear()
        assert await desk.push("a", CHUNKS) == (6, True)
        assert [bytes(chunk) for chunk in desk.arrived[0].chunks] == CHUNKS

    (tmp_path / "spool").mkdir()
    test_it(tmp_path / "spool")


def _spoil(file: Path, what: str) -> None:
    data = file.read_bytes()
    if what == "cut":
        os.truncate(file, 90)
        return
    file.unlink()
    if what == "replaced":
        (file.parent / "another").write_bytes(b"")  # so that it is not the same file again
        file.write_bytes(data)
    if what == "folder deleted":
        file.parent.rmdir()


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_an_update_that_could_not_be_brought_to_disk_is_never_delivered(
    tmp_path: Path, code: int
) -> None:
    """The system forgets what it could not write: a second fsync would do well."""

    @scenario
    async def test_it(desk: Desk) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", failing("fsync", code))
            with pytest.raises(SpoolDamaged, match=r"cannot be written|could not be brought"):
                await desk.push("a", CHUNKS)
        assert (desk.arrived, desk.files()) == ([], [])
        assert desk.uploads.status("a", ROUND, 1) == (0, False)
        desk.receivers.clear()
        assert await desk.push("a", CHUNKS) == (6, True)

    test_it(tmp_path)


@scenario
async def test_an_update_is_on_disk_before_the_core_hears_of_it(desk: Desk) -> None:
    steps: list[str] = []
    deliver = desk.uploads._handling.deliver
    handling = replace(
        desk.uploads._handling, deliver=lambda event: (steps.append("core"), deliver(event))
    )
    desk.uploads._handling = handling
    real = os.fsync
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            os,
            "fsync",
            lambda descriptor: (
                steps.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"),
                real(descriptor),
            ),
        )
        await desk.push("a", CHUNKS[:5])
        assert steps == []
        await desk.push("a", CHUNKS[5:], first=5)
    assert steps == ["file", "folder", "core"]
    assert desk.reached == [
        *("spool.create", "spool.reserve", "spool.head"),
        *("spool.chunks", "spool.chunks"),
        *("spool.cut", "spool.sync", "spool.folder", "spool.sealed"),
    ]


def test_the_spool_has_a_limit_and_what_is_complete_needs_less(tmp_path: Path) -> None:
    async def main() -> None:
        desk = Desk(tmp_path, UploadLimits(spool_limit_bytes=2500))
        half = await desk.uploads.begin("a", header(), 0)
        with pytest.raises(
            SpoolUnavailable, match=r"needs 1\d{3} bytes, others hold 1\d{3} of 2500"
        ):
            await desk.uploads.begin("b", header(), 0)
        assert len(desk.files()) == 1
        await half.take([memoryview(chunk) for chunk in CHUNKS])
        await half.commit()
        assert await desk.push("b", CHUNKS) == (6, True)
        again = Desk(tmp_path, UploadLimits(spool_limit_bytes=2500))
        again.uploads.recover("a", header())
        again.uploads.recover("b", header())
        again.uploads.open(RoundId("run", 2), ["a"])
        with pytest.raises(SpoolUnavailable, match="of 2500"):
            await again.uploads.begin("a", replace(header(), round=RoundId("run", 2)), 0)
        again.uploads.forget(ROUND)
        await again.uploads.begin("a", replace(header(), round=RoundId("run", 2)), 0)

    asyncio.run(main())


# --- restarts -------------------------------------------------------------------------


@scenario
async def test_what_was_delivered_is_delivered_again_after_a_restart(desk: Desk) -> None:
    await desk.push("a", CHUNKS)
    again = desk.restarted()
    event = again.uploads.recover("a", header())
    assert (event.site, event.header) == ("a", header())
    assert [bytes(chunk) for chunk in event.chunks] == CHUNKS
    assert again.uploads.status("a", ROUND, 1) == (6, False)
    waiting = asyncio.create_task(again.push("a", CHUNKS, first=6))
    await asyncio.sleep(0)
    again.uploads.answer(ROUND, "a", None)
    assert await waiting == (6, True)
    assert await again.uploads.recover_partial() == []
    again.uploads.close(ROUND, "over")
    assert len(desk.files()) == 1
    again.uploads.forget(ROUND)
    assert desk.files() == []


@scenario
async def test_uploads_that_were_not_complete_go_on_after_a_restart(desk: Desk) -> None:
    await desk.push("a", CHUNKS[:4])
    await desk.push("b", CHUNKS)  # complete, but nothing says that it was delivered
    again = desk.restarted()
    leftovers = await again.uploads.recover_partial()
    assert sorted((left.site, left.chunks, left.fault) for left in leftovers) == [
        ("a", 4, ""),
        ("b", 6, ""),
    ]
    assert again.receivers["a"].next_index == 4
    assert again.uploads.status("a", ROUND, 1) == (4, False)
    assert await again.push("a", CHUNKS[4:], first=4) == (6, True)
    assert await again.push("b", CHUNKS[6:], first=6) == (6, True)
    for event in again.arrived:
        assert [bytes(chunk) for chunk in event.chunks] == CHUNKS


@scenario
async def test_what_a_process_left_that_another_one_followed_is_not_taken_up(desk: Desk) -> None:
    """The coordinator was killed after it knew of the new process, before it freed the file."""
    await desk.push("a", CHUNKS[:2])
    await desk.push("b", CHUNKS)
    again = desk.restarted()
    again.uploads.open(ROUND, ["a", "b"])  # as in the replay: both began anew
    event = again.uploads.recover("b", header())
    (left,) = await again.uploads.recover_partial()
    assert (left.site, left.removed) == ("a", True)
    assert "began its upload anew" in left.fault
    assert again.uploads.status("a", ROUND, 1) == (0, False)
    assert [bytes(chunk) for chunk in event.chunks] == CHUNKS  # it was complete: that counts


@scenario
async def test_files_of_no_open_round_are_removed_at_a_restart(desk: Desk) -> None:
    await desk.push("a", CHUNKS[:2])
    (file,) = desk.files()
    (desk.spool / "0123.update").write_bytes(b"not an upload")
    (desk.spool / "4567.update").write_bytes(file.read_bytes())  # another file's bytes
    await desk.push("b", CHUNKS[:2])
    again = Desk(desk.spool, sites=["a"])  # without b
    leftovers = {left.file: left for left in await again.uploads.recover_partial()}
    assert desk.files() == [file]
    assert not leftovers.pop(file.name).removed
    assert all(left.removed for left in leftovers.values())
    assert "does not begin as an upload does" in leftovers["0123.update"].fault
    assert "another file's name" in leftovers["4567.update"].fault
    # A round that is closed has no use for what is not complete.
    later = desk.restarted()
    later.uploads.close(ROUND, "over")
    (left,) = await later.uploads.recover_partial()
    assert left.removed
    assert desk.files() == []


@scenario
async def test_a_partial_upload_for_which_there_is_no_room_after_a_restart_begins_anew(
    desk: Desk,
) -> None:
    await desk.push("a", CHUNKS[:2])
    again = desk.restarted()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "posix_fallocate", failing("posix_fallocate", errno.ENOSPC))
        (left,) = await again.uploads.recover_partial()
    assert left.removed
    assert "the disk is full" in left.fault
    again.receivers.clear()
    assert await again.push("a", CHUNKS) == (6, True)


@scenario
async def test_old_rounds_are_forgotten_and_open_ones_are_not(desk: Desk) -> None:
    for number in range(2, 400):
        desk.uploads.open(RoundId("run", number), ["a"])
        desk.uploads.close(RoundId("run", number), "over")
    for number, reason in ((2, "takes none now"), (399, "is over: over")):
        late = UpdateHeader(RoundId("run", number), 1, 6, 10, {}, b"")
        with pytest.raises(PeerError, match=reason):
            await desk.uploads.begin("a", late, 0)
    assert await desk.push("a", CHUNKS) == (6, True)


def test_a_call_that_breaks_off_ends_only_when_its_thread_has() -> None:
    began, may_end, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        may_end.wait(10)
        ended.set()

    async def scenario() -> None:
        call = asyncio.create_task(Workers().run(work))
        await asyncio.to_thread(began.wait, 10)
        call.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
        assert not call.done()
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert ended.is_set()

    asyncio.run(scenario())


@scenario
async def test_a_newer_call_goes_on_behind_the_write_of_an_older_one(desk: Desk) -> None:
    """The older one must neither free the file nor have it written twice."""
    began, may_end = threading.Event(), threading.Event()

    def wait(point: str) -> None:
        if point == "spool.chunks":
            began.set()
            assert may_end.wait(10)

    old = await desk.uploads.begin("a", header(), 0)
    desk.at_point = wait
    writing = asyncio.create_task(old.take([memoryview(CHUNKS[0])]))
    await asyncio.to_thread(began.wait, 10)
    new = await desk.uploads.begin("a", header(), 0)
    rest = asyncio.create_task(new.take([memoryview(chunk) for chunk in CHUNKS]))
    may_end.set()
    assert await writing == len(CHUNKS[0])
    assert await rest == sum(map(len, CHUNKS[1:]))
    await new.commit()
    assert [bytes(chunk) for chunk in desk.arrived[0].chunks] == CHUNKS


@pytest.mark.parametrize("point", ["spool.create", "spool.head", "spool.chunks", "spool.sync"])
def test_a_round_that_ends_while_a_file_is_written_leaves_nothing(
    tmp_path: Path, point: str
) -> None:
    @scenario
    async def test_it(desk: Desk) -> None:
        began, may_end = threading.Event(), threading.Event()

        def wait(reached: str) -> None:
            if reached == point:
                began.set()
                assert may_end.wait(10)

        desk.at_point = wait
        pushing = asyncio.create_task(desk.push("a", CHUNKS))
        await asyncio.to_thread(began.wait, 10)
        desk.uploads.close(ROUND, "over")
        may_end.set()
        with pytest.raises((Superseded, PeerError)):
            await pushing
        assert (desk.files(), desk.arrived) == ([], [])

    test_it(tmp_path)


@scenario
async def test_what_is_kept_is_what_the_receiver_made_of_a_chunk(desk: Desk) -> None:
    written: list[int] = []
    receiver = FakeReceiver()
    receiver.expanded = lambda chunk: memoryview(bytes(chunk) * 40_000)  # type: ignore[method-assign]
    desk.receivers["a"] = receiver
    receiver.max_chunk_bytes = 40_000 * 106
    append = SpoolFile.append
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            SpoolFile,
            "append",
            lambda file, chunks: (
                written.append(sum(chunk.nbytes for chunk in chunks)),
                append(file, chunks),
            ),
        )
        assert await desk.push("a", CHUNKS) == (6, True)

    (arrived,) = desk.arrived
    assert [bytes(view) for view in arrived.chunks] == [chunk * 40_000 for chunk in CHUNKS]
    # 24 MB of one frame, and never more than 8 MiB and a chunk of it in memory.
    assert len(written) == 2
    assert max(written) < (8 << 20) + 40_000 * 106
