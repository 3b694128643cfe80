"""Downloads over real gRPC and a network that breaks: a site keeps what it has, gets the rest."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import numpy as np
import pytest

from support.consortium import Consortium, make_consortium
from support.proxy import Proxy
from support.serving import foreign, operating, run_async, serving, status_of
from veilsum.control import RoundOpened, RunSpec
from veilsum.model import ModelLayout
from veilsum.proto.v1 import federation_pb2 as pb
from veilsum.site.effects import FetchModel
from veilsum.site.events import ModelFetched
from veilsum.transport.checkpoints import model_to_bytes
from veilsum.transport.client import Connection, Unreachable
from veilsum.transport.endpoint import Endpoint
from veilsum.transport.fetching import Fetching
from veilsum.transport.logs import Log
from veilsum.transport.models import PIECE_BYTES, Models, ServedModel
from veilsum.transport.site_app import make_endpoint

MODEL = {"w": np.arange(900_000, dtype=np.float32)}
LAYOUT = ModelLayout.from_arrays(MODEL)


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Consortium:
    return make_consortium(tmp_path_factory.mktemp("consortium"), ["a"])


def endpoint(consortium: Consortium, port: int) -> Endpoint:
    return make_endpoint(consortium.site_settings("a", port), consortium.roster)


async def round_opened(connection: Connection) -> RoundOpened:
    async for message in connection.messages():
        if isinstance(message, RoundOpened):
            return message
    raise AssertionError("the stream ended")


def test_a_model_is_sent_once_however_often_the_network_breaks(
    consortium: Consortium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[int] = []
    read = Models.read

    async def reading(models: Models, model: ServedModel, begin: int) -> bytes:
        served.append(begin)
        return await read(models, model, begin)

    monkeypatch.setattr(Models, "read", reading)

    async def main() -> None:
        fetching, bytes_of_model = Fetching(1 << 24, Log("site")), 4 * 900_000
        settings = consortium.coordinator_settings(tmp_path / "state")
        async with (
            serving(settings) as port,
            operating(consortium, port) as operator,
            Proxy(port) as proxy,
        ):
            spec = RunSpec("tiny", masked=False, min_sites=1, cohort=("a",))
            where = endpoint(
                consortium, proxy.port
            )  # of one process, so that it stays in its round
            async with Connection(where) as first:
                await asyncio.to_thread(operator.submit, spec, model_to_bytes(LAYOUT, MODEL))
                opened = await round_opened(first)
                effect = FetchModel(opened.round)
                proxy.down.after(PIECE_BYTES * 3 // 2, proxy.hold)
                fetch = asyncio.create_task(fetching.model(effect, first))
                await proxy.happened("held")
                while fetching._kept is None or fetching._kept[1].held < PIECE_BYTES:
                    await asyncio.sleep(0)
                proxy.cut()
                fetch.cancel()  # as a site does that notices its connection break
                proxy.go_on()
                with pytest.raises(Unreachable):
                    async for _ in first.messages():
                        pass
            async with Connection(where) as second:
                before = len(served)
                fetched = await fetching.model(effect, second)
            assert isinstance(fetched, ModelFetched)
            np.testing.assert_array_equal(fetched.arrays["w"], MODEL["w"])
            assert served[before] == PIECE_BYTES
            assert served[before:] == list(range(PIECE_BYTES, bytes_of_model, PIECE_BYTES))

    run_async(main)


def test_who_claims_to_have_more_than_there_is_is_told_so(
    consortium: Consortium, tmp_path: Path
) -> None:
    async def main() -> None:
        settings = consortium.coordinator_settings(tmp_path / "state")
        async with (
            serving(settings) as port,
            operating(consortium, port) as operator,
            Connection(endpoint(consortium, port)) as member,
            foreign(port, consortium.sites["a"]) as client,
        ):
            spec = RunSpec("tiny", masked=False, min_sites=1, cohort=("a",))
            await asyncio.to_thread(operator.submit, spec, model_to_bytes(LAYOUT, MODEL))
            opened = await round_opened(member)
            where = pb.RoundId(run_id=opened.round.run_id, number=opened.round.number)
            size = 4 * 900_000
            all_there = pb.FetchModelRequest(round=where, offset=size)
            assert await status_of(client.federation.FetchModel(all_there)) == (
                grpc.StatusCode.OK,
                "",
            )
            for call, request in (
                (client.federation.FetchModel, pb.FetchModelRequest(round=where, offset=size + 1)),
                (client.federation.FetchLinks, pb.FetchRequest(round=where, offset=1)),
            ):
                status, text = await status_of(call(request))
                assert status is grpc.StatusCode.INVALID_ARGUMENT
                assert "the answer goes on at byte" in text

    run_async(main)
