"""The bad network that other tests use, itself."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from support.proxy import HOST, Proxy, stop_accepting
from support.serving import run_async


@asynccontextmanager
async def echoing() -> AsyncIterator[Proxy]:
    """A proxy in front of a server that sends back what it gets."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        writer.close()

    server = await asyncio.start_server(echo, HOST, 0)
    async with Proxy(server.sockets[0].getsockname()[1]) as proxy:
        yield proxy
    await stop_accepting(server)


def test_what_goes_in_comes_out_on_both_sides() -> None:
    async def main() -> None:
        async with echoing() as proxy:
            reader, writer = await asyncio.open_connection(HOST, proxy.port)
            writer.write(bytes(range(256)) * 1000)
            writer.write_eof()
            assert await reader.read(-1) == bytes(range(256)) * 1000
            assert (proxy.up.passed, proxy.down.passed) == (256_000, 256_000)
            writer.close()

    run_async(main)


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_cut_comes_after_exactly_so_many_bytes_and_ends_open_connections_only(way: str) -> None:
    async def main() -> None:
        async with echoing() as proxy:
            reader, writer = await asyncio.open_connection(HOST, proxy.port)
            getattr(proxy, way).after(70_001, proxy.cut)
            writer.write(bytes(100_000))
            with pytest.raises(OSError, match="reset"):
                await reader.readexactly(100_000)
            assert getattr(proxy, way).passed == 70_001
            reader, writer = await asyncio.open_connection(HOST, proxy.port)
            writer.write(b"again")
            assert await reader.readexactly(5) == b"again"
            assert proxy.count("cut") == 1
            writer.close()

    run_async(main)


@pytest.mark.parametrize("steps", range(12))
def test_connections_that_are_just_being_made_are_closed_with_the_proxy(steps: int) -> None:
    """What is left open is a warning when it is collected, and so a failure of some later test."""

    async def main() -> None:
        dialled = [socket.socket() for _ in range(5)]
        async with echoing() as proxy:
            for one in dialled:
                one.connect((HOST, proxy.port))
            for _ in range(steps):
                await asyncio.sleep(0)
        for one in dialled:
            one.close()

    run_async(main)
    gc.collect()


def test_cuts_can_be_repeated() -> None:
    async def main() -> None:
        async with echoing() as proxy:
            proxy.times(3, proxy.up, 10, proxy.cut)
            for _ in range(3):
                reader, writer = await asyncio.open_connection(HOST, proxy.port)
                writer.write(bytes(20))
                with pytest.raises(OSError, match="reset"):
                    await reader.readexactly(20)
            reader, writer = await asyncio.open_connection(HOST, proxy.port)
            writer.write(bytes(20))
            assert await reader.readexactly(20) == bytes(20)
            writer.close()

    run_async(main)


def test_what_is_held_arrives_once_the_line_goes_on() -> None:
    async def main() -> None:
        async with echoing() as proxy:
            reader, writer = await asyncio.open_connection(HOST, proxy.port)
            proxy.up.after(5, proxy.hold)
            writer.write(b"first second")
            await proxy.happened("held")
            assert proxy.up.passed == 5
            proxy.go_on()
            assert await reader.readexactly(12) == b"first second"
            writer.close()

    run_async(main)


def test_a_lost_connection_hears_nothing_and_a_new_one_goes_where_the_server_moved() -> None:
    async def main() -> None:
        async with echoing() as proxy, echoing() as moved:
            lost, writer = await asyncio.open_connection(HOST, proxy.port)
            writer.write(b"x")
            assert await lost.readexactly(1) == b"x"
            proxy.lose()
            writer.write(b"y")
            proxy.target = moved.port
            reader, other = await asyncio.open_connection(HOST, proxy.port)
            other.write(b"z")
            assert await reader.readexactly(1) == b"z"
            assert moved.count("connected") == 1
            assert (proxy.up.passed, proxy.down.passed) == (2, 2)
            assert not lost.at_eof()
            writer.close()
            other.close()

    run_async(main)


def test_nobody_is_led_to_who_took_the_port_of_a_server_that_is_gone() -> None:
    async def main() -> None:
        async with echoing() as proxy, echoing() as other:
            proxy.target, proxy.lives = other.port, lambda: False
            reader, writer = await asyncio.open_connection(HOST, proxy.port)
            assert await reader.read() == b""
            proxy.target = None
            again, once_more = await asyncio.open_connection(HOST, proxy.port)
            assert await again.read() == b""
            assert (proxy.count("refused"), proxy.count("connected")) == (2, 0)
            writer.close()
            once_more.close()

    run_async(main)


def test_delays_and_throttles_cost_time_and_no_bytes() -> None:
    async def main() -> None:
        async with echoing() as proxy:
            clock = asyncio.get_running_loop().time
            proxy.up.delay_s, proxy.down.bytes_per_s = 0.05, 100_000
            began = clock()
            reader, writer = await asyncio.open_connection(HOST, proxy.port)
            writer.write(bytes(10_000))
            assert await reader.readexactly(10_000) == bytes(10_000)
            # Never less than it was told to take; how much more is the machine's business.
            assert clock() - began >= 0.05 + 0.08
            writer.close()

    run_async(main)
