"""What a site checks before it takes part, votes and returns shares, and what it then returns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from veilsum._native import Secret
from veilsum.errors import ConfigError, LedgerError, PeerError
from veilsum.roster import Roster
from veilsum.secagg.envelope import Envelope
from veilsum.secagg.ledger import Ledger
from veilsum.secagg.ledger_records import LedgerRecord
from veilsum.secagg.messages import (
    KeyRoster,
    RelayedDeal,
    RoundOpen,
    ShareRelay,
    SurvivorCertificate,
    SurvivorProposal,
    UnmaskShares,
)
from veilsum.secagg.payload import COORDINATOR, open_envelope
from veilsum.secagg.phases import Ready, Uploaded, Voted
from veilsum.secagg.plan import Plan
from veilsum.secagg.policy import Refusal
from veilsum.secagg.result_messages import Link
from veilsum.secagg.transcript import Members, check_vote, open_adverts, signers_of


def open_plan(roster: Roster, envelope: Envelope) -> tuple[Plan, Link | None]:
    """The plan of an invitation and what it brings of the round before, as the coordinator
    signed it.

    Raises:
        DecodeError: the envelope is not one of the coordinator, or holds no manifest.
        Refusal: code "plan": it cannot work, or is for another roster, round or attempt.
    """
    opened = open_envelope(
        RoundOpen, envelope, roster.coordinator_key, sender=COORDINATOR, context=None
    )
    try:
        plan = Plan.from_bytes(opened.manifest, roster=roster)
    except ConfigError as error:
        raise Refusal("plan", str(error)) from error
    if plan.context != opened.context:
        raise Refusal("plan", "the manifest belongs to another round or attempt")
    return plan, opened.previous


def check_same_attempt(plan: Plan, second: Plan) -> None:
    """Whether a second invitation names the attempt of the first. Their contexts differ either
    way, because the manifest is part of a context.

    Raises:
        Refusal: code "protocol": it names another, which contradicts nothing.
    """
    if _attempt(plan) != _attempt(second):
        raise Refusal("protocol", "an invitation to another round or attempt came")


def _attempt(plan: Plan) -> tuple[str, str, int, int]:
    return plan.task_id, plan.run_id, plan.round_number, plan.attempt


def checked_members(plan: Plan, site: str, advert: Envelope, message: KeyRoster) -> Members:
    """The sites that sent keys, this one with its own advert among them.

    Raises:
        DecodeError: an advert is not what it should be.
        Refusal: code "keys".
    """
    adverts = dict(zip(signers_of(plan, message.adverts), message.adverts, strict=True))
    own = adverts.get(site)
    if own is None or own.to_bytes() != advert.to_bytes():
        raise Refusal("keys", "the key roster does not hold this site's own advert")
    if len(adverts) < plan.fewest_survivors:
        raise Refusal("keys", f"{len(adverts)} sites sent keys, {plan.fewest_survivors} are needed")
    try:
        return open_adverts(plan, adverts)
    except PeerError as error:
        raise Refusal("keys", str(error)) from error


def remember(ledger: Ledger, record: LedgerRecord) -> None:
    """Before anything leaves that the record stands for.

    Raises:
        Refusal: the site must not do it, or could not remember it.
    """
    try:
        ledger.remember(record)
    except LedgerError as error:
        reason = "this site's ledger cannot be written"
        raise Refusal("ledger", reason, local_reason=str(error)) from error


def checked_relay(
    plan: Plan, site: str, deal: Envelope, message: ShareRelay
) -> dict[str, RelayedDeal]:
    """What was relayed, by dealer, this site's own deal among it. Nothing else is verified.

    Raises:
        DecodeError: a deal of nobody in the cohort, or not sorted.
        Refusal: code "protocol".
    """
    headers = [relayed.header for relayed in message.deals]
    deals = dict(zip(signers_of(plan, headers), message.deals, strict=True))
    own = deals.get(site)
    if own is None or own.header.to_bytes() != deal.to_bytes():
        raise Refusal("protocol", "the share relay does not hold this site's own deal")
    if len(deals) < plan.fewest_survivors:
        raise Refusal(
            "protocol", f"{len(deals)} sites dealt shares, {plan.fewest_survivors} are needed"
        )
    return deals


def checked_survivors(
    plan: Plan, site: str, phase: Ready | Uploaded, message: SurvivorProposal
) -> dict[str, bytes]:
    """The survivor set a site may vote for: site -> digest of its input header.

    Raises:
        Refusal: code "survivors".
    """
    if message.t2 != phase.t2:
        raise Refusal(
            "survivors", "the proposal follows other shares than this site's (T2 differs)"
        )
    sites = [site for site, _ in message.survivors]
    if sites != sorted(set(sites), key=str.encode):
        raise Refusal("survivors", "the proposal repeats a site or is not sorted")
    strangers = sorted(set(sites) - phase.held.mask_shares.keys())
    if strangers:
        raise Refusal("survivors", f"the proposal names sites that dealt no shares: {strangers}")
    if len(sites) < plan.fewest_survivors:
        raise Refusal(
            "survivors", f"{len(sites)} updates are in the sum, {plan.fewest_survivors} are needed"
        )
    survivors = dict(message.survivors)
    own = phase.header_digest if isinstance(phase, Uploaded) else None
    if site in survivors and survivors[site] != own:
        raise Refusal("survivors", "the proposal holds another input of this site")
    return survivors


def check_certificate(plan: Plan, phase: Voted, message: SurvivorCertificate) -> None:
    """Whether enough sites with shares voted for the set this site voted for.

    Raises:
        Refusal: code "votes".
        DecodeError: a vote is not what it should be.
    """
    if message.t3 != phase.t3:
        raise Refusal("votes", "the certificate is for another survivor set (T3 differs)")
    voters = signers_of(plan, message.votes)
    strangers = sorted(set(voters) - phase.held.mask_shares.keys())
    if strangers:
        raise Refusal("votes", f"the certificate has votes of sites without shares: {strangers}")
    if len(voters) < plan.vote_quorum:
        raise Refusal("votes", f"{len(voters)} sites voted, {plan.vote_quorum} are needed")
    try:
        for voter, vote in zip(voters, message.votes, strict=True):
            check_vote(plan, voter, vote, phase.t3)
    except PeerError as error:
        raise Refusal("votes", str(error)) from error


def unmask_shares(plan: Plan, site: str, phase: Voted) -> UnmaskShares:
    """M9. Of no dealer both: who is in the sum is hidden by its self mask alone, and who is not by
    nothing else than that its self mask stays unknown."""
    held, survivors = phase.held, phase.survivors
    return UnmaskShares(
        plan.context,
        site,
        phase.t3,
        self_shares=_reveal(held.self_shares, survivors),
        mask_shares=_reveal(held.mask_shares, held.mask_shares.keys() - survivors),
    )


def _reveal(shares: Mapping[str, Secret], dealers: Iterable[str]) -> tuple[tuple[str, bytes], ...]:
    """Shares on their way to the coordinator, which may know them from here on."""
    return tuple((dealer, bytes(shares[dealer])) for dealer in sorted(dealers, key=str.encode))
