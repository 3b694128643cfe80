"""A watcher that loses the coordinator goes on where it was: nothing is lost or comes twice."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from support.consortium import Consortium, make_consortium
from support.pushing import MODEL_BYTES, endpoint, opened, update
from support.serving import operating, run_async, serving
from support.stored import store_event, store_run
from veilsum.control import RunEvent, RunSpec, RunStatus
from veilsum.errors import DecodeError, VeilsumError
from veilsum.transport import operator as operator_module
from veilsum.transport import wire_requests
from veilsum.transport.client import Connection
from veilsum.transport.drain import Orders
from veilsum.transport.operator import CoordinatorUnreachable, OperatorClient
from veilsum.transport.settings import OperatorSettings
from veilsum.transport.storage import Storage
from veilsum.transport.watchers import Watchers

RUN = RunStatus("run-1", RunSpec("task"), "running", "", 1, "keys", (), ())
EVENTS = [
    RunEvent("run-1", "phase", 1, phase="keys"),
    RunEvent("run-1", "site", 1, site="a", detail="delivered"),
    RunEvent("run-1", "round", 1, digest="ab"),
    RunEvent("run-1", "run", 1, detail="completed"),
]
UNANSWERED = CoordinatorUnreachable("nobody is there")


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Consortium:
    return make_consortium(tmp_path_factory.mktemp("consortium"), ["a", "b", "c"])


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Storage]:
    storage = Storage(tmp_path / "state")
    yield storage
    storage.close()


# --- the coordinator's side -----------------------------------------------------------


def test_events_are_numbered_and_progress_is_not(storage: Storage) -> None:
    async def main() -> None:
        watchers = Watchers(storage)
        watching = watchers.watch("run-1")
        first = asyncio.ensure_future(anext(watching))
        await asyncio.sleep(0)
        for event in (EVENTS[0], RunEvent("run-1", "progress", fraction=0.5), *EVENTS[1:]):
            kept = event.kind != "progress"
            watchers.tell(event, store_event(storage, event) if kept else 0)
        seen = [await first, *[event async for event in watching]]

        numbers = [event.number for event in seen if event.kind != "progress"]
        assert numbers == sorted(set(numbers))
        assert 0 not in numbers
        assert [replace(event, number=0) for event in seen if event.number] == EVENTS

    run_async(main)


def test_a_watcher_gets_what_came_after_the_event_that_it_names(storage: Storage) -> None:
    numbers = [store_event(storage, event) for event in EVENTS]

    async def main() -> None:
        for known in range(len(EVENTS)):
            after = numbers[known]
            seen = [e async for e in Watchers(storage).watch("run-1", after=after, over=True)]
            expected = zip(EVENTS[known + 1 :], numbers[known + 1 :], strict=True)
            assert seen == [replace(event, number=number) for event, number in expected]

    run_async(main)


def test_the_number_of_an_event_is_asked_for_over_grpc(
    consortium: Consortium, tmp_path: Path
) -> None:
    settings = consortium.coordinator_settings(tmp_path / "state")
    storage = Storage(settings.state_dir)
    store_run(storage, replace(RUN, state="completed"))
    numbers = [store_event(storage, event) for event in EVENTS]
    storage.close()

    async def main() -> None:
        async with serving(settings) as port, operating(consortium, port) as operator:
            everything = await asyncio.to_thread(lambda: list(operator.watch("run-1")))
            rest = await asyncio.to_thread(lambda: list(operator.watch("run-1", after=numbers[1])))
            nothing = await asyncio.to_thread(
                lambda: list(operator.watch("run-1", after=numbers[-1]))
            )
            assert [event.number for event in everything] == numbers
            assert rest == everything[2:]
            assert nothing == []

    run_async(main)


def test_a_number_that_cannot_be_is_refused() -> None:
    assert wire_requests.decode_watch(wire_requests.encode_watch("r", 7)) == ("r", 7)
    with pytest.raises(DecodeError, match="after must be 0 to"):
        wire_requests.decode_watch(wire_requests.encode_watch("r", 2**63))


def test_a_run_is_followed_across_a_restart_of_its_coordinator(
    consortium: Consortium, tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = consortium.coordinator_settings(
        tmp_path / "state", listen=f"127.0.0.1:{port}", reconnect_s=3600.0
    )
    spec = RunSpec("tiny", rounds=2, masked=False, min_sites=1, cohort=("a",))
    site = endpoint(consortium, "a", port)
    seen: list[RunEvent] = []

    def follow(client: OperatorClient, run_id: str) -> None:
        for event in client.follow(run_id, patience_s=60, lost=lambda error: None):
            seen.append(event)

    async def main() -> None:
        async with operating(consortium, port) as operator:
            async with serving(settings, at_once()):
                run = await asyncio.to_thread(operator.submit, spec, MODEL_BYTES)
                following = asyncio.create_task(asyncio.to_thread(follow, operator, run.run_id))
                async with Connection(site) as connection:
                    await connection.push_update(*update(await opened(connection, 1), "a"))
                    invited = await opened(connection, 2)
            async with serving(settings, at_once()), Connection(site) as connection:
                await connection.push_update(*update(invited, "a"))
                await following
        storage = Storage(settings.state_dir)
        kept = storage.events(run.run_id)
        storage.close()
        numbered = [event for event in seen if event.number]
        assert numbered == [replace(event, number=number) for number, event in kept]
        assert numbered[-1].detail == "completed"

    run_async(main)


def at_once() -> Orders:
    orders = Orders()
    orders.at_once.set()
    return orders


# --- the watcher's side ---------------------------------------------------------------


class Breaking(OperatorClient):
    """A client whose stream breaks after so many events, each time it is opened."""

    def __init__(self, breaks: list[int]) -> None:
        super().__init__(OperatorSettings("127.0.0.1:1", insecure=True, consortium="test"))
        self.breaks = breaks
        self.asked: list[int] = []

    def watch(self, run_id: str, *, after: int = 0) -> Iterator[RunEvent]:
        self.asked.append(after)
        numbered = [replace(event, number=n) for n, event in enumerate(EVENTS, 10)]
        left = [event for event in numbered if event.number > after]
        if not self.breaks:
            yield from left
            return
        yield from left[: self.breaks.pop(0)]
        raise UNANSWERED


def test_following_goes_on_after_the_last_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator_module.time, "sleep", lambda seconds: None)
    told: list[VeilsumError] = []

    with Breaking([2, 0, 1]) as client:
        seen = list(client.follow("run-1", patience_s=60, lost=told.append))

    assert [event.number for event in seen] == [10, 11, 12, 13]
    assert client.asked == [0, 11, 11, 12]
    assert told == [UNANSWERED] * 3


def test_following_gives_up_when_nobody_answered_for_so_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [1000.0]

    def sleep(seconds: float) -> None:
        now[0] += 20

    monkeypatch.setattr(operator_module.time, "sleep", sleep)
    monkeypatch.setattr(operator_module.time, "monotonic", lambda: now[0])

    with Breaking([0, 0, 1, *[0] * 1000]) as client, pytest.raises(CoordinatorUnreachable):
        list(client.follow("run-1", patience_s=60, lost=lambda error: None))

    assert now[0] == 1100  # the last answer came at 1040
