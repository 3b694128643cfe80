"""The demo itself, as a user starts it. Real processes, certificates, masks and a failure."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from veilsum.model import result_digest
from veilsum.transport.checkpoints import load_model

SECONDS = 1200  # nobody waits so long for anything but a deadlock


def demo(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "veilsum", "demo", "--json", "--out", str(out), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)


def document_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()  # one line and nothing else
    document: dict[str, Any] = json.loads(line)
    return document


def processes_with(text: str) -> list[str]:
    """Command lines of running processes that name `text`."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and int(folder.name) != os.getpid():
            try:
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:  # it has just ended
                continue
            if text in line:
                found.append(line)
    return found


@pytest.mark.slow
def test_a_masked_demo_survives_a_killed_site_and_proves_its_sums(tmp_path: Path) -> None:
    out = tmp_path / "demo"

    document = document_of(demo(out, "--sites", "5", "--rounds", "2", "--drop", "hospital-10@1"))

    assert document["masked"] is True
    assert document["proof_holds"] is True
    assert document["drop"]["site"] == "hospital-10"
    assert document["drop"]["back"] is True
    assert len(document["rounds"]) == 2
    assert len(document["rounds"][1]["sites"]) == 5
    assert [each["digest"] for each in document["rounds"]] == [
        each["recomputed"] for each in document["rounds"]
    ]
    assert {"masked-update", "key-advert", "share-deal", "survivor-vote", "unmask-shares"} <= set(
        document["bytes_by_kind"]
    )
    assert "plain-update" not in document["bytes_by_kind"]
    assert json.loads((out / "result.json").read_text()) == document
    assert "hospitals learned together" in (out / "report.html").read_text()
    assert result_digest(*load_model(out / "model.safetensors")) == document["model_hash"]
    assert processes_with(str(out)) == []


@pytest.mark.slow
def test_a_plain_demo_proves_its_sums_too(tmp_path: Path) -> None:
    arguments = ("--sites", "3", "--rounds", "1", "--plain", "--codec", "int8")

    document = document_of(demo(tmp_path / "demo", *arguments))

    assert document["masked"] is False
    assert document["proof_holds"] is True
    assert "masked-update" not in document["bytes_by_kind"]


@pytest.mark.slow
def test_ctrl_c_ends_the_demo_and_all_its_processes(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    command = [sys.executable, "-m", "veilsum", "demo", "--sites", "3", "--out", str(out)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        for line in running.stdout:
            if line.startswith("round 1"):
                break
        assert processes_with(str(out))
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=SECONDS)

    assert running.returncode == 130
    assert "Traceback" not in errors
    assert processes_with(str(out)) == []
