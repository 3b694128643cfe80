"""T28: a site's disk is restored from a backup, and the site asked for a second vote.

A ledger that was overwritten in place, or a machine that was set back as a whole, cannot be told by
itself: the acknowledgements that come with a next round tell it.
"""

from __future__ import annotations

import shutil

import pytest

from support.secagg import fixed_entropy, make_plan, seal, signing_key
from threats.rounds import VICTIM, remembering, round_of
from veilsum import secagg
from veilsum.errors import LedgerError
from veilsum.secagg.ledger import attempt_of
from veilsum.secagg.ledger_records import Opened, VoteCast
from veilsum.secagg.messages import RoundOpen
from veilsum.secagg.payload import COORDINATOR
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


def overwritten_in_place(folder) -> tuple[secagg.Ledger, secagg.PreviousRound]:
    """A ledger that has forgotten the first round, and that round as the next one brings it."""
    file = open_ledger(folder)
    before = (folder / "ledger.vsl").read_bytes()
    first = round_of(remembering() | {VICTIM: file.ledger()})
    first.publish()
    first.run()
    file.close()
    (folder / "ledger.vsl").write_bytes(before)
    return open_ledger(folder).ledger(), first.acknowledged.previous


def asked_again(ledger: secagg.Ledger, previous: secagg.PreviousRound) -> secagg.SiteEffect:
    """The second round invites the site; what it sent in the first, it knows nothing of."""
    plan = make_plan(5, colluders=1, metrics=(), round_number=2, previous_result=previous.digest)
    session = secagg.SiteSession(
        site=VICTIM,
        signing_key=signing_key(VICTIM),
        roster=plan.roster,
        policy=secagg.LocalPolicy(min_colluders=1),
        entropy=fixed_entropy(3),
        ledger=ledger,
    )
    message = RoundOpen(plan.context, COORDINATOR, plan.to_bytes(), previous.link)
    return session.handle(seal(message))[0]


def test_a_ledger_that_was_overwritten_serves_on_if_nobody_tells_it(tmp_path, monkeypatch):
    ledger, previous = overwritten_in_place(tmp_path / "ledger")
    monkeypatch.setattr("veilsum.secagg.site.check_chain", lambda *_: None)

    assert isinstance(asked_again(ledger, previous), secagg.Send)


def test_a_ledger_that_was_overwritten_is_told_by_the_site_s_own_acknowledgement(tmp_path):
    ledger, previous = overwritten_in_place(tmp_path / "ledger")

    withdrawn = asked_again(ledger, previous)

    assert isinstance(withdrawn, secagg.Withdraw)
    assert (withdrawn.code, "older than" in withdrawn.reason) == ("ledger", True)
