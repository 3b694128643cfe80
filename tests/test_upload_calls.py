"""Uploads over real gRPC: sites that stall, disks that take nothing, and what others notice."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from support.consortium import Consortium, make_consortium
from support.plain_updates import plain_update
from support.proxy import Proxy
from support.serving import foreign, operating, run_async, serving, sites, status_of
from veilsum.control import Deadlines, RoundOpened, RunSpec, UpdateHeader
from veilsum.model import ModelLayout
from veilsum.proto.v1 import federation_pb2 as pb
from veilsum.transport.checkpoints import model_to_bytes
from veilsum.transport.client import Connection, Endpoint, Unreachable
from veilsum.transport.site_app import make_endpoint

SITES = ("a", "b", "c")
MODEL = {"w": np.zeros((3, 4), np.float32), "steps": np.array([5, 6], np.int64)}
LAYOUT = ModelLayout.from_arrays(MODEL)
MODEL_BYTES = model_to_bytes(LAYOUT, MODEL)
PLAIN = RunSpec(
    task_id="tiny",
    masked=False,
    min_sites=1,
    metrics=("auc", "loss"),
    deadlines=Deadlines(join_s=20, inputs_s=20),
)


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Consortium:
    return make_consortium(tmp_path_factory.mktemp("consortium"), SITES)


def endpoint(consortium: Consortium, site: str, port: int) -> Endpoint:
    return make_endpoint(consortium.site_settings(site, port), consortium.roster)


async def round_opened(connection: Connection) -> RoundOpened:
    async for message in connection.messages():
        if isinstance(message, RoundOpened):
            return message
    raise AssertionError("the stream ended")


def update_of(opened: RoundOpened, site: str) -> tuple[UpdateHeader, list[bytes]]:
    assert opened.plain is not None
    arrays = [np.ones((3, 4), np.float32), np.ones(2, np.int64)]
    return plain_update(opened.plain, (opened.round, site), LAYOUT, arrays)


def test_an_upload_that_stalls_ends_alone_and_goes_on_later(
    consortium: Consortium, tmp_path: Path
) -> None:
    settings = consortium.coordinator_settings(tmp_path / "state", stall_s=1.0)

    async def frames(header: UpdateHeader, chunk: bytes) -> AsyncIterator[pb.UpdateFrame]:
        yield pb.UpdateFrame(
            header=pb.UpdateHeader(
                round=pb.RoundId(run_id=header.round.run_id, number=header.round.number),
                update_id=header.update_id,
                chunk_count=header.chunk_count,
                weight=header.weight,
            )
        )
        yield pb.UpdateFrame(chunks=pb.UpdateChunks(chunk=[chunk]))
        await asyncio.Event().wait()

    async def main() -> None:
        async with (
            serving(settings) as port,
            operating(consortium, port) as operator,
            Connection(endpoint(consortium, "a", port)) as stalls,
            Connection(endpoint(consortium, "b", port)) as other,
            foreign(port, consortium.sites["a"]) as client,
        ):
            spec = RunSpec("tiny", masked=False, min_sites=2, cohort=("a", "b"))
            run = await asyncio.to_thread(operator.submit, spec, MODEL_BYTES)
            opened = await round_opened(stalls)
            header, chunks = update_of(opened, "a")
            stalled = asyncio.create_task(
                status_of(client.federation.PushUpdate(frames(header, chunks[0])))
            )
            assert await other.push_update(*update_of(await round_opened(other), "b"))
            status, text = await stalled
            assert status is grpc.StatusCode.DEADLINE_EXCEEDED
            assert "nothing came for 1 seconds" in text
            # Its site is still in the round, and what came before is held.
            assert await stalls.push_status(opened.round, header.update_id) == (1, False)
            assert await stalls.push_update(header, chunks, first_chunk=1)
            await asyncio.to_thread(lambda: list(operator.watch(run.run_id)))
            ended = await asyncio.to_thread(operator.get, run.run_id)
            assert (ended.state, ended.rounds[0].sites) == ("completed", ("a", "b"))

    run_async(main)


def test_a_full_disk_is_a_passing_state_that_says_so(
    consortium: Consortium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = consortium.coordinator_settings(tmp_path / "state")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def main() -> None:
        async with (
            serving(settings) as port,
            operating(consortium, port) as operator,
            Connection(endpoint(consortium, "a", port)) as connection,
        ):
            spec = RunSpec("tiny", masked=False, min_sites=1, cohort=("a",))
            run = await asyncio.to_thread(operator.submit, spec, MODEL_BYTES)
            opened = await round_opened(connection)
            header, chunks = update_of(opened, "a")
            with monkeypatch.context() as patch:
                patch.setattr(os, "posix_fallocate", full)
                with pytest.raises(Unreachable, match=r"the disk is full \(UNAVAILABLE\)") as said:
                    await connection.push_update(header, chunks)
            assert "uploads go on by themselves" in str(said.value.hint)
            assert await connection.push_update(header, chunks)
            await asyncio.to_thread(lambda: list(operator.watch(run.run_id)))
            assert (await asyncio.to_thread(operator.get, run.run_id)).state == "completed"

    run_async(main)


def test_sites_wait_for_a_disk_by_themselves(
    consortium: Consortium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full at first, then a file is deleted under its upload."""
    settings = consortium.coordinator_settings(tmp_path / "state")
    real, trouble = os.pwritev, iter(("full", "", "deleted"))

    def write(descriptor: int, buffers: Any, begin: int) -> int:
        match next(trouble, ""):
            case "full":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            case "deleted":
                for file in (tmp_path / "state" / "spool").glob("*.update"):
                    file.unlink()
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(descriptor, buffers, begin)

    monkeypatch.setattr(os, "pwritev", write)

    async def main() -> None:
        async with (
            serving(settings) as port,
            sites(consortium, port, SITES),
            operating(consortium, port) as operator,
        ):
            run = await asyncio.to_thread(operator.submit, PLAIN, MODEL_BYTES)
            await asyncio.to_thread(lambda: list(operator.watch(run.run_id)))
            ended = await asyncio.to_thread(operator.get, run.run_id)
            assert (ended.state, ended.rounds[0].sites) == ("completed", SITES)
            assert next(trouble, None) is None
            assert list((tmp_path / "state" / "spool").glob("*.update")) == []

    run_async(main)


def test_an_upload_goes_on_after_a_restart_at_another_address(
    consortium: Consortium, tmp_path: Path
) -> None:
    settings = consortium.coordinator_settings(tmp_path / "state")
    spec = RunSpec("tiny", masked=False, min_sites=1, cohort=("a",))

    async def main() -> None:
        async with Proxy(None) as proxy:
            where = endpoint(consortium, "a", proxy.port)  # one process, which knows one name
            async with serving(settings) as port:
                proxy.target = port
                async with Connection(where) as connection, operating(consortium, port) as ann:
                    run = await asyncio.to_thread(ann.submit, spec, MODEL_BYTES)
                    opened = await round_opened(connection)
                    header, chunks = update_of(opened, "a")
                    assert not await connection.push_update(header, chunks[:1])
            async with serving(settings) as other:
                proxy.target = other
                async with Connection(where) as connection, operating(consortium, other) as ann:
                    status = await connection.push_status(opened.round, header.update_id)
                    assert status == (1, False)
                    assert await connection.push_update(header, chunks, first_chunk=1)
                    await asyncio.to_thread(lambda: list(ann.watch(run.run_id)))
                    ended = await asyncio.to_thread(ann.get, run.run_id)
                    assert (ended.state, ended.rounds[0].sites) == ("completed", ("a",))

    run_async(main)


def test_what_an_earlier_process_left_in_the_spool_is_told_of(
    consortium: Consortium, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = consortium.coordinator_settings(tmp_path / "state")
    file = tmp_path / "state" / "spool" / "0123.update"

    async def main() -> None:
        async with serving(settings):
            pass
        file.write_bytes(b"torn")
        async with serving(settings):
            assert not file.exists()

    run_async(main)
    (line,) = [line for line in caplog.records if line.getMessage() == "upload removed"]
    told = line.__dict__["fields"]
    assert told["file"] == "0123.update"
    assert "does not begin as an upload does" in told["reason"]
