"""The messages of the protocol, one frozen dataclass each.

The body of a payload (payload.py) is the fields of the class in the order they are declared.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import ClassVar, Self

from veilsum.errors import DecodeError
from veilsum.secagg.envelope import MAX_PAYLOAD_BYTES, Envelope
from veilsum.secagg.keys import BOX_BYTES, SHARE_BYTES
from veilsum.secagg.merkle import leaf_hash
from veilsum.secagg.payload import Message, kind_of, read_envelope, write_envelope
from veilsum.secagg.result_messages import Link
from veilsum.secagg.wire import DIGEST_BYTES, MAX_SITES, Reader, Writer

_MAX_PROOF = (MAX_SITES - 1).bit_length()  # nodes from a leaf to the root


def signed_part(message: bytes) -> Envelope:
    """The envelope in a message as a site sends it: all of it, or what a sealed deal begins with,
    whose shares are not looked at. Nothing is verified yet.

    Raises:
        DecodeError: there is none.
    """
    try:
        return Envelope.from_bytes(message)
    except DecodeError:
        return read_envelope(Reader(message))


def kind_of_message(message: bytes) -> str:
    """The type that a message as a site sends it claims to be.

    Raises:
        DecodeError: there is no envelope in it, or no type.
    """
    return kind_of(signed_part(message).payload)


@dataclass(frozen=True, slots=True)
class RoundOpen(Message):
    """Coordinator invites a site: the manifest holds everything both must agree on. The round
    before and its acknowledgements are what the manifest's `previous_result` is a hash of."""

    kind: ClassVar[str] = "round-open"
    manifest: bytes
    previous: Link | None = None

    def _write(self, writer: Writer) -> None:
        writer.blob(self.manifest).integer(self.previous is not None, 1)
        if self.previous is not None:
            self.previous.write(writer)

    @classmethod
    def _read(cls, context: bytes, sender: str, reader: Reader) -> Self:
        manifest = reader.blob(MAX_PAYLOAD_BYTES, "the manifest")
        has_previous = reader.integer(1, "whether a round came before") != 0
        return cls(context, sender, manifest, Link.read(reader) if has_previous else None)


@dataclass(frozen=True, slots=True)
class KeyAdvert(Message):
    """M1. A site's public keys and its commitment to its self seed, 32 bytes each."""

    kind: ClassVar[str] = "key-advert"
    mask_key: bytes
    channel_key: bytes
    self_commitment: bytes

    @property
    def public_keys(self) -> tuple[bytes, bytes]:
        """Both, which may occur only once in a round."""
        return self.mask_key, self.channel_key

    def _write(self, writer: Writer) -> None:
        writer.raw(self.mask_key).raw(self.channel_key).raw(self.self_commitment)

    @classmethod
    def _read(cls, context: bytes, sender: str, reader: Reader) -> Self:
        mask_key, channel_key = reader.digest("the mask key"), reader.digest("the channel key")
        return cls(context, sender, mask_key, channel_key, reader.digest("the commitment"))


@dataclass(frozen=True, slots=True)
class KeyRoster(Message):
    """M2. The key adverts of all sites that sent one, sorted by site."""

    kind: ClassVar[str] = "key-roster"
    adverts: tuple[Envelope, ...]

    def _write(self, writer: Writer) -> None:
        writer.sequence(self.adverts, write_envelope)

    @classmethod
    def _read(cls, context: bytes, sender: str, reader: Reader) -> Self:
        return cls(context, sender, reader.sequence(MAX_SITES, "key adverts", read_envelope))


@dataclass(frozen=True, slots=True)
class DealtShare:
    """What a dealer commits to for one receiver; 32 bytes each."""

    mask_commitment: bytes
    self_commitment: bytes
    box_digest: bytes

    def to_bytes(self) -> bytes:
        """96 bytes: what is hashed into the dealer's tree."""
        return self.mask_commitment + self.self_commitment + self.box_digest

    @property
    def leaf(self) -> bytes:
        """Hash of the entry as a leaf of that tree."""
        return leaf_hash(self.to_bytes())


@dataclass(frozen=True, slots=True)
class ShareDeal(Message):
    """M3. A dealer's commitments: the Merkle root over one DealtShare per site of the key roster,
    in its order. How many these are follows from T1."""

    kind: ClassVar[str] = "share-deal"
    t1: bytes
    root: bytes

    def _write(self, writer: Writer) -> None:
        writer.raw(self.t1).raw(self.root)

    @classmethod
    def _read(cls, context: bytes, sender: str, reader: Reader) -> Self:
        return cls(context, sender, reader.digest("T1"), reader.digest("the root of the shares"))


@dataclass(frozen=True, slots=True)
class SealedShare:
    """One receiver's part of a deal: its commitments, and its shares in a box."""

    mask_commitment: bytes
    self_commitment: bytes
    box: bytes = field(repr=False)

    @property
    def entry(self) -> DealtShare:
        """What the dealer must have committed to. The digest of the box is not sent: whoever
        has the box computes it."""
        digest = hashlib.sha256(self.box).digest()
        return DealtShare(self.mask_commitment, self.self_commitment, digest)

    def write(self, writer: Writer) -> None:
        writer.raw(self.mask_commitment + self.self_commitment + self.box)

    @classmethod
    def read(cls, reader: Reader) -> SealedShare:
        at = DIGEST_BYTES
        data = reader.raw(2 * at + BOX_BYTES, "a dealt share")
        return cls(data[:at], data[at : 2 * at], data[2 * at :])


@dataclass(frozen=True, slots=True)
class SealedDeal:
    """How M3 travels: the signed root, and what is under it for each site of the key roster."""

    kind: ClassVar[str] = ShareDeal.kind
    header: Envelope
    shares: tuple[SealedShare, ...]

    def to_bytes(self) -> bytes:
        writer = Writer()
        write_envelope(writer, self.header)
        return writer.sequence(self.shares, lambda to, share: share.write(to)).bytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> SealedDeal:
        """Raises:
        DecodeError: not a header and whole shares.
        """
        reader = Reader(data)
        header = read_envelope(reader)
        shares = reader.sequence(MAX_SITES, "shares", SealedShare.read)
        reader.expect_end("a share deal")
        return cls(header, shares)


@dataclass(frozen=True, slots=True)
class RelayedDeal:
    """One dealer's signed root, what is under it for the receiver of the relay, and the proof
    that it is (merkle.check_inclusion)."""

    header: Envelope
    share: SealedShare
    proof: tuple[bytes, ...]

    def write(self, writer: Writer) -> None:
        write_envelope(writer, self.header)
        self.share.write(writer)
        writer.digests(self.proof)

    @classmethod
    def read(cls, reader: Reader) -> RelayedDeal:
        header, share = read_envelope(reader), SealedShare.read(reader)
        return cls(header, share, reader.digests(_MAX_PROOF, "a proof"))


@dataclass(frozen=True, slots=True)
class ShareRelay(Message):
    """M4. What every dealer dealt to this site, sorted by dealer."""

    kind: ClassVar[str] = "share-relay"
    deals: tuple[RelayedDeal, ...]

    def _write(self, writer: Writer) -> None:
        writer.sequence(self.deals, lambda to, deal: deal.write(to))

    @classmethod
    def _read(cls, context: bytes, sender: str, reader: Reader) -> Self:
        return cls(context, sender, reader.sequence(MAX_SITES, "deals", RelayedDeal.read))


@dataclass(frozen=True, slots=True)
class StreamHeader:
    """Shape of one stream of an upload: number, elements, bits, bytes of all its chunks."""

    stream: int
    elements: int
    bits: int
    byte_length: int

    def write(self, writer: Writer) -> None:
        writer.integer(self.stream, 4).integer(self.elements, 8)
        writer.integer(self.bits, 1).integer(self.byte_length, 8)

    @classmethod
    def read(cls, reader: Reader) -> StreamHeader:
        stream, elements = reader.integer(4, "a stream"), reader.integer(8, "elements")
        return cls(stream, elements, reader.integer(1, "bits"), reader.integer(8, "a length"))


@dataclass(frozen=True, slots=True)
class InputHeader(Message):
    """M5. What a site's masked chunks are: shapes, and the Merkle root over all of them."""

    kind: ClassVar[str] = "masked-input"
    t2: bytes
    streams: tuple[StreamHeader, ...]
    root: bytes

    def _write(self, writer: Writer) -> None:
        writer.raw(self.t2).sequence(self.streams, lambda to, one: one.write(to)).raw(self.root)

    @classmethod
    def _read(cls, context: bytes, sender: str, reader: Reader) -> Self:
        t2, streams = reader.digest("T2"), reader.sequence(3, "streams", StreamHeader.read)
        return cls(context, sender, t2, streams, reader.digest("the Merkle root"))


@dataclass(frozen=True, slots=True)
class SurvivorProposal(Message):
    """M6. Whose updates are in the sum, sorted: (site, SHA-256 of its InputHeader payload)."""

    kind: ClassVar[str] = "survivor-proposal"
    t2: bytes
    survivors: tuple[tuple[str, bytes], ...]

    def _write(self, writer: Writer) -> None:
        writer.raw(self.t2)
        writer.sequence(self.survivors, lambda to, one: to.text(one[0]).raw(one[1]))

    @classmethod
    def _read(cls, context: bytes, sender: str, reader: Reader) -> Self:
        t2 = reader.digest("T2")
        survivors = reader.sequence(
            MAX_SITES, "survivors", lambda at: (at.site("a survivor"), at.digest("a header digest"))
        )
        return cls(context, sender, t2, survivors)


@dataclass(frozen=True, slots=True)
class SurvivorVote(Message):
    """M7. A site stands for one survivor set, T3, and for no other in this attempt."""

    kind: ClassVar[str] = "survivor-vote"
    t3: bytes

    def _write(self, writer: Writer) -> None:
        writer.raw(self.t3)

    @classmethod
    def _read(cls, context: bytes, sender: str, reader: Reader) -> Self:
        return cls(context, sender, reader.digest("T3"))


@dataclass(frozen=True, slots=True)
class SurvivorCertificate(Message):
    """M8. The votes for one T3, sorted by voter."""

    kind: ClassVar[str] = "survivor-certificate"
    t3: bytes
    votes: tuple[Envelope, ...]

    def _write(self, writer: Writer) -> None:
        writer.raw(self.t3).sequence(self.votes, write_envelope)

    @classmethod
    def _read(cls, context: bytes, sender: str, reader: Reader) -> Self:
        t3 = reader.digest("T3")
        return cls(context, sender, t3, reader.sequence(MAX_SITES, "votes", read_envelope))


def _write_share(writer: Writer, share: tuple[str, bytes]) -> None:
    writer.text(share[0]).raw(share[1])


def _read_share(reader: Reader) -> tuple[str, bytes]:
    return reader.site("a dealer"), reader.raw(SHARE_BYTES, "a share")


@dataclass(frozen=True, slots=True)
class UnmaskShares(Message):
    """M9. The sender's shares of the survivors' self seeds and of the dropouts' mask seeds,
    sorted by dealer. From here on the coordinator may know them; nobody else needs to."""

    kind: ClassVar[str] = "unmask-shares"
    t3: bytes
    self_shares: tuple[tuple[str, bytes], ...] = field(repr=False)
    mask_shares: tuple[tuple[str, bytes], ...] = field(repr=False)

    def _write(self, writer: Writer) -> None:
        writer.raw(self.t3)
        writer.sequence(self.self_shares, _write_share)
        writer.sequence(self.mask_shares, _write_share)

    @classmethod
    def _read(cls, context: bytes, sender: str, reader: Reader) -> Self:
        t3 = reader.digest("T3")
        self_shares = reader.sequence(MAX_SITES, "self shares", _read_share)
        return cls(
            context, sender, t3, self_shares, reader.sequence(MAX_SITES, "mask shares", _read_share)
        )
