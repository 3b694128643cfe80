"""Finished rounds that never took place: what the next one's invitation brings, well signed."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from veilsum import secagg
from veilsum.secagg.envelope import Envelope
from veilsum.secagg.payload import COORDINATOR, Message
from veilsum.secagg.result_messages import Link, ResultAck, RoundResult, acks_digest
from veilsum.secagg.sum_tree import StreamRoot

SigningKey = Callable[[str], Ed25519PrivateKey]


def sealed(message: Message, key: Ed25519PrivateKey) -> Envelope:
    return Envelope.sign(message.kind, message.to_payload(), key)


def round_before(
    plan: secagg.Plan,
    signing_key: SigningKey,
    *,
    model_hash: bytes,
    state_hash: bytes = bytes(32),
    acks: Iterable[str] | None = None,
    checked: int = 0,
) -> secagg.PreviousRound:
    """A result of this plan, acknowledged by these sites; by all of the cohort without."""
    roots = [StreamRoot(one.group, one.elements, one.bits, bytes(32)) for one in plan.ring.streams]
    result = RoundResult(
        plan.context,
        COORDINATOR,
        t3=bytes(32),
        certificate=bytes(32),
        roots=tuple(roots),
        total_weight=1,
        responders=tuple((site, bytes(32)) for site in plan.cohort),
        mean_digest=bytes(32),
        model_hash=model_hash,
        state_hash=state_hash,
    )
    envelope = sealed(result, signing_key("coordinator"))
    digest = envelope.payload_digest
    sites = sorted(plan.cohort if acks is None else acks, key=str.encode)
    made = {
        site: sealed(
            ResultAck(plan.context, site, digest, checked, secagg.no_egress()), signing_key(site)
        )
        for site in sites
    }
    link = Link(plan.to_bytes(), envelope, tuple(made.values()))
    digests = {site: ack.payload_digest for site, ack in made.items()}
    return secagg.PreviousRound(link, acks_digest(digest, digests), bytes(32), frozenset())
