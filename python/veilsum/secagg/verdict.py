"""What evidence shows: one check per fault.

An accusation holds only if the accused's own signatures contradict what an honest one would have
signed, whatever the accuser, the coordinator and other sites made up around them: every paper is
bound by a hash to something that the accused itself has signed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from veilsum import _native
from veilsum.errors import ConfigError, DecodeError, PeerError
from veilsum.roster import Roster
from veilsum.secagg import keys, merkle
from veilsum.secagg.complaints import Complaint, Finding, Justification, judge
from veilsum.secagg.envelope import Envelope
from veilsum.secagg.evidence import Dispute, Evidence, Fault, Guilty, Invalid, Verdict
from veilsum.secagg.keys import Label, public_key_fault, transcript
from veilsum.secagg.messages import (
    InputHeader,
    KeyAdvert,
    KeyRoster,
    RelayedDeal,
    RoundOpen,
    ShareDeal,
    ShareRelay,
    SurvivorProposal,
    SurvivorVote,
    UnmaskShares,
)
from veilsum.secagg.papers import (
    MASK_SEED,
    SELF_SEED,
    ShownDeal,
    read_digests,
    read_name,
    read_share,
    seed_fits,
)
from veilsum.secagg.payload import COORDINATOR, Message, kind_of, open_envelope, read_payload
from veilsum.secagg.plan import Plan
from veilsum.secagg.result_messages import ResultAck, RoundResult
from veilsum.secagg.transcript import open_adverts, signers_of
from veilsum.secagg.wire import Reader

_Message = TypeVar("_Message", bound=Message)


def check_evidence(data: bytes, roster: Roster) -> Verdict:
    """What evidence shows. Takes any bytes, and never raises over them."""
    try:
        evidence = Evidence.from_bytes(data)
        plan = Plan.from_bytes(evidence.manifest, roster=roster)
        if evidence.accused != COORDINATOR and evidence.accused not in plan.cohort:
            return Invalid("the accused is not in the cohort")
        return _CHECKS[evidence.fault](_Case(evidence, plan))
    except (ConfigError, DecodeError, PeerError) as error:
        return Invalid(str(error))


@dataclass(frozen=True, slots=True)
class _Case:
    evidence: Evidence
    plan: Plan

    @property
    def guilty(self) -> Guilty:
        return Guilty(self.evidence.accused, self.evidence.fault)

    def envelopes(self, *counts: int) -> tuple[Envelope, ...]:
        found = self.evidence.envelopes
        if len(found) not in counts:
            raise DecodeError(f"{len(found)} messages where {counts} belong")
        return found

    def papers(self, least: int, most: int) -> tuple[bytes, ...]:
        found = self.evidence.papers
        if not least <= len(found) <= most:
            raise DecodeError(f"{len(found)} papers where {least} to {most} belong")
        return found

    def open(self, kind: type[_Message], envelope: Envelope, sender: str) -> _Message:
        roster = self.plan.roster
        key = roster.coordinator_key if sender == COORDINATOR else roster.signing_key(sender)
        if sender != COORDINATOR and sender not in self.plan.cohort:
            raise DecodeError(f"site {sender!r} is not in the cohort")
        return open_envelope(kind, envelope, key, sender=sender, context=self.plan.context)

    def deal(self, header: Envelope, dealer: str, adverts: bytes) -> ShownDeal:
        return ShownDeal.of(header, self.open(ShareDeal, header, dealer), adverts)


# --- one check per fault --------------------------------------------------------------

SITE_KINDS: tuple[type[Message], ...] = (
    KeyAdvert,
    ShareDeal,
    InputHeader,
    SurvivorVote,
    UnmaskShares,
    ResultAck,
)
"""Of each of these an honest site signs one in an attempt."""

COORDINATOR_KINDS: tuple[type[Message], ...] = (KeyRoster, SurvivorProposal, RoundResult)
"""Of each of these an honest coordinator signs one in an attempt; relays differ by receiver, and
certificates may in their votes. Of invitations it signs one per attempt as well."""


def _double_signed(case: _Case) -> Verdict:
    first, second = case.envelopes(2)
    accused = case.evidence.accused
    if first.payload == second.payload:
        return Invalid("both messages are the same")
    if accused == COORDINATOR and kind_of(first.payload) == RoundOpen.kind:
        plans = [_invitation(case, envelope) for envelope in (first, second)]
        attempts = [(p.task_id, p.run_id, p.round_number, p.attempt) for p in plans]
        return case.guilty if attempts[0] == attempts[1] else Invalid("they open two attempts")
    for kind in COORDINATOR_KINDS if accused == COORDINATOR else SITE_KINDS:
        if kind.kind == kind_of(first.payload):
            case.open(kind, first, accused)
            case.open(kind, second, accused)
            return case.guilty
    return Invalid("of these messages there may be several")


def _invitation(case: _Case, envelope: Envelope) -> Plan:
    roster = case.plan.roster
    opened = open_envelope(
        RoundOpen, envelope, roster.coordinator_key, sender=COORDINATOR, context=None
    )
    plan = Plan.from_bytes(opened.manifest, roster=roster)
    if plan.context != opened.context:
        raise DecodeError("an invitation names another context than its manifest's")
    return plan


def _bad_key(case: _Case) -> Verdict:
    (envelope,) = case.envelopes(1)
    advert = case.open(KeyAdvert, envelope, case.evidence.accused)
    own = (advert.mask_key, advert.channel_key)
    # A key that is another's as well shows nothing: the other may be the one who copied it.
    wrong = own[0] == own[1] or any(public_key_fault(key) is not None for key in own)
    return case.guilty if wrong else Invalid("both keys are in order")


def _wrong_share(case: _Case) -> Verdict:
    header, answered = case.envelopes(2)
    adverts, deals, inputs, entry_paper, name = case.papers(5, 5)
    accused, dealer = case.evidence.accused, read_name(name)
    shown = case.deal(header, dealer, adverts)
    answer = case.open(UnmaskShares, answered, accused)
    # The responder signed T3, and with it every deal it took part under: another header, which
    # the dealer may have signed since, is not the one that the responder's share is from.
    dealt, survivors = read_digests(deals), read_digests(inputs)
    t2 = transcript(Label.TRANSCRIPT_SHARES, shown.deal.t1, dealt)
    if transcript(Label.TRANSCRIPT_SURVIVORS, t2, survivors) != answer.t3:
        return Invalid("the answer was given in another view of the round (T3 differs)")
    if dealt.get(dealer) != header.payload_digest:
        return Invalid("the dealer's root is not the one of the round")
    entry = shown.entry(accused, Reader(entry_paper))
    returned = (
        (answer.mask_shares, Label.MASK_SHARE_COMMITMENT, entry.mask_commitment),
        (answer.self_shares, Label.SELF_SHARE_COMMITMENT, entry.self_commitment),
    )
    for shares, label, commitment in returned:
        for owner, share in shares:
            found = keys.share_commitment(label, shown.deal.t1, dealer, accused, share)
            if owner == dealer and found != commitment:
                return case.guilty
    return Invalid("the shares are the ones that were dealt")


def _wrong_secret(case: _Case) -> Verdict:
    (header,) = case.envelopes(1)
    threshold = case.plan.share_threshold
    adverts, payload, which, *shares = case.papers(3 + threshold, 3 + threshold)
    accused = case.evidence.accused
    shown = case.deal(header, accused, adverts)
    # Its own advert is in the T1 that the dealer has signed.
    if shown.adverts.get(accused) != hashlib.sha256(payload).digest():
        return Invalid("the advert is not the one of the round")
    advert = read_payload(KeyAdvert, payload, context=case.plan.context)
    if which not in (MASK_SEED, SELF_SEED):
        return Invalid("there is no such secret")
    found = dict(read_share(shown, which, paper) for paper in shares)
    if len(found) != threshold:
        return Invalid("a share is there twice")
    (seed,) = _native.combine_shares(list(found), [list(found.values())])
    fits = seed_fits(case.plan, advert, which, seed)
    for secret in (seed, *found.values()):
        secret.wipe()
    return Invalid("the shares are of the secret that was advertised") if fits else case.guilty


FAULTS = {
    Finding.UNFOUNDED: Fault.FALSE_COMPLAINT,
    Finding.BAD_DEAL: Fault.BAD_DEAL,
    Finding.UNJUSTIFIED: Fault.WRONG_JUSTIFICATION,
    Finding.DISPUTE: Fault.DISPUTED,
}
"""What a complaint that comes to this is evidence of."""


def _complaint(case: _Case) -> Verdict:
    header, complained, *justified = case.envelopes(2, 3)
    adverts, entry_paper, complainer = case.papers(3, 3)
    complaint = case.open(Complaint, complained, read_name(complainer))
    dealer = complaint.dealer
    shown = case.deal(header, dealer, adverts)
    if (complaint.t1, complaint.header) != (shown.deal.t1, header.payload_digest):
        return Invalid("the complaint is about another deal")
    entry = shown.entry(complaint.sender, Reader(entry_paper))
    answers = [case.open(Justification, envelope, dealer) for envelope in justified]
    finding = judge(entry, complaint, answers[0] if answers else None)
    if FAULTS.get(finding) is not case.evidence.fault:
        return Invalid(f"the complaint comes to something else: {finding.value}")
    if finding is Finding.DISPUTE:
        return Dispute(dealer, complaint.sender)
    at_fault = complaint.sender if finding is Finding.UNFOUNDED else dealer
    return case.guilty if at_fault == case.evidence.accused else Invalid("it is another's fault")


def _bad_relay(case: _Case) -> Verdict:
    roster, *relayed = case.envelopes(1, 2)
    if case.evidence.accused != COORDINATOR:
        return Invalid("only the coordinator relays")
    plan = case.plan
    adverts = case.open(KeyRoster, roster, COORDINATOR).adverts
    try:
        members = open_adverts(plan, dict(zip(signers_of(plan, adverts), adverts, strict=True)))
    except (DecodeError, PeerError):
        return case.guilty  # an honest coordinator has checked every advert before
    for envelope in relayed:
        deals = case.open(ShareRelay, envelope, COORDINATOR).deals
        if not _is_somebodys(case, members.t1, len(members.adverts), deals):
            return case.guilty
    return Invalid("what was relayed is what was signed")


def _is_somebodys(case: _Case, t1: bytes, count: int, deals: Sequence[RelayedDeal]) -> bool:
    """Whether a relay is in order for at least one receiver. It does not name its own, so only a
    relay that is for nobody shows something."""
    try:
        dealers = signers_of(case.plan, [deal.header for deal in deals])
        opened = [
            case.open(ShareDeal, deal.header, dealer)
            for dealer, deal in zip(dealers, deals, strict=True)
        ]
    except DecodeError:
        return False
    if any(deal.t1 != t1 for deal in opened):
        return False
    return any(
        all(
            _is_under(signed.root, count, position, deal)
            for signed, deal in zip(opened, deals, strict=True)
        )
        for position in range(count)
    )


def _is_under(root: bytes, count: int, position: int, deal: RelayedDeal) -> bool:
    try:
        merkle.check_inclusion(root, count, position, deal.share.entry.leaf, deal.proof)
    except DecodeError:
        return False
    return True


_CHECKS: Mapping[Fault, Callable[[_Case], Verdict]] = {
    Fault.DOUBLE_SIGNED: _double_signed,
    Fault.BAD_KEY: _bad_key,
    Fault.WRONG_SHARE: _wrong_share,
    Fault.WRONG_SECRET: _wrong_secret,
    Fault.BAD_DEAL: _complaint,
    Fault.FALSE_COMPLAINT: _complaint,
    Fault.WRONG_JUSTIFICATION: _complaint,
    Fault.BAD_RELAY: _bad_relay,
    Fault.DISPUTED: _complaint,
}
