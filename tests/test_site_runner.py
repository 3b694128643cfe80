"""A site's core over connections that end: what is under way ends with them, the core goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from support.serving import run_async
from veilsum.control import Decline, Goodbye, RoundId, ToCoordinator, ToSite, Welcome
from veilsum.errors import ConfigError, DecodeError, LedgerError
from veilsum.site.effects import FetchModel, SendToCoordinator, SiteEffect
from veilsum.site.events import CoordinatorSent, Disconnected, SiteEvent
from veilsum.transport import site_runner
from veilsum.transport.backoff import Backoff
from veilsum.transport.client import Refused, Replaced, Unreachable
from veilsum.transport.logs import Log
from veilsum.transport.outgoing import Outgoing
from veilsum.transport.site_runner import SiteRunner

ROUND = RoundId("run", 1)
WELCOME = Welcome("test", b"r" * 32, ROUND)
WORDS = SendToCoordinator(Decline(ROUND, "policy", "no"))


class Core:
    """Notes events; answers with what the test scripts."""

    def __init__(self, answer: Callable[[SiteEvent], list[SiteEffect]] = lambda _: []) -> None:
        self.events: asyncio.Queue[SiteEvent] = asyncio.Queue()
        self._answer = answer
        self._loop = asyncio.get_running_loop()

    def handle(self, event: SiteEvent) -> list[SiteEffect]:
        self._loop.call_soon_threadsafe(self.events.put_nowait, event)
        return self._answer(event)

    def close(self) -> None: ...


class Wire:
    """A connection: says its welcome, then what the test makes it say, until it is to end."""

    def __init__(self, end: Exception | None = None, *, takes: bool = True) -> None:
        self.said: asyncio.Queue[ToSite] = asyncio.Queue()
        self.heard: asyncio.Queue[ToCoordinator] = asyncio.Queue()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.fetching = 0
        self.fetches = 0
        self._takes = takes
        self.said.put_nowait(WELCOME)
        if end is not None:
            self.ended.set_exception(end)

    async def __aenter__(self) -> Wire:
        return self

    async def __aexit__(self, *exc_info: object) -> None: ...

    async def messages(self) -> AsyncIterator[ToSite]:
        yield self.said.get_nowait()
        while True:
            saying = asyncio.ensure_future(self.said.get())
            await asyncio.wait((saying, self.ended), return_when=asyncio.FIRST_COMPLETED)
            if not saying.done():
                saying.cancel()
                await self.ended
            yield saying.result()

    async def send(self, message: ToCoordinator) -> None:
        if not self._takes:
            await asyncio.Event().wait()
        self.heard.put_nowait(message)

    async def fetch_model(self, *args: Any, **kwargs: Any) -> Any:
        self.fetching += 1
        self.fetches += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.fetching -= 1


class Served:
    """A runner that serves over the wires of a test, one after the other."""

    def __init__(self, core: Core, *wires: Wire, hold_s: float = 3600.0) -> None:
        settings = SimpleNamespace(
            site="a", coordinator="there", ledger=None, max_model_bytes=1, hold_s=hold_s
        )
        any_core, nothing, log = core, None, Log("site")
        self.runner = SiteRunner(any_core, nothing, settings, Outgoing(None, log), log)  # type: ignore[arg-type]
        self._wires = iter(wires)
        self.task = asyncio.create_task(self.runner.serve(None, self._connect))  # type: ignore[arg-type]

    def _connect(self, endpoint: Any) -> Any:
        del endpoint
        return next(self._wires)

    async def end(self) -> None:
        self.task.cancel()
        await asyncio.wait((self.task,))


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backoff, "delay", lambda self: 0.0)


def test_what_is_under_way_ends_with_its_connection_and_the_core_does_not_hear_of_it() -> None:
    async def main() -> None:
        core = Core(lambda event: [FetchModel(ROUND)])
        first, second = Wire(), Wire()
        served = Served(core, first, second)
        assert await core.events.get() == CoordinatorSent(WELCOME)
        while not first.fetching:
            await asyncio.sleep(0)
        first.ended.set_exception(Unreachable("it broke"))
        assert await core.events.get() == CoordinatorSent(WELCOME)
        while not second.fetching:
            await asyncio.sleep(0)
        assert first.fetching == 0
        await served.end()
        assert second.fetching == 0
        assert core.events.empty()

    run_async(main)


def test_what_the_core_asks_for_twice_on_one_connection_is_fetched_once() -> None:
    async def main() -> None:
        core = Core(lambda event: [FetchModel(ROUND)])
        wire = Wire()
        served = Served(core, wire)
        while not wire.fetching:
            await asyncio.sleep(0)
        for _ in range(2):
            wire.said.put_nowait(WELCOME)
        for _ in range(3):
            await core.events.get()
        assert (wire.fetching, wire.fetches) == (1, 1)
        await served.end()

    run_async(main)


def test_bytes_that_break_the_format_cost_the_round_because_they_would_come_again() -> None:
    async def main() -> None:
        core = Core()
        served = Served(core, Wire(DecodeError("nonsense")), Wire())
        events = [await core.events.get() for _ in range(3)]
        assert events == [CoordinatorSent(WELCOME), Disconnected(), CoordinatorSent(WELCOME)]
        await served.end()

    run_async(main)


@pytest.mark.parametrize("hold_s", [0.0, 3600.0])
def test_a_round_is_held_without_a_connection_for_as_long_as_the_settings_say(
    hold_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Backoff, "delay", lambda self: 0.01)

    async def main() -> None:
        core = Core()
        served = Served(core, Wire(Unreachable("it broke")), Wire(), hold_s=hold_s)
        assert await core.events.get() == CoordinatorSent(WELCOME)
        if not hold_s:
            assert await core.events.get() == Disconnected()
        assert await core.events.get() == CoordinatorSent(WELCOME)
        await served.end()
        assert core.events.empty()

    run_async(main)


def test_a_site_that_is_connected_again_holds_its_round_however_long_that_was_to_be() -> None:
    hold_s = 0.02

    async def main() -> None:
        core = Core()
        served = Served(core, Wire(Unreachable("it broke")), Wire(), hold_s=hold_s)
        for _ in range(2):
            assert await core.events.get() == CoordinatorSent(WELCOME)
        due = asyncio.Event()
        asyncio.get_running_loop().call_later(hold_s, due.set)
        await due.wait()  # timers run in the order they are due, so the site's would have by now
        await served.end()
        assert core.events.empty()

    run_async(main)


def test_a_connection_that_takes_nothing_is_given_up() -> None:
    async def main() -> None:
        core = Core(lambda event: [WORDS] * 300)
        stuck, other = Wire(takes=False), Wire()
        served = Served(core, stuck, other)
        for _ in range(2):
            assert await core.events.get() == CoordinatorSent(WELCOME)
        assert await other.heard.get() == WORDS.message
        assert stuck.heard.empty()
        await served.end()

    run_async(main)


@pytest.mark.parametrize("error", [Refused("another roster"), Replaced("another process")])
def test_who_is_not_let_in_ends_with_the_reason(error: Exception) -> None:
    async def main() -> None:
        served = Served(Core(), Wire(error))
        with pytest.raises(ConfigError, match=f"does not let site 'a' in: {error}"):
            await served.task

    run_async(main)


def test_a_ledger_that_cannot_be_written_ends_the_process_wherever_it_shows() -> None:
    class Full(Wire):
        async def send(self, message: ToCoordinator) -> None:
            raise LedgerError("the disk is full")

        async def fetch_model(self, *args: Any, **kwargs: Any) -> Any:
            raise LedgerError("the disk is full")

    async def main(effect: SiteEffect) -> None:
        served = Served(Core(lambda event: [effect]), Full())
        with pytest.raises(LedgerError, match="the disk is full"):
            await served.task

    for effect in (WORDS, FetchModel(ROUND)):
        run_async(lambda effect=effect: main(effect))


def test_a_core_that_is_wrong_ends_the_process_also_without_a_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Backoff, "delay", lambda self: 0.01)

    def wrong(event: SiteEvent) -> list[SiteEffect]:
        if event == Disconnected():
            raise ConfigError("a person must act")
        return []

    async def main() -> None:
        served = Served(Core(wrong), Wire(Unreachable("it broke")), Wire(), hold_s=0.0)
        with pytest.raises(ConfigError, match="a person must act"):
            await served.task

    run_async(main)


def test_a_site_that_stops_says_so_last_and_does_not_come_back() -> None:
    async def main() -> None:
        core = Core(lambda event: [WORDS])
        wire = Wire()
        served = Served(core, wire)
        assert await wire.heard.get() == WORDS.message
        goodbye = asyncio.create_task(served.runner.say_goodbye())
        assert await wire.heard.get() == Goodbye()
        wire.ended.set_exception(Unreachable("the coordinator hung up"))
        await goodbye
        await served.task  # there is no other wire to connect with

    run_async(main)


def test_a_site_without_a_connection_stops_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_runner, "_GOODBYE_SECONDS", 0.0)

    async def main() -> None:
        core = Core()
        served = Served(core, Wire(takes=False))
        await served.runner.say_goodbye()  # before it is connected
        await served.end()
        served = Served(core, Wire(takes=False))
        await core.events.get()
        await served.runner.say_goodbye()  # to somebody who takes nothing
        await served.end()

    run_async(main)
