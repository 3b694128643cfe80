"""From the socket to the disk: how much may be in between, and how long a site may say nothing.

gRPC reads a message of a call only when it is asked for one. A call asks for its next frame when
the one before is on disk, and when all calls together have less on its way than they may: a slow
disk holds up the sockets, and memory stays as it is. At most, there is `limit_bytes` and one frame
of each open call.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from veilsum.errors import VeilsumError


class Stalled(VeilsumError):  # noqa: N818  a passing state, not a mistake
    """A site says nothing more on a call that is open. It may go on with another."""


class ByteBudget:
    """Bytes that may be held at once. Used from one event loop; first come, first served."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._held = 0
        self._turn = asyncio.Lock()  # its waiters are in order
        self._freed = asyncio.Event()

    async def room(self) -> None:
        """Waits until anything at all could be held."""
        while self._held >= self._limit:
            self._freed.clear()
            await self._freed.wait()

    @asynccontextmanager
    async def held(self, size: int) -> AsyncIterator[None]:
        """Waits until so many bytes are free; more than there are in all wait until all are."""
        async with self._turn:
            while self._held and self._held + size > self._limit:
                self._freed.clear()
                await self._freed.wait()
            self._held += size
        try:
            yield
        finally:
            self._held -= size
            self._freed.set()


class Flow:
    """Lets frames in.

    Args:
        limit_bytes: of the frames of all calls that were received and are not dealt with yet.
        stall_s: a call on which nothing arrives for so long ends.
    """

    def __init__(self, limit_bytes: int, stall_s: float) -> None:
        self._budget = ByteBudget(limit_bytes)
        self._stall_s = stall_s

    async def feed(
        self, frames: AsyncIterator[bytes], take: Callable[[bytes], Awaitable[None]]
    ) -> None:
        """Hands a call's frames over, each when the one before was taken.

        Raises:
            Stalled: none came in time.
        """
        while await self._feed_one(frames, take):
            pass

    async def _feed_one(
        self, frames: AsyncIterator[bytes], take: Callable[[bytes], Awaitable[None]]
    ) -> bool:
        """A function of its own, so that no frame is kept while the next is awaited."""
        await self._budget.room()
        frame = await self._next(frames)
        if frame is None:
            return False
        async with self._budget.held(len(frame)):
            await take(frame)
        return True

    async def _next(self, frames: AsyncIterator[bytes]) -> bytes | None:
        try:
            async with asyncio.timeout(self._stall_s):
                return await anext(frames, None)
        except TimeoutError:
            raise Stalled(
                f"nothing came for {self._stall_s:g} seconds",
                hint="what came before is held; PushStatus says how much",
            ) from None
