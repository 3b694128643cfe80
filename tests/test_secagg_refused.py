"""Signed refusals: for a verified invitation only, kept by the coordinator, checked by anyone."""

from __future__ import annotations

import ast
import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from support.secagg import NAMES, Federation, consortium, fixed_entropy, make_plan
from veilsum import secagg
from veilsum.errors import ConfigError, DecodeError
from veilsum.secagg.envelope import Envelope
from veilsum.secagg.messages import RoundOpen
from veilsum.secagg.payload import COORDINATOR
from veilsum.secagg.policy import LocalPolicy
from veilsum.secagg.refusals import TEXTS, RefusalCode, Refuse, code_of, open_refusal

VICTIM = NAMES[0]
ROSTER = consortium().roster
PLAN = make_plan(6, colluders=1, attempt=1)


def session(**policy) -> secagg.SiteSession:
    return secagg.SiteSession(
        site=VICTIM,
        signing_key=consortium().site_keys[VICTIM],
        roster=ROSTER,
        policy=LocalPolicy(**{"min_colluders": 0, **policy}),
        entropy=fixed_entropy(5),
        ledger=secagg.Ledger.in_memory(fixed_entropy(6)),
    )


def invitation(plan: secagg.Plan = PLAN, key=None, **changes) -> bytes:
    opened = replace(RoundOpen(plan.context, COORDINATOR, plan.to_bytes()), **changes)
    key = key or consortium().coordinator_key
    return Envelope.sign(opened.kind, opened.to_payload(), key).to_bytes()


POLICIES = [
    ({"max_attempts": 1}, RefusalCode.ATTEMPTS),
    ({"min_invited": 7}, RefusalCode.COHORT),
    ({"min_sites": 7}, RefusalCode.CONTRIBUTORS),
    ({"min_colluders": 2}, RefusalCode.COLLUDERS),
    ({"min_vote_quorum": 6}, RefusalCode.QUORUM),
    ({"max_weight_cap": 1}, RefusalCode.WEIGHT_CAP),
    ({"mask_generators": frozenset({"aes256ctr"})}, RefusalCode.GENERATOR),
    ({"task_ids": frozenset()}, RefusalCode.TASK),
]


@pytest.mark.parametrize(("policy", "code"), POLICIES)
def test_a_refusal_of_a_plan_is_signed_and_says_its_code(policy, code):
    site = session(**policy)
    assert site.refusal is None

    site.handle(invitation())

    assert site.refusal is not None
    assert open_refusal(ROSTER, VICTIM, PLAN.context, site.refusal) is code


def test_nothing_of_the_policy_is_in_it():
    """Two sites with different limits refuse with the same payload."""
    payloads = set()
    for limit in (7, 200):
        site = session(min_invited=limit)
        site.handle(invitation())
        payloads.add(Envelope.from_bytes(site.refusal).payload)

    assert len(payloads) == 1


@pytest.mark.parametrize(
    "message",
    [
        b"noise",
        invitation(key=consortium().site_keys[NAMES[1]]),
        invitation(context=bytes(32)),
        invitation(manifest=b"VSP0"),
    ],
    ids=["noise", "another signer", "a context of its own choice", "no manifest"],
)
def test_no_context_is_signed_that_the_site_has_not_computed(message):
    site = session()
    (effect,) = site.handle(message)

    assert isinstance(effect, secagg.Withdraw)
    assert site.refusal is None


def test_a_site_that_stays_signs_no_refusal():
    site = session()
    site.handle(invitation())
    assert site.refusal is None
    site.close()
    assert site.refusal is None


def test_a_later_refusal_is_signed_as_well():
    site = session()
    site.handle(invitation())
    site.handle(invitation(make_plan(6, colluders=1, attempt=1, nonce=b"2" * 32)))

    code = open_refusal(ROSTER, VICTIM, PLAN.context, site.refusal)
    assert code is RefusalCode.EQUIVOCATION


def refused(code: RefusalCode, site: str = VICTIM, context: bytes = PLAN.context) -> bytes:
    message = Refuse(context, site, code)
    return Envelope.sign(
        message.kind, message.to_payload(), consortium().site_keys[site]
    ).to_bytes()


@pytest.mark.parametrize("code", RefusalCode)
def test_every_code_survives_the_wire_and_has_one_text(code):
    assert open_refusal(ROSTER, VICTIM, PLAN.context, refused(code)) is code
    assert 0 < len(TEXTS[code].encode()) <= 256
    assert sum(text == TEXTS[code] for text in TEXTS.values()) == 1


def test_the_numbers_are_fixed():
    numbers = ",".join(f"{code.name}={code.value}" for code in RefusalCode)
    assert hashlib.sha256(numbers.encode()).hexdigest()[:16] == "0e651f85f437eae7"


def test_a_refusal_with_another_text_or_an_unknown_number_is_refused():
    good = Envelope.from_bytes(refused(RefusalCode.TASK)).payload
    text = TEXTS[RefusalCode.TASK].encode()
    for payload in (good.replace(text, text[::-1]), good.replace(b"\x0e\x00", b"\xff\x7f")):
        assert payload != good
        key = consortium().site_keys[VICTIM]
        forged = Envelope.sign(Refuse.kind, payload, key).to_bytes()
        with pytest.raises(DecodeError, match=r"canonical form|no refusal has the code"):
            open_refusal(ROSTER, VICTIM, PLAN.context, forged)


def test_a_refusal_is_evidence_against_nobody_else_and_of_no_other_round():
    good = refused(RefusalCode.TASK)
    for site, context in ((NAMES[1], PLAN.context), (VICTIM, bytes(32))):
        with pytest.raises(DecodeError):
            open_refusal(ROSTER, site, context, good)
    with pytest.raises(ConfigError, match="not in the roster"):
        open_refusal(ROSTER, "mallory", PLAN.context, good)


# --- the coordinator ----------------------------------------------------------------------------


def test_the_coordinator_keeps_a_refusal_and_goes_on_without_the_site():
    federation = Federation(PLAN)
    message = refused(RefusalCode.COLLUDERS)

    kept, excluded, *_ = federation.coordinator.handle(VICTIM, message)

    assert kept == secagg.Refused(VICTIM, RefusalCode.COLLUDERS, message)
    reason = "refused (colluders): too few colluders are assumed"
    assert excluded == secagg.Excluded(VICTIM, reason)
    assert federation.coordinator.handle(VICTIM, message) == []


@pytest.mark.parametrize(
    "message",
    [refused(RefusalCode.TASK, NAMES[1]), refused(RefusalCode.TASK, context=bytes(32))],
    ids=["another site's", "another round's"],
)
def test_a_refusal_that_the_site_did_not_sign_here_is_not_kept(message):
    effects = Federation(PLAN).coordinator.handle(VICTIM, message)

    assert not [effect for effect in effects if isinstance(effect, secagg.Refused)]
    assert isinstance(effects[0], secagg.Excluded)


def test_every_code_of_a_withdrawal_has_its_number():
    names = set()
    for file in Path(secagg.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Refusal":
                names |= {a.value for a in node.args[:1] if isinstance(a, ast.Constant)}
    names.discard("plan")  # raised before there is a context

    assert {name: code_of(name) for name in names}.keys() == names
    assert {"keys", "votes", "bad_share", "protocol"} <= names
