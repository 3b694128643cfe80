"""Rounds over gRPC in which a site's connection breaks: at every phase, for long, and for good."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typing_extensions import Buffer

from support.consortium import Consortium, make_consortium
from support.proxy import Proxy
from support.serving import operating, run_async, serving
from veilsum.control import (
    Deadlines,
    ProtocolMessage,
    RoundId,
    RunSpec,
    RunStatus,
    TaskSettings,
    ToCoordinator,
    UpdateHeader,
)
from veilsum.model import ModelLayout, result_digest
from veilsum.secagg import LocalPolicy
from veilsum.secagg.messages import kind_of_message
from veilsum.secagg.receipt import check_receipt
from veilsum.site.bounds import TaskBounds
from veilsum.site.trainer import Arrays, EvaluationResult, Report, TrainingResult
from veilsum.transport import endpoint, site_runner
from veilsum.transport.checkpoints import model_to_bytes
from veilsum.transport.client import Connection
from veilsum.transport.endpoint import Endpoint
from veilsum.transport.operator import OperatorClient
from veilsum.transport.settings import CoordinatorSettings
from veilsum.transport.site_app import serve_site

SITES = ("a", "b", "c", "d")
VICTIM = "d"
# Some hundred kilobytes, so that a model and an update can break off in the middle.
MODEL = {"w": (np.arange(60_000) % 7).astype(np.float32)}
LAYOUT = ModelLayout.from_arrays(MODEL)
# Far longer than a test may take: whatever waits for one of them shows.
DEADLINES = Deadlines(*[500.0] * 7, cooldown_s=0.1)
# 2**14 steps to one, so that 1 is a step. The clip itself is none: it lies a little below one.
MASKED = RunSpec("task", min_sites=4, weight_cap=10, clip=(2**15 - 1) / 2**14, deadlines=DEADLINES)
PLAIN = replace(MASKED, masked=False)

KINDS = ("key-advert", "share-deal", "survivor-vote", "unmask-shares", "result-ack")
MIDDLE = 100_000  # bytes, of a model, an update or a sum


class EvenTrainer:
    """Adds 1, 0 or -1 to each value, which is encoded without rounding: so every run of the same
    task comes to the same digest."""

    def __init__(self, number: int) -> None:
        self._number = number
        self.fitted = 0

    def fit(self, model: Arrays, task: TaskSettings, report: Report) -> TrainingResult:
        del task
        self.fitted += 1
        report(0.5)
        steps = np.random.default_rng(self._number).integers(-1, 2, len(model["w"]))
        return TrainingResult({"w": model["w"] + steps.astype(np.float32)}, 10)

    def evaluate(self, model: Arrays, task: TaskSettings) -> EvaluationResult:
        del model, task
        return EvaluationResult()


@dataclass
class Knife:
    """Cuts a site's network when the site comes to a point.

    Attributes:
        point: "before KIND", "behind KIND", "model", "update" or "sum"; "": never.
        cut: what is done there.
        said: all that the site has sent, by round and kind.
    """

    proxy: Proxy
    point: str = ""
    cut: Callable[[], None] = field(default=lambda: None)
    said: defaultdict[tuple[RoundId, str], list[bytes]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def __post_init__(self) -> None:
        self.cut = self.proxy.cut

    def assert_never_said_otherwise(self) -> None:
        """Whatever the site sent more than once was always the same bytes."""
        assert self.said
        for what, messages in self.said.items():
            assert len(set(messages)) == 1, what

    def at(self, point: str, do: Callable[[], None]) -> None:
        """The site has come here."""
        if point == self.point:
            self.point = ""
            do()


class CutConnection(Connection):
    """Tells a knife where its site is."""

    def __init__(self, endpoint: Endpoint, knife: Knife) -> None:
        super().__init__(endpoint)
        self._knife = knife

    async def send(self, message: ToCoordinator) -> None:
        kind = ""
        if isinstance(message, ProtocolMessage):
            kind = kind_of_message(message.payload)
            self._knife.said[message.round, kind].append(message.payload)
        knife = self._knife
        knife.at(f"before {kind}", knife.cut)
        await super().send(message)
        # Once the coordinator says anything more: by then it has the message.
        knife.at(f"behind {kind}", lambda: knife.proxy.down.after(1, knife.cut))

    async def fetch_model(self, *args: Any, **kwargs: Any) -> Any:
        self._knife.at("model", lambda: self._knife.proxy.down.after(MIDDLE, self._knife.cut))
        return await super().fetch_model(*args, **kwargs)

    async def fetch_sum(self, *args: Any, **kwargs: Any) -> Any:
        self._knife.at("sum", lambda: self._knife.proxy.down.after(MIDDLE, self._knife.cut))
        return await super().fetch_sum(*args, **kwargs)

    async def push_update(
        self, header: UpdateHeader, chunks: Sequence[Buffer], *, first_chunk: int = 0
    ) -> bool:
        self._knife.said[header.round, "update"].append(b"".join(map(bytes, chunks)))
        self._knife.said[header.round, "header"].append(repr(header).encode())
        self._knife.at("update", lambda: self._knife.proxy.up.after(MIDDLE, self._knife.cut))
        return await super().push_update(header, chunks, first_chunk=first_chunk)


class Serving:
    """A coordinator that can be stopped and started again where it was."""

    def __init__(self, settings: CoordinatorSettings) -> None:
        self._settings = settings
        self._running = AsyncExitStack()
        self.port = 0

    async def __aenter__(self) -> Serving:
        self.port = await self._running.enter_async_context(serving(self._settings))
        self._settings = replace(self._settings, listen=f"127.0.0.1:{self.port}")
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._running.aclose()

    async def restart(self) -> None:
        """As an operator does it: the process is told to stop, and then there is another."""
        await self.__aexit__()
        await self.__aenter__()


@dataclass
class Running:
    """A coordinator and its sites, one of them behind a network of its own."""

    consortium: Consortium
    state: Path
    coordinator: Serving
    proxy: Proxy
    knife: Knife
    operator: OperatorClient
    trainer: EvenTrainer  # of the one
    stop: asyncio.Event  # of the one

    async def run(self, spec: RunSpec) -> RunStatus:
        return await self.ended(await self.submit(spec))

    async def submit(self, spec: RunSpec) -> str:
        """Gives the run's id."""
        model = model_to_bytes(LAYOUT, MODEL)
        return (await asyncio.to_thread(self.operator.submit, spec, model)).run_id

    async def digest(self, run_id: str) -> str:
        """Of a run's only round, which nobody was dropped from, at any time."""
        status = await self.ended(run_id)
        (record,) = status.rounds
        assert (status.state, record.sites, record.dropped) == ("completed", SITES, {}), status
        if status.spec.masked:
            receipt = self.state / "receipts" / run_id / "round-1.json"
            facts = check_receipt(receipt.read_bytes(), self.consortium.roster)
            assert tuple(facts.last.acks) == SITES
        return record.digest

    async def ended(self, run_id: str) -> RunStatus:
        """Waits for the end of a run."""
        await asyncio.to_thread(lambda: list(self.operator.watch(run_id)))
        return await asyncio.to_thread(self.operator.get, run_id)


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Consortium:
    return make_consortium(tmp_path_factory.mktemp("consortium"), SITES)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here connections break far more often than every few seconds, and are not to be waited for
    longer and longer because of that."""
    monkeypatch.setattr(site_runner, "_STEADY_SECONDS", 0.0)


@asynccontextmanager
async def running(
    consortium: Consortium, settings: CoordinatorSettings, **victim: Any
) -> AsyncIterator[Running]:
    """All sites serve; `victim` changes the settings of the one behind the proxy."""
    stop, stop_victim = asyncio.Event(), asyncio.Event()
    bounds = TaskBounds(plain_rounds=True)
    policy = LocalPolicy(start_models=frozenset({result_digest(LAYOUT, MODEL)}))
    folder = settings.state_dir.parent
    async with AsyncExitStack() as stack:
        coordinator = await stack.enter_async_context(Serving(settings))
        port = coordinator.port
        proxy = await stack.enter_async_context(Proxy(port))
        knife = Knife(proxy)
        tasks = []
        for number, site in enumerate(SITES):
            trainer = EvenTrainer(number)
            change: dict[str, Any] = {"bounds": bounds, "policy": policy}
            change |= {"ledger": folder / f"ledger-{site}", "egress": folder / f"{site}.vsx"}
            connect: Callable[[Endpoint], Connection] = Connection
            if site == VICTIM:
                change |= victim
                connect = lambda endpoint: CutConnection(endpoint, knife)  # noqa: E731
            to, until = (proxy.port, stop_victim) if site == VICTIM else (port, stop)
            serve = serve_site(
                consortium.site_settings(site, to, **change), trainer, stop=until, connect=connect
            )
            tasks.append(asyncio.create_task(serve))
        operator = await stack.enter_async_context(operating(consortium, port))
        try:
            state = settings.state_dir
            yield Running(
                consortium, state, coordinator, proxy, knife, operator, trainer, stop_victim
            )
        finally:
            stop.set()
            stop_victim.set()
            await asyncio.gather(*tasks)


POINTS = {
    "masked": (
        *(f"{when} {kind}" for kind in KINDS for when in ("before", "behind")),
        *("model", "update", "sum"),
    ),
    "plain": ("model", "update"),
}


@pytest.mark.parametrize("kind", ["masked", "plain"])
def test_a_round_is_the_undisturbed_one_wherever_a_sites_connection_breaks(
    kind: str, consortium: Consortium, tmp_path: Path
) -> None:
    spec = MASKED if kind == "masked" else PLAIN

    async def main() -> None:
        settings = consortium.coordinator_settings(tmp_path / "state")
        async with running(consortium, settings) as federation:
            proxy, knife = federation.proxy, federation.knife
            first = await federation.submit(replace(spec, task_id="undisturbed"))
            expected = await federation.digest(first)
            for number, point in enumerate(POINTS[kind]):
                knife.point = point
                # A task of its own: this trainer repeats itself, and what left a site is spent.
                run_id = await federation.submit(replace(spec, task_id=f"task-{number}"))
                assert await federation.digest(run_id) == expected, point
                assert proxy.count("cut") == number + 1, point
                assert federation.trainer.fitted == number + 2, point  # once each
            knife.assert_never_said_otherwise()

    run_async(main)


def test_a_site_that_is_away_too_long_is_dropped_and_joins_the_next_round(
    consortium: Consortium, tmp_path: Path
) -> None:
    spec = replace(MASKED, min_sites=3, rounds=2, clip=2.0)

    async def main() -> None:
        settings = consortium.coordinator_settings(tmp_path / "state", reconnect_s=0.2)
        async with running(consortium, settings) as federation:
            proxy, knife = federation.proxy, federation.knife

            def cut_off() -> None:
                proxy.refusing = True
                proxy.cut()

            knife.point, knife.cut = "before share-deal", cut_off
            run_id = await federation.submit(spec)
            await asyncio.to_thread(until_dropped, federation.operator, run_id)
            proxy.refusing = False
            status = await federation.ended(run_id)

            first, second = status.rounds
            reason = "the connection broke, and it was not back within 0.2 s"
            assert first.dropped == {VICTIM: f"lost its connection: {reason}"}
            assert (first.completed, first.sites) == (True, SITES[:-1])
            assert (second.completed, second.sites, second.dropped) == (True, SITES, {})

    run_async(main)


def until_dropped(operator: OperatorClient, run_id: str) -> None:
    for event in operator.watch(run_id):
        if event.site == VICTIM and event.detail.startswith("dropped"):
            return
    raise AssertionError("the run ended, and the site was not dropped")


def test_a_site_that_holds_nothing_without_a_connection_is_out_of_its_round_and_says_so(
    consortium: Consortium, tmp_path: Path
) -> None:
    spec = replace(MASKED, min_sites=3)

    async def main() -> None:
        settings = consortium.coordinator_settings(tmp_path / "state")
        async with running(consortium, settings, hold_s=0.0) as federation:
            federation.knife.point = "before survivor-vote"
            status = await federation.run(spec)
            (record,) = status.rounds
            assert record.completed, status.reason
            # Its update was in already, and is in the sum; it has not acknowledged the result.
            assert record.sites == SITES
            (drop,) = [
                event.detail
                for event in await asyncio.to_thread(
                    lambda: list(federation.operator.watch(status.run_id))
                )
                if event.site == VICTIM and "dropped" in event.detail
            ]
            assert drop.startswith("dropped: declined (replay)")

    run_async(main)


def test_a_site_that_is_stopped_is_not_waited_for(consortium: Consortium, tmp_path: Path) -> None:
    async def main() -> None:
        settings = consortium.coordinator_settings(tmp_path / "state", reconnect_s=3600.0)
        async with running(consortium, settings) as federation:
            federation.knife.point, federation.knife.cut = "before share-deal", federation.stop.set
            status = await federation.run(replace(MASKED, min_sites=3))
            (record,) = status.rounds
            assert record.completed, status.reason
            assert record.dropped == {VICTIM: "lost its connection: the site stopped"}

    run_async(main)


def test_a_site_whose_connection_was_lost_without_a_word_is_back_when_it_notices(
    consortium: Consortium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It notices first, and the coordinator has two streams of it for a while."""
    fast = {"grpc.keepalive_time_ms": 1000, "grpc.http2.ping_timeout_ms": 500}
    options = tuple((name, fast.get(name, value)) for name, value in endpoint.KEEPALIVE_OPTIONS)
    monkeypatch.setattr(endpoint, "KEEPALIVE_OPTIONS", options)

    async def main() -> None:
        settings = consortium.coordinator_settings(tmp_path / "state")
        async with running(consortium, settings) as federation:
            first = await federation.submit(replace(MASKED, task_id="undisturbed"))
            expected = await federation.digest(first)
            federation.knife.point = "before survivor-vote"
            federation.knife.cut = federation.proxy.lose
            lost = await federation.submit(replace(MASKED, task_id="lost"))
            assert await federation.digest(lost) == expected
            assert federation.proxy.count("lost") == 1
            assert federation.trainer.fitted == 2

    run_async(main)


RESTARTS = {
    "masked": (*(f"behind {kind}" for kind in KINDS), "update"),
    "plain": ("model", "update"),
}


@pytest.mark.parametrize("kind", ["masked", "plain"])
def test_a_round_is_the_undisturbed_one_whenever_the_coordinator_is_started_again(
    kind: str, consortium: Consortium, tmp_path: Path
) -> None:
    spec = MASKED if kind == "masked" else PLAIN

    async def main() -> None:
        settings = consortium.coordinator_settings(tmp_path / "state")
        async with running(consortium, settings) as federation:
            first = await federation.submit(replace(spec, task_id="undisturbed"))
            expected = await federation.digest(first)
            for number, point in enumerate(RESTARTS[kind]):
                reached = asyncio.Event()
                federation.knife.point, federation.knife.cut = point, reached.set
                run_id = await federation.submit(replace(spec, task_id=f"task-{number}"))
                await reached.wait()
                await federation.coordinator.restart()
                assert await federation.digest(run_id) == expected, point
                assert federation.trainer.fitted == number + 2, point
            federation.knife.assert_never_said_otherwise()

    run_async(main)


def test_a_site_that_did_not_hear_that_its_update_counts_hears_it_after_a_restart(
    consortium: Consortium, tmp_path: Path
) -> None:
    """Otherwise it would send in the next round once more what its codec lost in this one."""
    spec = replace(PLAIN, rounds=2, codec="topk/d2", error_feedback=True)

    async def main() -> None:
        settings = consortium.coordinator_settings(tmp_path / "state")
        async with running(consortium, settings) as federation:
            proxy, knife = federation.proxy, federation.knife
            undisturbed = await federation.run(replace(spec, task_id="undisturbed"))
            # From the middle of its update on it hears nothing.
            knife.point, knife.cut = "update", proxy.down.hold
            run_id = await federation.submit(replace(spec, task_id="deaf"))
            await asyncio.to_thread(until_round_ended, federation.operator, run_id)
            await federation.coordinator.restart()
            proxy.cut()
            proxy.down.go_on()
            status = await federation.ended(run_id)

            digests = [record.digest for record in undisturbed.rounds]
            assert [record.digest for record in status.rounds] == digests
            assert [record.sites for record in status.rounds] == [SITES] * 2

    run_async(main)


def until_round_ended(operator: OperatorClient, run_id: str) -> None:
    for event in operator.watch(run_id):
        if event.kind == "round":
            return
    raise AssertionError("the run ended without a round")
