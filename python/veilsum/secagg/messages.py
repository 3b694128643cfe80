"""The messages of the protocol, one frozen dataclass each, and their payload bytes.

    payload = message type || LE16 suite || context (32) || sender || body

in the encodings of wire.py; a body is the fields of the class in the order they are
declared. A payload that would not encode back to the same bytes is refused, so a
message has exactly one encoding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, Self, TypeVar

from veilsum.errors import DecodeError
from veilsum.secagg.envelope import MAX_PAYLOAD_BYTES, Envelope
from veilsum.secagg.keys import BOX_BYTES, SHARE_BYTES
from veilsum.secagg.wire import MAX_SITES, Reader, Writer

SUITE = 1  # VS-1: X25519, Ed25519, AES-256-GCM, HKDF-SHA256, ChaCha20
COORDINATOR = ""  # its sender name; no site can have it, because a site's name is not empty
MAX_ENVELOPE_BYTES = 2**17  # one site's, relayed: 255 times 96 bytes of dealt shares fit well
_MAX_KIND_BYTES = 32


@dataclass(frozen=True, slots=True)
class Message(ABC):
    """What all messages begin with.

    Attributes:
        context: of the round and attempt, 32 bytes.
        sender: site name, or COORDINATOR.
    """

    kind: ClassVar[str]
    context: bytes
    sender: str

    @abstractmethod
    def _write(self, writer: Writer) -> None: ...

    @classmethod
    @abstractmethod
    def _read(cls, context: bytes, sender: str, reader: Reader) -> Self: ...

    def to_payload(self) -> bytes:
        """The bytes that are hashed and signed."""
        writer = Writer().text(self.kind).integer(SUITE, 2).raw(self.context).text(self.sender)
        self._write(writer)
        return writer.bytes()


_Message = TypeVar("_Message", bound=Message)


def kind_of(payload: bytes) -> str:
    """The message type a payload claims to be.

    Raises:
        DecodeError: it has no readable head.
    """
    return Reader(payload).text(_MAX_KIND_BYTES, "a message type")


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


def read_payload(kind: type[_Message], payload: bytes, *, context: bytes | None) -> _Message:
    """Parses a payload as one message type.

    Args:
        context: the round's; None only where the message itself brings it (RoundOpen).

    Raises:
        DecodeError: another type, suite or round, a field out of bounds, or bytes that are
            not the canonical encoding.
    """
    reader = Reader(payload)
    found = reader.text(_MAX_KIND_BYTES, "a message type")
    if found != kind.kind:
        raise DecodeError(f"expected a {kind.kind} message, got {found!r}")
    suite = reader.integer(2, "the suite")
    if suite != SUITE:
        raise DecodeError(f"expected suite {SUITE}, got {suite}")
    found_context = reader.digest("the context")
    if context is not None and found_context != context:
        raise DecodeError(f"a {kind.kind} message belongs to another round or attempt")
    message = kind._read(found_context, reader.site("the sender"), reader)
    reader.expect_end(f"a {kind.kind} message")
    if message.to_payload() != payload:
        raise DecodeError(f"a {kind.kind} message is not in canonical form")
    return message


def open_envelope(
    kind: type[_Message],
    envelope: Envelope,
    public_key: bytes,
    *,
    sender: str,
    context: bytes | None,
) -> _Message:
    """Verifies an envelope as `sender`'s, then parses it.

    Raises:
        DecodeError: wrong signature, wrong sender, or as read_payload.
    """
    envelope.verify(kind.kind, public_key)
    message = read_payload(kind, envelope.payload, context=context)
    if message.sender != sender:
        raise DecodeError(f"a {kind.kind} message names another sender than its signer")
    return message


def _write_envelope(writer: Writer, envelope: Envelope) -> None:
    writer.blob(envelope.to_bytes())


def _read_envelope(reader: Reader) -> Envelope:
    return Envelope.from_bytes(reader.blob(MAX_ENVELOPE_BYTES, "a relayed envelope"))


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
        writer.sequence(self.adverts, _write_envelope)

    @classmethod
    def _read(cls, context: bytes, sender: str, reader: Reader) -> Self:
        return cls(context, sender, reader.sequence(MAX_SITES, "key adverts", _read_envelope))


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
        _write_envelope(writer, self.header)
        return writer.sequence(self.boxes, lambda to, box: to.raw(box)).bytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> SealedDeal:
        """Raises:
        DecodeError: not a header and whole boxes.
        """
        reader = Reader(data)
        header = _read_envelope(reader)
        boxes = reader.sequence(MAX_SITES, "boxes", lambda at: at.raw(BOX_BYTES, "a box"))
        reader.expect_end("a share deal")
        return cls(header, boxes)


@dataclass(frozen=True, slots=True)
class RelayedDeal:
    """One dealer's commitments, and its box for the receiver of the relay."""

    header: Envelope
    box: bytes = field(repr=False)

    def write(self, writer: Writer) -> None:
        _write_envelope(writer, self.header)
        writer.raw(self.box)

    @classmethod
    def read(cls, reader: Reader) -> RelayedDeal:
        return cls(_read_envelope(reader), reader.raw(BOX_BYTES, "a box"))


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
        writer.raw(self.t3).sequence(self.votes, _write_envelope)

    @classmethod
    def _read(cls, context: bytes, sender: str, reader: Reader) -> Self:
        t3 = reader.digest("T3")
        return cls(context, sender, t3, reader.sequence(MAX_SITES, "votes", _read_envelope))


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
