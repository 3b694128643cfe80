"""The state directory: what was saved is there after a restart, whole or not at all."""

from __future__ import annotations

import os
import sqlite3
import stat
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from support.stored import store_event, store_run
from veilsum._native import Layout
from veilsum.control import RoundId, RoundRecord, RunEvent, RunSpec, RunStatus
from veilsum.coordinator.standing import Standing
from veilsum.errors import ConfigError, DecodeError
from veilsum.model import NUMPY_DTYPES, ModelLayout
from veilsum.optimizers import FedAdam
from veilsum.transport import evidence_files
from veilsum.transport.checkpoints import (
    load_model,
    load_optimizer_state,
    model_from_bytes,
    model_to_bytes,
    read_layout,
    save_model,
)
from veilsum.transport.storage import RESTARTED, DiskFailed, Storage
from veilsum.transport.tables import put_round, put_run, put_standing

SPEC = RunSpec(task_id="nodules", rounds=2)
LAYOUT = ModelLayout(Layout([("w", "f32", (2, 3)), ("n", "i64", ()), ("h", "bf16", (3,))]))
MODEL = {
    "w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "n": np.array(-7, dtype=np.int64),
    "h": np.array([0x3F80, 0x4000, 0x7F80], dtype=np.uint16),
}


def status(run_id: str = "run-1", state: str = "running") -> RunStatus:
    return RunStatus(run_id, SPEC, state, "", 1, "inputs", ("a",), ())


def record(number: int = 1, completed: bool = True) -> RoundRecord:
    return RoundRecord(
        RoundId("run-1", number),
        completed,
        "",
        "ab" * 32,
        "cd" * 32,
        ("a", "b"),
        {"c": "declined"},
        30,
        {"auc": 0.5},
        {"a": 7, "b": 8},
        {"inputs": 1.5},
    )


def save_round(storage: Storage, record: RoundRecord, model=None, state=None) -> None:
    if model is not None:
        storage.save_step(record.round, LAYOUT, model, state)
    storage.change([partial(put_round, record=record)])


def assert_same_model(found: dict, expected: dict) -> None:
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert found[name].dtype == values.dtype
        assert found[name].shape == values.shape
        assert found[name].tobytes() == values.tobytes()


def test_a_receipt_is_kept_as_a_file_of_its_own(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    storage.save_receipt(RoundId("run", 2), b'{"receipt":{}}')

    file = tmp_path / "receipts" / "run" / "round-2.json"
    assert storage.receipt_file("run", 2) == file
    assert file.read_bytes() == b'{"receipt":{}}'
    assert stat.S_IMODE(file.parent.parent.stat().st_mode) == 0o700
    storage.close()


# --- runs, rounds, events -------------------------------------------------------------


def test_runs_and_rounds_are_there_after_a_restart(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "state")
    store_run(storage, status())
    save_round(storage, record(1), MODEL)
    save_round(storage, record(2, completed=False))
    store_run(storage, status(state="completed"))
    storage.close()
    storage = Storage(tmp_path / "state")
    expected = replace(status(state="completed"), rounds=(record(1), record(2, completed=False)))
    assert storage.run("run-1") == expected
    assert storage.runs() == [status(state="completed")]
    assert storage.run("run-2") is None
    layout, model = load_model(storage.model_file("run-1", 1))
    assert layout == LAYOUT
    assert_same_model(model, MODEL)
    assert not storage.model_file("run-1", 2).exists()
    storage.close()


def test_runs_are_listed_newest_first(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "state")
    for name in ("one", "two", "three"):
        store_run(storage, status(name))
    store_run(storage, status("one", "aborted"))
    assert [run.run_id for run in storage.runs()] == ["three", "two", "one"]
    storage.close()


def test_a_run_of_a_version_that_kept_no_standing_is_aborted(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "state")
    store_run(storage, status("active"))
    store_run(storage, status("queued", "waiting"))
    store_run(storage, status("done", "completed"))
    store_run(storage, status("standing"))
    standing = Standing(RoundId("standing", 3, 1), b"memory")
    storage.change([partial(put_standing, standing=standing)])
    storage.close()
    storage = Storage(tmp_path / "state")
    states = {run.run_id: (run.state, run.reason) for run in storage.runs()}
    assert states == {
        "active": ("aborted", RESTARTED),
        "queued": ("waiting", ""),
        "done": ("completed", ""),
        "standing": ("running", ""),
    }
    assert [event.kind for _, event in storage.events("active")] == ["run"]
    assert storage.events("done") == []
    assert [(run.run_id, where) for run, where in storage.unfinished()] == [
        ("standing", standing),
        ("queued", None),
    ]
    store_run(storage, status("standing", "completed"))
    assert [run.run_id for run, _ in storage.unfinished()] == ["queued"]
    storage.close()


def test_a_database_of_the_first_format_gets_what_it_lacks(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "state")
    store_run(storage, status(state="completed"))
    save_round(storage, record(1))
    storage.change([lambda database: database.execute("DROP TABLE log")])
    storage.change([lambda database: database.execute("DROP TABLE standings")])
    storage.change([lambda database: database.execute("PRAGMA user_version = 1")])
    storage.close()

    storage = Storage(tmp_path / "state")

    assert storage.run("run-1") == replace(status(state="completed"), rounds=(record(1),))
    assert storage.log() == []
    assert storage.unfinished() == []
    storage.close()


def test_all_changes_are_made_or_none(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "state")

    def fail(database: sqlite3.Connection) -> None:
        database.execute("INSERT INTO runs VALUES (1)")

    with pytest.raises(DiskFailed, match=r"cannot write .*state\.db"):
        storage.change([partial(put_run, status=status()), fail])

    assert storage.runs() == []
    storage.close()


def test_the_layout_of_a_kept_model_is_read_from_its_header(tmp_path: Path) -> None:
    save_model(tmp_path / "model.safetensors", LAYOUT, MODEL)
    assert read_layout(tmp_path / "model.safetensors") == LAYOUT
    (tmp_path / "torn.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:40])
    with pytest.raises(ConfigError, match=r"torn\.safetensors is not a model"):
        read_layout(tmp_path / "torn.safetensors")
    with pytest.raises(ConfigError, match=r"cannot read .*gone\.safetensors"):
        read_layout(tmp_path / "gone.safetensors")


def test_events_come_back_in_order_and_from_any_point_on(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "state")
    events = [RunEvent("run-1", "site", site=name) for name in "abc"]
    numbers = []
    for event in events:
        numbers.append(store_event(storage, event))
        store_event(storage, RunEvent("run-2", "phase"))
    assert numbers == sorted(set(numbers))
    assert [event for _, event in storage.events("run-1")] == events
    assert [event for _, event in storage.events("run-1", after=numbers[0])] == events[1:]
    storage.close()


# --- the directory --------------------------------------------------------------------


def test_the_state_directory_is_private(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "state")
    for folder in (tmp_path / "state", storage.spool, storage.sums, storage.models):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    storage.close()


def test_evidence_is_kept_in_private_files_of_its_own(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "state")
    files = [storage.save_evidence(RoundId("run", 2, 1), data) for data in (b"one", b"two")]
    storage.close()

    assert files == [tmp_path / "state/evidence/run" / f"2-1-{n}.vse" for n in (1, 2)]
    assert [file.read_bytes() for file in files] == [b"one", b"two"]
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}


def test_evidence_does_not_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence_files, "_MOST", 2)
    for _ in range(2):
        evidence_files.save_evidence(tmp_path / "kept", "a", b"x")

    with pytest.raises(ConfigError, match="holds 2 files of evidence"):
        evidence_files.save_evidence(tmp_path / "kept", "a", b"x")


def test_two_coordinators_cannot_use_one_directory(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "state")
    with pytest.raises(ConfigError, match="another coordinator uses the state directory"):
        Storage(tmp_path / "state")
    storage.close()
    Storage(tmp_path / "state").close()


def test_copies_that_a_crash_left_are_swept_from_the_spool(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "state")
    (storage.sums / "site-a").write_bytes(b"x")
    storage.close()
    storage = Storage(tmp_path / "state")
    assert list(storage.spool.iterdir()) == [storage.sums]
    assert list(storage.sums.iterdir()) == []
    storage.close()


def test_a_database_of_another_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    Storage(tmp_path / "state").close()
    database = sqlite3.connect(tmp_path / "state" / "state.db")
    database.execute("PRAGMA user_version = 9")
    database.close()
    with pytest.raises(ConfigError, match="has format 9, this version knows 2"):
        Storage(tmp_path / "state")


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    Storage(tmp_path / "state").close()
    (tmp_path / "state" / "state.db").write_bytes(b"not a database" * 100)
    with pytest.raises(ConfigError, match=r"cannot use .*state\.db"):
        Storage(tmp_path / "state")


def test_the_optimizers_state_is_kept_of_the_last_two_rounds(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "state")
    optimizer = FedAdam().start(LAYOUT)
    mean = {**MODEL, "h": np.zeros(3, np.uint16)}
    model = {**MODEL, "h": np.zeros(3, np.uint16)}
    for number in (1, 2, 3):
        optimizer.step(model, mean)
        save_round(storage, record(number), model, optimizer.state())
    storage.close()
    storage = Storage(tmp_path / "state")

    files = sorted(file.name for file in (storage.models / "run-1").iterdir())

    kept = [f"optimizer-{number}.safetensors" for number in (2, 3)]
    assert files == [*kept, *(f"round-{number}.safetensors" for number in (1, 2, 3))]
    state = load_optimizer_state(storage.optimizer_file("run-1", 3))
    assert state.to_bytes() == optimizer.to_bytes()
    assert stat.S_IMODE(storage.optimizer_file("run-1", 2).parent.stat().st_mode) == 0o700
    storage.close()


def test_a_model_is_no_optimizer_state(tmp_path: Path) -> None:
    save_model(tmp_path / "m.safetensors", LAYOUT, MODEL)
    with pytest.raises(ConfigError, match=r"m.safetensors: not a server optimizer's state"):
        load_optimizer_state(tmp_path / "m.safetensors")
    with pytest.raises(ConfigError, match="cannot read the optimizer's state absent"):
        load_optimizer_state(tmp_path / "absent")


@pytest.mark.parametrize(
    "name", ["", "absent.safetensors", "../secret.safetensors", "link.safetensors", "a.bin", "."]
)
def test_only_plain_files_of_the_models_folder_can_be_named(tmp_path: Path, name: str) -> None:
    storage = Storage(tmp_path / "state")
    (tmp_path / "state" / "secret.safetensors").write_bytes(b"x")
    (storage.models / "link.safetensors").symlink_to(tmp_path / "state" / "secret.safetensors")
    (storage.models / "a.bin").write_bytes(b"x")
    (storage.models / "good.safetensors").write_bytes(b"x")
    with pytest.raises(ConfigError, match="models folder"):
        storage.submitted_file(name)
    assert storage.submitted_file("good.safetensors").read_bytes() == b"x"
    storage.close()


# --- model files ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", NUMPY_DTYPES)
def test_every_dtype_survives_its_file(tmp_path: Path, dtype: str) -> None:
    layout = ModelLayout(Layout([("x", dtype, (3, 2)), ("scalar", dtype, ())]))
    size = NUMPY_DTYPES[dtype].itemsize
    patterns = np.arange(6 * size, dtype=np.uint8).view(NUMPY_DTYPES[dtype])
    model = {"x": patterns.reshape(3, 2), "scalar": patterns[1].reshape(())}
    save_model(tmp_path / "m.safetensors", layout, model)
    found_layout, found = load_model(tmp_path / "m.safetensors")
    assert found_layout == layout
    assert_same_model(found, model)
    assert (tmp_path / "m.safetensors").read_bytes() == model_to_bytes(layout, model)


def test_other_programs_read_our_files_and_we_read_theirs(tmp_path: Path) -> None:
    plain = {"w": MODEL["w"], "n": MODEL["n"]}
    layout = ModelLayout.from_arrays(plain)
    save_model(tmp_path / "ours.safetensors", layout, plain)
    theirs = safetensors.numpy.load_file(tmp_path / "ours.safetensors")
    assert_same_model(dict(sorted(theirs.items())), dict(sorted(plain.items())))
    _, found = model_from_bytes(safetensors.numpy.save(plain))
    assert_same_model(dict(sorted(found.items())), dict(sorted(plain.items())))


def test_arrays_that_are_not_contiguous_are_written_in_order(tmp_path: Path) -> None:
    model = {"w": np.arange(6, dtype=np.float32).reshape(3, 2).T}
    layout = ModelLayout(Layout([("w", "f32", (2, 3))]))
    _, found = model_from_bytes(model_to_bytes(layout, model))
    np.testing.assert_array_equal(found["w"], model["w"])


def test_a_model_file_appears_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "m.safetensors"
    save_model(file, LAYOUT, MODEL)
    before = file.read_bytes()

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ConfigError, match=r"cannot write the model .*No space left"):
        save_model(file, LAYOUT, {**MODEL, "w": MODEL["w"] + 1})
    assert file.read_bytes() == before


def test_a_dtype_that_cannot_be_averaged_is_named() -> None:
    data = safetensors.numpy.save({"mask": np.array([True, False])})
    with pytest.raises(DecodeError, match="tensor 'mask' has dtype BOOL") as caught:
        model_from_bytes(data)
    assert "F32" in (caught.value.hint or "")


@given(st.binary(max_size=200))
def test_bytes_that_are_no_model_are_refused(data: bytes) -> None:
    with pytest.raises(DecodeError):
        model_from_bytes(data)


def test_of_a_runs_sums_the_last_is_kept_until_the_run_ends(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    first = storage.save_sum(RoundId("run", 1), iter([b"ab", b"c"]))
    assert first.read_bytes() == b"abc"

    second = storage.save_sum(RoundId("run", 2), [b"d"])
    other = storage.save_sum(RoundId("other", 1), [b"e"])

    assert not first.exists()
    assert second == storage.sum_file("run", 2)
    storage.drop_sums("run")
    storage.drop_sums("run")
    assert (second.exists(), other.read_bytes()) == (False, b"e")
    storage.close()


def test_sums_of_a_run_that_ended_as_its_process_did_are_gone_at_the_next_start(
    tmp_path: Path,
) -> None:
    storage = Storage(tmp_path / "state")
    store_run(storage, status("over", "completed"))
    store_run(storage, status("waits", "waiting"))
    ended = storage.save_sum(RoundId("over", 1), [b"words"])
    kept = storage.save_sum(RoundId("waits", 1), [b"words"])
    storage.close()

    Storage(tmp_path / "state").close()

    assert (ended.exists(), kept.exists()) == (False, True)
