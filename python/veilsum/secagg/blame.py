"""Puts evidence together from what a coordinator, or a site, has seen."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from veilsum._native import Secret
from veilsum.errors import DecodeError, PeerError
from veilsum.secagg.complaints import Complaint, Finding
from veilsum.secagg.envelope import Envelope
from veilsum.secagg.evidence import Evidence, Fault, Guilty, Verdict
from veilsum.secagg.messages import KeyRoster, ShareRelay
from veilsum.secagg.papers import write_digests, write_entry, write_name, write_share
from veilsum.secagg.payload import COORDINATOR, kind_of
from veilsum.secagg.phases import Dealers
from veilsum.secagg.plan import Plan
from veilsum.secagg.transcript import Members
from veilsum.secagg.verdict import FAULTS, check_evidence


class ProvenFault(PeerError):  # noqa: N818  what a peer did, not what went wrong here
    """A peer broke the protocol in a way that can be shown to anyone."""

    def __init__(self, site: str, message: str, evidence: Evidence) -> None:
        super().__init__(site, message)
        self.evidence = evidence


def verdict_of(plan: Plan, evidence: Evidence) -> Verdict:
    """What evidence shows to others: to be asked before it is handed to anybody."""
    return check_evidence(evidence.to_bytes(), plan.roster)


def double_signed(plan: Plan, accused: str, first: Envelope, second: Envelope) -> Evidence:
    """Two different messages where an honest party signs one."""
    return Evidence(Fault.DOUBLE_SIGNED, accused, plan.to_bytes(), (first, second))


def bad_key(plan: Plan, accused: str, advert: Envelope) -> Evidence:
    """An advert with a key that is none."""
    return Evidence(Fault.BAD_KEY, accused, plan.to_bytes(), (advert,))


def wrong_share(
    plan: Plan,
    dealers: Dealers,
    inputs: Mapping[str, bytes],
    answer: Envelope,
    between: tuple[str, str],
) -> Evidence:
    """An answer with a share that is not the one that was dealt.

    The answer is signed as a whole, so the evidence shows all shares that the accused returned:
    one of every secret, fewer than any can be rebuilt from.

    Args:
        inputs: site -> digest of its input header, of the survivors.
        answer: the signed unmask-shares.
        between: dealer of the share, and the accused responder.
    """
    dealer, accused = between
    deal = dealers.deals[dealer]
    position = dealers.members.index(accused) - 1
    deals = {site: one.header.payload_digest for site, one in dealers.deals.items()}
    papers = (
        write_digests(_advert_digests(dealers.members)),
        write_digests(deals),
        write_digests(inputs),
        write_entry(deal.entries[position], deal.proofs[position]),
        write_name(dealer),
    )
    envelopes = (deal.header, answer)
    return Evidence(Fault.WRONG_SHARE, accused, plan.to_bytes(), envelopes, papers)


def wrong_secret(
    plan: Plan, dealers: Dealers, accused: str, which: bytes, shares: Mapping[str, Secret]
) -> Evidence:
    """Shares, each verified, of another secret than the accused has advertised.

    Args:
        which: papers.MASK_SEED or SELF_SEED.
        shares: receiver -> its share, as many as rebuild a secret.
    """
    members, deal = dealers.members, dealers.deals[accused]
    shown = []
    for receiver, share in shares.items():
        position = members.index(receiver) - 1
        shown.append(
            write_share(receiver, bytes(share), deal.entries[position], deal.proofs[position])
        )
    advert = members.adverts[accused].to_payload()
    papers = (write_digests(_advert_digests(members)), advert, which, *shown)
    return Evidence(Fault.WRONG_SECRET, accused, plan.to_bytes(), (deal.header,), papers)


def complaint_evidence(
    plan: Plan,
    dealers: Dealers,
    finding: Finding,
    made: tuple[Envelope, Complaint],
    answer: Envelope | None,
) -> Evidence:
    """A complaint and, where it was needed, the dealer's answer. It accuses whom the finding does;
    of a dispute, in which nobody is accused, it names the dealer."""
    envelope, complaint = made
    deal = dealers.deals[complaint.dealer]
    position = dealers.members.index(complaint.sender) - 1
    papers = (
        write_digests(_advert_digests(dealers.members)),
        write_entry(deal.entries[position], deal.proofs[position]),
        write_name(complaint.sender),
    )
    accused = complaint.sender if finding is Finding.UNFOUNDED else complaint.dealer
    envelopes = (deal.header, envelope, *([answer] if answer else []))
    return Evidence(FAULTS[finding], accused, plan.to_bytes(), envelopes, papers)


def bad_relay(plan: Plan, *relayed: Envelope) -> Evidence:
    """The coordinator's key-roster, and a share-relay if it is that which is wrong."""
    return Evidence(Fault.BAD_RELAY, COORDINATOR, plan.to_bytes(), relayed)


def against_coordinator(
    plan: Plan | None, earlier: Mapping[str, Envelope], message: bytes
) -> list[Evidence]:
    """What a message that a site refused shows of the coordinator, alone or with earlier ones.

    Nothing more than others can verify: most of what a site refuses it cannot prove to them.

    Args:
        plan: of the attempt; None before there was one.
        earlier: kind -> the message of the coordinator that the site accepted.
    """
    try:
        envelope = Envelope.from_bytes(message)
        kind = kind_of(envelope.payload)
    except DecodeError:
        return []
    if plan is None:
        return []
    papers, first = [], earlier.get(kind)
    if first is not None and first.payload_digest != envelope.payload_digest:
        papers.append(double_signed(plan, COORDINATOR, first, envelope))
    if kind == KeyRoster.kind:
        papers.append(bad_relay(plan, envelope))
    if kind == ShareRelay.kind and KeyRoster.kind in earlier:
        papers.append(bad_relay(plan, earlier[KeyRoster.kind], envelope))
    return [one for one in papers if isinstance(verdict_of(plan, one), Guilty)]


def _advert_digests(members: Members) -> dict[str, bytes]:
    return {
        site: hashlib.sha256(advert.to_payload()).digest()
        for site, advert in members.adverts.items()
    }
