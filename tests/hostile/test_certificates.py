"""Certificates that were good once, and some that are not yet."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
from cryptography import x509

from support.consortium import Consortium, make_consortium
from support.raw import METHODS, call, credentials_of, dialled, said, told
from support.serving import hello, operating, run_async, serving, sites
from veilsum.control import Deadlines, RunSpec
from veilsum.model import ModelLayout
from veilsum.pki import issue as issuing
from veilsum.pki.issue import IssuedFiles, issue
from veilsum.proto.v1 import federation_pb2 as pb
from veilsum.transport.checkpoints import model_to_bytes
from veilsum.transport.drain import Orders

JOIN = "/veilsum.v1.Federation/Join"
STATUS = "/veilsum.v1.Federation/PushStatus"
MODEL = {"w": np.zeros((3, 4), np.float32)}


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Consortium:
    return make_consortium(tmp_path_factory.mktemp("consortium"), ["a", "b", "c"])


def issued(consortium: Consortium, folder: Path, days_from_now: int) -> IssuedFiles:
    """A certificate of site a, made so many days from now, for ten days."""
    then = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days_from_now)
    clock = SimpleNamespace(
        datetime=SimpleNamespace(now=lambda _zone: then),
        timedelta=datetime.timedelta,
        UTC=datetime.UTC,
    )
    # The authority keeps a copy by name, and makes none twice.
    copy = consortium.authority.folder / "signing" / "site-a.pem"
    kept = copy.read_bytes()
    copy.unlink()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(issuing, "datetime", clock)
            return issue(consortium.authority, "site", "a", folder, days=10)
    finally:
        copy.unlink()
        copy.write_bytes(kept)


@pytest.mark.parametrize(
    ("days_from_now", "status"),
    [
        (-20, grpc.StatusCode.UNAVAILABLE),
        (20, grpc.StatusCode.UNAVAILABLE),
        (-5, grpc.StatusCode.INVALID_ARGUMENT),  # valid: the empty request is read
    ],
)
def test_a_certificate_that_is_over_or_not_valid_yet_opens_no_connection(
    days_from_now: int, status: grpc.StatusCode, consortium: Consortium, tmp_path: Path
) -> None:
    files = issued(consortium, tmp_path / "members", days_from_now)

    async def main() -> None:
        async with (
            serving(consortium.coordinator_settings(tmp_path / "state")) as port,
            dialled(port, credentials_of(files)) as channel,
        ):
            for path in (STATUS, "/veilsum.v1.Federation/FetchModel"):
                assert (await said(channel, path, b""))[0] is status

    run_async(main)


@pytest.mark.parametrize("by", ["serial", "identity"])
def test_a_certificate_that_is_revoked_opens_nothing_and_its_open_calls_end(
    by: str, consortium: Consortium, tmp_path: Path
) -> None:
    revoked = tmp_path / "revoked"
    revoked.write_text("")
    files = consortium.sites["a"]
    certificate = x509.load_pem_x509_certificate(files.tls_certificate.read_bytes())
    entry = f"{certificate.serial_number:x}" if by == "serial" else "veilsum://test/site/a"
    orders = Orders()
    spec = RunSpec(
        task_id="t", masked=False, min_sites=2, deadlines=Deadlines(join_s=20, inputs_s=50)
    )

    async def greeting() -> AsyncIterator[bytes]:
        yield hello(consortium.roster.hash).SerializeToString()
        await asyncio.Event().wait()

    async def main() -> None:
        settings = consortium.coordinator_settings(tmp_path / "state", revoked=revoked)
        async with (
            serving(settings, orders) as port,
            dialled(port, credentials_of(files)) as channel,
            operating(consortium, port) as operator,
            sites(consortium, port, ["b", "c"]),
        ):
            join = call(channel, JOIN, greeting())
            await join.read()
            watching = call(channel, "/grpc.health.v1.Health/Watch", b"")
            await watching.read()
            data = model_to_bytes(ModelLayout.from_arrays(MODEL), MODEL)
            run = await asyncio.to_thread(operator.submit, spec, data)
            opened = pb.CoordinatorMessage.FromString(await join.read())
            assert opened.HasField("round_opened")

            revoked.write_text(f"{entry}  # its disk was stolen\n")
            orders.reload.set()

            for one in (join, watching):
                status, text = await told(one)
                assert status is grpc.StatusCode.PERMISSION_DENIED
                assert "is revoked" in text
            for path in METHODS:
                status, _ = await said(channel, path, b"")
                assert status in DENIED, path
            # Nobody waits for it: not the grace of a connection that broke, nor a deadline.
            await asyncio.to_thread(lambda: list(operator.watch(run.run_id)))
            ended = await asyncio.to_thread(operator.get, run.run_id)
            assert (ended.state, ended.rounds[0].sites) == ("completed", ("b", "c"))
            assert set(ended.rounds[0].dropped) == {"a"}

    run_async(main)


DENIED = {grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNIMPLEMENTED}
