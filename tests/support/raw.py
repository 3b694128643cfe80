"""Calls made of bytes, to everything that a coordinator serves: nothing of our own client is in
them, and nothing keeps them from being wrong."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from support.proxy import HOST
from veilsum.pki.issue import IssuedFiles
from veilsum.proto.v1 import federation_pb2, operator_pb2

_FILES = (federation_pb2, operator_pb2, health_pb2, reflection_pb2)

METHODS: dict[str, MethodDescriptor] = {
    f"/{service.full_name}/{method.name}": method
    for file in _FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
"""Every method of every service, by its path."""

# Perhaps declared, and perhaps not there: nobody gets in.
NOT_SERVED = frozenset({"/grpc.health.v1.Health/List"})

# What grpc.aio says instead of what the server said, if the server ended the call before the
# client's first message was written.
_ANSWER_LOST = (grpc.StatusCode.INTERNAL, "Internal error from Core")


@asynccontextmanager
async def dialled(
    port: int,
    credentials: grpc.ChannelCredentials | None = None,
    options: Iterable[tuple[str, Any]] = (),
) -> AsyncIterator[grpc.aio.Channel]:
    """A connection of its own. Its messages may be of any size."""
    options = [
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
        *options,
    ]
    address = f"{HOST}:{port}"
    channel = (
        grpc.aio.insecure_channel(address, options)
        if credentials is None
        else grpc.aio.secure_channel(address, credentials, options)
    )
    async with channel:
        yield channel


def credentials_of(files: IssuedFiles, ca: bytes | None = None) -> grpc.ChannelCredentials:
    """A member's certificate."""
    return grpc.ssl_channel_credentials(
        ca or files.ca.read_bytes(),
        files.tls_key.read_bytes(),
        files.tls_certificate.read_bytes(),
    )


def call(channel: grpc.aio.Channel, path: str, messages: Any, **options: Any) -> Any:
    """Starts a call.

    Args:
        messages: the request; of a method that streams, an async iterator of them, or None for a
            call that write() is to be used of.
    """
    method = METHODS[path]
    make: Callable[[str], Any] = {
        (False, False): channel.unary_unary,
        (False, True): channel.unary_stream,
        (True, False): channel.stream_unary,
        (True, True): channel.stream_stream,
    }[method.client_streaming, method.server_streaming]
    return make(path)(messages, **options)


async def told(started: Any) -> tuple[grpc.StatusCode, str]:
    """How a call goes: OK as soon as it is answered with a message, else its status and text."""
    try:
        if hasattr(started, "read"):
            await started.read()
            started.cancel()
        else:
            await started
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or ""
    return grpc.StatusCode.OK, ""


async def said(
    channel: grpc.aio.Channel, path: str, *messages: bytes, **options: Any
) -> tuple[grpc.StatusCode, str]:
    """How a call with these messages goes, and nothing after them."""

    async def streamed() -> AsyncIterator[bytes]:
        for message in messages:
            yield message

    while True:
        request = streamed() if METHODS[path].client_streaming else messages[0]
        found = await told(call(channel, path, request, **options))
        if found != _ANSWER_LOST:
            return found
