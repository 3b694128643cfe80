"""A site's memory: what it refuses, how it lies on the disk, and what a crash can do to it."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import hmac
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from support.rosters import roster_of
from veilsum._native import Secret
from veilsum.cli.config import load_site
from veilsum.cli.main import exit_code
from veilsum.errors import ConfigError, LedgerError
from veilsum.secagg.ledger import Ledger
from veilsum.secagg.ledger_records import (
    HEAD_BYTES,
    Adopted,
    Attempt,
    Chain,
    Contributed,
    Opened,
    RosterAgreed,
    VoteCast,
    decode_record,
    encode_record,
    make_head,
)
from veilsum.secagg.policy import Refusal
from veilsum.transport import ledger_file
from veilsum.transport.ledger_file import KEY_FILE, RECORDS_FILE, adopt_ledger, open_ledger
from veilsum.transport.site_app import serve_site

FIRST = Attempt("task", "run", 1, 0, b"c" * 32)
OPENED = Opened(FIRST, b"m" * 32)
CONTRIBUTED = Contributed(FIRST, b"2" * 32, b"u" * 32, b"h" * 32)
VOTED = VoteCast(FIRST, b"3" * 32, ("basel", "kyoto", "lyon"))
ROUND = (OPENED, CONTRIBUTED, VOTED)


def ledger(*records) -> Ledger:
    return Ledger(Secret.from_bytes(b"k" * 32), lambda record: None, records)


def refused(memory: Ledger, record, code: str) -> None:
    with pytest.raises(Refusal) as refusal:
        memory.remember(record)
    assert refusal.value.code == code


def later(record, **change):
    return replace(record, attempt=replace(record.attempt, **change))


# --- what is refused ----------------------------------------------------------------------


def test_an_attempt_is_opened_once_and_none_before_it_ever_again():
    memory = ledger(later(OPENED, round_number=3, attempt=1))

    refused(memory, later(OPENED, round_number=3, attempt=1), "replay")
    refused(memory, later(OPENED, round_number=3, attempt=0), "replay")
    refused(memory, later(OPENED, round_number=2, attempt=9), "replay")
    memory.remember(later(OPENED, round_number=3, attempt=2))
    memory.remember(later(OPENED, round_number=1, attempt=0, run_id="another"))


@pytest.mark.parametrize("between", [(), (VOTED,)])
def test_an_update_that_left_is_in_no_other_attempt_at_its_round_and_another_one_may_be(between):
    second = {"attempt": 1, "context": b"d" * 32}
    third = {"attempt": 2, "context": b"e" * 32}
    memory = ledger(OPENED, CONTRIBUTED, *between, later(OPENED, **second))

    refused(memory, later(CONTRIBUTED, **second), "spent")
    memory.remember(replace(later(CONTRIBUTED, **second), update_tag=b"v" * 32))
    memory.remember(later(OPENED, **third))
    for tag in (b"u", b"v"):
        refused(memory, replace(later(CONTRIBUTED, **third), update_tag=tag * 32), "spent")
    assert memory.updates_sent("task", "run", 1) == 2
    assert memory.updates_sent("task", "run", 2) == memory.updates_sent("task", "walk", 1) == 0


def test_an_update_of_an_aborted_round_may_be_in_the_next_one_if_nobody_voted():
    memory = ledger(OPENED, CONTRIBUTED, later(OPENED, round_number=2))

    memory.remember(later(CONTRIBUTED, round_number=2))


def test_there_is_one_update_and_one_vote_per_attempt():
    memory = ledger(*ROUND)

    refused(memory, replace(CONTRIBUTED, update_tag=b"v" * 32), "replay")
    refused(memory, replace(VOTED, t3=b"4" * 32), "replay")


def test_an_attempt_that_was_not_opened_gets_neither_update_nor_vote():
    for record in (CONTRIBUTED, VOTED):
        refused(ledger(), record, "replay")
        refused(ledger(later(OPENED, context=b"d" * 32)), record, "replay")


def test_an_update_that_left_is_spent_in_every_run_of_its_task():
    other_run = {"run_id": "another", "context": b"d" * 32}
    memory = ledger(*ROUND, later(OPENED, **other_run))

    refused(memory, later(CONTRIBUTED, **other_run), "spent")
    with pytest.raises(Refusal):
        memory.check_never_sent("task", CONTRIBUTED.update_tag)

    other_task = {"task_id": "another"}
    memory.remember(later(OPENED, **other_task))
    memory.remember(later(CONTRIBUTED, **other_task))


def test_an_update_of_an_attempt_without_a_vote_is_spent_for_a_strict_site_only():
    other_run = {"run_id": "another", "context": b"d" * 32}
    memory = ledger(OPENED, CONTRIBUTED, later(OPENED, **other_run))

    with pytest.raises(Refusal):
        memory.check_never_sent("task", CONTRIBUTED.update_tag)
    memory.check_never_sent("another", CONTRIBUTED.update_tag)
    memory.remember(later(CONTRIBUTED, **other_run))


def test_what_cannot_be_written_is_not_remembered_as_done():
    def full(record):
        raise LedgerError("full")

    memory = Ledger(Secret.from_bytes(b"k" * 32), full)

    with pytest.raises(LedgerError):
        memory.remember(OPENED)
    refused(memory, VOTED, "replay")


def test_the_tag_is_a_keyed_hash_of_the_values_and_of_nothing_the_coordinator_plans():
    update = {"a": np.arange(3, dtype=np.float32), "b": np.array([[7], [8]], np.int64)}
    reordered = {"y": update["b"], "x": update["a"]}

    def keyed(data: bytes) -> bytes:
        return hmac.digest(b"k" * 32, data, hashlib.sha256)

    expected = keyed(b"".join(sorted(keyed(array.tobytes()) for array in update.values())))

    assert ledger().tag_of(update) == ledger().tag_of(reordered) == expected
    changed = {**update, "a": np.array([0, 1, 3], np.float32)}
    assert ledger().tag_of(changed) != expected


# --- records as bytes ---------------------------------------------------------------------


def epoch(number: int, hash_: bytes = b"r", consortium: str = "imaging") -> RosterAgreed:
    return RosterAgreed(consortium, number, hash_ * 32)


def test_rosters_only_go_forward():
    memory = ledger(epoch(7))

    for older in (epoch(6), epoch(0, b"s"), epoch(7, b"s")):
        refused(memory, older, "epoch")
    memory.remember(epoch(7))
    memory.remember(epoch(9, b"t"))
    refused(memory, epoch(8, b"u"), "epoch")
    memory.remember(epoch(1, consortium="genomics"))


def test_a_site_writes_down_a_roster_once():
    written = []
    memory = Ledger(Secret.from_bytes(b"k" * 32), written.append)
    roster = roster_of(["lyon"], 3)

    memory.agree_to(roster)
    memory.agree_to(roster)

    assert written == [RosterAgreed(roster.consortium, 3, roster.hash)]
    with pytest.raises(LedgerError, match="roster of epoch 2 is not one to go on with"):
        memory.agree_to(roster_of(["lyon"], 2))


@pytest.mark.parametrize("record", [*ROUND, epoch(2**32 - 1), Adopted(b"p" * 32)])
def test_a_record_survives_its_encoding(record):
    assert decode_record(encode_record(record)) == record


def test_the_longest_vote_fits():
    names = tuple(f"{number:064}" for number in range(255))
    longest = VoteCast(
        Attempt("t" * 64, "r" * 64, 2**63 - 1, 2**32 - 1, bytes(32)), bytes(32), names
    )
    head = make_head(bytes(32), bytes(32))
    data = Chain(head, b"k" * 32).join(longest)

    assert [record for record, _ in Chain(head, b"k" * 32).read(data)] == [longest]


# --- the file -----------------------------------------------------------------------------


def write(folder, *records):
    file = open_ledger(folder)
    for record in records:
        file.append(record)
    file.close()
    return folder / RECORDS_FILE


def read(folder):
    file = open_ledger(folder)
    file.close()
    return file.records


def test_records_outlive_the_process(tmp_path):
    write(tmp_path / "ledger", OPENED, CONTRIBUTED)
    write(tmp_path / "ledger", VOTED)

    assert read(tmp_path / "ledger") == ROUND
    for name in (RECORDS_FILE, KEY_FILE):
        assert (tmp_path / "ledger" / name).stat().st_mode & 0o777 == 0o600


def test_a_crash_while_writing_loses_at_most_the_record_that_was_being_written(tmp_path):
    """Whatever the disk holds of the last record, the ledger is that of before or of after."""
    path = write(tmp_path / "ledger", *ROUND)
    whole = path.read_bytes()
    chain = Chain(whole[:HEAD_BYTES], (path.parent / KEY_FILE).read_bytes())
    ends = [HEAD_BYTES]
    for _, size in chain.read(whole[HEAD_BYTES:]):
        ends.append(ends[-1] + size)
    assert ends[-1] == len(whole)

    for kept, (start, end) in enumerate(pairwise(ends)):
        for cut in range(start, end):
            path.write_bytes(whole[:cut])
            assert read(path.parent) == ROUND[:kept]
            assert path.stat().st_size == start  # and the next record follows a whole one


def test_a_record_goes_on_after_a_torn_one(tmp_path):
    path = write(tmp_path / "ledger", *ROUND)
    path.write_bytes(path.read_bytes()[:-1])

    write(path.parent, VOTED)

    assert read(path.parent) == ROUND


def test_a_byte_that_changed_anywhere_is_damage_and_never_a_torn_end(tmp_path):
    path = write(tmp_path / "ledger", *ROUND)
    whole = path.read_bytes()

    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises(LedgerError):
            open_ledger(path.parent)
        assert path.read_bytes() == damaged


def test_a_record_that_was_taken_out_is_missed(tmp_path):
    path = write(tmp_path / "ledger", *ROUND)
    whole = path.read_bytes()
    sizes = [
        size
        for _, size in Chain(
            whole[:HEAD_BYTES], (tmp_path / "ledger" / KEY_FILE).read_bytes()
        ).read(whole[HEAD_BYTES:])
    ]
    path.write_bytes(whole[: HEAD_BYTES + sizes[0]] + whole[HEAD_BYTES + sum(sizes[:2]) :])

    with pytest.raises(LedgerError, match="record 2 of the ledger was changed"):
        open_ledger(path.parent)


def test_records_under_another_key_are_not_believed(tmp_path):
    path = write(tmp_path / "ledger", OPENED)
    (path.parent / KEY_FILE).write_bytes(bytes(32))

    with pytest.raises(LedgerError, match="another key"):
        open_ledger(path.parent)


@pytest.mark.parametrize("lost", [RECORDS_FILE, KEY_FILE])
def test_a_ledger_of_which_a_part_is_lost_is_not_started_anew(tmp_path, lost):
    path = write(tmp_path / "ledger", OPENED)
    (path.parent / lost).unlink()

    with pytest.raises(LedgerError):
        open_ledger(path.parent)


def test_a_crash_between_ledger_and_key_leaves_a_ledger_that_can_be_started(tmp_path):
    path = write(tmp_path / "ledger")
    (path.parent / KEY_FILE).unlink()

    write(path.parent, OPENED)

    assert read(path.parent) == (OPENED,)


def test_a_restored_copy_is_refused_until_a_person_adopts_it(tmp_path):
    write(tmp_path / "ledger", OPENED)
    shutil.copytree(tmp_path / "ledger", tmp_path / "backup")
    write(tmp_path / "ledger", CONTRIBUTED, VOTED)
    (tmp_path / "ledger").rename(tmp_path / "lost")
    shutil.copytree(tmp_path / "backup", tmp_path / "ledger")

    with pytest.raises(LedgerError, match="copied or restored"):
        open_ledger(tmp_path / "ledger")
    with pytest.raises(LedgerError, match="copied or restored"):
        open_ledger(tmp_path / "backup")

    assert adopt_ledger(tmp_path / "ledger") == 1
    adopted = read(tmp_path / "ledger")
    assert adopted[0] == OPENED
    assert isinstance(adopted[1], Adopted)


def test_a_damaged_ledger_cannot_be_adopted(tmp_path):
    path = write(tmp_path / "ledger", OPENED)
    path.write_bytes(path.read_bytes()[:-1] + b"\0")

    with pytest.raises(LedgerError, match="was changed"):
        adopt_ledger(path.parent)
    with pytest.raises(ConfigError, match="no ledger"):
        adopt_ledger(tmp_path / "nowhere")


def test_one_process_at_a_time_holds_a_ledger(tmp_path):
    file = open_ledger(tmp_path / "ledger")

    with pytest.raises(ConfigError, match="another process holds"):
        open_ledger(tmp_path / "ledger")
    file.close()
    open_ledger(tmp_path / "ledger").close()


@pytest.mark.parametrize("call", ["write", "fsync"])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_disk_that_says_no_once_closes_the_ledger_for_ever(tmp_path, monkeypatch, call, error):
    file = open_ledger(tmp_path / "ledger")

    def fails(*_):
        raise OSError(error, os.strerror(error))

    with monkeypatch.context() as patched:
        patched.setattr(ledger_file.os, call, fails)
        with pytest.raises(LedgerError, match="cannot be written"):
            file.append(OPENED)
    with pytest.raises(LedgerError, match="closed"):
        file.append(OPENED)


def test_a_disk_that_is_full_within_a_record_leaves_a_torn_end(tmp_path, monkeypatch):
    file = open_ledger(tmp_path / "ledger")
    file.append(OPENED)
    write_to_disk, calls = os.write, []

    def fills_up(descriptor, data):
        calls.append(len(data))
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_to_disk(descriptor, data[:20])

    with monkeypatch.context() as patched:
        patched.setattr(ledger_file.os, "write", fills_up)
        with pytest.raises(LedgerError):
            file.append(CONTRIBUTED)

    assert read(tmp_path / "ledger") == (OPENED,)


def test_a_process_killed_after_the_fsync_has_its_record(tmp_path):
    """Killed before it could send what the record stands for: remembered, not sent."""
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from test_ledger import OPENED\n"
        "from veilsum.transport.ledger_file import open_ledger\n"
        "open_ledger(Path(sys.argv[1])).append(OPENED)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}

    ended = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "ledger")],
        check=False,
        env=environment,
        timeout=240,
    )

    assert ended.returncode == -signal.SIGKILL
    assert read(tmp_path / "ledger") == (OPENED,)


# --- the commands -------------------------------------------------------------------------

SITE_TOML = """
site = "lyon"
coordinator = "localhost:1"
roster = "roster.json"
signing_key = "signing.key"
trainer = "some.module:trainer"
insecure = true
ledger = "memory"
"""


def test_a_person_adopts_the_ledger_that_site_toml_names(tmp_path, capsys):
    (tmp_path / "site.toml").write_text(SITE_TOML)
    command = ["ledger", "adopt", "--config", str(tmp_path / "site.toml")]

    assert exit_code(command) == 1
    assert "no ledger" in capsys.readouterr().err

    write(tmp_path / "moved", OPENED)
    shutil.copytree(tmp_path / "moved", tmp_path / "memory")
    assert exit_code(command) == 0
    assert "with 1 records" in capsys.readouterr().out
    assert read(tmp_path / "memory")[0] == OPENED


def test_a_site_does_not_start_without_a_ledger_it_can_write(tmp_path):
    (tmp_path / "site.toml").write_text(SITE_TOML)
    (tmp_path / "memory").write_text("a file where the folder should be")
    settings = load_site(tmp_path / "site.toml")

    with pytest.raises(ConfigError, match="cannot make the folder"):
        asyncio.run(serve_site(settings, None, stop=asyncio.Event()))
