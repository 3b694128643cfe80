"""From shares to the masks that are left in the sum. Coordinator only, after M9."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from veilsum import _native
from veilsum._native import Secret
from veilsum.errors import PeerError, RoundAborted
from veilsum.secagg.audit_keys import AuditKeys, removal
from veilsum.secagg.dealing import check_shares
from veilsum.secagg.masks import MaskKeys
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
    alive = frozenset(survivors)
    dropouts = [site for site in dealers.sites if site not in alive]
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


def rebuilt_seeds(
    plan: Plan, dealers: Dealers, survivors: Sequence[str], answers: Mapping[str, HeldShares]
) -> AuditKeys:
    """The survivors' self seeds and the dropouts' mask seeds, as their shares give them.

    Args:
        answers: at least share_threshold checked answers, by responder.
    """
    responders = sorted(answers, key=str.encode)[: plan.share_threshold]
    indices = [dealers.members.index(site) for site in responders]
    chosen = [answers[site] for site in responders]
    dropouts = [site for site in dealers.sites if site not in survivors]
    self_seeds = _combine(indices, [[one.self_shares[u] for one in chosen] for u in survivors])
    mask_seeds = _combine(indices, [[one.mask_shares[u] for one in chosen] for u in dropouts])
    return AuditKeys(
        dict(zip(survivors, self_seeds, strict=True)), dict(zip(dropouts, mask_seeds, strict=True))
    )


def masks_to_remove(
    plan: Plan, dealers: Dealers, survivors: Sequence[str], seeds: AuditKeys
) -> MaskKeys:
    """The masks that are left in the sum.

    Raises:
        RoundAborted: a dealer shared another secret than it advertised; names it.
    """
    try:
        return removal(plan, dealers, survivors, seeds)
    except PeerError as error:
        raise RoundAborted(
            str(error),
            hint="leave the site out of the next round; its signed commitments are the evidence",
        ) from error


def _combine(indices: list[int], shares: list[list[Secret]]) -> list[Secret]:
    return _native.combine_shares(indices, shares) if shares else []
