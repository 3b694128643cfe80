"""The result of a round and its acknowledgements, and what a next round demands of them."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from reference import secagg as reference
from support.links import round_before, sealed
from support.secagg import (
    NAMES,
    ZERO_HASH,
    Federation,
    consortium,
    fixed_entropy,
    forge,
    make_contributions,
    make_plan,
    read,
    seal,
    signing_key,
    small_arrays,
)
from veilsum import secagg
from veilsum._native import Secret
from veilsum.errors import ConfigError, DecodeError, LedgerError
from veilsum.secagg.egress_summary import EgressSummary, Sent
from veilsum.secagg.envelope import Envelope
from veilsum.secagg.ledger import Ledger, attempt_of
from veilsum.secagg.ledger_records import AckSent, Opened, Overtaken, VoteCast
from veilsum.secagg.messages import RoundOpen
from veilsum.secagg.payload import COORDINATOR, read_payload
from veilsum.secagg.refusals import RefusalCode, open_refusal
from veilsum.secagg.result_checks import open_link
from veilsum.secagg.result_messages import Link, ResultAck, RoundResult, acks_digest
from veilsum.transport.ledger_file import adopt_ledger, open_ledger

SITES = NAMES[:5]
BASEL, KYOTO, LYON, OSLO, QUITO = SITES
NEW_MODEL = b"n" * 32
ROSTER = consortium().roster


def published(seed: int = 1, **settings: Any) -> Federation:
    """A round whose result is on its way to the sites."""
    federation = Federation(make_plan(5, colluders=1), seed=seed, **settings)
    federation.run()
    federation.publish(NEW_MODEL)
    return federation


def settled(**settings: Any) -> Federation:
    federation = published(**settings)
    federation.run()
    return federation


def signer(name: str) -> Any:
    return signing_key("" if name == "coordinator" else name)


def withdrew(effects: list[secagg.SiteEffect], code: str, text: str) -> None:
    (effect,) = effects
    assert isinstance(effect, secagg.Withdraw)
    assert (effect.code, text in effect.reason) == (code, True), effect


# --- the result and its acknowledgement -----------------------------------------------------


def test_a_result_says_what_the_sites_saw_and_the_reference_computes():
    federation = published()
    result = read(RoundResult, federation.sent[-1][2])

    digests = {
        kind: {
            site: hashlib.sha256(payload).digest()
            for site, payload in federation.payloads(kind).items()
        }
        for kind in ("masked-input", "unmask-shares", "survivor-certificate", "share-deal")
    }
    t1 = reference.chain(
        "T1",
        federation.plan.context,
        {
            site: hashlib.sha256(payload).digest()
            for site, payload in federation.payloads("key-advert").items()
        },
    )
    t3 = reference.chain(
        "T3", reference.chain("T2", t1, digests["share-deal"]), digests["masked-input"]
    )
    assert result.t3 == t3
    assert result.t4 == reference.chain("T4", t3, digests["unmask-shares"])
    assert result.certificate == digests["survivor-certificate"][""]
    weights = [federation.contributions[site].weight for site in SITES]
    assert result.total_weight == sum(weights)
    assert (result.model_hash, result.state_hash) == (NEW_MODEL, ZERO_HASH)
    assert [(root.stream, root.bits) for root in result.roots] == [(0, 64), (1, 21), (2, 64)]


def test_the_roots_are_over_the_plain_sum():
    """Stream 0, by hand: weight, count, then of the metric its weighted steps and weight."""
    federation = published()
    result = read(RoundResult, federation.sent[-1][2])
    given = [federation.contributions[site] for site in SITES]
    reported = [one for one in given if one.metrics]
    words = [
        sum(one.weight for one in given),
        len(given),
        sum(one.weight * round(one.metrics["loss"] * 2**20) for one in reported),
        sum(one.weight for one in reported),
    ]
    packed = b"".join(struct.pack("<Q", word) for word in words)

    leaf = hashlib.sha256(b"\0" + struct.pack("<IQ", 0, 0) + packed).digest()
    assert result.roots[0].root == leaf


def test_a_round_that_is_published_ends_with_everybody_s_acknowledgement():
    federation = settled()

    done = federation.acknowledged
    assert done.quorum
    last = open_link(ROSTER, done.previous.link)
    assert tuple(last.acks) == SITES
    assert last.acknowledged
    assert last.digest == done.previous.digest
    assert last.plan == federation.plan
    assert {ack.checked for ack in last.acks.values()} == {1}
    assert {session.phase for session in federation.sites.values()} == {"done"}
    assert federation.coordinator.phase == "completed"


def test_the_digest_of_the_acknowledgements_is_the_one_that_is_written_down():
    link = settled().acknowledged.previous.link
    parts = [link.result.payload_digest, struct.pack("<I", 5)]
    for site, ack in zip(SITES, link.acks, strict=True):
        parts += [struct.pack("<I", len(site)), site.encode(), ack.payload_digest]

    expected = hashlib.sha256(b"veilsum/v1/acks\0" + b"".join(parts)).digest()
    assert open_link(ROSTER, link).digest == expected


def test_an_acknowledgement_says_what_left_the_site_in_the_round():
    said = [
        EgressSummary(b"1" * 32, (Sent("hello", 1, 40),)),
        EgressSummary(b"2" * 32, (Sent("hello", 1, 40), Sent("key-advert", 1, 210))),
    ]
    federation = Federation(make_plan(5, colluders=1))
    session = secagg.SiteSession(
        site=LYON,
        signing_key=signing_key(LYON),
        roster=ROSTER,
        policy=secagg.LocalPolicy(min_colluders=1),
        entropy=fixed_entropy(1002),
        ledger=Ledger.in_memory(Secret.zeros),
        egress=lambda: said.pop(0),
    )
    federation.sites[LYON] = session
    federation.run()
    federation.publish(NEW_MODEL)
    federation.run()

    ack = open_link(ROSTER, federation.acknowledged.previous.link).acks[LYON]
    assert ack.egress == EgressSummary(b"2" * 32, (Sent("key-advert", 1, 210),))


def test_a_repeated_result_gets_the_identical_acknowledgement():
    federation = published()
    message = federation.hold("round-result", to=LYON)
    session = federation.sites[LYON]

    (ready,) = session.handle(message)
    assert isinstance(ready, secagg.ResultReady)
    assert ready.survivors == SITES
    assert session.handle(message) == []  # it is still being checked
    (ack,) = session.checked_result(1)
    assert session.handle(message) == [ack]
    with pytest.raises(ConfigError, match="no result to check"):
        session.checked_result(1)


def test_a_second_result_is_equivocation_and_its_site_says_so_under_its_signature():
    federation = published()
    message = federation.hold("round-result", to=LYON)
    session = federation.sites[LYON]
    session.handle(message)

    other = forge(RoundResult, message, model_hash=b"o" * 32)
    blamed, withdrawn = session.handle(other)
    withdrew([withdrawn], "equivocation", "round-result")
    assert isinstance(blamed, secagg.Blamed)
    assert blamed.accused == COORDINATOR
    context = federation.plan.context
    code = open_refusal(ROSTER, LYON, context, session.refusal)
    assert code is RefusalCode.EQUIVOCATION


def test_what_another_signed_is_not_called_a_second_result():
    federation = published()
    message = federation.hold("round-result", to=LYON)
    session = federation.sites[LYON]
    session.handle(message)

    other = seal(replace(read(RoundResult, message), model_hash=b"o" * 32), signer=KYOTO)
    withdrew(session.handle(other), "malformed", "another key")


def another_answer(result: RoundResult) -> dict[str, Any]:
    return {"responders": tuple((s, b"x" * 32 if s == LYON else d) for s, d in result.responders)}


LIES: list[tuple[Callable[[RoundResult], dict[str, Any]], str, str]] = [
    (lambda _: {"t3": b"x" * 32}, "result", "another survivor set"),
    (lambda _: {"certificate": b"x" * 32}, "result", "another certificate"),
    (lambda one: {"roots": one.roots[:2]}, "malformed", "roots of the sum"),
    (
        lambda one: {"roots": (*one.roots[:2], replace(one.roots[2], elements=4))},
        "malformed",
        "roots of the sum",
    ),
    (lambda _: {"total_weight": 0}, "result", "total weight"),
    (lambda _: {"total_weight": 501}, "result", "total weight"),
    (lambda one: {"responders": one.responders[::-1]}, "result", "sort"),
    (lambda one: {"responders": (one.responders[0], *one.responders)}, "result", "repeats"),
    (lambda one: {"responders": one.responders[1:4]}, "result", "too few"),
    (
        lambda one: {"responders": (*one.responders, ("riga", b"x" * 32))},
        "result",
        "without shares",
    ),
    (
        lambda one: {"responders": tuple(r for r in one.responders if r[0] != LYON)},
        "result",
        "the answer that this site gave",
    ),
    (another_answer, "result", "the answer that this site gave"),
]


@pytest.mark.parametrize(("lie", "code", "text"), LIES)
def test_a_result_that_does_not_fit_what_the_site_saw_is_not_acknowledged(lie, code, text):
    federation = published()
    message = federation.hold("round-result", to=LYON)
    session = federation.sites[LYON]

    withdrew(
        session.handle(forge(RoundResult, message, **lie(read(RoundResult, message)))), code, text
    )
    assert session.phase == "withdrawn"
    assert open_refusal(ROSTER, LYON, federation.plan.context, session.refusal)


def test_a_result_before_its_time_or_of_another_attempt_is_refused():
    federation = published()
    message = federation.hold("round-result", to=LYON)
    early = Federation(make_plan(5, colluders=1))
    early.hold("survivor-certificate", to=LYON)
    withdrew(early.sites[LYON].handle(message), "protocol", "'round-result'")

    other = Federation(make_plan(5, colluders=1, attempt=1))
    other.run()
    withdrew(other.sites[LYON].handle(message), "malformed", "another round or attempt")


def test_a_site_may_reject_what_it_has_checked_and_the_round_stays():
    federation = published()
    message = federation.hold("round-result", to=LYON)
    session = federation.sites[LYON]
    session.handle(message)

    withdrew(session.reject_result("the model does not follow"), "model", "does not follow")
    federation.from_coordinator(federation.coordinator.handle(LYON, session.refusal))
    federation.run()

    assert federation.excluded == {LYON: f"refused (model): {secagg.refusals.TEXTS[17]}"}
    assert tuple(open_link(ROSTER, federation.acknowledged.previous.link).acks) == tuple(
        site for site in SITES if site != LYON
    )
    assert federation.acknowledged.quorum


def test_an_acknowledgement_that_cannot_be_written_down_does_not_leave():
    def full_from_the_ack_on(record: object) -> None:
        if isinstance(record, AckSent):
            raise LedgerError("the disk is full")

    ledger = Ledger(Secret.zeros(32), full_from_the_ack_on)
    federation = Federation(make_plan(5, colluders=1), ledgers={LYON: ledger})
    federation.run()
    federation.publish(NEW_MODEL)
    session = federation.sites[LYON]
    session.handle(federation.hold("round-result", to=LYON))

    withdrew(session.checked_result(0), "ledger", "cannot be written")


# --- the coordinator's side -----------------------------------------------------------------


def test_acknowledgements_of_others_or_of_another_result_are_refused():
    federation = published()
    message = federation.hold("result-ack", origin=LYON)
    coordinator = federation.coordinator

    for wrong in (
        forge(ResultAck, message, result=b"x" * 32),
        seal(replace(read(ResultAck, message), sender=KYOTO)),
        forge(ResultAck, message, context=b"x" * 32),
    ):
        federation = published()
        federation.hold("result-ack", origin=LYON)
        (excluded,) = federation.coordinator.handle(LYON, wrong)
        assert isinstance(excluded, secagg.Excluded)
    (excluded,) = coordinator.handle("turin", message)[:1] or [None]
    assert excluded is None  # no member of the round: nothing to exclude


def test_a_result_is_published_once_and_only_if_there_is_one():
    federation = Federation(make_plan(5, colluders=1))
    with pytest.raises(ConfigError, match="no result to publish in phase 'keys'"):
        federation.coordinator.publish(NEW_MODEL, ZERO_HASH)

    federation = published()
    with pytest.raises(ConfigError, match="no result to publish in phase 'acks'"):
        federation.coordinator.publish(NEW_MODEL, ZERO_HASH)


def test_a_deadline_ends_the_wait_and_the_round_keeps_its_result():
    federation = published()
    for site in (KYOTO, LYON):
        federation.hold("result-ack", origin=site)
    federation.run()
    late = published()
    late.hold("result-ack", origin=LYON)
    late.run()

    effects = late.coordinator.close_phase()

    assert effects[0] == secagg.Excluded(LYON, "sent no acknowledgement in time")
    (done,) = effects[1:]
    assert isinstance(done, secagg.Acknowledged)
    assert done.quorum

    effects = federation.coordinator.close_phase()
    assert isinstance(effects[-1], secagg.Acknowledged)
    assert not effects[-1].quorum
    assert federation.coordinator.phase == "completed"


def test_an_abort_does_not_take_a_result_back():
    federation = published()

    assert federation.coordinator.abort("stop") == []
    assert federation.coordinator.phase == "completed"


# --- the next round ---------------------------------------------------------------------------


def next_plan(previous: secagg.PreviousRound, **changes: Any) -> secagg.Plan:
    fields = {
        "round_number": 2,
        "model_hash": NEW_MODEL,
        "previous_result": previous.digest,
        "nonce": b"2" * 32,
        "colluders": 1,
    }
    return make_plan(5, **{**fields, **changes})


def second_round(ledgers: dict[str, Ledger], previous: secagg.PreviousRound) -> Federation:
    plan = next_plan(previous)
    trained_on = make_contributions(plan, lambda number: small_arrays(100 + number))
    federation = Federation(
        plan, contributions=trained_on, ledgers=ledgers, previous=previous, seed=2
    )
    federation.run()
    return federation


def invitation(plan: secagg.Plan, link: Link | None) -> bytes:
    return seal(RoundOpen(plan.context, COORDINATOR, plan.to_bytes(), link))


def site_of(ledger: Ledger | None = None, site: str = LYON, **policy: Any) -> secagg.SiteSession:
    return secagg.SiteSession(
        site=site,
        signing_key=signing_key(site),
        roster=ROSTER,
        policy=secagg.LocalPolicy(**{"min_colluders": 1, **policy}),
        entropy=fixed_entropy(7),
        ledger=ledger or Ledger.in_memory(Secret.zeros),
    )


def fabricated(**settings: Any) -> secagg.PreviousRound:
    chosen = {"model_hash": NEW_MODEL, "acks": (BASEL, KYOTO, OSLO, QUITO)}
    return round_before(make_plan(5, colluders=1), signer, **{**chosen, **settings})


def test_the_second_round_follows_the_first():
    ledgers = {site: Ledger.in_memory(Secret.zeros) for site in SITES}
    previous = settled(ledgers=ledgers).acknowledged.previous

    federation = second_round(ledgers, previous)

    assert federation.result.sites == SITES
    assert {ledgers[site].last_model("diagnosis") for site in SITES} == {NEW_MODEL}


def test_a_coordinator_cannot_plan_a_round_that_follows_another():
    previous = settled().acknowledged.previous

    for plan, given in ((next_plan(previous), None), (make_plan(5, colluders=1), previous)):
        with pytest.raises(ConfigError, match="does not follow the round"):
            secagg.CoordinatorSession(
                plan, signing_key=signing_key(""), audit_seed=bytes(32), previous=given
            )


def takes_part(effects: list[secagg.SiteEffect]) -> bool:
    return isinstance(effects[0], secagg.Send)


def test_a_site_that_was_not_in_the_last_round_believes_its_quorum():
    previous = fabricated()

    assert takes_part(site_of().handle(invitation(next_plan(previous), previous.link)))


def test_a_site_that_wants_to_have_seen_every_result_refuses_after_a_missed_round():
    previous = fabricated()
    session = site_of(missed_rounds="refuse")

    withdrew(
        session.handle(invitation(next_plan(previous), previous.link)),
        "result",
        "did not acknowledge",
    )


def acks_of(link: Link, *sites: str) -> Link:
    """The same result with these acknowledgements."""
    digest, plan = link.result.payload_digest, make_plan(5, colluders=1)
    acks = [
        sealed(ResultAck(plan.context, site, digest, 0, secagg.no_egress()), signing_key(site))
        for site in sites
    ]
    return replace(link, acks=tuple(acks))


QUORUM_CASES = [
    (("basel", "kyoto", "oslo"), "result", "3 sites acknowledged the last result, 4 are needed"),
    ((), "result", "0 sites acknowledged"),
    (("basel", "kyoto", "kyoto", "oslo"), "malformed", "repeated or not sorted"),
    (("basel", "kyoto", "oslo", "riga"), "malformed", "nobody in the cohort"),
]


@pytest.mark.parametrize(("sites", "code", "text"), QUORUM_CASES)
def test_fewer_than_a_quorum_of_distinct_members_are_not_enough(sites, code, text, monkeypatch):
    link = acks_of(fabricated().link, *sites)
    digests = {site: ack.payload_digest for site, ack in zip(sites, link.acks, strict=True)}
    digest = acks_digest(link.result.payload_digest, digests)
    previous = secagg.PreviousRound(link, digest, ZERO_HASH, frozenset())

    withdrew(site_of().handle(invitation(next_plan(previous), link)), code, text)
    with monkeypatch.context() as variant:
        variant.setattr("veilsum.secagg.origin.check_last_round", lambda *_: None)
        assert takes_part(site_of().handle(invitation(next_plan(previous), link)))


def changed_result(**changes: Any) -> Callable[[Link], Link]:
    def change(link: Link) -> Link:
        message = read_payload(RoundResult, link.result.payload, context=None)
        return replace(link, result=sealed(replace(message, **changes), signing_key("")))

    return change


def signed_by_a_site(link: Link) -> Link:
    message = read_payload(RoundResult, link.result.payload, context=None)
    return replace(link, result=sealed(message, signing_key(KYOTO)))


def of_another_manifest(link: Link) -> Link:
    return replace(link, manifest=make_plan(5, colluders=1, nonce=b"9" * 32).to_bytes())


def broken_manifest(link: Link) -> Link:
    return replace(link, manifest=link.manifest[:-1])


@pytest.mark.parametrize(
    ("change", "code", "text"),
    [
        (changed_result(total_weight=2), "malformed", "acknowledged another result"),
        (changed_result(context=b"x" * 32), "malformed", "another round or attempt"),
        (signed_by_a_site, "malformed", "another key"),
        (of_another_manifest, "malformed", "another round or attempt"),
        (broken_manifest, "malformed", "needs"),
        (lambda link: replace(link, acks=link.acks[::-1]), "malformed", "not sorted"),
    ],
)
def test_a_link_whose_parts_do_not_belong_together_is_refused(change, code, text):
    previous = fabricated()
    plan = next_plan(previous)

    withdrew(site_of().handle(invitation(plan, change(previous.link))), code, text)


def test_a_plan_that_follows_something_else_is_refused():
    previous, others = fabricated(), fabricated(acks=(BASEL, KYOTO, LYON, OSLO))
    wrong = [
        (next_plan(previous, previous_result=b"x" * 32), previous, "follows another result"),
        (next_plan(others), previous, "follows another result"),
        (next_plan(previous, round_number=3), previous, "not that of the round before"),
        (next_plan(previous, run_id="run-2"), previous, "not that of the round before"),
        (next_plan(previous, task_id="triage"), previous, "not that of the round before"),
    ]
    for plan, given, text in wrong:
        withdrew(site_of().handle(invitation(plan, given.link)), "result", text)
    for change in ({"model_hash": b"o" * 32}, {"state_hash": b"o" * 32}):
        plan = next_plan(previous, **change)
        withdrew(site_of().handle(invitation(plan, previous.link)), "model", "another")


def test_only_a_first_round_follows_nothing():
    previous = fabricated()
    nothing = next_plan(previous, previous_result=ZERO_HASH)
    text = "the first round follows no result"

    withdrew(site_of().handle(invitation(nothing, None)), "result", text)
    withdrew(site_of().handle(invitation(nothing, previous.link)), "result", text)
    withdrew(site_of().handle(invitation(next_plan(previous), None)), "result", text)
    first = make_plan(5, colluders=1, previous_result=previous.digest)
    withdrew(site_of().handle(invitation(first, previous.link)), "result", text)
    withdrew(site_of().handle(invitation(make_plan(5, colluders=1), previous.link)), "result", text)


def test_a_last_round_that_the_policy_would_have_refused_proves_nothing():
    weak = round_before(
        make_plan(5, colluders=0),
        signer,
        model_hash=NEW_MODEL,
        acks=(BASEL, KYOTO, OSLO, QUITO),
    )

    withdrew(site_of().handle(invitation(next_plan(weak), weak.link)), "policy", "colluders is 0")


def test_a_site_knows_the_result_it_acknowledged():
    plan = make_plan(5, colluders=1)
    ledger = Ledger.in_memory(Secret.zeros)
    attempt = attempt_of(plan)
    for record in (
        Opened(attempt, plan.hash),
        VoteCast(attempt, b"3" * 32, SITES),
        AckSent(attempt, b"r" * 32, NEW_MODEL),
    ):
        ledger.remember(record)
    previous = fabricated()

    session = site_of(ledger)
    withdrew(
        session.handle(invitation(next_plan(previous), previous.link)),
        "equivocation",
        "acknowledged another result of that round",
    )


def test_a_site_knows_what_it_voted_for():
    plan = make_plan(5, colluders=1)
    ledger = Ledger.in_memory(Secret.zeros)
    ledger.remember(Opened(attempt_of(plan), plan.hash))
    ledger.remember(VoteCast(attempt_of(plan), b"3" * 32, SITES))
    previous = fabricated()

    session = site_of(ledger)
    withdrew(
        session.handle(invitation(next_plan(previous), previous.link)),
        "result",
        "another survivor set than this site's vote",
    )


def test_a_site_that_was_restarted_before_its_acknowledgement_goes_on():
    ledgers = {site: Ledger.in_memory(Secret.zeros) for site in SITES}
    federation = published(ledgers=ledgers)
    federation.hold("round-result", to=LYON)  # and the site's process ends
    federation.from_coordinator(federation.coordinator.lost(LYON, "is gone"))
    federation.run()
    previous = federation.acknowledged.previous
    assert LYON not in open_link(ROSTER, previous.link).acks

    again = second_round(ledgers, previous)

    assert again.result.sites == SITES


# --- a ledger that is older than what the site has signed -------------------------------------


def restored_before_its_acknowledgement(folder: Any) -> tuple[Any, secagg.PreviousRound]:
    """A ledger that was overwritten in place with what it held before the site's vote."""
    file = open_ledger(folder)
    ledgers = {LYON: file.ledger()}
    federation = Federation(make_plan(5, colluders=1), ledgers=ledgers)
    federation.hold("survivor-proposal", to=LYON)
    backup = (folder / "ledger.vsl").read_bytes()
    federation = published(ledgers={LYON: Ledger.in_memory(Secret.zeros)})
    federation.run()
    file.close()
    (folder / "ledger.vsl").write_bytes(backup)
    return folder, federation.acknowledged.previous


def test_a_restored_ledger_is_found_by_the_acknowledgements_and_not_used_again(tmp_path):
    folder, previous = restored_before_its_acknowledgement(tmp_path / "ledger")
    file = open_ledger(folder)  # the place is right: nothing on it can tell
    refusal = "older than what the site has signed"
    message = invitation(next_plan(previous), previous.link)

    withdrew(site_of(file.ledger()).handle(message), "ledger", refusal)

    # Nor in a round that does not bring its acknowledgement any more, nor in another run.
    fresh = invitation(make_plan(5, colluders=1, run_id="run-2"), None)
    file.close()
    with pytest.raises(LedgerError, match="older than what this site has signed"):
        open_ledger(folder)
    assert adopt_ledger(folder) > 0
    file = open_ledger(folder)
    assert takes_part(site_of(file.ledger()).handle(fresh))
    file.close()


def test_an_overtaken_ledger_refuses_in_the_same_process_as_well():
    ledger = Ledger.in_memory(Secret.zeros)
    previous = fabricated(acks=SITES)
    withdrew(
        site_of(ledger).handle(invitation(next_plan(previous), previous.link)), "ledger", "older"
    )

    withdrew(
        site_of(ledger).handle(invitation(make_plan(5, colluders=1, run_id="run-2"), None)),
        "ledger",
        "older",
    )


def test_an_old_round_played_again_does_not_make_a_good_ledger_look_old():
    ledgers = {site: Ledger.in_memory(Secret.zeros) for site in SITES}
    first = settled(ledgers=ledgers).acknowledged.previous
    second = second_round(ledgers, first)
    second.publish(b"m" * 32)
    second.run()
    message = invitation(next_plan(first), first.link)

    withdrew(site_of(ledgers[LYON]).handle(message), "replay", "already")
    third = second.acknowledged.previous
    plan = next_plan(third, round_number=3, model_hash=b"m" * 32)
    assert takes_part(site_of(ledgers[LYON]).handle(invitation(plan, third.link)))


def test_no_attempt_follows_a_result_that_was_acknowledged():
    plan = make_plan(5, colluders=1)
    ledger = Ledger.in_memory(Secret.zeros)
    for record in (
        Opened(attempt_of(plan), plan.hash),
        VoteCast(attempt_of(plan), b"3" * 32, SITES),
        AckSent(attempt_of(plan), b"r" * 32, NEW_MODEL),
    ):
        ledger.remember(record)

    retried = make_plan(5, colluders=1, attempt=1)
    withdrew(site_of(ledger).handle(invitation(retried, None)), "replay", "already")


# --- encodings --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [RoundResult, ResultAck])
def test_messages_have_one_encoding(kind):
    federation = settled()
    payload = next(iter(federation.payloads(kind.kind).values()))

    assert read_payload(kind, payload, context=federation.plan.context).to_payload() == payload
    for data in (payload[:-1], payload + b"\0", b""):
        with pytest.raises(DecodeError):
            read_payload(kind, data, context=None)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"checked": 4}, "level 3 at most"),
        ({"egress": EgressSummary(ZERO_HASH, (Sent("b", 1, 1), Sent("a", 1, 1)))}, "not sorted"),
        ({"egress": EgressSummary(ZERO_HASH, (Sent("a", 1, 1), Sent("a", 1, 1)))}, "repeated"),
        ({"egress": EgressSummary(ZERO_HASH, (Sent("\x1b[2J", 1, 1),))}, "no name"),
        ({"egress": EgressSummary(ZERO_HASH, (Sent("", 1, 1),))}, "no name"),
    ],
)
def test_an_acknowledgement_that_makes_no_sense_does_not_decode(changes, text):
    ack = ResultAck(b"c" * 32, LYON, b"r" * 32, 0, secagg.no_egress())
    with pytest.raises(DecodeError, match=text):
        read_payload(ResultAck, replace(ack, **changes).to_payload(), context=None)


def test_an_invitation_has_one_encoding_with_and_without_a_round_before():
    previous = fabricated()
    for link in (None, previous.link):
        message = RoundOpen(b"c" * 32, COORDINATOR, b"manifest", link)
        assert read_payload(RoundOpen, message.to_payload(), context=None) == message
    flagged = RoundOpen(b"c" * 32, COORDINATOR, b"manifest", previous.link).to_payload()
    at = flagged.index(b"manifest") + len(b"manifest")
    with pytest.raises(DecodeError, match="canonical"):
        read_payload(RoundOpen, flagged[:at] + b"\2" + flagged[at + 1 :], context=None)


def test_a_ledger_refuses_acknowledgements_out_of_order():
    plan = make_plan(5, colluders=1)
    attempt = attempt_of(plan)
    ack = AckSent(attempt, b"r" * 32, NEW_MODEL)
    ledger = Ledger.in_memory(Secret.zeros)
    for missing in (Opened(attempt, plan.hash), VoteCast(attempt, b"3" * 32, SITES)):
        with pytest.raises(secagg.policy.Refusal):
            ledger.remember(ack)
        ledger.remember(missing)
    ledger.remember(ack)
    with pytest.raises(secagg.policy.Refusal, match="acknowledged a result of it already"):
        ledger.remember(replace(ack, result_digest=b"s" * 32))
    ledger.remember(Overtaken(attempt, b"a" * 32))


def test_envelopes_of_a_link_are_those_that_were_signed():
    previous = settled().acknowledged.previous
    for ack, site in zip(previous.link.acks, SITES, strict=True):
        again = Envelope.from_bytes(ack.to_bytes())
        again.verify("result-ack", ROSTER.signing_key(site))
