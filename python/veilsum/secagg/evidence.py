"""Evidence: who broke the protocol, for anyone who has the roster and nothing else.

    evidence = "VSE1" || LE8 fault || LP(accused) || LP(manifest)
               || list of LP(envelope) || list of LP(paper)

The envelopes are signed; papers are what else it takes to recompute transcripts from them. The
accused is a site, or the coordinator by its empty name. What it shows: verdict.check_evidence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TypeAlias

from veilsum.errors import DecodeError
from veilsum.secagg.envelope import MAX_PAYLOAD_BYTES, Envelope
from veilsum.secagg.wire import MAX_NAME_BYTES, MAX_SITES, Reader, Writer

MAGIC = b"VSE1"
MAX_EVIDENCE_BYTES = 2**26
_MAX_ENVELOPE_BYTES = 2**18  # the relay of 255 deals has 0.2 MB
_MAX_PAPER_BYTES = 2**16
_MAX_ITEMS = MAX_SITES + 8


class Fault(IntEnum):
    """What the accused did. The numbers are on the wire: they stay, and new ones are appended."""

    DOUBLE_SIGNED = 1
    BAD_KEY = 2
    WRONG_SHARE = 3
    WRONG_SECRET = 4
    BAD_DEAL = 5
    FALSE_COMPLAINT = 6
    WRONG_JUSTIFICATION = 7
    BAD_RELAY = 8
    DISPUTED = 9


FAULT_TEXTS: Mapping[Fault, str] = {
    Fault.DOUBLE_SIGNED: "signed two different messages where there is one",
    Fault.BAD_KEY: "advertised a public key that is none",
    Fault.WRONG_SHARE: "returned a share that is not the one it was dealt",
    Fault.WRONG_SECRET: "shared another secret than the one it advertised",
    Fault.BAD_DEAL: "dealt a box with other shares than it committed to",
    Fault.FALSE_COMPLAINT: "complained about a box that is in order",
    Fault.WRONG_JUSTIFICATION: "named a key that does not open its own box as it should",
    Fault.BAD_RELAY: "passed on messages that are not what their senders signed",
    Fault.DISPUTED: "dealt a box that its receiver cannot open; one of both is wrong",
}


_NAMED = 4  # a reason names so many sites; it goes where texts are bounded


def named(sites: Iterable[str]) -> str:
    """Sites at fault, for a reason."""
    names = [repr(site) for site in sites]
    others = [f"{len(names) - _NAMED} more"] if len(names) > _NAMED else []
    return " and ".join([*names[:_NAMED], *others])


@dataclass(frozen=True, slots=True)
class Evidence:
    """The parts of the container. Nothing is verified yet."""

    fault: Fault
    accused: str
    manifest: bytes = field(repr=False)
    envelopes: tuple[Envelope, ...]
    papers: tuple[bytes, ...] = ()

    def to_bytes(self) -> bytes:
        """The encoding at the top of this file."""
        writer = Writer().raw(MAGIC).integer(self.fault, 1).text(self.accused).blob(self.manifest)
        writer.sequence(self.envelopes, lambda to, one: to.blob(one.to_bytes()))
        return writer.sequence(self.papers, Writer.blob).bytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> Evidence:
        """Raises:
        DecodeError: not this format, or larger than any evidence is.
        """
        if len(data) > MAX_EVIDENCE_BYTES:
            raise DecodeError(f"evidence has at most {MAX_EVIDENCE_BYTES} bytes, got {len(data)}")
        reader = Reader(data)
        if reader.raw(len(MAGIC), "the magic") != MAGIC:
            raise DecodeError("this is no evidence of this version")
        number = reader.integer(1, "the fault")
        if number not in list(Fault):
            raise DecodeError(f"there is no fault {number}")
        accused = reader.text(MAX_NAME_BYTES, "the accused")
        manifest = reader.blob(MAX_PAYLOAD_BYTES, "the manifest")
        envelopes = reader.sequence(
            _MAX_ITEMS,
            "envelopes",
            lambda at: Envelope.from_bytes(at.blob(_MAX_ENVELOPE_BYTES, "an envelope")),
        )
        papers = reader.sequence(
            _MAX_ITEMS, "papers", lambda at: at.blob(_MAX_PAPER_BYTES, "a paper")
        )
        reader.expect_end("the evidence")
        return cls(Fault(number), accused, manifest, envelopes, papers)


@dataclass(frozen=True, slots=True)
class Guilty:
    """It is shown that the accused broke the protocol; "" is the coordinator."""

    accused: str
    fault: Fault


@dataclass(frozen=True, slots=True)
class Dispute:
    """It is shown that one of both broke it, and not which."""

    dealer: str
    complainer: str


@dataclass(frozen=True, slots=True)
class Invalid:
    """Nothing is shown."""

    reason: str


Verdict: TypeAlias = Guilty | Dispute | Invalid
