"""How a coordinator is told to stop, and how it lets uploads under way finish."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Orders:
    """What whoever runs a coordinator wants of it; signals give them.

    Attributes:
        stop: let uploads finish, then end.
        at_once: do not wait for them.
        reload: read files again that may have changed.
    """

    stop: asyncio.Event = field(default_factory=asyncio.Event)
    at_once: asyncio.Event = field(default_factory=asyncio.Event)
    reload: asyncio.Event = field(default_factory=asyncio.Event)

    def stop_again(self) -> None:
        """The first time: stop. The second time: at once."""
        if self.stop.is_set():
            self.at_once.set()
        self.stop.set()


async def until_idle(
    busy: Callable[[], int], orders: Orders, seconds: float, *, every_s: float = 0.1
) -> bool:
    """Waits until nothing is under way.

    Args:
        busy: how much is.
        seconds: the longest to wait; `orders.at_once` ends it sooner.

    Returns:
        Whether nothing is under way.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while busy() and not orders.at_once.is_set() and (left := end - loop.time()) > 0:
        with suppress(TimeoutError):
            async with asyncio.timeout(min(every_s, left)):
                await orders.at_once.wait()
    return busy() == 0
