"""A coordinator while it is started, stopped, reloaded, and while members are revoked."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from support.consortium import Consortium, make_consortium
from support.pushing import MODEL_BYTES, endpoint, opened, to_the_end, update
from support.serving import Foreign, foreign, operating, run_async, serving, status_of
from veilsum.control import Deadlines, RunEvent, RunSpec
from veilsum.errors import ConfigError
from veilsum.pki.authority import load_certificate
from veilsum.pki.issue import issue
from veilsum.pki.renewal import renew
from veilsum.pki.revoked_file import RevocationList, revoke
from veilsum.proto.v1 import federation_pb2 as pb
from veilsum.transport import coordinator_app, wire_data
from veilsum.transport import upkeep as upkeep_module
from veilsum.transport.admission import Admission
from veilsum.transport.callers import CallRefused, Certificate
from veilsum.transport.client import Connection, Refused, Unreachable
from veilsum.transport.coordinator_app import serve_coordinator
from veilsum.transport.drain import Orders
from veilsum.transport.endpoint import Endpoint
from veilsum.transport.entrance import Entrance
from veilsum.transport.links import Links
from veilsum.transport.logs import Log
from veilsum.transport.metrics import Metrics
from veilsum.transport.runner import Runner
from veilsum.transport.settings import CoordinatorSettings
from veilsum.transport.storage import Storage
from veilsum.transport.tls import load_tls_identity
from veilsum.transport.tls_reload import ServerTls
from veilsum.transport.upkeep import REVOKED, Upkeep, Watched

SITES = ("a", "b")
SPEC = RunSpec(
    "tiny", rounds=2, masked=False, min_sites=2, deadlines=Deadlines(join_s=60, inputs_s=600)
)
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


@pytest.fixture
def consortium(tmp_path: Path) -> Consortium:
    return make_consortium(tmp_path / "consortium", SITES)


@pytest.fixture
def settings(consortium: Consortium, tmp_path: Path) -> CoordinatorSettings:
    return consortium.coordinator_settings(tmp_path / "state", drain_s=3600.0, reconnect_s=3600.0)


@asynccontextmanager
async def asking_health(consortium: Consortium, port: int) -> AsyncIterator[Any]:
    async with foreign(port, consortium.operator) as client:
        yield health_pb2_grpc.HealthStub(client.channel)


async def health_of(stub: Any, service: str) -> int:
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
    return int(answer.status)


async def turned_away(site: Endpoint) -> str:
    """Why a site may not join. gRPC loses the answer where the call ends before its first message
    has been read; then the site asks again."""
    while True:
        try:
            async with Connection(site):
                raise AssertionError("it joined")
        except Unreachable as error:
            if "Internal error from Core" not in str(error):
                raise
        except Refused as error:
            return str(error)


async def until_health_is(stub: Any, wanted: int) -> None:
    async for answer in stub.Watch(health_pb2.HealthCheckRequest(service="")):
        if answer.status == wanted:
            return


# --- the end ----------------------------------------------------------------------------


def test_an_upload_under_way_finishes_and_nothing_begins_before_the_next_start(
    consortium: Consortium, settings: CoordinatorSettings
) -> None:
    orders = Orders()

    async def main() -> None:
        async with (
            serving(settings, orders) as port,
            operating(consortium, port) as operator,
            asking_health(consortium, port) as health,
            foreign(port, consortium.sites["a"]) as raw,
        ):
            a, b = (endpoint(consortium, site, port) for site in SITES)
            async with Connection(a) as of_a, Connection(b) as of_b:
                run = await asyncio.to_thread(operator.submit, SPEC, MODEL_BYTES)
                await of_b.push_update(*update(await opened(of_b), "b"))
                header, chunks = update(await opened(of_a), "a")
                upload = raw.channel.stream_unary("/veilsum.v1.Federation/PushUpdate")()
                await upload.write(wire_data.encode_update_header(header, 0))
                watch = asyncio.create_task(
                    asyncio.to_thread(lambda: list(operator.watch(run.run_id)))
                )
                await under_way(raw)

                orders.stop.set()

                await until_health_is(health, NOT_SERVING)
                assert await health_of(health, "veilsum.v1.Federation") == NOT_SERVING
                assert await health_of(health, "veilsum.Liveness") == SERVING
                with pytest.raises(Unreachable, match="is stopping"):
                    await to_the_end(of_b)
                with pytest.raises(Exception, match="is stopping"):
                    await watch
                with pytest.raises(Exception, match="is stopping"):
                    await asyncio.to_thread(operator.submit, SPEC, MODEL_BYTES)
                fetch = raw.federation.FetchModel(pb.FetchModelRequest())
                assert (await status_of(fetch))[0] is UNAVAILABLE
                assert (await asyncio.to_thread(operator.get, run.run_id)).state == "running"
                await upload.write(wire_data.encode_update_chunks(chunks))
                await upload.done_writing()
                assert wire_data.decode_receipt(await upload) == (len(chunks), True)

        assert 2 not in {event.round_number for event in kept_events(settings, run.run_id)}
        async with serving(settings) as port, operating(consortium, port) as operator:
            address = f"127.0.0.1:{port}"
            of_a, of_b = (Connection(replace(site, address=address)) for site in (a, b))
            async with of_a, of_b:
                assert (await opened(of_a, 2)).round.run_id == run.run_id
            (first,) = (await asyncio.to_thread(operator.get, run.run_id)).rounds
            assert first.completed
            assert first.sites == SITES

    run_async(main)


def kept_events(settings: CoordinatorSettings, run_id: str) -> list[RunEvent]:
    storage = Storage(settings.state_dir)
    events = [event for _, event in storage.events(run_id)]
    storage.close()
    return events


async def under_way(raw: Foreign) -> None:
    """Until the coordinator knows of the calls that were begun: it answers one that came later
    over the same connection."""
    await health_of(health_pb2_grpc.HealthStub(raw.channel), "")


def test_a_second_order_to_stop_does_not_wait_for_uploads(
    consortium: Consortium, settings: CoordinatorSettings
) -> None:
    orders = Orders()

    async def main() -> None:
        async with serving(settings, orders) as port, foreign(port, consortium.sites["a"]) as raw:
            raw.channel.stream_unary("/veilsum.v1.Federation/PushUpdate")()
            await under_way(raw)
            async with Connection(endpoint(consortium, "b", port)) as of_b:
                orders.stop_again()
                with pytest.raises(Unreachable, match="is stopping"):
                    await to_the_end(of_b)
            orders.stop_again()

    run_async(main)


def test_uploads_are_cut_off_when_they_take_too_long(
    consortium: Consortium, tmp_path: Path
) -> None:
    settings = consortium.coordinator_settings(tmp_path / "state", drain_s=0.05)

    async def main() -> None:
        async with serving(settings) as port, foreign(port, consortium.sites["a"]) as raw:
            raw.channel.stream_unary("/veilsum.v1.Federation/PushUpdate")()
            await under_way(raw)

    run_async(main)


# --- the start --------------------------------------------------------------------------


def test_a_coordinator_that_takes_up_its_runs_is_alive_and_not_ready(
    consortium: Consortium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = consortium.coordinator_settings(tmp_path / "state", listen=f"127.0.0.1:{port}")
    recover = Runner.recover

    async def main() -> None:
        begun, go_on, orders = asyncio.Event(), asyncio.Event(), Orders()

        async def slowly(self: Runner) -> None:
            begun.set()
            await go_on.wait()
            await recover(self)

        monkeypatch.setattr(Runner, "recover", slowly)
        served = asyncio.create_task(serve_coordinator(settings, orders=orders))
        await begun.wait()
        async with asking_health(consortium, port) as health:
            assert await health_of(health, "") == NOT_SERVING
            assert await health_of(health, "veilsum.Liveness") == SERVING
            with pytest.raises(Unreachable, match="is starting"):
                await turned_away(endpoint(consortium, "a", port))

            go_on.set()

            await until_health_is(health, SERVING)
            async with Connection(endpoint(consortium, "a", port)):
                pass
        orders.stop.set()
        await served

    run_async(main)


def test_an_order_to_stop_is_heard_while_runs_are_taken_up(
    consortium: Consortium, settings: CoordinatorSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        orders = Orders()

        async def never(self: Runner) -> None:
            orders.stop.set()
            await asyncio.Event().wait()

        monkeypatch.setattr(Runner, "recover", never)
        await serve_coordinator(settings, orders=orders)

    run_async(main)


# --- certificates that change -----------------------------------------------------------


def serial_shown(port: int, files: Any) -> int:
    """Of the certificate that a server shows now."""
    context = ssl.create_default_context(cafile=str(files.ca))
    context.load_cert_chain(files.tls_certificate, files.tls_key)
    with (
        socket.create_connection(("127.0.0.1", port)) as plain_socket,
        context.wrap_socket(plain_socket, server_hostname="localhost") as shown,
    ):
        return int(shown.getpeercert()["serialNumber"], 16)


def test_a_new_certificate_is_shown_without_a_restart_and_streams_stay(
    consortium: Consortium, settings: CoordinatorSettings
) -> None:
    orders = Orders()

    async def main() -> None:
        async with (
            serving(settings, orders) as port,
            operating(consortium, port) as operator,
            Connection(endpoint(consortium, "a", port)) as of_a,
        ):
            made = renew(consortium.authority, consortium.hub.folder)
            orders.reload.set()
            shown = 0
            while shown != made.serial_number:  # the limit of run_async
                shown = await asyncio.to_thread(serial_shown, port, consortium.sites["b"])
            async with Connection(endpoint(consortium, "b", port)):
                await asyncio.to_thread(operator.submit, SPEC, MODEL_BYTES)
                await opened(of_a)

    run_async(main)


def test_a_run_that_is_refused_leaves_no_model_behind(
    consortium: Consortium, settings: CoordinatorSettings
) -> None:
    """No run would name it, and `veilsum run prune` never find it."""

    async def main() -> None:
        async with serving(settings) as port, operating(consortium, port) as operator:
            with pytest.raises(ConfigError, match="zurich"):
                await asyncio.to_thread(
                    operator.submit, replace(SPEC, cohort=("a", "zurich")), MODEL_BYTES
                )
            assert list((settings.state_dir / "models").iterdir()) == []
            run = await asyncio.to_thread(operator.submit, SPEC, MODEL_BYTES)
            (kept,) = (settings.state_dir / "models").iterdir()
            assert kept.name == run.run_id

    run_async(main)


def test_a_new_certificate_is_noticed_and_a_bad_one_not_taken(consortium: Consortium) -> None:
    hub = consortium.hub
    files = (hub.ca, hub.tls_certificate, hub.tls_key)
    tls = ServerTls(files, load_tls_identity(*files, "coordinator"))
    first = tls.current
    assert not tls.changed()

    whole = hub.tls_certificate.read_bytes()
    hub.tls_certificate.write_bytes(whole[: len(whole) // 2])
    assert tls.changed()
    with pytest.raises(ConfigError, match=r"tls\.pem is not a certificate"):
        tls.reload()
    assert tls.current is first
    assert tls.newest() is None

    hub.tls_certificate.write_bytes(whole)
    made = renew(consortium.authority, hub.folder)
    assert tls.changed()
    tls.reload()
    assert tls.current.ends == made.not_valid_after_utc.timestamp()
    assert tls.newest() is not None
    assert tls.newest() is None
    assert not tls.changed()


def test_a_certificate_of_another_coordinator_is_not_taken(
    consortium: Consortium, tmp_path: Path
) -> None:
    hub = consortium.hub
    files = (hub.ca, hub.tls_certificate, hub.tls_key)
    tls = ServerTls(files, load_tls_identity(*files, "coordinator"))
    other = issue(consortium.authority, "coordinator", "other", tmp_path / "other")
    hub.tls_certificate.write_bytes(other.tls_certificate.read_bytes())
    hub.tls_key.write_bytes(other.tls_key.read_bytes())

    with pytest.raises(ConfigError, match=r"is for veilsum://test/coordinator/other, this is"):
        tls.reload()


def test_a_site_shows_its_new_certificate_when_it_connects_again(
    consortium: Consortium, settings: CoordinatorSettings, tmp_path: Path
) -> None:
    files, listed = consortium.sites["a"], tmp_path / "revoked"
    revoke(listed, load_certificate(files.tls_certificate).serial_number)
    settings = replace(settings, revoked=listed)

    async def main() -> None:
        async with serving(settings) as port:
            site = endpoint(consortium, "a", port)
            assert "is revoked" in await turned_away(site)
            files.tls_certificate.write_bytes(b"half a file")
            assert "is revoked" in await turned_away(site)
            files.tls_certificate.write_bytes(site.tls.current.certificate)
            renew(consortium.authority, files.folder)
            async with Connection(site):
                pass

    run_async(main)


# --- members that are revoked -----------------------------------------------------------


@pytest.mark.parametrize("by", ["serial", "identity"])
def test_a_revoked_site_is_lost_at_once_and_does_not_come_back(
    consortium: Consortium, settings: CoordinatorSettings, tmp_path: Path, by: str
) -> None:
    listed, orders = tmp_path / "revoked", Orders()
    listed.touch()
    settings = replace(settings, revoked=listed)
    entry = {
        "serial": load_certificate(consortium.sites["a"].tls_certificate).serial_number,
        "identity": "veilsum://test/site/a",
    }[by]

    async def main() -> None:
        async with (
            serving(settings, orders) as port,
            operating(consortium, port) as operator,
            Connection(endpoint(consortium, "a", port)) as of_a,
            Connection(endpoint(consortium, "b", port)) as of_b,
        ):
            run = await asyncio.to_thread(operator.submit, SPEC, MODEL_BYTES)
            await opened(of_a)
            invited = await opened(of_b)
            revoke(listed, entry)

            orders.reload.set()

            with pytest.raises(Refused, match="is revoked"):
                await to_the_end(of_a)
            assert "is revoked" in await turned_away(endpoint(consortium, "a", port))
            lost = [e for e in await first_events(operator, run.run_id, "a") if "lost" in e.detail]
            assert REVOKED in lost[0].detail
            with suppress(Refused):  # the round may be over without it; the site is heard
                await of_b.push_update(*update(invited, "b"))

    run_async(main)


async def first_events(operator: Any, run_id: str, site: str) -> list[Any]:
    """What happened to a run, until its site was dropped."""

    def read() -> list[Any]:
        seen = []
        for event in operator.watch(run_id):
            seen.append(event)
            if event.site == site and "dropped" in event.detail:
                return seen
        raise AssertionError("the site was not dropped")

    return await asyncio.to_thread(read)


def test_a_list_that_cannot_be_read_stops_the_start(
    consortium: Consortium, settings: CoordinatorSettings, tmp_path: Path
) -> None:
    settings = replace(settings, revoked=tmp_path / "revoked")

    async def main() -> None:
        with pytest.raises(ConfigError, match="cannot read the list of revoked certificates"):
            async with serving(settings):
                pass

    run_async(main)


@pytest.mark.parametrize("content", ["nonsense\n", None])
def test_a_list_that_cannot_be_read_any_more_leaves_those_revoked_who_were(
    tmp_path: Path, content: str | None
) -> None:
    listed, entrance, metrics = tmp_path / "revoked", Entrance(time.time), Metrics()
    listed.write_text("veilsum://test/site/a\n")

    async def usable(works: bool) -> None:
        assert works

    watched = Watched("test", None, listed, tmp_path, usable, nothing_to_do)
    upkeep = Upkeep(watched, entrance, Links(0.0), metrics, Log("test"))
    if content:
        listed.write_text(content)
    else:
        listed.unlink()

    async def main() -> None:
        await upkeep.look(cast(Admission, NobodyCalls()))

    run_async(main)
    assert entrance.revoked == RevocationList(identities=frozenset({"veilsum://test/site/a"}))
    assert refusals(metrics) == 1


def test_a_disk_that_does_not_work_is_noticed_and_so_is_one_that_works_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep_module, "_DISK_EVERY_S", 0.0)
    told: list[bool] = []

    async def usable(works: bool) -> None:
        told.append(works)

    folder = tmp_path / "state"
    watched = Watched("test", None, None, folder, usable, nothing_to_do)
    upkeep = Upkeep(watched, Entrance(time.time), Links(0.0), Metrics(), Log("test"))

    async def main() -> None:
        await upkeep.look(cast(Admission, NobodyCalls()))
        folder.mkdir()
        await upkeep.look(cast(Admission, NobodyCalls()))

    run_async(main)
    assert told == [False, True]
    assert list(folder.iterdir()) == []


async def nothing_to_do() -> None:
    pass


class NobodyCalls:
    """A door with no call behind it."""

    def open_calls(self) -> list[Any]:
        return []


def refusals(metrics: Metrics) -> float:
    labels = {"file": "revoked", "outcome": "refused"}
    return metrics.registry.get_sample_value("veilsum_reloads_total", labels) or 0.0


def test_a_stream_ends_when_its_certificate_does(
    consortium: Consortium, settings: CoordinatorSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders, now = Orders(), [time.time()]
    monkeypatch.setattr(coordinator_app.time, "time", lambda: now[0])

    async def main() -> None:
        async with (
            serving(settings, orders) as port,
            foreign(port, consortium.sites["a"]) as client,
        ):
            request = health_pb2.HealthCheckRequest(service="")
            answers = aiter(health_pb2_grpc.HealthStub(client.channel).Watch(request))
            await anext(answers)
            ends = load_certificate(consortium.sites["a"].tls_certificate).not_valid_after_utc
            now[0] = ends.timestamp() + 1

            orders.reload.set()

            status, text = await status_of(answers)
            assert status is grpc.StatusCode.UNAUTHENTICATED
            assert "is over" in text

    run_async(main)


def test_whose_certificate_is_over_may_not_call() -> None:
    now = [1000.0]
    entrance = Entrance(lambda: now[0])
    certificate = Certificate("veilsum://test/site/a", 7, 1001.0)
    entrance.check_certificate(certificate)
    now[0] = 1001.0

    with pytest.raises(CallRefused, match="the certificate 7 is over"):
        entrance.check_certificate(certificate)


def test_there_is_nothing_to_revoke_without_certificates(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="revoked names certificates"):
        CoordinatorSettings(
            tmp_path, tmp_path, tmp_path, insecure=True, revoked=tmp_path / "revoked"
        )
