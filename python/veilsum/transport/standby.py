"""A coordinator that waits for another to end, to take over its state directory."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

from veilsum.transport.drain import Orders
from veilsum.transport.durable import Points
from veilsum.transport.logs import Log
from veilsum.transport.state_lock import StateInUse
from veilsum.transport.storage import Storage

EVERY_S = 1.0
"""How often it tries."""


async def open_storage(
    folder: Path, waiting: Orders | None, points: Points, log: Log
) -> Storage | None:
    """The state directory, once nobody else uses it; None: told to stop before.

    Args:
        waiting: whose orders to heed meanwhile; None: not to wait.

    Raises:
        StateInUse: by another, and not to wait.
        ConfigError: it cannot be used.
    """
    said = False
    while True:
        try:
            storage = Storage(folder, points=points)
        except StateInUse as error:
            if waiting is None:
                raise
            if not said:
                log.info("standing by", reason=str(error))
            said = True
        else:
            _log_takeover(storage, log)
            return storage
        with suppress(TimeoutError):
            async with asyncio.timeout(EVERY_S):
                await waiting.stop.wait()
            return None


def _log_takeover(storage: Storage, log: Log) -> None:
    before = storage.lock.before
    if before is not None:
        # Killed, or its machine failed: how a coordinator ends that was not told to.
        log.warning("taking over", pid=before.pid, host=before.host, since=before.since)
