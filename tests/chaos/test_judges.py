"""What judges the plays of processes that die notices each thing that must never be."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest

from support.chaos import SITES, Case, wrongs
from support.lives import Outcome
from veilsum.control import RoundRecord
from veilsum.secagg.ledger_records import Contributed, VoteCast


def first_round(outcome: Outcome, change: Callable[[RoundRecord], RoundRecord]) -> Outcome:
    first, *others = outcome.status.rounds
    return replace(outcome, status=replace(outcome.status, rounds=(change(first), *others)))


def without_an_update(outcome: Outcome) -> Outcome:
    def drop(record: RoundRecord) -> RoundRecord:
        return replace(record, sites=SITES[1:], dropped={SITES[0]: "lost"})

    return first_round(outcome, drop)


def with_another_digest(outcome: Outcome) -> Outcome:
    return first_round(outcome, lambda record: replace(record, digest="00" * 32))


def with_another_model(outcome: Outcome) -> Outcome:
    model = bytearray(outcome.models["round-2.safetensors"])
    model[-1] ^= 1
    return replace(outcome, models={**outcome.models, "round-2.safetensors": bytes(model)})


def with_a_round_less(outcome: Outcome) -> Outcome:
    return replace(outcome, status=replace(outcome.status, rounds=outcome.status.rounds[:1]))


def without_an_end(outcome: Outcome) -> Outcome:
    return replace(outcome, status=replace(outcome.status, state="aborted"))


def with_a_mask_used_twice(outcome: Outcome) -> Outcome:
    key = next(iter(outcome.witness.uploads))
    outcome.witness.note("masked", key, "another upload")
    return outcome


def with_two_updates(outcome: Outcome) -> Outcome:
    outcome.witness.note("contributed", SITES[0], outcome.status.rounds[0].round, "another update")
    return outcome


def with_both_seeds_open(outcome: Outcome) -> Outcome:
    context, dealer = next(iter(outcome.witness.opened))
    outcome.witness.note("opened", context, dealer, "mask")
    return outcome


def with_something_on_disk(outcome: Outcome) -> Outcome:
    return replace(outcome, on_disk=1)


def with_something_left(outcome: Outcome) -> Outcome:
    return replace(outcome, left_over=("sent",))


def with_two_votes(outcome: Outcome) -> Outcome:
    return with_again(outcome, VoteCast)


def with_two_contributions(outcome: Outcome) -> Outcome:
    return with_again(outcome, Contributed)


def with_again(outcome: Outcome, kind: type) -> Outcome:
    records = outcome.ledgers[SITES[0]]
    again = next(record for record in records if isinstance(record, kind))
    return replace(outcome, ledgers={**outcome.ledgers, SITES[0]: (*records, again)})


def with_split_votes(outcome: Outcome) -> Outcome:
    records = [
        replace(record, t3=bytes(32)) if isinstance(record, VoteCast) else record
        for record in outcome.ledgers[SITES[0]]
    ]
    return replace(outcome, ledgers={**outcome.ledgers, SITES[0]: tuple(records)})


@pytest.mark.parametrize(
    ("disturb", "noticed"),
    [
        (without_an_update, "lost updates of"),
        (without_an_update, "is not the sum of"),
        (with_another_digest, "is not the sum of"),
        (with_another_model, "is not that of its sum"),
        (with_a_round_less, "completed after 1 rounds"),
        (without_an_end, "it ended 'aborted'"),
        (with_a_mask_used_twice, "a mask served twice"),
        (with_both_seeds_open, "shares of both seeds of"),
        (with_two_updates, "made 2 updates"),
        (with_something_on_disk, "secrets of sites"),
        (with_something_left, "left over"),
        (with_two_votes, "two of VoteCast"),
        (with_two_contributions, "two updates of one update_tag"),
        (with_split_votes, "sites voted for different sums"),
    ],
)
def test_what_must_never_be_is_noticed(
    masked: Case, disturb: Callable[[Outcome], Outcome], noticed: str
) -> None:
    outcome = replace(masked.undisturbed, witness=copy.deepcopy(masked.undisturbed.witness))

    found = list(wrongs(masked, disturb(outcome)))

    assert any(noticed in wrong for wrong in found), found


def test_the_secrets_that_are_looked_for_on_disk_are_all_that_sites_had(masked: Case) -> None:
    """Of each round two seeds of each site, and of each site a share of each site's seed."""
    of_a_round = 2 * len(SITES) + len(SITES) ** 2
    assert len(masked.undisturbed.witness.secrets) == masked.spec.rounds * of_a_round
    assert masked.undisturbed.on_disk == 0
