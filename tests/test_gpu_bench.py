"""bench/gpu.py walks its whole way on emulated devices, so that it will on a real one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import veilsum
from support.devices import why_no_cuda
from veilsum import _native
from veilsum.errors import ConfigError

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    folder = tmp_path_factory.mktemp("results")
    command = [sys.executable, str(ROOT / "bench/gpu.py"), "--backend", "emu", "--quick"]
    subprocess.run(
        [*command, "--no-build", "--out", str(folder)],
        check=True,
        capture_output=True,
        env=os.environ | {"PYTHONPATH": str(Path(veilsum.__file__).parent.parent)},
    )
    [found] = folder.glob("*.json")
    result: dict[str, Any] = json.loads(found.read_text())
    return result, found.with_suffix(".md").read_text()


def test_every_codec_is_checked_and_timed(report: tuple[dict[str, Any], str]) -> None:
    found, _ = report

    names = [one["name"] for one in found["figures"]]
    assert names[:3] == ["copy", "to_device", "to_host"]
    for codec in found["checked"]:
        assert {f"mean_{codec}", f"round {codec}, emu", f"round {codec}, cpu"} <= set(names)
    assert found["integers_per_second"] > 0


def test_every_other_call_is_timed_on_the_device_and_on_the_cpu(
    report: tuple[dict[str, Any], str],
) -> None:
    found, _ = report

    shares = {one["name"]: one["integer_share"] for one in found["figures"]}
    for name in [
        "12 masks chacha20, 22 bits",
        "12 masks aes256ctr, 32 bits",
        "sum of 10 uploads, 22 bits",
        "rotation by 4096",
        "median, 10 updates",
        "krum, 10 updates",
        "mean of topk, 10 updates",
        "upload of 22 bits, 12 masks, rotated by 4096",
        "mean of f32 and step of FedAdam, moments there, 10 updates",
    ]:
        assert {f"{name}, emu", f"{name}, cpu"} <= set(shares)
    assert shares["12 masks chacha20, 22 bits, emu"] > 0
    assert shares["median, 10 updates, emu"] is None


def test_every_kernel_there_is_is_timed_by_itself(report: tuple[dict[str, Any], str]) -> None:
    found, _ = report

    there = {
        name
        for file in (ROOT / "cuda").glob("*.cu")
        for name in re.findall(r'launch_kernel\(\s*"(\w+)"', file.read_text())
    } - {"mix_kernel"}  # which is a ceiling
    timed = {one["name"].partition(": ")[2]: one for one in found["figures"]}
    assert len(there) > 15
    assert there <= set(timed)
    for kernel in there:
        assert timed[kernel]["seconds"] > 0, kernel
        assert timed[kernel]["ceiling"] == "copy"


def test_the_table_has_a_line_for_every_figure(report: tuple[dict[str, Any], str]) -> None:
    found, table = report

    assert "emulated device" in table
    for one in found["figures"]:
        assert f"| {one['name']} |" in table


def run_script(*arguments: str, path: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "bench/gpu.py"), "--quick", "--no-build", *arguments],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ
        | {
            "PYTHONPATH": str(Path(veilsum.__file__).parent.parent),
            "PATH": f"{path}:{os.environ['PATH']}",
        },
    )


@pytest.mark.skipif(not why_no_cuda(), reason="there is a device")
def test_without_a_device_it_ends_with_the_reason(tmp_path: Path) -> None:
    done = run_script("--backend", "cuda", "--out", str(tmp_path))

    assert done.returncode == 1
    assert done.stderr.startswith("error: no device cuda: ")
    assert not list(tmp_path.iterdir())


def fake_sanitizer(folder: Path, exit_code: int) -> Path:
    """A compute-sanitizer that writes down how it was called, and runs nothing."""
    folder.mkdir()
    program = folder / "compute-sanitizer"
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {folder}/calls\n'
        f'echo "========= ERROR SUMMARY: {exit_code} errors"\nexit {exit_code}\n'
    )
    program.chmod(0o755)
    return program


def test_the_tests_of_devices_run_under_each_tool_of_compute_sanitizer(tmp_path: Path) -> None:
    program = fake_sanitizer(tmp_path / "bin", 0)

    done = run_script("--backend", "emu", "--sanitize", "--out", str(tmp_path / "out"),
                      path=str(program.parent))  # fmt: skip

    assert done.returncode == 0, done.stderr
    calls = (program.parent / "calls").read_text().splitlines()
    tools = [
        re.match(r"--tool (\w+) --error-exitcode 9 \S*python\S* -m pytest ", one) for one in calls
    ]
    assert [tool[1] for tool in tools if tool] == ["memcheck", "racecheck", "synccheck"]
    assert all(" -k emu " in one and "/test_device_masks.py" in one for one in calls)
    assert "memcheck: exit code 0; ========= ERROR SUMMARY: 0 errors" in done.stdout


def test_what_compute_sanitizer_finds_ends_the_script_with_an_error(tmp_path: Path) -> None:
    program = fake_sanitizer(tmp_path / "bin", 9)

    done = run_script("--backend", "emu", "--sanitize", "--out", str(tmp_path / "out"),
                      path=str(program.parent))  # fmt: skip

    assert done.returncode == 1
    assert done.stderr.startswith("error: compute-sanitizer: memcheck, racecheck, synccheck")


@pytest.mark.parametrize("name", _native.device_benchmarks())
def test_a_benchmark_gives_a_time_for_each_repetition(name: str) -> None:
    seconds, size, operations = _native.device_benchmark("emu", name, bytes=5000, repeats=3)

    assert len(seconds) == 3
    assert min(seconds) >= 0
    assert size > 0
    assert (operations > 0) == (name == "mix")
    assert _native.emulator_bytes() == 0


def test_an_unknown_benchmark_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown benchmark 'sums'"):
        _native.device_benchmark("emu", "sums", bytes=1, repeats=1)
