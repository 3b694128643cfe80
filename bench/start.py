"""How long a coordinator's state takes to open after many rounds, and what they take on disk.

    python bench/start.py [--rounds 10000] [--sites 12]

Writes rounds of runs that are over, and of one that goes on, as a coordinator would, opens the
state directory anew, and checks that nothing was lost. No gRPC: what is timed is Storage and what
is read to go on, in the process itself.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

from veilsum.control import RoundId, RoundRecord, RunEvent, RunSpec, RunStatus
from veilsum.coordinator.standing import Standing
from veilsum.transport.storage import Storage
from veilsum.transport.tables import put_event, put_round, put_run, put_standing

BATCH = 500


def record(run_id: str, number: int, sites: tuple[str, ...]) -> RoundRecord:
    """A round of a masked run."""
    phases = ("join", "keys", "shares", "inputs", "votes", "unmask", "acks")
    return RoundRecord(
        RoundId(run_id, number),
        True,
        "",
        "ab" * 32,
        "cd" * 32,
        sites,
        {},
        1000 * len(sites),
        {"auc": 0.8, "loss": 0.3},
        dict.fromkeys(sites, 1 << 20),
        dict.fromkeys(phases, 1.5),
    )


def fill(storage: Storage, run_id: str, rounds: int, sites: tuple[str, ...], state: str) -> None:
    """A run of so many rounds, with five events in each."""
    status = RunStatus(run_id, RunSpec("bench", rounds=rounds), state, "", rounds, "", (), ())  # type: ignore[arg-type]
    storage.change([partial(put_run, status=status)])
    for first in range(1, rounds + 1, BATCH):
        numbers = range(first, min(first + BATCH, rounds + 1))
        storage.change([partial(put_round, record=record(run_id, n, sites)) for n in numbers])
        events = [RunEvent(run_id, "phase", n, phase="keys") for n in numbers for _ in range(5)]
        storage.change([partial(put_event, event=event) for event in events])
    if state == "running":
        standing = Standing(RoundId(run_id, rounds + 1), b"")
        storage.change([partial(put_standing, standing=standing)])


def seconds_to_open(folder: Path) -> float:
    """What a start reads before the core takes over."""
    began = time.perf_counter()
    storage = Storage(folder)
    storage.unfinished()
    storage.log()
    took = time.perf_counter() - began
    storage.close()
    return took


def measure(rounds: int, sites: tuple[str, ...], state: str) -> dict[str, object]:
    """Median of nine starts."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "state"
        storage = Storage(folder)
        fill(storage, "run", rounds, sites, state)
        storage.close()
        times = [seconds_to_open(folder) for _ in range(9)]
        storage = Storage(folder)
        kept = storage.run("run")
        storage.close()
        if kept is None or len(kept.rounds) != rounds:
            raise SystemExit("rounds were lost")
        return {
            "rounds": rounds,
            "sites": len(sites),
            "state": state,
            "seconds": round(statistics.median(times), 4),
            "spread": [round(min(times), 4), round(max(times), 4)],
            "database_bytes": (folder / "state.db").stat().st_size,
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10_000)
    parser.add_argument("--sites", type=int, default=12)
    arguments = parser.parse_args()
    sites = tuple(f"site-{number}" for number in range(arguments.sites))
    for state in ("completed", "running"):
        print(json.dumps(measure(arguments.rounds, sites, state)))


if __name__ == "__main__":
    main()
