"""One coordinator uses a state directory; another waits for it, or is told who does."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.consortium import Consortium, make_consortium
from support.serving import run_async, serving
from support.stored import store_event
from veilsum.control import RunEvent
from veilsum.errors import ConfigError
from veilsum.transport import standby
from veilsum.transport.coordinator_app import serve_coordinator
from veilsum.transport.drain import Orders
from veilsum.transport.state_lock import Holder, StateInUse, StateLock
from veilsum.transport.storage import DiskFailed, Storage

HOLDS_AND_DIES = """
import os, signal, sys
from pathlib import Path
from veilsum.transport.state_lock import StateLock
lock = StateLock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Consortium:
    return make_consortium(tmp_path_factory.mktemp("consortium"), ["a"])


def test_whoever_is_refused_is_told_who_holds_the_directory_and_what_to_do(
    tmp_path: Path,
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS_AND_DIES, str(tmp_path / "lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"

        with pytest.raises(StateInUse) as refused:
            StateLock(tmp_path / "lock")

        text = str(refused.value)
        assert f"process {other.pid} on {os.uname().nodename}, since 2" in text
        assert str(tmp_path) in text
        assert "--standby" in (refused.value.hint or "")
        other.communicate("")

    lock = StateLock(tmp_path / "lock")
    assert lock.before is not None
    assert lock.before.pid == other.pid
    lock.close()
    again = StateLock(tmp_path / "lock")
    assert again.before is None
    again.close()


def test_who_loses_the_lock_makes_no_change_any_more(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "state")
    event = RunEvent("run", "phase", 1)
    store_event(storage, event)
    other = Holder(4711, "elsewhere", 0.0)
    text = json.dumps({"pid": other.pid, "host": other.host, "since": other.since})
    (tmp_path / "state" / "lock").write_text(text)

    with pytest.raises(DiskFailed, match="taken over by process 4711 on elsewhere, since 1970"):
        store_event(storage, event)

    assert len(storage.events("run")) == 1
    storage.close()
    assert (tmp_path / "state" / "lock").read_text() == text


def test_a_lock_that_was_removed_protects_nobody_and_is_noticed(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "state")
    (tmp_path / "state" / "lock").unlink()

    with pytest.raises(DiskFailed, match="somebody who removed the lock"):
        store_event(storage, RunEvent("run", "phase", 1))

    second = Storage(tmp_path / "state")
    with pytest.raises(DiskFailed, match=f"taken over by process {os.getpid()}"):
        store_event(storage, RunEvent("run", "phase", 1))
    storage.close()
    store_event(second, RunEvent("run", "phase", 1))
    second.close()


def test_a_directory_that_cannot_be_used_is_given_back(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(mode=0o700)
    (tmp_path / "state" / "state.db").write_bytes(b"not a database" * 100)
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"cannot use .*state\.db"):
            Storage(tmp_path / "state")


def test_a_standby_takes_over_when_the_other_ends(
    consortium: Consortium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = consortium.coordinator_settings(tmp_path / "state")
    monkeypatch.setattr(standby, "EVERY_S", 0.01)

    async def main() -> None:
        tried_again, tries = asyncio.Event(), 0

        def trying(*arguments: Any, **named: Any) -> Storage:
            nonlocal tries
            try:
                return Storage(*arguments, **named)
            except StateInUse:
                tries += 1
                if tries == 3:
                    tried_again.set()
                raise

        monkeypatch.setattr(standby, "Storage", trying)
        ready: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        orders = Orders()
        async with serving(settings):
            with pytest.raises(StateInUse):
                await serve_coordinator(settings, orders=orders)
            second = asyncio.create_task(
                serve_coordinator(settings, orders=orders, ready=ready.set_result, standby=True)
            )
            await tried_again.wait()
            assert not ready.done()
            assert not second.done()
        assert await ready > 0
        orders.stop.set()
        await second

    run_async(main)


def test_a_standby_can_be_told_to_stop(consortium: Consortium, tmp_path: Path) -> None:
    settings = consortium.coordinator_settings(tmp_path / "state")

    async def main() -> None:
        orders = Orders()
        orders.stop.set()
        async with serving(settings):
            await serve_coordinator(settings, orders=orders, standby=True)

    run_async(main)
