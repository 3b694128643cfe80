"""A real coordinator and real sites inside one event loop, over gRPC on the loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from support.consortium import Consortium
from support.tiny_trainer import TinyTrainer
from veilsum.pki.issue import IssuedFiles
from veilsum.proto.v1 import federation_pb2 as pb
from veilsum.proto.v1 import federation_pb2_grpc, operator_pb2_grpc
from veilsum.site.bounds import TaskBounds
from veilsum.transport.coordinator_app import serve_coordinator
from veilsum.transport.drain import Orders
from veilsum.transport.operator import OperatorClient
from veilsum.transport.settings import CoordinatorSettings
from veilsum.transport.site_app import serve_site

SECONDS = 240  # nobody waits so long for anything but a deadlock


def run_async(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs a test's coroutine; one that hangs fails."""

    async def bounded() -> None:
        await asyncio.wait_for(main(), SECONDS)

    asyncio.run(bounded())


@asynccontextmanager
async def serving(
    settings: CoordinatorSettings, orders: Orders | None = None
) -> AsyncIterator[int]:
    """A coordinator; gives its port. What ended it early is raised."""
    orders = orders or Orders()
    ready: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(serve_coordinator(settings, orders=orders, ready=ready.set_result))
    await asyncio.wait((task, ready), return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
    try:
        yield ready.result()
    finally:
        orders.stop.set()
        await task


@asynccontextmanager
async def sites(consortium: Consortium, port: int, names: Sequence[str]) -> AsyncIterator[None]:
    """Sites that train with a TinyTrainer each."""
    stop = asyncio.Event()
    tasks = []
    for number, name in enumerate(names):
        settings = consortium.site_settings(name, port, bounds=TaskBounds(plain_rounds=True))
        tasks.append(asyncio.create_task(serve_site(settings, TinyTrainer(number), stop=stop)))
    try:
        yield
    finally:
        stop.set()
        await asyncio.gather(*tasks)


@dataclass
class Foreign:
    """A client made from the .proto files alone, as another program would be."""

    channel: grpc.aio.Channel

    @property
    def federation(self) -> federation_pb2_grpc.FederationStub:
        return federation_pb2_grpc.FederationStub(self.channel)

    @property
    def operator(self) -> operator_pb2_grpc.OperatorStub:
        return operator_pb2_grpc.OperatorStub(self.channel)


@asynccontextmanager
async def foreign(port: int, files: IssuedFiles, ca: Path | None = None) -> AsyncIterator[Foreign]:
    """A foreign client with a member's certificate."""
    credentials = grpc.ssl_channel_credentials(
        (ca or files.ca).read_bytes(),
        files.tls_key.read_bytes(),
        files.tls_certificate.read_bytes(),
    )
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel:
        yield Foreign(channel)


def hello(roster_hash: bytes) -> pb.SiteMessage:
    """A site's first message."""
    return pb.SiteMessage(
        hello=pb.Hello(version="test", roster_hash=roster_hash, instance=b"i" * 16)
    )


async def status_of(call: Any) -> tuple[grpc.StatusCode, str]:
    """How a call ends: (status, text), OK if it does well."""
    try:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or ""
    return grpc.StatusCode.OK, ""


@asynccontextmanager
async def operating(consortium: Consortium, port: int) -> AsyncIterator[OperatorClient]:
    """The blocking client; call it through asyncio.to_thread."""
    client = OperatorClient(consortium.operator_settings(port))
    try:
        yield client
    finally:
        client.close()
