"""What a site checks of a result before it acknowledges it, and of the last round's before it
takes part in the next one.

A round's result is known by q acknowledgements. Honest sites acknowledge one result per attempt
and open no further attempt at a round whose result they have acknowledged, and q is more than
(n+c)/2: so no two results of one round get q among the same n sites, whatever the coordinator shows
to whom. Attempts to which it invites others are as different runs: none of their sites goes on from
the other's result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from veilsum.errors import ConfigError, DecodeError, PeerError
from veilsum.roster import Roster
from veilsum.secagg.envelope import Envelope
from veilsum.secagg.ledger import Ledger, attempt_of
from veilsum.secagg.ledger_records import Overtaken
from veilsum.secagg.payload import COORDINATOR, open_envelope
from veilsum.secagg.phases import Unmasked
from veilsum.secagg.plan import Plan
from veilsum.secagg.policy import LocalPolicy, Refusal
from veilsum.secagg.result_messages import Link, ResultAck, RoundResult, acks_digest
from veilsum.secagg.sum_tree import check_roots
from veilsum.secagg.transcript import signers_of
from veilsum.secagg.wire import DIGEST_BYTES

NO_RESULT = bytes(DIGEST_BYTES)
"""`previous_result` of a run's first round."""


@dataclass(frozen=True, slots=True)
class LastRound:
    """A link, verified: everything in it is signed by whom it names, for one attempt.

    Attributes:
        plan: of the round.
        result: as the coordinator signed it.
        result_digest: SHA-256 of its payload.
        acks: by site, sorted; over this result each.
        ack_digests: SHA-256 of their payloads.
    """

    plan: Plan = field(repr=False)
    result: RoundResult
    result_digest: bytes
    acks: Mapping[str, ResultAck]
    ack_digests: Mapping[str, bytes] = field(repr=False)

    @property
    def digest(self) -> bytes:
        """What the next round's plan calls `previous_result`."""
        return acks_digest(self.result_digest, self.ack_digests)

    @property
    def acknowledged(self) -> bool:
        """Whether a quorum has acknowledged the result."""
        return len(self.acks) >= self.plan.vote_quorum


def open_ack(plan: Plan, site: str, ack: Envelope, result_digest: bytes) -> ResultAck:
    """Raises:
    DecodeError, PeerError: a wrong signature, another round, or another result.
    """
    key = plan.roster.signing_key(site)
    message = open_envelope(ResultAck, ack, key, sender=site, context=plan.context)
    if message.result != result_digest:
        raise PeerError(site, "acknowledged another result of the round")
    return message


def open_link(roster: Roster, link: Link) -> LastRound:
    """Verifies a link with nothing but the roster. How many acknowledged is the caller's matter.

    Raises:
        DecodeError: a part of it is not what it should be, or a site is in it twice.
    """
    try:
        plan = Plan.from_bytes(link.manifest, roster=roster)
    except ConfigError as error:
        raise DecodeError(f"the last round's plan cannot work: {error}") from error
    result = open_envelope(
        RoundResult, link.result, roster.coordinator_key, sender=COORDINATOR, context=plan.context
    )
    result_digest = link.result.payload_digest
    envelopes = dict(zip(signers_of(plan, link.acks), link.acks, strict=True))
    try:
        acks = {site: open_ack(plan, site, ack, result_digest) for site, ack in envelopes.items()}
    except PeerError as error:
        raise DecodeError(str(error)) from error
    digests = {site: ack.payload_digest for site, ack in envelopes.items()}
    return LastRound(plan, result, result_digest, acks, digests)


# --- before a site takes part -------------------------------------------------------


def check_last_round(
    policy: LocalPolicy, plan: Plan, link: Link | None, site: str, ledger: Ledger
) -> Overtaken | None:
    """Whether a round begins where the one before it ended, as far as this site can tell.

    Args:
        plan: of the new round, within the policy; the ledger does not know it yet.
        link: what its invitation brings of the round before.
        site: this one.

    Returns:
        what must be written into the ledger instead of taking part: it is an old one.

    Raises:
        DecodeError: the link is not signed as it should be.
        Refusal: code "result", "model", "policy" or "equivocation".
    """
    first = plan.round_number == 1
    if first != (link is None) or first != (plan.previous_result == NO_RESULT):
        raise Refusal("result", "the first round follows no result, and every other one does")
    if link is None:
        return None
    last = open_link(plan.roster, link)
    _check_follows(plan, last)
    policy.check(last.plan)
    if not last.acknowledged:
        raise Refusal(
            "result",
            f"{len(last.acks)} sites acknowledged the last result, "
            f"{last.plan.vote_quorum} are needed",
        )
    return _check_remembered(policy, last, site, ledger)


def _check_follows(plan: Plan, last: LastRound) -> None:
    before = (last.plan.task_id, last.plan.run_id, last.plan.round_number + 1)
    if before != (plan.task_id, plan.run_id, plan.round_number):
        raise Refusal("result", "the result that came along is not that of the round before")
    if last.digest != plan.previous_result:
        raise Refusal("result", "the plan follows another result than the one that came along")
    if last.result.model_hash != plan.model_hash:
        raise Refusal("model", "the plan starts from another model than the last round ended with")
    if last.result.state_hash != plan.state_hash:
        raise Refusal("model", "the plan starts from another optimizer state than was left")


def _check_remembered(
    policy: LocalPolicy, last: LastRound, site: str, ledger: Ledger
) -> Overtaken | None:
    """Against what this site did in that round, if it was in it."""
    attempt = attempt_of(last.plan)
    known = ledger.last_ack(attempt.task_id, attempt.run_id)
    if known is not None and known.attempt.round_number == attempt.round_number:
        if (known.attempt, known.result_digest) != (attempt, last.result_digest):
            raise Refusal("equivocation", "this site acknowledged another result of that round")
        return None
    if site in last.acks:
        # Under the site's own signature, and not in its ledger. A ledger that is current has it,
        # or is ahead of the round that is opened, which then is refused as a replay before this.
        return Overtaken(attempt, last.ack_digests[site])
    voted = ledger.vote_in(attempt)
    if voted is not None and voted != last.result.t3:
        raise Refusal("result", "the last result is of another survivor set than this site's vote")
    if policy.missed_rounds == "refuse":
        raise Refusal("result", "this site did not acknowledge the last result itself")
    return None


# --- before a site acknowledges -----------------------------------------------------


def check_result(plan: Plan, site: str, phase: Unmasked, message: RoundResult) -> None:
    """Whether a result follows from what this site has seen of the round. What the sum is, it
    cannot tell from this: see `checked` of its acknowledgement.

    Raises:
        DecodeError: the roots are not of the plan's streams.
        Refusal: code "result".
    """
    if message.t3 != phase.t3:
        raise Refusal("result", "the result is of another survivor set than this site's vote")
    if message.certificate != phase.certificate:
        raise Refusal("result", "the result names another certificate than this site has seen")
    check_roots(plan.ring, message.roots)
    if not 1 <= message.total_weight <= len(phase.survivors) * plan.weight_cap:
        raise Refusal("result", "the total weight is none that the survivors can have")
    responders = [one for one, _ in message.responders]
    if responders != sorted(set(responders), key=str.encode):
        raise Refusal("result", "the result repeats a responder or does not sort them")
    if not phase.dealers.issuperset(responders) or len(responders) < plan.share_threshold:
        raise Refusal("result", "the result names too few responders, or some without shares")
    if dict(message.responders).get(site) != phase.answer:
        raise Refusal("result", "the result does not hold the answer that this site gave")
