"""T11: the coordinator names one model to a victim and another to everybody else.

What the victim does to its model would show in the sum, if the others' updates have nothing there.
Two defences: the hash of the model is in the context of every message and key, so that two models
are two rounds that have no key in common; and a site refuses a model that it does not know before
it has a key. The variant with the first removed has contexts without the model in them.
"""

from __future__ import annotations

import pytest

from support.secagg import NAMES, Federation, forge, kind_on_the_wire, make_plan
from veilsum import secagg
from veilsum._native import Secret
from veilsum.secagg.envelope import Envelope
from veilsum.secagg.ledger_records import ModelKnown
from veilsum.secagg.messages import KeyRoster, RoundOpen
from veilsum.secagg.policy import LocalPolicy

SITES = NAMES[:5]
VICTIM = SITES[4]
OTHERS = SITES[:4]
COMMON, SPECIAL = b"\1" * 32, b"\2" * 32
CREDULOUS = LocalPolicy(min_colluders=1, provenance="off")
CAREFUL = LocalPolicy(min_colluders=1)


def _plan(model: bytes) -> secagg.Plan:
    return make_plan(5, colluders=1, model_hash=model, metrics=())


def _ledgers() -> dict[str, secagg.Ledger]:
    """All sites know the common model, from an earlier run."""
    ledgers = {site: secagg.Ledger.in_memory(Secret.from_os) for site in SITES}
    for ledger in ledgers.values():
        ledger.remember(ModelKnown("diagnosis", COMMON, bytes(32)))
    return ledgers


def _split(policy: LocalPolicy) -> Federation:
    """A round whose invitation names another model to the victim than to the rest."""
    federation = Federation(
        _plan(COMMON), policies=dict.fromkeys(SITES, policy), ledgers=_ledgers()
    )
    special = _plan(SPECIAL)
    for number, (origin, to, message) in enumerate(federation.queue):
        if to == VICTIM:
            told = forge(RoundOpen, message, context=special.context, manifest=special.to_bytes())
            federation.queue[number] = (origin, to, told)
    return federation


def _withdrawn(federation: Federation) -> list[tuple[str, str]]:
    return [
        (site, effect.code)
        for site, effect in federation.site_effects
        if isinstance(effect, secagg.Withdraw)
    ]


def _models(federation: Federation) -> set[bytes]:
    plans = [session.plan for session in federation.sites.values()]
    return {plan.model_hash for plan in plans if plan is not None}


def test_without_the_model_in_the_context_both_models_are_in_one_sum(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(secagg.Plan, "context", b"\7" * 32)

    federation = _split(CREDULOUS)
    federation.run()

    assert federation.result.sites == SITES
    assert _models(federation) == {COMMON, SPECIAL}


def test_two_models_are_two_rounds_even_among_sites_that_would_train_from_anything() -> None:
    federation = _split(CREDULOUS)

    federation.run()

    assert _models(federation) == {COMMON, SPECIAL}
    assert federation.result.sites == OTHERS
    assert "belongs to another round or attempt" in federation.excluded[VICTIM]


def test_a_coordinator_that_brings_both_together_is_refused_by_the_rest() -> None:
    """It would have to show them keys that the victim signed for another context."""
    federation = _split(CREDULOUS)
    honest = federation.hold("key-roster", to=OTHERS[0])
    adverts = {
        origin: Envelope.from_bytes(message)
        for origin, to, message in federation.sent
        if to == "" and kind_on_the_wire(message) == "key-advert"
    }
    assert set(adverts) == set(SITES)
    both = forge(KeyRoster, honest, adverts=tuple(adverts[site] for site in SITES))

    effect = federation.sites[OTHERS[0]].handle(both)[-1]

    assert isinstance(effect, secagg.Withdraw)
    assert "belongs to another round or attempt" in effect.reason


def test_the_victim_refuses_before_it_has_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the context would not have told."""
    monkeypatch.setattr(secagg.Plan, "context", b"\7" * 32)

    federation = _split(CAREFUL)
    federation.run()

    assert _withdrawn(federation) == [(VICTIM, "model")]
    assert VICTIM not in federation.payloads("key-advert")
    assert federation.result.sites == OTHERS
