"""A site's secrets of one attempt: made, shared with the others, and turned into masks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from veilsum import _native
from veilsum._native import Secret
from veilsum.errors import PeerError
from veilsum.secagg import keys, merkle
from veilsum.secagg.keys import Agreement, Entropy, Label
from veilsum.secagg.masks import MaskKeys, update_masks
from veilsum.secagg.messages import DealtShare, KeyAdvert, RelayedDeal, SealedShare, ShareDeal
from veilsum.secagg.phases import HeldShares, SiteSecrets
from veilsum.secagg.plan import Plan
from veilsum.secagg.transcript import Members, check_entry, open_deal


class BadBox(PeerError):  # noqa: N818  what a peer did, not what went wrong here
    """A box does not open, or not on the shares that its dealer committed to."""


def make_secrets(context: bytes, site: str, entropy: Entropy) -> SiteSecrets:
    """Fresh secrets of one attempt.

    The channel key is drawn on its own: were it derived from the mask seed, rebuilding the
    seed of a dropout would open every box addressed to it.
    """
    for_mask, for_self = entropy(keys.SECRET_BYTES), entropy(keys.SECRET_BYTES)
    mask_seed = keys.mask_seed(context, for_mask, site)
    self_seed = keys.self_seed(context, for_self, site)
    for_mask.wipe()
    for_self.wipe()
    return SiteSecrets(
        mask_seed=mask_seed,
        self_seed=self_seed,
        mask_private=keys.mask_private_key(context, mask_seed, site),
        channel_private=entropy(keys.SECRET_BYTES),
    )


def own_advert(context: bytes, site: str, secrets: SiteSecrets) -> KeyAdvert:
    """The public side of a site's secrets."""
    return KeyAdvert(
        context,
        site,
        mask_key=keys.public_key(secrets.mask_private),
        channel_key=keys.public_key(secrets.channel_private),
        self_commitment=keys.self_commitment(context, secrets.self_seed, site),
    )


def deal_shares(
    plan: Plan, site: str, members: Members, secrets: SiteSecrets, entropy: Entropy
) -> tuple[ShareDeal, tuple[SealedShare, ...]]:
    """Shares both seeds among all members, the dealer included.

    Returns:
        The root to be signed, and what is under it for each member in their order.
    """
    mask_shares = _deal(plan, members, secrets.mask_seed, entropy)
    self_shares = _deal(plan, members, secrets.self_seed, entropy)
    agreement = Agreement(secrets.channel_private)
    sealed = []
    for receiver, mask_share, self_share in zip(
        members.sites, mask_shares, self_shares, strict=True
    ):
        plain = keys.join_shares(mask_share, self_share)
        channel = keys.channel_key(
            members.t1,
            agreement,
            members.channel_key(site),
            members.channel_key(receiver),
            sending=True,
        )
        box = keys.seal_box(channel, members.t1, site, receiver, plain)
        pair = (members.t1, site, receiver)
        sealed.append(
            SealedShare(
                keys.share_commitment(Label.MASK_SHARE_COMMITMENT, *pair, mask_share),
                keys.share_commitment(Label.SELF_SHARE_COMMITMENT, *pair, self_share),
                box,
            )
        )
        for secret in (mask_share, self_share, plain, channel):
            secret.wipe()
    root = merkle.root_hash([share.entry.leaf for share in sealed])
    return ShareDeal(plan.context, site, members.t1, root), tuple(sealed)


def _deal(plan: Plan, members: Members, secret: Secret, entropy: Entropy) -> list[Secret]:
    coefficients = entropy(keys.SECRET_BYTES * (plan.share_threshold - 1))
    indices = range(1, len(members.sites) + 1)
    shares = _native.deal_shares(secret, plan.share_threshold, list(indices), coefficients)
    coefficients.wipe()
    return shares


def open_shares(
    plan: Plan,
    site: str,
    members: Members,
    secrets: SiteSecrets,
    relayed: Mapping[str, RelayedDeal],
) -> HeldShares:
    """Verifies what every dealer committed to for this site, and opens its box.

    Raises:
        BadBox: naming the dealer, whose box is what it signed and is of no use.
        PeerError: a dealer has signed for another view of the keys.
        DecodeError: what was relayed is not what the dealer signed.
    """
    mask_shares, self_shares = {}, {}
    agreement = Agreement(secrets.channel_private)
    for dealer, deal in relayed.items():
        entry = deal.share.entry
        signed = open_deal(plan, members, dealer, deal.header)
        check_entry(members, signed, site, entry, deal.proof)
        try:
            mask_share, self_share = _open_box(site, members, agreement, dealer, deal.share.box)
            check_shares(members, dealer, site, entry, mask_share=mask_share, self_share=self_share)
        except PeerError as error:
            raise BadBox(dealer, error.what) from error
        mask_shares[dealer], self_shares[dealer] = mask_share, self_share
    return HeldShares(mask_shares, self_shares)


def _open_box(
    site: str, members: Members, agreement: Agreement, dealer: str, box: bytes
) -> tuple[Secret, Secret]:
    channel = keys.channel_key(
        members.t1,
        agreement,
        members.channel_key(site),
        members.channel_key(dealer),
        sending=False,
    )
    try:
        return keys.split_box(keys.open_box(channel, members.t1, dealer, site, box))
    finally:
        channel.wipe()


def check_shares(
    members: Members,
    dealer: str,
    receiver: str,
    entry: DealtShare,
    *,
    mask_share: Secret | None = None,
    self_share: Secret | None = None,
) -> None:
    """Holds shares against what their dealer committed to.

    Raises:
        PeerError: naming the dealer.
    """
    pair = (members.t1, dealer, receiver)
    checks = (
        (mask_share, Label.MASK_SHARE_COMMITMENT, entry.mask_commitment),
        (self_share, Label.SELF_SHARE_COMMITMENT, entry.self_commitment),
    )
    for share, label, commitment in checks:
        if share is not None and keys.share_commitment(label, *pair, share) != commitment:
            raise PeerError(dealer, "dealt a share that does not match its commitment")


def derive_masks(
    site: str, members: Members, t2: bytes, dealers: Iterable[str], secrets: SiteSecrets
) -> MaskKeys:
    """Keys of all masks of this site's update: its own, and one per other dealer.

    Raises:
        PeerError: a peer's mask key is of low order.
    """
    agreement, own = Agreement(secrets.mask_private), members.mask_key(site)
    pairs = [
        (peer, keys.pair_mask_key(t2, agreement, own, members.mask_key(peer)))
        for peer in dealers
        if peer != site
    ]
    return update_masks(site, keys.self_mask_key(t2, secrets.self_seed, site), pairs)
