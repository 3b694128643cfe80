"""How each of the coordinator's phases ends: what it collected becomes the next one's messages."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias, assert_never

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typing_extensions import Buffer

from veilsum.aggregate.secure_sum import RingMean, SecureSum
from veilsum.errors import DecodeError
from veilsum.secagg.audit_keys import AuditKeys, removal
from veilsum.secagg.audit_record import AuditRecord
from veilsum.secagg.effects import Acknowledged, SecureResult
from veilsum.secagg.envelope import Envelope
from veilsum.secagg.evidence import Evidence
from veilsum.secagg.messages import (
    KeyRoster,
    RelayedDeal,
    ShareRelay,
    SurvivorCertificate,
    SurvivorProposal,
)
from veilsum.secagg.payload import COORDINATOR, Message, open_envelope
from veilsum.secagg.phases import (
    CollectingAcks,
    CollectingInputs,
    CollectingKeys,
    CollectingPhase,
    CollectingShares,
    CollectingUnmask,
    CollectingVotes,
    Dealers,
    Summed,
)
from veilsum.secagg.plan import Plan
from veilsum.secagg.receipt import RoundParts, make_receipt, receipt_hash
from veilsum.secagg.result import secure_result
from veilsum.secagg.result_messages import Link, PreviousRound, RoundResult, acks_digest
from veilsum.secagg.sum_tree import SumTree, chunks_of
from veilsum.secagg.transcript import members_of, shares_transcript, survivors_transcript
from veilsum.secagg.unmask import rebuilt_seeds

Seal: TypeAlias = Callable[[Message], Envelope]
"""Signs a message of the coordinator."""

Lost: TypeAlias = Mapping[str, str]
"""Site that the round goes on without -> why."""

BeforeUnmask: TypeAlias = CollectingKeys | CollectingShares | CollectingInputs | CollectingVotes


@dataclass(frozen=True, slots=True)
class Opening:
    """A phase that begins, and the message that each site it waits for gets."""

    phase: CollectingPhase
    messages: Mapping[str, bytes] = field(repr=False)


@dataclass(frozen=True, slots=True)
class AcksOpened:
    """The last phase begins: every site it waits for gets the same signed result."""

    phase: CollectingAcks

    @property
    def opening(self) -> Opening:
        """The same, as of any phase."""
        message = self.phase.result.to_bytes()
        return Opening(self.phase, dict.fromkeys(self.phase.expected, message))


@dataclass(frozen=True, slots=True)
class AfterStep:
    """Hashes of the model and of the optimizer's state after the server's step, 32 bytes each."""

    model_hash: bytes
    state_hash: bytes


def awaited(phase: CollectingPhase, lost: Lost) -> list[str]:
    """Whom a phase still waits for."""
    return [site for site in phase.expected if site not in phase.received and site not in lost]


def needed(plan: Plan, phase: CollectingPhase) -> int:
    """How many sites must send what a phase collects."""
    match phase:
        case CollectingVotes():
            return plan.vote_quorum
        case CollectingUnmask():
            return plan.share_threshold
        case CollectingAcks():
            return 0
        case _:
            return plan.fewest_survivors


def close(plan: Plan, phase: BeforeUnmask, lost: Lost, seal: Seal) -> Opening:
    """What follows a phase in which the coordinator learns no secret."""
    match phase:
        case CollectingKeys():
            return close_keys(plan, phase, lost, seal)
        case CollectingShares():
            return close_shares(plan, phase, lost, seal)
        case CollectingInputs():
            return close_inputs(plan, phase, lost, seal)
        case CollectingVotes():
            return close_votes(plan, phase, lost, seal)
        case _:
            assert_never(phase)


def close_keys(plan: Plan, phase: CollectingKeys, lost: Lost, seal: Seal) -> Opening:
    """M2: every member gets all adverts."""
    members = members_of(plan, phase.adverts, phase.received)
    adverts = tuple(phase.received[site] for site in members.sites)
    message = seal(KeyRoster(plan.context, COORDINATOR, adverts)).to_bytes()
    expected = present(members.sites, lost)
    return Opening(CollectingShares(expected, members), dict.fromkeys(expected, message))


def close_shares(plan: Plan, phase: CollectingShares, lost: Lost, seal: Seal) -> Opening:
    """M4: every dealer gets all signed roots, and what is under each for it."""
    members = phase.members
    headers = {site: deal.header for site, deal in phase.deals.items()}
    dealers = Dealers(members, phase.deals, shares_transcript(members, headers))
    messages = {}
    for receiver in dealers.sites:
        position = members.index(receiver) - 1
        deals = tuple(
            RelayedDeal(
                headers[dealer],
                phase.received[dealer].shares[position],
                phase.deals[dealer].proofs[position],
            )
            for dealer in dealers.sites
        )
        messages[receiver] = seal(ShareRelay(plan.context, COORDINATOR, deals)).to_bytes()
    return Opening(CollectingInputs(present(dealers.sites, lost), dealers), messages)


def close_inputs(plan: Plan, phase: CollectingInputs, lost: Lost, seal: Seal) -> Opening:
    """M6: every dealer is asked to vote for the sites whose updates are in the sum."""
    survivors = tuple(sorted(phase.received, key=str.encode))
    t2 = phase.dealers.t2
    inputs = tuple((site, phase.received[site]) for site in survivors)
    message = seal(SurvivorProposal(plan.context, COORDINATOR, t2, inputs)).to_bytes()
    expected = present(phase.dealers.sites, lost)
    t3 = survivors_transcript(t2, phase.received)
    voting = CollectingVotes(expected, phase.dealers, survivors, t3, dict(inputs))
    return Opening(voting, dict.fromkeys(expected, message))


def close_votes(plan: Plan, phase: CollectingVotes, lost: Lost, seal: Seal) -> Opening:
    """M8: every dealer gets all votes."""
    votes = tuple(phase.received[site] for site in sorted(phase.received, key=str.encode))
    certificate = seal(SurvivorCertificate(plan.context, COORDINATOR, phase.t3, votes))
    expected = present(phase.dealers.sites, lost)
    unmasking = CollectingUnmask(
        expected, phase.dealers, phase.survivors, phase.t3, phase.inputs, votes, certificate
    )
    return Opening(unmasking, dict.fromkeys(expected, certificate.to_bytes()))


def close_unmask(
    plan: Plan,
    phase: CollectingUnmask,
    lost: Lost,
    masked: SecureSum,
    record: AuditRecord | None,
) -> tuple[SecureResult, tuple[Evidence, ...]]:
    """Takes the masks off the sum, and wipes all that was rebuilt or collected for it.

    Args:
        record: keeps the seeds of a round that succeeds; None: nobody does.

    Returns:
        The result, and what shows dealers to be at fault whose bad shares were not needed.

    Raises:
        DeviceError: of the device the sum is on.
        WrongSecrets: a dealer's shares do not give what it advertised.
        RoundAborted: the sum is out of its range.
    """
    survivors = phase.survivors
    try:
        rebuilt = rebuilt_seeds(plan, phase)
        seeds = rebuilt.seeds
        try:
            mean = _unmasked(plan, phase, masked, seeds)
            if record is not None:
                record.seeds, seeds = seeds, AuditKeys({}, {})
        finally:
            seeds.wipe()
    finally:
        phase.wipe()
    dropped = {site: reason for site, reason in lost.items() if site not in survivors}
    return secure_result(plan.layout, mean, survivors, dropped), rebuilt.evidence


def _unmasked(plan: Plan, phase: CollectingUnmask, masked: SecureSum, seeds: AuditKeys) -> RingMean:
    masks = removal(plan, phase.dealers, phase.survivors, seeds)
    try:
        masked.add_masks(masks.keys, masks.signs)
    finally:
        masks.wipe()
    return masked.finish(len(phase.survivors))


def open_acks(
    plan: Plan, phase: Summed, lost: Lost, masked: SecureSum, after: AfterStep, seal: Seal
) -> AcksOpened:
    """M10: everybody whose answer helped to unmask the sum is told what came of it.

    Args:
        masked: the sum, without masks by now.
        after: what the server's step led to.
    """
    unmasked = phase.unmasked
    result = seal(
        RoundResult(
            plan.context,
            COORDINATOR,
            t3=unmasked.t3,
            certificate=unmasked.certificate.payload_digest,
            roots=SumTree.over(plan.ring, masked.chunks()).roots,
            total_weight=phase.total_weight,
            responders=phase.responders,
            mean_digest=phase.mean_digest,
            model_hash=after.model_hash,
            state_hash=after.state_hash,
        )
    )
    return _acks_of(phase, lost, result)


def reopen_acks(
    plan: Plan,
    phase: CollectingUnmask,
    lost: Lost,
    masked: SecureSum,
    result: Envelope,
    words: Buffer,
) -> AcksOpened:
    """M10 again, as it was sent before a restart: nothing that shares would be needed for.

    Args:
        masked: takes the published sum.
        words: of the published sum, its chunks one after the other.

    Raises:
        DecodeError: the result is not this coordinator's of this round, or not of that sum.
    """
    key = plan.roster.coordinator_key
    message = open_envelope(RoundResult, result, key, sender=COORDINATOR, context=plan.context)
    if message.t3 != phase.t3:
        raise DecodeError("the kept result is of other updates than the round's")
    masked.load(chunks_of(plan.ring, words))
    if SumTree.over(plan.ring, masked.chunks()).roots != message.roots:
        raise DecodeError("the kept sum is not the one that the result was signed for")
    unmasked = replace(phase, received={}, answers=dict(message.responders))
    summed = Summed(unmasked, message.total_weight, message.mean_digest)
    return _acks_of(summed, lost, result)


def _acks_of(phase: Summed, lost: Lost, result: Envelope) -> AcksOpened:
    expected = present([site for site, _ in phase.responders], lost)
    return AcksOpened(CollectingAcks(expected, phase, result))


def close_acks(
    plan: Plan, phase: CollectingAcks, previous: PreviousRound | None, key: Ed25519PrivateKey
) -> Acknowledged:
    """What the next round begins with, and the round's receipt.

    Args:
        previous: the round before.
        key: the coordinator's, which signs the receipt.
    """
    acks = {site: phase.received[site] for site in sorted(phase.received, key=str.encode)}
    digests = {site: ack.payload_digest for site, ack in acks.items()}
    link = Link(plan.to_bytes(), phase.result, tuple(acks.values()))
    unmasked = phase.summed.unmasked
    survivors = frozenset(unmasked.survivors)
    dealers = unmasked.dealers
    parts = RoundParts(
        link,
        adverts={
            site: hashlib.sha256(advert.to_payload()).digest()
            for site, advert in dealers.members.adverts.items()
        },
        deals={site: dealers.deals[site].header.payload_digest for site in dealers.sites},
        inputs=unmasked.inputs,
        votes=unmasked.votes,
        previous=previous.receipt_hash if previous else b"",
        difference=len(survivors ^ previous.survivors) if previous else None,
    )
    receipt = make_receipt(parts, plan.roster, key)
    digest = acks_digest(phase.result.payload_digest, digests)
    finished = PreviousRound(link, digest, receipt_hash(receipt), survivors)
    return Acknowledged(finished, receipt, quorum=len(acks) >= plan.vote_quorum)


def present(sites: Sequence[str], lost: Lost) -> tuple[str, ...]:
    """Those that the round still goes on with."""
    return tuple(site for site in sites if site not in lost)
