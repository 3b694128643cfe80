"""What every message of the protocol begins with, and how one is opened.

    payload = message type || LE16 suite || context (32) || sender || body

in the encodings of wire.py. A payload that would not encode back to the same bytes is refused, so
a message has exactly one encoding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Self, TypeVar

from veilsum.errors import DecodeError
from veilsum.secagg.envelope import Envelope
from veilsum.secagg.wire import Reader, Writer

SUITE = 1  # VS-1: X25519, Ed25519, AES-256-GCM, HKDF-SHA256, ChaCha20
SUITES = {"VS-1": SUITE}
"""Every suite there is, by the name that people write."""
COORDINATOR = ""  # its sender name; no site can have it, because a site's name is not empty
MAX_ENVELOPE_BYTES = 2**17  # one inside another message: unmask shares for 255 sites fit well
MAX_KIND_BYTES = 32


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
    return Reader(payload).text(MAX_KIND_BYTES, "a message type")


def read_payload(kind: type[_Message], payload: bytes, *, context: bytes | None) -> _Message:
    """Parses a payload as one message type.

    Args:
        context: the round's; None only where the message itself brings it (RoundOpen).

    Raises:
        DecodeError: another type, suite or round, a field out of bounds, or bytes that are
            not the canonical encoding.
    """
    reader = Reader(payload)
    found = reader.text(MAX_KIND_BYTES, "a message type")
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


def write_envelope(writer: Writer, envelope: Envelope) -> None:
    """A relayed envelope, inside a payload."""
    writer.blob(envelope.to_bytes())


def read_envelope(reader: Reader) -> Envelope:
    """See write_envelope."""
    return Envelope.from_bytes(reader.blob(MAX_ENVELOPE_BYTES, "a relayed envelope"))
