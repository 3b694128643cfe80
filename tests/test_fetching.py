"""What a site fetches beside models: limits, further tries, and when it gives up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from support.serving import run_async
from veilsum.control import RoundId
from veilsum.errors import DecodeError, LedgerError, VeilsumError
from veilsum.model import ModelLayout, result_digest
from veilsum.site.effects import FetchAudit, FetchLinks, FetchModel, FetchSum
from veilsum.site.events import AuditFetched, LinksFetched, SumFetched, SumFetchFailed
from veilsum.transport import client, fetching, site_runner
from veilsum.transport.client import Connection, Refused, Unreachable
from veilsum.transport.fetching import Fetching
from veilsum.transport.logs import Log
from veilsum.transport.outgoing import Outgoing
from veilsum.transport.received_model import IncomingModel
from veilsum.transport.settings import SiteSettings
from veilsum.transport.threads import in_thread
from veilsum.transport.wire_data import encode_model_data, encode_model_header

ROUND = RoundId("run", 1)


class Pieces(Connection):
    """A connection that hands out what it was made with."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = pieces
        self.handed_out = 0

    async def _data(self, *request: Any) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            self.handed_out += 1
            yield piece


def test_a_state_beyond_the_limit_is_refused_before_all_of_it_is_there() -> None:
    async def main() -> None:
        fits = Pieces(b"ab", b"c")
        assert await fits.fetch_state(ROUND, max_bytes=3) == b"abc"
        large = Pieces(*[b"ab"] * 9)
        with pytest.raises(DecodeError, match="state has more than 3 bytes"):
            await large.fetch_state(ROUND, max_bytes=3)
        assert large.handed_out == 2

    run_async(main)


def test_links_are_limited_in_number_and_in_size(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        many = Pieces(*[b"link"] * 9)
        assert await many.fetch_links(ROUND, most=3) == (b"link",) * 3
        assert many.handed_out == 3
        monkeypatch.setattr(client, "LINKS_LIMIT", 8)
        large = Pieces(*[b"link"] * 9)
        # A site that missed two rounds needs two, however far back the coordinator can go.
        assert await large.fetch_links(ROUND, most=5) == (b"link",) * 2
        assert large.handed_out == 3
        assert await Pieces(b"too large").fetch_links(ROUND, most=5) == ()

    run_async(main)


class Receiver:
    """Notes what it is given."""

    def __init__(self, *, complete: bool = False) -> None:
        self.taken: list[bytes] = []
        self.restarts = 0
        self.complete = complete

    def restart(self) -> None:
        self.taken = []
        self.restarts += 1

    def add(self, data: bytes) -> None:
        self.taken.append(data)


DATA = b"abcdef"


class Failing:
    """A connection that hands out a byte at a time, of which each call ends with one of these
    errors after so many bytes, and then with none."""

    def __init__(self, *errors: VeilsumError | tuple[int, VeilsumError]) -> None:
        self.errors = [error if isinstance(error, tuple) else (0, error) for error in errors]
        self.asked: list[str] = []

    def _hand_out(self, offset: int, take: Callable[[bytes], None]) -> None:
        most, error = self.errors.pop(0) if self.errors else (len(DATA), None)
        for byte in DATA[offset : offset + most]:
            take(bytes([byte]))
        if error is not None:
            raise error

    async def fetch_state(self, round_id: RoundId, *, max_bytes: int, so_far: list[bytes]) -> bytes:
        offset = sum(map(len, so_far))
        self.asked.append(f"state up to {max_bytes} from {offset}")
        self._hand_out(offset, so_far.append)
        return b"".join(so_far)

    async def fetch_sum(self, round_id: RoundId, take: Any, *, offset: int) -> None:
        self.asked.append(f"sum from {offset}")
        self._hand_out(offset, take)

    async def fetch_audit(
        self, round_id: RoundId, chunks: Any, *, max_bytes: int, so_far: bytearray
    ) -> bytearray:
        self.asked.append(f"{len(chunks)} chunks up to {max_bytes} from {len(so_far)}")
        self._hand_out(len(so_far), so_far.extend)
        return so_far

    async def fetch_links(self, round_id: RoundId, *, most: int) -> tuple[bytes, ...]:
        self.asked.append("links")
        if self.errors:
            raise self.errors.pop(0)[1]
        return (b"link",)


class NoWait:
    """Seconds between tries."""

    resets = 0

    def delay(self) -> float:
        return 0.0

    def reset(self) -> None:
        NoWait.resets += 1


def _sum(connection: Failing, *, state: bool = False) -> tuple[Any, Receiver]:
    receiver, outcome = Receiver(), []

    async def main() -> None:
        effect = FetchSum(ROUND, receiver, state)  # type: ignore[arg-type]
        fetches = Fetching(100, Log("site"))
        outcome.append(await fetches.sum(effect, connection))  # type: ignore[arg-type]

    run_async(main)
    return outcome[0], receiver


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "Backoff", NoWait)


def test_a_sum_and_its_state_go_on_where_they_broke_off() -> None:
    gone = Unreachable("gone")
    connection = Failing((4, gone), (2, gone), (1, gone), gone, (3, gone))

    event, receiver = _sum(connection, state=True)

    assert event == SumFetched(ROUND, DATA)
    assert b"".join(receiver.taken) == DATA
    assert receiver.restarts == 1
    assert connection.asked == [
        "state up to 500 from 0",
        "state up to 500 from 4",
        "state up to 500 from 6",
        "state up to 500 from 6",
        "state up to 500 from 6",
        "state up to 500 from 6",
        "sum from 0",
    ]


def test_tries_count_only_if_they_bring_nothing() -> None:
    gone = Unreachable("gone")
    NoWait.resets = 0
    slow = Failing(*[item for _ in DATA for item in (*[gone] * 7, (1, gone))])
    event, receiver = _sum(slow)
    assert event == SumFetched(ROUND, None)
    assert b"".join(receiver.taken) == DATA
    assert NoWait.resets == len(DATA)
    assert len(slow.asked) == 8 * len(DATA) + 1


def test_a_sum_that_cannot_be_had_is_given_up() -> None:
    refused, broken = Failing(Refused("no sum for this site")), Failing(*[Unreachable("gone")] * 9)
    wrong = Failing((3, DecodeError("not the sum")))

    assert _sum(refused)[0] == SumFetchFailed(ROUND, "no sum for this site")
    assert _sum(broken)[0] == SumFetchFailed(ROUND, "gone")
    assert _sum(wrong)[0] == SumFetchFailed(ROUND, "not the sum")
    assert (refused.asked, broken.asked, wrong.asked) == (
        ["sum from 0"],
        ["sum from 0"] * 8,
        ["sum from 0"],
    )


def test_an_audit_goes_on_where_it_broke_off() -> None:
    stream = SimpleNamespace(group=1)
    effect = FetchAudit(ROUND, ((stream, 3), (stream, 5)), 100)  # type: ignore[arg-type]
    connection = Failing((2, Unreachable("gone")))

    async def main() -> None:
        found = await Fetching(100, Log("site")).audit(effect, connection)  # type: ignore[arg-type]
        assert found == AuditFetched(ROUND, bytearray(DATA))

    run_async(main)
    assert connection.asked == ["2 chunks up to 100 from 0", "2 chunks up to 100 from 2"]


def test_what_came_over_a_broken_connection_is_gone_on_with_over_the_next() -> None:
    """And a thread that still takes in what came is waited for."""

    class Hanging(Failing):
        began, goes_on = threading.Event(), threading.Event()

        async def fetch_sum(self, round_id: RoundId, take: Any, *, offset: int) -> None:
            self._hand_out(offset, take)

            def last() -> None:
                self.began.set()
                assert self.goes_on.wait(20)
                take(DATA[2:3])

            await in_thread(last)

    receiver = Receiver()
    effect = FetchSum(ROUND, receiver, False)  # type: ignore[arg-type]
    first, second, third = Hanging((2, None)), Failing(), Failing()  # type: ignore[arg-type]

    async def main() -> None:
        fetches = Fetching(100, Log("site"))
        broken = asyncio.create_task(fetches.sum(effect, first))  # type: ignore[arg-type]
        await asyncio.to_thread(first.began.wait, 20)
        broken.cancel()
        again = asyncio.create_task(fetches.sum(effect, second))  # type: ignore[arg-type]
        for _ in range(5):
            await asyncio.sleep(0)
        assert second.asked == []
        first.goes_on.set()
        assert await again == SumFetched(ROUND, None)
        # Once it was fetched nothing is kept of it.
        await fetches.sum(effect, third)  # type: ignore[arg-type]

    run_async(main)
    assert second.asked == ["sum from 3"]
    assert third.asked == ["sum from 0"]
    assert b"".join(receiver.taken) == DATA


def test_what_is_kept_of_one_thing_is_let_go_for_another() -> None:
    receivers = [Receiver(), Receiver()]
    first, second = (FetchSum(ROUND, one, False) for one in receivers)  # type: ignore[arg-type]

    async def main() -> None:
        fetches = Fetching(100, Log("site"))

        async def break_off(effect: FetchSum) -> None:
            connection = Failing((2, LedgerError("full")))
            with pytest.raises(LedgerError):
                await fetches.sum(effect, connection)  # type: ignore[arg-type]

        await break_off(first)
        await break_off(first)  # of the same
        await break_off(second)
        connection = Failing()
        await fetches.sum(first, connection)  # type: ignore[arg-type]
        assert connection.asked == ["sum from 0"]

    run_async(main)
    assert receivers[0].restarts == 2
    assert b"".join(receivers[0].taken) == DATA


def test_a_sum_that_is_all_there_is_not_asked_for_again() -> None:
    """A welcome that comes between the sum and its check has the site ask once more."""
    connection, receiver = Failing(), Receiver(complete=True)
    effect = FetchSum(ROUND, receiver, True)  # type: ignore[arg-type]

    async def main() -> None:
        event = await Fetching(100, Log("site")).sum(effect, connection)  # type: ignore[arg-type]
        assert event == SumFetched(ROUND, DATA)

    run_async(main)
    assert connection.asked == ["state up to 500 from 0"]
    assert receiver.taken == []


def test_what_may_not_leave_is_nobody_elses_fault() -> None:
    with pytest.raises(LedgerError, match="full"):
        _sum(Failing(LedgerError("the disk is full")))


def test_without_links_the_site_has_to_do_without() -> None:
    async def main() -> None:
        fetches, effect = Fetching(100, Log("site")), FetchLinks(ROUND)
        for connection, links in (
            (Failing(Unreachable("gone")), (b"link",)),
            (Failing(Refused("unknown")), ()),
            (Failing(DecodeError("too large")), ()),
        ):
            event = await fetches.links(effect, connection)  # type: ignore[arg-type]
            assert event == LinksFetched(ROUND, links)

    run_async(main)


def test_a_coordinator_that_never_ends_its_models_has_a_site_wait_for_one_only(
    tmp_path: Path,
) -> None:
    """Every invitation to a further round is one of these; what came of each would stay in memory
    until the connection ends."""
    settings = SiteSettings("a", "localhost:1", tmp_path, tmp_path, "a:b", insecure=True)
    waiting: list[int] = []

    async def silence() -> Any:
        await asyncio.Event().wait()
        yield

    async def never(round_id: RoundId, *, max_bytes: int, so_far: Any) -> Any:
        waiting.append(round_id.number)
        try:
            await asyncio.Event().wait()
        finally:
            waiting.remove(round_id.number)

    async def main() -> None:
        outgoing, log = Outgoing(None, Log("site")), Log("site")
        runner = site_runner.SiteRunner(None, None, settings, outgoing, log)  # type: ignore[arg-type]
        connection: Any = SimpleNamespace(fetch_model=never, messages=silence, send=None)
        connected = asyncio.create_task(runner._take_part(connection))
        while runner._line is None:
            await asyncio.sleep(0)
        for number in range(1, 9):
            await runner._carry_out(FetchModel(RoundId("run", number)))
            while number not in waiting:
                await asyncio.sleep(0)
            assert waiting == [number]
        connected.cancel()
        await asyncio.wait((connected,))
        assert waiting == []  # what was under way ends with its connection

    run_async(main)


# --- models ---------------------------------------------------------------------------

MODEL = {"w": np.arange(50, dtype=np.float32), "steps": np.array([4, 6], np.int64)}
LAYOUT = ModelLayout.from_arrays(MODEL)
TENSORS = b"".join(array.tobytes() for array in MODEL.values())
HEADER = encode_model_header(
    LAYOUT.to_bytes(), len(TENSORS), bytes.fromhex(result_digest(LAYOUT, MODEL))
)


async def stream(header: bytes, data: bytes, breaks: bool = False) -> AsyncIterator[bytes]:
    """One answer, seven bytes at a time."""
    yield header
    for begin in range(0, len(data), 7):
        yield encode_model_data([data[begin : begin + 7]])
    if breaks:
        raise Unreachable("gone")


@pytest.mark.parametrize("sizes", [[0], [7], [len(TENSORS)], [0, 0, 14, 21, 70], [7] * 30])
def test_a_model_comes_together_from_what_several_calls_bring(sizes: list[int]) -> None:
    async def main() -> None:
        model = IncomingModel(1000)
        for size in sizes:
            begin = model.held
            with pytest.raises(Unreachable):
                await model.receive(stream(HEADER, TENSORS[begin : begin + size], breaks=True))
            assert model.held == min(len(TENSORS), begin + size)
        layout, arrays = await model.receive(stream(HEADER, TENSORS[model.held :]))
        assert layout == LAYOUT
        for name, array in MODEL.items():
            np.testing.assert_array_equal(arrays[name], array)
            assert not arrays[name].flags.writeable

    run_async(main)


def test_parts_of_two_models_are_none() -> None:
    async def main() -> None:
        async def part() -> IncomingModel:
            model = IncomingModel(1000)
            with pytest.raises(Unreachable):
                await model.receive(stream(HEADER, TENSORS[:70], breaks=True))
            return model

        other = HEADER[:-1] + bytes([HEADER[-1] ^ 1])
        for header, data, match in (
            (other, TENSORS[70:], "another one than at first"),
            (HEADER, TENSORS[71:], "ended after 215 of 216 bytes"),
            (HEADER, TENSORS[69:], "more than the announced 216 bytes"),
            (HEADER, TENSORS[70:-1] + b"x", "not the one that its hash names"),
        ):
            with pytest.raises(DecodeError, match=match):
                await (await part()).receive(stream(header, data))
        with pytest.raises(DecodeError, match="stream is empty"):
            await (await part()).receive(aiter(_nothing()))
        with pytest.raises(DecodeError, match="has 216 bytes, this site accepts 215"):
            await IncomingModel(215).receive(stream(HEADER, TENSORS))

    run_async(main)


async def _nothing() -> AsyncIterator[bytes]:
    for piece in ():
        yield piece
