"""A copy of a state directory taken while its coordinator runs is one that another goes on from."""

from __future__ import annotations

import asyncio
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from support.consortium import make_consortium
from support.pushing import MODEL_BYTES, endpoint, opened, update
from support.serving import operating, run_async, serving
from support.stored import store_run
from veilsum.cli.main import exit_code
from veilsum.control import Deadlines, RoundId, RoundRecord, RunSpec, RunStatus
from veilsum.errors import ConfigError
from veilsum.model import ModelLayout
from veilsum.transport.backup import back_up
from veilsum.transport.client import Connection
from veilsum.transport.drain import Orders
from veilsum.transport.storage import Storage
from veilsum.transport.tables import put_round

MODEL = {"w": np.zeros(10, np.float32)}
LAYOUT = ModelLayout.from_arrays(MODEL)
STATUS = RunStatus("run", RunSpec("task"), "completed", "", 1, "", (), ())


def add_round(storage: Storage, number: int) -> None:
    """As a coordinator does: the model, then the row."""
    storage.save_model("run", number, LAYOUT, MODEL)
    hashed = "cd" * 32
    record = RoundRecord(RoundId("run", number), True, "", "", hashed, (), {}, 0, {}, {}, {})
    storage.change([lambda database: put_round(database, record)])


def test_a_copy_has_every_file_that_its_rows_name_whatever_happens_meanwhile(
    tmp_path: Path,
) -> None:
    storage = Storage(tmp_path / "state")
    store_run(storage, STATUS)
    add_round(storage, 1)
    upload = storage.spool / "one.update"
    upload.write_bytes(b"half")

    def meanwhile(point: str) -> None:
        if point == "backup.files":
            add_round(storage, 2)
            upload.write_bytes(b"the whole of it")
        else:
            add_round(storage, 3)
            storage.model_file("run", 1).unlink()

    made = back_up(tmp_path / "state", tmp_path / "copy", points=meanwhile)
    storage.close()
    assert made.files == sum(path.is_file() for path in (tmp_path / "copy").rglob("*"))

    copy = Storage(tmp_path / "copy")
    run = copy.run("run")
    assert run is not None
    rounds = [record.round.number for record in run.rounds]
    assert rounds == [1, 2]
    assert all(copy.model_file("run", number).exists() for number in rounds)
    assert (copy.spool / "one.update").read_bytes() == b"the whole of it"
    assert (
        made.files == len([path for path in (tmp_path / "copy").rglob("*") if path.is_file()]) - 3
    )
    assert copy.lock.before is None
    folders = [path for path in (tmp_path / "copy").rglob("*") if path.is_dir()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o700}
    copy.close()


def test_a_backup_needs_a_state_and_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not the state directory of a coordinator"):
        back_up(tmp_path / "state", tmp_path / "copy")
    Storage(tmp_path / "state").close()
    back_up(tmp_path / "state", tmp_path / "copy")
    with pytest.raises(ConfigError, match="is not empty"):
        back_up(tmp_path / "state", tmp_path / "copy")


def test_a_coordinator_on_a_copy_goes_on_with_the_round(tmp_path: Path) -> None:
    consortium = make_consortium(tmp_path / "consortium", ("a", "b"))
    settings = consortium.coordinator_settings(tmp_path / "state", reconnect_s=3600.0)
    spec = RunSpec("tiny", masked=False, min_sites=2, deadlines=Deadlines(join_s=60, inputs_s=600))
    orders = Orders()
    orders.at_once.set()

    async def main() -> None:
        a, b = (endpoint(consortium, site, 1) for site in ("a", "b"))
        async with serving(settings, orders) as port, operating(consortium, port) as operator:
            of_a, of_b = (Connection(replace(s, address=f"127.0.0.1:{port}")) for s in (a, b))
            async with of_a, of_b:
                run = await asyncio.to_thread(operator.submit, spec, MODEL_BYTES)
                assert await of_a.push_update(*update(await opened(of_a), "a"))
                await asyncio.to_thread(back_up, settings.state_dir, tmp_path / "copy")

        second = replace(settings, state_dir=tmp_path / "copy")
        async with serving(second) as port, operating(consortium, port) as operator:
            of_a, of_b = (Connection(replace(s, address=f"127.0.0.1:{port}")) for s in (a, b))
            async with of_a, of_b:
                assert await of_b.push_update(*update(await opened(of_b), "b"))
                *_, last = await asyncio.to_thread(lambda: list(operator.watch(run.run_id)))
            assert last.detail == "completed"
            (first,) = (await asyncio.to_thread(operator.get, run.run_id)).rounds
            assert first.sites == ("a", "b")

    run_async(main)


def test_the_command_says_what_it_copied(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Storage(tmp_path / "state").close()
    config = tmp_path / "coordinator.toml"
    config.write_text('state_dir = "state"\nroster = "r"\nsigning_key = "k"\ninsecure = true\n')

    assert exit_code(["backup", "--config", str(config), str(tmp_path / "copy")]) == 0

    assert capsys.readouterr().out.startswith("1 files, ")
    assert (tmp_path / "copy" / "state.db").exists()
