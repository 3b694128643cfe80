"""The demo's processes: started as anyone would start them, watched, and ended with the demo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from veilsum.demo.stopping import stop_if_asked
from veilsum.errors import VeilsumError

_GRACE_SECONDS = 10.0
_LOG_TAIL_BYTES = 4096


class DemoFailed(VeilsumError):  # noqa: N818  the outcome, not a mistake of the caller
    """The demo could not come to its end."""


@dataclass(eq=False)
class _Child:
    process: subprocess.Popen[str]
    log: Path
    wanted: bool = True


@dataclass
class Processes:
    """Child processes by name. Use `with`: whatever happens, none outlives the demo.

    Attributes:
        logs: folder of the processes' logs; a restarted process appends to its own.
    """

    logs: Path
    _children: dict[str, _Child] = field(default_factory=dict)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def start_coordinator(self, config: Path) -> int:
        """Starts the coordinator and waits until it serves; its port.

        Raises:
            DemoFailed: it ended instead.
        """
        child = self._start("coordinator", "coordinator", config)
        assert child.process.stdout is not None
        try:
            return int(json.loads(child.process.stdout.readline())["port"])
        except (ValueError, KeyError, TypeError) as error:
            raise DemoFailed(_obituary("coordinator", child)) from error

    def start_site(self, name: str, config: Path) -> None:
        """Starts a site, or starts it again after kill()."""
        self._start(name, "site", config)

    def kill(self, name: str) -> None:
        """Ends a process at once, as a power cut would."""
        child = self._children[name]
        child.wanted = False
        child.process.kill()
        child.process.wait()

    def check(self) -> None:
        """Raises:
        DemoFailed: a process ended by itself.
        KeyboardInterrupt: somebody wants the demo to end.
        """
        stop_if_asked()
        for name, child in self._children.items():
            if child.wanted and child.process.poll() is not None:
                raise DemoFailed(_obituary(name, child))

    def stop(self) -> None:
        """Asks every process to end, and ends those that do not. Idempotent."""
        running = [child for child in self._children.values() if child.process.poll() is None]
        for child in running:
            child.wanted = False
            child.process.terminate()
        for child in running:
            try:
                child.process.wait(_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()
        for child in self._children.values():
            if child.process.stdout is not None:
                child.process.stdout.close()

    def _start(self, name: str, command: str, config: Path) -> _Child:
        log = self.logs / f"{name}.log"
        # -P: the folder the demo is started in must not lend modules to its processes.
        arguments = [sys.executable, "-P", "-m", "veilsum", command, "--config", str(config)]
        one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        with open(log, "ab") as stderr:
            process = subprocess.Popen(  # noqa: S603  this very program
                [*arguments, "--json"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if command == "coordinator" else subprocess.DEVNULL,
                stderr=stderr,
                env={**os.environ, **(one_thread if command == "site" else {})},
                text=True,
            )
        child = _Child(process, log)
        self._children[name] = child
        return child


def _obituary(name: str, child: _Child) -> str:
    code = child.process.wait()
    with open(child.log, "rb") as log:
        log.seek(max(0, child.log.stat().st_size - _LOG_TAIL_BYTES))
        lines = log.read().decode(errors="replace").strip().splitlines()
    last = lines[-1] if lines else "nothing"
    return f"process {name!r} ended unasked with code {code}; its log {child.log} ends: {last}"
