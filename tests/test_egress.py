"""The list of what left a site: what a line holds, how lines are joined, what a crash leaves."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import os
import stat
import struct
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from support.consortium import Consortium, make_consortium
from support.serving import operating, run_async, serving
from support.tiny_trainer import TinyTrainer
from veilsum.cli.inspect_egress import egress_facts
from veilsum.control import Deadlines, Progress, RoundId, RunSpec, UpdateHeader
from veilsum.errors import ConfigError, DecodeError, LedgerError
from veilsum.model import ModelLayout
from veilsum.secagg.egress_summary import EgressSummary, Sent, no_egress
from veilsum.site.egress import EgressChain, EgressHead, EgressRecord
from veilsum.transport import client, egress_file, server, wire_data
from veilsum.transport.checkpoints import model_to_bytes
from veilsum.transport.client import Connection
from veilsum.transport.egress_file import EgressFile, open_egress
from veilsum.transport.site_app import make_endpoint, serve_site

HEAD = EgressHead(b"i" * 32, "hospitals", "lyon")
MESSAGES = (("hello", b"x" * 40), ("share-deal", b"y" * 900), ("masked-update", b"z" * 5))


def append(file: EgressFile, kind: str, message: bytes) -> None:
    file.append(kind, len(message), hashlib.sha256(message).digest())


def written(path: Path, *messages: tuple[str, bytes]) -> EgressSummary:
    file = open_egress(path, "hospitals", "lyon")
    for kind, message in messages:
        append(file, kind, message)
    file.close()
    return file.summary()


def listed(path: Path) -> list[EgressRecord]:
    data = path.read_bytes()
    head = EgressHead.from_bytes(data)
    return [record for record, _ in EgressChain(head).read(data[len(head.to_bytes()) :])]


def cut(data: bytes) -> tuple[EgressHead, list[bytes]]:
    """Head and records of a file, each of the latter as it lies there."""
    head = EgressHead.from_bytes(data)
    at = len(head.to_bytes())
    records = []
    for _, size in EgressChain(head).read(data[at:]):
        records.append(data[at : at + size])
        at += size
    return head, records


# --- summaries ----------------------------------------------------------------------------


def test_a_summary_since_another_holds_what_left_in_between():
    before = EgressSummary(b"a" * 32, (Sent("hello", 1, 40), Sent("share-deal", 1, 900)))
    now = EgressSummary(
        b"b" * 32, (Sent("hello", 1, 40), Sent("share-deal", 3, 1500), Sent("survivor-vote", 1, 7))
    )

    assert now.since(before) == EgressSummary(
        b"b" * 32, (Sent("share-deal", 2, 600), Sent("survivor-vote", 1, 7))
    )
    assert now.since(no_egress()) == now
    assert now.since(now).sent == ()


# --- records as bytes ---------------------------------------------------------------------


def prefixed(text: str) -> bytes:
    return struct.pack("<I", len(text)) + text.encode()


def labelled(*parts: bytes) -> bytes:
    return hashlib.sha256(b"veilsum/v1/egress\0" + b"".join(parts)).digest()


def test_the_file_is_what_its_description_says():
    chain = EgressChain(HEAD)
    fields = b"VSX1" + b"i" * 32 + prefixed("hospitals") + prefixed("lyon")
    assert HEAD.to_bytes() == fields + labelled(b"head", fields)

    link = labelled(b"first", HEAD.to_bytes())
    for number, (kind, message) in enumerate(MESSAGES, 1):
        digest = hashlib.sha256(message).digest()
        body = struct.pack("<QQ", number, 1000 + number) + prefixed(kind)
        body += struct.pack("<Q", len(message)) + digest
        size = struct.pack("<I", len(body))
        check = labelled(b"size", link, size)[:4]
        link = labelled(b"link", link, body)

        assert chain.add(1000 + number, kind, len(message), digest) == size + check + body + link
        assert chain.summary().head == link


def test_a_head_of_something_else_is_refused():
    data = HEAD.to_bytes()
    for at in range(len(data)):
        changed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        with pytest.raises(LedgerError, match=r"head of the egress|no whole head"):
            EgressHead.from_bytes(changed)
        with pytest.raises(LedgerError, match="no whole head"):
            EgressHead.from_bytes(data[:at])


def test_a_record_that_was_changed_taken_out_or_put_elsewhere_is_named(tmp_path):
    path = tmp_path / "egress.vsx"
    written(path, *MESSAGES)
    head, records = cut(path.read_bytes())

    def named(*parts: bytes) -> int:
        with pytest.raises(LedgerError, match="egress ledger was changed") as error:
            list(EgressChain(head).read(b"".join(parts)))
        return int(str(error.value).split()[1])

    first, second, third = records
    for at in range(len(second)):
        changed = second[:at] + bytes([second[at] ^ 1]) + second[at + 1 :]
        assert named(first, changed, third) == 2
    assert named(first, third) == 2
    assert named(first, third, second) == 2
    assert named(second, third) == 1
    assert named(first, second, second) == 3


def test_records_are_numbered_without_a_gap():
    forged = EgressChain(HEAD)
    forged._number = 4
    record = forged.add(0, "hello", 1, bytes(32))

    with pytest.raises(LedgerError, match="record 1 of the egress ledger says it is 5"):
        list(EgressChain(HEAD).read(record))


# --- the file -----------------------------------------------------------------------------


def test_a_restart_goes_on_where_the_last_process_ended(tmp_path):
    path = tmp_path / "egress.vsx"
    written(path, *MESSAGES)
    summary = written(path, ("hello", b"again"))

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [record.number for record in listed(path)] == [1, 2, 3, 4]
    assert listed(path)[0].digest == hashlib.sha256(b"x" * 40).digest()
    assert summary.sent == (
        Sent("hello", 2, 45),
        Sent("masked-update", 1, 5),
        Sent("share-deal", 1, 900),
    )
    assert path.read_bytes().endswith(summary.head)
    assert not list(tmp_path.glob(".*"))


def test_a_record_cut_anywhere_is_dropped_and_the_next_one_follows_the_last_whole_one(tmp_path):
    path = tmp_path / "egress.vsx"
    written(path, *MESSAGES[:2])
    before = path.read_bytes()
    written(path, MESSAGES[2])
    whole = path.read_bytes()

    for end in range(len(before), len(whole)):
        path.write_bytes(whole[:end])
        written(path, ("progress", b"p"))
        assert [record.kind for record in listed(path)] == ["hello", "share-deal", "progress"]


def test_a_damaged_ledger_ends_the_start_and_says_what_to_do(tmp_path):
    path = tmp_path / "egress.vsx"
    written(path, *MESSAGES)
    head, (first, second, third) = cut(path.read_bytes())
    data = head.to_bytes() + first + second[:20] + b"!" + second[21:] + third
    path.write_bytes(data)

    with pytest.raises(LedgerError, match="record 2 of the egress ledger was changed") as error:
        open_egress(path, "hospitals", "lyon")
    assert "move it away" in (error.value.hint or "")
    assert path.read_bytes() == data


def test_a_ledger_is_one_sites_and_one_processs_at_a_time(tmp_path):
    path = tmp_path / "egress.vsx"
    file = open_egress(path, "hospitals", "lyon")

    with pytest.raises(ConfigError, match="another process holds"):
        open_egress(path, "hospitals", "lyon")
    file.close()
    with pytest.raises(ConfigError, match="is the egress ledger of site 'lyon'"):
        open_egress(path, "hospitals", "basel")
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="may be used by others"):
        open_egress(path, "hospitals", "lyon")
    with pytest.raises(ConfigError, match="cannot write"):
        open_egress(tmp_path / "nowhere" / "egress.vsx", "hospitals", "lyon")


@pytest.mark.parametrize("call", ["write", "fsync"])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_disk_that_says_no_once_closes_the_ledger_for_ever(tmp_path, monkeypatch, call, error):
    file = open_egress(tmp_path / "egress.vsx", "hospitals", "lyon")

    def fails(*_):
        raise OSError(error, os.strerror(error))

    with monkeypatch.context() as patched:
        patched.setattr(egress_file.os, call, fails)
        with pytest.raises(LedgerError, match=os.strerror(error)):
            append(file, "hello", b"h")
    with pytest.raises(LedgerError, match="closed"):
        append(file, "hello", b"h")


def test_the_disk_is_waited_for_except_between_the_pieces_of_an_update(tmp_path, monkeypatch):
    file = open_egress(tmp_path / "egress.vsx", "hospitals", "lyon")
    waited: list[int] = []
    sync = os.fsync
    monkeypatch.setattr(egress_file.os, "fsync", lambda at: waited.append(at) or sync(at))
    kinds = ["hello", "key-advert", *["masked-update"] * 3, "upload-status", *["masked-update"] * 2]
    kinds += ["progress", "progress", "survivor-vote", "survivor-vote"]

    found = []
    for kind in kinds:
        waited.clear()
        append(file, kind, b"")
        found.append(bool(waited))
    waited.clear()
    file.close()

    assert found == [1, 1, 1, 0, 0, 1, 1, 0, 1, 0, 1, 1]
    assert waited


# --- every message, before it leaves ------------------------------------------------------


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Consortium:
    return make_consortium(tmp_path_factory.mktemp("consortium"), ["a", "b", "c"])


ROUND = RoundId("run", 1)


def header(chunks: int) -> UpdateHeader:
    return UpdateHeader(ROUND, 1, chunks, weight=0, metrics={}, masked_header=b"envelope")


async def an_upload(connection: Connection, taken: list[str]) -> None:
    """Two pieces, of which the call takes one after the other."""

    def push(_method: str) -> Any:
        async def call(frames: AsyncIterator[bytes], metadata: Any) -> bytes:
            async for _ in frames:
                taken.append("left")
            return wire_data.encode_receipt(1, False)

        return call

    connection._channel.stream_unary = push
    await connection.push_update(header(1), [b"chunk"])


async def a_message(connection: Connection, taken: list[str]) -> None:
    class Stream:
        async def write(self, data: bytes) -> None:
            taken.append("left")

    connection._join = Stream()
    await connection.send(Progress(ROUND, 0.5))


async def a_status(connection: Connection, taken: list[str]) -> None:
    def ask(_method: str) -> Any:
        async def call(request: bytes, metadata: Any, timeout: float) -> bytes:
            taken.append("left")
            return wire_data.encode_receipt(1, False)

        return call

    connection._channel.unary_unary = ask
    await connection.push_status(ROUND, 1)


async def a_model_request(connection: Connection, taken: list[str]) -> None:
    class Call:
        async def __aiter__(self) -> AsyncIterator[bytes]:
            return
            yield b""

        def cancel(self) -> None: ...

    connection._channel.unary_stream = lambda _: lambda *_, **__: taken.append("left") or Call()
    with suppress(DecodeError):  # that nothing came
        await connection.fetch_model(ROUND, max_bytes=10)


@pytest.mark.parametrize("send", [an_upload, a_message, a_status, a_model_request])
def test_a_message_is_listed_before_it_leaves_and_stays_if_it_cannot_be(consortium, send):
    endpoint = make_endpoint(consortium.site_settings("a", 1), consortium.roster)

    def connection(on_sent: client.OnSent) -> Connection:
        made = Connection.__new__(Connection)
        made._endpoint = replace(endpoint, on_sent=on_sent)
        made._channel = SimpleNamespace()
        made._sending = asyncio.Lock()
        return made

    happened: list[str] = []
    asyncio.run(send(connection(lambda *_: happened.append("listed")), happened))
    assert happened
    assert happened == ["listed", "left"] * (len(happened) // 2)

    def refuses(kind: str, size: int, digest: bytes) -> None:
        raise LedgerError("the disk is full")

    happened.clear()
    with pytest.raises(LedgerError, match="the disk is full"):
        asyncio.run(send(connection(refuses), happened))
    assert happened == []


MODEL = {"w": np.zeros((3, 4), np.float32), "steps": np.array([5, 6], np.int64)}
RUN = RunSpec(task_id="tiny", min_sites=3, weight_cap=10, deadlines=Deadlines(*[30.0] * 6))


async def run_once(consortium: Consortium, port: int) -> Any:
    model = model_to_bytes(ModelLayout.from_arrays(MODEL), MODEL)
    async with operating(consortium, port) as operator:
        run = await asyncio.to_thread(operator.submit, RUN, model)
        await asyncio.to_thread(lambda: list(operator.watch(run.run_id)))
        return await asyncio.to_thread(operator.get, run.run_id)


@asynccontextmanager
async def federation(consortium: Consortium, folder: Path) -> AsyncIterator[Any]:
    """A coordinator and three sites: (port, the sites' tasks, what stops them)."""
    stop = asyncio.Event()
    async with serving(consortium.coordinator_settings(folder / "state")) as port:
        serve = []
        for number, site in enumerate(consortium.sites):
            kept = {"ledger": folder / site, "egress": folder / f"{site}.vsx"}
            settings = consortium.site_settings(site, port, **kept)
            serve.append(asyncio.create_task(serve_site(settings, TinyTrainer(number), stop=stop)))
        yield port, serve, stop


def test_what_reaches_the_coordinator_in_a_round_is_what_the_sites_have_listed(
    consortium, tmp_path, monkeypatch
):
    arrived: list[bytes] = []
    for module, name in (
        (server, "decode_to_coordinator"),
        (wire_data, "decode_model_request"),
        (wire_data, "decode_fetch_request"),
        (wire_data, "decode_audit_request"),
        (wire_data, "decode_update_header"),
        (wire_data, "decode_update_chunks"),
        (wire_data, "decode_status_request"),
    ):
        decode = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda data, decode=decode: arrived.append(data) or decode(data)
        )

    async def main() -> None:
        async with federation(consortium, tmp_path) as (port, serve, stop):
            status = await run_once(consortium, port)
            assert status.state == "completed", status
            stop.set()
            await asyncio.gather(*serve)

    run_async(main)

    records = [record for path in tmp_path.glob("*.vsx") for record in listed(path)]
    assert Counter((record.size_bytes, record.digest) for record in records) == Counter(
        (len(data), hashlib.sha256(data).digest()) for data in arrived
    )
    (receipt,) = (tmp_path / "state" / "receipts").glob("*/*.json")
    told = json.loads(receipt.read_bytes())
    told = told.get("receipt", told)["egress"]
    assert told.keys() == consortium.sites.keys()
    for site, egress in told.items():
        path = tmp_path / f"{site}.vsx"
        facts = egress_facts(path.read_bytes(), path, egress["head"])
        # Behind the head that an acknowledgement tells there is the acknowledgement itself, and
        # the goodbye of a site that stops.
        assert facts["messages_after_given_head"] == 2
        assert egress["sent"] == {
            one["kind"]: [one["messages"], one["bytes"]]
            for one in facts["sent"]
            if one["kind"] not in ("hello", "result-ack", "goodbye")
        }
    for kind in ("hello", "model-request", "key-advert", "share-deal", "survivor-vote"):
        assert sum(record.kind == kind for record in records) == 3
    assert sum(record.kind == "masked-update" for record in records) == 2 * 3


@pytest.mark.parametrize("kind", ["hello", "key-advert", "model-request", "masked-update"])
def test_a_site_whose_disk_is_full_sends_no_more_and_ends(consortium, tmp_path, monkeypatch, kind):
    def full(self: EgressFile, asked: str, size: int, digest: bytes) -> None:
        if asked == kind:
            raise LedgerError("the disk is full")

    monkeypatch.setattr(EgressFile, "append", full)

    async def main() -> None:
        async with federation(consortium, tmp_path) as (port, serve, _):
            run = asyncio.create_task(run_once(consortium, port))
            ended = await asyncio.gather(*serve, return_exceptions=True)
            assert [str(error) for error in ended] == ["the disk is full"] * 3
            run.cancel()
            await asyncio.gather(run, return_exceptions=True)

    run_async(main)
