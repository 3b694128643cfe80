"""Follows a run from submission to its end, and kills a site on the way."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from veilsum.control import RunEvent, RunSpec, RunStatus
from veilsum.demo.options import Drop
from veilsum.demo.processes import DemoFailed, Processes
from veilsum.errors import VeilsumError
from veilsum.transport.operator import OperatorClient

_POLL_SECONDS = 0.2
# The site is at work on its update when this phase begins, and its secrets are shared: the
# others have to rebuild them.
_DROP_PHASES = ("inputs", "updates")


@dataclass(frozen=True)
class Failure:
    """The site to kill, and how to start it again."""

    drop: Drop
    config: Path


def follow_run(
    operator: OperatorClient,
    processes: Processes,
    run: tuple[RunSpec, bytes],
    failure: Failure | None,
    show: Callable[[RunEvent], None],
) -> RunStatus:
    """Submits a run and stays until its end.

    Args:
        run: what to run, and the initial model as a safetensors file.
        failure: a site to kill in the middle of a round and to start again for the next.
        show: takes every event.

    Raises:
        DemoFailed: the run was aborted, or a process ended unasked.
    """
    spec, model = run
    run_id = operator.submit(spec, model).run_id
    for event in _events(operator, run_id, processes):
        show(event)
        if failure is not None and _is_time(failure.drop, event):
            processes.kill(failure.drop.site)
            if failure.drop.round_number < spec.rounds:
                processes.start_site(failure.drop.site, failure.config)
            failure = None
    status = operator.get(run_id)
    if status.state != "completed":
        raise DemoFailed(f"the run was aborted: {status.reason}")
    if failure is not None:
        raise DemoFailed(f"there was no moment to kill {failure.drop.site}")
    return status


def _is_time(drop: Drop, event: RunEvent) -> bool:
    return (
        event.kind == "phase"
        and event.round_number == drop.round_number
        and event.phase in _DROP_PHASES
    )


def _events(operator: OperatorClient, run_id: str, processes: Processes) -> Iterator[RunEvent]:
    """The run's events; between them, looks after the processes."""
    arrived: queue.SimpleQueue[RunEvent | VeilsumError | None] = queue.SimpleQueue()

    def read() -> None:
        try:
            for event in operator.watch(run_id):
                arrived.put(event)
            arrived.put(None)
        except VeilsumError as error:
            arrived.put(error)

    # A daemon, since only the end of the connection ends it.
    threading.Thread(target=read, name="events", daemon=True).start()
    while True:
        processes.check()
        try:
            event = arrived.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            continue
        if event is None:
            return
        if isinstance(event, VeilsumError):
            processes.check()  # a coordinator that died explains more than a broken stream
            raise event
        yield event
