"""Memory of a whole aggregation, measured from outside (slow: seconds to a minute)."""

from __future__ import annotations

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


# Of this process alone: ru_maxrss would begin with the size of the test process that forked it.
PEAK = """
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(status["VmHWM"].split()[0])
"""


def peak_bytes(code: str, *arguments: str) -> int:
    """Peak resident memory of a Python process that runs `code`."""
    done = subprocess.run(
        [sys.executable, "-c", code + PEAK, *arguments],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return int(done.stdout) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is needed")
def test_what_is_measured_is_the_process_alone():
    held = b"x" * (300 << 20)  # by the process that forks

    assert 0 < peak_bytes("") < len(held) / 3
    assert peak_bytes("held = b'x' * (300 << 20)") > len(held)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc is needed")
def test_forty_updates_of_fifty_million_parameters_take_twice_the_model_at_most(tmp_path: Path):
    (tmp_path / "spool").mkdir()
    for number in range(3):
        file = tmp_path / f"update-{number}"
        peak_bytes(MAKE, str(file), str(number), str(PARAMETERS))

    peak = peak_bytes(AGGREGATE, str(tmp_path), str(SITES), str(PARAMETERS))

    assert peak <= 2 * MODEL_BYTES + (256 << 20), f"{peak >> 20} MiB"
