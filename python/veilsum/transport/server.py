"""The coordinator's gRPC services: requests become events, refusals become statuses.

Messages arrive and leave as bytes, and wire*.py reads them: bytes that do not follow the
format are then an INVALID_ARGUMENT that says why, not a failure inside gRPC.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import grpc.aio

from veilsum import secagg
from veilsum.control import (
    Decline,
    Goodbye,
    Hello,
    Progress,
    ProtocolMessage,
    RoundId,
    Welcome,
)
from veilsum.coordinator.events import SiteSent
from veilsum.errors import ConfigError, DecodeError, PeerError, VeilsumError
from veilsum.roster import Roster
from veilsum.transport import wire_data
from veilsum.transport.audits import Audits, pieces
from veilsum.transport.callers import CallRefused, Gate
from veilsum.transport.flow import Stalled
from veilsum.transport.incoming import IncomingUpload, Superseded
from veilsum.transport.limits import LimitSettings
from veilsum.transport.links import BROKEN, REPLACED, STOPPED, Link, Links
from veilsum.transport.logs import Log
from veilsum.transport.metrics import Metrics
from veilsum.transport.models import PIECE_BYTES, Models, Unreadable, check_offset, file_pieces
from veilsum.transport.runner import Runner
from veilsum.transport.spool_format import SpoolDamaged, SpoolUnavailable
from veilsum.transport.storage import Storage
from veilsum.transport.watchers import TooSlow
from veilsum.transport.wire import decode_to_coordinator

FEDERATION = "veilsum.v1.Federation"

_LAST_WRITE_SECONDS = 1.0

_T = TypeVar("_T")
_STATUS: tuple[tuple[type[VeilsumError], grpc.StatusCode], ...] = (
    (DecodeError, grpc.StatusCode.INVALID_ARGUMENT),
    (PeerError, grpc.StatusCode.FAILED_PRECONDITION),
    (Superseded, grpc.StatusCode.ABORTED),
    (Unreadable, grpc.StatusCode.UNAVAILABLE),
    # The site has all of its update and tries again; others go on.
    (Stalled, grpc.StatusCode.DEADLINE_EXCEEDED),
    (SpoolUnavailable, grpc.StatusCode.UNAVAILABLE),
    (SpoolDamaged, grpc.StatusCode.UNAVAILABLE),
    (TooSlow, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (ConfigError, grpc.StatusCode.INVALID_ARGUMENT),
)
_UNEXPECTED = "an internal error of the coordinator, see its log"


@dataclass(frozen=True)
class Desk:
    """What the services share."""

    gate: Gate
    runner: Runner
    metrics: Metrics
    log: Log
    limits: LimitSettings

    async def refuse(self, context: Any, error: Exception) -> None:
        """Ends a call with the status and text that fit an exception. Does not return."""
        status, text = _status_of(error)
        site = self.gate.site(context)
        if status is grpc.StatusCode.INTERNAL:
            self.log.exception("a call failed")
        else:
            self.log.warning("call refused", site=site, status=status.name, reason=text)
        self.metrics.refused(status.name.lower(), site)
        await context.abort(status, text)


def _status_of(error: Exception) -> tuple[grpc.StatusCode, str]:
    if not isinstance(error, VeilsumError):
        return grpc.StatusCode.INTERNAL, _UNEXPECTED
    text = f"{error}\nhint: {error.hint}" if error.hint else str(error)
    if isinstance(error, CallRefused):
        return error.status, text
    for kind, status in _STATUS:
        if isinstance(error, kind):
            return status, text
    return grpc.StatusCode.INTERNAL, _UNEXPECTED


def unary(desk: Desk, call: Callable[[Any, Any], Awaitable[_T]]) -> Callable[..., Awaitable[_T]]:
    """A handler with one answer whose exceptions become statuses."""

    async def handler(request: Any, context: Any) -> _T:
        try:
            return await call(request, context)
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            await desk.refuse(context, error)
            raise  # refuse() ends the call by raising

    return handler


def streaming(
    desk: Desk, call: Callable[[Any, Any], AsyncGenerator[bytes, None]]
) -> Callable[..., Awaitable[None]]:
    """A handler with a stream of answers whose exceptions become statuses.

    It writes the answers itself instead of handing gRPC the generator: so a broken connection
    closes the generator now, and not when it happens to be collected.
    """

    async def handler(request: Any, context: Any) -> None:
        try:
            async with aclosing(call(request, context)) as messages:
                async for message in messages:
                    await _write(context, message, desk.limits.unread_s)
        except grpc.aio.AbortError:
            raise
        except Exception as error:  # noqa: BLE001  the edge: refuse() logs and maps it
            await desk.refuse(context, error)

    return handler


async def _write(context: Any, message: bytes, seconds: float) -> None:
    writing = asyncio.ensure_future(context.write(message))
    try:
        await asyncio.wait((writing,), timeout=seconds)
    except asyncio.CancelledError:
        # A call that is ended in the middle of its first message cannot be told how it ends.
        await asyncio.wait((writing,), timeout=_LAST_WRITE_SECONDS)
        raise
    finally:
        written = writing.done()
        writing.cancel()
    if not written:
        raise TooSlow(f"nothing was read for {seconds:g} seconds")
    try:
        writing.result()
    except grpc.aio.InternalError:
        raise CallRefused(grpc.StatusCode.UNAVAILABLE, BROKEN) from None


def _found(get: Callable[[RoundId, str], _T], round_id: RoundId, site: str) -> _T:
    try:
        return get(round_id, site)
    except ConfigError as error:
        raise CallRefused(grpc.StatusCode.NOT_FOUND, str(error)) from error


class FederationService:
    """What sites call."""

    def __init__(
        self,
        desk: Desk,
        roster: Roster,
        links: Links,
        models: Models,
        storage: Storage,
        audits: Audits,
    ) -> None:
        self._desk = desk
        self._audits = audits
        self._storage = storage
        self._roster = roster
        self._links = links
        self._models = models

    def handlers(self) -> grpc.GenericRpcHandler:
        """For grpc.aio.Server.add_generic_rpc_handlers. Messages are bytes both ways."""
        methods = {
            "Join": grpc.stream_stream_rpc_method_handler(streaming(self._desk, self._join)),
            **{
                name: grpc.unary_stream_rpc_method_handler(streaming(self._desk, call))
                for name, call in (
                    ("FetchModel", self._fetch),
                    ("FetchSum", self._fetch_sum),
                    ("FetchState", self._fetch_state),
                    ("FetchLinks", self._fetch_links),
                    ("FetchAudit", self._fetch_audit),
                )
            },
            "PushUpdate": grpc.stream_unary_rpc_method_handler(unary(self._desk, self._push)),
            "PushStatus": grpc.unary_unary_rpc_method_handler(unary(self._desk, self._status)),
        }
        return grpc.method_handlers_generic_handler(FEDERATION, methods)

    def _site(self, context: Any) -> str:
        return self._desk.gate.caller(context, FEDERATION).name

    # --- Join -----------------------------------------------------------------------

    async def _join(
        self, requests: AsyncIterator[bytes], context: Any
    ) -> AsyncGenerator[bytes, None]:
        site = self._site(context)
        requests = aiter(requests)
        hello = await self._greet(site, requests)
        if self._links.was_replaced(site, hello.instance):
            raise CallRefused(grpc.StatusCode.ABORTED, REPLACED)
        welcome = Welcome(self._roster.consortium, self._roster.hash)
        link = self._links.attach(site, hello.instance, welcome)
        self._desk.metrics.sites(len(self._links))
        self._desk.log.notice("site connected", site=site)
        reader = asyncio.create_task(self._read(link, requests))
        try:
            async for message in link.messages():
                yield message
            await self._end_join(link, reader)
        finally:
            await self._left(link, reader)

    async def _greet(self, site: str, requests: AsyncIterator[bytes]) -> Hello:
        first = await anext(requests, None)
        hello = decode_to_coordinator(first) if first is not None else None
        if not isinstance(hello, Hello):
            raise DecodeError("the first message of a site must be its hello")
        if hello.roster_hash != self._roster.hash:
            raise PeerError(
                site,
                f"has another roster: {hello.roster_hash.hex()[:16]} here "
                f"{self._roster.hash.hex()[:16]}",
                hint="every member needs the same roster file",
            )
        return hello

    async def _read(self, link: Link, requests: AsyncIterator[bytes]) -> None:
        """Turns a site's messages into events, one at a time: the next is read when the core
        has dealt with this one, so no site can fill the queue."""
        try:
            async for data in requests:
                message = decode_to_coordinator(data)
                if link.closed is not None:
                    return
                if isinstance(message, Goodbye):
                    link.close(STOPPED)
                    return
                await self._desk.runner.submit(self._event(link.site, message))
        finally:
            link.close(BROKEN)

    def _event(self, site: str, message: Hello | ProtocolMessage | Decline | Progress) -> SiteSent:
        if isinstance(message, Hello):
            raise DecodeError("a site says hello once")
        if not isinstance(message, Progress):
            self._desk.log.debug("site sent", site=site, kind=type(message).__name__)
        return SiteSent(site, message)

    async def _end_join(self, link: Link, reader: asyncio.Task[None]) -> None:
        if reader.done() and not reader.cancelled() and (error := reader.exception()):
            raise error
        if link.closed not in (BROKEN, STOPPED):
            status = (
                grpc.StatusCode.ABORTED if link.closed == REPLACED else grpc.StatusCode.UNAVAILABLE
            )
            raise CallRefused(status, link.closed or "")

    async def _left(self, link: Link, reader: asyncio.Task[None]) -> None:
        link.close(BROKEN)
        reader.cancel()
        # Also when the call itself was cancelled: from here on the site counts as away.
        self._links.detach(link)
        self._desk.metrics.sites(len(self._links))
        self._desk.log.notice("site disconnected", site=link.site, reason=link.closed)
        with suppress(asyncio.CancelledError, Exception):
            await reader

    # --- models and updates -----------------------------------------------------------

    async def _fetch(self, request: bytes, context: Any) -> AsyncGenerator[bytes, None]:
        site = self._site(context)
        round_id, offset = wire_data.decode_model_request(request)
        model = _found(self._models.get, round_id, site)
        check_offset(offset, model.size_bytes)
        yield model.header
        self._desk.metrics.sent(len(model.header), site)
        for begin in range(offset, model.size_bytes, PIECE_BYTES):
            piece = await self._models.read(model, begin)
            yield piece
            self._desk.metrics.sent(len(piece), site)

    async def _fetch_sum(self, request: bytes, context: Any) -> AsyncGenerator[bytes, None]:
        site = self._site(context)
        round_id, offset = wire_data.decode_fetch_request(request)
        pieces = file_pieces(_found(self._models.get_sum_file, round_id, site), offset)
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            yield piece
            self._desk.metrics.sent(len(piece), site)

    async def _fetch_links(self, request: bytes, context: Any) -> AsyncGenerator[bytes, None]:
        site = self._site(context)
        round_id, offset = wire_data.decode_fetch_request(request)
        check_offset(offset, 0)
        model = _found(self._models.get, round_id, site)
        links = self._storage.links_to(model.start, most=secagg.MOST_LINKS)
        while (link := await asyncio.to_thread(next, links, None)) is not None:
            piece = wire_data.encode_data_piece([link])
            yield piece
            self._desk.metrics.sent(len(piece), site)

    async def _fetch_state(self, request: bytes, context: Any) -> AsyncGenerator[bytes, None]:
        site = self._site(context)
        round_id, offset = wire_data.decode_fetch_request(request)
        pieces = file_pieces(_found(self._models.get_state_file, round_id, site), offset)
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            yield piece
            self._desk.metrics.sent(len(piece), site)

    async def _fetch_audit(self, request: bytes, context: Any) -> AsyncGenerator[bytes, None]:
        site = self._site(context)
        round_id, asked, offset = wire_data.decode_audit_request(request)
        parts = pieces(_found(self._audits.get, round_id, site), asked, offset)
        while (data := await asyncio.to_thread(next, parts, None)) is not None:
            if data:
                yield wire_data.encode_data_piece([data])
                self._desk.metrics.sent(len(data), site)

    async def _push(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        site = self._site(context)
        requests = aiter(requests)
        first = await anext(requests, None)
        if first is None:
            raise DecodeError("an upload must begin with its header")
        header, first_chunk = wire_data.decode_update_header(first)
        upload = await self._desk.runner.uploads.begin(site, header, first_chunk)
        if not upload.settled:
            flow = self._desk.runner.uploads.flow
            await flow.feed(requests, lambda frame: self._take(site, upload, frame))
        if upload.complete:
            await upload.commit()
        return wire_data.encode_receipt(*upload.receipt())

    async def _take(self, site: str, upload: IncomingUpload, frame: bytes) -> None:
        written = await upload.take(wire_data.decode_update_chunks(frame))
        self._desk.metrics.received(written, site)

    async def _status(self, request: bytes, context: Any) -> bytes:
        site = self._site(context)
        round_id, update_id = wire_data.decode_status_request(request)
        held = self._desk.runner.uploads.status(site, round_id, update_id)
        return wire_data.encode_receipt(*held)
