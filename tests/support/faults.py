"""Parties of a masked round that break the protocol, one way each, and who gets accused."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest

from support.secagg import Federation, read, seal
from veilsum import _native, secagg
from veilsum._native import Secret
from veilsum.secagg import dealing, keys
from veilsum.secagg.complaints import Complaint
from veilsum.secagg.envelope import Envelope
from veilsum.secagg.messages import ShareDeal, ShareRelay, UnmaskShares
from veilsum.secagg.payload import read_payload

OTHER = b"\x5a" * 32


def accusations(federation: Federation) -> list[secagg.Blamed]:
    """Of everybody, by whomever; each is checked with nothing but the roster."""
    from_sites = [effect for _, effect in federation.site_effects]
    found = [
        effect
        for effect in (*federation.coordinator_effects, *from_sites)
        if isinstance(effect, secagg.Blamed)
    ]
    for effect in found:
        shown = secagg.check_evidence(effect.evidence, federation.plan.roster)
        assert shown == secagg.Guilty(effect.accused, effect.fault), shown
    return found


def accused(federation: Federation) -> set[tuple[str, str]]:
    """Who was accused of what."""
    return {(effect.accused, effect.fault.name) for effect in accusations(federation)}


def left_out(federation: Federation) -> set[str]:
    """Whom the host is told not to invite again."""
    return {
        effect.site
        for effect in federation.coordinator_effects
        if isinstance(effect, secagg.LeaveOut)
    }


def aborted(federation: Federation) -> str:
    """Why the round ended without a result."""
    last = federation.coordinator_effects[-1]
    assert isinstance(last, secagg.Aborted), last
    return last.reason


# --- dealers ------------------------------------------------------------------------


def deals_badly(
    monkeypatch: pytest.MonkeyPatch, dealer: str, change: Callable[[list[Secret]], list[Secret]]
) -> None:
    """The dealer's shares of both seeds are changed before it commits to them and seals them."""
    honest = dealing.deal_shares

    def deal(plan: Any, site: str, *rest: Any) -> Any:
        if site != dealer:
            return honest(plan, site, *rest)
        with pytest.MonkeyPatch.context() as patch:
            shares = dealing._deal
            patch.setattr(dealing, "_deal", lambda *args: change(shares(*args)))
            return honest(plan, site, *rest)

    monkeypatch.setattr(dealing, "deal_shares", deal)


def other_secret(threshold: int) -> Callable[[list[Secret]], list[Secret]]:
    """Shares of one polynomial, of another secret than the advertised one."""

    def change(shares: list[Secret]) -> list[Secret]:
        coefficients = Secret.from_bytes(bytes(range(32)) * (threshold - 1))
        secret = Secret.from_bytes(OTHER)
        indices = list(range(1, len(shares) + 1))
        return _native.deal_shares(secret, threshold, indices, coefficients)

    return change


def off_the_polynomial(receivers: Iterable[int]) -> Callable[[list[Secret]], list[Secret]]:
    """Some receivers get shares that are not on the polynomial of the others."""

    def change(shares: list[Secret]) -> list[Secret]:
        return [
            Secret.from_bytes(OTHER) if number in receivers else share
            for number, share in enumerate(shares)
        ]

    return change


# --- responders ---------------------------------------------------------------------


def wrong_answer(answer: bytes, dealer: str) -> bytes:
    """The share of one dealer's secret has a flipped bit."""
    message = read(UnmaskShares, answer)

    def flipped(shares: Any) -> Any:
        return tuple(
            (name, bytes([share[0] ^ 1]) + share[1:] if name == dealer else share)
            for name, share in shares
        )

    return seal(
        replace(
            message,
            self_shares=flipped(message.self_shares),
            mask_shares=flipped(message.mask_shares),
        )
    )


def forged_from(message: bytes, kind: type[Any], **changes: Any) -> Envelope:
    """Another message of the same sender, as an envelope."""
    return Envelope.from_bytes(seal(replace(read(kind, message), **changes)))


# --- complaints ---------------------------------------------------------------------


def disputes(federation: Federation) -> set[tuple[str, str]]:
    """(dealer, complainer) of each; the evidence is checked as well."""
    found = set()
    for effect in federation.coordinator_effects:
        if isinstance(effect, secagg.Disputed):
            shown = secagg.check_evidence(effect.evidence, federation.plan.roster)
            assert shown == secagg.Dispute(effect.dealer, effect.complainer), shown
            found.add((effect.dealer, effect.complainer))
    return found


def seals_badly(
    monkeypatch: pytest.MonkeyPatch, dealer: str, receivers: Iterable[str], how: str
) -> None:
    """The dealer's boxes for these receivers are of no use.

    Args:
        how: "content": they open on other shares than it committed to; "key": it sealed with a
            key of its own choosing, and says so if it is asked; "garbage": it sealed nothing.
    """
    honest = keys.seal_box

    def seal_box(key: Secret, t1: bytes, sender: str, receiver: str, plain: Secret) -> bytes:
        if sender != dealer or receiver not in receivers:
            return honest(key, t1, sender, receiver, plain)
        if how == "garbage":
            return bytes(keys.BOX_BYTES)
        if how == "key":
            return honest(Secret.from_bytes(OTHER), t1, sender, receiver, plain)
        return honest(key, t1, sender, receiver, Secret.from_bytes(OTHER * 2))

    monkeypatch.setattr(keys, "seal_box", seal_box)


def complaint_of(federation: Federation, complainer: str, dealer: str, key: bytes) -> bytes:
    """A complaint about the box that was really relayed to a site."""
    relay = next(
        message
        for origin, to, message in federation.sent
        if to == complainer and isinstance(message, bytes) and b"share-relay" in message[:30]
    )
    deals = {
        read_payload(ShareDeal, deal.header.payload, context=None).sender: deal
        for deal in read(ShareRelay, relay).deals
    }
    deal = deals[dealer]
    return seal(
        Complaint(
            federation.plan.context,
            complainer,
            t1=federation.coordinator._phase.dealers.members.t1,
            dealer=dealer,
            header=deal.header.payload_digest,
            box=deal.share.box,
            key=key,
        )
    )
