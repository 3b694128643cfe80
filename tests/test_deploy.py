"""The files in examples/deploy and docs/operations.md fit the program that they are about."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from veilsum.cli.main import exit_code
from veilsum.transport.metrics import Metrics
from veilsum.transport.settings import CoordinatorSettings

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "examples" / "deploy"
OPERATIONS = ROOT / "docs" / "operations.md"
UNITS = sorted(DEPLOY.glob("*.service"))
INSTRUCTIONS = {
    "FROM", "RUN", "COPY", "USER", "VOLUME", "EXPOSE", "STOPSIGNAL", "ENTRYPOINT", "CMD",
}  # fmt: skip

units = pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)


def read_unit(file: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(file)
    return parser


def seconds_to_drain() -> float:
    found = CoordinatorSettings.__dataclass_fields__["drain_s"].default
    assert isinstance(found, float)
    return found


def accepted(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> bool:
    """Whether the command line knows all these options."""
    code = exit_code([*arguments, "--help"])
    shown = capsys.readouterr().out
    return code == 0 and all(word in shown for word in arguments if word.startswith("--"))


# --- systemd ----------------------------------------------------------------------------


def test_there_is_a_unit_for_each_kind_of_process() -> None:
    assert [unit.name for unit in UNITS] == ["veilsum-coordinator.service", "veilsum-site.service"]


@units
def test_a_unit_starts_a_command_that_there_is_as_nobody_special(
    unit: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service = read_unit(unit)["Service"]

    program, *arguments = shlex.split(service["ExecStart"])

    assert program.endswith("/veilsum")
    assert accepted(arguments, capsys)
    assert service["User"] not in ("", "root")
    assert service["CapabilityBoundingSet"] == ""
    for name in ("NoNewPrivileges", "ProtectHome", "PrivateTmp", "RestrictNamespaces"):
        assert service[name] == "yes"
    assert service["ProtectSystem"] == "strict"
    assert service["StateDirectoryMode"] == "0700"
    assert service["LimitCORE"] == "0"
    assert service["RestartPreventExitStatus"] == "2"


def test_a_coordinator_has_time_to_drain_and_takes_reloads() -> None:
    service = read_unit(DEPLOY / "veilsum-coordinator.service")["Service"]

    assert int(service["TimeoutStopSec"]) >= seconds_to_drain() + 10
    assert service["ExecReload"] == "/bin/kill -HUP $MAINPID"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
@units
def test_systemd_understands_a_unit(unit: Path, tmp_path: Path) -> None:
    here = unit.read_text().replace("/opt/veilsum/bin/veilsum", sys.executable)
    copy = tmp_path / unit.name
    copy.write_text(here)

    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)],
        check=False,
        capture_output=True,
        text=True,
    )

    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


# --- the image --------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    text = (DEPLOY / "Containerfile").read_text()
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined)]


def test_the_image_is_made_of_known_instructions_and_runs_as_nobody_special(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = instructions()

    assert {word for word, _ in found} <= INSTRUCTIONS
    stages = [rest for word, rest in found if word == "FROM"]
    assert all(re.fullmatch(r"docker\.io/library/[a-z]+:[\w.-]+( AS build)?", s) for s in stages)
    last = dict(found)
    assert last["USER"] not in ("0", "root")
    assert last["STOPSIGNAL"] == "SIGTERM"
    assert json.loads(last["ENTRYPOINT"]) == ["veilsum"]
    assert accepted(json.loads(last["CMD"]), capsys)
    for word, rest in found:
        if word == "RUN":
            assert subprocess.run(["sh", "-n", "-c", rest], check=False).returncode == 0
        if word == "COPY" and "--from" not in rest:
            assert (ROOT / rest.split()[0]).exists()


# --- what the page and the rules name ---------------------------------------------------


def metrics_there_are() -> set[str]:
    metrics = Metrics()
    metrics.watch_disk(ROOT, ROOT / "state.db", ROOT / "spool")
    text = generate_latest(metrics.registry).decode()
    kinds = re.findall(r"^# TYPE (\S+) (\w+)$", text, flags=re.M)
    return {name for name, _ in kinds if not name.endswith("_created")}


def test_alerts_are_made_of_metrics_that_there_are() -> None:
    named = set(re.findall(r"\b(?:veilsum|process)_\w+", (DEPLOY / "alerts.yml").read_text()))

    assert len(named) > 5
    assert named <= metrics_there_are()


def test_the_page_names_every_metric_and_no_other() -> None:
    page = OPERATIONS.read_text()
    table = page[page.index("| metric | labels |") : page.index("| alert if |")]
    cells = [line.split("|")[1] for line in table.splitlines()[2:] if line.startswith("|")]
    named = {f"veilsum_{name}" for cell in cells for name in re.findall(r"`(\w+)`", cell)}

    own = {name for name in metrics_there_are() if name.startswith("veilsum_")}

    assert named == own


def test_links_of_the_page_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)", OPERATIONS.read_text()):
        assert (OPERATIONS.parent / target).exists(), target
