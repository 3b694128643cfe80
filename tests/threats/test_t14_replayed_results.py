"""T14: results and acknowledgements of one attempt are played again into another, and later."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from support.secagg import Federation, make_contributions, make_plan, seal, small_arrays
from threats.rounds import VICTIM, remembering
from veilsum import secagg
from veilsum.secagg import collecting, payload, result_checks, site_answers
from veilsum.secagg.messages import RoundOpen
from veilsum.secagg.payload import COORDINATOR

MODEL = b"n" * 32


def run_of(rounds: int) -> list[Federation]:
    """Rounds of one run, each published and acknowledged."""
    ledgers, held = remembering(), list[Federation]()
    for number in range(1, rounds + 1):
        previous = held[-1].acknowledged.previous if held else None
        plan = make_plan(
            5,
            colluders=1,
            round_number=number,
            model_hash=MODEL if previous else bytes(32),
            previous_result=previous.digest if previous else bytes(32),
        )
        made = make_contributions(plan, lambda site, n=number: small_arrays(100 * n + site))
        federation = Federation(
            plan, ledgers=ledgers, contributions=made, previous=previous, seed=number
        )
        federation.run()
        federation.publish(MODEL)
        federation.run()
        held.append(federation)
    return held


def sent(federation: Federation, kind: str, origin: str, to: str) -> bytes:
    (message,) = [
        message
        for from_, to_, message in federation.sent
        if (from_, to_) == (origin, to)
        and not isinstance(message, secagg.UploadInput)
        and secagg.messages.kind_of_message(message) == kind
    ]
    assert isinstance(message, bytes)
    return message


@pytest.fixture
def any_context(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The defence removed: messages are not held against the attempt they name."""

    def open_any(kind, envelope, public_key, *, sender, context):
        return payload.open_envelope(kind, envelope, public_key, sender=sender, context=None)

    for module in (site_answers, collecting, result_checks):
        monkeypatch.setattr(module, "open_envelope", open_any)
    yield
    monkeypatch.undo()


def replayed_result(changes: dict[str, object]) -> list[secagg.SiteEffect]:
    """A result that names what the site of another attempt expects, but for its context."""
    old = run_of(1)[0]
    result = sent(old, "round-result", "", VICTIM)
    federation = Federation(make_plan(5, colluders=1, **changes))
    federation.run()
    session = federation.sites[VICTIM]
    phase = session._phase
    message = payload.read_payload(
        secagg.result_messages.RoundResult,
        secagg.envelope.Envelope.from_bytes(result).payload,
        context=None,
    )
    fits = {
        "t3": phase.t3,
        "certificate": phase.certificate,
        "responders": tuple(
            (site, phase.answer if site == VICTIM else digest)
            for site, digest in message.responders
        ),
    }
    return session.handle(seal(replace(message, **fits)))


@pytest.mark.parametrize("changes", [{"attempt": 1}, {"run_id": "run-2"}, {"task_id": "triage"}])
def test_a_result_of_another_attempt_is_not_taken(changes):
    (withdrawn,) = replayed_result(changes)

    assert isinstance(withdrawn, secagg.Withdraw)
    assert withdrawn.code == "malformed"
    assert "another round or attempt" in withdrawn.reason


def test_a_site_that_does_not_look_takes_it(any_context):
    (ready,) = replayed_result({"attempt": 1})

    assert isinstance(ready, secagg.ResultReady)


def test_an_acknowledgement_is_one_of_its_round_alone():
    first, second = run_of(2)
    old = sent(first, "result-ack", VICTIM, "")
    late = Federation(make_plan(5, colluders=1, nonce=b"9" * 32))
    late.run()
    late.publish(MODEL)

    (excluded,) = late.coordinator.handle(VICTIM, old)

    assert isinstance(excluded, secagg.Excluded)
    assert "another round or attempt" in excluded.reason
    assert sent(second, "result-ack", VICTIM, "") != old


def opened_again(link_of: Federation, number: int, held: list[Federation]) -> str:
    """Why the victim does not enter a round that follows an older one."""
    previous = link_of.acknowledged.previous
    plan = make_plan(
        5,
        colluders=1,
        round_number=number,
        model_hash=MODEL,
        previous_result=previous.digest,
        nonce=b"8" * 32,
    )
    opened = seal(RoundOpen(plan.context, COORDINATOR, plan.to_bytes(), previous.link))
    session = secagg.SiteSession(
        site=VICTIM,
        signing_key=held[0].sites[VICTIM]._signer.key,
        roster=plan.roster,
        policy=secagg.LocalPolicy(min_colluders=1),
        entropy=held[0].entropies[VICTIM],
        ledger=held[0].sites[VICTIM]._ledger,
    )
    effect = session.handle(opened)[0]
    return effect.code if isinstance(effect, secagg.Withdraw) else "takes part"


def test_a_round_follows_the_one_before_it_and_no_older_one():
    held = run_of(3)

    assert opened_again(held[0], 4, held) == "result"  # two rounds are left out
    assert opened_again(held[0], 2, held) == "replay"  # the run is set back to its second round
    assert opened_again(held[2], 4, held) == "takes part"


def test_of_sites_that_do_not_look_the_run_can_be_set_back(monkeypatch):
    held = run_of(3)
    monkeypatch.setattr("veilsum.secagg.site.check_chain", lambda *_: None)

    assert opened_again(held[0], 4, held) == "takes part"
