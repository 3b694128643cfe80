"""What a coordinator forgets, and what it does not."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from support.consortium import Consortium, make_consortium
from support.serving import operating, run_async, serving
from support.stored import store_event, store_run
from veilsum.control import RoundId, RoundRecord, RunEvent, RunSpec, RunStatus
from veilsum.coordinator.standing import Standing
from veilsum.errors import ConfigError, DecodeError
from veilsum.model import ModelLayout
from veilsum.transport import tables, wire_requests
from veilsum.transport.retention import Retention
from veilsum.transport.retention_settings import RetentionSettings
from veilsum.transport.storage import Storage
from veilsum.transport.tables import put_round, put_run, put_standing
from veilsum.transport.wire_requests import PrunedRun, Pruning

MODEL = {"w": np.zeros(1000, np.float32)}
LAYOUT = ModelLayout.from_arrays(MODEL)
STATUS = RunStatus("", RunSpec("task"), "completed", "", 1, "", (), ())
STATELESS = bytes(32)
RECORD = RoundRecord(RoundId("", 1), True, "", "ab", "", ("a",), {}, 1, {}, {}, {})


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Storage]:
    storage = Storage(tmp_path / "state")
    yield storage
    storage.close()


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(tables, "time", SimpleNamespace(time=lambda: now[0]))
    return now


def model_hash(run_id: str) -> bytes:
    return run_id.encode().ljust(32, b".")


def add_run(storage: Storage, run_id: str, state: str = "completed", before: str = "") -> None:
    """A run of one round, from the model of another, with a file of each kind."""
    round_id = RoundId(run_id, 1)
    record = replace(RECORD, round=round_id, model_hash=model_hash(run_id).hex())
    storage.change([lambda database: put_round(database, record)])
    storage.save_model(run_id, 1, LAYOUT, MODEL)
    storage.save_sum(round_id, [b"words"])
    storage.save_receipt(round_id, b"receipt")
    storage.save_evidence(round_id, b"evidence")
    storage.save_link((model_hash(before), STATELESS), (model_hash(run_id), STATELESS), b"a link")
    status = replace(STATUS, run_id=run_id, state=state)  # type: ignore[arg-type]
    storage.change([lambda database: put_run(database, status)])
    store_event(storage, RunEvent(run_id, "run", detail=state))


def left(storage: Storage, run_id: str) -> set[str]:
    """What there is still of a run."""
    link = f"{model_hash(run_id).hex()}-{STATELESS.hex()}.link"
    there = {
        "row": storage.run(run_id) is not None,
        "events": bool(storage.events(run_id)),
        "models": (storage.models / run_id).exists(),
        "sums": (storage.published / run_id).exists(),
        "receipts": (storage.receipts / run_id).exists(),
        "evidence": (storage.evidence / run_id).exists(),
        "link": (storage.links / link).exists(),
    }
    return {name for name, found in there.items() if found}


PROOFS = {"receipts", "evidence", "link"}
EVERYTHING = PROOFS | {"row", "events", "models", "sums"}


# --- which ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pruning", "gone"),
    [
        (Pruning(keep=2), ["one", "two"]),
        (Pruning(keep=0), ["one", "two", "three", "four"]),
        (Pruning(keep=9), []),
        (Pruning(older_than_s=150.0), ["one", "two"]),
        (Pruning(older_than_s=1e9), []),
        (Pruning(older_than_s=250.0, keep=1), ["one", "two", "three"]),
        (Pruning(older_than_s=50.0, keep=3), ["one", "two", "three"]),
    ],
)
def test_runs_go_that_are_over_for_long_or_beyond_the_last(
    storage: Storage, clock: list[float], pruning: Pruning, gone: list[str]
) -> None:
    add_run(storage, "active", "running")
    for name in ("one", "two", "three", "four"):
        add_run(storage, name)
        clock[0] += 100.0
    clock[0] -= 70.0  # four ended 30 s ago, one 330 s

    pruned = Retention(storage, lambda: clock[0]).prune(pruning)

    assert [run.run_id for run in pruned] == gone
    expected = {"active", "one", "two", "three", "four"} - set(gone)
    assert {run.run_id for run in storage.runs()} == expected


def test_a_run_ended_when_its_last_event_came_and_not_when_it_was_submitted(
    storage: Storage, clock: list[float]
) -> None:
    add_run(storage, "long")
    add_run(storage, "short")
    clock[0] += 100.0
    store_event(storage, RunEvent("long", "run", detail="completed"))

    (pruned,) = Retention(storage, lambda: clock[0]).prune(Pruning(keep=1))

    assert pruned.run_id == "short"


# --- what of them -----------------------------------------------------------------------


def test_what_proves_things_to_others_stays(storage: Storage) -> None:
    add_run(storage, "old")
    add_run(storage, "new")

    (pruned,) = Retention(storage, lambda: 0.0).prune(Pruning(keep=1))

    assert pruned.state == "completed"
    assert 4000 < pruned.size_bytes < 20_000
    assert left(storage, "old") == PROOFS
    assert left(storage, "new") == EVERYTHING


def test_proofs_go_when_they_are_named(storage: Storage) -> None:
    add_run(storage, "old")
    add_run(storage, "new")

    Retention(storage, lambda: 0.0).prune(Pruning(keep=1, proofs=True))

    assert left(storage, "old") == set()
    assert left(storage, "new") == EVERYTHING


def test_a_link_that_leads_to_a_model_of_another_run_stays(storage: Storage) -> None:
    add_run(storage, "first")
    add_run(storage, "second", before="first")
    add_run(storage, "other")
    add_run(storage, "third", before="second")

    Retention(storage, lambda: 0.0).prune(Pruning(keep=1, proofs=True))

    assert left(storage, "first") == {"link"}
    assert left(storage, "second") == {"link"}
    assert left(storage, "other") == set()


def test_a_link_that_somebody_else_removes_meanwhile_is_no_failure(storage: Storage) -> None:
    """An operator prunes while the hourly tidying does: that would end the coordinator."""
    add_run(storage, "old")
    add_run(storage, "new")
    gone = storage.links / f"{model_hash('new').hex()}-{STATELESS.hex()}.link"
    gone.unlink()
    gone.symlink_to("nowhere")  # listed, and not there any more when it is opened

    Retention(storage, lambda: 0.0).prune(Pruning(keep=1, proofs=True))

    assert left(storage, "old") == set()


def test_no_link_goes_while_a_run_has_no_round_yet(storage: Storage) -> None:
    add_run(storage, "old")
    store_run(storage, replace(STATUS, run_id="begun", state="running"))

    Retention(storage, lambda: 0.0).prune(Pruning(keep=0, proofs=True))

    assert left(storage, "old") == {"link"}


def test_a_dry_run_forgets_nothing(storage: Storage) -> None:
    add_run(storage, "old")

    (pruned,) = Retention(storage, lambda: 0.0).prune(Pruning(keep=0, proofs=True, dry_run=True))

    assert pruned.run_id == "old"
    assert left(storage, "old") == EVERYTHING


# --- the settings -----------------------------------------------------------------------


def test_without_settings_runs_stay_and_events_are_bounded(
    storage: Storage, clock: list[float]
) -> None:
    add_run(storage, "old")
    for number in range(1200):
        storage.change(
            [lambda database, n=number: tables.put_event(database, RunEvent("old", "site", n))],
            durable=False,
        )

    pruned = Retention(storage, lambda: 1e12).tidy(RetentionSettings(events=1000))

    assert pruned == []
    assert [event.round_number for _, event in storage.events("old")] == list(range(200, 1200))


def test_settings_forget_by_themselves(storage: Storage, clock: list[float]) -> None:
    for name in ("one", "two", "three"):
        add_run(storage, name)
    day = 86_400.0

    by_number = Retention(storage, lambda: clock[0]).tidy(RetentionSettings(runs=2))
    by_age = Retention(storage, lambda: clock[0] + 2 * day).tidy(RetentionSettings(days=1.0))

    assert [run.run_id for run in by_number] == ["one"]
    assert [run.run_id for run in by_age] == ["two", "three"]


@pytest.mark.parametrize("wrong", [{"days": -1}, {"runs": -1}, {"events": 10}])
def test_settings_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"retention\."):
        RetentionSettings(**wrong)


# --- the database -----------------------------------------------------------------------


@pytest.mark.parametrize("made_before", [False, True])
def test_the_database_gives_back_what_it_does_not_need(tmp_path: Path, made_before: bool) -> None:
    if made_before:  # by a version whose files could not shrink
        (tmp_path / "state").mkdir(mode=0o700)
        old = sqlite3.connect(tmp_path / "state" / "state.db")
        old.execute("CREATE TABLE something (x)")
        old.execute("DROP TABLE something")
        old.close()
    storage = Storage(tmp_path / "state")
    storage.shrink()
    empty = storage.database.stat().st_size
    status = replace(STATUS, run_id="big", reason="x" * 400)
    store_run(storage, status)
    for _ in range(300):
        storage.change(
            [lambda db: tables.put_event(db, RunEvent("big", "site", detail="x" * 400))],
            durable=False,
        )
    storage.shrink()
    full = storage.database.stat().st_size

    Retention(storage, lambda: 0.0).prune(Pruning(keep=0))

    assert full > empty + 100_000
    assert storage.database.stat().st_size <= empty + 8192
    assert storage.database.with_name("state.db-wal").stat().st_size == 0
    storage.close()


def test_a_start_reads_no_round_of_a_run_that_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(tmp_path / "state")
    add_run(storage, "old")
    storage.close()
    statements: list[str] = []
    connect = sqlite3.connect

    def traced(*arguments: object, **named: object) -> sqlite3.Connection:
        database = connect(*arguments, **named)  # type: ignore[call-overload]
        database.set_trace_callback(statements.append)
        return database

    monkeypatch.setattr(tables.sqlite3, "connect", traced)

    storage = Storage(tmp_path / "state")
    assert storage.unfinished() == []
    storage.log()

    assert len(statements) > 5
    assert not [statement for statement in statements if "FROM rounds" in statement]
    storage.run("old")
    assert [statement for statement in statements if "FROM rounds" in statement]
    storage.close()


def test_of_a_run_that_goes_on_the_last_rounds_are_read(storage: Storage) -> None:
    for number in range(1, 8):
        record = replace(RECORD, round=RoundId("run", number))
        storage.change([lambda database, r=record: put_round(database, r)])
    standing = Standing(RoundId("run", 8), b"")
    running = replace(STATUS, run_id="run", state="running")
    storage.change(
        [lambda database: put_run(database, running), lambda db: put_standing(db, standing)]
    )

    ((status, found),) = storage.unfinished()

    assert found == standing
    assert [record.round.number for record in status.rounds] == [6, 7]
    run = storage.run("run")
    assert run is not None
    assert len(run.rounds) == 7


# --- over gRPC --------------------------------------------------------------------------


def test_an_operator_prunes(tmp_path: Path) -> None:
    consortium: Consortium = make_consortium(tmp_path / "consortium", ["a"])
    settings = consortium.coordinator_settings(tmp_path / "state")
    storage = Storage(settings.state_dir)
    for name in ("one", "two"):
        add_run(storage, name)
    storage.close()

    async def main() -> None:
        async with serving(settings) as port, operating(consortium, port) as operator:
            looked = await asyncio.to_thread(operator.prune, Pruning(keep=1, dry_run=True))
            pruned = await asyncio.to_thread(operator.prune, Pruning(keep=1))
            assert looked == pruned
            assert [run.run_id for run in pruned] == ["one"]
            assert [run.run_id for run in await asyncio.to_thread(operator.runs)] == ["two"]
            with pytest.raises(ConfigError, match="there is no run 'one'"):
                await asyncio.to_thread(operator.get, "one")
            with pytest.raises(ConfigError, match="nothing says which runs"):
                await asyncio.to_thread(operator.prune, Pruning())

    run_async(main)


def test_requests_and_answers_come_back_whole_or_are_refused() -> None:
    for pruning in (Pruning(1.5, 0, True, True), Pruning(keep=7), Pruning(older_than_s=0.0)):
        assert wire_requests.decode_pruning(wire_requests.encode_pruning(pruning)) == pruning
    runs = (PrunedRun("a", "completed", 7), PrunedRun("b", "aborted", 0))
    assert wire_requests.decode_pruned(wire_requests.encode_pruned(runs)) == runs
    for wrong in (Pruning(-1.0), Pruning(float("nan")), Pruning(1e99)):
        with pytest.raises(DecodeError, match="older_than_s"):
            wire_requests.decode_pruning(wire_requests.encode_pruning(wrong))
