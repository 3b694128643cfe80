"""T28: a site's disk is restored from a backup, and the site asked for a second vote."""

from __future__ import annotations

import shutil

import pytest

from support.secagg import make_plan
from veilsum.errors import LedgerError
from veilsum.secagg.ledger import attempt_of
from veilsum.secagg.ledger_records import Opened, VoteCast
from veilsum.transport import ledger_file
from veilsum.transport.ledger_file import adopt_ledger, open_ledger

ATTEMPT = attempt_of(make_plan(5, colluders=1))


def restored_from_before_the_vote(folder):
    """A ledger of which the vote is gone, as after a restored backup."""
    file = open_ledger(folder / "ledger")
    file.append(Opened(ATTEMPT, bytes(32)))
    file.close()
    shutil.copytree(folder / "ledger", folder / "backup")
    file = open_ledger(folder / "ledger")
    file.append(VoteCast(ATTEMPT, b"1" * 32, ("basel", "kyoto", "lyon")))
    file.close()
    (folder / "ledger").rename(folder / "lost")
    shutil.copytree(folder / "backup", folder / "ledger")
    return folder / "ledger"


def vote_again(folder):
    file = open_ledger(folder)
    try:
        file.ledger().remember(VoteCast(ATTEMPT, b"2" * 32, ("basel", "kyoto", "oslo")))
    finally:
        file.close()


def test_a_ledger_that_is_believed_wherever_it_lies_votes_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger_file, "_check_home", lambda *_, **__: None)

    vote_again(restored_from_before_the_vote(tmp_path))


def test_a_restored_ledger_is_not_used(tmp_path):
    folder = restored_from_before_the_vote(tmp_path)

    with pytest.raises(LedgerError, match="was copied or restored") as error:
        vote_again(folder)

    assert "veilsum ledger adopt" in error.value.hint
    assert adopt_ledger(folder) == 1  # what a person may decide
    open_ledger(folder).close()
