"""The site's connection to the coordinator. A site dials out; nothing connects to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import grpc
import grpc.aio
from numpy.typing import NDArray
from typing_extensions import Buffer

from veilsum.control import (
    Hello,
    RoundId,
    ToCoordinator,
    ToSite,
    UpdateHeader,
    Welcome,
)
from veilsum.errors import DecodeError, LedgerError, VeilsumError
from veilsum.model import ModelLayout
from veilsum.transport import wire_data
from veilsum.transport.endpoint import Endpoint
from veilsum.transport.outgoing import message_kind, update_kind
from veilsum.transport.received_model import IncomingModel
from veilsum.transport.server import FEDERATION
from veilsum.transport.threads import in_thread
from veilsum.transport.wire import decode_to_site, encode_to_coordinator

FRAME_BYTES = (1 << 20) + (1 << 12)
"""Most bytes of chunks that travel in one message, so that four of 65,536 floats fit in with their
headers; smaller messages halve the rate."""

LINKS_LIMIT = 64 << 20
"""Most bytes of results that a site takes to find its way back; of 200 sites one has 50 KB."""

_CONNECT_SECONDS = 10.0
_STATUS_SECONDS = 30.0

# Trying again may help: the network, a restart, a call that another one took over.
_PASSING = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.RESOURCE_EXHAUSTED,  # more calls than the coordinator takes just now
    grpc.StatusCode.UNAUTHENTICATED,  # the certificate is over; the next connection shows the next
)


class Unreachable(VeilsumError):  # noqa: N818  a passing state, not a mistake
    """The connection broke or could not be made; trying again may help."""


class Refused(VeilsumError):  # noqa: N818  the coordinator's decision
    """The coordinator will not do what was asked; trying again will not help."""


class Replaced(VeilsumError):  # noqa: N818  see above
    """Another process joined in this site's name."""


class Connection:
    """One channel with its Join stream. Use `async with`.

    Raises on entry:
        Unreachable: nobody answers.
        Refused: the coordinator does not want this site, or has another roster.
        Replaced: another process has joined as this site since this one did.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._channel = endpoint.channel()
        self._join: Any = None
        self._welcome = Welcome("", b"")
        self._sending = asyncio.Lock()

    async def __aenter__(self) -> Connection:
        try:
            await self._open()
        except BaseException:
            await self._channel.close()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._join.cancel()
        await self._channel.close()

    async def _open(self) -> None:
        call = self._channel.stream_stream(f"/{FEDERATION}/Join")
        self._join = call(metadata=self._endpoint.metadata)
        roster = self._endpoint.roster
        try:
            await self.send(Hello(self._endpoint.version, roster.hash, self._endpoint.instance))
            first = await asyncio.wait_for(self._join.read(), _CONNECT_SECONDS)
        except TimeoutError:
            raise Unreachable(f"{self._endpoint.address} does not answer") from None
        except grpc.aio.AioRpcError as error:
            raise _join_ended(error) from error
        if first is grpc.aio.EOF:
            raise Unreachable("the coordinator ended the stream before its welcome")
        welcome = decode_to_site(first)
        if not isinstance(welcome, Welcome):
            raise Refused("the coordinator did not begin with its welcome")
        if (welcome.consortium, welcome.roster_hash) != (roster.consortium, roster.hash):
            raise Refused(
                f"the coordinator has another roster ({welcome.roster_hash.hex()[:16]} instead "
                f"of {roster.hash.hex()[:16]})",
                hint="every member needs the same roster file",
            )
        self._welcome = welcome

    # --- Join -----------------------------------------------------------------------

    async def send(self, message: ToCoordinator) -> None:
        """Puts a message on the stream. On a broken one nothing happens: messages() tells.

        Raises:
            LedgerError: it could not be put down, and has not left.
        """
        data = encode_to_coordinator(message)
        async with self._sending:
            # Listed also where the write fails: how much of it left is not known.
            self._endpoint.leaves(message_kind(message), data)
            with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await self._join.write(data)

    async def messages(self) -> AsyncIterator[ToSite]:
        """What the coordinator says, its welcome first, until it hangs up.

        Raises:
            Unreachable: the connection broke.
            Refused: the coordinator ended it for a reason that stays.
            Replaced: another process joined as this site.
            DecodeError: the coordinator does not follow the format.
        """
        yield self._welcome
        try:
            while (data := await self._join.read()) is not grpc.aio.EOF:
                yield decode_to_site(data)
        except grpc.aio.AioRpcError as error:
            raise _join_ended(error) from error
        raise Unreachable("the coordinator hung up")

    # --- models ---------------------------------------------------------------------

    async def fetch_model(
        self, round_id: RoundId, *, max_bytes: int, so_far: IncomingModel | None = None
    ) -> tuple[ModelLayout, dict[str, NDArray[Any]]]:
        """The model of a round: read-only arrays in layout order, as the header's hash says.

        Args:
            so_far: what came before, over whatever connection; it takes the rest.

        Raises:
            Unreachable, Refused: it cannot be had now, or at all.
            DecodeError: it is larger than `max_bytes`, or not what its header announced.
        """
        fetch = self._channel.unary_stream(f"/{FEDERATION}/FetchModel")
        so_far = so_far or IncomingModel(max_bytes)
        request = wire_data.encode_model_request(round_id, so_far.held)
        self._endpoint.leaves("model-request", request)
        call = fetch(request, metadata=self._endpoint.metadata)
        try:
            return await so_far.receive(call)
        except grpc.aio.AioRpcError as error:
            raise _translated(error) from error
        finally:
            call.cancel()

    async def fetch_sum(
        self, round_id: RoundId, take: Callable[[bytes], None], *, offset: int = 0
    ) -> None:
        """Hands the bytes of a round's sum to `take`, piece by piece, off the event loop, from a
        byte on. When it ends, cancelled or not, so has `take`.

        Raises:
            Unreachable, Refused: it cannot be had now, or at all.
            DecodeError: as `take`, or not the format.
        """
        request = wire_data.encode_fetch_request(round_id, offset)
        async for data in self._data("FetchSum", "sum-request", request):
            await in_thread(partial(take, data))

    async def fetch_state(
        self, round_id: RoundId, *, max_bytes: int, so_far: list[bytes] | None = None
    ) -> bytes:
        """The state of the server's optimizer that a round began with: the bytes of its file.

        Args:
            so_far: what came before; it takes the rest.

        Raises:
            Unreachable, Refused: it cannot be had now, or at all.
            DecodeError: it is larger than `max_bytes`, or not the format.
        """
        parts = [] if so_far is None else so_far
        size = sum(map(len, parts))
        request = wire_data.encode_fetch_request(round_id, size)
        async for data in self._data("FetchState", "state-request", request):
            size += len(data)
            if size > max_bytes:
                raise DecodeError(f"the optimizer's state has more than {max_bytes} bytes")
            parts.append(data)
        return b"".join(parts)

    async def fetch_links(self, round_id: RoundId, *, most: int) -> tuple[bytes, ...]:
        """The results that led to a round's model, the last one first: at most so many, and as
        many as fit into LINKS_LIMIT bytes.

        Raises:
            Unreachable, Refused: they cannot be had now, or at all.
            DecodeError: not the format.
        """
        links: list[bytes] = []
        size = 0
        async for data in self._data(
            "FetchLinks", "links-request", wire_data.encode_fetch_request(round_id)
        ):
            size += len(data)
            if size > LINKS_LIMIT:
                break  # few rounds were missed more often than many, and for those it is enough
            links.append(data)
            if len(links) == most:
                break
        return tuple(links)

    async def fetch_audit(
        self,
        round_id: RoundId,
        chunks: Sequence[tuple[int, int]],
        *,
        max_bytes: int,
        so_far: bytearray | None = None,
    ) -> bytearray:
        """The part of a round's transcript with these chunks of its sum, as (stream, index).

        Args:
            so_far: what came before; it takes the rest.

        Raises:
            Unreachable, Refused: it cannot be had now, or at all.
            DecodeError: it is larger than `max_bytes`, or not the format.
        """
        found = bytearray() if so_far is None else so_far
        request = wire_data.encode_audit_request(round_id, chunks, len(found))
        async for data in self._data("FetchAudit", "audit-request", request):
            if len(found) + len(data) > max_bytes:
                raise DecodeError(f"what checks the sum has more than {max_bytes} bytes")
            found += data
        return found

    async def _data(self, method: str, kind: str, request: bytes) -> AsyncIterator[bytes]:
        fetch = self._channel.unary_stream(f"/{FEDERATION}/{method}")
        self._endpoint.leaves(kind, request)
        call = fetch(request, metadata=self._endpoint.metadata)
        try:
            async for piece in call:
                yield wire_data.decode_data_piece(piece)
        except grpc.aio.AioRpcError as error:
            raise _translated(error) from error
        finally:
            call.cancel()

    # --- updates --------------------------------------------------------------------

    async def push_status(self, round_id: RoundId, update_id: int) -> tuple[int, bool]:
        """(first chunk that the coordinator does not hold, whether the update counts).

        Raises:
            Unreachable, Refused: it cannot be had now, or the update will not count.
        """
        ask = self._channel.unary_unary(f"/{FEDERATION}/PushStatus")
        request = wire_data.encode_status_request(round_id, update_id)
        self._endpoint.leaves("upload-status", request)
        try:
            answer = await ask(request, metadata=self._endpoint.metadata, timeout=_STATUS_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise _translated(error) from error
        return wire_data.decode_receipt(answer)

    async def push_update(
        self, header: UpdateHeader, chunks: Sequence[Buffer], *, first_chunk: int = 0
    ) -> bool:
        """Sends an update from a chunk on; True once it counts, False if chunks are missing.

        Raises:
            Unreachable: the connection broke; push_status says how far it came.
            Refused: the update will not count.
            LedgerError: a part of it could not be put down, and has not left.
        """
        push = self._channel.stream_unary(f"/{FEDERATION}/PushUpdate")
        frames = _frames(header, chunks, first_chunk)
        leaving = _Leaving(frames, update_kind(header), self._endpoint)
        try:
            answer = await push(leaving, metadata=self._endpoint.metadata)
        except grpc.aio.AioRpcError as error:
            raise leaving.failure or _translated(error) from error
        if leaving.failure is not None:
            raise leaving.failure
        next_chunk, committed = wire_data.decode_receipt(answer)
        return committed and next_chunk == header.chunk_count


class _Leaving:
    """The frames as they are, each put down right before it leaves.

    gRPC would take an exception of the iterator for a cancelled call. So the frames end at one
    that could not be put down, and `failure` says why.
    """

    def __init__(self, frames: AsyncIterator[bytes], kind: str, endpoint: Endpoint) -> None:
        self._frames = frames
        self._kind = kind
        self._endpoint = endpoint
        self.failure: LedgerError | None = None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for frame in self._frames:
            try:
                self._endpoint.leaves(self._kind, frame)
            except LedgerError as error:
                self.failure = error
                return
            yield frame


async def _frames(
    header: UpdateHeader, chunks: Sequence[Buffer], first_chunk: int
) -> AsyncIterator[bytes]:
    yield wire_data.encode_update_header(header, first_chunk)
    for group in _grouped(chunks[first_chunk:]):
        yield wire_data.encode_update_chunks(group)


def _grouped(chunks: Sequence[Buffer]) -> Iterator[list[Buffer]]:
    """Consecutive chunks of about a megabyte together, at least one."""
    group: list[Buffer] = []
    size = 0
    for chunk in chunks:
        length = memoryview(chunk).nbytes
        if group and size + length > FRAME_BYTES:
            yield group
            group, size = [], 0
        group.append(chunk)
        size += length
    if group:
        yield group


def _join_ended(error: grpc.aio.AioRpcError) -> VeilsumError:
    if error.code() is grpc.StatusCode.ABORTED:
        return Replaced("another process joined as this site")
    return _translated(error)


def _translated(error: grpc.aio.AioRpcError) -> VeilsumError:
    code = error.code()
    text, _, hint = (error.details() or "").partition("\nhint: ")
    said = f"{text or 'no reason given'} ({code.name})"
    if code in _PASSING or code is grpc.StatusCode.ABORTED:
        return Unreachable(said, hint=hint or None)
    return Refused(said, hint=hint or None)
