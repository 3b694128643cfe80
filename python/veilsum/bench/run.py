"""Starts the processes that measure, one for each section and number of threads, and reads rows."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import veilsum
from veilsum.bench import machine
from veilsum.bench.installed import HOSTS
from veilsum.bench.options import BenchOptions
from veilsum.bench.rows import Row
from veilsum.devices import available_threads
from veilsum.errors import VeilsumError

_LOG_TAIL = 4000
# What BLAS, OpenMP and our own core read once, when they are loaded.
_THREAD_VARIABLES = (
    "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VEILSUM_THREADS",
)  # fmt: skip


class BenchFailed(VeilsumError):  # noqa: N818  the outcome
    """A measurement could not be made, or one of our results is wrong."""


@dataclass(frozen=True, slots=True)
class Job:
    """One process's work."""

    section: str
    threads: int


def jobs(options: BenchOptions) -> list[Job]:
    """In the order of the tables. Transport has one way: a server has the threads it has."""
    return [
        Job(section, threads)
        for section in options.only
        for threads in (options.threads[:1] if section == "transport" else options.threads)
    ]


def run_job(job: Job, options: BenchOptions) -> Iterator[Row]:
    """Rows as soon as they are there; the process and all it forked end with the iterator.

    Raises:
        BenchFailed: one of our own results is off, or the process ended.
    """
    with tempfile.TemporaryFile("w+") as log, _worker(job, log) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        given = {"section": job.section, "threads": job.threads, "options": options.to_json()}
        process.stdin.write(json.dumps(given))
        process.stdin.close()
        for line in process.stdout:
            document = json.loads(line)
            if "error" in document:
                raise BenchFailed(document["error"], hint=document["hint"])
            yield Row.from_json(document["row"])
        if process.wait() != 0:
            log.seek(0)
            raise BenchFailed(
                f"the process that measured {job.section} ended with {process.returncode}: "
                f"{log.read()[-_LOG_TAIL:].strip() or 'nothing said'}"
            )


@contextmanager
def _worker(job: Job, log: IO[str]) -> Iterator[subprocess.Popen[str]]:
    """A group of its own, so that Ctrl-C reaches us alone and we end all of it at once."""
    places = [str(Path(veilsum.__file__).parents[1]), os.environ.get("PYTHONPATH", ""), os.getcwd()]
    process = subprocess.Popen(
        [sys.executable, "-m", "veilsum.bench.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        start_new_session=True,
        env={
            **os.environ,
            **dict.fromkeys(_THREAD_VARIABLES, str(job.threads)),
            "PYTHONPATH": os.pathsep.join(filter(None, places)),
        },
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):  # all of it has ended by itself
            os.killpg(process.pid, signal.SIGKILL)
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()
        process.wait()


# --- the report ---------------------------------------------------------------------------


def facts(options: BenchOptions) -> dict[str, Any]:
    """What a reader of the figures needs to know beside them."""
    load = os.getloadavg()[0]
    return {
        "veilsum": veilsum.__version__,
        "date": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        **machine.description(),
        "processors": available_threads(),
        "load_before": round(load, 2),
        "available_bytes": machine.available_bytes(),
        "peers": {
            name: {"version": host.version, "install": host.install} for name, host in HOSTS.items()
        },
        "options": options.to_json(),
    }


def document(about: dict[str, Any], rows: list[Row], load_after: float) -> dict[str, Any]:
    """The JSON of a whole run."""
    return {
        "schema": 1,
        "about": {**about, "load_after": round(load_after, 2)},
        "rows": [row.to_json() for row in rows],
    }
