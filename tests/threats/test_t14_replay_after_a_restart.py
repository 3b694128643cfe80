"""T14: messages of an earlier round are played again to a process that was not in it."""

from __future__ import annotations

import pytest

from support.secagg import consortium, fixed_entropy
from threats.rounds import SITES, VICTIM, Forgetful, remembering, result_of, round_of
from veilsum import secagg
from veilsum.transport.ledger_file import open_ledger


def answers_of_a_new_process(ledger: secagg.Ledger, played: list[bytes]) -> list[list]:
    session = secagg.SiteSession(
        site=VICTIM,
        signing_key=consortium().site_keys[VICTIM],
        roster=consortium().roster,
        policy=secagg.LocalPolicy(min_colluders=1),
        entropy=fixed_entropy(1000 + SITES.index(VICTIM)),
        ledger=ledger,
    )
    return [session.handle(message) for message in played]


def played_to_the_victim(ledger: secagg.Ledger, **plan: object) -> list[bytes]:
    federation = round_of(remembering() | {VICTIM: ledger}, **plan)
    assert result_of(federation) is not None
    return [message for origin, to, message in federation.sent if (origin, to) == ("", VICTIM)]


def test_a_process_without_memory_answers_the_whole_round_again():
    ledger = Forgetful()
    opened, roster, relay, *_ = played_to_the_victim(ledger)

    answers = answers_of_a_new_process(ledger, [opened, roster, relay])

    assert [type(effects[0]) for effects in answers] == [
        secagg.Send,
        secagg.Send,
        secagg.NeedUpdate,
    ]


@pytest.mark.parametrize("between", [0, 2])
def test_a_process_that_reads_its_ledger_answers_nothing(tmp_path, between):
    file = open_ledger(tmp_path / "ledger")
    played = played_to_the_victim(file.ledger())
    file.close()
    for number in range(between):  # and later rounds do not make it forget this one
        file = open_ledger(tmp_path / "ledger")
        played_to_the_victim(file.ledger(), task_id=f"task {number}")
        file.close()

    file = open_ledger(tmp_path / "ledger")
    answers = answers_of_a_new_process(file.ledger(), played)
    file.close()

    assert answers[0] == [
        secagg.Withdraw("replay", "this site took part in that round, or in a later one, already")
    ]
    assert not any(answers[1:])
