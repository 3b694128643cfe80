"""T17: one half of the sites is told another result of the round than the other half.

The coordinator signs both and its helper acknowledges both. What it wants is a next round that goes
on from either, as it likes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import pytest

from support.secagg import (
    NAMES,
    Federation,
    fixed_entropy,
    forge,
    make_plan,
    read,
    seal,
    signing_key,
)
from threats.rounds import SITES
from veilsum import secagg
from veilsum._native import Secret
from veilsum.secagg import result_checks
from veilsum.secagg.envelope import Envelope
from veilsum.secagg.messages import RoundOpen
from veilsum.secagg.payload import COORDINATOR
from veilsum.secagg.result_messages import Link, ResultAck, RoundResult, acks_digest

*HONEST, HELPER = SITES
MODELS = (b"1" * 32, b"2" * 32)


class Told(NamedTuple):
    """What the coordinator has in hand when the round is over."""

    plan: secagg.Plan
    results: tuple[bytes, bytes]
    acks: tuple[dict[str, Envelope], dict[str, Envelope]]
    ledgers: dict[str, secagg.Ledger]


def two_results(first: int) -> Told:
    """The first so many honest sites get one result, the others another."""
    ledgers = {site: secagg.Ledger.in_memory(Secret.zeros) for site in SITES}
    federation = Federation(make_plan(5, colluders=1), ledgers=ledgers)
    federation.run()
    federation.publish(MODELS[0])
    one = federation.sent[-1][2]
    results = (one, forge(RoundResult, one, model_hash=MODELS[1]))
    acks: tuple[dict[str, Envelope], dict[str, Envelope]] = ({}, {})
    for number, site in enumerate(HONEST):
        which = 0 if number < first else 1
        session = federation.sites[site]
        session.handle(results[which])
        (send,) = session.checked_result(0)
        assert isinstance(send, secagg.Send)
        acks[which][site] = Envelope.from_bytes(send.message)
        # The other one it is told as well, and answers nothing to it.
        blamed, withdrawn = session.handle(results[1 - which])
        assert isinstance(blamed, secagg.Blamed)
        assert isinstance(withdrawn, secagg.Withdraw)
    for which in (0, 1):
        digest = Envelope.from_bytes(results[which]).payload_digest
        lie = ResultAck(federation.plan.context, HELPER, digest, 3, secagg.no_egress())
        acks[which][HELPER] = Envelope.from_bytes(seal(lie))
    return Told(federation.plan, results, acks, ledgers)


def who_goes_on(told: Told, which: int) -> set[str]:
    """Honest sites that take part in a next round from this result."""
    result = Envelope.from_bytes(told.results[which])
    acks = dict(sorted(told.acks[which].items()))
    link = Link(told.plan.to_bytes(), result, tuple(acks.values()))
    digests = {site: ack.payload_digest for site, ack in acks.items()}
    plan = make_plan(
        5,
        colluders=1,
        round_number=2,
        model_hash=read(RoundResult, told.results[which]).model_hash,
        previous_result=acks_digest(result.payload_digest, digests),
    )
    opened = seal(RoundOpen(plan.context, COORDINATOR, plan.to_bytes(), link))
    return {site for site in HONEST if _takes_part(site, opened, told.ledgers[site])}


def _takes_part(site: str, opened: bytes, ledger: secagg.Ledger) -> bool:
    session = secagg.SiteSession(
        site=site,
        signing_key=signing_key(site),
        roster=make_plan(5).roster,
        policy=secagg.LocalPolicy(min_colluders=1),
        entropy=fixed_entropy(9),
        # Asked for both results in turn, so that one answer does not forbid the other.
        ledger=_copy(ledger),
    )
    return isinstance(session.handle(opened)[0], secagg.Send)


class _Seen(secagg.Ledger):
    def __init__(self, like: secagg.Ledger) -> None:
        super().__init__(Secret.zeros(32), lambda record: None)
        self._like = like

    def check(self, record: object) -> None:
        """Of the one it is like."""
        self._like.check(record)  # type: ignore[arg-type]

    def remember(self, record: object) -> None:
        """Nothing: it is a copy."""

    def last_ack(self, task_id: str, run_id: str) -> object:  # type: ignore[override]
        return self._like.last_ack(task_id, run_id)


def _copy(ledger: secagg.Ledger) -> secagg.Ledger:
    return _Seen(ledger)


@pytest.mark.parametrize("first", range(5))
def test_one_result_at_most_has_a_quorum_and_nobody_leaves_the_one_it_acknowledged(first):
    told = two_results(first)

    going = [who_goes_on(told, which) for which in (0, 1)]

    assert [len(acks) for acks in told.acks] == [first + 1, 5 - first]
    assert not (going[0] and going[1])
    for which in (0, 1):
        enough = len(told.acks[which]) >= told.plan.vote_quorum
        assert going[which] == ({s for s in HONEST if s in told.acks[which]} if enough else set())


def test_without_a_quorum_both_halves_would_go_on(monkeypatch):
    monkeypatch.setattr(result_checks.LastRound, "acknowledged", property(lambda _: True))
    told = two_results(2)

    assert [who_goes_on(told, which) for which in (0, 1)] == [set(HONEST[:2]), set(HONEST[2:])]


def test_a_site_that_acknowledged_neither_would_follow_either_without_a_quorum(monkeypatch):
    """And with one it follows none: the fifth site was away, its ledger knows nothing."""
    told = two_results(2)
    away = told._replace(
        ledgers={site: secagg.Ledger.in_memory(Secret.zeros) for site in SITES},
        acks=tuple(
            {site: ack for site, ack in acks.items() if site != HONEST[0]} for acks in told.acks
        ),
    )
    victim = {HONEST[0]}
    assert [who_goes_on(away, which) & victim for which in (0, 1)] == [set(), set()]

    monkeypatch.setattr(result_checks.LastRound, "acknowledged", property(lambda _: True))
    assert [who_goes_on(away, which) & victim for which in (0, 1)] == [victim, victim]


def test_a_result_of_another_attempt_is_not_acknowledged_beside_the_first():
    """The coordinator says that the first attempt failed, and holds the round again."""
    told = two_results(4)
    retried = make_plan(5, colluders=1, attempt=1)
    opened = seal(RoundOpen(retried.context, COORDINATOR, retried.to_bytes()))

    for site in HONEST:
        session = secagg.SiteSession(
            site=site,
            signing_key=signing_key(site),
            roster=retried.roster,
            policy=secagg.LocalPolicy(min_colluders=1),
            entropy=fixed_entropy(9),
            ledger=told.ledgers[site],
        )
        (withdrawn,) = session.handle(opened)
        assert isinstance(withdrawn, secagg.Withdraw)
        assert withdrawn.code == "replay"


def test_the_two_results_are_signed_and_contradict_for_anyone():
    told = two_results(2)
    key = told.plan.roster.coordinator_key
    one, other = (Envelope.from_bytes(result) for result in told.results)

    for envelope in (one, other):
        envelope.verify(RoundResult.kind, key)
    assert one.payload_digest != other.payload_digest
    same = replace(read(RoundResult, told.results[1]), model_hash=MODELS[0])
    assert same == read(RoundResult, told.results[0])


def test_attempts_with_other_sites_can_each_have_a_quorum_and_nobody_goes_from_one_to_the_other():
    """What one result per round does not mean: these are as three runs under one name, each with as
    many honest sites in its sum as the plan promises."""
    helpers, honest = NAMES[:2], NAMES[2:]
    policy = secagg.LocalPolicy()
    ledgers = {site: secagg.Ledger.in_memory(Secret.zeros) for site in honest}
    ended = []
    for attempt in range(3):
        pair = honest[2 * attempt : 2 * attempt + 2]
        cohort = tuple(sorted((*helpers, *pair)))
        plan = make_plan(4, cohort=cohort, colluders=len(helpers), attempt=attempt)
        own = {site: ledgers[site] for site in pair}
        held = Federation(plan, ledgers=own, policies=dict.fromkeys(cohort, policy))
        held.run()
        held.publish(bytes([attempt]) * 32)
        held.run()
        ended.append((pair, plan, held.acknowledged))

    assert [acknowledged.quorum for _, _, acknowledged in ended] == [True] * 3
    for which, (_, plan, acknowledged) in enumerate(ended):
        previous = acknowledged.previous
        following = replace(
            plan,
            round_number=2,
            attempt=0,
            model_hash=bytes([which]) * 32,
            previous_result=previous.digest,
            cohort=tuple(sorted((*helpers, *honest))),
            **_thresholds(8),
        )
        opened = seal(
            RoundOpen(following.context, COORDINATOR, following.to_bytes(), previous.link)
        )
        for pair, _, _ in ended:
            for site in pair:
                session = secagg.SiteSession(
                    site=site,
                    signing_key=signing_key(site),
                    roster=plan.roster,
                    policy=policy,
                    entropy=fixed_entropy(9),
                    ledger=_copy(ledgers[site]),
                )
                (effect,) = session.handle(opened)
                own = site in ended[which][0]
                assert isinstance(effect, secagg.Send if own else secagg.Withdraw)
                assert own or effect.code == "equivocation"


def _thresholds(sites: int) -> dict[str, int]:
    like = make_plan(sites, colluders=2)
    return {name: getattr(like, name) for name in ("vote_quorum", "share_threshold", "ring_bits")}
