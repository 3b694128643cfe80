"""What each role knows in each phase: one type per phase, holding only what exists in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

from veilsum._native import Secret
from veilsum.secagg.effects import UploadInput
from veilsum.secagg.envelope import Envelope
from veilsum.secagg.masks import MaskKeys
from veilsum.secagg.messages import KeyAdvert, SealedDeal
from veilsum.secagg.result_messages import RoundResult
from veilsum.secagg.transcript import Deal, Members

# --- site ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SiteSecrets:
    """m_u, b_u, sk_mask and sk_chan, 32 bytes each. Not needed once masks are derived."""

    mask_seed: Secret
    self_seed: Secret
    mask_private: Secret
    channel_private: Secret

    def wipe(self) -> None:
        """Overwrites all four."""
        self.wipe_seeds()
        self.channel_private.wipe()

    def wipe_seeds(self) -> None:
        """Overwrites all but the channel key."""
        for secret in (self.mask_seed, self.self_seed, self.mask_private):
            secret.wipe()


@dataclass(frozen=True, slots=True)
class HeldShares:
    """This site's shares of every dealer's secrets, by dealer (U2)."""

    mask_shares: Mapping[str, Secret]
    self_shares: Mapping[str, Secret]

    def wipe(self) -> None:
        """Overwrites all shares."""
        for secret in (*self.mask_shares.values(), *self.self_shares.values()):
            secret.wipe()


@dataclass(frozen=True, slots=True)
class Invited:
    """Nothing yet; a RoundOpen is awaited."""

    name: ClassVar[str] = "open"

    def wipe(self) -> None:
        """Holds no secret."""


@dataclass(frozen=True, slots=True)
class Advertised:
    """The site sent its keys; the key roster is awaited."""

    name: ClassVar[str] = "keys"
    secrets: SiteSecrets
    advert: Envelope

    def wipe(self) -> None:
        """Overwrites the site's secrets."""
        self.secrets.wipe()


@dataclass(frozen=True, slots=True)
class Dealt:
    """The site dealt its shares; the share relay is awaited."""

    name: ClassVar[str] = "shares"
    secrets: SiteSecrets
    members: Members
    deal: Envelope

    def wipe(self) -> None:
        """Overwrites the site's secrets."""
        self.secrets.wipe()


@dataclass(frozen=True, slots=True)
class Channel:
    """What a dealer keeps, as long as it has mask keys, in case that someone complains about its
    boxes. It opens them, as the mask keys open its update; it goes when they go."""

    members: Members
    deal: Envelope
    private: Secret

    def wipe(self) -> None:
        """Overwrites the key."""
        self.private.wipe()


@dataclass(frozen=True, slots=True)
class Ready:
    """Masks are derived; the update is awaited, or a proposal that goes on without it."""

    name: ClassVar[str] = "inputs"
    t2: bytes
    held: HeldShares
    masks: MaskKeys
    channel: Channel

    def wipe(self) -> None:
        """Overwrites masks, shares and channel key."""
        self.masks.wipe()
        self.held.wipe()
        self.channel.wipe()


@dataclass(frozen=True, slots=True)
class Complaining:
    """A dealer's box is of no use. The site has no share to go on with: another attempt is
    awaited. Its own boxes may be complained about as well."""

    name: ClassVar[str] = "complaint"
    channel: Channel

    def wipe(self) -> None:
        """Overwrites the channel key."""
        self.channel.wipe()


@dataclass(frozen=True, slots=True)
class Uploaded:
    """The update is masked, once and for all; the survivor proposal is awaited."""

    name: ClassVar[str] = "votes"
    t2: bytes
    held: HeldShares
    upload: UploadInput
    header_digest: bytes

    def wipe(self) -> None:
        """Overwrites the shares."""
        self.held.wipe()


@dataclass(frozen=True, slots=True)
class Voted:
    """The site stands for one survivor set; its certificate is awaited."""

    name: ClassVar[str] = "unmask"
    t3: bytes
    survivors: frozenset[str]
    held: HeldShares

    def wipe(self) -> None:
        """Overwrites the shares."""
        self.held.wipe()


@dataclass(frozen=True, slots=True)
class Unmasked:
    """The site returned its shares and holds no secret any more; the round's result is awaited.

    Attributes:
        dealers: U2.
        certificate, answer: SHA-256 of the payloads of the certificate and of the unmask shares.
    """

    name: ClassVar[str] = "result"
    t3: bytes
    survivors: frozenset[str]
    dealers: frozenset[str]
    certificate: bytes
    answer: bytes

    def wipe(self) -> None:
        """Holds no secret."""


@dataclass(frozen=True, slots=True)
class Checking:
    """The result is in order as far as the session can tell; what else its host checks of it is
    awaited."""

    name: ClassVar[str] = "check"
    result: RoundResult
    result_digest: bytes

    def wipe(self) -> None:
        """Holds no secret."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The session is over; `name` says how."""

    name: str

    def wipe(self) -> None:
        """Holds no secret."""


SitePhase: TypeAlias = (
    Invited
    | Advertised
    | Dealt
    | Complaining
    | Ready
    | Uploaded
    | Voted
    | Unmasked
    | Checking
    | Ended
)

# --- coordinator ----------------------------------------------------------------
# `received` is what the phase collects; `expected` are the sites it can come from.


@dataclass(frozen=True, slots=True)
class CollectingKeys:
    """M1."""

    name: ClassVar[str] = "keys"
    noun: ClassVar[str] = "keys"
    expected: tuple[str, ...]
    adverts: dict[str, KeyAdvert] = field(default_factory=dict)
    taken: set[bytes] = field(default_factory=set)
    received: dict[str, Envelope] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CollectingShares:
    """M3. Boxes are opaque here; roots and what is under them are verified."""

    name: ClassVar[str] = "shares"
    noun: ClassVar[str] = "shares"
    expected: tuple[str, ...]
    members: Members
    deals: dict[str, Deal] = field(default_factory=dict)
    received: dict[str, SealedDeal] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Dealers:
    """What the share phase ended with: U2, their commitments, and T2."""

    members: Members
    deals: Mapping[str, Deal]
    t2: bytes

    @property
    def sites(self) -> tuple[str, ...]:
        """U2, sorted by the bytes of the names."""
        return tuple(site for site in self.members.sites if site in self.deals)


@dataclass(frozen=True, slots=True)
class CollectingInputs:
    """M5. `received`: digest of each header whose chunks are in the sum."""

    name: ClassVar[str] = "inputs"
    noun: ClassVar[str] = "updates"
    expected: tuple[str, ...]
    dealers: Dealers
    received: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CollectingVotes:
    """M7. `inputs`: SHA-256 of the payload of each survivor's input header."""

    name: ClassVar[str] = "votes"
    noun: ClassVar[str] = "votes"
    expected: tuple[str, ...]
    dealers: Dealers
    survivors: tuple[str, ...]
    t3: bytes
    inputs: Mapping[str, bytes]
    received: dict[str, Envelope] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CollectingUnmask:
    """M9. The only phase in which the coordinator holds secrets: shares it may know.

    Attributes:
        inputs: SHA-256 of the payload of each survivor's input header.
        votes: M7, sorted by site.
        certificate: as it was sent, M8.
        answers: SHA-256 of the payload of each accepted answer.
    """

    name: ClassVar[str] = "unmask"
    noun: ClassVar[str] = "unmask shares"
    expected: tuple[str, ...]
    dealers: Dealers
    survivors: tuple[str, ...]
    t3: bytes
    inputs: Mapping[str, bytes]
    votes: tuple[Envelope, ...]
    certificate: Envelope
    received: dict[str, HeldShares] = field(default_factory=dict)
    answers: dict[str, bytes] = field(default_factory=dict)

    def wipe(self) -> None:
        """Overwrites all shares."""
        for held in self.received.values():
            held.wipe()


@dataclass(frozen=True, slots=True)
class Summed:
    """The round has its result, and all that was rebuilt for it is wiped. To be published.

    Attributes:
        unmasked: the phase before, without its shares.
    """

    name: ClassVar[str] = "completed"
    unmasked: CollectingUnmask
    total_weight: int
    mean_digest: bytes

    @property
    def responders(self) -> tuple[tuple[str, bytes], ...]:
        """Whose answers were in order, with their digests; sorted."""
        answers = self.unmasked.answers
        return tuple((site, answers[site]) for site in sorted(answers, key=str.encode))


@dataclass(frozen=True, slots=True)
class CollectingAcks:
    """M11. The round is complete, whatever comes."""

    name: ClassVar[str] = "acks"
    noun: ClassVar[str] = "acknowledgement"
    expected: tuple[str, ...]
    summed: Summed
    result: Envelope
    received: dict[str, Envelope] = field(default_factory=dict)


CollectingPhase: TypeAlias = (
    CollectingKeys
    | CollectingShares
    | CollectingInputs
    | CollectingVotes
    | CollectingUnmask
    | CollectingAcks
)
CoordinatorPhase: TypeAlias = CollectingPhase | Summed | Ended
