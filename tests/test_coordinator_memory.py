"""What a coordinator and its sums keep in memory, by the kernel's own accounting."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from veilsum import encode

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
