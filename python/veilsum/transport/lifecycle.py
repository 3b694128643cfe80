"""A coordinator from its start to its end: not ready while it takes up what it was at, ready, and
no longer ready while uploads under way finish."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import grpc
import grpc.aio

from veilsum.transport.admission import Admission, OpenCall
from veilsum.transport.callers import CallRefused
from veilsum.transport.drain import Orders, until_idle
from veilsum.transport.entrance import JOIN, STOPPING, UPLOAD, WATCH, Entrance
from veilsum.transport.health import Health
from veilsum.transport.links import Links
from veilsum.transport.logs import Log
from veilsum.transport.metrics import Metrics
from veilsum.transport.runner import Runner
from veilsum.transport.upkeep import Upkeep

_GRACE_SECONDS = 2.0


@dataclass(frozen=True)
class Parts:
    """What a coordinator is made of, as far as its start and end concern it."""

    server: grpc.aio.Server
    door: Admission
    entrance: Entrance
    health: Health
    runner: Runner
    links: Links
    metrics: Metrics
    log: Log


class Lifecycle:
    """Starts, serves and stops.

    Args:
        drain_s: how long uploads under way may take once it is to stop.
    """

    def __init__(self, parts: Parts, drain_s: float) -> None:
        self._parts = parts
        self._drain_s = drain_s
        self._disk_works = True

    async def run(self, orders: Orders, upkeep: Upkeep, ready: Callable[[], None]) -> None:
        """Serves until `orders.stop`.

        Args:
            ready: called once sites and operators are let in.

        Raises:
            VeilsumError: why it cannot go on.
        """
        parts = self._parts
        tasks: list[asyncio.Task[None]] = []
        try:
            await parts.server.start()
            if not await self._take_up(orders):
                return
            tasks.append(asyncio.create_task(parts.runner.run()))
            tasks.append(asyncio.create_task(upkeep.run(parts.door, orders.reload)))
            parts.entrance.state = "serving"
            self._say_ready()
            ready()
            if await _first_of(orders.stop, *tasks):
                await self._drain(orders)
        finally:
            parts.entrance.state = "stopping"
            self._say_ready()
            parts.links.close_all(STOPPING)
            await parts.server.stop(0 if orders.at_once.is_set() else _GRACE_SECONDS)
            for task in tasks:
                task.cancel()
            for task in tasks:
                with suppress(asyncio.CancelledError):
                    await task

    async def disk_works(self, works: bool) -> None:
        """Whether what happens can be written down; while it cannot, nobody should call."""
        self._disk_works = works
        self._say_ready()

    def _say_ready(self) -> None:
        ready = self._parts.entrance.state == "serving" and self._disk_works
        self._parts.metrics.ready(ready)
        self._parts.health.ready(ready)

    async def _take_up(self, orders: Orders) -> bool:
        """Goes on with what an earlier process was at; False if told to stop meanwhile."""
        taking_up = asyncio.create_task(self._parts.runner.recover())
        stopped = await _first_of(orders.stop, taking_up)
        if not stopped:
            return True
        taking_up.cancel()
        with suppress(asyncio.CancelledError):
            await taking_up
        return False

    async def _drain(self, orders: Orders) -> None:
        parts = self._parts
        parts.entrance.state = "stopping"
        parts.runner.drain()
        self._say_ready()
        uploading = {call.caller for call in self._calls(UPLOAD)}
        parts.log.info("stopping", uploads=len(uploading), drain_s=self._drain_s)
        for call in self._calls(JOIN, WATCH):
            if call.caller not in uploading:
                call.end(CallRefused(grpc.StatusCode.UNAVAILABLE, STOPPING))
        idle = await until_idle(lambda: len(self._calls(UPLOAD)), orders, self._drain_s)
        if not idle:
            parts.log.warning("uploads are cut off", uploads=len(self._calls(UPLOAD)))

    def _calls(self, *paths: str) -> list[OpenCall]:
        return [call for call in self._parts.door.open_calls() if call.path in paths]


async def _first_of(stop: asyncio.Event, *tasks: asyncio.Task[None]) -> bool:
    """Waits for the order to stop, and for the first task to end. Whether the order came."""
    waiting = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((waiting, *tasks), return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
    for task in tasks:
        if task.done():
            task.result()  # raises what ended it
    return stop.is_set()
