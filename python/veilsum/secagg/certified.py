"""A round as its signed messages show it to anyone: who advertised, dealt, uploaded and voted what.

Nothing here is secret and nothing is believed: every signature is checked with the roster's keys,
and T1, T2 and T3 are computed anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from veilsum.errors import DecodeError
from veilsum.secagg.envelope import Envelope
from veilsum.secagg.messages import InputHeader, SurvivorCertificate
from veilsum.secagg.payload import COORDINATOR, read_envelope, write_envelope
from veilsum.secagg.phases import Dealers
from veilsum.secagg.plan import Plan
from veilsum.secagg.receiver import open_input
from veilsum.secagg.transcript import (
    Deal,
    check_vote,
    open_adverts,
    open_deal,
    shares_transcript,
    signers_of,
    survivors_transcript,
)
from veilsum.secagg.wire import MAX_SITES, Reader, Writer


@dataclass(frozen=True, slots=True)
class SignedRound:
    """The sites' signed messages behind a survivor set, each list sorted by site.

    Attributes:
        adverts: M1 of every site that sent one.
        deals: headers of M3 of every dealer.
        inputs: headers of M5 of every survivor.
        votes: M7 in the survivor certificate.
    """

    adverts: tuple[Envelope, ...] = field(repr=False)
    deals: tuple[Envelope, ...] = field(repr=False)
    inputs: tuple[Envelope, ...] = field(repr=False)
    votes: tuple[Envelope, ...] = field(repr=False)

    def to_bytes(self) -> bytes:
        """The four lists, one after the other."""
        writer = Writer()
        for envelopes in (self.adverts, self.deals, self.inputs, self.votes):
            writer.sequence(envelopes, write_envelope)
        return writer.bytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Raises:
        DecodeError: not four lists of envelopes.
        """
        reader = Reader(data)
        lists = [reader.sequence(MAX_SITES, name, read_envelope) for name in cls.__slots__]
        reader.expect_end("the messages of a round")
        return cls(*lists)


@dataclass(frozen=True, slots=True)
class CertifiedRound:
    """A round whose survivors enough of its dealers have voted for.

    Attributes:
        plan: of the round.
        dealers: U2 with the adverts of U1, and T2.
        inputs: the signed header of every survivor's upload, in the order of the sites.
        t3: what the votes are for.
        certificate: SHA-256 of the payload of the SurvivorCertificate with these votes.
        voters: whose votes these are.
    """

    plan: Plan = field(repr=False)
    dealers: Dealers = field(repr=False)
    inputs: Mapping[str, InputHeader] = field(repr=False)
    t3: bytes
    certificate: bytes
    voters: tuple[str, ...]

    @property
    def survivors(self) -> tuple[str, ...]:
        """The sites in the sum, sorted."""
        return tuple(self.inputs)

    @property
    def dropouts(self) -> tuple[str, ...]:
        """The sites that dealt shares and are not in the sum, sorted."""
        return tuple(site for site in self.dealers.sites if site not in self.inputs)

    @classmethod
    def opened(cls, plan: Plan, signed: SignedRound) -> Self:
        """Checks the messages of a round.

        Args:
            plan: from the round's manifest, read with a roster that can be trusted.

        Raises:
            DecodeError, PeerError: a signature is wrong, a message is of another round or
                attempt, of a site that may not send it, or follows from other messages than
                these; or too few sites are in the sum or voted for it.
        """
        dealers = _dealers(plan, signed)
        headers = _by_signer(plan, signed.inputs)
        _require_members(headers, dealers.sites, "sent an update")
        if len(headers) < plan.fewest_survivors:
            raise DecodeError(
                f"{len(headers)} updates are in the sum, {plan.fewest_survivors} are needed"
            )
        inputs = {site: open_input(plan, dealers.t2, site, one) for site, one in headers.items()}
        digests = {site: header.payload_digest for site, header in headers.items()}
        t3 = survivors_transcript(dealers.t2, digests)
        votes = _by_signer(plan, signed.votes)
        _require_members(votes, dealers.sites, "voted")
        if len(votes) < plan.vote_quorum:
            raise DecodeError(f"{len(votes)} sites voted, {plan.vote_quorum} are needed")
        for voter, vote in votes.items():
            check_vote(plan, voter, vote, t3)
        message = SurvivorCertificate(plan.context, COORDINATOR, t3, signed.votes)
        certificate = hashlib.sha256(message.to_payload()).digest()
        return cls(plan, dealers, inputs, t3, certificate, tuple(votes))


def _dealers(plan: Plan, signed: SignedRound) -> Dealers:
    members = open_adverts(plan, _by_signer(plan, signed.adverts))
    headers = _by_signer(plan, signed.deals)
    for dealer, header in headers.items():
        open_deal(plan, members, dealer, header)
    # What is under the dealers' roots is their receivers' business, and needs no second look.
    deals = {dealer: Deal(header, (), ()) for dealer, header in headers.items()}
    return Dealers(members, deals, shares_transcript(members, headers))


def _by_signer(plan: Plan, envelopes: Sequence[Envelope]) -> dict[str, Envelope]:
    return dict(zip(signers_of(plan, envelopes), envelopes, strict=True))


def _require_members(sites: Mapping[str, Envelope], dealers: Sequence[str], what: str) -> None:
    strangers = sorted(set(sites) - set(dealers))
    if strangers:
        raise DecodeError(f"sites that dealt no shares {what}: {strangers}")
