"""A whole masked round in one process that then writes its own memory to a file.

    python -m support.dumped_round FOLDER [OPTION...]

FOLDER/seed holds 32 bytes, from which every site's secrets follow. They are expanded by the
native generator straight into locked memory, so that the test itself leaves no copy of them.
One coordinator and the sites serve over the loopback, under mutual TLS; the last site's training
fails once it holds everybody's shares. What is written:

    FOLDER/dump          the writable memory of the process, after everything was stopped
    FOLDER/dump-dealt    that at the moment when site WATCHED has dealt its shares,
    FOLDER/dump-ready    and when it has everybody's shares and the keys of its masks
    FOLDER/messages      what the coordinator sent to each site, pickled
    FOLDER/draws         site -> sizes of its secret draws in order, pickled
    FOLDER/log           log of all of them at level debug
    FOLDER/disk/N        the coordinator's folder, the ledgers and egress ledgers when a site
                         got a message, when it has uploaded all of its update, and at the end

Options: "abort" has one more site fail, too many for a sum; "no dump" writes no memory. The
others are leaks for the scan to find: "memory" keeps what was drawn alive as bytes, "log" logs
it, "spool" writes it into the coordinator's folder.

/proc/self/mem is opened before anything is served: serving makes the process undumpable, and
then only root could open it. Reading from what is open goes on.
"""

from __future__ import annotations

import asyncio
import base64
import gc
import itertools
import os
import pickle
import shutil
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from support.consortium import Consortium, make_consortium
from support.serving import operating, serving
from support.tiny_trainer import TinyTrainer
from veilsum import _native
from veilsum._native import Secret
from veilsum.control import Deadlines, ProtocolMessage, RoundOpened, RunSpec
from veilsum.model import ModelLayout
from veilsum.secagg.messages import kind_of_message
from veilsum.site.events import CoordinatorSent
from veilsum.transport import site_app
from veilsum.transport.checkpoints import model_to_bytes
from veilsum.transport.logs import Log, start_logging
from veilsum.transport.settings import LogSettings
from veilsum.transport.uploads import IncomingUpload

SITES = ("a", "b", "c", "d", "e")
DROPOUT = "e"
WATCHED = "a"
MODEL = {"w": np.zeros((3, 400), np.float32), "steps": np.array([5, 6], np.int64)}
RUN = RunSpec(
    task_id="tiny",
    min_sites=4,
    weight_cap=10,
    metrics=("auc",),
    deadlines=Deadlines(*[240.0] * 6),
    max_attempts=1,
)
WORDS_APART = 4096  # of two draws in a site's stream; no draw is longer
_BLOCK = 1 << 16

options: list[str] = []
kept_alive: list[object] = []
messages: list[tuple[str, bytes]] = []
draws: dict[str, list[int]] = {site: [] for site in SITES}
copies = itertools.count()  # sites are handled in threads
with_shares: set[str] = set()
hold_shares = threading.Event()
dumped = threading.Event()


def seeded(seed: Secret, site: str) -> Callable[[int], Secret]:
    """As Secret.from_os, but a function of the seed, the site and the number of the draw."""

    def draw(size: int) -> Secret:
        number = len(draws[site])
        draws[site].append(size)
        secret = Secret.zeros(size)
        with memoryview(secret) as view:
            words = np.frombuffer(view, np.uint64)
            place = {"stream": SITES.index(site), "first": number * WORDS_APART, "bits": 64}
            _native.add_masks(words, [seed], [1], generator="chacha20", threads=1, **place)
            del words
        return secret

    return draw


class PatientTrainer(TinyTrainer):
    """Is not ready before its site's memory with the keys of its masks was written."""

    def fit(self, *given: Any) -> Any:
        assert dumped.wait(240)
        return super().fit(*given)


class FailingTrainer(TinyTrainer):
    """Fails, but not before its site, and each that fails, has everybody's shares."""

    def fit(self, *_: Any) -> Any:
        assert hold_shares.wait(240)
        raise RuntimeError("no scanner today")


def failing() -> set[str]:
    """Sites whose training fails."""
    return {"d", DROPOUT} if "abort" in options else {DROPOUT}


def watch(seed: Secret, folder: Path, memory: int) -> None:
    """Lets the sites draw from the seed, and keeps what they receive."""

    class Watched(site_app.SiteCore):
        def __init__(self, site: str, *given: Any, **options: Any) -> None:
            signing_key, roster, policy, bounds, _, *rest = given
            self._name = site
            entropy = leaking(seeded(seed, site), folder)
            super().__init__(site, signing_key, roster, policy, bounds, entropy, *rest, **options)

        def handle(self, event: Any) -> Any:
            match event:
                case CoordinatorSent(RoundOpened(open_message=message)):
                    pass
                case CoordinatorSent(ProtocolMessage(_, message)):
                    pass
                case _:
                    return super().handle(event)
            messages.append((self._name, message))
            copy_disk(folder)
            relay = kind_of_message(message) == "share-relay"
            if relay and self._name == WATCHED:
                dump(memory, folder / "dump-dealt")
            effects = super().handle(event)
            if relay and self._name == WATCHED:
                dump(memory, folder / "dump-ready")
                dumped.set()
            if relay and self._name in failing():
                with_shares.add(self._name)
                if with_shares == failing():
                    hold_shares.set()
            return effects

    site_app.SiteCore = Watched  # type: ignore[misc]


def leaking(entropy: Callable[[int], Secret], folder: Path) -> Callable[[int], Secret]:
    """The same draws, each of which leaks in the ways asked for."""

    def draw(size: int) -> Secret:
        secret = entropy(size)
        if "memory" in options:
            kept_alive.append(bytes(secret))
        if "log" in options:
            Log("site").debug("drew", secret=bytes(secret).hex())
        if "spool" in options:
            text = base64.b64encode(b"?" + bytes(secret))
            (folder / "state" / "spool" / f"plant-{secret.id}").write_bytes(text)
        return secret

    return draw


def copy_disk(folder: Path) -> None:
    """As a thief would, who takes the disk at this moment."""
    copy = folder / "disk" / str(next(copies))
    copy.mkdir(parents=True)
    for kept in (folder / "state", *folder.glob("ledger-*"), *folder.glob("*.vsx")):
        if kept.is_dir():
            with suppress(shutil.Error):  # uploads come and go while they are copied
                shutil.copytree(kept, copy / kept.name)
        else:
            shutil.copy(kept, copy)


def trainer_of(site: str) -> type[TinyTrainer]:
    if site in failing():
        return FailingTrainer
    return PatientTrainer if site == WATCHED else TinyTrainer


def copy_uploads(folder: Path) -> None:
    """Each upload when it is complete: a moment later it is in the sum, and its file gone."""
    commit = IncomingUpload.commit

    async def watched(self: IncomingUpload) -> Any:
        copy_disk(folder)
        return await commit(self)

    IncomingUpload.commit = watched  # type: ignore[method-assign]


async def hold_round(consortium: Consortium, folder: Path) -> None:
    stop = asyncio.Event()
    async with serving(consortium.coordinator_settings(folder / "state")) as port:
        tasks = []
        for number, site in enumerate(SITES):
            kept = {"ledger": folder / f"ledger-{site}", "egress": folder / f"{site}.vsx"}
            settings = consortium.site_settings(site, port, **kept)
            serve = site_app.serve_site(settings, trainer_of(site)(number), stop=stop)
            tasks.append(asyncio.create_task(serve))
        async with operating(consortium, port) as operator:
            model = model_to_bytes(ModelLayout.from_arrays(MODEL), MODEL)
            run = await asyncio.to_thread(operator.submit, RUN, model)
            await asyncio.to_thread(lambda: list(operator.watch(run.run_id)))
            status = await asyncio.to_thread(operator.get, run.run_id)
        stop.set()
        await asyncio.gather(*tasks)
    assert status.state == ("aborted" if "abort" in options else "completed"), status
    assert status.rounds[-1].dropped.keys() >= failing(), status


def dump(memory: int, file: Path) -> None:
    """Writes all writable memory of this process, leaving out blocks that are zero."""
    if "no dump" in options:
        return
    block = bytearray(_BLOCK)
    nothing = bytes(_BLOCK)
    with open(file, "wb") as to, open("/proc/self/maps") as maps:
        for line in maps:
            bounds, permissions, *_ = line.split()
            if not permissions.startswith("rw"):
                continue
            low, high = (int(bound, 16) for bound in bounds.split("-"))
            for at in range(low, high, _BLOCK):
                view = memoryview(block)[: min(_BLOCK, high - at)]
                try:
                    size = os.preadv(memory, [view], at)
                except OSError:  # a mapping of a device, or one that is gone by now
                    continue
                if view[:size] != nothing[:size]:
                    to.write(view[:size])


def read_seed(file: Path) -> Secret:
    seed = Secret.zeros(32)
    with open(file, "rb", buffering=0) as stream, memoryview(seed) as view:
        assert stream.readinto(view) == 32
    return seed


def main(folder: Path) -> None:
    memory = os.open("/proc/self/mem", os.O_RDONLY)
    consortium = make_consortium(folder / "consortium", SITES)
    start_logging(LogSettings(level="debug", file=folder / "log"))
    seed = read_seed(folder / "seed")
    watch(seed, folder, memory)
    copy_uploads(folder)
    asyncio.run(hold_round(consortium, folder))
    copy_disk(folder)
    (folder / "messages").write_bytes(pickle.dumps(messages))
    (folder / "draws").write_bytes(pickle.dumps(draws))
    messages.clear()
    seed.wipe()
    del consortium
    gc.collect()
    dump(memory, folder / "dump")


if __name__ == "__main__":
    options += sys.argv[2:]
    main(Path(sys.argv[1]))
