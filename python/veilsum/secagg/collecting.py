"""What the coordinator takes from a site in each phase: checked first, then kept."""

from __future__ import annotations

from typing import TypeVar, assert_never

from veilsum.errors import DecodeError, PeerError
from veilsum.secagg import blame, keys
from veilsum.secagg.blame import ProvenFault
from veilsum.secagg.envelope import Envelope
from veilsum.secagg.judging import Judging
from veilsum.secagg.messages import (
    InputHeader,
    KeyAdvert,
    SealedDeal,
    UnmaskShares,
    kind_of_message,
)
from veilsum.secagg.payload import Message, open_envelope
from veilsum.secagg.phases import (
    CollectingAcks,
    CollectingInputs,
    CollectingKeys,
    CollectingPhase,
    CollectingShares,
    CollectingUnmask,
    CollectingVotes,
    CoordinatorPhase,
)
from veilsum.secagg.plan import Plan
from veilsum.secagg.receiver import open_input
from veilsum.secagg.result_checks import open_ack
from veilsum.secagg.transcript import check_advert, check_vote, open_sealed
from veilsum.secagg.unmask import checked_shares

_Message = TypeVar("_Message", bound=Message)


def collect(plan: Plan, phase: CollectingPhase, site: str, message: bytes) -> None:
    """Adds the message that an expected site owes the phase.

    Raises:
        DecodeError, PeerError: it is not that message; nothing has changed.
    """
    match phase:
        case CollectingKeys():
            _collect_keys(plan, phase, site, Envelope.from_bytes(message))
        case CollectingShares():
            _collect_shares(plan, phase, site, SealedDeal.from_bytes(message))
        case CollectingInputs():
            raise PeerError(site, "sent a message where its update was awaited")
        case CollectingVotes():
            _collect_vote(plan, phase, site, Envelope.from_bytes(message))
        case CollectingUnmask():
            _collect_unmask(plan, phase, site, Envelope.from_bytes(message))
        case CollectingAcks():
            _collect_ack(plan, phase, site, Envelope.from_bytes(message))
        case _:
            assert_never(phase)


def checked_header(
    plan: Plan, phase: CollectingInputs, site: str, header: bytes, update_id: int
) -> InputHeader:
    """The signed header of an upload that may enter the sum.

    Raises:
        DecodeError, PeerError: the site may not upload, or again, or not this.
    """
    if site not in phase.expected:
        raise PeerError(site, "sent an update without having dealt shares")
    if site in phase.received:
        raise PeerError(site, "sent a second update in this round")
    t2 = phase.dealers.t2
    message = open_input(plan, t2, site, Envelope.from_bytes(header))
    if update_id != keys.update_id(t2, site):
        raise PeerError(site, "sent an update under a number that is not its own")
    return message


def _collect_keys(plan: Plan, phase: CollectingKeys, site: str, envelope: Envelope) -> None:
    advert = _open(KeyAdvert, plan, site, envelope)
    try:
        check_advert(advert, phase.taken)
    except PeerError as error:
        evidence = blame.bad_key(plan, site, envelope)
        raise ProvenFault(site, error.what, evidence) from error
    phase.taken.update(advert.public_keys)
    phase.received[site], phase.adverts[site] = envelope, advert


def _collect_shares(plan: Plan, phase: CollectingShares, site: str, sealed: SealedDeal) -> None:
    deal = open_sealed(plan, phase.members, site, sealed)
    phase.received[site], phase.deals[site] = sealed, deal


def _collect_vote(plan: Plan, phase: CollectingVotes, site: str, envelope: Envelope) -> None:
    check_vote(plan, site, envelope, phase.t3)
    phase.received[site] = envelope


def _collect_unmask(plan: Plan, phase: CollectingUnmask, site: str, envelope: Envelope) -> None:
    answer = _open(UnmaskShares, plan, site, envelope)
    held = checked_shares(plan, phase, answer, envelope)
    phase.received[site], phase.answers[site] = held, envelope.payload_digest


def _collect_ack(plan: Plan, phase: CollectingAcks, site: str, envelope: Envelope) -> None:
    open_ack(plan, site, envelope, phase.result.payload_digest)
    phase.received[site] = envelope


def _open(kind: type[_Message], plan: Plan, site: str, envelope: Envelope) -> _Message:
    key = plan.roster.signing_key(site)
    return open_envelope(kind, envelope, key, sender=site, context=plan.context)


def kind_or_none(message: bytes) -> str:
    """The type of a message; empty if it is none."""
    try:
        return kind_of_message(message)
    except DecodeError:
        return ""


def repeats_answer(phase: CoordinatorPhase | Judging, site: str, message: bytes) -> bool:
    """Whether it is, once more, the site's part in the result: after a restart nobody remembers
    to have heard that, as it was not to be written down."""
    if not isinstance(phase, CollectingAcks) or kind_or_none(message) != UnmaskShares.kind:
        return False
    answer = Envelope.from_bytes(message).payload_digest
    return phase.summed.unmasked.answers.get(site) == answer


def holds_secrets(message: bytes) -> bool:
    """Whether the coordinator must not write a message down, whenever it comes."""
    return kind_or_none(message) == UnmaskShares.kind


def without_name(site: str, error: Exception) -> str:
    """What a site did, for where its name is beside it."""
    return str(error).removeprefix(f"site {site!r} ")
