"""What grpc.health.v1 says: whether the coordinator takes calls, and whether it is alive at all.

The services of the coordinator and "" are ready or not; `veilsum.Liveness` is serving as long as
the process answers. Whoever restarts what is not alive must not ask the former: a coordinator
that takes up its runs, or lets uploads finish, is not ready and needs no restart.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

LIVENESS = "veilsum.Liveness"

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Health:
    """Begins alive and not ready.

    Args:
        services: names of those that are ready or not.
    """

    def __init__(self, services: tuple[str, ...]) -> None:
        self.servicer = _Servicer()
        self.servicer.set({LIVENESS: _SERVING})
        self._services = ("", *services)
        self.ready(False)

    def ready(self, ready: bool) -> None:
        """Says whether calls are taken."""
        status = _SERVING if ready else _NOT_SERVING
        self.servicer.set(dict.fromkeys(self._services, status))


class _Servicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # grpc has no types
    """Answers. Whoever watches and does not read holds up nobody: the servicer that comes with
    gRPC writes under the lock that it needs for a change."""

    def __init__(self) -> None:
        self._statuses: dict[str, int] = {}
        self._changed = asyncio.Event()

    def set(self, statuses: dict[str, int]) -> None:
        """Changes these, for all who ask from now on and all who watch."""
        self._statuses.update(statuses)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802  gRPC's name
        """How it is now."""
        status = self._statuses.get(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND)
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(  # noqa: N802  gRPC's name
        self, request: Any, context: Any
    ) -> AsyncGenerator[Any, None]:
        """How it is now, and whenever that changes."""
        del context
        told = None
        while True:
            changed = self._changed
            status = self._statuses.get(request.service, _UNKNOWN)
            if status != told:
                yield health_pb2.HealthCheckResponse(status=status)
                told = status
            else:
                await changed.wait()
