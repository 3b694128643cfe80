"""Uploads and downloads of a plain round against gRPC that does nothing else, on loopback.

    python bench/transport.py                            one stream and twelve, 64 MB each
    python bench/transport.py --folder /dev/shm          without a disk
    python bench/transport.py --streams 1 4 --megabytes 16 --repeats 3 --json

Ours is PushUpdate and FetchModel of a coordinator process as sites call them: mutual TLS, checked
chunks, checksums, the spool brought to disk, screening, the list of what leaves a site. The
yardstick is a process that takes messages of a megabyte over the same TLS and drops them, or sends
the same one again and again. Both are timed in turn, on warm connections; medians are shown. All
sites are one process, so that on a small machine it is the whole way that is measured; "processor"
is the time of the serving process alone, which hardly depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
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
from veilsum.bench.served import Consortium, WatchedCoordinator, allow_files, processor_seconds
from veilsum.control import (
    Deadlines,
    Decline,
    RoundClosed,
    RoundId,
    RoundOpened,
    RunSpec,
    UpdateHeader,
)
from veilsum.model import ModelLayout
from veilsum.site.contribution import LocalUpdate, PlainContribution
from veilsum.transport.checkpoints import save_model
from veilsum.transport.client import Connection
from veilsum.transport.limits import LimitSettings

_OPTIONS = [("grpc.max_receive_message_length", 8 << 20), ("grpc.use_local_subchannel_pool", 1)]
_WAYS = ("up", "down")
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
    print(port, flush=True)
    await server.wait_for_termination()


class Raw:
    """The yardstick's process and a channel to it for each stream. Use `async with`."""

    def __init__(self, consortium: Consortium, streams: int, pieces: int) -> None:
        hub = consortium.hub
        arguments = map(str, (hub.tls_certificate, hub.tls_key, hub.ca, pieces))
        self._process = subprocess.Popen(
            [sys.executable, __file__, "raw", *arguments], stdout=subprocess.PIPE, text=True
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
                raise SystemExit(f"the round failed: {closed.reason}")
        if await run != len(names):
            raise SystemExit("not all updates count")
        return costs, small

    async def _next(self, name: str, kind: type[Any]) -> Any:
        async for message in self._messages[name]:
            if isinstance(message, kind):
                return message
        raise SystemExit("the coordinator hung up")

    async def _fetch_all(self, where: RoundId) -> None:
        every = list(self._connections.values())[:-1]
        await asyncio.gather(*(one.fetch_model(where, max_bytes=1 << 40) for one in every))

    async def _push_all(self, updates: Sequence[tuple[UpdateHeader, Any]]) -> None:
        every = zip(self._connections.values(), updates, strict=False)
        counted = await asyncio.gather(*(one.push_update(*update) for one, update in every))
        if not all(counted):
            raise SystemExit("an update does not count")

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


async def measure(
    folder: Path, streams: Sequence[int], megabytes: int, repeats: int
) -> list[dict[str, float]]:
    """A line for each number of streams and way: GB/s of ours and of the yardstick."""
    names = [f"site-{number:02}" for number in range(max(streams) + 1)]
    consortium = Consortium.of(folder / "consortium", names)
    values = np.linspace(-1, 1, megabytes * 250_000, dtype=np.float32)
    layout = ModelLayout.from_arrays({"w": values})
    limits = LimitSettings(calls_per_s=1000.0)  # small calls, one after the other
    settings = consortium.coordinator_settings(folder / "state", limits=limits)
    lines = []
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
                    lines += await _side_by_side(sites, raw, values, count, repeats)
    return lines


async def _side_by_side(
    sites: Sites, raw: Raw, values: np.ndarray, count: int, repeats: int
) -> list[dict[str, Any]]:
    ours: dict[str, list[Cost]] = {way: [] for way in _WAYS}
    bare: dict[str, list[Cost]] = {way: [] for way in _WAYS}
    small = []
    for _ in range(repeats + 1):
        costs, seconds = await sites.round(values)
        small.append(seconds)
        for way, work in (("up", raw.up), ("down", raw.down)):
            ours[way].append(costs[way])
            bare[way].append(await _cost(work, raw.processor))
    size = count * values.nbytes / 1e9
    return [
        {
            "streams": count,
            "way": way,
            **_rates("", ours[way][1:], size),  # the first one warmed up
            **_rates("raw ", bare[way][1:], size),
            "of raw": round(_median(bare[way][1:]) / _median(ours[way][1:]), 2),
            "small call ms": round(1000 * statistics.median(small), 2),
        }
        for way in _WAYS
    ]


def _median(costs: Sequence[Cost]) -> float:
    return statistics.median(cost.seconds for cost in costs)


def _rates(name: str, costs: Sequence[Cost], size: float) -> dict[str, float]:
    processor = statistics.median(cost.processor_s for cost in costs)
    return {
        f"{name}GB/s": round(size / _median(costs), 3),
        f"{name}processor s/GB": round(processor / size, 2),
    }


def main() -> None:
    if sys.argv[1:2] == ["raw"]:
        *files, pieces = sys.argv[2:]
        asyncio.run(serve_raw(*map(Path, files), pieces=int(pieces)))  # type: ignore[misc]
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 12])
    parser.add_argument("--megabytes", type=int, default=64, help="of each model and update")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="for state and spool; by default a new one")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    allow_files(1024)
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        lines = asyncio.run(measure(Path(folder), chosen.streams, chosen.megabytes, chosen.repeats))
    for line in lines:
        print(json.dumps(line) if chosen.json else "  ".join(f"{k} {v}" for k, v in line.items()))


if __name__ == "__main__":
    main()
