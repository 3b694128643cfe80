"""The site's process: its trainer, its thread, its log, and how long it waits."""

from __future__ import annotations

import asyncio
import json
import logging
import queue
import socket
import subprocess
import sys
import threading
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from support.consortium import Consortium, make_consortium
from support.serving import run_async, serving
from support.tiny_trainer import TinyTrainer
from veilsum.control import RoundId, TaskSettings
from veilsum.errors import ConfigError, DeviceError, LedgerError
from veilsum.site.effects import Train
from veilsum.site.events import SiteEvent, TrainingDone, TrainingFailed, TrainingProgressed
from veilsum.site.trainer import EvaluationResult
from veilsum.transport import process
from veilsum.transport.backoff import Backoff
from veilsum.transport.ledger_file import open_ledger
from veilsum.transport.logs import Log, start_logging
from veilsum.transport.settings import LogSettings
from veilsum.transport.site_app import make_endpoint, serve_site
from veilsum.transport.training import TrainingThread, load_trainer

MODEL = {"w": np.zeros(4, np.float32)}
SECONDS = 120


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Consortium:
    return make_consortium(tmp_path_factory.mktemp("consortium"), ["a", "b", "c"])


# --- trainers -----------------------------------------------------------------------


def test_a_trainer_is_made_from_the_sites_own_settings() -> None:
    trainer = load_trainer("support.tiny_trainer:make", {"number": 3, "examples": 7})
    assert trainer.fit(MODEL, TaskSettings(), lambda _: None).weight == 7


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("no.such.module:make", {}, "cannot find the trainer 'no.such.module:make'"),
        ("support.tiny_trainer:absent", {}, "cannot find the trainer"),
        ("support.tiny_trainer:make", {"colour": 1}, "does not take these settings"),
        ("support.tiny_trainer:np", {}, "does not take these settings"),
        ("builtins:dict", {}, "has no method 'fit'"),
    ],
)
def test_a_trainer_that_cannot_work_is_an_error_at_the_start(
    name: str, settings: dict, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_trainer(name, settings)


class StubbornTrainer(TinyTrainer):
    """Reports once a gate is open; what it raises is up to the test."""

    def __init__(self) -> None:
        super().__init__(0)
        self.begun = threading.Event()
        self.gate = threading.Event()
        self.error: Exception | None = None
        self.evaluation: object = EvaluationResult()

    def fit(self, model, task, report):
        self.begun.set()
        assert self.gate.wait(SECONDS)
        if self.error:
            raise self.error
        return super().fit(model, task, report)

    def evaluate(self, model, task):
        return self.evaluation


@pytest.fixture
def training():
    trainer = StubbornTrainer()
    events: queue.SimpleQueue[SiteEvent] = queue.SimpleQueue()
    thread = TrainingThread(trainer, events.put, Log("test"))
    yield trainer, events, thread
    thread.close()
    trainer.gate.set()


def train(number: int) -> Train:
    return Train(RoundId("run", number), MODEL, TaskSettings())


def results(events: queue.SimpleQueue) -> SiteEvent:
    while isinstance(event := events.get(timeout=SECONDS), TrainingProgressed):
        assert 0.0 <= event.fraction <= 1.0
    return event


def test_training_ends_with_its_result(training) -> None:
    trainer, events, thread = training
    trainer.gate.set()
    thread.start(train(1))
    done = results(events)
    assert isinstance(done, TrainingDone)
    assert (done.round.number, done.result.weight) == (1, 10)


def test_what_a_trainer_raises_stays_in_the_sites_log(
    training, caplog: pytest.LogCaptureFixture
) -> None:
    trainer, events, thread = training
    trainer.error = ValueError("patient 4711 has no scan")
    trainer.gate.set()
    thread.start(train(1))
    assert results(events) == TrainingFailed(RoundId("run", 1), "ValueError")
    assert "patient 4711" in caplog.text


def test_closing_stops_what_runs_and_ends_the_thread() -> None:
    trainer = StubbornTrainer()
    events: queue.SimpleQueue[SiteEvent] = queue.SimpleQueue()
    before = set(threading.enumerate())
    training = TrainingThread(trainer, events.put, Log("test"))
    (thread,) = set(threading.enumerate()) - before
    training.start(train(1))

    training.close()
    trainer.gate.set()
    thread.join(SECONDS)

    assert not thread.is_alive()
    while not events.empty():
        assert isinstance(events.get(), TrainingProgressed)


def test_a_trainer_that_returns_something_else_has_failed(training) -> None:
    trainer, events, thread = training
    trainer.evaluation = {"auc": 1.0}
    trainer.gate.set()
    thread.start(train(1))
    assert results(events) == TrainingFailed(RoundId("run", 1), "TypeError")


def test_a_training_that_is_not_wanted_any_more_gives_no_result(training) -> None:
    trainer, events, thread = training
    thread.start(train(1))
    assert trainer.begun.wait(SECONDS)
    thread.stop(RoundId("run", 9))  # another round's: nothing happens
    thread.stop(RoundId("run", 1))
    thread.start(train(2))
    thread.start(train(3))  # the second never begins
    trainer.gate.set()
    assert results(events).round.number == 3
    assert events.empty()


def test_of_trainings_that_wait_for_a_stubborn_one_only_the_last_is_kept(training) -> None:
    """Each holds a model, and rounds are opened by the coordinator."""
    trainer, events, thread = training
    thread.start(train(1))
    assert trainer.begun.wait(SECONDS)
    kept = []
    for number in range(2, 9):
        model = {name: array.copy() for name, array in MODEL.items()}
        kept.append(weakref.ref(next(iter(model.values()))))
        thread.start(replace(train(number), arrays=model))
    del model
    assert [array() is not None for array in kept] == [False] * 6 + [True]
    trainer.gate.set()
    assert results(events).round.number == 8
    assert events.empty()


# --- the process ------------------------------------------------------------------------


def test_a_site_with_files_of_another_is_refused_before_it_dials(consortium: Consortium) -> None:
    b = consortium.sites["b"]
    settings = consortium.site_settings(
        "a", 1, tls_certificate=b.tls_certificate, tls_key=b.tls_key
    )
    with pytest.raises(ConfigError, match="is for veilsum://test/site/b, this site is"):
        make_endpoint(settings, consortium.roster)


def test_a_site_that_is_not_in_its_roster_is_refused_before_it_dials(
    consortium: Consortium,
) -> None:
    settings = replace(consortium.site_settings("a", 1), site="zed")
    with pytest.raises(ConfigError, match="site 'zed' is not in the roster"):
        make_endpoint(settings, consortium.roster)


def test_a_site_waits_for_its_coordinator_and_ends_when_it_is_told(
    consortium: Consortium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited = []
    delay = Backoff.delay
    monkeypatch.setattr(Backoff, "delay", lambda self: waited.append(delay(self)) or 0.01)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    async def main() -> None:
        stop = asyncio.Event()
        settings = consortium.site_settings("a", port)
        site = asyncio.create_task(serve_site(settings, TinyTrainer(0), stop=stop))
        while len(waited) < 3:  # it tries, in vain
            await asyncio.sleep(0.01)
        coordinator = consortium.coordinator_settings(
            tmp_path / "state",
            listen=f"127.0.0.1:{port}",
            log=LogSettings(level="info", file=tmp_path / "log"),
        )
        start_logging(coordinator.log)
        async with serving(coordinator):
            while "site joined" not in (tmp_path / "log").read_text():
                await asyncio.sleep(0.01)
        tries = len(waited)
        while len(waited) < tries + 2:  # the coordinator is gone: it tries again
            await asyncio.sleep(0.01)
        stop.set()
        await site

    run_async(main)


@pytest.mark.parametrize(
    ("backend", "error", "message"),
    [
        ("emu:7", DeviceError, "there is no device 'emu:7'"),
        ("gpu", ConfigError, "unknown backend 'gpu'"),
    ],
)
def test_a_backend_that_is_not_there_ends_the_site_at_the_start(
    backend: str, error: type[Exception], message: str, consortium: Consortium
) -> None:
    settings = consortium.site_settings("a", 1, backend=backend)

    with pytest.raises(error, match=message):
        run_async(lambda: serve_site(settings, TinyTrainer(0), stop=asyncio.Event()))


def test_an_older_roster_that_came_back_from_a_backup_ends_the_site_at_the_start(
    consortium: Consortium, tmp_path: Path
) -> None:
    settings = consortium.site_settings("a", 1, ledger=tmp_path / "memory")
    file = open_ledger(tmp_path / "memory")
    file.ledger().agree_to(replace(consortium.roster, epoch=consortium.roster.epoch + 1))
    file.close()

    with pytest.raises(LedgerError, match=f"epoch {consortium.roster.epoch} is not one to go on"):
        run_async(lambda: serve_site(settings, TinyTrainer(0), stop=asyncio.Event()))


def test_a_second_process_of_a_site_ends_the_first_with_the_reason(
    consortium: Consortium, tmp_path: Path
) -> None:
    async def main() -> None:
        stop = asyncio.Event()
        async with serving(consortium.coordinator_settings(tmp_path / "state")) as port:
            # On two machines: on one, the second would not get the ledger.
            serve = [
                asyncio.create_task(serve_site(settings, TinyTrainer(0), stop=stop))
                for settings in (
                    consortium.site_settings(
                        "a", port, ledger=tmp_path / machine, egress=tmp_path / f"{machine}.vsx"
                    )
                    for machine in ("one", "other")
                )
            ]
            done, running = await asyncio.wait(serve, return_when=asyncio.FIRST_COMPLETED)
            (first,) = done
            with pytest.raises(ConfigError, match="another process joined as this site"):
                first.result()
            stop.set()
            await asyncio.gather(*running)

    run_async(main)


HARDENED = """
import asyncio, contextlib, ctypes, resource
from pathlib import Path
from veilsum.errors import VeilsumError
from veilsum.transport.coordinator_app import run_coordinator, serve_coordinator
from veilsum.transport.drain import Orders
from veilsum.transport.settings import CoordinatorSettings, SiteSettings
from veilsum.transport.site_app import run_site, serve_site

nothing = {"roster": Path("no"), "signing_key": Path("no"), "insecure": True}
site = SiteSettings("a", "127.0.0.1:1", trainer="builtins:object", **nothing)
coordinator = CoordinatorSettings(Path("no"), **nothing)
prctl = ctypes.CDLL(None).prctl
for start in (
    lambda: run_site(site, trainer=object()),
    lambda: asyncio.run(serve_site(site, object(), stop=asyncio.Event())),
    lambda: run_coordinator(coordinator),
    lambda: asyncio.run(serve_coordinator(coordinator, orders=Orders())),
):
    prctl(4, 1)
    with contextlib.suppress(VeilsumError):  # there is no roster
        start()
    print(prctl(3))
print(resource.getrlimit(resource.RLIMIT_CORE))
"""


def test_a_process_lets_nobody_read_its_memory_from_its_first_moment() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HARDENED], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["0", "0", "0", "0", "(0, 0)"]


def test_a_system_that_refuses_to_keep_others_out_ends_the_start(monkeypatch) -> None:
    refusing = SimpleNamespace(prctl=lambda *_: -1)
    monkeypatch.setattr(process.ctypes, "CDLL", lambda *_, **__: refusing)
    with pytest.raises(ConfigError, match="cannot keep others out"):
        process.harden_process()


def test_delays_double_to_a_limit_and_vary() -> None:
    backoff = Backoff()
    delays = [backoff.delay() for _ in range(12)]
    for index, found in enumerate(delays):
        nominal = min(0.1 * 2**index, 10.0)
        assert 0.5 * nominal <= found <= 1.5 * nominal
    assert len(set(delays)) == len(delays)
    backoff.reset()
    assert backoff.delay() <= 0.15


# --- logs ---------------------------------------------------------------------------


@pytest.fixture
def log_file(tmp_path: Path):
    yield tmp_path / "log"
    logger = logging.getLogger("veilsum")
    for handler in logger.handlers[:]:
        logger.removeHandler(handler)
        handler.close()
    logger.setLevel(logging.NOTSET)
    logger.propagate = True


def test_log_lines_are_objects_with_their_fields(log_file: Path) -> None:
    start_logging(LogSettings(format="json", file=log_file))
    log = Log("coordinator", run="r").bind(site="a")
    log.info("update accepted", bytes=12, seconds=0.5)
    log.debug("not at this level")
    (line,) = log_file.read_text().splitlines()
    found = json.loads(line)
    assert found.pop("time").endswith("Z")
    assert found == {
        "level": "info",
        "source": "veilsum.coordinator",
        "event": "update accepted",
        "run": "r",
        "site": "a",
        "bytes": 12,
        "seconds": 0.5,
    }


def test_a_peers_text_cannot_make_lines_of_its_own(log_file: Path) -> None:
    for format_ in ("text", "json"):
        start_logging(LogSettings(format=format_, file=log_file))
        Log("site").warning("refused", reason='no\nlevel=info event="all is well"' + "x" * 9999)
    lines = log_file.read_text().splitlines()
    assert len(lines) == 2
    assert all(len(line) < 1000 for line in lines)


def test_no_payload_can_be_logged() -> None:
    log = Log("site")
    for payload in (b"share", MODEL["w"], memoryview(b"x"), ["a"], TinyTrainer(0)):
        with pytest.raises(TypeError, match="must be a text or a number"):
            log.warning("oops", value=payload)


def test_a_log_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot write the log"):
        start_logging(LogSettings(file=tmp_path / "absent" / "log"))
    with pytest.raises(ConfigError, match="log format"):
        LogSettings(format="xml")
    with pytest.raises(ConfigError, match="log level"):
        LogSettings(level="loud")


def test_nothing_heavy_is_imported_by_the_settings() -> None:
    import subprocess

    code = "import sys, veilsum.transport.settings; sys.exit('grpc' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
