"""Which sites are there: streams that break, processes that come back, and what they are sent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from veilsum.control import (
    ProtocolMessage,
    RoundClosed,
    RoundId,
    RoundOpened,
    RunClosed,
    SiteDropped,
    TaskSettings,
    ToSite,
    Welcome,
)
from veilsum.coordinator.events import SiteJoined, SiteLeft
from veilsum.transport.links import REPLACED, STOPPED, STUCK, Link, Links
from veilsum.transport.outbox import Outbox
from veilsum.transport.wire import decode_to_site

ONE, OTHER = b"1" * 16, b"2" * 16
ROUND, NEXT = RoundId("run", 1), RoundId("run", 2)
WELCOME = Welcome("test", b"r" * 32)
LONG, SOON = 3600.0, 0.001


def opened(round_id: RoundId = ROUND) -> RoundOpened:
    return RoundOpened(round_id, "task", TaskSettings(), b"signed", None)


def said(text: bytes, round_id: RoundId = ROUND) -> ProtocolMessage:
    return ProtocolMessage(round_id, text)


CLOSED = RoundClosed(ROUND, True, "", "ab" * 32)
DROPPED = SiteDropped(ROUND, "too late")
DROPPED_NEXT = SiteDropped(NEXT, "too late")
ENDED = RunClosed("run", True, "")


class Bench:
    """Links, and a queue of what they post."""

    def __init__(self, reconnect_s: float = LONG) -> None:
        self.posted: asyncio.Queue[SiteJoined | SiteLeft] = asyncio.Queue()
        self.links = Links(reconnect_s)
        self.links.tell(self.posted.put_nowait)

    def attach(self, instance: bytes = ONE, site: str = "a") -> Link:
        return self.links.attach(site, instance, WELCOME)

    def news(self) -> list[SiteJoined | SiteLeft]:
        return [self.posted.get_nowait() for _ in range(self.posted.qsize())]

    def cut(self, link: Link, reason: str = "the connection broke") -> None:
        link.close(reason)
        self.links.detach(link)


def within_a_loop(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(main(), 20)

    asyncio.run(bounded())


async def written(link: Link) -> list[ToSite]:
    """All that is written to a stream; ends it."""
    link.close("the test has read enough")
    return [decode_to_site(message) async for message in link.messages()]


# --- the outbox -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "round_id", "kept"),
    [
        ([], None, []),
        ([said(b"1"), ENDED], None, []),
        ([said(b"1"), CLOSED, ENDED], ROUND, [CLOSED, ENDED]),
        ([opened(), said(b"1"), said(b"2")], ROUND, [opened(), said(b"1"), said(b"2")]),
        ([opened(), said(b"1", NEXT)], ROUND, [opened()]),
        ([opened(), said(b"1"), opened(NEXT)], NEXT, [opened(NEXT)]),
        ([opened(), said(b"1"), CLOSED, ENDED], ROUND, [CLOSED, ENDED]),
        ([opened(), CLOSED, opened(NEXT), said(b"1")], NEXT, [CLOSED, opened(NEXT)]),
        ([opened(), CLOSED, opened(NEXT), DROPPED_NEXT], NEXT, [DROPPED_NEXT]),
        ([opened(), DROPPED, said(b"late"), CLOSED], ROUND, [DROPPED, CLOSED]),
        ([opened(NEXT), CLOSED, DROPPED], NEXT, [opened(NEXT)]),
        ([opened(), RunClosed("another", True, "")], ROUND, [opened()]),
        ([opened(), WELCOME], ROUND, [opened()]),
    ],
)
def test_an_outbox_keeps_the_current_round_or_how_it_ended(
    sent: list[ToSite], round_id: RoundId | None, kept: list[ToSite]
) -> None:
    outbox = Outbox()
    for message in sent:
        outbox.file(message)
    assert (outbox.round, list(outbox.messages)) == (round_id, kept)
    outbox.clear()
    assert (outbox.round, outbox.messages) == (None, ())


# --- who is there ---------------------------------------------------------------------


def test_a_process_that_is_back_in_time_was_never_gone_and_is_sent_its_round_again() -> None:
    async def main() -> None:
        bench = Bench()
        first = bench.attach()
        bench.links.send("a", opened())
        bench.links.send("a", said(b"1"))
        bench.cut(first)
        assert len(bench.links) == 0
        bench.links.send("a", said(b"2"))  # while it is away
        second = bench.attach()
        bench.links.send("a", said(b"3"))
        assert len(bench.links) == 1
        assert bench.news() == [SiteJoined("a", ONE)]
        again = [Welcome("test", b"r" * 32, ROUND), opened(), *map(said, (b"1", b"2", b"3"))]
        assert await written(second) == again
        assert await written(first) == [WELCOME, opened(), said(b"1")]

    within_a_loop(main)


def test_a_site_that_noticed_first_that_its_stream_is_broken_is_not_away_when_it_ends() -> None:
    async def main() -> None:
        bench = Bench(SOON)
        first = bench.attach()
        second = bench.attach()
        assert first.closed
        assert first.closed != REPLACED
        bench.links.detach(first)
        assert len(bench.links) == 1
        bench.cut(second)
        assert isinstance(await bench.posted.get(), SiteJoined)
        assert isinstance(await bench.posted.get(), SiteLeft)  # once, and not of the first stream
        assert bench.news() == []

    within_a_loop(main)


def test_a_site_that_is_away_too_long_has_left_and_joins_anew() -> None:
    async def main() -> None:
        bench = Bench(SOON)
        link = bench.attach()
        bench.links.send("a", opened())
        bench.cut(link)
        assert await bench.posted.get() == SiteJoined("a", ONE)
        reason = "the connection broke, and it was not back within 0.001 s"
        assert await bench.posted.get() == SiteLeft("a", reason)
        bench.links.send("a", said(b"late"))
        assert await written(bench.attach()) == [WELCOME]
        assert bench.news() == [SiteJoined("a", ONE)]

    within_a_loop(main)


def test_without_any_patience_a_stream_that_breaks_is_a_site_that_left() -> None:
    async def main() -> None:
        bench = Bench(0.0)
        bench.cut(bench.attach(), STUCK)
        assert bench.news() == [SiteJoined("a", ONE), SiteLeft("a", STUCK)]

    within_a_loop(main)


def test_a_process_that_says_goodbye_is_not_waited_for() -> None:
    async def main() -> None:
        bench = Bench()
        bench.cut(bench.attach(), STOPPED)
        assert bench.news() == [SiteJoined("a", ONE), SiteLeft("a", STOPPED)]

    within_a_loop(main)


@pytest.mark.parametrize("away", [False, True])
def test_a_site_that_is_dismissed_has_left_for_good(away: bool) -> None:
    async def main() -> None:
        bench = Bench()
        link = bench.attach()
        if away:
            bench.cut(link)
        bench.links.dismiss("a", "its certificate was revoked")
        bench.links.dismiss("b", "was never there")
        assert link.closed
        bench.links.detach(link)
        assert bench.news() == [
            SiteJoined("a", ONE),
            SiteLeft("a", "its certificate was revoked"),
        ]

    within_a_loop(main)


@pytest.mark.parametrize("away", [False, True])
def test_another_process_takes_the_place_of_the_first_which_does_not_come_back(away: bool) -> None:
    async def main() -> None:
        bench = Bench()
        first = bench.attach()
        bench.links.send("a", opened())
        if away:
            bench.cut(first)
        second = bench.attach(OTHER)
        assert first.closed == ("the connection broke" if away else REPLACED)
        assert bench.news() == [SiteJoined("a", ONE), SiteJoined("a", OTHER)]
        assert bench.links.was_replaced("a", ONE)
        assert not bench.links.was_replaced("a", OTHER)
        assert not bench.links.was_replaced("b", ONE)
        bench.links.detach(first)  # the older stream ends only now
        assert len(bench.links) == 1
        assert bench.news() == []
        assert await written(second) == [WELCOME]  # nothing of what the first was sent

    within_a_loop(main)


def test_after_a_restart_who_was_there_is_away_and_finds_its_round() -> None:
    async def main() -> None:
        bench = Bench()
        bench.links.send("a", opened())
        bench.links.expect("a", ONE)
        bench.links.send("a", said(b"1"))
        bench.links.expect("b", OTHER)
        again = [Welcome("test", b"r" * 32, ROUND), opened(), said(b"1")]
        assert await written(bench.attach()) == again
        assert bench.news() == []
        bench.attach(ONE, "b")  # another process of this one
        assert bench.news() == [SiteJoined("b", ONE)]

    within_a_loop(main)


def test_after_a_restart_who_does_not_come_back_has_left() -> None:
    async def main() -> None:
        bench = Bench(SOON)
        bench.links.expect("a", ONE)
        reason = "the coordinator started again, and it was not back within 0.001 s"
        assert await bench.posted.get() == SiteLeft("a", reason)

    within_a_loop(main)


@pytest.mark.parametrize("reconnect_s", [0.0, SOON])
def test_when_the_coordinator_stops_nobody_has_left(reconnect_s: float) -> None:
    async def main() -> None:
        bench = Bench(reconnect_s)
        connected, away = bench.attach(), bench.attach(ONE, "b")
        if reconnect_s:
            bench.cut(away)
        bench.links.close_all("the coordinator is stopping")
        assert connected.closed == "the coordinator is stopping"
        bench.links.detach(connected)
        bench.news()
        due = asyncio.Event()
        asyncio.get_running_loop().call_later(SOON, due.set)
        await due.wait()  # timers run in the order they are due, so one of ours would have by now
        assert bench.news() == []

    within_a_loop(main)


def test_who_does_not_read_is_cut_off_but_not_by_what_is_repeated() -> None:
    async def main() -> None:
        bench = Bench()
        link = bench.attach()
        bench.links.send("a", opened())
        for number in range(300):
            bench.links.send("a", said(b"%d" % number))
        assert link.closed == STUCK
        bench.links.detach(link)
        again = bench.attach()
        assert again.closed is None
        assert len(await written(again)) == 302

    within_a_loop(main)
