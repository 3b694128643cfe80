"""The messages of the protocol, one frozen dataclass each.

The body of a payload (payload.py) is the fields of the class in the order they are declared.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Self

from veilsum.errors import DecodeError
from veilsum.secagg.envelope import MAX_PAYLOAD_BYTES, Envelope
from veilsum.secagg.keys import BOX_BYTES, SHARE_BYTES
from veilsum.secagg.payload import Message, kind_of, read_envelope, write_envelope
from veilsum.secagg.wire import MAX_SITES, Reader, Writer


def kind_of_message(message: bytes) -> str:
    """The type of a message as a site sends it: an envelope, or a sealed deal.

    Raises:
        DecodeError: it is neither.
    """
    try:
        payload = Envelope.from_bytes(message).payload
    except DecodeError:
        payload = SealedDeal.from_bytes(message).header.payload
    return kind_of(payload)


@dataclass(frozen=True, slots=True)
class RoundOpen(Message):
    """Coordinator invites a site: the manifest holds everything both must agree on."""

    kind: ClassVar[str] = "round-open"
    manifest: bytes

    def _write(self, writer: Writer) -> None:
        writer.blob(self.manifest)

    @classmethod
    def _read(cls, context: bytes, sender: str, reader: Reader) -> Self:
        return cls(context, sender, reader.blob(MAX_PAYLOAD_BYTES, "the manifest"))


@dataclass(frozen=True, slots=True)
class KeyAdvert(Message):
    """M1. A site's public keys and its commitment to its self seed, 32 bytes each."""

    kind: ClassVar[str] = "key-advert"
    mask_key: bytes
    channel_key: bytes
    self_commitment: bytes

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

    def write(self, writer: Writer) -> None:
        writer.raw(self.mask_commitment).raw(self.self_commitment).raw(self.box_digest)

    @classmethod
    def read(cls, reader: Reader) -> DealtShare:
        mask, own = reader.digest("a mask commitment"), reader.digest("a self commitment")
        return cls(mask, own, reader.digest("a box digest"))


@dataclass(frozen=True, slots=True)
class ShareDeal(Message):
    """M3. A dealer's commitments, one entry per site of the key roster in its order."""

    kind: ClassVar[str] = "share-deal"
    t1: bytes
    shares: tuple[DealtShare, ...]

    def _write(self, writer: Writer) -> None:
        writer.raw(self.t1).sequence(self.shares, lambda to, share: share.write(to))

    @classmethod
    def _read(cls, context: bytes, sender: str, reader: Reader) -> Self:
        t1 = reader.digest("T1")
        return cls(context, sender, t1, reader.sequence(MAX_SITES, "shares", DealtShare.read))


@dataclass(frozen=True, slots=True)
class SealedDeal:
    """How M3 travels: the signed commitments, and one sealed box per site of the key roster.

    The boxes need no signature: the header holds their hashes.
    """

    kind: ClassVar[str] = ShareDeal.kind
    header: Envelope
    boxes: tuple[bytes, ...] = field(repr=False)

    def to_bytes(self) -> bytes:
        writer = Writer()
        write_envelope(writer, self.header)
        return writer.sequence(self.boxes, lambda to, box: to.raw(box)).bytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> SealedDeal:
        """Raises:
        DecodeError: not a header and whole boxes.
        """
        reader = Reader(data)
        header = read_envelope(reader)
        boxes = reader.sequence(MAX_SITES, "boxes", lambda at: at.raw(BOX_BYTES, "a box"))
        reader.expect_end("a share deal")
        return cls(header, boxes)


@dataclass(frozen=True, slots=True)
class RelayedDeal:
    """One dealer's commitments, and its box for the receiver of the relay."""

    header: Envelope
    box: bytes = field(repr=False)

    def write(self, writer: Writer) -> None:
        write_envelope(writer, self.header)
        writer.raw(self.box)

    @classmethod
    def read(cls, reader: Reader) -> RelayedDeal:
        return cls(read_envelope(reader), reader.raw(BOX_BYTES, "a box"))


@dataclass(frozen=True, slots=True)
class ShareRelay(Message):
    """M4. Every dealer's commitments and its box for this site, sorted by dealer."""

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
