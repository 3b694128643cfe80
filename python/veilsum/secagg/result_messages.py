"""The messages about a finished sum: what it is (M10), and who has seen and checked it (M11).

The body of a payload (payload.py) is the fields of the class in the order they are declared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

from veilsum.errors import DecodeError
from veilsum.secagg.egress_summary import EgressSummary, Sent
from veilsum.secagg.envelope import MAX_PAYLOAD_BYTES, Envelope
from veilsum.secagg.keys import Label, transcript
from veilsum.secagg.payload import MAX_KIND_BYTES, Message, read_envelope, write_envelope
from veilsum.secagg.sum_tree import StreamRoot
from veilsum.secagg.wire import MAX_SITES, Reader, Writer

SIGNATURE_ONLY, MODEL_RECOMPUTED, TILES_CHECKED, ALL_CHECKED = range(4)
"""How much of a result its acknowledger has checked."""

_MAX_STREAMS = 3
_MAX_EGRESS_KINDS = 64


@dataclass(frozen=True, slots=True)
class RoundResult(Message):
    """M10. What the coordinator made of the inputs behind T3. Two of one attempt contradict.

    Attributes:
        t3: the survivors and their inputs, 32 bytes.
        certificate: SHA-256 of the payload of the survivor certificate.
        roots: one per stream of the integer sum (sum_tree.py).
        total_weight: of the survivors.
        responders: (site, SHA-256 of the payload of its unmask shares), sorted by site.
        mean_digest: of the decoded mean (model.result_digest), 32 bytes.
        model_hash: of the model after the server's step, 32 bytes.
        state_hash: of what the server's optimizer remembers after it, 32 bytes; zeros: nothing.
    """

    kind: ClassVar[str] = "round-result"
    t3: bytes
    certificate: bytes
    roots: tuple[StreamRoot, ...]
    total_weight: int
    responders: tuple[tuple[str, bytes], ...]
    mean_digest: bytes
    model_hash: bytes
    state_hash: bytes

    @property
    def t4(self) -> bytes:
        """T4: the survivors, and the answers their masks were removed with."""
        return transcript(Label.TRANSCRIPT_UNMASK, self.t3, dict(self.responders))

    def _write(self, writer: Writer) -> None:
        writer.raw(self.t3).raw(self.certificate).sequence(self.roots, _write_root)
        writer.integer(self.total_weight, 8)
        writer.sequence(self.responders, lambda to, one: to.text(one[0]).raw(one[1]))
        writer.raw(self.mean_digest).raw(self.model_hash).raw(self.state_hash)

    @classmethod
    def _read(cls, context: bytes, sender: str, reader: Reader) -> Self:
        t3, certificate = reader.digest("T3"), reader.digest("the certificate's digest")
        roots = reader.sequence(_MAX_STREAMS, "roots", _read_root)
        total_weight = reader.integer(8, "the total weight")
        responders = reader.sequence(
            MAX_SITES, "responders", lambda at: (at.site("a responder"), at.digest("its answer"))
        )
        mean_digest, model_hash = reader.digest("the mean's digest"), reader.digest("a model hash")
        return cls(
            context, sender, t3, certificate, roots, total_weight, responders, mean_digest,
            model_hash, reader.digest("a state hash"),
        )  # fmt: skip


def _write_root(writer: Writer, root: StreamRoot) -> None:
    writer.integer(root.stream, 4).integer(root.elements, 8)
    writer.integer(root.bits, 1).raw(root.root)


def _read_root(reader: Reader) -> StreamRoot:
    stream, elements = reader.integer(4, "a stream"), reader.integer(8, "elements")
    return StreamRoot(stream, elements, reader.integer(1, "bits"), reader.digest("a root"))


@dataclass(frozen=True, slots=True)
class ResultAck(Message):
    """M11. A site has seen this result of the round it was in, and checked so much of it.

    Attributes:
        result: SHA-256 of the payload of the RoundResult.
        checked: SIGNATURE_ONLY, MODEL_RECOMPUTED, TILES_CHECKED or ALL_CHECKED.
        egress: what left the site in the round.
    """

    kind: ClassVar[str] = "result-ack"
    result: bytes
    checked: int
    egress: EgressSummary

    def _write(self, writer: Writer) -> None:
        writer.raw(self.result).integer(self.checked, 1).raw(self.egress.head)
        writer.sequence(self.egress.sent, _write_sent)

    @classmethod
    def _read(cls, context: bytes, sender: str, reader: Reader) -> Self:
        result, checked = reader.digest("the result's digest"), reader.integer(1, "what is checked")
        if checked > ALL_CHECKED:
            raise DecodeError(f"a result is checked to level {ALL_CHECKED} at most, got {checked}")
        head = reader.digest("the egress head")
        sent = reader.sequence(_MAX_EGRESS_KINDS, "kinds that left", _read_sent)
        kinds = [one.kind for one in sent]
        if kinds != sorted(set(kinds)):
            raise DecodeError("the kinds that left a site are repeated or not sorted")
        return cls(context, sender, result, checked, EgressSummary(head, sent))


def _write_sent(writer: Writer, sent: Sent) -> None:
    writer.text(sent.kind).integer(sent.messages, 8).integer(sent.size_bytes, 8)


def _read_sent(reader: Reader) -> Sent:
    kind, messages = reader.text(MAX_KIND_BYTES, "a kind"), reader.integer(8, "messages")
    if not kind or not kind.isprintable():
        raise DecodeError("a kind of what left a site is no name")
    return Sent(kind, messages, reader.integer(8, "bytes"))


# --- what the next round begins with ------------------------------------------------


def acks_digest(result_digest: bytes, acks: Mapping[str, bytes]) -> bytes:
    """What the next round's plan calls `previous_result`: a result and who acknowledged it.

    Args:
        result_digest: SHA-256 of the payload of the RoundResult.
        acks: site -> SHA-256 of the payload of its ResultAck.
    """
    return transcript(Label.ACKS, result_digest, acks)


@dataclass(frozen=True, slots=True)
class Link:
    """The round before, as an invitation carries it: everything a site needs to check that
    round's result with its roster alone, whether it took part or not.

    Attributes:
        manifest: of the round's plan.
        result: envelope of the RoundResult.
        acks: envelopes of ResultAcks, sorted by site.
    """

    manifest: bytes
    result: Envelope
    acks: tuple[Envelope, ...]

    def write(self, writer: Writer) -> None:
        writer.blob(self.manifest)
        write_envelope(writer, self.result)
        writer.sequence(self.acks, write_envelope)

    @classmethod
    def read(cls, reader: Reader) -> Link:
        """Raises:
        DecodeError: not a link.
        """
        manifest = reader.blob(MAX_PAYLOAD_BYTES, "the last round's manifest")
        result = read_envelope(reader)
        return cls(manifest, result, reader.sequence(MAX_SITES, "acknowledgements", read_envelope))


@dataclass(frozen=True, slots=True)
class PreviousRound:
    """A finished round, as its coordinator hands it to the next one.

    Attributes:
        digest: what the next plan calls `previous_result`, 32 bytes.
        receipt_hash: of the round's receipt, 32 bytes.
        survivors: whose updates are in its sum.
    """

    link: Link
    digest: bytes
    receipt_hash: bytes
    survivors: frozenset[str]

    def to_bytes(self) -> bytes:
        """For whoever keeps it over a restart of the coordinator."""
        writer = Writer()
        self.link.write(writer)
        writer.raw(self.digest).raw(self.receipt_hash)
        writer.sequence(sorted(self.survivors, key=str.encode), Writer.text)
        return writer.bytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> PreviousRound:
        """Inverse of to_bytes.

        Raises:
            DecodeError: it is damaged.
        """
        reader = Reader(data)
        link = Link.read(reader)
        digest, receipt = reader.digest("the last round's digest"), reader.digest("its receipt")
        survivors = reader.sequence(MAX_SITES, "survivors", lambda at: at.site("a survivor"))
        reader.expect_end("the last round")
        return cls(link, digest, receipt, frozenset(survivors))
