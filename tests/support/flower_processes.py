"""A Flower federation of processes on this machine: a SuperLink, SuperNodes, and `flwr run`."""

from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import veilsum

_BIN = Path(sys.executable).parent


class Program:
    """One process whose output is waited for, line by line."""

    def __init__(self, name: str, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        self.name = name
        self.lines: list[str] = []
        self._coming: queue.Queue[str | None] = queue.Queue()
        self._process = subprocess.Popen(
            [str(_BIN / name), *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # so that what it starts ends with it
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def wait_for(self, text: str, deadline: float, times: int = 1) -> None:
        """Reads on until `text` was in so many lines; the output's end is not enough."""
        while sum(text in line for line in self.lines) < times:
            if not self._next(deadline):
                raise AssertionError(f"{self.name} never said {text!r}:\n{''.join(self.lines)}")

    def wait(self, deadline: float) -> int:
        """Reads to the end; the exit code."""
        while self._next(deadline):
            pass
        return self._process.wait(max(0.0, deadline - time.monotonic()))

    def stop(self) -> None:
        """Ends it and all that it started."""
        for sent in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, sent)
                self._process.wait(10)
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue
        self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _next(self, deadline: float) -> bool:
        try:
            line = self._coming.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise AssertionError(f"{self.name} was too slow:\n{''.join(self.lines)}") from None
        if line is None:
            return False
        self.lines.append(line)
        return True

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._coming.put(line)
        self._coming.put(None)


@contextmanager
def federation(
    folder: Path, node_configs: Sequence[Mapping[str, Any]], deadline: float
) -> Iterator[Mapping[str, str]]:
    """A SuperLink and a SuperNode for each configuration, connected to it.

    Yields:
        The environment in which `flwr run APP local` finds the SuperLink.
    """
    link, *nodes = _free_ports(1 + len(node_configs))
    home = folder / "flwr"
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "local"\n\n[superlink.local]\n'
        f'address = "127.0.0.1:{link}"\ninsecure = true\n'
    )
    environment = {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PATH": f"{_BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(Path(veilsum.__file__).parents[1]),
        "PYTHONUNBUFFERED": "1",
    }
    with ExitStack() as stack:

        def start(name: str, *arguments: str) -> Program:
            program = Program(name, ("--insecure", *arguments), environment)
            stack.callback(program.stop)
            return program

        superlink = start(
            "flower-superlink", "--port", str(link), "--disable-runtime-dependency-installation"
        )
        superlink.wait_for("Uvicorn running on", deadline)
        for port, config in zip(nodes, node_configs, strict=True):
            settings = " ".join(f"{name}={value}" for name, value in config.items())
            address = f"127.0.0.1:{link}"
            start("flower-supernode", "--superlink", address, "--port", str(port),
                  "--node-config", settings)  # fmt: skip
        superlink.wait_for("Activated node_id", deadline, times=len(nodes))
        yield environment


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        taken = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in taken:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in taken]
