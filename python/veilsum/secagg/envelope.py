"""Signed envelopes: what every message of the protocol travels in.

    envelope = LE32 length || payload || signature (64) || key id (8)

The signature is Ed25519 over "veilsum/v1/sig/" || message type || 0x00 ||
SHA-256(payload). It is checked over the bytes as they arrived, before anything in
them is believed; the payload is parsed afterwards.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from veilsum.errors import DecodeError
from veilsum.roster import key_id
from veilsum.secagg.wire import Reader, Writer

MAX_PAYLOAD_BYTES = 2**25
_SIGNATURE_BYTES = 64
_KEY_ID_BYTES = 8


def _signed_bytes(kind: str, payload: bytes) -> bytes:
    return b"veilsum/v1/sig/" + kind.encode() + b"\0" + hashlib.sha256(payload).digest()


@dataclass(frozen=True)
class Envelope:
    """A payload, who is said to have signed it, and the signature. Nothing is verified yet."""

    payload: bytes
    signature: bytes
    key_id: bytes

    @cached_property
    def payload_digest(self) -> bytes:
        """SHA-256 of the payload: how transcripts refer to a message."""
        return hashlib.sha256(self.payload).digest()

    @classmethod
    def sign(cls, kind: str, payload: bytes, key: Ed25519PrivateKey) -> Envelope:
        """Seals a payload of one message type."""
        public = key.public_key().public_bytes_raw()
        return cls(payload, key.sign(_signed_bytes(kind, payload)), key_id(public))

    @classmethod
    def signed_apart(cls, payload: bytes, signature: bytes, public_key: bytes) -> Envelope:
        """A payload whose signature was kept beside it. Nothing is verified yet."""
        return cls(payload, signature, key_id(public_key))

    def verify(self, kind: str, public_key: bytes) -> None:
        """Checks that the holder of `public_key` signed this as a message of type `kind`.

        Raises:
            DecodeError: it did not.
        """
        if self.key_id != key_id(public_key):
            raise DecodeError(f"a {kind} message is signed with another key than its sender's")
        try:
            Ed25519PublicKey.from_public_bytes(public_key).verify(
                self.signature, _signed_bytes(kind, self.payload)
            )
        except InvalidSignature as error:
            raise DecodeError(f"the signature of a {kind} message is wrong") from error

    def to_bytes(self) -> bytes:
        """The encoding at the top of this file."""
        return self._encoded

    @cached_property
    def _encoded(self) -> bytes:
        return Writer().blob(self.payload).raw(self.signature).raw(self.key_id).bytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> Envelope:
        """Parses one envelope and nothing after it.

        Raises:
            DecodeError: too short, too long, or followed by other bytes.
        """
        reader = Reader(data)
        payload = reader.blob(MAX_PAYLOAD_BYTES, "a payload")
        signature = reader.raw(_SIGNATURE_BYTES, "a signature")
        envelope = cls(payload, signature, reader.raw(_KEY_ID_BYTES, "a key id"))
        reader.expect_end("an envelope")
        return envelope
