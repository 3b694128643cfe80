"""What a coordinator and its sums keep in memory, by the kernel's own accounting."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import veilsum
from veilsum import encode
from veilsum.transport.heap import Heap

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc is needed")

FINISH = """
import os, sys
from pathlib import Path
from veilsum import EncodedUpdate, ModelLayout, _native
folder, sites = Path(sys.argv[1]), int(sys.argv[2])
update = EncodedUpdate.from_bytes((folder / "update").read_bytes())
form = update.form
mean = _native.MeanAggregator(
    update.layout.native, threads=2, spool="", streaming_max_abs=0.0, streaming_max_total_weight=0
)
with open(folder / "chunks", "wb") as stream:
    places = [(stream.tell(), stream.write(chunk)) for chunk in update.body]
file = os.open(folder / "chunks", os.O_RDONLY)
settings = dict(
    codec=form.number, scale=form.scale, plan_digest=form.plan_digest,
    update_id=form.update_id, chunk_coordinates=form.chunk_coordinates,
)
for number in range(sites):
    mean.add_file(f"s{number}", 1, file, places, **settings)
mean.finish()
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(status["VmHWM"].split()[0])
"""


def test_many_small_updates_in_files_take_no_memory_each(tmp_path: Path) -> None:
    """256 MiB of files, of which a walk has some 32 MiB in sight, also if no file is large."""
    values = np.random.default_rng(0).standard_normal(2**18, np.float32)
    (tmp_path / "update").write_bytes(encode({"w": values}, codec="f32").to_bytes())

    def peak(sites: int) -> int:
        command = [sys.executable, "-c", FINISH, str(tmp_path), str(sites)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        return int(done.stdout) << 10

    assert peak(256) - peak(1) < 128 << 20


# --- small versions of bench/thousand_sites.py and bench/big_round.py -------------------

BENCH = Path(__file__).parents[1] / "bench"
MIB = 1 << 20

# What a round may take beside two models and what an idle process has, the interpreter and its
# libraries: 32 MiB of files in sight, 24 MiB for frames on their way, parts of tensors and what the
# allocator has not given back, and 16 MiB of doubles while a masked sum is decoded. A third model
# of the size below is 31 MiB.
POOL = {"plain": 56 * MIB, "masked": 72 * MIB}
PARAMETERS = 8_192_000


def facts(program: str, folder: Path, *arguments: str) -> dict[str, Any]:
    """What a program reports, which has checked the round's digests before."""
    done = subprocess.run(
        [sys.executable, str(BENCH / program), "--json", "--folder", str(folder), *arguments],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(veilsum.__file__).parents[1])},
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _grown(found: dict[str, Any]) -> int:
    peak, idle = "coordinator, peak MiB resident", "coordinator, MiB resident when idle"
    return (int(found[peak]) - int(found[idle])) * MIB


@pytest.mark.parametrize("kind", ["plain", "masked"])
def test_a_round_takes_two_models_whatever_the_number_of_sites(kind: str, tmp_path: Path) -> None:
    size = ("--sites", "5", "--parameters", str(PARAMETERS), "--tensors", "2")

    grown = _grown(facts("big_round.py", tmp_path, "--kind", kind, *size))

    assert grown <= 2 * 4 * PARAMETERS + POOL[kind], f"{grown // MIB} MiB"


def test_many_sites_take_a_mebibyte_each_at_most(tmp_path: Path) -> None:
    found = facts("thousand_sites.py", tmp_path, "--sites", "60", "--parameters", "10240")

    assert _grown(found) <= 60 * MIB, found


def test_freed_memory_is_given_back_each_time_so_much_has_passed() -> None:
    trimmed: list[int] = []
    heap = Heap(lambda keep: trimmed.append(keep) or 1)

    for _ in range(5):
        heap.passed(30 * MIB)

    assert trimmed == [0]
    heap.passed(1 << 40)
    assert trimmed == [0, 0]
