"""Those who watch a run: what has happened so far, then what happens, with no gap between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace

from veilsum.control import RunEvent
from veilsum.errors import VeilsumError
from veilsum.transport.storage import Storage

_LAST_KIND = "run"
_MAX_UNREAD = 10_000


class TooSlow(VeilsumError):  # noqa: N818  not an error of ours
    """A watcher does not read."""


_Queue = asyncio.Queue[tuple[int, RunEvent] | None]


class Watchers:
    """Passes events on. Used from the event loop."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._queues: dict[str, set[_Queue]] = {}

    def tell(self, event: RunEvent, number: int) -> None:
        """Tells those who watch a run of an event.

        Args:
            number: under which it is kept; 0 if it is not.
        """
        for queue in self._queues.get(event.run_id, ()):
            if queue.qsize() < _MAX_UNREAD:
                queue.put_nowait((number, event))
            elif queue.qsize() == _MAX_UNREAD:
                queue.put_nowait(None)

    async def watch(
        self, run_id: str, *, after: int = 0, over: bool = False
    ) -> AsyncGenerator[RunEvent, None]:
        """All events of a run, to its last.

        Args:
            after: number of the last event that is known already.
            over: the run has ended, so that nothing more will happen to it.

        Raises:
            TooSlow: the caller fell too far behind.
        """
        queue: _Queue = asyncio.Queue()
        self._queues.setdefault(run_id, set()).add(queue)
        try:
            # Subscribed before reading the past, so an event may come twice but never not
            # at all; the numbers tell which.
            last = after
            past = await asyncio.to_thread(self._storage.events, run_id, after=after)
            for number, event in past:
                last = number
                yield replace(event, number=number)
                if event.kind == _LAST_KIND:
                    return
            while not over:
                item = await queue.get()
                if item is None:
                    raise TooSlow("events come faster than they are read")
                number, event = item
                if number and number <= last:
                    continue
                yield replace(event, number=number)
                if event.kind == _LAST_KIND:
                    return
        finally:
            queues = self._queues[run_id]
            queues.discard(queue)
            if not queues:
                del self._queues[run_id]
