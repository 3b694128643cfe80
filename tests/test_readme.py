"""README.md is true: its example runs, and so does every command of "Run it for real"."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PORT = "7443"


def blocks(language: str, heading: str) -> list[str]:
    """The code blocks of one section."""
    section = README.split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)


def test_the_first_screen_has_the_two_commands() -> None:
    top = "\n".join(README.splitlines()[:25])

    assert "python -m pip install -c constraints.txt '.[demo]' && veilsum demo" in top
    assert "python -m pip install -c constraints.txt '.[test]' && pytest" in top


def test_the_embedding_example_runs_and_says_what_it_computes() -> None:
    (code,) = blocks("python", "Embed the sum")

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    mean, weight, digest = done.stdout.split()
    assert (float(mean), int(weight)) == (2.0, 300)
    assert re.fullmatch("[0-9a-f]{8}", digest)


def test_the_example_of_robust_rules_keeps_one_site_from_moving_the_result() -> None:
    (code,) = blocks("python", "Bound what one site can do")

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    median, krum, *selected = done.stdout.split()
    assert (float(median), float(krum), selected) == (2.5, 2.5, ["turin"])


def test_every_file_that_the_readme_names_is_there() -> None:
    linked = set(re.findall(r"\]\(([^)#]+)\)", README))
    quoted = set(re.findall(r"`((?:examples|tests|csrc|python|docs|bench)/[\w./-]+)`", README))

    assert {name for name in linked | quoted if not (ROOT / name).exists()} == set()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A fresh examples/three_sites, with a port that is free here."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    made = tmp_path / "examples" / "three_sites"
    shutil.copytree(
        ROOT / "examples" / "three_sites",
        made,
        ignore=shutil.ignore_patterns("pki", "state", "*.safetensors", "__pycache__"),
    )
    for file in made.glob("*.toml"):
        file.write_text(file.read_text().replace(PORT, port))
    (tmp_path / "port").write_text(port)
    return tmp_path


def _environment(folder: Path) -> dict[str, str]:
    """A shell in which `veilsum` and `python` are those of this test run."""
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    for name, arguments in (("veilsum", "-m veilsum "), ("python", "")):
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec {sys.executable} {arguments}"$@"\n')
        program.chmod(0o755)
    return {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}


def _with_package_path(command: str, environment: dict[str, str]) -> str:
    """README sets PYTHONPATH=. for an installed veilsum; keep the path that finds this one."""
    return command.replace("PYTHONPATH=.", f"PYTHONPATH=.:{environment.get('PYTHONPATH', '')}")


@contextmanager
def _running(command: str, cwd: Path, env: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        ["bash", "-c", f"exec env {_with_package_path(command, env)}"],
        cwd=cwd,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=240)


def test_run_it_for_real_works_exactly_as_written(folder: Path) -> None:
    prepare, coordinator, *sites, operate = blocks("sh", "Run it for real, by hand")
    env = _environment(folder)
    subprocess.run(["bash", "-ec", prepare], cwd=folder, env=env, check=True, capture_output=True)
    here = folder / "examples" / "three_sites"
    operate = operate.replace(PORT, (folder / "port").read_text())

    with _running(coordinator.strip(), here, env) as serving:
        assert serving.stdout is not None
        while "serving on" not in (line := serving.stdout.readline()):
            assert line, "the coordinator ended before it served"
        with (
            _running(sites[0].strip(), here, env),
            _running(sites[1].strip(), here, env),
            _running(sites[2].strip(), here, env),
        ):
            done = subprocess.run(
                ["bash", "-ec", operate],
                cwd=here,
                env=env,
                capture_output=True,
                text=True,
                timeout=600,
                check=False,
            )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 of 5" in done.stdout
    assert "kind        safetensors" in done.stdout
    digests = re.findall(r"\b[0-9a-f]{16}\b", done.stdout)
    assert len(set(digests)) == 5  # five rounds, five different means
