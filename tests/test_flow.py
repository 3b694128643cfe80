"""From socket to disk: a disk that hangs holds up the sockets, and memory stays as it is."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from support.serving import run_async
from test_uploads import CHUNKS, Desk, header
from veilsum.errors import DecodeError
from veilsum.transport.flow import ByteBudget, Flow, Stalled
from veilsum.transport.incoming import IncomingUpload
from veilsum.transport.uploads import UploadLimits

FRAME = 100


class Frames:
    """A call's frames, which come once the site sends them; counts those that were taken."""

    def __init__(self, *frames: bytes, ends: bool = True) -> None:
        self._frames = list(frames)
        self._ends = ends
        self.taken = 0
        self.sends = asyncio.Event()
        self.sends.set()

    def __aiter__(self) -> Frames:
        return self

    async def __anext__(self) -> bytes:
        await self.sends.wait()
        if not self._frames:
            if self._ends:
                raise StopAsyncIteration
            await asyncio.Event().wait()
        self.taken += 1
        return self._frames.pop(0)


async def settle() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


class Disk:
    """Writes frames once it is let."""

    def __init__(self) -> None:
        self.free = asyncio.Event()
        self.written: list[bytes] = []

    async def write(self, frame: bytes) -> None:
        await self.free.wait()
        self.written.append(frame)


def test_while_the_disk_hangs_no_more_is_read_than_may_be_on_its_way() -> None:
    async def main() -> None:
        flow, disk = Flow(3 * FRAME, 60), Disk()
        calls = [Frames(*[bytes(FRAME)] * 9) for _ in range(10)]
        feeding = [asyncio.create_task(flow.feed(call, disk.write)) for call in calls]
        await settle()
        assert [call.taken for call in calls] == [1] * 3 + [0] * 7
        disk.free.set()
        await asyncio.gather(*feeding)
        assert [call.taken for call in calls] == [9] * 10
        assert len(disk.written) == 90

    run_async(main)


def test_calls_that_were_waiting_for_their_sites_have_one_frame_each_on_top() -> None:
    async def main() -> None:
        flow, disk = Flow(3 * FRAME, 60), Disk()
        calls = [Frames(*[bytes(FRAME)] * 9) for _ in range(5)]
        for call in calls:
            call.sends.clear()
        feeding = [asyncio.create_task(flow.feed(call, disk.write)) for call in calls]
        await settle()
        for call in calls:
            call.sends.set()
        await settle()
        later = Frames(*[bytes(FRAME)] * 9)
        feeding.append(asyncio.create_task(flow.feed(later, disk.write)))
        await settle()
        assert [call.taken for call in (*calls, later)] == [1] * 5 + [0]
        disk.free.set()
        await asyncio.gather(*feeding)
        assert len(disk.written) == 54

    run_async(main)


def test_a_frame_that_is_larger_than_the_budget_goes_alone() -> None:
    async def main() -> None:
        budget, inside = ByteBudget(10), []

        async def hold(size: int, until: asyncio.Event) -> None:
            async with budget.held(size):
                inside.append(size)
                await until.wait()
                inside.remove(size)

        first, second, third = asyncio.Event(), asyncio.Event(), asyncio.Event()
        holding = [
            asyncio.create_task(hold(6, first)),
            asyncio.create_task(hold(100, second)),
            asyncio.create_task(hold(1, third)),
        ]
        await settle()
        assert inside == [6]  # the last one fits, but must not overtake for ever
        first.set()
        await settle()
        assert inside == [100]
        second.set()
        await settle()
        assert inside == [1]
        third.set()
        await asyncio.gather(*holding)

    run_async(main)


def test_a_call_that_ends_while_it_waits_takes_nothing_with_it() -> None:
    async def main() -> None:
        flow, disk = Flow(FRAME, 60), Disk()
        feeding = [
            asyncio.create_task(flow.feed(Frames(*[bytes(FRAME)] * 3), disk.write))
            for _ in range(4)
        ]
        await settle()
        for task in feeding[:3]:  # one that writes and two that wait
            task.cancel()
        await settle()
        disk.free.set()
        await feeding[3]
        assert len(disk.written) == 3

    run_async(main)


def test_a_frame_that_is_refused_gives_its_room_back() -> None:
    async def main() -> None:
        flow = Flow(FRAME, 60)

        async def refuse(frame: bytes) -> None:
            raise DecodeError("no frame")

        for _ in range(3):
            with pytest.raises(DecodeError):
                await flow.feed(Frames(bytes(FRAME)), refuse)

    run_async(main)


def test_no_frame_is_kept_while_the_next_is_awaited() -> None:
    async def main() -> None:
        kept: list[int] = []

        async def frames() -> AsyncIterator[bytes]:
            for number in range(3):
                frame = bytes([number]) * FRAME
                yield frame
                kept.append(sys.getrefcount(frame) - 2)  # ours, and the call's own

        async def write(frame: bytes) -> None:
            await asyncio.sleep(0)

        await Flow(FRAME, 60).feed(frames(), write)
        assert kept == [0, 0, 0]

    run_async(main)


def test_a_call_on_which_nothing_comes_ends_and_the_others_go_on() -> None:
    async def main() -> None:
        flow, disk = Flow(10 * FRAME, 0.05), Disk()
        disk.free.set()
        silent, lively = Frames(b"one", ends=False), Frames(*[b"two"] * 9)
        ended = asyncio.create_task(flow.feed(silent, disk.write))
        await flow.feed(lively, disk.write)
        with pytest.raises(Stalled, match=r"nothing came for 0\.05 seconds"):
            await ended
        assert disk.written.count(b"one") == 1
        assert disk.written.count(b"two") == 9

    run_async(main)


def test_a_disk_that_hangs_is_not_a_site_that_says_nothing() -> None:
    async def main() -> None:
        flow, disk = Flow(FRAME, 0.01), Disk()
        feeding = [
            asyncio.create_task(flow.feed(Frames(*[bytes(FRAME)] * 2), disk.write))
            for _ in range(2)
        ]
        done, _ = await asyncio.wait(feeding, timeout=0.1)
        assert not done
        disk.free.set()
        await asyncio.gather(*feeding)

    run_async(main)


def test_a_file_that_cannot_be_written_now_stops_the_reading_of_its_calls(tmp_path: Path) -> None:
    """All the way to the file, whose write hangs in its thread."""
    hangs, goes_on = threading.Event(), threading.Event()

    def point(name: str) -> None:
        if name == "spool.chunks":
            hangs.set()
            assert goes_on.wait(20)

    async def push(desk: Desk, site: str, frames: Frames) -> None:
        upload: IncomingUpload = await desk.uploads.begin(site, header(), 0)

        async def take(frame: bytes) -> None:
            await upload.take([memoryview(frame)])

        await desk.uploads.flow.feed(frames, take)
        await upload.commit()

    async def main() -> None:
        desk = Desk(tmp_path, UploadLimits(inflight_bytes=1))
        desk.at_point = point
        calls = {site: Frames(*CHUNKS) for site in ("a", "b")}
        pushing = [asyncio.create_task(push(desk, *call)) for call in calls.items()]
        await asyncio.to_thread(hangs.wait, 20)
        await settle()
        assert sorted(call.taken for call in calls.values()) in ([0, 1], [1, 1])
        goes_on.set()
        await asyncio.gather(*pushing)
        assert [call.taken for call in calls.values()] == [6, 6]
        for event in desk.arrived:
            assert [bytes(chunk) for chunk in event.chunks] == CHUNKS

    run_async(main)
