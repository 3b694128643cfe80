"""What a site fetches beside models: limits, further tries, and when it gives up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from support.serving import run_async
from veilsum.control import RoundId
from veilsum.errors import DecodeError, LedgerError, VeilsumError
from veilsum.site.effects import FetchLinks, FetchModel, FetchSum
from veilsum.site.events import LinksFetched, SumFetched, SumFetchFailed
from veilsum.transport import client, fetching, site_runner
from veilsum.transport.client import Connection, Refused, Unreachable
from veilsum.transport.fetching import Fetching
from veilsum.transport.logs import Log
from veilsum.transport.outgoing import Outgoing
from veilsum.transport.settings import SiteSettings

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

    def __init__(self) -> None:
        self.taken: list[bytes] = []

    def restart(self) -> None:
        self.taken = []

    def add(self, data: bytes) -> None:
        self.taken.append(data)


class Failing:
    """A connection on which each sum ends with one of these errors, and then with none."""

    def __init__(self, *errors: VeilsumError) -> None:
        self.errors = list(errors)
        self.asked: list[str] = []

    async def fetch_state(self, round_id: RoundId, *, max_bytes: int) -> bytes:
        self.asked.append(f"state up to {max_bytes}")
        return b"state"

    async def fetch_sum(self, round_id: RoundId, take: Any) -> None:
        self.asked.append("sum")
        take(b"first half")
        if self.errors:
            raise self.errors.pop(0)
        take(b"second half")

    async def fetch_links(self, round_id: RoundId, *, most: int) -> tuple[bytes, ...]:
        self.asked.append("links")
        if self.errors:
            raise self.errors.pop(0)
        return (b"link",)


class NoWait:
    """Seconds between tries."""

    def delay(self) -> float:
        return 0.0


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


def test_a_sum_that_breaks_off_is_fetched_anew_and_the_state_only_once() -> None:
    connection = Failing(Unreachable("gone"), Unreachable("gone"))

    event, receiver = _sum(connection, state=True)

    assert event == SumFetched(ROUND, b"state")
    assert receiver.taken == [b"first half", b"second half"]
    assert connection.asked == ["state up to 500", "sum", "sum", "sum"]


def test_a_sum_that_cannot_be_had_is_given_up() -> None:
    refused, broken = Failing(Refused("no sum for this site")), Failing(*[Unreachable("gone")] * 9)

    assert _sum(refused)[0] == SumFetchFailed(ROUND, "no sum for this site")
    assert _sum(broken)[0] == SumFetchFailed(ROUND, "gone")
    assert (refused.asked, broken.asked) == (["sum"], ["sum"] * 4)


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

    async def never(round_id: RoundId, *, max_bytes: int) -> Any:
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
