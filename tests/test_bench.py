"""`veilsum bench`: what it reports, and that it reports nothing that was not checked."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from veilsum.bench import machine, run, sides, table
from veilsum.bench.contenders import Case, Checked, Contender, Part, Work
from veilsum.bench.installed import HOSTS, Host
from veilsum.bench.options import BenchOptions
from veilsum.bench.plot import draw
from veilsum.bench.reference import Reference
from veilsum.bench.rows import Row
from veilsum.bench.timing import paired, seconds, spread
from veilsum.bench.worker import case_rows
from veilsum.cli.main import exit_code
from veilsum.errors import ConfigError

TINY = {"scale": 0.004, "seconds": 0.01, "sites": 3}

Update = Mapping[str, np.ndarray[Any, Any]]


def truncated(updates: Sequence[Update], weights: Sequence[int]) -> dict[str, np.ndarray[Any, Any]]:
    """A peer that rounds everything to halves."""
    total = float(sum(weights))
    return {
        name: sum(
            (w / total * u[name] for u, w in zip(updates, weights, strict=True)),
            np.zeros_like(updates[0][name]),
        ).astype(np.float16)
        .astype(np.float32)
        for name in updates[0]
    }  # fmt: skip


def failing(updates: Sequence[Update], weights: Sequence[int]) -> None:
    """A peer that cannot."""
    raise RuntimeError("no room")


def rows_of(**options: Any) -> list[Row]:
    chosen = BenchOptions(**{**TINY, **options})
    return [row for job in run.jobs(chosen) for row in run.run_job(job, chosen)]


@pytest.fixture(scope="module")
def mean_rows() -> list[Row]:
    own = (f"{__name__}:truncated", f"{__name__}:failing")
    with pytest.MonkeyPatch.context() as patch:  # a user's module is found where Python looks
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        return rows_of(only=("mean",), peers=("numpy", "openfl", *own))


def test_ours_is_right_and_has_every_figure(mean_rows: list[Row]) -> None:
    ours = [row for row in mean_rows if row.ours and "inside" not in row.case]

    assert [row.case.partition(" (")[0] for row in ours] == [
        "3 x ResNet-50",
        "3 x BERT-base",
        "3 x small CNN",
    ]
    for row in ours:
        assert row.correct is True
        assert row.error is not None
        assert row.error <= 1.001
        assert row.clock == "processor"
        assert row.rounds >= 3
        for figure in (row.seconds, row.gb_per_s, row.gcoord_per_s, row.of_copy, row.peak_bytes):
            assert figure is not None
            assert figure > 0


def test_a_peer_is_compared_in_the_same_rounds(mean_rows: list[Row]) -> None:
    [numpy] = [
        row
        for row in mean_rows
        if row.contender == "NumPy in place" and row.case.startswith("3 x ResNet-50")
    ]

    assert numpy.host == "numpy"
    assert numpy.version == np.__version__
    assert numpy.correct is True
    assert list(numpy.times) == ["veilsum"]


def test_a_wrong_peer_is_shown_with_its_error(mean_rows: list[Row]) -> None:
    wrong = [row for row in mean_rows if row.contender.endswith(":truncated")]

    assert {row.correct for row in wrong} == {False}
    assert all(row.error is not None and row.error > 100 for row in wrong)
    assert all(table.cells(row)[8].startswith("WRONG: ") for row in wrong)


def test_a_peer_that_fails_is_a_row_with_the_reason(mean_rows: list[Row]) -> None:
    failed = [row for row in mean_rows if row.contender.endswith(":failing")]

    assert {row.reason for row in failed} == {"failed: RuntimeError: no room"}


@pytest.mark.skipif(HOSTS["openfl"].version is not None, reason="openfl is installed")
def test_a_peer_that_is_absent_is_listed_with_how_it_comes_here(mean_rows: list[Row]) -> None:
    absent = [row for row in mean_rows if row.host == "openfl"]

    assert {row.reason for row in absent} == {f"not installed: {HOSTS['openfl'].install}"}


def test_a_distribution_that_is_not_there_has_no_version() -> None:
    assert Host("veilsum-no-such-thing", "x", "pip install x").version is None


# --- a wrong result of ours, and too little memory -----------------------------------------


class Payload:
    """Nothing."""

    def ready(self, form: str) -> None:
        """It is."""


def case(error: float, **given: Any) -> Case:
    def prepare(payload: Payload, threads: int) -> Work:
        return Work(lambda: 1, lambda result: Checked(error, 1.0))

    facts = {"update_bytes": 4, "payload_bytes": 8, "parts": {"": Part(8, 2)}, **given}
    return Case("mean", "a case", (Contender("veilsum", prepare),), (), Payload, **facts)


@pytest.mark.parametrize("error", [1.5, float("nan"), float("inf")])
def test_no_figure_of_ours_is_reported_if_it_is_wrong(
    error: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(sides.WrongResult, match="veilsum is off in a case"):
        sides.require_correct(case(error), case(error).ours[0], Checked(error, 1.0))


def test_what_memory_is_lacking_for_is_left_out_and_said() -> None:
    [row] = case_rows(case(0.0, payload_bytes=1 << 50), BenchOptions(), 1)

    assert row.ours
    assert row.seconds is None
    assert row.reason is not None
    assert row.reason.startswith("left out: needs 11")


# --- the reference --------------------------------------------------------------------------


def test_an_error_is_counted_in_roundings_of_what_was_summed() -> None:
    updates = [{"w": np.array([1.0, -3.0], np.float32)}, {"w": np.array([3.0, 3.0], np.float32)}]
    reference = Reference.of(updates, [1, 3])
    eps = float(np.finfo(np.float32).eps)

    off = np.array([2.5, 1.5], np.float32) + np.array([0, 4 * eps], np.float32)

    assert reference.error({"w": np.array([2.5, 1.5], np.float32)}) == 0.0
    assert reference.error({"w": off}) == pytest.approx(4 / 3 * 2, rel=1e-6)
    assert reference.error({"w": np.array([np.nan, 1.5], np.float32)}) == float("inf")
    assert reference.error({"w": np.zeros(3, np.float32)}) == float("inf")
    assert reference.error({"v": off}) == float("inf")


def test_a_call_takes_time_also_where_the_clock_stands_still() -> None:
    ours = [seconds(lambda: None, lambda: 5.0)]

    assert 0 < ours[0] < 1e-6
    assert paired([1.0], ours) > 1


def test_quartiles_of_three_times_say_nothing() -> None:
    assert spread([1.0, 2.0, 3.0]) is None
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(2 / 3)


def test_the_kernel_counts_the_memory_of_a_call() -> None:
    machine.forget_peak()
    before = machine.memory("VmHWM")

    held = np.ones(8 << 20, np.float64)

    assert machine.memory("VmHWM") - before >= held.nbytes - (1 << 20)


# --- the command ------------------------------------------------------------------------------


def test_the_command_prints_one_json_document(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    tables = tmp_path / "tables.md"
    arguments = ["--only", "mean", "--peer", "numpy", "--threads", "1", "--scale", "0.004"]

    sizes = ["--seconds", "0.01", "--sites", "3"]

    code = exit_code(["bench", *arguments, *sizes, "--json", "--markdown", str(tables)])

    found = json.loads(capsys.readouterr().out)
    assert code == 0
    assert found["schema"] == 1
    assert set(found["about"]) >= {"cpu", "date", "isa", "load_before", "load_after", "peers"}
    assert {frozenset(row) for row in found["rows"]} == {
        frozenset(Row.__dataclass_fields__) | {"correct"}
    }
    assert "### Weighted mean of float32 updates: 3 x ResNet-50 (" in tables.read_text()


def test_a_chart_is_a_png_of_reasonable_size(mean_rows: list[Row], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra `bench`)")
    about = {"cpu": "a CPU", "date": "2026-01-01T00:00:00Z"}

    draw(mean_rows, about, tmp_path / "out.png")

    drawn = (tmp_path / "out.png").read_bytes()
    assert drawn[:8] == b"\x89PNG\r\n\x1a\n"
    assert 10_000 < len(drawn) < 200_000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "men"], "there is no section 'men'"),
        (["--peer", "flower"], "there is no peer 'flower'"),
        (["--sites", "2"], "sites must be 3 to 10000, got 2"),
        (["--scale", "0"], "scale must be above 0"),
        (["--threads", "x"], "threads must be numbers by commas"),
        (["--plot", "no/such/folder/x.png"], "there is no folder 'no/such/folder'"),
    ],
)
def test_an_option_that_cannot_work_is_a_usage_error(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = exit_code(["bench", *arguments])

    assert code == 2
    assert said in capsys.readouterr().err


def test_a_chart_without_matplotlib_is_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from veilsum.bench import plot

    monkeypatch.setattr(plot.importlib.util, "find_spec", lambda name: None)

    code = exit_code(["bench", "--plot", "x.png"])

    assert code == 1
    assert capsys.readouterr().err == (
        "error: --plot draws with matplotlib, which is not installed\n"
        "hint: pip install 'veilsum[bench]'\n"
    )


def test_a_worker_that_cannot_start_its_work_says_why() -> None:
    broken = BenchOptions(**{**TINY, "peers": ("no_such_module_here:mean",)})

    with pytest.raises(run.BenchFailed, match="'no_such_module_here:mean' cannot be imported"):
        list(run.run_job(run.Job("mean", 1), broken))


def test_the_command_line_loads_neither_hosts_nor_matplotlib() -> None:
    program = "import sys, veilsum, veilsum.cli.main; print(*sorted(sys.modules))"

    loaded = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout.split()

    assert not {"flwr", "nvflare", "openfl", "torch", "matplotlib", "veilsum.bench"} & set(loaded)


def test_options_check_themselves() -> None:
    with pytest.raises(ConfigError, match="name at least one section"):
        BenchOptions(only=())
