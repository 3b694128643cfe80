"""The coordinator over real gRPC: who gets in, who is told off, and that others go on."""

from __future__ import annotations

import asyncio
import socket
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import grpc
import grpc.aio
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from support.consortium import Consortium, make_consortium
from support.plain_updates import plain_update
from support.serving import (
    foreign,
    hello,
    operating,
    run_async,
    serving,
    sites,
    status_of,
)
from veilsum import plain
from veilsum.control import Deadlines, Hello, RoundOpened, RunSpec, UpdateHeader, Welcome
from veilsum.coordinator.core import Coordinator
from veilsum.coordinator.events import SiteSent
from veilsum.errors import ConfigError, DecodeError
from veilsum.model import ModelLayout
from veilsum.pki.authority import create_authority
from veilsum.pki.identity import Identity
from veilsum.pki.issue import IssuedFiles, issue
from veilsum.proto.v1 import federation_pb2 as pb
from veilsum.proto.v1 import operator_pb2
from veilsum.transport import wire_data
from veilsum.transport.callers import INSECURE_IDENTITY, CallRefused
from veilsum.transport.checkpoints import load_model, model_to_bytes
from veilsum.transport.client import Connection, Refused, Replaced, Unreachable
from veilsum.transport.endpoint import Endpoint
from veilsum.transport.operator import CoordinatorUnreachable, OperatorClient
from veilsum.transport.server import _write
from veilsum.transport.site_app import make_endpoint
from veilsum.transport.tls import load_tls_identity
from veilsum.transport.tls_reload import ClientTls

SITES = ("a", "b", "c")
MODEL = {"w": np.zeros((3, 4), np.float32), "steps": np.array([5, 6], np.int64)}
MODEL_BYTES = model_to_bytes(ModelLayout.from_arrays(MODEL), MODEL)
PLAIN = RunSpec(
    task_id="tiny",
    masked=False,
    min_sites=1,
    metrics=("auc", "loss"),
    deadlines=Deadlines(join_s=20, inputs_s=20),
)
PERMISSION_DENIED = grpc.StatusCode.PERMISSION_DENIED
INVALID_ARGUMENT = grpc.StatusCode.INVALID_ARGUMENT
FAILED_PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Consortium:
    return make_consortium(tmp_path_factory.mktemp("consortium"), SITES)


@pytest.fixture
def settings(consortium: Consortium, tmp_path: Path):
    # Clients here hang up and do not come back.
    return consortium.coordinator_settings(tmp_path / "state", reconnect_s=0.0)


def endpoint(consortium: Consortium, site: str, port: int) -> Endpoint:
    return make_endpoint(consortium.site_settings(site, port), consortium.roster)


async def connect_once(where: Endpoint) -> None:
    async with Connection(where):
        pass


async def drain(connection: Connection) -> None:
    async for _ in connection.messages():
        pass


async def round_opened(connection: Connection) -> RoundOpened:
    async for message in connection.messages():
        if isinstance(message, RoundOpened):
            return message
    raise AssertionError("the stream ended")


# What a client of grpc.aio says, instead of what the server said, if the server ended the call
# before the first message was written: callers whom the gate refuses are not read at all.
ANSWER_LOST = (grpc.StatusCode.INTERNAL, "Internal error from Core")


async def join_status(port: int, files: IssuedFiles, message: pb.SiteMessage | bytes) -> tuple:
    """How a Join ends that begins with this message."""

    async def messages() -> AsyncIterator[pb.SiteMessage]:
        yield message

    async with foreign(port, files) as client:
        join = client.federation.Join
        if isinstance(message, bytes):
            join = client.channel.stream_stream("/veilsum.v1.Federation/Join")
        ended = ANSWER_LOST
        while ended == ANSWER_LOST:
            ended = await status_of(join(messages()))
        return ended


# --- who gets in --------------------------------------------------------------------


def test_a_site_of_the_roster_is_welcomed(consortium: Consortium, settings) -> None:
    async def main() -> None:
        async with (
            serving(settings) as port,
            Connection(endpoint(consortium, "a", port)) as connection,
        ):
            first = await anext(connection.messages())
            assert first == Welcome("test", consortium.roster.hash)

    run_async(main)


def test_a_certificate_of_another_authority_does_not_get_in(
    consortium: Consortium, settings, tmp_path: Path
) -> None:
    other = create_authority(tmp_path / "other", "test")
    stranger = issue(other, "site", "a", tmp_path / "members")

    async def main() -> None:
        async with serving(settings) as port:
            async with foreign(port, stranger, ca=consortium.hub.ca) as client:
                status, _ = await status_of(client.federation.PushStatus(pb.PushStatusRequest()))
                assert status is grpc.StatusCode.UNAVAILABLE
            # And its own program, which trusts its own authority, would not talk to ours.
            files = (stranger.ca, stranger.tls_certificate, stranger.tls_key)
            own = ClientTls(files, load_tls_identity(*files, "site"))
            mine = endpoint(consortium, "a", port)
            with pytest.raises(Unreachable):
                await connect_once(Endpoint(mine.address, mine.identity, own, mine.roster, "test"))

    run_async(main)


def test_without_a_certificate_nobody_gets_in(consortium: Consortium, settings) -> None:
    async def main() -> None:
        async with serving(settings) as port:
            credentials = grpc.ssl_channel_credentials(consortium.hub.ca.read_bytes())
            for channel in (
                grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials),
                grpc.aio.insecure_channel(f"127.0.0.1:{port}"),
            ):
                async with channel:
                    call = health_pb2_grpc.HealthStub(channel).Check(
                        health_pb2.HealthCheckRequest()
                    )
                    status, _ = await status_of(call)
                    assert status is grpc.StatusCode.UNAVAILABLE

    run_async(main)


def test_a_coordinators_certificate_cannot_be_used_to_dial(
    consortium: Consortium, settings
) -> None:
    async def main() -> None:
        async with serving(settings) as port, foreign(port, consortium.hub) as client:
            status, _ = await status_of(client.federation.PushStatus(pb.PushStatusRequest()))
            assert status is grpc.StatusCode.UNAVAILABLE

    run_async(main)


def test_a_site_cannot_pose_as_the_coordinator(consortium: Consortium) -> None:
    files = consortium.sites["b"]

    async def main() -> None:
        server = grpc.aio.server()
        credentials = grpc.ssl_server_credentials(
            [(files.tls_key.read_bytes(), files.tls_certificate.read_bytes())]
        )
        port = server.add_secure_port("127.0.0.1:0", credentials)
        await server.start()
        try:
            with pytest.raises(Unreachable):
                await connect_once(endpoint(consortium, "a", port))
        finally:
            await server.stop(None)

    run_async(main)


def test_a_certified_site_that_is_not_in_the_roster_is_told_so(
    consortium: Consortium, settings, tmp_path: Path
) -> None:
    new = issue(consortium.authority, "site", f"new {tmp_path.name}", tmp_path / "members")

    async def main() -> None:
        async with serving(settings) as port:
            status, text = await join_status(port, new, hello(consortium.roster.hash))
            assert status is PERMISSION_DENIED
            assert "is not in the roster" in text
            assert "hint: " in text

    run_async(main)


def test_a_role_calls_its_own_service_only(consortium: Consortium, settings) -> None:
    async def main() -> None:
        async with serving(settings) as port:
            status, text = await join_status(
                port, consortium.operator, hello(consortium.roster.hash)
            )
            assert (status, text) == (
                PERMISSION_DENIED,
                "a certificate of the role operator may not call veilsum.v1.Federation",
            )
            async with foreign(port, consortium.sites["a"]) as client:
                for call in (
                    client.operator.ListRuns(operator_pb2.ListRunsRequest()),
                    client.operator.SubmitRun(operator_pb2.SubmitRunRequest()),
                    client.operator.GetRun(operator_pb2.GetRunRequest()),
                    client.operator.WatchRun(operator_pb2.GetRunRequest()),
                    client.operator.AbortRun(operator_pb2.AbortRunRequest()),
                ):
                    status, text = await status_of(call)
                    assert (status, text) == (
                        PERMISSION_DENIED,
                        "a certificate of the role site may not call veilsum.v1.Operator",
                    )

    run_async(main)


def test_with_tls_nobody_can_claim_another_name(consortium: Consortium, settings) -> None:
    claim = ((INSECURE_IDENTITY, Identity("test", "operator", "ann").uri),)

    async def main() -> None:
        async with serving(settings) as port, foreign(port, consortium.sites["a"]) as client:
            call = client.operator.ListRuns(operator_pb2.ListRunsRequest(), metadata=claim)
            assert (await status_of(call))[0] is PERMISSION_DENIED

    run_async(main)


def test_another_roster_is_refused_at_the_door(consortium: Consortium, settings) -> None:
    async def main() -> None:
        async with serving(settings) as port:
            status, text = await join_status(port, consortium.sites["a"], hello(b"x" * 32))
            assert status is FAILED_PRECONDITION
            assert "site 'a' has another roster" in text

    run_async(main)


def test_a_site_is_told_why_it_is_refused(consortium: Consortium, settings, tmp_path: Path) -> None:
    other = make_consortium(tmp_path / "other", SITES)  # same names, other keys

    async def main() -> None:
        async with serving(settings) as port:
            mine = endpoint(consortium, "a", port)
            wrong = Endpoint(mine.address, mine.identity, mine.tls, other.roster, "test")
            with pytest.raises(Refused, match="has another roster") as caught:
                await connect_once(wrong)
            assert caught.value.hint == "every member needs the same roster file"

    run_async(main)


# --- insecure -----------------------------------------------------------------------


def test_insecure_identities_come_from_metadata_and_are_checked(
    consortium: Consortium, tmp_path: Path
) -> None:
    none = {"ca": None, "tls_certificate": None, "tls_key": None}
    settings = consortium.coordinator_settings(tmp_path / "state", insecure=True, **none)
    expected = {
        "veilsum://test/site/a": PERMISSION_DENIED,
        "veilsum://test/operator/ann": grpc.StatusCode.OK,
        "veilsum://other/operator/ann": PERMISSION_DENIED,
        "ann": grpc.StatusCode.UNAUTHENTICATED,
        None: grpc.StatusCode.UNAUTHENTICATED,
    }

    async def main() -> None:
        async with serving(settings) as port:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                call = channel.unary_unary("/veilsum.v1.Operator/ListRuns")
                for identity, status in expected.items():
                    metadata = ((INSECURE_IDENTITY, identity),) if identity else ()
                    assert (await status_of(call(b"", metadata=metadata)))[0] is status
                twice = ((INSECURE_IDENTITY, "veilsum://test/operator/ann"),) * 2
                assert (await status_of(call(b"", metadata=twice)))[0] is (
                    grpc.StatusCode.UNAUTHENTICATED
                )
            site = consortium.site_settings("a", port, insecure=True, **none)
            async with Connection(make_endpoint(site, consortium.roster)):
                pass

    run_async(main)


# --- Join ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (pb.SiteMessage(), "empty or of an unknown kind"),
        (pb.SiteMessage(progress=pb.Progress(fraction=0.5)), "run_id"),
        (
            pb.SiteMessage(
                progress=pb.Progress(round=pb.RoundId(run_id="r", number=1), fraction=0.5)
            ),
            "must be its hello",
        ),
        (hello(b"short"), "roster_hash must be 32"),
        (b"\xff\xff\xff", "not a protobuf message"),
    ],
)
def test_a_join_that_begins_wrongly_ends_with_the_reason(
    consortium: Consortium, settings, message: pb.SiteMessage | bytes, text: str
) -> None:
    async def main() -> None:
        async with serving(settings) as port:
            status, said = await join_status(port, consortium.sites["a"], message)
            assert status is INVALID_ARGUMENT
            assert text in said

    run_async(main)


def test_a_second_join_of_a_site_replaces_the_first(consortium: Consortium, settings) -> None:
    async def main() -> None:
        async with (
            serving(settings) as port,
            Connection(endpoint(consortium, "a", port)) as first,
            Connection(endpoint(consortium, "b", port)) as other,
        ):
            async with Connection(endpoint(consortium, "a", port)) as second:
                with pytest.raises(Replaced):
                    await drain(first)
                assert isinstance(await anext(second.messages()), Welcome)
            assert isinstance(await anext(other.messages()), Welcome)

    run_async(main)


def test_an_answer_to_a_connection_that_broke_is_no_internal_error() -> None:
    async def broken(message: bytes) -> None:
        raise grpc.aio.InternalError("the batch failed")

    async def main() -> None:
        with pytest.raises(CallRefused, match="the connection broke") as refused:
            await _write(SimpleNamespace(write=broken), b"", 1.0)
        assert refused.value.status is grpc.StatusCode.UNAVAILABLE

    run_async(main)


def test_a_process_whose_place_another_took_does_not_come_back(
    consortium: Consortium, settings
) -> None:
    """Or the two would take turns for ever."""

    async def main() -> None:
        async with serving(settings) as port:
            earlier = endpoint(consortium, "a", port)
            async with Connection(earlier):
                later = Connection(endpoint(consortium, "a", port))
                async with later:
                    with pytest.raises(Replaced):
                        await connect_once(earlier)
                    await later.send(Hello("again", consortium.roster.hash, b"i" * 16))
                    with pytest.raises(Refused, match="says hello once"):
                        await drain(later)  # it is still the one

    run_async(main)


def test_a_message_that_breaks_the_format_ends_that_sites_stream_only(
    consortium: Consortium, settings
) -> None:
    async def main() -> None:
        async with (
            serving(settings) as port,
            Connection(endpoint(consortium, "b", port)) as other,
            Connection(endpoint(consortium, "a", port)) as connection,
        ):
            await connection.send(Hello("again", consortium.roster.hash, b"i" * 16))
            with pytest.raises(Refused, match="says hello once"):
                await drain(connection)
            await other.send(Hello("again", consortium.roster.hash, b"i" * 16))
            with pytest.raises(Refused, match="says hello once"):
                await drain(other)

    run_async(main)


def test_a_message_beyond_the_limit_is_refused(consortium: Consortium, settings) -> None:
    huge = pb.SiteMessage(protocol=pb.ProtocolMessage(payload=bytes(5 << 20)))

    async def main() -> None:
        async with serving(settings) as port:
            status, _ = await join_status(port, consortium.sites["a"], huge)
            assert status is grpc.StatusCode.RESOURCE_EXHAUSTED

    run_async(main)


# --- models and updates ---------------------------------------------------------------


def test_a_model_that_is_not_there_is_not_found(consortium: Consortium, settings) -> None:
    request = pb.FetchModelRequest(round=pb.RoundId(run_id="nowhere", number=1))

    async def main() -> None:
        async with serving(settings) as port, foreign(port, consortium.sites["a"]) as client:
            status, text = await status_of(client.federation.FetchModel(request))
            assert status is grpc.StatusCode.NOT_FOUND
            assert "round 1 of run 'nowhere' has no model for this site" in text

    run_async(main)


def _chunks(count: int, size: int) -> pb.UpdateFrame:
    return pb.UpdateFrame(chunks=pb.UpdateChunks(chunk=[bytes(size)] * count))


@pytest.mark.parametrize(
    ("kind", "status", "text"),
    [
        ("no header", INVALID_ARGUMENT, "must begin with its header"),
        ("garbage", INVALID_ARGUMENT, "has no chunk"),
        ("oversized chunk", INVALID_ARGUMENT, "the largest of this update has"),
        ("too many chunks", FAILED_PRECONDITION, "chunk"),
        ("heavy", FAILED_PRECONDITION, "weight"),
        ("other round", FAILED_PRECONDITION, "which takes none now"),
    ],
)
def test_a_bad_upload_costs_its_site_the_round_and_nobody_else(
    consortium: Consortium, settings, kind: str, status: grpc.StatusCode, text: str
) -> None:
    async def main() -> None:
        async with (
            serving(settings) as port,
            sites(consortium, port, ["a", "b"]),
            operating(consortium, port) as operator,
            Connection(endpoint(consortium, "c", port)) as bad,
        ):
            run = await asyncio.to_thread(operator.submit, PLAIN, MODEL_BYTES)
            opened = await round_opened(bad)
            frames = _bad_frames(kind, opened, _chunk_count(opened), "c")
            async with foreign(port, consortium.sites["c"]) as client:
                found = await status_of(client.federation.PushUpdate(frames))
            assert found[0] is status
            assert text in found[1]
            await bad.__aexit__()
            events = await asyncio.to_thread(lambda: list(operator.watch(run.run_id)))
            assert events[-1].kind == "run"
            ended = await asyncio.to_thread(operator.get, run.run_id)
            assert (ended.state, ended.rounds[0].sites) == ("completed", ("a", "b"))
            assert set(ended.rounds[0].dropped) == {"c"}

    run_async(main)


def _chunk_count(opened: RoundOpened) -> int:
    layout = ModelLayout.from_bytes(opened.plain.layout)
    codec = plain.codec_settings(opened.plain.codec, opened.plain.clip).number
    return sum(group.count for group in plain.chunk_groups(layout, codec))


async def _bad_frames(
    kind: str, opened: RoundOpened, count: int, site: str
) -> AsyncIterator[pb.UpdateFrame]:
    number = 9 if kind == "other round" else opened.round.number
    header = pb.UpdateHeader(
        round=pb.RoundId(run_id=opened.round.run_id, number=number),
        update_id=plain.update_id(opened.plain, opened.round, site),
        chunk_count=count + (1 if kind == "too many chunks" else 0),
        weight=2**31 - 1 if kind == "heavy" else 10,
    )
    if kind != "no header":
        yield pb.UpdateFrame(header=header)
    size = 3 << 20 if kind == "oversized chunk" else 128
    yield _chunks(1, size)


def test_an_update_of_a_foreign_program_counts_once_however_often_it_is_pushed(
    consortium: Consortium, settings
) -> None:
    async def main() -> None:
        async with (
            serving(settings) as port,
            operating(consortium, port) as operator,
            Connection(endpoint(consortium, "a", port)) as connection,
        ):
            spec = RunSpec(
                task_id="tiny",
                masked=False,
                min_sites=1,
                cohort=("a", "b"),
                deadlines=Deadlines(join_s=20, inputs_s=20),
            )
            async with Connection(endpoint(consortium, "b", port)) as other:
                run = await asyncio.to_thread(operator.submit, spec, MODEL_BYTES)
                opened = await round_opened(connection)
                layout, model = await connection.fetch_model(opened.round, max_bytes=1 << 20)
                assert list(model) == ["w", "steps"]
                header, chunks = _update(opened, layout, "a")
                assert await connection.push_status(opened.round, header.update_id) == (0, False)
                assert not await connection.push_update(header, chunks[:1])
                assert await connection.push_status(opened.round, header.update_id) == (1, False)
                assert await connection.push_update(header, chunks, first_chunk=1)
                assert await connection.push_update(header, chunks)
                with pytest.raises(Refused, match="second, different update"):
                    await connection.push_update(replace(header, weight=11), chunks)
                await other.__aexit__()
            events = await asyncio.to_thread(lambda: list(operator.watch(run.run_id)))
            assert [event.kind for event in events][-2:] == ["round", "run"]
            ended = await asyncio.to_thread(operator.get, run.run_id)
            assert ended.rounds[0].sites == ("a",)
            assert ended.rounds[0].total_weight == 10

    run_async(main)


def _update(
    opened: RoundOpened, layout: ModelLayout, site: str
) -> tuple[UpdateHeader, list[bytes]]:
    arrays = [np.ones((3, 4), np.float32), np.ones(2, np.int64)]
    return plain_update(opened.plain, (opened.round, site), layout, arrays)


def test_a_model_that_is_too_large_for_a_site_is_not_received(
    consortium: Consortium, settings
) -> None:
    async def main() -> None:
        async with (
            serving(settings) as port,
            operating(consortium, port) as operator,
            Connection(endpoint(consortium, "a", port)) as connection,
        ):
            spec = RunSpec(task_id="tiny", masked=False, min_sites=1, cohort=("a",))
            await asyncio.to_thread(operator.submit, spec, MODEL_BYTES)
            opened = await round_opened(connection)
            with pytest.raises(DecodeError, match="has 64 bytes, this site accepts 63"):
                await connection.fetch_model(opened.round, max_bytes=63)

    run_async(main)


# --- operators ------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["topk/d2", "eden4", "int8"])
def test_a_plain_run_may_be_compressed_and_make_up_for_what_its_codec_loses(
    consortium: Consortium, settings, codec: str
) -> None:
    spec = replace(PLAIN, codec=codec, rounds=2, compression="zstd", error_feedback=True)

    async def main() -> None:
        async with (
            serving(settings) as port,
            sites(consortium, port, SITES),
            operating(consortium, port) as operator,
        ):
            run = await asyncio.to_thread(operator.submit, spec, MODEL_BYTES)
            *_, last = await asyncio.to_thread(lambda: list(operator.watch(run.run_id)))
            assert last.detail == "completed"
            ended = await asyncio.to_thread(operator.get, run.run_id)
            assert [record.sites for record in ended.rounds] == [SITES, SITES]

    run_async(main)


def test_a_plain_run_goes_from_submission_to_a_model_file(
    consortium: Consortium, settings, tmp_path: Path
) -> None:
    async def main() -> None:
        async with (
            serving(settings) as port,
            sites(consortium, port, SITES),
            operating(consortium, port) as operator,
        ):
            run = await asyncio.to_thread(operator.submit, PLAIN, MODEL_BYTES)
            events = await asyncio.to_thread(lambda: list(operator.watch(run.run_id)))
            again = await asyncio.to_thread(lambda: list(operator.watch(run.run_id)))
            assert [e for e in events if e.kind != "progress"] == again
            assert again[-1].detail == "completed"
            ended = await asyncio.to_thread(operator.get, run.run_id)
            listed = await asyncio.to_thread(operator.runs)
        assert (ended.state, ended.rounds[0].sites) == ("completed", SITES)
        assert ended.rounds[0].metrics["auc"] == 0.75
        assert [item.run_id for item in listed] == [run.run_id]
        folder = tmp_path / "state" / "models" / run.run_id
        _, start = load_model(folder / "round-0.safetensors")
        _, after = load_model(folder / "round-1.safetensors")
        assert not start["w"].any()
        assert after["w"].any()

    run_async(main)


def test_runs_of_an_earlier_process_can_be_looked_up(consortium: Consortium, settings) -> None:
    async def main() -> None:
        async with serving(settings) as port, operating(consortium, port) as operator:
            run = await asyncio.to_thread(operator.submit, PLAIN, MODEL_BYTES)
        async with serving(settings) as port, operating(consortium, port) as operator:
            found = await asyncio.to_thread(operator.get, run.run_id)
            assert (found.state, found.current_round) == ("running", 1)
            found = await asyncio.to_thread(operator.abort, run.run_id)
        async with serving(settings) as port, operating(consortium, port) as operator:
            assert await asyncio.to_thread(operator.get, run.run_id) == found
            assert found.state == "aborted"
            events = await asyncio.to_thread(lambda: list(operator.watch(run.run_id)))
            assert events[-1].kind == "run"
            assert await asyncio.to_thread(operator.abort, run.run_id) == found

    run_async(main)


def test_an_operator_stops_a_run(consortium: Consortium, settings) -> None:
    async def main() -> None:
        async with serving(settings) as port, operating(consortium, port) as operator:
            run = await asyncio.to_thread(operator.submit, PLAIN, MODEL_BYTES)
            stopped = await asyncio.to_thread(operator.abort, run.run_id, "wrong data")
            assert stopped.state == "aborted"
            assert "aborted by operator ann: wrong data" in stopped.reason

    run_async(main)


def test_requests_that_cannot_be_met_say_why(consortium: Consortium, settings) -> None:
    async def main() -> None:
        async with serving(settings) as port, operating(consortium, port) as operator:
            for call, text in (
                (lambda: operator.get("nope"), "there is no run 'nope'"),
                (lambda: list(operator.watch("nope")), "there is no run 'nope'"),
                (lambda: operator.submit(PLAIN, b"no model"), "not a safetensors file"),
                (lambda: operator.submit(PLAIN, "no.safetensors"), "models folder"),
                (lambda: operator.submit(PLAIN, bytes(5 << 20)), "too many for one message"),
                (
                    lambda: operator.submit(
                        RunSpec(task_id="t", cohort=("x", "y", "z")), MODEL_BYTES
                    ),
                    "not in the roster",
                ),
            ):
                with pytest.raises(ConfigError, match=text):
                    await asyncio.to_thread(call)
            assert await asyncio.to_thread(operator.runs) == ()

    run_async(main)


def test_an_operator_whom_nobody_answers_is_told_where(consortium: Consortium) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with (
            OperatorClient(consortium.operator_settings(port)) as operator,
            pytest.raises(CoordinatorUnreachable, match=f"127.0.0.1:{port}"),
        ):
            operator.runs()


# --- failures of the coordinator itself -------------------------------------------------


def test_a_failure_inside_the_core_ends_its_run_and_not_the_server(
    consortium: Consortium, settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = Coordinator.handle
    broken = True

    def failing(self: Coordinator, event: object, *, now: float) -> list:
        if broken and isinstance(event, SiteSent):
            raise RuntimeError("a bug")
        return handle(self, event, now=now)

    monkeypatch.setattr(Coordinator, "handle", failing)

    async def main() -> None:
        nonlocal broken
        async with (
            serving(settings) as port,
            sites(consortium, port, SITES),
            operating(consortium, port) as operator,
        ):
            run = await asyncio.to_thread(operator.submit, PLAIN, MODEL_BYTES)
            await asyncio.to_thread(lambda: list(operator.watch(run.run_id)))
            ended = await asyncio.to_thread(operator.get, run.run_id)
            assert ended.state == "aborted"
            assert "an internal error of the coordinator" in ended.reason
            broken = False
            run = await asyncio.to_thread(operator.submit, PLAIN, MODEL_BYTES)
            await asyncio.to_thread(lambda: list(operator.watch(run.run_id)))
            assert (await asyncio.to_thread(operator.get, run.run_id)).state == "completed"

    run_async(main)


# --- the process ------------------------------------------------------------------------


def test_a_port_in_use_is_an_error_that_names_it(
    consortium: Consortium, settings, tmp_path: Path
) -> None:
    async def main() -> None:
        async with serving(settings) as port:
            second = consortium.coordinator_settings(
                tmp_path / "second", listen=f"127.0.0.1:{port}"
            )
            with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}") as caught:
                async with serving(second):
                    pass
            assert "another `listen`" in (caught.value.hint or "")

    run_async(main)


def test_the_wrong_signing_key_stops_the_coordinator_at_its_start(
    consortium: Consortium, tmp_path: Path
) -> None:
    settings = consortium.coordinator_settings(
        tmp_path / "state", signing_key=consortium.sites["a"].signing_key
    )

    async def main() -> None:
        with pytest.raises(ConfigError, match="not the one the roster lists"):
            async with serving(settings):
                pass

    run_async(main)


def test_health_and_reflection_answer_members(consortium: Consortium, settings) -> None:
    request = reflection_pb2.ServerReflectionRequest(list_services="")

    async def main() -> None:
        async with serving(settings) as port, foreign(port, consortium.sites["a"]) as client:
            health = health_pb2_grpc.HealthStub(client.channel)
            for service in ("", "veilsum.v1.Federation", "veilsum.v1.Operator"):
                answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
            reflection = reflection_pb2_grpc.ServerReflectionStub(client.channel)
            (answer,) = [
                answer async for answer in reflection.ServerReflectionInfo(iter([request]))
            ]
            names = {service.name for service in answer.list_services_response.service}
            assert {"veilsum.v1.Federation", "veilsum.v1.Operator"} <= names

    run_async(main)


def test_metrics_count_what_happened(consortium: Consortium, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        metrics_port = free.getsockname()[1]
    settings = consortium.coordinator_settings(tmp_path / "state", metrics_port=metrics_port)

    def read() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics") as answer:
            return answer.read().decode()

    async def main() -> None:
        async with (
            serving(settings) as port,
            sites(consortium, port, SITES),
            operating(consortium, port) as operator,
        ):
            run = await asyncio.to_thread(operator.submit, PLAIN, MODEL_BYTES)
            await asyncio.to_thread(lambda: list(operator.watch(run.run_id)))
            await join_status(port, consortium.operator, hello(b"x" * 32))
            text = await asyncio.to_thread(read)
            assert 'veilsum_rounds_total{outcome="completed"} 1.0' in text
            assert "veilsum_updates_total 3.0" in text
            assert 'veilsum_refusals_total{reason="permission_denied"} 1.0' in text
            assert "veilsum_sites 3.0" in text
            taken = wire_data.encode_update_chunks([b""])  # not counted: only chunks are
            assert taken
            assert 'veilsum_bytes_total{way="in"}' in text

    run_async(main)
