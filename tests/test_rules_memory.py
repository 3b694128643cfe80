"""Memory of a whole aggregation, measured from outside (slow: seconds to a minute)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SITES = 40
PARAMETERS = 50_000_000
MODEL_BYTES = 4 * PARAMETERS

MAKE = """
import sys
import numpy as np
from veilsum import encode
values = np.random.default_rng(int(sys.argv[2])).standard_normal(int(sys.argv[3]), dtype=np.float32)
open(sys.argv[1], "wb").write(encode({"w": values}, codec="int8").to_bytes())
"""

AGGREGATE = """
import sys
from pathlib import Path
import numpy as np
from veilsum import Aggregator, EncodedUpdate, _native, ModelLayout, rules
folder, sites, size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
layout = ModelLayout(_native.Layout([("w", "f32", (size,))]))
aggregator = Aggregator(layout, spool=folder / "spool", threads=2)
for number in range(sites):
    data = (folder / f"update-{number % 3}").read_bytes()
    aggregator.add(data, weight=1, site=f"site {number:02}")
    del data
for rule in ("mean", "median", rules.Krum(byzantine=10)):
    assert len(aggregator.finish(rule=rule).sites) == sites
"""


def peak_bytes(code: str, *arguments: str) -> int:
    """Peak resident memory of a Python process that runs `code`."""
    process = subprocess.Popen([sys.executable, "-c", code, *arguments])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss * 1024


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units elsewhere")
def test_forty_updates_of_fifty_million_parameters_take_twice_the_model_at_most(tmp_path: Path):
    (tmp_path / "spool").mkdir()
    for number in range(3):
        file = tmp_path / f"update-{number}"
        peak_bytes(MAKE, str(file), str(number), str(PARAMETERS))

    peak = peak_bytes(AGGREGATE, str(tmp_path), str(SITES), str(PARAMETERS))

    assert peak <= 2 * MODEL_BYTES + (256 << 20), f"{peak >> 20} MiB"
