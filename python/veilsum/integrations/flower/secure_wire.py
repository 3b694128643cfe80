"""What SecureFedAvg and a site's keeper send each other: signed frames inside Flower's messages.

A frame holds parts, each a kind, a few bytes and any number of large blobs. Its envelope is signed
by the member that speaks, over the session, the frame's place in it, and the SHA-256 of every
blob; so whoever carries Flower's messages can drop a frame, but cannot change, move or repeat it.

In a message the envelope is in a ConfigRecord, the blobs are arrays of an ArrayRecord.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from typing_extensions import Buffer

from veilsum.errors import DecodeError
from veilsum.secagg.envelope import Envelope
from veilsum.secagg.wire import Reader, Writer

TO_SITE, TO_COORDINATOR = "flower/to-site", "flower/to-coordinator"
"""What a frame is signed as."""

SESSION_BYTES = 16
NONCE_BYTES = 32
STYPE = "veilsum.ring"
"""Array.stype of a blob."""

_RECORD, _BLOBS, _ENVELOPE = "veilsum", "veilsum.blobs", "envelope"
_MOST_PARTS = 64
_MOST_KIND_BYTES = 32
_MOST_HEAD_BYTES = 2**23


class Part(NamedTuple):
    """One thing that is said. `head` is small and signed as it is, blobs by their digests."""

    kind: str
    head: bytes = b""
    blobs: Sequence[Buffer] = ()


class Frame(NamedTuple):
    """All that one message says.

    Attributes:
        session: drawn by the site for each hello; of a hello, the coordinator's nonce.
        number: 0 for a hello, then one more with each frame of the coordinator; an answer has
            the number of what it answers.
    """

    session: bytes
    number: int
    parts: tuple[Part, ...]


class Sealed(NamedTuple):
    """A signed frame and its blobs, as they travel."""

    envelope: bytes
    blobs: Sequence[Buffer]


def seal(kind: str, frame: Frame, key: Ed25519PrivateKey) -> Sealed:
    """Signs a frame as `kind`."""
    writer = Writer().blob(frame.session).integer(frame.number, 8)
    writer.sequence(frame.parts, _write_part)
    envelope = Envelope.sign(kind, writer.bytes(), key)
    return Sealed(envelope.to_bytes(), [blob for part in frame.parts for blob in part.blobs])


def unseal(kind: str, sealed: Sealed, public_key: bytes) -> Frame:
    """Checks signature and digests, and reads the frame.

    Raises:
        DecodeError: it is not signed with that key as `kind`, not a frame, or a blob is another.
    """
    envelope = Envelope.from_bytes(sealed.envelope)
    envelope.verify(kind, public_key)
    return read_frame(envelope.payload, sealed.blobs)


def claimed_site(sealed: Sealed) -> str:
    """Who an answer to a hello says it is from. Nothing is verified.

    Raises:
        DecodeError: it is not an answer to a hello.
    """
    frame = read_frame(Envelope.from_bytes(sealed.envelope).payload, sealed.blobs)
    if frame.number != 0 or [part.kind for part in frame.parts] != ["hello"]:
        raise DecodeError("a node's first answer is not a veilsum hello")
    return Hello.from_bytes(frame.parts[0].head).site


class Hello(NamedTuple):
    """A site's answer to a hello: who it is, the session it begins, the process it speaks for."""

    site: str
    roster_hash: bytes
    session: bytes
    instance: bytes
    version: str

    def to_bytes(self) -> bytes:
        """See from_bytes."""
        writer = Writer().text(self.site).raw(self.roster_hash).raw(self.session)
        return writer.raw(self.instance).text(self.version).bytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> Hello:
        """Raises:
        DecodeError: it is none.
        """
        reader = Reader(data)
        hello = cls(
            reader.site("site"),
            reader.digest("roster hash"),
            reader.raw(SESSION_BYTES, "session"),
            reader.raw(SESSION_BYTES, "instance"),
            reader.text(64, "version"),
        )
        reader.expect_end("a hello")
        return hello


def to_content(sealed: Sealed) -> RecordDict:
    """The content of a Flower message."""
    blobs = ArrayRecord()
    for index, blob in enumerate(sealed.blobs):
        data = blob if isinstance(blob, bytes) else bytes(blob)
        blobs[str(index)] = Array("uint8", (len(data),), STYPE, data)
    return RecordDict({_RECORD: ConfigRecord({_ENVELOPE: sealed.envelope}), _BLOBS: blobs})


def from_content(content: RecordDict) -> Sealed:
    """What a Flower message carries; the blobs lie where Flower has put them.

    Raises:
        DecodeError: it is no message of this protocol.
    """
    record, blobs = content.get(_RECORD), content.get(_BLOBS)
    if not isinstance(record, ConfigRecord) or not isinstance(blobs, ArrayRecord):
        raise DecodeError(
            "the message carries no veilsum frame",
            hint="secagg_mod goes with SecureFedAvg: use both or neither",
        )
    envelope = record.get(_ENVELOPE)
    if not isinstance(envelope, bytes):
        raise DecodeError("the message carries no signed envelope")
    found: list[Buffer] = []
    for index, (name, array) in enumerate(blobs.items()):
        if name != str(index) or array.stype != STYPE:
            raise DecodeError(f"array {name[:64]!r} of the message is no blob of a veilsum frame")
        found.append(array.data)
    return Sealed(envelope, found)


def _write_part(writer: Writer, part: Part) -> None:
    writer.text(part.kind).blob(part.head).integer(len(part.blobs), 4)
    for blob in part.blobs:
        writer.integer(memoryview(blob).nbytes, 8).raw(hashlib.sha256(blob).digest())


def read_frame(payload: bytes, blobs: Sequence[Buffer]) -> Frame:
    """What an envelope's payload says, and its blobs. No signature is verified.

    Raises:
        DecodeError: it is no frame, or a blob is another.
    """
    reader = Reader(payload)
    session = reader.blob(NONCE_BYTES, "session")
    number = reader.integer(8, "number")
    rest = iter(blobs)
    count = reader.integer(2, "parts")
    if count > _MOST_PARTS:
        raise DecodeError(f"a frame has {count} parts, at most {_MOST_PARTS} are allowed")
    frame = Frame(session, number, tuple(_read_part(reader, rest) for _ in range(count)))
    reader.expect_end("a frame")
    if next(rest, None) is not None:
        raise DecodeError("the message has more blobs than its signed frame")
    return frame


def _read_part(reader: Reader, rest: Iterator[Buffer]) -> Part:
    kind = reader.text(_MOST_KIND_BYTES, "kind")
    head = reader.blob(_MOST_HEAD_BYTES, "head")
    found: list[Buffer] = []
    for _ in range(reader.integer(4, "blobs")):
        size, digest = reader.integer(8, "size"), reader.digest("digest")
        blob = next(rest, None)
        if blob is None or memoryview(blob).nbytes != size:
            raise DecodeError(f"a blob of part {kind!r} is missing or of another size")
        if hashlib.sha256(blob).digest() != digest:
            raise DecodeError(f"a blob of part {kind!r} is not the one that was signed")
        found.append(blob)
    return Part(kind, head, tuple(found))
