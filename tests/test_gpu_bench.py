"""bench/gpu.py walks its whole way on emulated devices, so that it will on a real one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import veilsum
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


def test_the_table_has_a_line_for_every_figure(report: tuple[dict[str, Any], str]) -> None:
    found, table = report

    assert "emulated device" in table
    for one in found["figures"]:
        assert f"| {one['name']} |" in table


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
