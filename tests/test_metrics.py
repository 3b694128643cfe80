"""What the metrics say, and that nobody can make more of them than there are sites and runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from prometheus_client import generate_latest

from veilsum.control import RoundId, RoundRecord, RunEvent, RunSpec, RunStatus
from veilsum.transport.metrics import Metrics

RUN = RunStatus("run-1", RunSpec("task"), "running", "", 1, "keys", (), ())
RECORD = RoundRecord(
    RoundId("run-1", 1),
    completed=True,
    reason="",
    digest="ab",
    model_hash="cd",
    sites=("a", "b"),
    dropped={"c": "left"},
    total_weight=5,
    metrics={},
    bytes_in={"a": 100, "b": 200, "c": 50},
    seconds={"join": 0.5, "inputs": 8.0},
)


def lines(metrics: Metrics) -> dict[str, float]:
    """Name with labels -> value, of our own metrics."""
    text = generate_latest(metrics.registry).decode()
    pairs = (line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("veilsum_"))
    return {name: float(value) for name, value in pairs if "_created" not in name}


def test_a_running_run_is_measured_by_phase() -> None:
    metrics = Metrics(("a", "b", "c"))
    metrics.run_state(RUN)

    metrics.run_event(
        RunEvent("run-1", "phase", round_number=2, phase="keys", sites_in=1, sites_expected=3)
    )
    metrics.round_finished(RECORD, 9.0)

    found = lines(metrics)
    assert found['veilsum_run_round{run="run-1"}'] == 2
    assert found['veilsum_run_sites_in{run="run-1"}'] == 1
    assert found['veilsum_run_sites_expected{run="run-1"}'] == 3
    assert found['veilsum_run_bytes{run="run-1"}'] == 350
    assert found['veilsum_run_phase_seconds{phase="inputs",run="run-1"}'] == 8.0
    assert found['veilsum_phase_seconds_sum{phase="join"}'] == 0.5


def test_throughput_is_the_bytes_in_the_sum_by_the_seconds_of_the_core() -> None:
    metrics = Metrics(("a", "b", "c"))

    metrics.core_took("UpdateArrived", 0.5)
    metrics.core_took("DeadlinePassed", 1.0)
    metrics.round_finished(RECORD, 9.0)

    found = lines(metrics)
    assert found["veilsum_core_bytes_per_second"] == 200.0
    assert found["veilsum_summed_bytes_total"] == 300
    assert found['veilsum_core_seconds_total{event="UpdateArrived"}'] == 0.5


def test_what_names_a_run_goes_when_it_ends_and_does_not_come_back() -> None:
    metrics = Metrics(("a", "b", "c"))
    metrics.run_state(RUN)
    metrics.run_state(replace(RUN, run_id="run-2"))
    for run in ("run-1", "run-2"):
        metrics.run_event(RunEvent(run, "phase", round_number=1))
        metrics.round_finished(replace(RECORD, round=RoundId(run, 1)), 1.0)

    metrics.run_state(replace(RUN, state="completed"))
    metrics.run_event(RunEvent("run-1", "site", site="a"))
    metrics.round_finished(RECORD, 1.0)

    found = lines(metrics)
    assert not [name for name in found if "run-1" in name]
    assert found['veilsum_run_round{run="run-2"}'] == 1


def test_only_sites_of_the_roster_get_labels() -> None:
    metrics = Metrics(("a",))

    for name in ("a", "b", "c" * 60):
        metrics.sent(10, name)
        metrics.received(1, name)
        metrics.update_accepted(name)
        metrics.refused("unavailable", name)

    found = lines(metrics)
    assert found['veilsum_site_bytes_total{site="a",way="out"}'] == 10
    assert found['veilsum_site_bytes_total{site="other",way="in"}'] == 2
    assert found['veilsum_site_updates_total{site="other"}'] == 2
    assert found['veilsum_site_refusals_total{reason="unavailable",site="a"}'] == 1
    assert found['veilsum_refusals_total{reason="unavailable"}'] == 3
    assert not [name for name in found if "ccc" in name or 'site="b"' in name]


def test_the_disk_is_measured_when_someone_looks(tmp_path: Path) -> None:
    metrics = Metrics()
    spool, database = tmp_path / "spool", tmp_path / "state.db"
    spool.mkdir()
    metrics.watch_disk(tmp_path, database, spool)
    assert lines(metrics)["veilsum_journal_bytes"] == 0

    database.write_bytes(b"x" * 1000)
    (tmp_path / "state.db-wal").write_bytes(b"x" * 500)
    (spool / "one.update").write_bytes(b"x" * 8192)

    found = lines(metrics)
    assert found["veilsum_journal_bytes"] == 1500
    assert found["veilsum_spool_bytes"] >= 8192
    assert found["veilsum_disk_free_bytes"] > 0


def test_memory_and_open_files_of_the_process_are_there() -> None:
    text = generate_latest(Metrics().registry).decode()

    assert "process_resident_memory_bytes" in text
