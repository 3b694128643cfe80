"""T11: the coordinator names one model to a victim and another to everybody else.

What the victim does to its model would show in the sum, if the others' updates have nothing there.
Two defences: the hash of the model is in the context of every message and key, so that two models
are two rounds that have no key in common; and a site refuses a model that it does not know before
it has a key. The variant with the first removed has contexts without the model in them.
"""

from __future__ import annotations

from typing import Any

import pytest

from support.secagg import NAMES, Federation, forge, make_plan
from veilsum import secagg
from veilsum._native import Secret
from veilsum.secagg.ledger_records import ModelKnown
from veilsum.secagg.messages import RoundOpen
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
    """A round in which the victim was told of another model than the rest."""
    federation = Federation(
        _plan(COMMON), policies=dict.fromkeys(SITES, policy), ledgers=_ledgers()
    )
    special = _plan(SPECIAL)
    for number, (origin, to, message) in enumerate(federation.queue):
        if to == VICTIM:
            told = forge(RoundOpen, message, context=special.context, manifest=special.to_bytes())
            federation.queue[number] = (origin, to, told)
    federation.run()
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

    assert federation.result.sites == SITES
    assert _models(federation) == {COMMON, SPECIAL}


def test_two_models_are_two_rounds_without_a_key_in_common() -> None:
    """Even among sites that would train from anything."""
    federation = _split(CREDULOUS)

    assert federation.result.sites == OTHERS
    assert "not of this round" in federation.excluded[VICTIM] or VICTIM in federation.excluded
    victim, other = (_secrets(federation, site) for site in (VICTIM, OTHERS[0]))
    assert victim.context != other.context


def _secrets(federation: Federation, site: str) -> Any:
    plan = federation.sites[site].plan
    assert plan is not None
    return plan


def test_the_victim_refuses_before_it_has_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the context would not have told."""
    monkeypatch.setattr(secagg.Plan, "context", b"\7" * 32)

    federation = _split(CAREFUL)

    assert _withdrawn(federation) == [(VICTIM, "model")]
    assert VICTIM not in federation.payloads("key-advert")
    assert federation.result.sites == OTHERS
