"""One member that takes all it can get, and another that notices nothing of it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from support.consortium import Consortium, make_consortium
from support.proxy import HOST
from support.raw import METHODS, NOT_SERVED, call, credentials_of, dialled, said, told
from support.serving import hello, operating, run_async, serving, sites
from veilsum.control import Deadlines, RunSpec
from veilsum.errors import ConfigError
from veilsum.model import ModelLayout
from veilsum.pki.issue import IssuedFiles
from veilsum.proto.v1 import federation_pb2 as pb
from veilsum.transport.admission import LARGEST_REQUEST
from veilsum.transport.checkpoints import model_to_bytes
from veilsum.transport.limits import Bucket, LimitSettings
from veilsum.transport.server import Desk
from veilsum.transport.watchers import TooSlow

JOIN = "/veilsum.v1.Federation/Join"
FETCH = "/veilsum.v1.Federation/FetchModel"
PUSH = "/veilsum.v1.Federation/PushUpdate"
STATUS = "/veilsum.v1.Federation/PushStatus"
AUDIT = "/veilsum.v1.Federation/FetchAudit"
LIST = "/veilsum.v1.Operator/ListRuns"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
HEALTH = "/grpc.health.v1.Health/Watch"
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
INVALID = grpc.StatusCode.INVALID_ARGUMENT
# Nothing here waits for a limit that is not the test's own.
GENEROUS = LimitSettings(calls_at_once=10_000, joins_at_once=10_000, messages_at_once=100_000)


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Consortium:
    return make_consortium(tmp_path_factory.mktemp("consortium"), ["a", "b", "c"])


@asynccontextmanager
async def between(
    consortium: Consortium, folder: Path, **limits: Any
) -> AsyncIterator[tuple[grpc.aio.Channel, grpc.aio.Channel, int]]:
    """(a site's connection, another site's, port) of a coordinator with these limits."""
    settings = consortium.coordinator_settings(
        folder / "state", limits=replace(GENEROUS, **limits), reconnect_s=0.0
    )
    async with (
        serving(settings) as port,
        dialled(port, credentials_of(consortium.sites["a"])) as bad,
        dialled(port, credentials_of(consortium.sites["b"])) as good,
    ):
        yield bad, good, port


async def silent() -> AsyncIterator[bytes]:
    """A stream that is open and says nothing."""
    await asyncio.Event().wait()
    yield b""


def greeting(consortium: Consortium, then: AsyncIterator[bytes] | None = None):
    """A site's hello, then whatever."""

    async def stream() -> AsyncIterator[bytes]:
        yield hello(consortium.roster.hash).SerializeToString()
        async for message in then or silent():
            yield message

    return stream()


async def assert_served(channel: grpc.aio.Channel, consortium: Consortium) -> None:
    """A site can still do all it needs to: be there, and ask."""
    join = call(channel, JOIN, greeting(consortium))
    assert pb.CoordinatorMessage.FromString(await join.read()).HasField("welcome")
    assert (await said(channel, STATUS, b""))[0] is INVALID
    join.cancel()


async def watching(channel: grpc.aio.Channel, times: int) -> list[Any]:
    """Calls that stay open, and that came in this order."""
    opened = []
    for _ in range(times):
        opened.append(call(channel, HEALTH, b""))
        await opened[-1].read()
    return opened


# --- calls --------------------------------------------------------------------------


def test_a_call_of_a_site_beyond_the_limit_ends_its_oldest_one(
    consortium: Consortium, tmp_path: Path
) -> None:
    """Calls of a connection that broke without a word must not keep the site out."""

    async def main() -> None:
        async with between(consortium, tmp_path, calls=8) as (bad, good, port):
            oldest, *others = await watching(bad, 8)
            async with dialled(port, credentials_of(consortium.sites["a"])) as again:
                assert (await said(again, STATUS, b""))[0] is INVALID
            assert await told(oldest) == (EXHAUSTED, "site 'a' has 8 calls open")
            assert not any(one.done() for one in others)
            await assert_served(good, consortium)

    run_async(main)


def test_a_call_of_an_operator_beyond_the_limit_is_refused(
    consortium: Consortium, tmp_path: Path
) -> None:
    async def main() -> None:
        async with between(consortium, tmp_path, calls=8) as (_, good, port):
            own = credentials_of(consortium.operator)
            async with dialled(port, own) as first, dialled(port, own) as second:
                opened = await watching(first, 8)
                assert await said(second, LIST, b"") == (
                    EXHAUSTED,
                    "operator 'ann' has 8 calls open",
                )
                assert not any(one.done() for one in opened)
                opened[0].cancel()
                while (await said(second, LIST, b""))[0] is EXHAUSTED:
                    pass  # until the coordinator has heard of it
                await assert_served(good, consortium)

    run_async(main)


def test_of_calls_with_large_messages_fewer_are_open(
    consortium: Consortium, tmp_path: Path
) -> None:
    async def main() -> None:
        async with between(consortium, tmp_path) as (bad, good, _):
            pushes = [asyncio.create_task(told(call(bad, PUSH, silent()))) for _ in range(5)]
            ended, going_on = await asyncio.wait(pushes, return_when=asyncio.FIRST_COMPLETED)
            assert [one.result() for one in ended] == [
                (EXHAUSTED, "site 'a' has 4 calls of PushUpdate open")
            ]
            assert (await said(bad, STATUS, b""))[0] is INVALID
            assert not any(one.done() for one in going_on)
            for one in going_on:
                one.cancel()
            await assert_served(good, consortium)

    run_async(main)


def test_a_connection_carries_no_more_calls_than_a_member_may_have(
    consortium: Consortium, tmp_path: Path
) -> None:
    async def main() -> None:
        async with between(consortium, tmp_path, calls=8) as (bad, _, port):
            opened = await watching(bad, 8)
            ninth = call(bad, HEALTH, b"")
            async with dialled(port, credentials_of(consortium.sites["b"])) as other:
                await watching(other, 8)
            assert not ninth.done()
            assert not any(one.done() for one in opened)

    run_async(main)


def test_calls_beyond_the_rate_are_refused_and_only_those_of_that_member(
    consortium: Consortium, tmp_path: Path
) -> None:
    async def main() -> None:
        limits = {"calls_at_once": 20, "calls_per_s": 0.001}
        async with between(consortium, tmp_path, **limits) as (bad, good, port):
            found = [(await said(bad, STATUS, b""))[0] for _ in range(30)]
            assert found == [INVALID] * 20 + [EXHAUSTED] * 10
            async with dialled(port, credentials_of(consortium.sites["a"])) as again:
                assert (await said(again, STATUS, b""))[0] is EXHAUSTED
            await assert_served(good, consortium)

    run_async(main)


def test_a_site_that_joins_again_and_again_is_let_in_now_and_then(
    consortium: Consortium, tmp_path: Path
) -> None:
    async def main() -> None:
        limits = {"joins_at_once": 5, "joins_per_s": 0.001}
        async with between(consortium, tmp_path, **limits) as (bad, good, _):
            found = []
            for number in range(8):
                greeting = hello(consortium.roster.hash)
                greeting.hello.instance = bytes((number,)) * 16
                found.append((await said(bad, JOIN, greeting.SerializeToString()))[0])
            assert found == [grpc.StatusCode.OK] * 5 + [EXHAUSTED] * 3
            assert (await said(bad, STATUS, b""))[0] is INVALID
            await assert_served(good, consortium)

    run_async(main)


# --- streams ------------------------------------------------------------------------


def flooded(port: int, files: IssuedFiles, path: str, *messages: bytes) -> tuple:
    """(how a stream ends, after how many messages) that says the last of these for ever.

    Blocks: grpc.aio reports a write that failed, and not what the server said.
    """
    sent = itertools.count()

    def endless() -> Iterator[bytes]:
        for number in sent:
            yield messages[min(number, len(messages) - 1)]

    with grpc.secure_channel(f"{HOST}:{port}", credentials_of(files)) as channel:
        try:
            for _ in channel.stream_stream(path)(endless()):
                pass
        except grpc.RpcError as error:
            return error.code(), error.details(), next(sent)
    return grpc.StatusCode.OK, "", next(sent)


def test_a_join_without_end_is_ended_and_the_others_go_on(
    consortium: Consortium, tmp_path: Path
) -> None:
    progress = pb.Progress(round=pb.RoundId(run_id="none", number=1), fraction=0.5)
    message = pb.SiteMessage(progress=progress)

    async def main() -> None:
        limits = {"messages_at_once": 50, "messages_per_s": 0.001}
        async with between(consortium, tmp_path, **limits) as (_, good, port):
            both = [one.SerializeToString() for one in (hello(consortium.roster.hash), message)]
            status, text, sent = await asyncio.to_thread(
                flooded, port, consortium.sites["a"], JOIN, *both
            )
            assert (status, text) == (EXHAUSTED, "more than 0.001 messages a second")
            assert sent >= 50
            await assert_served(good, consortium)

    run_async(main)


def test_a_foreign_service_is_behind_the_same_door(consortium: Consortium, tmp_path: Path) -> None:
    async def main() -> None:
        limits = {"messages_at_once": 50, "messages_per_s": 0.001}
        async with between(consortium, tmp_path, **limits) as (_, good, port):
            status, _, sent = await asyncio.to_thread(
                flooded, port, consortium.sites["a"], REFLECTION, b""
            )
            assert status is EXHAUSTED
            assert sent >= 50
            await assert_served(good, consortium)

    run_async(main)


def test_a_stream_that_says_nothing_is_ended(consortium: Consortium, tmp_path: Path) -> None:
    async def main() -> None:
        async with between(consortium, tmp_path, first_message_s=0.2) as (bad, good, _):
            for path in (JOIN, PUSH, REFLECTION):
                assert await told(call(bad, path, silent())) == (
                    grpc.StatusCode.DEADLINE_EXCEEDED,
                    "nothing was sent within 0.2 seconds",
                ), path
            await assert_served(good, consortium)

    run_async(main)


# --- sizes --------------------------------------------------------------------------


def test_a_request_that_is_too_large_is_not_read(consortium: Consortium, tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            between(consortium, tmp_path) as (_, good, port),
            dialled(port, credentials_of(consortium.operator)) as operator,
            dialled(port, credentials_of(consortium.sites["c"])) as site,
        ):
            for path in sorted(set(METHODS) - {PUSH} - NOT_SERVED):
                member = operator if "Operator" in path else site
                largest = min(LARGEST_REQUEST.get(path, 4 << 10), 4 << 20)
                # Of unknown fields, which protobuf takes from anyone.
                status, text = await said(member, path, b"\xf8\x01\x01" * (largest // 3 + 1))
                assert status is EXHAUSTED, (path, text)
                status, text = await said(member, path, b"\xf8\x01\x01" * (largest // 3))
                assert status is not EXHAUSTED, (path, text)
            await assert_served(good, consortium)

    run_async(main)


def test_a_large_message_counts_for_many(consortium: Consortium, tmp_path: Path) -> None:
    """Of the smallest fields there are, it takes long to read, and meanwhile nobody is served."""
    ids = [pb.SumChunkId(stream=1, index=index) for index in range(60_000)]
    where = pb.RoundId(run_id="none", number=1)
    audit = pb.FetchAuditRequest(round=where, chunks=ids).SerializeToString()
    join = hello(consortium.roster.hash).SerializeToString() + b"\xf8\x01\x01" * 100_000
    metrics = {f"{number:06}": 0.0 for number in range(100_000)}
    header = pb.UpdateFrame(header=pb.UpdateHeader(metrics=metrics)).SerializeToString()

    async def main() -> None:
        limits = {"messages_at_once": 100, "messages_per_s": 0.001}
        for number, (path, message, counts) in enumerate(
            ((AUDIT, audit, 30), (JOIN, join, 20), (PUSH, header, 120))
        ):
            async with between(consortium, tmp_path / str(number), **limits) as (bad, good, _):
                for _ in range(max(100 // counts - 2, 1)):
                    assert (await said(bad, path, message))[0] is not EXHAUSTED
                answers = [await said(bad, path, message) for _ in range(3)]
                assert answers[-1] == (EXHAUSTED, "more than 0.001 messages a second")
                await assert_served(good, consortium)

    run_async(main)


def test_an_upload_does_not_begin_with_more_than_a_header(
    consortium: Consortium, tmp_path: Path
) -> None:
    metrics = {f"{number:06}": 0.0 for number in range(140_000)}
    header = pb.UpdateFrame(header=pb.UpdateHeader(metrics=metrics)).SerializeToString()
    assert 2 << 20 < len(header) < 4 << 20

    async def main() -> None:
        async with between(consortium, tmp_path) as (bad, good, _):
            status, text = await said(bad, PUSH, header)
            assert (status, text) == (
                EXHAUSTED,
                f"a message of PushUpdate has {len(header)} bytes, {(2 << 20) + 4096} are the most",
            )
            await assert_served(good, consortium)

    run_async(main)


def test_a_message_that_grows_when_it_is_unpacked_is_refused_by_what_it_grows_to(
    consortium: Consortium, tmp_path: Path
) -> None:
    """gRPC unpacks what says that it is compressed: a thousand times its size, if it is let."""

    async def main() -> None:
        async with between(consortium, tmp_path) as (bad, good, _):
            status, text = await said(
                bad, STATUS, bytes(64 << 20), compression=grpc.Compression.Gzip
            )
            assert status is EXHAUSTED, text
            await assert_served(good, consortium)

    run_async(main)


# --- who does not read --------------------------------------------------------------


def test_who_does_not_read_is_let_go_and_the_round_goes_on(
    consortium: Consortium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gave_up = asyncio.Semaphore(0)
    refuse = Desk.refuse

    async def told_us(desk: Desk, context: Any, error: Exception) -> None:
        if isinstance(error, TooSlow):
            gave_up.release()
        await refuse(desk, context, error)

    monkeypatch.setattr(Desk, "refuse", told_us)
    model = {"w": np.zeros(6_000_000, np.float32)}
    large = model_to_bytes(ModelLayout.from_arrays(model), model)
    spec = RunSpec(
        task_id="t", masked=False, min_sites=1, deadlines=Deadlines(join_s=20, inputs_s=30)
    )

    async def main() -> None:
        async with (
            between(consortium, tmp_path, unread_s=0.5) as (bad, _, port),
            operating(consortium, port) as operator,
            sites(consortium, port, ["b", "c"]),
        ):
            join = call(bad, JOIN, greeting(consortium))
            await join.read()
            folder = tmp_path / "state" / "models"
            (folder / "m.safetensors").write_bytes(large)
            run = await asyncio.to_thread(operator.submit, spec, "m.safetensors")
            opened = pb.CoordinatorMessage.FromString(await join.read()).round_opened
            request = pb.FetchModelRequest(round=opened.round).SerializeToString()
            fetches = [call(bad, FETCH, request) for _ in range(4)]
            join.cancel()  # it does not take part; the round is the others'
            await asyncio.to_thread(lambda: list(operator.watch(run.run_id)))
            ended = await asyncio.to_thread(operator.get, run.run_id)
            assert ended.rounds[0].sites == ("b", "c")
            for _ in fetches:
                await gave_up.acquire()
            for fetch in fetches:
                assert await _pieces_of(fetch) < 24

    run_async(main)


async def _pieces_of(fetch: Any) -> int:
    """How much of a model there was before the coordinator gave up."""
    pieces = 0
    with suppress(grpc.aio.AioRpcError):
        while await fetch.read() is not grpc.aio.EOF:
            pieces += 1
    assert (await fetch.code(), await fetch.details()) == (
        EXHAUSTED,
        "nothing was read for 0.5 seconds",
    )
    return pieces


# --- connections --------------------------------------------------------------------


def test_connections_without_a_certificate_are_closed_and_make_room_for_members(
    consortium: Consortium, tmp_path: Path
) -> None:
    async def main() -> None:
        limits = {"connections": 20, "handshake_s": 0.5}
        async with between(consortium, tmp_path, **limits) as (_, good, port):
            await assert_served(good, consortium)
            idle = [await asyncio.open_connection(HOST, port) for _ in range(40)]
            await assert_served(good, consortium)  # who is in stays in
            for reader, _ in idle:
                await closed(reader)
            async with dialled(port, credentials_of(consortium.sites["c"])) as late:
                await assert_served(late, consortium)
            for _, writer in idle:
                writer.close()

    run_async(main)


def test_connections_beyond_the_limit_are_not_taken(consortium: Consortium, tmp_path: Path) -> None:
    async def main() -> None:
        limits = {"connections": 20, "handshake_s": 3600.0}
        async with between(consortium, tmp_path, **limits) as (_, good, port):
            await assert_served(good, consortium)
            idle = [await asyncio.open_connection(HOST, port) for _ in range(40)]
            ending = [asyncio.create_task(closed(reader)) for reader, _ in idle]
            for one in itertools.islice(asyncio.as_completed(ending), 20):
                await one
            await assert_served(good, consortium)
            for _, writer in idle:
                writer.close()
            await asyncio.gather(*ending)

    run_async(main)


async def closed(reader: asyncio.StreamReader) -> bytes:
    """All that the other end says until it hangs up."""
    try:
        return await reader.read(-1)
    except OSError:
        return b""


def test_floods_of_empty_frames_cost_their_own_connection_at_most(
    consortium: Consortium, tmp_path: Path
) -> None:
    none = {"ca": None, "tls_certificate": None, "tls_key": None}
    settings = consortium.coordinator_settings(tmp_path / "state", insecure=True, **none)
    site = (("veilsum-identity", "veilsum://test/site/b"),)

    async def answered(channel: grpc.aio.Channel) -> bool:
        return (await said(channel, STATUS, b"", metadata=site))[0] is INVALID

    async def main() -> None:
        async with serving(settings) as port, dialled(port) as good:
            reader, writer = await asyncio.open_connection(HOST, port)
            writer.write(PREFACE + PING * 20_000)
            assert GOAWAY_TOO_MANY_PINGS in await closed(reader)
            writer.close()
            assert await answered(good)
            # Calls that are taken back before they are answered (CVE-2023-44487).
            reader, writer = await asyncio.open_connection(HOST, port)
            writer.write(PREFACE + calls_taken_back(20_000) + PING)
            while PONG not in await reader.read(1 << 16):
                assert await answered(good)
            writer.close()
            assert await answered(good)

    run_async(main)


def test_a_message_that_comes_byte_by_byte_is_not_waited_for(
    consortium: Consortium, tmp_path: Path
) -> None:
    """Time is counted to whole messages: a byte now and then keeps no call open."""
    none = {"ca": None, "tls_certificate": None, "tls_key": None}
    settings = consortium.coordinator_settings(
        tmp_path / "state", insecure=True, limits=replace(GENEROUS, first_message_s=0.5), **none
    )
    site = (("veilsum-identity", "veilsum://test/site/b"),)

    async def main() -> None:
        async with serving(settings) as port, dialled(port) as good:
            reader, writer = await asyncio.open_connection(HOST, port)
            writer.write(PREFACE + frame(1, 4, 1, fields_of(PUSH)))
            writer.write(frame(0, 0, 1, b"\0" + (1 << 20).to_bytes(4, "big")))
            ended = asyncio.create_task(until(reader, b"nothing was sent within 0.5 seconds"))
            sent = 0
            while not ended.done():
                writer.write(frame(0, 0, 1, b"\x12"))
                sent += 1
                assert (await said(good, STATUS, b"", metadata=site))[0] is INVALID
            assert await ended
            assert sent < 1 << 20
            writer.close()

    run_async(main)


def test_who_watches_healths_and_does_not_read_holds_up_no_stop(
    consortium: Consortium, tmp_path: Path
) -> None:
    none = {"ca": None, "tls_certificate": None, "tls_key": None}
    settings = consortium.coordinator_settings(tmp_path / "state", insecure=True, **none)
    no_window = frame(4, 0, 0, (4).to_bytes(2, "big") + bytes(4))

    async def main() -> None:
        async with asyncio.timeout(20), serving(settings) as port:
            reader, writer = await asyncio.open_connection(HOST, port)
            writer.write(PREFACE + no_window + frame(1, 4, 1, fields_of(HEALTH)))
            writer.write(frame(0, 1, 1, bytes(5)))
            answered = asyncio.Event()
            alive = asyncio.create_task(staying_alive(reader, writer, answered))
            await answered.wait()
        await alive
        writer.close()

    run_async(main)


async def staying_alive(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answered: asyncio.Event
) -> None:
    """Answers what asks whether anyone is there. `answered`: set when a call's answer begins."""
    with suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            head = await reader.readexactly(9)
            payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
            if head[3] in (4, 6) and not head[4] & 1:
                writer.write(frame(head[3], 1, 0, payload if head[3] == 6 else b""))
            elif head[3] == 1:
                answered.set()


async def until(reader: asyncio.StreamReader, text: bytes) -> bool:
    """Whether the other end says this before it hangs up."""
    found = b""
    while text not in found and (data := await reader.read(1 << 16)):
        found += data
    return text in found


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """A frame of HTTP/2 (RFC 9113, 4.1)."""
    head = len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big")
    return head + payload


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"")
PING = frame(6, 0, 0, bytes(8))
PONG = frame(6, 1, 0, bytes(8))
GOAWAY_TOO_MANY_PINGS = b"too_many_pings"


def calls_taken_back(times: int) -> bytes:
    """So many calls, each followed by its end."""
    block = fields_of(STATUS)
    return b"".join(
        frame(1, 4, stream, block) + frame(3, 0, stream, bytes(4))
        for stream in range(1, 2 * times, 2)
    )


def fields_of(path: str) -> bytes:
    """The header of a call of site a, as literals (RFC 7541, 6.2.2)."""

    def text(value: bytes) -> bytes:
        return bytes((len(value),)) + value

    fields = {
        b":method": b"POST",
        b":scheme": b"http",
        b":path": path.encode(),
        b":authority": b"x",
        b"te": b"trailers",
        b"content-type": b"application/grpc",
        b"veilsum-identity": b"veilsum://test/site/a",
    }
    return b"".join(b"\x00" + text(name) + text(value) for name, value in fields.items())


# --- the limits themselves ----------------------------------------------------------


def test_a_bucket_lets_its_burst_through_and_then_its_rate() -> None:
    bucket = Bucket(2.0, 3, 10.0)
    assert [bucket.take(10.0) for _ in range(4)] == [True, True, True, False]
    assert [bucket.take(10.4), bucket.take(10.5), bucket.take(10.6)] == [False, True, False]
    assert not bucket.full(11.9)
    assert bucket.full(12.0)
    assert [bucket.take(1000.0) for _ in range(4)] == [True, True, True, False]


def test_several_pass_at_once_or_wait_for_the_whole_burst() -> None:
    bucket = Bucket(1.0, 3, 10.0)
    assert [bucket.take(10.0, 2), bucket.take(10.0, 2), bucket.take(10.0)] == [True, False, True]
    assert [bucket.take(12.0, 99), bucket.take(13.0, 99)] == [False, True]


@pytest.mark.parametrize(
    "wrong",
    [{"calls": 7}, {"calls_per_s": 0.0}, {"messages_at_once": 0}, {"unread_s": float("nan")}],
)
def test_limits_that_let_nobody_through_are_an_error(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=f"limits.{next(iter(wrong))} must be"):
        LimitSettings(**wrong)
