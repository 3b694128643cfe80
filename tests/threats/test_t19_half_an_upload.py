"""T19: an upload breaks off, or the coordinator crashes while it arrives: half of it is there.

The defence: an upload enters the sum when all of it is there and matches its signed root, in one
step. After a crash of the coordinator nothing is resumed: what was staged is gone and the run has
ended. Going on where a crash left off is not built.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from support.secagg import UPLOAD, Federation, make_contributions, make_plan
from support.word_uploads import upload_of_words
from veilsum import secagg
from veilsum.errors import DecodeError, PeerError
from veilsum.model import ModelLayout
from veilsum.secagg.receiver import InputReceiver
from veilsum.transport.storage import RESTARTED, Storage
from veilsum.transport.uploads import Uploads

BROKEN = "kyoto"
ARRAYS = {"weight": np.linspace(-1, 1, 9000, dtype=np.float32)}
CHUNKS = 4  # one of scalars, three of the tensor


def federation() -> Federation:
    layout = ModelLayout.from_arrays(ARRAYS)
    plan = make_plan(4, layout=layout, metrics=(), chunk_coordinates=4096)
    return Federation(plan, contributions=make_contributions(plan, lambda _: ARRAYS))


def padded(plan: secagg.Plan, upload: secagg.UploadInput, arrived: int) -> tuple[bytes, ...]:
    """What arrived, and zeros where the rest would be."""
    empty = upload_of_words(plan, {}, update_id=upload.update_id)
    return (*upload.chunks[:arrived], *empty[arrived:])


@pytest.mark.parametrize("arrived", range(1, CHUNKS))
def test_half_an_upload_in_the_sum_would_end_the_round(arrived, monkeypatch):
    """The variant folds what there is, and counts its site as a survivor. Only the range check
    is left, which publishes nothing."""
    monkeypatch.setattr(InputReceiver, "add", lambda *_: None)
    monkeypatch.setattr(InputReceiver, "finish", lambda *_: None)
    round_ = federation()
    upload = round_.hold(UPLOAD, origin=BROKEN)
    chunks = padded(round_.plan, upload, arrived)
    effects = round_.coordinator.accept_input(BROKEN, upload.header, upload.update_id, chunks)
    round_.from_coordinator(effects)
    round_.run()

    assert isinstance(round_.coordinator_effects[-1], secagg.Aborted)


@pytest.mark.parametrize("arrived", range(CHUNKS))
def test_an_upload_that_breaks_off_is_not_in_the_sum(arrived):
    round_ = federation()
    upload = round_.hold(UPLOAD, origin=BROKEN)
    receiver = round_.coordinator.input_receiver(BROKEN, upload.header, upload.update_id)
    for chunk in upload.chunks[:arrived]:
        receiver.add(chunk)
    with pytest.raises(PeerError, match=f"sent {arrived} of {CHUNKS} chunks"):
        round_.coordinator.accept_input(
            BROKEN, upload.header, upload.update_id, upload.chunks[:arrived]
        )
    round_.from_coordinator(round_.coordinator.lost(BROKEN, "broke off"))
    round_.run()

    others = tuple(site for site in round_.plan.cohort if site != BROKEN)
    plain = secagg.plain_ring_sum(round_.plan, round_.contributions, others)
    assert (round_.result.sites, round_.result.digest) == (others, plain.digest)


def test_chunks_of_another_upload_do_not_complete_it():
    round_ = federation()
    upload = round_.hold(UPLOAD, origin=BROKEN)
    before = padded(round_.plan, upload, 2)

    with pytest.raises(DecodeError, match="chunk flags is 0"):
        round_.coordinator.accept_input(BROKEN, upload.header, upload.update_id, before)
    effects = round_.coordinator.accept_input(
        BROKEN, upload.header, upload.update_id, upload.chunks
    )
    round_.from_coordinator(effects)
    round_.run()

    plain = secagg.plain_ring_sum(round_.plan, round_.contributions, round_.plan.cohort)
    assert round_.result.digest == plain.digest


CRASHES = """
import os, signal, sys
from functools import partial
from pathlib import Path
from veilsum.control import RunSpec, RunStatus
from veilsum.transport.storage import Storage
from veilsum.transport.tables import put_run
storage = Storage(Path(sys.argv[1]))
status = RunStatus("r", RunSpec(task_id="t", rounds=1), "running", "", 1, "inputs", (), ())
storage.change([partial(put_run, status=status)])
(storage.spool / "00000001.update").write_bytes(b"half of it")
os.kill(os.getpid(), signal.SIGKILL)
"""


def refuse(*call: object) -> None:
    raise AssertionError(f"nobody may be asked: {call}")


def test_what_a_killed_coordinator_had_staged_is_gone_and_its_run_has_ended(tmp_path: Path):
    state = tmp_path / "state"
    killed = subprocess.run([sys.executable, "-c", CRASHES, str(state)], check=False, timeout=240)
    assert killed.returncode == -signal.SIGKILL
    assert list(state.rglob("*.update"))

    storage = Storage(state)
    uploads = Uploads(storage.spool, refuse, refuse)
    asyncio.run(uploads.recover_partial())

    assert not list(state.rglob("*.update"))
    run = storage.run("r")
    assert (run.state, run.reason) == ("aborted", RESTARTED)
    storage.close()
