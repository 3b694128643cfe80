"""Uploads: resumed, repeated, interrupted, refused, and freed; one site never harms another."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, cast

import pytest

from veilsum.control import RoundId, UpdateHeader
from veilsum.coordinator.events import UpdateArrived
from veilsum.errors import DecodeError, PeerError
from veilsum.transport import uploads as uploads_module
from veilsum.transport.uploads import Superseded, Uploads

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

    def __init__(self, spool: Path) -> None:
        self.spool = spool
        self.receivers: dict[str, FakeReceiver] = {}
        self.arrived: list[UpdateArrived] = []
        self.refusal: str | None = None
        self.answer_at_once = True
        self.uploads = Uploads(spool, self._check, self._deliver)
        self.uploads.open(ROUND, ["a", "b"])

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
async def test_a_whole_update_arrives_as_views_and_its_file_is_freed(desk: Desk) -> None:
    assert await desk.push("a", CHUNKS) == (6, True)
    (event,) = desk.arrived
    assert event.site == "a"
    assert [bytes(chunk) for chunk in event.chunks] == CHUNKS
    assert all(chunk.readonly for chunk in event.chunks)
    assert desk.files() == []
    assert desk.receivers["a"].finished == 1


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
    assert desk.files() == []


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
    assert desk.files() == []
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
async def test_closing_a_round_ends_its_uploads_and_frees_the_spool(desk: Desk) -> None:
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
    assert desk.files() == []
    # What was handed to the core stays readable although its file has no name any more.
    assert [bytes(chunk) for chunk in desk.arrived[0].chunks] == CHUNKS


@scenario
async def test_a_failed_write_is_made_good_by_sending_again(desk: Desk) -> None:
    upload = await desk.uploads.begin("a", header(), 0)
    desk.spool.rmdir()  # the disk fails
    with pytest.raises(FileNotFoundError):
        await upload.take([memoryview(CHUNKS[0])])
    desk.spool.mkdir()
    assert desk.uploads.status("a", ROUND, 1) == (0, False)
    assert await desk.push("a", CHUNKS) == (6, True)
    assert [bytes(chunk) for chunk in desk.arrived[0].chunks] == CHUNKS


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

    def work(*_: object) -> int:
        began.set()
        may_end.wait(10)
        ended.set()
        return 0

    async def scenario() -> None:
        call = asyncio.create_task(uploads_module._to_its_end(work, cast(Any, None), (), 0))
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
async def test_what_is_kept_is_what_the_receiver_made_of_a_chunk(desk: Desk) -> None:
    written: list[int] = []
    receiver = FakeReceiver()
    receiver.expanded = lambda chunk: memoryview(bytes(chunk) * 40_000)  # type: ignore[method-assign]
    desk.receivers["a"] = receiver
    append = uploads_module._append
    uploads_module._append = lambda upload, chunks: (  # type: ignore[assignment]
        written.append(sum(chunk.nbytes for chunk in chunks)),
        append(upload, chunks),
    )
    try:
        assert await desk.push("a", CHUNKS) == (6, True)
    finally:
        uploads_module._append = append

    (arrived,) = desk.arrived
    assert [bytes(view) for view in arrived.chunks] == [chunk * 40_000 for chunk in CHUNKS]
    # 24 MB of one frame, and never more than 8 MiB and a chunk of it in memory.
    assert len(written) == 2
    assert max(written) < (8 << 20) + 40_000 * 106
