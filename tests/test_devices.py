"""How many threads a call uses when nobody says so."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from veilsum import Aggregator, ModelLayout, _native, backends, devices
from veilsum.errors import ConfigError, DeviceError


def groups(root: Path, limits: dict[str, str]) -> Path:
    """A mounted hierarchy of control groups with these cpu.max files."""
    for group, limit in limits.items():
        (root / group).mkdir(parents=True, exist_ok=True)
        (root / group / "cpu.max").write_text(limit + "\n")
    return root


def member_of(folder: Path, line: str) -> Path:
    own = folder / "own"
    own.write_text(line + "\n")
    return own


@pytest.mark.parametrize(
    ("limit", "processors"),
    [
        ("max 100000", math.inf),
        ("150000 100000", 1.5),
        ("400000 100000", 4.0),
        ("nonsense", math.inf),
    ],
)
def test_a_control_group_limits_processor_time(
    tmp_path: Path, limit: str, processors: float
) -> None:
    root = groups(tmp_path / "cgroup", {"": "max 100000", "a": limit})

    assert devices.processor_quota(root, member_of(tmp_path, "0::/a")) == processors


def test_the_tightest_group_on_the_way_up_counts(tmp_path: Path) -> None:
    root = groups(tmp_path / "cgroup", {"a": "200000 100000", "a/b": "300000 100000"})

    assert devices.processor_quota(root, member_of(tmp_path, "0::/a/b/c")) == 2.0


def test_the_older_hierarchy_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("250000\n")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")

    assert devices.processor_quota(tmp_path, member_of(tmp_path, "4:cpu:/")) == 2.5


def test_without_control_groups_there_is_no_limit(tmp_path: Path) -> None:
    assert devices.processor_quota(tmp_path / "none", tmp_path / "none") == math.inf


def test_a_group_outside_the_mount_is_not_followed(tmp_path: Path) -> None:
    groups(tmp_path, {"": "100000 100000", "cgroup": "max 100000"})

    own = member_of(tmp_path, "0::/../")
    assert devices.processor_quota(tmp_path / "cgroup", own) == math.inf


def test_threads_follow_affinity_and_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VEILSUM_THREADS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))

    for quota, threads in ((math.inf, 8), (2.5, 3), (0.2, 1), (64.0, 8)):
        monkeypatch.setattr(devices, "processor_quota", lambda *_, quota=quota: quota)
        assert devices.available_threads() == threads


def test_the_environment_says_how_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VEILSUM_THREADS", "5")

    assert devices.available_threads() == 5
    assert backends()[0].detail.endswith("5 threads")


@pytest.mark.parametrize("wanted", ["0", "1025", "-1", "two", "1.5", "٣", "9" * 30])
def test_a_number_of_threads_that_cannot_be_is_refused(
    monkeypatch: pytest.MonkeyPatch, wanted: str
) -> None:
    monkeypatch.setenv("VEILSUM_THREADS", wanted)

    with pytest.raises(ConfigError, match="VEILSUM_THREADS must be a number from 1 to 1024"):
        Aggregator(ModelLayout(_native.Layout([("w", "f32", (1,))])))


def test_an_explicit_number_is_not_overruled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VEILSUM_THREADS", "nonsense")

    Aggregator(ModelLayout(_native.Layout([("w", "f32", (1,))])), threads=2)


def test_backends_are_the_cpu_and_every_cuda_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "cuda_status", lambda: (True, ("H100", "H200"), ""))
    found = [(backend.name, backend.detail) for backend in backends()]
    assert found[1:] == [("cuda:0", "H100"), ("cuda:1", "H200")]
    assert found[0][0] == "cpu"


def test_a_backend_that_is_not_there_is_an_error_at_the_start() -> None:
    assert [devices.require_backend(name) for name in ("cpu", "emu", "emu:1")] == [
        "cpu",
        "emu",
        "emu:1",
    ]
    with pytest.raises(DeviceError, match="no device 'emu:7'"):
        devices.require_backend("emu:7")
    with pytest.raises(ConfigError, match="unknown backend 'gpu'"):
        devices.require_backend("gpu")
