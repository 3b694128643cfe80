"""The receipt of a masked round: what took place, in a file that anyone can check offline.

Canonical JSON, as rosters: `{"receipt": {...}, "signature": "..."}`. A receipt holds the signed
messages that make it true (votes, result, acknowledgements), the plan, and the digests that lead
from the sites' keys to the sum. Everything else in it is there to be read, follows from these,
and is made anew and compared when a receipt is checked. Receipts of a run are a chain: each holds
the hash of the one before.

No secret and no value of any site is in it: what the survivors' updates add up to is under roots
and hashes, and of a site alone it says when its messages are named, how much left it.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from veilsum.errors import DecodeError, PeerError
from veilsum.roster import Roster, canonical_json
from veilsum.secagg.egress_summary import EgressSummary
from veilsum.secagg.envelope import Envelope
from veilsum.secagg.keys import Label, transcript
from veilsum.secagg.messages import SurvivorCertificate
from veilsum.secagg.payload import COORDINATOR, SUITE
from veilsum.secagg.result_checks import NO_RESULT, LastRound, open_link
from veilsum.secagg.result_messages import Link
from veilsum.secagg.transcript import check_vote, signers_of
from veilsum.secagg.wire import DIGEST_BYTES, MAX_SITES

FORMAT = "veilsum-receipt-1"
MAX_RECEIPT_BYTES = 2**26  # the largest manifest, twice, and 255 sites in every list
_KIND = "receipt"

Digests = Mapping[str, bytes]
"""Site -> SHA-256 of the payload of one message of it."""


@dataclass(frozen=True, slots=True)
class RoundParts:
    """What a receipt is made from.

    Attributes:
        link: plan, result and acknowledgements.
        adverts, deals, inputs: of M1, M3 and M5: U1, U2 and U3.
        votes: M7, sorted by site, as they were in the certificate.
        previous: hash of the receipt of the round before, 32 bytes; empty in a run's first round.
        difference: sites that are in one of this and the last survivor set only; None in a
            run's first round.
    """

    link: Link
    adverts: Digests = field(repr=False)
    deals: Digests = field(repr=False)
    inputs: Digests = field(repr=False)
    votes: tuple[Envelope, ...] = field(repr=False)
    previous: bytes
    difference: int | None


@dataclass(frozen=True, slots=True)
class ReceiptFacts:
    """A receipt that was checked, and what it says.

    Attributes:
        hash: of the receipt, which the next one holds; 32 bytes.
        last: plan, result and acknowledgements, verified.
        voters: whose votes are in the certificate, sorted.
        transcripts: T1 to T4.
    """

    hash: bytes
    parts: RoundParts
    last: LastRound
    voters: tuple[str, ...]
    transcripts: tuple[bytes, bytes, bytes, bytes]

    @property
    def survivors(self) -> tuple[str, ...]:
        """Whose updates are in the sum, sorted."""
        return tuple(self.parts.inputs)


def make_receipt(parts: RoundParts, roster: Roster, key: Ed25519PrivateKey) -> bytes:
    """The file, signed. Nothing is signed that would not be found in order.

    Args:
        key: the coordinator's.

    Raises:
        DecodeError: the parts do not belong together.
    """
    body = _body(parts, *_checked(parts, roster))
    signature = Envelope.sign(_KIND, canonical_json(body), key).signature.hex()
    return canonical_json({"receipt": body, "signature": signature})


def receipt_hash(receipt: bytes) -> bytes:
    """What the next receipt holds of this one, 32 bytes: SHA-256 of the part that is signed.

    Raises:
        DecodeError: it is not a receipt.
    """
    return hashlib.sha256(canonical_json(_read(receipt)[0])).digest()


def check_receipt(
    data: bytes, roster: Roster, previous: ReceiptFacts | None = None
) -> ReceiptFacts:
    """Checks a receipt with nothing but the roster.

    Args:
        previous: the receipt of the round before, checked; without it, only a first round's
            receipt is known to follow nothing, and what a later one says of the difference of two
            survivor sets is the coordinator's word.

    Raises:
        DecodeError: it is not a receipt of this coordinator, something in it does not follow from
            the rest, or it does not follow `previous`.
    """
    body, signature = _read(data)
    sealed = Envelope.signed_apart(canonical_json(body), signature, roster.coordinator_key)
    sealed.verify(_KIND, roster.coordinator_key)
    parts = _parts(body)
    checked = _checked(parts, roster)
    if canonical_json(_body(parts, *checked)) != sealed.payload:
        raise DecodeError("the receipt says something that does not follow from what it holds")
    facts = ReceiptFacts(sealed.payload_digest, parts, *checked)
    _check_place(facts, previous)
    return facts


def check_chain(receipts: Iterable[bytes], roster: Roster) -> list[ReceiptFacts]:
    """Checks receipts of one run, which begin with any round and leave none out.

    Raises:
        DecodeError: of the first that is not in order, or not the next one.
    """
    chain: list[ReceiptFacts] = []
    for number, data in enumerate(receipts, 1):
        try:
            chain.append(check_receipt(data, roster, chain[-1] if chain else None))
        except DecodeError as error:
            raise DecodeError(f"receipt {number} of the chain: {error}") from error
    return chain


# --- checking -------------------------------------------------------------------------


def _checked(
    parts: RoundParts, roster: Roster
) -> tuple[LastRound, tuple[str, ...], tuple[bytes, bytes, bytes, bytes]]:
    last = open_link(roster, parts.link)
    plan, result = last.plan, last.result
    t1 = transcript(Label.TRANSCRIPT_KEYS, plan.context, parts.adverts)
    t2 = transcript(Label.TRANSCRIPT_SHARES, t1, parts.deals)
    t3 = transcript(Label.TRANSCRIPT_SURVIVORS, t2, parts.inputs)
    u1, u2, u3 = set(parts.adverts), set(parts.deals), set(parts.inputs)
    responders = {site for site, _ in result.responders}
    if not (u3 <= u2 <= u1 <= set(plan.cohort) and responders <= u2):
        raise DecodeError("a site is in the round that was not in the phase before")
    if len(u3) < plan.fewest_survivors or len(responders) < plan.share_threshold:
        raise DecodeError("fewer sites are in the sum, or answered, than the plan demands")
    if result.t3 != t3:
        raise DecodeError("the result is of another survivor set (T3 differs)")
    voters = tuple(signers_of(plan, parts.votes))
    if len(voters) < plan.vote_quorum or not u2.issuperset(voters):
        raise DecodeError("too few sites voted for the survivor set, or some without shares")
    try:
        for voter, vote in zip(voters, parts.votes, strict=True):
            check_vote(plan, voter, vote, t3)
    except PeerError as error:
        raise DecodeError(str(error)) from error
    certificate = SurvivorCertificate(plan.context, COORDINATOR, t3, parts.votes)
    if hashlib.sha256(certificate.to_payload()).digest() != result.certificate:
        raise DecodeError("the result names another certificate")
    if len(parts.previous) not in (0, DIGEST_BYTES):
        raise DecodeError("the hash of the receipt before has another length")
    first = plan.round_number == 1
    if (first, first, first) != (
        not parts.previous,
        plan.previous_result == NO_RESULT,
        parts.difference is None,
    ):
        raise DecodeError("only the receipt of a run's first round follows nothing")
    return last, voters, (t1, t2, t3, result.t4)


def _check_place(facts: ReceiptFacts, previous: ReceiptFacts | None) -> None:
    if previous is None:
        return
    plan, before = facts.last.plan, previous.last.plan
    expected = (before.task_id, before.run_id, before.round_number + 1)
    if (plan.task_id, plan.run_id, plan.round_number) != expected:
        raise DecodeError("it is not of the round that follows")
    if facts.parts.previous != previous.hash:
        raise DecodeError("it follows another receipt than the one before it")
    if plan.previous_result != previous.last.digest:
        raise DecodeError("its plan follows another result, or other acknowledgements")
    if not previous.last.acknowledged:
        raise DecodeError("the result before it was not acknowledged by a quorum")
    after = (previous.last.result.model_hash, previous.last.result.state_hash)
    if (plan.model_hash, plan.state_hash) != after:
        raise DecodeError("it starts from another model or state than the one before ended with")
    if facts.parts.difference != len(set(facts.survivors) ^ set(previous.survivors)):
        raise DecodeError("it names another difference of the survivor sets")


# --- the body -------------------------------------------------------------------------


def _body(
    parts: RoundParts,
    last: LastRound,
    voters: tuple[str, ...],
    transcripts: tuple[bytes, bytes, bytes, bytes],
) -> dict[str, Any]:
    plan, result = last.plan, last.result
    return {
        "format": FORMAT,
        "consortium": plan.roster.consortium,
        "roster": {"epoch": plan.roster.epoch, "hash": plan.roster.hash.hex()},
        "task": plan.task_id,
        "run": plan.run_id,
        "round": plan.round_number,
        "attempt": plan.attempt,
        "context": plan.context.hex(),
        "manifest": _text(parts.link.manifest),
        "manifest_hash": plan.hash.hex(),
        "suite": SUITE,
        "mask_generator": plan.mask_generator,
        "thresholds": {
            "invited": len(plan.cohort),
            "colluders": plan.colluders,
            "vote_quorum": plan.vote_quorum,
            "share_threshold": plan.share_threshold,
            "min_sites": plan.min_sites,
        },
        "model": {"from": plan.model_hash.hex(), "to": result.model_hash.hex()},
        "transcripts": [one.hex() for one in transcripts],
        "advertised": _hexes(parts.adverts),
        "dealt": _hexes(parts.deals),
        "survivors": _hexes(parts.inputs),
        "voters": list(voters),
        "certificate": _texts(parts.votes),
        "responders": _hexes(dict(result.responders)),
        "sum": [
            {"stream": r.stream, "elements": r.elements, "bits": r.bits, "root": r.root.hex()}
            for r in result.roots
        ],
        "total_weight": result.total_weight,
        "mean_digest": result.mean_digest.hex(),
        "result": _text(parts.link.result.to_bytes()),
        "acks": _texts(parts.link.acks),
        "acknowledged": last.acknowledged,
        "checked": {site: ack.checked for site, ack in last.acks.items()},
        "egress": {site: _egress(ack.egress) for site, ack in last.acks.items()},
        "cohort_difference": parts.difference,
        "previous": parts.previous.hex(),
    }


def _egress(summary: EgressSummary) -> dict[str, Any]:
    sent = {one.kind: [one.messages, one.size_bytes] for one in summary.sent}
    return {"head": summary.head.hex(), "sent": sent}


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _texts(envelopes: Iterable[Envelope]) -> list[str]:
    return [_text(one.to_bytes()) for one in envelopes]


def _hexes(digests: Digests) -> dict[str, str]:
    return {site: digest.hex() for site, digest in digests.items()}


# --- reading --------------------------------------------------------------------------


def _read(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The body, not yet believed, and its signature."""
    if len(data) > MAX_RECEIPT_BYTES:
        raise DecodeError(f"a receipt has at most {MAX_RECEIPT_BYTES} bytes, got {len(data)}")
    try:
        document = json.loads(data)
        body, signature = document["receipt"], bytes.fromhex(document["signature"])
        if body["format"] != FORMAT:
            raise DecodeError(f"expected a receipt of format {FORMAT}, got {body['format']!r}")
        canonical = canonical_json({"receipt": body, "signature": signature.hex()})
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        if isinstance(error, DecodeError):
            raise
        raise DecodeError("not a receipt") from error
    if canonical != data.strip():
        raise DecodeError("the receipt is not in canonical form and may have been edited")
    return body, signature


def _parts(body: dict[str, Any]) -> RoundParts:
    try:
        link = Link(
            _bytes(body["manifest"]),
            Envelope.from_bytes(_bytes(body["result"])),
            _envelopes(body["acks"]),
        )
        difference = body["cohort_difference"]
        return RoundParts(
            link,
            _digests(body["advertised"]),
            _digests(body["dealt"]),
            _digests(body["survivors"]),
            _envelopes(body["certificate"]),
            bytes.fromhex(body["previous"]),
            None if difference is None else int(difference),
        )
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        if isinstance(error, DecodeError):
            raise
        raise DecodeError("the receipt lacks something, or holds it in another form") from error


def _bytes(text: str) -> bytes:
    return base64.b64decode(text.encode(), validate=True)


def _envelopes(texts: list[str]) -> tuple[Envelope, ...]:
    if len(texts) > MAX_SITES:
        raise DecodeError(f"a list of {len(texts)} messages is longer than any round's")
    return tuple(Envelope.from_bytes(_bytes(text)) for text in texts)


def _digests(texts: dict[str, str]) -> dict[str, bytes]:
    """By the bytes of the names, as in all of the protocol; JSON sorts them by code points."""
    if len(texts) > MAX_SITES:
        raise DecodeError(f"a list of {len(texts)} sites is longer than any round's")
    digests = {site: bytes.fromhex(texts[site]) for site in sorted(texts, key=str.encode)}
    if any(len(digest) != DIGEST_BYTES for digest in digests.values()):
        raise DecodeError(f"a digest must have {DIGEST_BYTES} bytes")
    return digests
