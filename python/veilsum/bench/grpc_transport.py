"""Uploads and downloads of a plain round against gRPC that does nothing else, on loopback.

Ours is PushUpdate and FetchModel of a coordinator process as sites call them: mutual TLS, checked
chunks, checksums, the spool brought to disk, screening, the list of what leaves a site. The
yardstick is a process that takes messages of a megabyte over the same TLS and drops them, or sends
the same one again and again. Both are timed in turn, on warm connections. All sites are one
process, so that on a small machine it is the whole way that is measured.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np

from veilsum._native import Secret
from veilsum.bench import machine
from veilsum.bench.served import Consortium, WatchedCoordinator, processor_seconds
from veilsum.bench.timing import seconds
from veilsum.control import (
    Deadlines,
    Decline,
    RoundClosed,
    RoundId,
    RoundOpened,
    RunSpec,
    UpdateHeader,
)
from veilsum.errors import RoundAborted
from veilsum.model import ModelLayout
from veilsum.site.contribution import LocalUpdate, PlainContribution
from veilsum.transport.checkpoints import save_model
from veilsum.transport.client import Connection
from veilsum.transport.limits import LimitSettings

_OPTIONS = [("grpc.max_receive_message_length", 8 << 20), ("grpc.use_local_subchannel_pool", 1)]
WAYS = ("up", "down")
PIECE_BYTES = 1 << 20
ASKED = 200  # calls of PushStatus


# --- the yardstick ----------------------------------------------------------------------


async def serve_raw(certificate: Path, key: Path, ca: Path, pieces: int) -> None:
    """Takes what comes, and sends `pieces` megabytes to whoever asks."""
    piece = bytes(PIECE_BYTES)

    async def take(requests: AsyncIterator[bytes], context: Any) -> bytes:
        async for _ in requests:
            pass
        return b""

    async def send(request: bytes, context: Any) -> None:
        for _ in range(pieces):
            await context.write(piece)

    server = grpc.aio.server(options=_OPTIONS)
    methods = {
        "up": grpc.stream_unary_rpc_method_handler(take),
        "down": grpc.unary_stream_rpc_method_handler(send),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("raw", methods),))
    pair = (key.read_bytes(), certificate.read_bytes())
    credentials = grpc.ssl_server_credentials([pair], ca.read_bytes(), True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    await server.wait_for_termination()


class Raw:
    """The yardstick's process and a channel to it for each stream. Use `async with`."""

    def __init__(self, consortium: Consortium, streams: int, pieces: int) -> None:
        hub = consortium.hub
        arguments = map(str, (hub.tls_certificate, hub.tls_key, hub.ca, pieces))
        self._process = subprocess.Popen(  # noqa: S603  this very module
            [sys.executable, "-m", "veilsum.bench.grpc_transport", *arguments],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        port = int(self._process.stdout.readline())
        self._pieces = pieces
        self._channels = []
        for files in list(consortium.sites.values())[:streams]:
            credentials = grpc.ssl_channel_credentials(
                files.ca.read_bytes(),
                files.tls_key.read_bytes(),
                files.tls_certificate.read_bytes(),
            )
            channel = grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, _OPTIONS)
            self._channels.append(channel)

    def processor(self) -> float:
        """Seconds of its process so far."""
        return processor_seconds(self._process.pid)

    def peak_bytes(self) -> int:
        """Most memory that its process ever had."""
        return machine.memory("VmHWM", self._process.pid)

    async def __aenter__(self) -> Raw:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for channel in self._channels:
            await channel.close()
        self._process.kill()
        self._process.communicate()

    async def up(self) -> None:
        """All streams send."""

        async def one(channel: grpc.aio.Channel) -> None:
            piece = bytes(PIECE_BYTES)

            async def pieces() -> AsyncIterator[bytes]:
                for _ in range(self._pieces):
                    yield piece

            await channel.stream_unary("/raw/up")(pieces())

        await asyncio.gather(*map(one, self._channels))

    async def down(self) -> None:
        """All streams receive."""

        async def one(channel: grpc.aio.Channel) -> None:
            async for _ in channel.unary_stream("/raw/down")(b""):
                pass

        await asyncio.gather(*map(one, self._channels))


# --- ours -------------------------------------------------------------------------------


class Sites:
    """Connected sites of one coordinator, which hold a round between them; the last one waits."""

    def __init__(self, consortium: Consortium, coordinator: WatchedCoordinator) -> None:
        self._consortium = consortium
        self._port = coordinator.port
        self._processor = coordinator.processor_seconds
        self._connections: dict[str, Connection] = {}
        self._messages: dict[str, AsyncIterator[Any]] = {}

    async def join(self, names: Sequence[str], stack: AsyncExitStack) -> None:
        """Further sites."""
        for name in names:
            endpoint = self._consortium.endpoint(name, self._port)
            connection = await stack.enter_async_context(Connection(endpoint))
            self._connections[name] = connection
            self._messages[name] = connection.messages()

    async def round(self, values: np.ndarray) -> tuple[dict[str, Cost], float]:
        """What all downloads and all uploads of a round cost, and seconds of a small call."""
        names = list(self._connections)
        last = names.pop()
        run = asyncio.create_task(asyncio.to_thread(self._run, [*names, last]))
        opened = [await self._next(name, RoundOpened) for name in [*names, last]]
        where = opened[0].round
        costs = {"down": await _cost(lambda: self._fetch_all(where), self._processor)}
        updates = [
            _encoded(name, one, values) for name, one in zip(names, opened[:-1], strict=True)
        ]
        costs["up"] = await _cost(lambda: self._push_all(updates), self._processor)
        small = await self._asked(updates[0][0])
        # Until here the round awaits one more: its end, the mean and the new model, is no upload.
        await self._connections[last].send(Decline(where, "policy", "was needed to wait for"))
        for name in names:
            closed = await self._next(name, RoundClosed)
            if not closed.completed:
                raise RoundAborted(f"the round failed: {closed.reason}")
        if await run != len(names):
            raise RoundAborted("not all updates count")
        return costs, small

    async def _next(self, name: str, kind: type[Any]) -> Any:
        async for message in self._messages[name]:
            if isinstance(message, kind):
                return message
        raise RoundAborted("the coordinator hung up")

    async def _fetch_all(self, where: RoundId) -> None:
        every = list(self._connections.values())[:-1]
        await asyncio.gather(*(one.fetch_model(where, max_bytes=1 << 40) for one in every))

    async def _push_all(self, updates: Sequence[tuple[UpdateHeader, Any]]) -> None:
        every = zip(self._connections.values(), updates, strict=False)
        counted = await asyncio.gather(*(one.push_update(*update) for one, update in every))
        if not all(counted):
            raise RoundAborted("an update does not count")

    async def _asked(self, header: UpdateHeader) -> float:
        """The median of calls, one after the other, that do next to nothing."""
        connection = next(iter(self._connections.values()))
        ask = partial(connection.push_status, header.round, header.update_id)
        return statistics.median([await _timed(ask) for _ in range(ASKED)])

    def _run(self, names: Sequence[str]) -> int:
        deadlines = Deadlines(join_s=600, inputs_s=600)
        spec = RunSpec(
            "transport",
            masked=False,
            codec="f32",
            min_sites=len(names) - 1,
            cohort=tuple(names),
            deadlines=deadlines,
        )
        with self._consortium.operator_client(self._port) as operator:
            run = operator.submit(spec, "start.safetensors")
            for _ in operator.watch(run.run_id):
                pass
            return len(operator.get(run.run_id).rounds[0].sites)


def _encoded(name: str, opened: RoundOpened, values: np.ndarray) -> tuple[UpdateHeader, Any]:
    assert opened.plain is not None
    contribution = PlainContribution(opened.plain, opened.round, name, threads=1)
    update = LocalUpdate({"w": values}, 10, {}, Secret.from_os(32))
    [upload] = contribution.contribute(update)
    return upload.header, upload.chunks  # type: ignore[union-attr]


@dataclass(frozen=True)
class Cost:
    """Of moving all bytes one way: wall time, and processor time of the serving process."""

    seconds: float
    processor_s: float


async def _cost(work: Callable[[], Awaitable[object]], processor: Callable[[], float]) -> Cost:
    before = processor()
    seconds = await _timed(work)
    return Cost(seconds, processor() - before)


async def _timed(work: Callable[[], Awaitable[object]]) -> float:
    began = time.perf_counter()
    await work()
    return time.perf_counter() - began


# --- side by side -----------------------------------------------------------------------


@dataclass(frozen=True)
class Compared:
    """One way with one number of streams, a cost for each round.

    Attributes:
        way: "up" or "down".
        size: bytes of values that all streams moved together.
        copies: seconds of the machine's copy in the same rounds.
        small_s: seconds of a call that does next to nothing; the median.
        peak, raw_peak: most memory of the serving processes so far.
    """

    way: str
    streams: int
    size: int
    ours: Sequence[Cost]
    raw: Sequence[Cost]
    copies: Sequence[float]
    small_s: float
    peak: int
    raw_peak: int


async def measure(
    folder: Path, streams: Sequence[int], megabytes: int, repeats: int
) -> list[Compared]:
    """Both ways for each number of streams; one round more than `repeats` warms up."""
    names = [f"site-{number:02}" for number in range(max(streams) + 1)]
    consortium = Consortium.of(folder / "consortium", names)
    values = np.linspace(-1, 1, megabytes * 250_000, dtype=np.float32)
    layout = ModelLayout.from_arrays({"w": values})
    limits = LimitSettings(calls_per_s=1000.0)  # small calls, one after the other
    settings = consortium.coordinator_settings(folder / "state", limits=limits)
    found: list[Compared] = []
    with ExitStack() as processes:
        coordinator = processes.enter_context(WatchedCoordinator(settings, folder))
        save_model(coordinator.state / "models" / "start.safetensors", layout, {"w": values})
        sites = Sites(consortium, coordinator)
        async with AsyncExitStack() as stack:
            joined = 0
            for count in sorted(streams):
                await sites.join(names[joined : count + 1], stack)
                joined = count + 1
                pieces = values.nbytes // PIECE_BYTES
                async with Raw(consortium, count, pieces) as raw:
                    taken = await _side_by_side(sites, raw, values, repeats)
                    peaks = coordinator.peak_bytes(), raw.peak_bytes()
                    found += [_compared(way, count, values.nbytes, taken, peaks) for way in WAYS]
    return found


@dataclass
class _Taken:
    """What the rounds cost."""

    ours: dict[str, list[Cost]]
    raw: dict[str, list[Cost]]
    copies: list[float]
    small: list[float]


async def _side_by_side(
    sites: Sites, raw: Raw, values: np.ndarray[Any, Any], repeats: int
) -> _Taken:
    taken = _Taken({way: [] for way in WAYS}, {way: [] for way in WAYS}, [], [])
    copy = machine.probes()["copy"]
    for _ in range(repeats + 1):
        taken.copies.append(seconds(copy, time.perf_counter))
        costs, small_s = await sites.round(values)
        taken.small.append(small_s)
        for way, work in (("up", raw.up), ("down", raw.down)):
            taken.ours[way].append(costs[way])
            taken.raw[way].append(await _cost(work, raw.processor))
    return taken


def _compared(way: str, count: int, size: int, taken: _Taken, peaks: tuple[int, int]) -> Compared:
    return Compared(  # the first one warmed up
        way,
        count,
        count * size,
        taken.ours[way][1:],
        taken.raw[way][1:],
        taken.copies[1:],
        statistics.median(taken.small),
        *peaks,
    )


def main() -> None:
    """Is the yardstick's process."""
    *files, pieces = sys.argv[1:]
    certificate, key, ca = map(Path, files)
    asyncio.run(serve_raw(certificate, key, ca, pieces=int(pieces)))


if __name__ == "__main__":
    main()
