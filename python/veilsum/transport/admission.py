"""The door of the coordinator: one member cannot take what the others need.

Every call of every service passes here first, those of gRPC's own services too. Who calls is
decided by the gate; then the member's open calls, their rate and the size and rate of its messages
are held against the limits. What goes beyond them ends that call and no other.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from veilsum.pki.identity import Identity
from veilsum.transport.callers import CallRefused, Gate
from veilsum.transport.entrance import Entrance
from veilsum.transport.limits import Bucket, LimitSettings
from veilsum.transport.wire import MAX_PAYLOAD_BYTES

_EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
_SMALL = 4 << 10
_UNBOUNDED = 1 << 62  # by what gRPC itself lets in: max_message_bytes

_JOIN = "/veilsum.v1.Federation/Join"

LARGEST_REQUEST = {
    _JOIN: MAX_PAYLOAD_BYTES + _SMALL,
    "/veilsum.v1.Federation/FetchModel": _SMALL,
    "/veilsum.v1.Federation/FetchSum": _SMALL,
    "/veilsum.v1.Federation/FetchState": _SMALL,
    "/veilsum.v1.Federation/FetchLinks": _SMALL,
    "/veilsum.v1.Federation/FetchAudit": 1 << 20,
    "/veilsum.v1.Federation/PushUpdate": _UNBOUNDED,
    "/veilsum.v1.Federation/PushStatus": _SMALL,
    "/veilsum.v1.Operator/SubmitRun": _UNBOUNDED,
    "/veilsum.v1.Operator/GetRun": _SMALL,
    "/veilsum.v1.Operator/ListRuns": _SMALL,
    "/veilsum.v1.Operator/WatchRun": _SMALL,
    "/veilsum.v1.Operator/AbortRun": _SMALL,
}
"""Bytes of one message of a call; parsing one may take a hundred times its size. Of calls that are
not listed: a few thousand."""

# Of calls whose messages are large an honest member has one open, and for a while what is left over
# from connections that broke.
_MOST_AT_ONCE = 4
_HEAVY = frozenset(
    {
        _JOIN,
        "/veilsum.v1.Federation/PushUpdate",
        "/veilsum.v1.Operator/SubmitRun",
    }
)

# Uploads are bounded by what an update consists of, and by the disk. How one begins is not: it is
# read as a whole by protobuf, as other messages are, and not in chunks.
_FREELY = frozenset({"/veilsum.v1.Federation/PushUpdate"})
_LARGEST_FIRST = MAX_PAYLOAD_BYTES + _SMALL

# Made of the smallest fields, a megabyte takes protobuf 10 to 40 ms, and nobody else is served in
# these. So a message counts once, and once more for each of this many.
_COUNTED_BYTES = 16 << 10
# Nearly all of it is one field, and few may call it.
_BY_ITS_CALL_ALONE = frozenset({"/veilsum.v1.Operator/SubmitRun"})
_REMEMBERED = 1024

Refuse = Callable[[Any, Exception], Awaitable[None]]


@dataclass(eq=False)
class OpenCall:
    """A call that is not over.

    Attributes:
        path: "/<service>/<method>".
        context: gRPC's, with the caller's certificate.
        refusal: why it was ended from here, if it was.
    """

    caller: Identity
    path: str
    context: Any
    task: asyncio.Task[Any]
    refusal: CallRefused | None = None

    def end(self, refusal: CallRefused) -> None:
        """Ends it now. The caller is told as soon as it reads; until then, or until its connection
        is gone, gRPC keeps what it holds of the call, and the call stays open here."""
        if self.refusal is None:
            self.refusal = refusal
            self.task.cancel()


class _Member:
    """What one member has open, and how much it may still do."""

    def __init__(self, limits: LimitSettings, now: float) -> None:
        self.open: dict[OpenCall, None] = {}  # oldest first
        self.calls = Bucket(limits.calls_per_s, limits.calls_at_once, now)
        self.joins = Bucket(limits.joins_per_s, limits.joins_at_once, now)
        self.messages = Bucket(limits.messages_per_s, limits.messages_at_once, now)

    def idle(self, now: float) -> bool:
        """Whether nothing needs to be known of it."""
        buckets = (self.calls, self.joins, self.messages)
        return not self.open and all(bucket.full(now) for bucket in buckets)


class Admission(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """See the top of this file.

    Args:
        entrance: whether calls may begin now.
        refuse: ends a call with the status and text of an exception.
        clock: seconds; does not go back.
    """

    def __init__(
        self,
        gate: Gate,
        entrance: Entrance,
        limits: LimitSettings,
        refuse: Refuse,
        clock: Callable[[], float],
    ) -> None:
        self._gate = gate
        self._entrance = entrance
        self._limits = limits
        self._refuse = refuse
        self._clock = clock
        self._members: dict[Identity, _Member] = {}

    def open_calls(self) -> list[OpenCall]:
        """Those of all members."""
        return [call for member in self._members.values() for call in member.open]

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        """Puts the door in front of a call's handler. gRPC calls this."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        make, call = _form(handler)
        return make(
            self._guarded(handler_call_details.method, call, handler.request_streaming),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _guarded(
        self, path: str, call: Callable[[Any, Any], Any], streams: bool
    ) -> Callable[[Any, Any], Awaitable[Any]]:
        async def answered(request: Any, opened: OpenCall, member: _Member) -> Any:
            if not streams:
                size = _check_size(path, request, LARGEST_REQUEST.get(path, _SMALL))
                if path not in _BY_ITS_CALL_ALONE:
                    self._count(member, size // _COUNTED_BYTES)
                return await _answered(call(request, opened.context), opened.context)
            async with aclosing(self._metered(path, request, member)) as metered:
                return await _answered(call(metered, opened.context), opened.context)

        async def admitted(request: Any, context: Any) -> Any:
            try:
                caller = self._gate.caller(context, path.split("/")[1])
                self._entrance.check(path, context)
                with self._admitted(caller, path, context) as (opened, member):
                    try:
                        return await answered(request, opened, member)
                    except asyncio.CancelledError:
                        if opened.refusal is None:
                            raise
                        opened.task.uncancel()
                        await self._refuse(context, opened.refusal)
            except CallRefused as error:
                await self._refuse(context, error)

        async def serve(request: Any, context: Any) -> Any:
            working = admitted(request, context)
            del request
            try:
                return await working
            except grpc.aio.AbortError as refused:
                # gRPC keeps it as long as the call, each of which refers to the other: what the
                # frames on its way hold, megabytes of what was refused, would stay until the next
                # collection of garbage.
                refused.__traceback__ = refused.__context__ = refused.__cause__ = None
                raise

        return serve

    @contextmanager
    def _admitted(
        self, caller: Identity, path: str, context: Any
    ) -> Iterator[tuple[OpenCall, _Member]]:
        now = self._clock()
        member = self._member(caller, now)
        self._check_rate(caller, path, member, now)
        self._make_room(caller, path, member)
        task = asyncio.current_task()
        assert task is not None
        opened = OpenCall(caller, path, context, task)
        member.open[opened] = None
        try:
            yield opened, member
        finally:
            del member.open[opened]

    def _check_rate(self, caller: Identity, path: str, member: _Member, now: float) -> None:
        limits = self._limits
        if not member.calls.take(now):
            what, per_s = "calls", limits.calls_per_s
        elif path == _JOIN and not member.joins.take(now):
            what, per_s = "joins", limits.joins_per_s
        else:
            return
        who = f"{caller.role} {caller.name!r}"
        raise CallRefused(_EXHAUSTED, f"{who} {what} more than {per_s:g} times a second")

    def _make_room(self, caller: Identity, path: str, member: _Member) -> None:
        """A site's oldest call gives way: whatever a connection left behind that broke without a
        word is older than what the site calls now. The memory of those that it does not let end
        is bounded as well."""
        most = self._limits.calls
        going_on = [call for call in member.open if call.refusal is None]
        if path in _HEAVY:
            same = [call for call in going_on if call.path == path]
            if len(same) >= _MOST_AT_ONCE:
                method = path.rpartition("/")[2]
                self._end(same[0], caller, f"{_MOST_AT_ONCE} calls of {method} open")
        if len(member.open) >= 2 * most:
            raise _too_many(caller, f"{most} calls open")
        if len(going_on) >= most:
            self._end(going_on[0], caller, f"{most} calls open")

    def _end(self, oldest: OpenCall, caller: Identity, what: str) -> None:
        if caller.role != "site":
            raise _too_many(caller, what)
        oldest.end(_too_many(caller, what))

    def _member(self, caller: Identity, now: float) -> _Member:
        member = self._members.get(caller)
        if member is None:
            if len(self._members) >= _REMEMBERED:
                self._forget_idle(now)
            member = self._members[caller] = _Member(self._limits, now)
        return member

    def _forget_idle(self, now: float) -> None:
        for known, member in list(self._members.items()):
            if member.idle(now):
                del self._members[known]

    async def _metered(
        self, path: str, requests: Any, member: _Member
    ) -> AsyncGenerator[Any, None]:
        # gRPC's own generator keeps its last message for as long as it is not closed, and is part
        # of a cycle.
        async with aclosing(aiter(requests)) as arriving:
            message = await self._first(arriving)
            counts, largest = True, min(LARGEST_REQUEST.get(path, _SMALL), _LARGEST_FIRST)
            while message is not None:
                size = _check_size(path, message, largest)
                if counts:
                    self._count(member, 1 + size // _COUNTED_BYTES)
                yield message
                message = None  # not kept while the next one is awaited
                message = await anext(arriving, None)
                counts, largest = path not in _FREELY, LARGEST_REQUEST.get(path, _SMALL)

    def _count(self, member: _Member, messages: int) -> None:
        if not member.messages.take(self._clock(), messages):
            raise CallRefused(
                _EXHAUSTED, f"more than {self._limits.messages_per_s:g} messages a second"
            )

    async def _first(self, arriving: AsyncIterator[Any]) -> Any:
        seconds = self._limits.first_message_s
        try:
            # Not wait_for: that of Python 3.11 may lose the call's own end.
            async with asyncio.timeout(seconds):
                return await anext(arriving, None)
        except TimeoutError:
            raise CallRefused(
                grpc.StatusCode.DEADLINE_EXCEEDED, f"nothing was sent within {seconds:g} seconds"
            ) from None


def _too_many(caller: Identity, what: str) -> CallRefused:
    return CallRefused(_EXHAUSTED, f"{caller.role} {caller.name!r} has {what}")


def _form(handler: Any) -> tuple[Callable[..., Any], Callable[[Any, Any], Any]]:
    """How to make a handler of this kind, and what it calls."""
    if handler.request_streaming:
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler, handler.stream_stream
        return grpc.stream_unary_rpc_method_handler, handler.stream_unary
    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler, handler.unary_stream
    return grpc.unary_unary_rpc_method_handler, handler.unary_unary


async def _answered(answer: Any, context: Any) -> Any:
    """A handler's answer, whichever of gRPC's two ways to stream it uses."""
    if not inspect.isasyncgen(answer):
        return await answer
    async for message in answer:
        await context.write(message)
    return None


def _check_size(path: str, message: Any, largest: int) -> int:
    """The bytes of a message, which are at most so many."""
    size = len(message) if isinstance(message, bytes) else message.ByteSize()
    if size > largest:
        method = path.rpartition("/")[2]
        raise CallRefused(
            _EXHAUSTED, f"a message of {method} has {size} bytes, {largest} are the most"
        )
    return size
