"""Complaints about a dealt box, the dealer's answer, and who is at fault.

A site that cannot use the box a dealer made for it says so, with the key it tried. That key opens
this box and no other, and shows nothing but the complainer's own share. If the box opens with it,
anyone can see who is wrong. If it does not, the key may be made up: anybody can name a key that
does not open an honest box. So the dealer is asked for the key it sealed with. If that one opens
the box on shares that fit, one of both has named a wrong key and nobody else can say who: a
dispute.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar, Self

from veilsum._native import Secret
from veilsum.errors import DecodeError, PeerError
from veilsum.secagg import keys
from veilsum.secagg.envelope import Envelope
from veilsum.secagg.keys import BOX_BYTES, SECRET_BYTES, Label
from veilsum.secagg.messages import DealtShare
from veilsum.secagg.payload import Message, read_envelope, write_envelope
from veilsum.secagg.wire import Reader, Writer


@dataclass(frozen=True, slots=True)
class Complaint(Message):
    """Instead of M5, a receiver: the box does not open, or not on what its dealer committed to.

    Attributes:
        header: SHA-256 of the payload of the dealer's share-deal.
        box: as relayed.
        key: with which the complainer tried to open it.
    """

    kind: ClassVar[str] = "complaint"
    t1: bytes
    dealer: str
    header: bytes
    box: bytes = field(repr=False)
    key: bytes = field(repr=False)

    def _write(self, writer: Writer) -> None:
        writer.raw(self.t1).text(self.dealer).raw(self.header).raw(self.box).raw(self.key)

    @classmethod
    def _read(cls, context: bytes, sender: str, reader: Reader) -> Self:
        t1, dealer = reader.digest("T1"), reader.site("the dealer")
        header, box = reader.digest("the header digest"), reader.raw(BOX_BYTES, "a box")
        return cls(context, sender, t1, dealer, header, box, reader.raw(SECRET_BYTES, "a key"))


@dataclass(frozen=True, slots=True)
class Accusation(Message):
    """The coordinator passes a complaint on to the dealer it is about."""

    kind: ClassVar[str] = "accusation"
    complaint: Envelope

    def _write(self, writer: Writer) -> None:
        write_envelope(writer, self.complaint)

    @classmethod
    def _read(cls, context: bytes, sender: str, reader: Reader) -> Self:
        return cls(context, sender, read_envelope(reader))


@dataclass(frozen=True, slots=True)
class Justification(Message):
    """The dealer's answer: the key with which it sealed the complainer's box."""

    kind: ClassVar[str] = "justification"
    t1: bytes
    complainer: str
    key: bytes = field(repr=False)

    def _write(self, writer: Writer) -> None:
        writer.raw(self.t1).text(self.complainer).raw(self.key)

    @classmethod
    def _read(cls, context: bytes, sender: str, reader: Reader) -> Self:
        t1, complainer = reader.digest("T1"), reader.site("the complainer")
        return cls(context, sender, t1, complainer, reader.raw(SECRET_BYTES, "a key"))


class Finding(Enum):
    """What a complaint, and the answer to it, come to."""

    UNFOUNDED = "the complainer's own key opens the box on the shares that were committed to"
    BAD_DEAL = "the box opens on other shares than were committed to"
    UNJUSTIFIED = "the dealer's own key does not open the box on what it committed to"
    DISPUTE = "one of both has named a wrong key, and nobody else can say who"
    OPEN = "the dealer has to say with which key it sealed the box"


def judge(entry: DealtShare, complaint: Complaint, justification: Justification | None) -> Finding:
    """Decides from what both have signed.

    Args:
        entry: what the dealer committed to for the complainer, under the root of the header that
            the complaint names.

    Raises:
        DecodeError: the papers are not about one and the same box.
    """
    if hashlib.sha256(complaint.box).digest() != entry.box_digest:
        raise DecodeError("the complaint is about a box that the dealer did not make")
    fits = _fits(complaint.key, entry, complaint)
    if fits is not None:
        # For an honest box there is one key: a second that opens it is as hard to find as a forgery
        # of AES-GCM. So a box that opens on other shares was made so.
        return Finding.UNFOUNDED if fits else Finding.BAD_DEAL
    if justification is None:
        return Finding.OPEN
    named = (justification.sender, justification.complainer, justification.t1)
    if named != (complaint.dealer, complaint.sender, complaint.t1):
        raise DecodeError("the justification is about another complaint")
    return Finding.DISPUTE if _fits(justification.key, entry, complaint) else Finding.UNJUSTIFIED


def _fits(key: bytes, entry: DealtShare, complaint: Complaint) -> bool | None:
    """Whether the box opens on the shares that were committed to; None if it does not open."""
    dealer, receiver = complaint.dealer, complaint.sender
    channel = Secret.from_bytes(key)
    try:
        plain = keys.open_box(channel, complaint.t1, dealer, receiver, complaint.box)
    except PeerError:
        return None
    finally:
        channel.wipe()
    mask_share, self_share = keys.split_box(plain)
    pair = (complaint.t1, dealer, receiver)
    found = (
        keys.share_commitment(Label.MASK_SHARE_COMMITMENT, *pair, mask_share),
        keys.share_commitment(Label.SELF_SHARE_COMMITMENT, *pair, self_share),
    )
    mask_share.wipe()
    self_share.wipe()
    return found == (entry.mask_commitment, entry.self_commitment)
