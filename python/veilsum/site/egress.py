"""The egress ledger: a line for every message that leaves a site, each joined to the one before.

    head      "VSX1" || ledger id (32) || LP consortium || LP site || SHA-256 of these (32)
    body      LE64 number || LE64 unix ms || LP kind || LE64 bytes || SHA-256 of the message (32)

Bodies are joined as in secagg/chain.py; the first link before is a hash over the head. There is
no key in it, so that whoever the site shows its ledger to can check all of it. Who can write
the file can also write it anew from the start. What stands against that is the ledger's head,
the last link, wherever the site has said it before: a ledger without that link is another one.

A message is what is handed to gRPC, before TLS; an update leaves in several.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from veilsum.errors import DecodeError, LedgerError
from veilsum.secagg.chain import HashChain
from veilsum.secagg.egress_summary import EgressSummary, Sent
from veilsum.secagg.keys import Label, digest
from veilsum.secagg.wire import DIGEST_BYTES, MAX_NAME_BYTES, Reader, Writer

MAGIC = b"VSX1"
_DAMAGE = "of the egress ledger was changed, or one before it was"


@dataclass(frozen=True, slots=True)
class EgressHead:
    """Whose ledger it is.

    Attributes:
        ledger_id: 32 random bytes, so that no two ledgers begin alike.
    """

    ledger_id: bytes
    consortium: str
    site: str

    def to_bytes(self) -> bytes:
        """The beginning of the file."""
        fields = MAGIC + self.ledger_id
        fields += Writer().text(self.consortium).text(self.site).bytes()
        return fields + digest(Label.EGRESS, b"head", fields)

    @classmethod
    def from_bytes(cls, data: bytes) -> EgressHead:
        """Of a file, whatever follows.

        Raises:
            LedgerError: there is no whole head, or a damaged one.
        """
        reader = Reader(data)
        try:
            magic, ledger_id = reader.raw(len(MAGIC), "magic"), reader.digest("ledger id")
            names = (reader.text(MAX_NAME_BYTES, "consortium"), reader.text(MAX_NAME_BYTES, "site"))
            check = reader.digest("the check")
        except DecodeError as error:
            raise LedgerError(f"the egress ledger has no whole head: {error}") from error
        head = cls(ledger_id, *names)
        if magic != MAGIC or head.to_bytes()[-DIGEST_BYTES:] != check:
            raise LedgerError("the head of the egress ledger was changed")
        return head


@dataclass(frozen=True, slots=True)
class EgressRecord:
    """One message that left.

    Attributes:
        number: counts from 1, over restarts.
        unix_ms: when, by the site's clock.
        kind: see Sent.
        size_bytes: of the message, before TLS.
        digest: SHA-256 of its bytes.
    """

    number: int
    unix_ms: int
    kind: str
    size_bytes: int
    digest: bytes

    def to_bytes(self) -> bytes:
        """The body of its record."""
        writer = Writer().integer(self.number, 8).integer(self.unix_ms, 8).text(self.kind)
        return writer.integer(self.size_bytes, 8).raw(self.digest).bytes()

    @classmethod
    def from_bytes(cls, body: bytes) -> EgressRecord:
        """Raises:
        DecodeError: not the body of a record.
        """
        reader = Reader(body)
        number, unix_ms = reader.integer(8, "number"), reader.integer(8, "time")
        kind = reader.text(MAX_NAME_BYTES, "kind")
        record = cls(number, unix_ms, kind, reader.integer(8, "bytes"), reader.digest("digest"))
        reader.expect_end("the record")
        return record


class EgressChain:
    """A ledger as it stands. One thread may add while others ask for the summary.

    Args:
        head: of the ledger.
    """

    def __init__(self, head: EgressHead) -> None:
        first = digest(Label.EGRESS, b"first", head.to_bytes())
        self._chain = HashChain(Label.EGRESS, first, _DAMAGE)
        self._number = 0
        self._now: tuple[bytes, dict[str, Sent]] = (first, {})  # replaced, never changed

    def summary(self) -> EgressSummary:
        """What is in the ledger, with its head: the last link, or the first one before any
        record."""
        head, sent = self._now
        return EgressSummary(head, tuple(sent[kind] for kind in sorted(sent)))

    def add(self, unix_ms: int, kind: str, size_bytes: int, message_digest: bytes) -> bytes:
        """A message that is about to leave; its record as bytes of the file."""
        record = EgressRecord(self._number + 1, unix_ms, kind, size_bytes, message_digest)
        data = self._chain.join(record.to_bytes())
        self._count(record)
        return data

    def read(self, data: bytes) -> Iterator[tuple[EgressRecord, int]]:
        """The records behind a file's head, each with the bytes it has there. A last one whose
        end is missing is left out: its message has not left.

        Raises:
            LedgerError: names the first record that does not follow from those before it.
        """
        for body, size in self._chain.read(data):
            record = self._decoded(body)
            self._count(record)
            yield record, size

    def _decoded(self, body: bytes) -> EgressRecord:
        number = self._number + 1
        try:
            record = EgressRecord.from_bytes(body)
        except DecodeError as error:
            raise LedgerError(f"record {number} of the egress ledger: {error}") from error
        if record.number != number:
            raise LedgerError(f"record {number} of the egress ledger says it is {record.number}")
        return record

    def _count(self, record: EgressRecord) -> None:
        self._number = record.number
        _, sent = self._now
        past = sent.get(record.kind, Sent(record.kind, 0, 0))
        grown = Sent(record.kind, past.messages + 1, past.size_bytes + record.size_bytes)
        self._now = (self._chain.link, {**sent, record.kind: grown})
