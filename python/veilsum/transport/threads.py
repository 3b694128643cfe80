"""Work in threads that is waited for to its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

_T = TypeVar("_T")


async def in_thread(work: Callable[[], _T], threads: Executor | None = None) -> _T:
    """Runs `work` in a thread and returns only when the thread has, cancelled or not.

    A thread cannot be stopped: one left behind by what was cancelled would go on changing what
    the next in turn is changing by then.

    Args:
        threads: to take one of; None for the event loop's.
    """
    thread = asyncio.get_running_loop().run_in_executor(threads, work)
    try:
        return await asyncio.shield(thread)
    except asyncio.CancelledError:
        await asyncio.wait((thread,))
        thread.exception()  # nobody is left to tell
        raise
