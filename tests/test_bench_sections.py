"""Every section of `veilsum bench`, tiny: who is in it, and that all of ours is right."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import veilsum
from veilsum.bench import codec, run
from veilsum.bench.installed import PEERS
from veilsum.bench.masked import SERVER, SITE
from veilsum.bench.options import BenchOptions
from veilsum.bench.peers import quantized
from veilsum.bench.rows import Row

ROOT = Path(__file__).parents[1]
SOURCE = str(Path(veilsum.__file__).parents[1])


def rows_of(section: str, **options: Any) -> list[Row]:
    tiny = {"scale": 0.002, "seconds": 0.01, "sites": 4, "only": (section,), "peers": PEERS}
    chosen = BenchOptions(**{**tiny, **options})
    return [row for job in run.jobs(chosen) for row in run.run_job(job, chosen)]


def measured(rows: list[Row]) -> set[str]:
    """Who was, and every one of them right."""
    found = [row for row in rows if row.seconds is not None]
    wrong = [(row.case, row.contender, row.error) for row in found if row.correct is False]
    assert wrong == []
    return {row.contender for row in found}


@pytest.mark.slow
def test_every_codec_is_measured_and_the_usual_ones_beside_numpy() -> None:
    rows = rows_of("codec", peers=("numpy",))

    names = {row.case.partition(",")[0] for row in rows if row.ours}
    assert names == {name for name in veilsum.codecs.codecs() if codec._wanted(name)}
    assert measured(rows) == {"veilsum", "NumPy decode, add"}
    beside = {row.case.partition(",")[0] for row in rows if not row.ours}
    assert beside == set(quantized.SUMS)


def test_codes_of_numpy_are_near_what_they_stand_for() -> None:
    row = np.random.default_rng(0).normal(size=1 << 12).astype(np.float32)

    for codec_name, table in quantized._TABLES.items():
        decoded = quantized._from_table(table, *quantized._table(row, table))
        share = float(np.square(decoded - row).sum() / np.square(row).sum())
        assert share < 0.05, codec_name


@pytest.mark.slow
def test_rules_stand_beside_flowers_own() -> None:
    pytest.importorskip("flwr", reason="flwr is not installed (extra `flower`)")

    rows = rows_of("rule", sites=8)

    assert measured(rows) == {
        "veilsum",
        "np.median",
        "Flower FedMedian.aggregate_train",
        "Flower aggregate_median (legacy)",
        "Flower Krum.aggregate_train",
        "Flower aggregate_krum (legacy)",
    }


@pytest.mark.slow
def test_a_masked_round_is_measured_for_a_site_and_for_the_server() -> None:
    rows = rows_of("masked", peers=("flwr",))

    ours = {(row.contender, row.part) for row in rows if row.ours}
    assert ours == {
        (f"veilsum, {generator}", part)
        for generator in ("ChaCha20", "AES-256-CTR")
        for part in (SITE, SERVER)
    }
    who = measured(rows)
    if importlib.util.find_spec("flwr") is not None:
        assert "Flower SecAgg+" in who
    for row in rows:
        assert row.reason is not None or row.unit == "steps"


@pytest.mark.slow
def test_uploads_and_downloads_stand_beside_grpc_alone() -> None:
    rows = rows_of("transport", sites=3)

    assert measured(rows) == {"veilsum", "raw gRPC"}
    assert {row.case.partition(",")[0] for row in rows} == {"PushUpdate", "FetchModel"}
    assert all(row.gb_per_s is not None and row.gb_per_s > 0 for row in rows)
    assert all(row.clock == "wall" for row in rows)


@pytest.mark.slow
def test_adapters_stand_beside_the_hosts_they_are_in() -> None:
    for host in ("flwr", "nvflare"):
        pytest.importorskip(host, reason=f"{host} is not installed (extra `hosts`)")

    rows = rows_of("mean", peers=("flwr", "nvflare"))

    inside = [row for row in rows if "inside" in row.case]
    assert {(row.contender, row.ours) for row in inside} == {
        ("veilsum.integrations.flower.FedAvg", True),
        ("Flower FedAvg.aggregate_train", False),
        ("veilsum.integrations.nvflare.VeilsumAggregator", True),
        ("NVFLARE InTimeAccumulateWeightedAggregator", False),
    }
    measured(rows)


@pytest.mark.slow
def test_more_threads_are_a_table_of_their_own() -> None:
    rows = rows_of("rule", peers=("numpy",), threads=(1, 2), sites=4)

    assert {(row.threads, row.clock) for row in rows} == {(1, "processor"), (2, "wall")}
    assert {row.contender for row in rows if row.threads == 2} == {"veilsum"}


def children(process: int) -> list[str]:
    try:
        return Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except FileNotFoundError:
        return []


def runs(process: str) -> bool:
    """Not if it only waits for somebody to ask how it ended."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(") ")[2][0] not in "ZX"


def test_ctrl_c_ends_the_command_and_all_it_started() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "veilsum", "bench", "--only", "rule", "--scale", "0.01"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": SOURCE},
        start_new_session=True,
    )
    while not (worker := children(process.pid)) or not (sides := children(int(worker[0]))):
        assert process.poll() is None

    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=240)

    assert process.returncode == 130
    assert said == b""
    for pid in (*worker, *sides):
        while runs(pid):  # it was killed; the kernel takes its memory apart
            pass


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("flwr") is None, reason="flwr is not installed")
def test_a_flower_server_with_our_strategy_holds_no_reply_for_each_client() -> None:
    sizes = ["--clients", "16", "--parameters", "4000000"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench" / "host_memory.py"), "--json", *sizes],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": SOURCE},
    )

    found = {line["strategy"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert found["flower"]["of the round, models"] > 16
    assert found["veilsum"]["of the round, models"] < 8
    assert found["veilsum"]["error, roundings"] <= 1.001
