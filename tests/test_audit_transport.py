"""Sums that are checked over gRPC with TLS, and what the call refuses."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import numpy as np
import pytest

from support.consortium import Consortium, make_consortium
from support.serving import foreign, operating, run_async, serving, status_of
from support.tiny_trainer import TinyTrainer
from veilsum.cli import main as command_line
from veilsum.control import Deadlines, RoundId, RunSpec, RunStatus
from veilsum.errors import DecodeError
from veilsum.model import ModelLayout
from veilsum.proto.v1 import federation_pb2 as pb
from veilsum.secagg import LocalPolicy
from veilsum.site.egress import EgressChain, EgressHead, EgressRecord
from veilsum.transport.checkpoints import model_to_bytes
from veilsum.transport.site_app import serve_site
from veilsum.transport.wire_data import decode_audit_request, encode_audit_request

MODEL = {"w": np.zeros((3, 4), np.float32), "steps": np.array([5, 6], np.int64)}
RUN = RunSpec(task_id="tiny", min_sites=3, weight_cap=10, deadlines=Deadlines(*[30.0] * 6))


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Consortium:
    return make_consortium(tmp_path_factory.mktemp("consortium"), ["a", "b", "c"])


def listed(path: Path) -> list[EgressRecord]:
    data = path.read_bytes()
    head = EgressHead.from_bytes(data)
    return [record for record, _ in EgressChain(head).read(data[len(head.to_bytes()) :])]


def run_once(consortium: Consortium, folder: Path, audit: str, **settings: object) -> RunStatus:
    """A run of three sites, which check sums as `audit` says."""
    ended: list[RunStatus] = []

    async def main() -> None:
        stop = asyncio.Event()
        async with serving(consortium.coordinator_settings(folder / "state", **settings)) as port:
            serve = []
            for number, site in enumerate(consortium.sites):
                kept = {"ledger": folder / site, "egress": folder / f"{site}.vsx"}
                policy = LocalPolicy(audit=audit)  # type: ignore[arg-type]
                change = consortium.site_settings(site, port, policy=policy, **kept)
                task = serve_site(change, TinyTrainer(number), stop=stop)
                serve.append(asyncio.create_task(task))
            model = model_to_bytes(ModelLayout.from_arrays(MODEL), MODEL)
            async with operating(consortium, port) as operator:
                run = await asyncio.to_thread(operator.submit, RUN, model)
                await asyncio.to_thread(lambda: list(operator.watch(run.run_id)))
                ended.append(await asyncio.to_thread(operator.get, run.run_id))
            stop.set()
            await asyncio.gather(*serve)

    run_async(main)
    return ended[0]


def test_sites_check_every_chunk_and_anyone_can_check_the_transcripts(consortium, tmp_path, capsys):
    status = run_once(
        consortium, tmp_path, "all", audits=True, transcripts=tmp_path / "transcripts"
    )

    assert status.state == "completed", status.reason
    for site in consortium.sites:
        kinds = [record.kind for record in listed(tmp_path / f"{site}.vsx")]
        assert kinds.count("audit-request") == kinds.count("result-ack") == 1
    files = sorted((tmp_path / "transcripts").glob("*/*.vst"))
    assert [file.name for file in files] == ["round-1-0.vst"]
    for file, record in zip(files, status.rounds, strict=True):
        arguments = [str(file), "--roster", str(consortium.roster_file), "--tiles", "all"]
        assert command_line.exit_code(["verify", *arguments]) == 0
        assert record.digest in capsys.readouterr().out


def test_a_coordinator_that_was_not_told_to_keeps_nothing_to_check(consortium, tmp_path):
    """And gets no acknowledgement of a site that wants to check."""
    run_once(consortium, tmp_path, "sample")

    assert not list(tmp_path.rglob("*.vst"))
    for site in consortium.sites:
        kinds = [record.kind for record in listed(tmp_path / f"{site}.vsx")]
        assert (kinds.count("result-ack"), kinds.count("refuse")) == (0, 1)


def test_a_request_names_some_chunks_and_not_any_number():
    round_id = RoundId("run", 3, 1)
    asked = [(0, 0), (1, 2**40)]
    assert decode_audit_request(encode_audit_request(round_id, asked)) == (round_id, asked, 0)
    assert decode_audit_request(encode_audit_request(round_id, asked, 7)) == (round_id, asked, 7)
    for chunks in ([], [(1, 0)] * 65_537):
        with pytest.raises(DecodeError, match="1 to 65536 can be"):
            decode_audit_request(encode_audit_request(round_id, chunks))


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (pb.FetchAuditRequest(), grpc.StatusCode.INVALID_ARGUMENT),
        (
            pb.FetchAuditRequest(round=pb.RoundId(run_id="r", number=1)),
            grpc.StatusCode.INVALID_ARGUMENT,
        ),
        (
            pb.FetchAuditRequest(
                round=pb.RoundId(run_id="r", number=1), chunks=[pb.SumChunkId(stream=1)]
            ),
            grpc.StatusCode.NOT_FOUND,
        ),
    ],
    ids=["no round", "no chunks", "no such round"],
)
def test_what_is_not_there_is_not_served(consortium, tmp_path, request_, status):
    async def main() -> None:
        settings = consortium.coordinator_settings(tmp_path / "state", audits=True)
        async with serving(settings) as port:
            async with foreign(port, consortium.sites["a"]) as client:
                found, _ = await status_of(client.federation.FetchAudit(request_))
                assert found is status
            async with foreign(port, consortium.operator) as client:
                found, _ = await status_of(client.federation.FetchAudit(request_))
                assert found is grpc.StatusCode.PERMISSION_DENIED

    run_async(main)
