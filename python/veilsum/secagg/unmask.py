"""From shares to the masks that are left in the sum. Coordinator only, after M9."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from veilsum import _native
from veilsum._native import Secret
from veilsum.errors import PeerError, RoundAborted
from veilsum.secagg import blame
from veilsum.secagg.audit_keys import AuditKeys
from veilsum.secagg.blame import ProvenFault
from veilsum.secagg.dealing import check_shares
from veilsum.secagg.envelope import Envelope
from veilsum.secagg.evidence import Evidence, named
from veilsum.secagg.messages import UnmaskShares
from veilsum.secagg.papers import MASK_SEED, SELF_SEED, seed_fits
from veilsum.secagg.phases import CollectingUnmask, HeldShares
from veilsum.secagg.plan import Plan

_MAX_SUBSETS = 16
"""Of answers, tried for a dealer whose shares are not of one polynomial. Where only some of its
shares are, there may be no way to find out which: it made the round fail, and is named for it."""


class WrongSecrets(RoundAborted):
    """Dealers shared other secrets than they advertised, and no answers give the right ones."""

    def __init__(self, sites: Iterable[str], evidence: tuple[Evidence, ...]) -> None:
        who = named(sites)
        super().__init__(f"site {who} shared another secret than the one it advertised")
        self.evidence = evidence


def checked_shares(
    plan: Plan, phase: CollectingUnmask, answer: UnmaskShares, envelope: Envelope
) -> HeldShares:
    """Holds one site's answer against the certificate and the dealers' commitments.

    Args:
        envelope: the one that the answer was opened from.

    Raises:
        PeerError: naming the responder: other shares than asked for, or wrong ones. The latter
            is a ProvenFault.
    """
    dealers, survivors = phase.dealers, phase.survivors
    responder = answer.sender
    alive = frozenset(survivors)
    dropouts = [site for site in dealers.sites if site not in alive]
    if answer.t3 != phase.t3:
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
        raise ProvenFault(
            responder,
            f"returned a share that is not the one site {error.site!r} dealt to it",
            blame.wrong_share(plan, dealers, phase.inputs, envelope, (error.site, responder)),
        ) from error
    return held


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """The seeds that masks are removed with, each held against what its owner advertised, and
    what shows dealers to be at fault whose shares are not all of one secret."""

    seeds: AuditKeys
    evidence: tuple[Evidence, ...]


def rebuilt_seeds(plan: Plan, phase: CollectingUnmask) -> Rebuilt:
    """The survivors' self seeds and the dropouts' mask seeds.

    Args:
        phase: with share_threshold checked answers at least, in the order they came.

    Raises:
        WrongSecrets: a dealer shared another secret than it advertised, whatever answers its
            shares are taken from.
    """
    survivors = phase.survivors
    dropouts = [site for site in phase.dealers.sites if site not in survivors]
    self_seeds = _Seeds(plan, phase, SELF_SEED, survivors)
    mask_seeds = _Seeds(plan, phase, MASK_SEED, dropouts)
    evidence = (*self_seeds.rebuild(), *mask_seeds.rebuild())
    seeds = AuditKeys(self_seeds.found, mask_seeds.found)
    missing = [*self_seeds.missing, *mask_seeds.missing]
    if missing:
        seeds.wipe()
        raise WrongSecrets(missing, evidence)
    return Rebuilt(seeds, evidence)


class _Seeds:
    """The seeds of one kind, each of its owner's, from as few answers as rebuild them.

    One set of answers is enough where dealers are honest. A second one, where there are more
    answers than needed, finds dealers whose shares are not of one polynomial: they would have
    decided, by whom they dealt well, whose answers let a round succeed.
    """

    def __init__(
        self, plan: Plan, phase: CollectingUnmask, which: bytes, owners: Sequence[str]
    ) -> None:
        self._plan = plan
        self._phase = phase
        self._which = which
        self._owners = owners
        self.found: dict[str, Secret] = {}

    @property
    def missing(self) -> list[str]:
        """Owners whose seeds no answers gave."""
        return [owner for owner in self._owners if owner not in self.found]

    def rebuild(self) -> list[Evidence]:
        """Fills `found` as far as that goes; returns what shows owners to be at fault."""
        wrong: dict[str, tuple[str, ...]] = {}
        spare = len(self._phase.received) > self._plan.share_threshold
        for number in range(2 if spare else 1):
            self._try(self._owners, self._subset(number), wrong)
        for number in range(2, _MAX_SUBSETS if spare else 0):
            self._try(self.missing, self._subset(number), wrong)
        return [self._evidence(owner, subset) for owner, subset in wrong.items()]

    def _try(
        self, owners: Sequence[str], subset: tuple[str, ...], wrong: dict[str, tuple[str, ...]]
    ) -> None:
        indices = [self._phase.dealers.members.index(site) for site in subset]
        shares = [[self._share(site, owner) for site in subset] for owner in owners]
        seeds = _native.combine_shares(indices, shares) if shares else []
        adverts = self._phase.dealers.members.adverts
        for owner, seed in zip(owners, seeds, strict=True):
            fits = seed_fits(self._plan, adverts[owner], self._which, seed)
            if not fits:
                wrong.setdefault(owner, subset)
            if fits and owner not in self.found:
                self.found[owner] = seed
            else:
                seed.wipe()

    def _share(self, responder: str, owner: str) -> Secret:
        held = self._phase.received[responder]
        shares = held.self_shares if self._which == SELF_SEED else held.mask_shares
        return shares[owner]

    def _subset(self, number: int) -> tuple[str, ...]:
        """Whose answers to take: first those that came first, then others that no dealer could
        foresee when it dealt, as T3 hangs on every site's update."""
        answered = list(self._phase.received)
        if number:
            salt = self._phase.t3 + bytes([number])
            answered.sort(key=lambda site: hashlib.sha256(salt + site.encode()).digest())
        return tuple(answered[: self._plan.share_threshold])

    def _evidence(self, owner: str, subset: tuple[str, ...]) -> Evidence:
        shares = {site: self._share(site, owner) for site in subset}
        return blame.wrong_secret(self._plan, self._phase.dealers, owner, self._which, shares)
