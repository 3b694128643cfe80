"""Uploads of a site that is in the round: each is refused with the reason, none costs memory, and
what it sends as it should counts in the end, as do the updates of the others."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import grpc
import numpy as np
import pytest
import zstandard

from support.attacked import HONEST, HOSTILE, Attacked, attacked, honest_sites
from support.plain_updates import plain_update
from support.raw import call, credentials_of, dialled, said
from support.serving import hello, run_async
from veilsum.codecs import zstd
from veilsum.control import Deadlines, PlainPlan, RoundId, RunSpec
from veilsum.model import ModelLayout
from veilsum.proto.v1 import federation_pb2 as pb
from veilsum.transport.checkpoints import model_to_bytes
from veilsum.transport.wire import decode_to_site

JOIN = "/veilsum.v1.Federation/Join"
PUSH = "/veilsum.v1.Federation/PushUpdate"
STATUS = "/veilsum.v1.Federation/PushStatus"
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
INVALID = grpc.StatusCode.INVALID_ARGUMENT
REFUSED = grpc.StatusCode.FAILED_PRECONDITION

MODEL = {"w": np.zeros((600, 1000), np.float32), "steps": np.array([4, 6], np.int64)}
LAYOUT = ModelLayout.from_arrays(MODEL)
DATA = model_to_bytes(LAYOUT, MODEL)
PLAIN = RunSpec(
    task_id="t",
    masked=False,
    codec="f32",
    min_sites=4,
    metrics=("auc",),
    weight_cap=100,
    deadlines=Deadlines(join_s=20, inputs_s=50),
)
MOST_MEMORY = 64 << 20


@dataclass
class Update:
    """A good update of the hostile site, and what bad ones are made of."""

    header: pb.UpdateHeader
    chunks: list[bytes]

    def frames(self, chunks: Sequence[bytes] | None = None, **change: Any) -> list[bytes]:
        """Its messages, with another header or with other chunks, one in each."""
        header = pb.UpdateHeader()
        header.CopyFrom(self.header)
        for name, value in change.items():
            if name in ("round", "metrics"):
                header.ClearField(name)
                getattr(header, name).MergeFrom(
                    value
                ) if name == "round" else header.metrics.update(value)
            else:
                setattr(header, name, value)
        first = pb.UpdateFrame(header=header)
        rest = (
            pb.UpdateFrame(chunks=pb.UpdateChunks(chunk=[chunk]))
            for chunk in (self.chunks if chunks is None else chunks)
        )
        return [frame.SerializeToString() for frame in (first, *rest)]


def made(opened: pb.RoundOpened, plan: PlainPlan) -> Update:
    round_id = RoundId(opened.round.run_id, opened.round.number, opened.round.attempt)
    arrays = [np.ones((600, 1000), np.float32), np.ones(2, np.int64)]
    made_by_hand, chunks = plain_update(plan, (round_id, HOSTILE), LAYOUT, arrays)
    header = pb.UpdateHeader(
        round=opened.round,
        update_id=made_by_hand.update_id,
        chunk_count=len(chunks),
        weight=10,
    )
    return Update(header, list(map(bytes, chunks)))


Bad = tuple[Callable[[Update], list[bytes]], grpc.StatusCode, str]


def touched(chunk: bytes, place: int, value: bytes) -> bytes:
    return chunk[:place] + value + chunk[place + len(value) :]


# What is sent, and how it ends. All in one round, one after the other.
BAD: dict[str, Bad] = {
    "no header": (lambda u: u.frames()[1:], INVALID, "must begin with its header"),
    "nothing but a header that is cut off": (lambda u: [u.frames()[0][:-3]], INVALID, ""),
    "two headers": (lambda u: u.frames()[:1] * 2, INVALID, "consists of frames of chunks"),
    "out of order": (lambda u: u.frames(u.chunks[::-1]), INVALID, "in the place of chunk 0"),
    "one left out": (lambda u: u.frames(u.chunks[1:]), INVALID, "in the place of chunk 0"),
    "one twice": (lambda u: u.frames(u.chunks[:1] * 2), INVALID, "in the place of chunk 1"),
    "a gap": (lambda u: u.frames(first_chunk=3), INVALID, "goes on at chunk 3"),
    "no such chunk": (
        lambda u: u.frames([touched(u.chunks[0], 28, b"\xff\xff")]),
        INVALID,
        "has no chunk",
    ),
    "half a chunk": (lambda u: u.frames([u.chunks[1][:-8]], first_chunk=1), INVALID, ""),
    "a chunk and more": (lambda u: u.frames([u.chunks[1] * 3], first_chunk=1), INVALID, "largest"),
    "a chunk of nothing": (lambda u: u.frames([b""]), INVALID, "its header alone has 64"),
    "other bytes in a place that is taken": (
        lambda u: u.frames([touched(u.chunks[0], 100, b"\0\0\0\0")]),
        REFUSED,
        "again with other bytes",
    ),
    "another plan's chunk": (
        lambda u: u.frames([touched(u.chunks[1], 32, bytes(16))], first_chunk=1),
        INVALID,
        "",
    ),
    "values that are not numbers": (
        lambda u: u.frames([touched(u.chunks[1], 200, b"\xff\xff\xff\xff")], first_chunk=1),
        INVALID,
        "",
    ),
    "another update": (lambda u: u.frames(update_id=1), REFUSED, ""),
    "more chunks than there can be": (lambda u: u.frames(chunk_count=1 << 24), REFUSED, ""),
    "more chunks than anything has": (lambda u: u.frames(chunk_count=1 << 31), INVALID, ""),
    "another weight": (lambda u: u.frames(weight=11), REFUSED, "second, different update"),
    "too much weight": (lambda u: u.frames(weight=101), REFUSED, ""),
    "a metric that is no number": (
        lambda u: u.frames(metrics={"auc": float("nan")}),
        INVALID,
        "must be finite",
    ),
    "metrics without end": (
        lambda u: u.frames(metrics={f"m{i}": 0.0 for i in range(17)}),
        INVALID,
        "number of metrics",
    ),
    "as if it were masked": (
        lambda u: u.frames(masked_header=b"x", weight=0),
        REFUSED,
        "",
    ),
    "another round": (
        lambda u: u.frames(round=pb.RoundId(run_id=u.header.round.run_id, number=2)),
        REFUSED,
        "takes none now",
    ),
    "another attempt": (
        lambda u: u.frames(round=pb.RoundId(run_id=u.header.round.run_id, number=1, attempt=1)),
        REFUSED,
        "takes none now",
    ),
    "a run that is none": (
        lambda u: u.frames(round=pb.RoundId(run_id="none", number=1)),
        REFUSED,
        "takes none now",
    ),
    "compressed, where nothing may be": (
        lambda u: u.frames([bytes(zstd.compressed(u.chunks[1], 3))], first_chunk=1),
        INVALID,
        "the round's plan has no compression",
    ),
    "one chunk too many": (lambda u: u.frames(u.chunks * 2), INVALID, ""),
}


def bomb(update: Update, frame: bytes) -> list[bytes]:
    """The second chunk, as compressed bytes that are not what they should be."""
    head = bytearray(update.chunks[1][:64])
    struct.pack_into("<H", head, 10, struct.unpack_from("<H", head, 10)[0] | 16)
    struct.pack_into("<I", head, 56, len(frame))
    return update.frames([bytes(head) + frame], first_chunk=1)


def claiming(size: int) -> bytes:
    """The beginning of a frame that says it expands to so much (RFC 8878, 3.1.1.1)."""
    return b"\x28\xb5\x2f\xfd" + bytes((0xE0,)) + size.to_bytes(8, "little") + b"\x01\x00\x00"


def compressed(size: int, **options: Any) -> bytes:
    return zstandard.ZstdCompressor(level=3, **options).compress(bytes(size))


def body_bytes(update: Update) -> int:
    return len(update.chunks[1]) - 64


BOMBS: dict[str, Callable[[Update], bytes]] = {
    "says that it is huge": lambda _: claiming(1 << 60),
    "says nothing of its size": lambda _: compressed(1 << 28, write_content_size=False),
    "is huge": lambda _: compressed(1 << 28),
    "is a little larger": lambda u: compressed(body_bytes(u) + 1),
    "is a little smaller": lambda u: compressed(body_bytes(u) - 1),
    "says less than it is": lambda u: claiming(body_bytes(u)) + compressed(1 << 28)[9:],
    "is many": lambda u: compressed(body_bytes(u)) * 30,
    "has a tail": lambda u: compressed(body_bytes(u)) + bytes(1000),
    "is none": lambda _: b"\x28\xb5\x2f\xfd" + b"\xff" * 60,
    "is of another kind": lambda _: b"\x1f\x8b" + bytes(60),
}


async def in_a_round(
    target: Attacked,
    spec: RunSpec,
    attack: Callable[[grpc.aio.Channel, Update], Any],
    *,
    counts: bool = True,
) -> None:
    """A round that the hostile site is in. In the end its update is as it should be, and counts if
    it may."""
    credentials = credentials_of(target.consortium.sites[HOSTILE])
    async with honest_sites(target), dialled(target.port, credentials) as channel:
        join = call(channel, JOIN, None)
        await join.write(hello(target.consortium.roster.hash).SerializeToString())
        await join.read()
        run_id = await target.run(spec, DATA)
        data = await join.read()
        opened = pb.CoordinatorMessage.FromString(data).round_opened
        update = made(opened, decode_to_site(data).plain)
        first = update.frames(update.chunks[:1])
        assert (await said(channel, PUSH, *first))[0] is grpc.StatusCode.OK
        before = target.memory()

        await attack(channel, update)

        assert target.memory() - before < MOST_MEMORY
        status, _ = await said(channel, PUSH, *update.frames())
        assert status is (grpc.StatusCode.OK if counts else REFUSED)
        await join.write(pb.SiteMessage(goodbye=pb.Goodbye()).SerializeToString())
        ended = await target.ended(run_id)
        counted = (*HONEST, HOSTILE) if counts else HONEST
        assert (ended.state, ended.rounds[0].sites) == ("completed", counted)
        assert target.errors() == ""


async def all_bad(channel: grpc.aio.Channel, update: Update) -> None:
    for name, (frames, status, text) in BAD.items():
        found, said_why = await said(channel, PUSH, *frames(update))
        assert found is status, (name, said_why)
        assert text in said_why, (name, said_why)


async def all_bombs(channel: grpc.aio.Channel, update: Update) -> None:
    for name, frame in BOMBS.items():
        found, why = await said(channel, PUSH, *bomb(update, frame(update)))
        assert found is INVALID, (name, why)


async def the_same_for_ever(channel: grpc.aio.Channel, update: Update) -> None:
    """Chunks that are there already, each of a few bytes and a lot of work, until it is enough."""
    small = [bytes(zstd.compressed(chunk, 19)) for chunk in update.chunks[:3]]
    assert len(small[0]) < len(update.chunks[0]) // 500
    frames = update.frames(small)
    calls = 0
    while (answer := await said(channel, PUSH, *frames))[0] is grpc.StatusCode.OK:
        calls += 1
        assert calls < 2000
    assert answer[0] is REFUSED
    assert "over and over" in answer[1]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    with attacked(tmp_path_factory.mktemp("attacked")) as found:
        yield found


def test_whatever_is_wrong_with_an_upload_is_its_own_sites_affair(target: Attacked) -> None:
    run_async(lambda: in_a_round(target, PLAIN, all_bad))


def test_what_was_refused_is_forgotten_at_once(target: Attacked) -> None:
    """And not when garbage is collected next: an exception holds what its frames held."""
    large = b"\x12" + bytes(4_000_000)

    async def main() -> None:
        credentials = credentials_of(target.consortium.sites[HOSTILE])
        async with dialled(target.port, credentials) as channel:
            for _ in range(5):
                assert (await said(channel, PUSH, large))[0] is EXHAUSTED
            before = target.memory()
            for _ in range(60):
                assert (await said(channel, PUSH, large))[0] is EXHAUSTED
            assert target.memory() - before < 40_000_000

    run_async(main)


def test_bombs_are_not_unpacked(target: Attacked) -> None:
    run_async(lambda: in_a_round(target, replace(PLAIN, compression="zstd"), all_bombs))


def test_a_chunk_that_comes_again_and_again_costs_its_site_the_round(target: Attacked) -> None:
    spec = replace(PLAIN, compression="zstd", min_sites=3)
    run_async(lambda: in_a_round(target, spec, the_same_for_ever, counts=False))
