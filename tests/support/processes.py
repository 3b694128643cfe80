"""A coordinator and sites as processes of their own; a site can be made to die at a message.

    python -m support.processes coordinator SETTINGS
    python -m support.processes site SETTINGS NUMBER [PHASE]

SETTINGS is a pickled settings object. With a PHASE the site kills itself, as a power cut
would, when it is about to send its message of that phase.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from typing_extensions import Buffer

import veilsum
from support.tiny_trainer import TinyTrainer
from veilsum.control import ProtocolMessage, ToCoordinator, UpdateHeader
from veilsum.errors import DecodeError
from veilsum.secagg.envelope import Envelope
from veilsum.secagg.messages import SealedDeal
from veilsum.secagg.payload import kind_of
from veilsum.transport.client import Connection
from veilsum.transport.coordinator_app import run_coordinator
from veilsum.transport.endpoint import Endpoint
from veilsum.transport.site_app import run_site

TESTS = Path(__file__).parents[1]
PHASE_OF_KIND = {
    "key-advert": "keys",
    "share-deal": "shares",
    "survivor-vote": "votes",
    "unmask-shares": "unmask",
    "result-ack": "acks",
}
PHASES = ("keys", "shares", "inputs", "votes", "unmask", "acks")


def start(role: str, settings: Any, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Starts a process; its stdout is a pipe, its stderr a file in `folder`."""
    folder.mkdir(exist_ok=True)
    file = folder / f"{role}-{len(list(folder.iterdir()))}"
    file.with_suffix(".settings").write_bytes(pickle.dumps(settings))
    environment = {
        **os.environ,
        # The package under test, wherever it is installed.
        "PYTHONPATH": os.pathsep.join((str(TESTS), str(Path(veilsum.__file__).parents[1]))),
    }
    with open(file.with_suffix(".log"), "w") as log:
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "support.processes",
                role,
                str(file.with_suffix(".settings")),
                *arguments,
            ],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )


def phase_of(message: bytes) -> str | None:
    """Which phase's message it is; None for others."""
    try:
        envelope = Envelope.from_bytes(message)
    except DecodeError:  # boxes follow the envelope, in this one kind
        envelope = SealedDeal.from_bytes(message).header
    return PHASE_OF_KIND.get(kind_of(envelope.payload))


class DyingConnection(Connection):
    """A connection whose process is killed when it is about to send a phase's message."""

    def __init__(self, endpoint: Endpoint, phase: str) -> None:
        super().__init__(endpoint)
        self._last_phase = phase

    async def send(self, message: ToCoordinator) -> None:
        if isinstance(message, ProtocolMessage):
            self._reached(phase_of(message.payload))
        await super().send(message)

    async def push_update(
        self, header: UpdateHeader, chunks: Sequence[Buffer], *, first_chunk: int = 0
    ) -> bool:
        if self._last_phase == "inputs":
            # In the middle of its upload: some chunks are there, others never come.
            await super().push_update(header, chunks[:1])
            self._reached("inputs")
        return await super().push_update(header, chunks, first_chunk=first_chunk)

    def _reached(self, phase: str | None) -> None:
        if phase == self._last_phase:
            os.kill(os.getpid(), signal.SIGKILL)


def _tell(port: int) -> None:
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()


def main() -> None:
    role, settings_file, *arguments = sys.argv[1:]
    settings = pickle.loads(Path(settings_file).read_bytes())
    if role == "coordinator":
        run_coordinator(settings, ready=_tell)
        return
    number, *phase = arguments
    connect = (lambda endpoint: DyingConnection(endpoint, phase[0])) if phase else Connection
    run_site(settings, trainer=TinyTrainer(int(number)), connect=connect)


if __name__ == "__main__":
    main()
