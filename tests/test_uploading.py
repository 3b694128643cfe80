"""How a site pushes its update: the same bytes, from where they are missing, until they count."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, ClassVar

import pytest

from support.serving import run_async
from veilsum.control import RoundId, UpdateHeader
from veilsum.errors import LedgerError, VeilsumError
from veilsum.site.effects import Upload
from veilsum.site.events import UploadDone, UploadRefused
from veilsum.transport import uploading
from veilsum.transport.client import Refused, Unreachable
from veilsum.transport.logs import Log
from veilsum.transport.outgoing import Outgoing
from veilsum.transport.uploading import Uploading

ROUND = RoundId("run", 1)
CHUNKS = [b"0", b"1", b"2", b"3"]
EFFECT = Upload(UpdateHeader(ROUND, 1, len(CHUNKS), 10, {}, b""), CHUNKS)


class Coordinator:
    """Holds what it is sent. Each call takes from `script`: an error that ends it after so many
    chunks, or a number of chunks after which it ends well."""

    def __init__(self, *script: tuple[int, VeilsumError | None]) -> None:
        self.script = list(script)
        self.held: list[bytes] = []
        self.counts = False
        self.asked: list[str] = []
        self.status_errors: list[VeilsumError] = []

    async def push_update(
        self, header: UpdateHeader, chunks: Sequence[Any], *, first_chunk: int = 0
    ) -> bool:
        self.asked.append(f"push from {first_chunk}")
        most, error = self.script.pop(0) if self.script else (len(chunks), None)
        assert first_chunk <= len(self.held)
        for number in range(first_chunk, min(len(chunks), first_chunk + most)):
            if number == len(self.held):
                self.held.append(bytes(chunks[number]))
            assert self.held[number] == chunks[number]
        self.counts = len(self.held) == len(chunks) and not isinstance(error, Refused)
        if error is not None:
            raise error
        return self.counts

    async def push_status(self, round_id: RoundId, update_id: int) -> tuple[int, bool]:
        self.asked.append("status")
        if self.status_errors:
            raise self.status_errors.pop(0)
        return len(self.held), self.counts


class Delays:
    """Notes that it was asked, and when it began anew."""

    said: ClassVar[list[str]] = []

    def delay(self) -> float:
        self.said.append("wait")
        return 0.0

    def reset(self) -> None:
        self.said.append("anew")


@pytest.fixture(autouse=True)
def delays(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    Delays.said = []
    monkeypatch.setattr(uploading, "Backoff", Delays)
    return Delays.said


def upload(*connections: Coordinator, cancel_first: bool = False) -> list[Any]:
    outcomes: list[Any] = []

    async def main() -> None:
        one = Uploading(Outgoing(None, Log("site")), Log("site"))
        for connection in connections:
            outcomes.append(await one.upload(EFFECT, connection))  # type: ignore[arg-type]

    run_async(main)
    return outcomes


def test_an_update_that_goes_through_at_once_asks_nothing() -> None:
    coordinator = Coordinator()
    assert upload(coordinator) == [UploadDone(ROUND)]
    assert coordinator.asked == ["push from 0"]


def test_what_broke_off_goes_on_from_what_is_held(delays: list[str]) -> None:
    coordinator = Coordinator((2, Unreachable("gone")), (1, Unreachable("gone")))
    coordinator.status_errors = []
    assert upload(coordinator) == [UploadDone(ROUND)]
    assert coordinator.held == CHUNKS
    assert coordinator.asked == ["push from 0", "status", "push from 2", "status", "push from 3"]
    # It waits before each further try; as long as it gets on, no longer than the first time.
    assert delays == ["wait", "anew", "wait", "anew"]


def test_tries_that_get_on_by_nothing_are_further_and_further_apart(delays: list[str]) -> None:
    coordinator = Coordinator(*[(0, Unreachable("the disk is full"))] * 3, (1, None))
    coordinator.status_errors = [Unreachable("gone")]
    assert upload(coordinator) == [UploadDone(ROUND)]
    assert delays == ["wait"] * 5 + ["anew"]


def test_a_coordinator_that_lost_chunks_gets_them_again() -> None:
    coordinator = Coordinator((3, Unreachable("gone")))

    async def forgetful(*_: Any) -> tuple[int, bool]:
        coordinator.held = coordinator.held[:1]
        return 1, False

    coordinator.push_status = forgetful  # type: ignore[method-assign]
    assert upload(coordinator) == [UploadDone(ROUND)]
    assert coordinator.held == CHUNKS
    assert coordinator.asked == ["push from 0", "push from 1"]


def test_an_update_whose_answer_was_lost_is_not_sent_again() -> None:
    coordinator = Coordinator((4, Unreachable("gone")))
    assert upload(coordinator) == [UploadDone(ROUND)]
    assert coordinator.asked == ["push from 0", "status"]


@pytest.mark.parametrize("at", ["push", "status"])
def test_a_refusal_is_the_end(at: str) -> None:
    refused = Refused("was dropped")
    coordinator = Coordinator((1, refused if at == "push" else Unreachable("gone")))
    coordinator.status_errors = [refused]
    assert upload(coordinator) == [UploadRefused(ROUND, "was dropped")]


def test_what_may_not_leave_ends_the_site() -> None:
    with pytest.raises(LedgerError, match="full"):
        upload(Coordinator((1, LedgerError("the disk is full"))))


def test_with_the_next_connection_it_goes_on_where_the_last_one_broke_off() -> None:
    """The coordinator was restarted, maybe at another address: the connection is another one."""
    began = asyncio.Event()
    coordinator = Coordinator()

    class Broken(Coordinator):
        async def push_update(self, *arguments: Any, **options: Any) -> bool:
            coordinator.held = CHUNKS[:2]
            began.set()
            await asyncio.Event().wait()
            return False

    async def main() -> None:
        one = Uploading(Outgoing(None, Log("site")), Log("site"))
        first = asyncio.create_task(one.upload(EFFECT, Broken()))  # type: ignore[arg-type]
        await began.wait()
        first.cancel()
        await asyncio.wait((first,))
        assert await one.upload(EFFECT, coordinator) == UploadDone(ROUND)  # type: ignore[arg-type]

    run_async(main)
    assert coordinator.asked == ["status", "push from 2"]
    assert coordinator.held == CHUNKS


def test_another_update_begins_at_its_beginning() -> None:
    coordinator, other = Coordinator(), Coordinator()
    assert upload(coordinator) == [UploadDone(ROUND)]
    effect = Upload(UpdateHeader(RoundId("run", 2), 2, 4, 10, {}, b""), CHUNKS)

    async def main() -> None:
        one = Uploading(Outgoing(None, Log("site")), Log("site"))
        await one.upload(EFFECT, other)  # type: ignore[arg-type]
        other.held, other.counts, other.asked = [], False, []
        await one.upload(effect, other)  # type: ignore[arg-type]

    run_async(main)
    assert other.asked == ["push from 0"]
