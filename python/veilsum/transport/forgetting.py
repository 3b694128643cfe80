"""Forgetting runs while the coordinator serves: on disk, then in the core."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

from veilsum.coordinator.core import Coordinator
from veilsum.transport.logs import Log
from veilsum.transport.retention import Retention
from veilsum.transport.retention_settings import RetentionSettings
from veilsum.transport.runner import Runner
from veilsum.transport.wire_requests import PrunedRun

EVERY_S = 3600.0

_T = TypeVar("_T")
_OVER = ("completed", "aborted")


async def forgotten(
    runner: Runner, forget: Callable[[_T], list[PrunedRun]], which: _T
) -> list[PrunedRun]:
    """Calls `forget`, and lets the core forget those runs of which the disk knows no more."""
    pruned = await asyncio.to_thread(forget, which)
    await runner.ask(lambda core: _forget(core, [run.run_id for run in pruned]))
    return pruned


def _forget(core: Coordinator, run_ids: Sequence[str]) -> None:
    over = {run.run_id for run in core.runs() if run.state in _OVER}
    for run_id in over.intersection(run_ids):
        core.forget(run_id)


class Tidying:
    """Forgets what the settings say, at the first call and then once an hour."""

    def __init__(
        self, runner: Runner, retention: Retention, settings: RetentionSettings, log: Log
    ) -> None:
        self._runner = runner
        self._retention = retention
        self._settings = settings
        self._log = log
        self._next = 0.0

    async def __call__(self) -> None:
        now = asyncio.get_running_loop().time()
        if now < self._next:
            return
        self._next = now + EVERY_S
        pruned = await forgotten(self._runner, self._retention.tidy, self._settings)
        if pruned:
            self._log.info("runs pruned", runs=len(pruned), bytes=sum(r.size_bytes for r in pruned))
