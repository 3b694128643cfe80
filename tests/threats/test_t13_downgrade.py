"""T13: the coordinator plans a round with less protection than a site demands, or with none.

The defence: a site holds every plan against its own policy, and recomputes thresholds and ring.
Each row is a plan one step outside, and the nearest plan that is inside. The variant with the
defence removed takes the first one.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest

from support.secagg import NAMES, consortium, fixed_entropy, make_plan
from veilsum import secagg
from veilsum.secagg import payload
from veilsum.secagg.envelope import Envelope
from veilsum.secagg.messages import KeyAdvert, RoundOpen
from veilsum.secagg.payload import COORDINATOR, kind_of
from veilsum.secagg.policy import LocalPolicy

VICTIM = NAMES[0]
LIMITS = {
    "min_invited": 6,
    "min_sites": 6,
    "min_colluders": 1,
    "min_vote_quorum": 5,
    "max_attempts": 2,
    "max_weight_cap": 100,
    "task_ids": frozenset({"diagnosis"}),
    "mask_generators": frozenset({"chacha20"}),
}
INSIDE: dict[str, Any] = {"colluders": 1, "vote_quorum": 5, "share_threshold": 5, "min_sites": 6}

# Outside of the site's policy: what the plan says, and what the refusal names.
OUTSIDE = [
    ({"cohort": NAMES[:5], "min_sites": 5}, "the number of invited sites is 5"),
    ({"min_sites": 5}, "min_sites is 5"),
    ({"colluders": 0}, "colluders is 0"),
    ({"vote_quorum": 4, "share_threshold": 4}, "vote_quorum is 4"),
    ({"attempt": 2}, "this is attempt 3, this site allows 2"),
    ({"weight_cap": 101}, "weight_cap is 101"),
    ({"task_id": "billing"}, "task 'billing'"),
    ({"mask_generator": "aes256ctr"}, "masks of 'aes256ctr'"),
]
# Within every policy, but a plan that protects nobody. Q = 2^15-1, n = 6, h = 2: b = 21.
UNSOUND = [
    ({"vote_quorum": 3, "share_threshold": 3}, "allows two survivor sets"),
    ({"colluders": 2, "vote_quorum": 4, "share_threshold": 4}, "allows two survivor sets"),
    ({"vote_quorum": 7}, "7 votes are needed but only 6 sites"),
    ({"share_threshold": 1}, "share_threshold must be 2"),
    ({"share_threshold": 6}, "share_threshold must be 2"),
    ({"min_sites": 2}, "min_sites must be 3 to 6"),
    ({"min_sites": 7}, "min_sites must be 3 to 6"),
    ({"cohort": NAMES[:2]}, "needs 3 sites or more"),
    ({"ring_bits": 20}, "need a ring of 21 to 64 bits"),
    ({"headroom": 1}, "headroom must be 2 to 32"),
    ({"value_bits": 17}, "need a ring of 22 to 64 bits"),
    ({"weight_cap": 2**31}, "weight_cap must be 1 to"),
    ({"metric_limit": 2**62}, "metric_limit must be 1 to"),
    ({"integer_limit": 2**60}, "does not fit below"),
]


def _plan(**changes: Any) -> secagg.Plan:
    return make_plan(6, **{**INSIDE, **changes})


def _lying(changes: dict[str, Any]) -> secagg.Plan:
    """A plan that was never held against itself, as a malicious coordinator writes it."""
    plan = copy.copy(_plan())
    for name in ("hash", "context", "ring", "rotation_key"):
        plan.__dict__.pop(name, None)
    for name, value in changes.items():
        object.__setattr__(plan, name, value)
    return plan


def _invitation(plan: secagg.Plan) -> bytes:
    opened = RoundOpen(plan.context, COORDINATOR, plan.to_bytes())
    key = consortium().coordinator_key
    return Envelope.sign(opened.kind, opened.to_payload(), key).to_bytes()


def _answer(invitation: bytes) -> secagg.SiteEffect:
    session = secagg.SiteSession(
        site=VICTIM,
        signing_key=consortium().site_keys[VICTIM],
        roster=consortium().roster,
        policy=LocalPolicy(**LIMITS),
        entropy=fixed_entropy(13),
        ledger=secagg.Ledger.in_memory(fixed_entropy(13)),
    )
    return session.handle(invitation)[-1]


def _takes_part(effect: secagg.SiteEffect) -> bool:
    return (
        isinstance(effect, secagg.Send)
        and kind_of(Envelope.from_bytes(effect.message).payload) == KeyAdvert.kind
    )


def _refused(effect: secagg.SiteEffect, code: str, reason: str) -> bool:
    return isinstance(effect, secagg.Withdraw) and effect.code == code and reason in effect.reason


def test_a_plan_at_every_limit_is_taken() -> None:
    assert _takes_part(_answer(_invitation(_plan(weight_cap=100, attempt=1))))


@pytest.mark.parametrize(("changes", "reason"), OUTSIDE, ids=lambda value: str(value)[:40])
def test_a_plan_one_step_outside_of_the_policy_is_refused(
    changes: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    invitation = _invitation(_plan(**changes))

    with monkeypatch.context() as variant:
        variant.setattr(LocalPolicy, "check", lambda _policy, _plan: None)
        assert _takes_part(_answer(invitation))
    assert _refused(_answer(invitation), "policy", reason)


@pytest.mark.parametrize(("changes", "reason"), UNSOUND, ids=lambda value: str(value)[:40])
def test_a_plan_that_does_not_protect_is_refused_whatever_the_policy(
    changes: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    invitation = _invitation(_lying(changes))

    with monkeypatch.context() as variant:
        variant.setattr(secagg.Plan, "__post_init__", lambda _plan: None)
        variant.setattr(LocalPolicy, "check", lambda _policy, _plan: None)
        assert _takes_part(_answer(invitation))
    assert _refused(_answer(invitation), "plan", reason)


def test_every_limit_of_the_policy_is_in_the_matrix() -> None:
    """A new limit must come with its row above."""
    # About what the site remembers or checks afterwards, not the plan; and about the suite,
    # which no plan chooses.
    elsewhere = {
        "cohort_difference",
        "spent",
        "missed_rounds",
        "suites",
        "provenance",
        "start_models",
        "audit",
    }
    assert set(LocalPolicy.__dataclass_fields__) - elsewhere == set(LIMITS)
    assert len(OUTSIDE) == len(LIMITS)


def test_an_unknown_suite_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = _plan()
    with monkeypatch.context() as other:
        other.setattr(payload, "SUITE", 0)
        invitation = _invitation(plan)
        assert not isinstance(_answer(invitation), secagg.Withdraw)  # the variant: any suite

    assert _refused(_answer(invitation), "malformed", "expected suite 1, got 0")


def test_an_older_manifest_is_refused() -> None:
    plan = _plan()
    older = b"VSP2" + plan.to_bytes()[4:]
    opened = RoundOpen(plan.context, COORDINATOR, older)
    envelope = Envelope.sign(opened.kind, opened.to_payload(), consortium().coordinator_key)

    assert _refused(_answer(envelope.to_bytes()), "malformed", "no manifest of this version")
