"""Receipts of rounds: what they say, and that nothing in one can be changed."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from support.secagg import (
    NAMES,
    ZERO_HASH,
    Federation,
    consortium,
    make_contributions,
    make_plan,
    seal,
    signing_key,
    small_arrays,
)
from veilsum import secagg
from veilsum._native import Secret
from veilsum.errors import DecodeError
from veilsum.roster import Roster, canonical_json
from veilsum.secagg import receipt as receipts
from veilsum.secagg.envelope import Envelope
from veilsum.secagg.messages import SurvivorCertificate
from veilsum.secagg.payload import COORDINATOR, kind_of, read_payload
from veilsum.secagg.receipt import ReceiptFacts, check_chain, check_receipt, receipt_hash
from veilsum.secagg.result_checks import open_link
from veilsum.secagg.result_messages import RoundResult

SITES = NAMES[:5]
ROSTER = consortium().roster
GONE = "quito"
FIELDS = (
    "format", "consortium", "roster", "task", "run", "round", "attempt", "context", "manifest",
    "manifest_hash", "suite", "mask_generator", "thresholds", "model", "transcripts", "advertised",
    "dealt", "survivors", "voters", "certificate", "responders", "sum", "total_weight",
    "mean_digest", "result", "acks", "acknowledged", "checked", "egress", "cohort_difference",
    "previous",
)  # fmt: skip


def held(
    ledgers: dict[str, secagg.Ledger],
    number: int,
    previous: secagg.PreviousRound | None,
    *,
    without: str | None = None,
    mute: tuple[str, ...] = (),
    model: bytes | None = None,
) -> secagg.Acknowledged:
    """One round of a run; models are named after the round they come from."""
    plan = make_plan(
        5,
        colluders=1,
        round_number=number,
        model_hash=model or bytes([number - 1]) * 32,
        previous_result=previous.digest if previous else ZERO_HASH,
        nonce=bytes([number]) * 32,
    )
    made = make_contributions(plan, lambda site: small_arrays(100 * number + site))
    federation = Federation(
        plan, contributions=made, ledgers=ledgers, previous=previous, seed=number
    )
    if without:
        federation.hold("masked-input", origin=without)
        federation.from_coordinator(federation.coordinator.lost(without, "is gone"))
    federation.run()
    federation.publish(bytes([number]) * 32)
    for site in mute:
        federation.hold("result-ack", origin=site)
    federation.run()
    federation.from_coordinator(federation.coordinator.close_phase())
    return federation.acknowledged


@pytest.fixture(scope="module")
def rounds() -> list[secagg.Acknowledged]:
    """Three rounds; in the second a site is missing, in the third one is silent at the end."""
    ledgers = {site: secagg.Ledger.in_memory(Secret.zeros) for site in SITES}
    first = held(ledgers, 1, None)
    second = held(ledgers, 2, first.previous, without=GONE)
    return [first, second, held(ledgers, 3, second.previous, mute=("basel",))]


@pytest.fixture(scope="module")
def chain(rounds: list[secagg.Acknowledged]) -> list[bytes]:
    return [one.receipt for one in rounds]


@pytest.fixture(scope="module")
def first(chain: list[bytes]) -> ReceiptFacts:
    return check_receipt(chain[0], ROSTER)


def body_of(receipt: bytes) -> dict[str, Any]:
    body = json.loads(receipt)["receipt"]
    assert isinstance(body, dict)
    return body


def signed(body: dict[str, Any], name: str = "") -> bytes:
    """By the coordinator, or by somebody else."""
    payload = canonical_json(body)
    signature = Envelope.sign("receipt", payload, signing_key(name)).signature.hex()
    return canonical_json({"receipt": body, "signature": signature})


def refused(data: bytes, text: str, previous: ReceiptFacts | None = None) -> None:
    with pytest.raises(DecodeError, match=text):
        check_receipt(data, ROSTER, previous)


# --- what it says ---------------------------------------------------------------------------


def test_the_receipts_of_a_run_are_a_chain(chain):
    facts = check_chain(chain, ROSTER)

    assert [one.last.plan.round_number for one in facts] == [1, 2, 3]
    assert [one.parts.difference for one in facts] == [None, 1, 1]
    assert [len(one.survivors) for one in facts] == [5, 4, 5]
    assert [one.last.acknowledged for one in facts] == [True, True, True]
    assert [one.parts.previous for one in facts] == [b"", facts[0].hash, facts[1].hash]
    assert [one.hash for one in facts] == [receipt_hash(data) for data in chain]


def test_a_receipt_says_who_took_part_what_left_and_what_came_of_it(chain):
    body = body_of(chain[1])

    assert (body["task"], body["run"], body["round"], body["attempt"]) == (
        "diagnosis",
        "run-1",
        2,
        0,
    )
    assert body["roster"] == {"epoch": 1, "hash": ROSTER.hash.hex()}
    assert list(body["advertised"]) == list(body["dealt"]) == list(SITES)
    assert list(body["survivors"]) == [site for site in SITES if site != GONE]
    assert body["voters"] == list(body["responders"]) == [site for site in SITES if site != GONE]
    assert body["thresholds"] == {
        "invited": 5, "colluders": 1, "vote_quorum": 4, "share_threshold": 4, "min_sites": 3,
    }  # fmt: skip
    assert body["model"] == {"from": "01" * 32, "to": "02" * 32}
    assert body["egress"]["basel"] == {"head": "00" * 32, "sent": {}}
    assert body["checked"] == dict.fromkeys(body["voters"], 1)


def test_the_signature_is_the_coordinator_s_over_the_canonical_body(chain):
    document = json.loads(chain[0])
    body = json.dumps(document["receipt"], sort_keys=True, separators=(",", ":")).encode()
    message = b"veilsum/v1/sig/receipt\0" + hashlib.sha256(body).digest()

    key = Ed25519PublicKey.from_public_bytes(ROSTER.coordinator_key)
    key.verify(bytes.fromhex(document["signature"]), message)


def test_the_messages_in_a_receipt_are_public_ones(chain):
    """No shares, no keys, no parts of updates: votes, result, acknowledgements."""
    body = body_of(chain[0])
    texts = [body["result"], *body["certificate"], *body["acks"]]
    kinds = [kind_of(Envelope.from_bytes(base64.b64decode(text)).payload) for text in texts]

    assert kinds == ["round-result", *["survivor-vote"] * 5, *["result-ack"] * 5]
    assert secagg.Plan.from_bytes(base64.b64decode(body["manifest"]), roster=ROSTER)


# --- what is found --------------------------------------------------------------------------


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to everything in a document that is no container."""
    if isinstance(value, dict):
        return [found for key, item in value.items() for found in leaves(item, (*path, key))]
    if isinstance(value, list):
        return [found for at, item in enumerate(value) for found in leaves(item, (*path, at))]
    return [path]


def changed(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if value is None:
        return 1
    if not value:
        return "00" * 32
    return value[:-1] + ("0" if value[-1] != "0" else "1")


def test_a_coordinator_that_signs_anything_else_is_found_out(chain):
    """Every leaf of the document is changed and the whole signed again: only the model of the
    manifest, digests at the bottom of a transcript and the like could differ, and they are held
    by T1 to T4 or by signatures of others."""
    body = body_of(chain[1])
    paths = leaves(body)
    assert len(paths) > 60
    facts = check_receipt(chain[0], ROSTER)
    for path in paths:
        lying = copy.deepcopy(body)
        at: Any = lying
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = changed(at[path[-1]])
        with pytest.raises(DecodeError):
            check_receipt(signed(lying), ROSTER, facts)


@pytest.mark.parametrize("name", FIELDS)
def test_a_receipt_without_one_of_its_fields_is_none(chain, name):
    body = body_of(chain[1])
    assert sorted(body) == sorted(FIELDS)
    del body[name]
    with pytest.raises(DecodeError):
        check_receipt(signed(body), ROSTER)


def test_something_more_in_a_receipt_is_refused(chain):
    refused(signed({**body_of(chain[0]), "note": "all is well"}), "does not follow from what it")


def test_a_receipt_that_somebody_else_signed_is_refused(chain):
    body = body_of(chain[0])

    refused(signed(body, "basel"), "signature")
    document = json.loads(chain[0])
    refused(canonical_json({**document, "signature": "00" * 64}), "signature")
    refused(canonical_json({**document, "signature": "00"}), "signature")
    other = secagg.make_consortium(SITES).roster
    with pytest.raises(DecodeError):
        check_receipt(chain[0], other)


def test_a_receipt_in_another_spelling_is_refused(chain):
    document = json.loads(chain[0])
    refused(json.dumps(document, indent=1).encode(), "canonical")
    refused(b'{"receipt":{},"receipt":' + chain[0][len(b'{"receipt":') :], "canonical")


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b"null", b'{"receipt":1,"signature":""}', b"\xff", b"[" * 100_000]
)
def test_what_is_no_receipt_is_refused(data):
    refused(data, "not a receipt")


def test_a_receipt_beyond_the_limit_is_not_even_parsed(monkeypatch, chain):
    monkeypatch.setattr(receipts, "MAX_RECEIPT_BYTES", len(chain[0]) - 1)
    refused(chain[0], "at most")


@given(data=st.data())
def test_any_changed_byte_is_found(data, chain):
    receipt = bytearray(chain[0])
    place = data.draw(st.integers(0, len(receipt) - 1))
    receipt[place] ^= data.draw(st.integers(1, 255))

    with pytest.raises(DecodeError):
        check_receipt(bytes(receipt), ROSTER)


_ATOMS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats()
_TEXTS = st.text(max_size=9)
JSON = st.recursive(
    _ATOMS | _TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXTS, inner, max_size=3),
    max_leaves=6,
)


def nodes(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to everything in a document, containers too."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    deeper = [
        found
        for key, item in inner
        if isinstance(item, dict | list)
        for found in nodes(item, (*path, key))
    ]
    return [path, *deeper, *leaves(value, path)]


@given(data=st.data())
def test_whatever_a_coordinator_signs_is_refused_and_nothing_worse(data, chain, first):
    """A part is replaced by anything that JSON can hold, and the whole signed again."""
    body = body_of(chain[1])
    path = data.draw(st.sampled_from(nodes(body)))
    new = data.draw(JSON)
    if not path:
        body = new
    else:
        at: Any = body
        for key in path[:-1]:
            at = at[key]
        if canonical_json(at[path[-1]]) == canonical_json(new):
            return
        at[path[-1]] = new
    with pytest.raises(DecodeError):
        check_receipt(signed(body), ROSTER, first)


def votes_of(body: dict[str, Any], *keep: int) -> None:
    body["certificate"] = [body["certificate"][at] for at in keep]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda body: votes_of(body, 0, 1, 2), "too few sites voted"),
        (lambda body: votes_of(body, 0, 1, 2, 2), "repeated or not sorted"),
        (lambda body: body.update(acks=body["acks"][::-1]), "not sorted"),
        (lambda body: body["survivors"].pop("basel"), "fewer sites"),
        (lambda body: body["advertised"].pop("basel"), "not in the phase before"),
        (lambda body: body["advertised"].update(zurich="00" * 32), "not in the phase before"),
        (lambda body: body["advertised"].update(basel="00"), "must have 32 bytes"),
        (lambda body: body.update(previous="00"), "another length"),
        (lambda body: body.update(previous=""), "first round follows nothing"),
        (lambda body: body.update(cohort_difference=None), "first round follows nothing"),
        (lambda body: body.update(acks=body["acks"] * 80), "longer than any round's"),
        (lambda body: body.update(acks="x"), "holds it in another form"),
        (lambda body: body.update(cohort_difference=float("inf")), "holds it in another form"),
        (lambda body: body.update(dealt=7), "holds it in another form"),
    ],
)
def test_a_receipt_whose_parts_do_not_make_a_round_is_refused(chain, change, text):
    body = body_of(chain[1])
    change(body)
    refused(signed(body), text)


def with_result(parts: receipts.RoundParts, **changes: Any) -> receipts.RoundParts:
    """Another result, signed by the coordinator, that no site has acknowledged."""
    message = read_payload(RoundResult, parts.link.result.payload, context=None)
    result = Envelope.from_bytes(seal(replace(message, **changes)))
    return replace(parts, link=replace(parts.link, result=result, acks=()))


def refused_parts(parts: receipts.RoundParts, text: str, monkeypatch: Any) -> None:
    """The coordinator signs them all the same."""
    with pytest.raises(DecodeError, match=text):
        receipts.make_receipt(parts, ROSTER, signing_key(""))
    last = open_link(ROSTER, parts.link)
    chain_of = (b"1" * 32, b"2" * 32, b"3" * 32, last.result.t4)
    with monkeypatch.context() as lying:
        voters = tuple(last.plan.cohort)
        lying.setattr(receipts, "_checked", lambda *_: (last, voters, chain_of))
        receipt = receipts.make_receipt(parts, ROSTER, signing_key(""))
    refused(receipt, text)


@pytest.mark.parametrize(
    ("changes", "text"),
    [({"t3": b"x" * 32}, "T3 differs"), ({"certificate": b"x" * 32}, "another certificate")],
)
def test_a_result_that_does_not_go_with_the_votes_is_found(chain, changes, text, monkeypatch):
    parts = check_receipt(chain[0], ROSTER).parts
    refused_parts(with_result(parts, **changes), text, monkeypatch)


def test_votes_that_no_site_signed_are_found(chain, monkeypatch):
    """The coordinator makes the votes itself, and the certificate and result to go with them."""
    facts = check_receipt(chain[0], ROSTER)
    parts, plan, t3 = facts.parts, facts.last.plan, facts.transcripts[2]
    forged = tuple(replace(vote, signature=bytes(64)) for vote in parts.votes)
    certificate = SurvivorCertificate(plan.context, COORDINATOR, t3, forged)
    digest = hashlib.sha256(certificate.to_payload()).digest()
    lying = with_result(replace(parts, votes=forged), certificate=digest)

    refused_parts(lying, "the signature of a survivor-vote message is wrong", monkeypatch)


def careless(monkeypatch: Any, mute: tuple[str, ...], **changes: Any) -> tuple[ReceiptFacts, bytes]:
    """Two rounds of sites that do not look at what a round follows."""
    monkeypatch.setattr("veilsum.secagg.site.check_chain", lambda *_: None)
    ledgers = {site: secagg.Ledger.in_memory(Secret.zeros) for site in SITES}
    first = held(ledgers, 1, None, mute=mute)
    second = held(ledgers, 2, first.previous, **changes)
    return check_receipt(first.receipt, ROSTER), second.receipt


def test_a_round_that_follows_too_few_acknowledgements_breaks_the_chain(monkeypatch):
    first, second = careless(monkeypatch, ("basel", "kyoto"))

    refused(second, "not acknowledged by a quorum", first)


def test_a_round_from_another_model_breaks_the_chain(monkeypatch):
    first, second = careless(monkeypatch, (), model=b"o" * 32)

    refused(second, "starts from another model", first)


def test_the_coordinator_does_not_sign_what_would_be_refused(rounds, chain):
    parts = check_receipt(chain[0], ROSTER).parts
    with pytest.raises(DecodeError, match="too few sites voted"):
        receipts.make_receipt(replace(parts, votes=parts.votes[:3]), ROSTER, signing_key(""))


def test_fewer_acknowledgements_are_a_receipt_still_that_no_round_can_follow(rounds):
    ledgers = {site: secagg.Ledger.in_memory(Secret.zeros) for site in SITES}
    lonely = held(ledgers, 1, None, mute=("basel", "kyoto"))
    assert not lonely.quorum
    facts = check_receipt(lonely.receipt, ROSTER)
    assert not facts.last.acknowledged

    parts = check_receipt(rounds[1].receipt, ROSTER).parts
    follows = receipts.make_receipt(replace(parts, previous=facts.hash), ROSTER, signing_key(""))
    refused(follows, "follows another result", facts)


# --- the chain --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "text"),
    [
        ([1, 0], "receipt 2 of the chain: it is not of the round that follows"),
        ([0, 2], "receipt 2 of the chain: it is not of the round that follows"),
        ([0, 0], "receipt 2 of the chain: it is not of the round that follows"),
    ],
)
def test_a_receipt_left_out_or_in_another_place_breaks_the_chain(chain, order, text):
    with pytest.raises(DecodeError, match=text):
        check_chain([chain[at] for at in order], ROSTER)


def test_a_part_of_a_chain_is_one(chain):
    assert len(check_chain(chain[1:], ROSTER)) == 2
    assert check_chain([], ROSTER) == []


def test_another_receipt_of_a_round_breaks_the_chain(chain):
    """The coordinator makes a second receipt of the first round, with one acknowledgement less."""
    first = check_receipt(chain[0], ROSTER)
    link = replace(first.parts.link, acks=first.parts.link.acks[1:])
    second = receipts.make_receipt(replace(first.parts, link=link), ROSTER, signing_key(""))
    with pytest.raises(DecodeError, match="follows another receipt than the one before it"):
        check_chain([second, chain[1]], ROSTER)

    # Nor does it help to let the next one name it: its plan names the acknowledgements.
    parts = check_receipt(chain[1], ROSTER).parts
    follows = receipts.make_receipt(
        replace(parts, previous=receipt_hash(second)), ROSTER, signing_key("")
    )
    with pytest.raises(DecodeError, match="follows another result, or other acknowledgements"):
        check_chain([second, follows], ROSTER)


def test_a_wrong_difference_is_found_with_the_receipt_before(chain):
    first = check_receipt(chain[0], ROSTER)
    parts = check_receipt(chain[1], ROSTER).parts
    lying = receipts.make_receipt(replace(parts, difference=4), ROSTER, signing_key(""))

    check_receipt(lying, ROSTER)  # alone it is the coordinator's word
    refused(lying, "another difference", first)


def test_a_roster_of_another_epoch_knows_none_of_it(chain):
    later = Roster(
        ROSTER.consortium, 2, ROSTER.coordinator_key, ROSTER.entries, previous=ROSTER.hash
    )
    with pytest.raises(DecodeError, match="another roster"):
        check_receipt(chain[0], later)
