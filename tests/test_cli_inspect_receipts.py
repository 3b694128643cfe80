"""`veilsum inspect` on receipts: what is shown was checked, and a chain as a whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.federation import Federation, small_model
from support.rosters import signed_by
from veilsum.cli import main
from veilsum.control import RunSpec
from veilsum.coordinator.effects import SaveReceipt
from veilsum.roster import Roster
from veilsum.secagg.receipt import check_chain

SITES = ("basel", "kyoto", "lyon", "oslo")


@pytest.fixture(scope="module")
def run() -> tuple[Roster, list[bytes]]:
    federation = Federation(SITES)
    settings = RunSpec("task", rounds=2, colluders=1, clip=0.5, weight_cap=64)
    federation.submit("run", settings, small_model())
    assert federation.run("run").state == "completed"
    saved = [effect for effect in federation.effects if isinstance(effect, SaveReceipt)]
    return federation.roster, [effect.receipt for effect in saved]


@pytest.fixture
def kept(run: tuple[Roster, list[bytes]], tmp_path: Path) -> tuple[Path, Path]:
    """The folder of receipts and the roster's file."""
    roster, receipts = run
    folder = tmp_path / "run"
    folder.mkdir()
    for number, receipt in enumerate(receipts, 1):
        (folder / f"round-{number}.json").write_bytes(receipt)
    (folder / "notes.txt").write_text("not a receipt")
    file = tmp_path / "roster.json"
    file.write_bytes(signed_by(roster, SITES, None).to_bytes())
    return folder, file


def inspected(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, object]:
    assert main.exit_code(["inspect", *map(str, arguments), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert isinstance(facts, dict)
    return facts


def failed(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main.exit_code(["inspect", *map(str, arguments)]) == 1
    return capsys.readouterr().err


def test_one_receipt_is_checked_with_the_roster(kept, capsys) -> None:
    folder, roster = kept
    facts = inspected(capsys, folder / "round-2.json", "--roster", roster)

    assert facts["kind"] == "receipt"
    assert facts["signature_checked"] is True
    assert facts["follows"] == "not checked: the receipt before is not here"
    assert (facts["run"], facts["round"], facts["survivors"]) == ("run", 2, list(SITES))
    assert facts["acknowledged_by"] == list(SITES)


def test_without_a_roster_nothing_is_taken_for_true(kept, capsys) -> None:
    folder, _ = kept
    facts = inspected(capsys, folder / "round-1.json")

    assert set(facts) == {"file", "kind", "bytes", "signature_not_checked", "hash"}


def test_a_folder_is_a_chain(kept, run, capsys) -> None:
    folder, roster = kept
    facts = inspected(capsys, folder, "--roster", roster)

    chain = check_chain(run[1], run[0])
    assert facts["kind"] == "chain of receipts"
    assert [row["round"] for row in facts["rounds"]] == [1, 2]
    assert facts["head"] == chain[-1].hash.hex()
    assert main.exit_code(["inspect", str(folder), "--roster", str(roster)]) == 0
    assert "bytes_out" in capsys.readouterr().out


def test_a_forged_or_missing_receipt_is_an_error_that_says_so(kept, run, capsys) -> None:
    folder, roster = kept
    (folder / "round-3.json").write_bytes(run[1][0])
    assert "receipt 3 of the chain: it is not of the round that follows" in failed(
        capsys, folder, "--roster", roster
    )
    (folder / "round-3.json").unlink()
    damaged = bytearray(run[1][1])
    damaged[200] ^= 1
    (folder / "round-2.json").write_bytes(bytes(damaged))
    assert "round-2.json" in failed(capsys, folder / "round-2.json", "--roster", roster)
    assert "receipt 2 of the chain" in failed(capsys, folder, "--roster", roster)


def test_what_cannot_be_checked_is_said(kept, tmp_path, capsys) -> None:
    folder, roster = kept
    assert "--roster" in failed(capsys, folder)
    assert "no receipts" in failed(capsys, tmp_path, "--roster", roster)
    assert "is no receipt" in failed(capsys, roster, "--roster", roster)
    assert "cannot read the roster" in failed(
        capsys, folder / "round-1.json", "--roster", tmp_path / "none"
    )
