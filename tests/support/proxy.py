"""A bad network between a site and its coordinator: a TCP proxy on the loopback.

It delays, throttles, cuts, holds and loses what passes, each way on its own, when it is told to
or when so many bytes have passed. What happens depends on bytes, never on a clock: the only
waiting is for the delays that were asked for.

    async with Proxy(port) as proxy:
        proxy.up.after(100_000, proxy.cut)      # in the middle of an upload
        ... dial proxy.port ...
        await proxy.happened("cut")

One proxy for each site gives each site a network of its own.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

HOST = "127.0.0.1"
_PIECE_BYTES = 1 << 16
_SLICES_PER_SECOND = 50  # a throttled line gives its second's bytes in so many pieces
_TURNS_TO_ACCEPT = 4  # of the loop, from a socket to its handler
_QUEUED = 16  # pieces that are under way in one direction of one connection
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close() sends RST and drops what is unsent


async def stop_accepting(server: asyncio.Server) -> None:
    """Closes it, once each connection that it has taken is with its handler: asyncio forgets to
    close those in between."""
    for listening in server.sockets:
        asyncio.get_running_loop().remove_reader(listening.fileno())
    for _ in range(_TURNS_TO_ACCEPT):
        await asyncio.sleep(0)
    server.close()


@dataclass
class Line:
    """How bytes flow in one direction, over all connections. May be changed at any time.

    Attributes:
        delay_s: how long each byte is under way.
        bytes_per_s: how fast they come out at the end; None: at once. Of each connection.
        passed: bytes that came out at the end so far.
    """

    delay_s: float = 0.0
    bytes_per_s: float | None = None
    passed: int = 0
    _moving: asyncio.Event = field(default_factory=asyncio.Event)
    _marks: list[tuple[int, Callable[[], None]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._moving.set()

    def hold(self) -> None:
        """Nothing comes out any more, and nothing is lost: a link that is down for a while, whose
        packets TCP sends again when it is back."""
        self._moving.clear()

    def go_on(self) -> None:
        """Ends hold()."""
        self._moving.set()

    def after(self, size: int, action: Callable[[], None]) -> None:
        """Does something once, right after `size` more bytes have come out and before the next."""
        self._marks.append((self.passed + size, action))
        self._marks.sort(key=lambda mark: mark[0])

    async def next_piece(self, data: memoryview) -> memoryview:
        """How much of it may come out now; waits while nothing may."""
        await self._moving.wait()
        return data[: self._next_size(len(data))]

    async def came_out(self, size: int) -> None:
        """To be called when so much has: acts where it is to, and takes its time."""
        self.passed += size
        while self._marks and self._marks[0][0] <= self.passed:
            self._marks.pop(0)[1]()
        if self.bytes_per_s is not None:
            await asyncio.sleep(size / self.bytes_per_s)

    def _next_size(self, most: int) -> int:
        if self._marks:
            most = min(most, max(1, self._marks[0][0] - self.passed))
        if self.bytes_per_s is not None:
            most = min(most, max(1, int(self.bytes_per_s / _SLICES_PER_SECOND)))
        return most


class _Connection:
    """One connection of a client, and the one to the server that belongs to it."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self._ends = (client, server)
        self._over = False
        self.lost = False

    def cut(self) -> None:
        """Both ends learn it at once."""
        for end in self._ends:
            raw = end.get_extra_info("socket")
            # One that an end has reset itself may be closed already.
            if raw is not None and raw.fileno() != -1 and not self._over:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            end.transport.abort()
        self._over = True

    async def carry(self, reader: asyncio.StreamReader, to: asyncio.StreamWriter, way: Line):
        """Everything from one end to the other, to the end of the stream."""
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_QUEUED)
        arriving = asyncio.create_task(self._arrive(under_way, to, way))
        clock = asyncio.get_running_loop().time
        try:
            with suppress(OSError):
                while data := await reader.read(_PIECE_BYTES):
                    await under_way.put((clock() + way.delay_s, data))
            await under_way.put((clock() + way.delay_s, b""))
            await arriving
        finally:
            arriving.cancel()

    async def _arrive(
        self, under_way: asyncio.Queue[tuple[float, bytes]], to: asyncio.StreamWriter, way: Line
    ) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            due, data = await under_way.get()
            if (left := due - clock()) > 0:
                await asyncio.sleep(left)
            with suppress(OSError):
                await self._let_out(memoryview(data), to, way)
                if not data and to.can_write_eof():
                    to.write_eof()
            if not data:
                return

    async def _let_out(self, data: memoryview, to: asyncio.StreamWriter, way: Line) -> None:
        while data:
            piece = await way.next_piece(data)
            if self.lost or self._over:
                return
            to.write(bytes(piece))
            data = data[len(piece) :]
            await way.came_out(len(piece))
        await to.drain()


class Proxy:
    """See the top of this file. Use `async with`.

    Attributes:
        up: from those who dial to the server.
        down: from the server to them.
        target: port of the server. A new one holds for the next connection: the server moved. None
            while there is no server: those who dial are turned away.
        lives: whether the server that was at the target is still there. The system gives the port
            of one that has died to whoever asks next, maybe the server of another test.
        refusing: whether those who dial are turned away.
    """

    def __init__(self, target: int | None) -> None:
        self.target = target
        self.lives: Callable[[], bool] = lambda: True
        self.refusing = False
        self.up = Line()
        self.down = Line()
        self.port = 0
        self._connections: set[_Connection] = set()
        self._clients: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._happened: Counter[str] = Counter()
        self._news = asyncio.Condition()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._accept, HOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        assert self._server is not None
        await stop_accepting(self._server)
        for connection in list(self._connections):
            connection.cut()
        for client in list(self._clients):
            client.transport.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- what a test does -----------------------------------------------------------

    def cut(self) -> None:
        """Resets every open connection. New ones are let in."""
        for connection in list(self._connections):
            connection.cut()
        self._tell("cut")

    def lose(self) -> None:
        """Forgets every open connection without a word: neither end hears of the other again, as
        behind an address translator that was restarted. New ones are let in."""
        for connection in self._connections:
            connection.lost = True
        self._tell("lost")

    def hold(self) -> None:
        """A black hole, until go_on(): nothing comes through, for new connections either."""
        self.up.hold()
        self.down.hold()
        self._tell("held")

    def go_on(self) -> None:
        """Ends hold(). What was on its way arrives."""
        self.up.go_on()
        self.down.go_on()

    def times(self, times: int, line: Line, size: int, action: Callable[[], None]) -> None:
        """Does something after each `size` bytes of a line, so many times."""

        def once_more(left: Iterator[int]) -> None:
            action()
            if next(left, None) is not None:
                line.after(size, lambda: once_more(left))

        left = iter(range(times - 1))
        line.after(size, lambda: once_more(left))

    async def happened(self, what: str, times: int = 1) -> None:
        """Waits until something has happened: "cut", "lost", "held", "connected", "refused"."""
        async with self._news:
            await self._news.wait_for(lambda: self._happened[what] >= times)

    def count(self, what: str) -> int:
        """How often it has happened."""
        return self._happened[what]

    # --- connections ----------------------------------------------------------------

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Not a coroutine: one that is cancelled before it began could not close the connection."""
        self._clients.add(writer)
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)

        def over(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._clients.discard(writer)
            writer.transport.abort()

        task.add_done_callback(over)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        streams = await self._dial()
        if streams is None:
            self._tell("refused")
            return
        from_server, to_server = streams
        connection = _Connection(writer, to_server)
        self._connections.add(connection)
        self._tell("connected")
        carrying = [
            asyncio.create_task(connection.carry(reader, to_server, self.up)),
            asyncio.create_task(connection.carry(from_server, writer, self.down)),
        ]
        self._tasks.update(carrying)
        try:
            await asyncio.gather(*carrying, return_exceptions=True)
        finally:
            self._tasks.difference_update(carrying)
            self._connections.discard(connection)
            to_server.transport.abort()

    async def _dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """A connection to the server that is meant, or none."""
        target = self.target
        if self.refusing or target is None:
            return None
        try:
            reader, writer = await asyncio.open_connection(HOST, target)
        except OSError:
            return None
        # Asked when the connection stands: a port belongs to one that lives now.
        if self.target == target and self.lives():
            return reader, writer
        writer.transport.abort()
        return None

    def _tell(self, what: str) -> None:
        self._happened[what] += 1

        async def spread() -> None:
            async with self._news:
                self._news.notify_all()

        task = asyncio.ensure_future(spread())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
