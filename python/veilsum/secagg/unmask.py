"""From shares to the masks that are left in the sum. Coordinator only, after M9."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from veilsum import _native
from veilsum._native import Secret
from veilsum.errors import PeerError, RoundAborted
from veilsum.secagg import keys
from veilsum.secagg.dealing import check_shares
from veilsum.secagg.masks import MaskKeys, removal_masks
from veilsum.secagg.messages import UnmaskShares
from veilsum.secagg.phases import Dealers, HeldShares
from veilsum.secagg.plan import Plan


def checked_shares(
    dealers: Dealers, survivors: Sequence[str], t3: bytes, answer: UnmaskShares
) -> HeldShares:
    """Holds one site's answer against the certificate and the dealers' commitments.

    Raises:
        PeerError: naming the responder: other shares than asked for, or wrong ones.
    """
    responder = answer.sender
    dropouts = [site for site in dealers.sites if site not in survivors]
    if answer.t3 != t3:
        raise PeerError(responder, "answered for another survivor set (T3 differs)")
    asked = (tuple(survivors), tuple(dropouts))
    given = (
        tuple(dealer for dealer, _ in answer.self_shares),
        tuple(dealer for dealer, _ in answer.mask_shares),
    )
    if given != asked:
        raise PeerError(responder, "returned shares of other secrets than the certificate names")
    held = HeldShares(
        mask_shares={dealer: Secret.from_bytes(share) for dealer, share in answer.mask_shares},
        self_shares={dealer: Secret.from_bytes(share) for dealer, share in answer.self_shares},
    )
    members = dealers.members
    position = members.index(responder) - 1
    try:
        for dealer in dealers.sites:
            check_shares(
                members,
                dealer,
                responder,
                dealers.deals[dealer].entries[position],
                mask_share=held.mask_shares.get(dealer),
                self_share=held.self_shares.get(dealer),
            )
    except PeerError as error:
        held.wipe()
        raise PeerError(
            responder, f"returned a share that is not the one site {error.site!r} dealt to it"
        ) from error
    return held


def masks_to_remove(
    plan: Plan, dealers: Dealers, survivors: Sequence[str], answers: Mapping[str, HeldShares]
) -> MaskKeys:
    """Rebuilds the survivors' self seeds and the dropouts' mask seeds, and checks each
    against what its owner advertised.

    Args:
        answers: at least share_threshold checked answers, by responder.

    Raises:
        RoundAborted: a dealer shared another secret than it advertised; names it.
    """
    responders = sorted(answers, key=str.encode)[: plan.share_threshold]
    indices = [dealers.members.index(site) for site in responders]
    chosen = [answers[site] for site in responders]
    dropouts = [site for site in dealers.sites if site not in survivors]
    self_seeds = _combine(indices, [[one.self_shares[u] for one in chosen] for u in survivors])
    mask_seeds = _combine(indices, [[one.mask_shares[u] for one in chosen] for u in dropouts])
    try:
        return removal_masks(
            [
                _self_key(plan, dealers, site, seed)
                for site, seed in zip(survivors, self_seeds, strict=True)
            ],
            [
                edge
                for site, seed in zip(dropouts, mask_seeds, strict=True)
                for edge in _dropout_edges(plan, dealers, survivors, site, seed)
            ],
        )
    finally:
        for seed in (*self_seeds, *mask_seeds):
            seed.wipe()


def _combine(indices: list[int], shares: list[list[Secret]]) -> list[Secret]:
    return _native.combine_shares(indices, shares) if shares else []


def _self_key(plan: Plan, dealers: Dealers, site: str, seed: Secret) -> Secret:
    advertised = dealers.members.adverts[site].self_commitment
    if keys.self_commitment(plan.context, seed, site) != advertised:
        _blame_dealer(site)
    return keys.self_mask_key(dealers.t2, seed, site)


def _dropout_edges(
    plan: Plan, dealers: Dealers, survivors: Sequence[str], dropout: str, seed: Secret
) -> list[tuple[str, str, Secret]]:
    members = dealers.members
    own = members.mask_key(dropout)
    private = keys.mask_private_key(plan.context, seed, dropout)
    try:
        if keys.public_key(private) != own[1]:
            _blame_dealer(dropout)
        return [
            (
                survivor,
                dropout,
                keys.pair_mask_key(dealers.t2, private, own, members.mask_key(survivor)),
            )
            for survivor in survivors
        ]
    finally:
        private.wipe()


def _blame_dealer(site: str) -> None:
    raise RoundAborted(
        f"site {site!r} shared another secret than the one it advertised",
        hint="leave the site out of the next round; its signed commitments are the evidence",
    )
