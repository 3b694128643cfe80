"""What grpc.health.v1 says: whether the coordinator takes calls, and whether it is alive at all.

The services of the coordinator and "" are ready or not; `veilsum.Liveness` is serving as long as
the process answers. Whoever restarts what is not alive must not ask the former: a coordinator
that takes up its runs, or lets uploads finish, is not ready and needs no restart.
"""

from __future__ import annotations

from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health_aio

LIVENESS = "veilsum.Liveness"

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Health:
    """Begins alive and not ready.

    Args:
        services: names of those that are ready or not.
    """

    def __init__(self, services: tuple[str, ...]) -> None:
        self.servicer = health_aio.HealthServicer()
        self._services = ("", *services)
        self._ready: bool | None = None

    async def start(self) -> None:
        """To be called before the first question."""
        await self.servicer.set(LIVENESS, _SERVING)
        await self.ready(False)

    async def ready(self, ready: bool) -> None:
        """Says whether calls are taken."""
        if ready == self._ready:
            return
        self._ready = ready
        for service in self._services:
            await self.servicer.set(service, _SERVING if ready else _NOT_SERVING)
