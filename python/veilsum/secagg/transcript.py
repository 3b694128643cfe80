"""What both roles check in the same way, and the chain of hashes over what was agreed.

    T1 = all key adverts      T2 = T1, all share deals      T3 = T2, the survivors' inputs

T1 salts the keys of the share boxes and T2 the keys of the masks: two sites with
different views derive different keys, so a split view ends in boxes that do not open
or masks that do not cancel, never in a sum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property

from veilsum.errors import DecodeError, PeerError
from veilsum.roster import key_id
from veilsum.secagg import merkle
from veilsum.secagg.envelope import Envelope
from veilsum.secagg.keys import Label, public_key_fault, transcript
from veilsum.secagg.messages import (
    DealtShare,
    KeyAdvert,
    SealedDeal,
    ShareDeal,
    SurvivorVote,
)
from veilsum.secagg.payload import open_envelope
from veilsum.secagg.plan import Plan


@dataclass(frozen=True)
class Members:
    """The sites that advertised keys (U1), sorted, and T1 over their adverts."""

    adverts: Mapping[str, KeyAdvert]
    t1: bytes

    @cached_property
    def sites(self) -> tuple[str, ...]:
        """Names, sorted by their bytes."""
        return tuple(self.adverts)

    @cached_property
    def _indices(self) -> dict[str, int]:
        return {site: index for index, site in enumerate(self.sites, start=1)}

    def index(self, site: str) -> int:
        """Where the polynomials of dealers are evaluated for this site: 1, 2, ..."""
        return self._indices[site]

    def mask_key(self, site: str) -> tuple[str, bytes]:
        """(name, public mask key)."""
        return site, self.adverts[site].mask_key

    def channel_key(self, site: str) -> tuple[str, bytes]:
        """(name, public channel key)."""
        return site, self.adverts[site].channel_key


def signers_of(plan: Plan, envelopes: Sequence[Envelope]) -> list[str]:
    """Whose key each envelope claims to be signed with.

    Raises:
        DecodeError: a key of nobody in the cohort, one site twice, or not sorted by name.
    """
    owners = {key_id(plan.roster.signing_key(site)): site for site in plan.cohort}
    if any(envelope.key_id not in owners for envelope in envelopes):
        raise DecodeError("a relayed message is signed by nobody in the cohort")
    signers = [owners[envelope.key_id] for envelope in envelopes]
    if signers != sorted(set(signers), key=str.encode):
        raise DecodeError("relayed messages are repeated or not sorted by site")
    return signers


def check_advert(advert: KeyAdvert, taken: AbstractSet[bytes]) -> None:
    """Args:
        taken: all public keys of the adverts before it.

    Raises:
        PeerError: a public key is not canonical, of low order, or in use already.
    """
    own = advert.public_keys
    for key in own:
        fault = public_key_fault(key)
        if fault is not None:
            raise PeerError(advert.sender, f"advertised {fault}")
    if own[0] == own[1] or not taken.isdisjoint(own):
        raise PeerError(advert.sender, "advertised a public key that is in use already")


def open_adverts(plan: Plan, envelopes: Mapping[str, Envelope]) -> Members:
    """Verifies the key adverts of a round. `envelopes`: signer -> its advert.

    Raises:
        DecodeError, PeerError: a wrong signature, another round, or a bad key.
    """
    adverts: dict[str, KeyAdvert] = {}
    taken: set[bytes] = set()
    for site, envelope in envelopes.items():
        key = plan.roster.signing_key(site)
        advert = open_envelope(KeyAdvert, envelope, key, sender=site, context=plan.context)
        check_advert(advert, taken)
        taken.update(advert.public_keys)
        adverts[site] = advert
    return members_of(plan, adverts, envelopes)


def members_of(
    plan: Plan, adverts: Mapping[str, KeyAdvert], envelopes: Mapping[str, Envelope]
) -> Members:
    """The members that follow from verified adverts and the envelopes they came in."""
    digests = {site: envelope.payload_digest for site, envelope in envelopes.items()}
    t1 = transcript(Label.TRANSCRIPT_KEYS, plan.context, digests)
    return Members({site: adverts[site] for site in sorted(adverts, key=str.encode)}, t1)


def open_deal(plan: Plan, members: Members, dealer: str, header: Envelope) -> ShareDeal:
    """Verifies one dealer's signed root.

    Raises:
        DecodeError, PeerError: a wrong signature, or another view of the keys.
    """
    if dealer not in members.adverts:
        raise PeerError(dealer, "dealt shares without having advertised keys")
    key = plan.roster.signing_key(dealer)
    deal = open_envelope(ShareDeal, header, key, sender=dealer, context=plan.context)
    if deal.t1 != members.t1:
        raise PeerError(dealer, "dealt shares for another set of keys (T1 differs)")
    return deal


@dataclass(frozen=True, slots=True)
class Deal:
    """What the coordinator keeps of a deal: enough to show to anyone what was dealt to whom.

    Attributes:
        entries: one per member in their order.
        proofs: that each is under the root in the header.
    """

    header: Envelope
    entries: tuple[DealtShare, ...]
    proofs: tuple[tuple[bytes, ...], ...]


def open_sealed(plan: Plan, members: Members, dealer: str, sealed: SealedDeal) -> Deal:
    """Verifies one dealer's signed root and all that is said to be under it.

    Raises:
        DecodeError, PeerError: as open_deal; not one share per member; not under the root.
    """
    root = open_deal(plan, members, dealer, sealed.header).root
    if len(sealed.shares) != len(members.adverts):
        raise PeerError(
            dealer, f"dealt {len(sealed.shares)} shares to {len(members.adverts)} sites"
        )
    entries = tuple(share.entry for share in sealed.shares)
    found, proofs = merkle.root_and_proofs([entry.leaf for entry in entries])
    if found != root:
        raise PeerError(dealer, "sent shares that are not those under its signed root")
    return Deal(sealed.header, entries, tuple(proofs))


def check_entry(
    members: Members, deal: ShareDeal, receiver: str, entry: DealtShare, proof: Sequence[bytes]
) -> None:
    """Whether a dealer committed to this for this receiver. How many leaves there are, and which
    is the receiver's, is the members' to say, not the proof's.

    Raises:
        DecodeError: it did not. That is no fault of the dealer's: it signed the root alone.
    """
    position = members.index(receiver) - 1
    try:
        merkle.check_inclusion(deal.root, len(members.adverts), position, entry.leaf, proof)
    except DecodeError as error:
        raise DecodeError(f"the share relayed as of site {deal.sender!r}: {error}") from error


def shares_transcript(members: Members, headers: Mapping[str, Envelope]) -> bytes:
    """T2. `headers`: dealer -> its signed root."""
    digests = {dealer: header.payload_digest for dealer, header in headers.items()}
    return transcript(Label.TRANSCRIPT_SHARES, members.t1, digests)


def survivors_transcript(t2: bytes, survivors: Mapping[str, bytes]) -> bytes:
    """T3. `survivors`: site -> SHA-256 of its input header's payload."""
    return transcript(Label.TRANSCRIPT_SURVIVORS, t2, survivors)


def check_vote(plan: Plan, voter: str, vote: Envelope, t3: bytes) -> None:
    """Raises:
    DecodeError, PeerError: a wrong signature, another round, or another survivor set.
    """
    key = plan.roster.signing_key(voter)
    message = open_envelope(SurvivorVote, vote, key, sender=voter, context=plan.context)
    if message.t3 != t3:
        raise PeerError(voter, "voted for another survivor set (T3 differs)")
