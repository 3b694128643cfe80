"""What a site's ledger holds, as bytes: records, and the chain that joins them.

A ledger is a head, and records behind it that are joined as in chain.py:

    head      "VSL1" || ledger id (32) || home (32) || SHA-256 under "head" of these (32)

The first link before is a hash over head and ledger key. What a last record stands for whose end
is missing has not left the site.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from typing_extensions import Buffer

from veilsum.errors import DecodeError, LedgerError
from veilsum.secagg.chain import HashChain
from veilsum.secagg.keys import Label, digest
from veilsum.secagg.wire import DIGEST_BYTES, MAX_NAME_BYTES, MAX_SITES, Reader, Writer

MAGIC = b"VSL1"
HEAD_BYTES = len(MAGIC) + 3 * DIGEST_BYTES
MAX_BODY_BYTES = 2**15  # the vote for 255 sites of the longest names needs 17.6 KB

NO_STATE = bytes(DIGEST_BYTES)
"""Hash of the state of an optimizer that remembers nothing."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt at one round, as a site's ledger names it.

    Attributes:
        context: ctx of its plan, 32 bytes.
    """

    task_id: str
    run_id: str
    round_number: int
    attempt: int
    context: bytes


@dataclass(frozen=True, slots=True)
class Opened:
    """Written before the site's keys are made and sent.

    Attributes:
        manifest_hash: SHA-256 of the manifest, 32 bytes.
    """

    attempt: Attempt
    manifest_hash: bytes


@dataclass(frozen=True, slots=True)
class Contributed:
    """Written before any of the masked update leaves.

    Attributes:
        t2: transcript its masks belong to, 32 bytes.
        update_tag: Ledger.tag_of the update, 32 bytes.
        header_digest: SHA-256 of the payload of the signed input header, 32 bytes.
    """

    attempt: Attempt
    t2: bytes
    update_tag: bytes
    header_digest: bytes


@dataclass(frozen=True, slots=True)
class VoteCast:
    """Written before the vote leaves.

    Attributes:
        t3: what the vote is for, 32 bytes.
        survivors: whose updates are in the sum, sorted.
    """

    attempt: Attempt
    t3: bytes
    survivors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AckSent:
    """Written before the acknowledgement of the attempt's result leaves.

    Attributes:
        result_digest: SHA-256 of the payload of the round result, 32 bytes.
        model_hash: of the model after the round, 32 bytes.
    """

    attempt: Attempt
    result_digest: bytes
    model_hash: bytes


@dataclass(frozen=True, slots=True)
class Overtaken:
    """Written when others showed this site an acknowledgement of its own that is not in the
    ledger: what else the site did since this ledger was current is not in it either.

    Attributes:
        attempt: whose result the site acknowledged.
        ack_digest: SHA-256 of the payload of the acknowledgement, 32 bytes.
    """

    attempt: Attempt
    ack_digest: bytes


@dataclass(frozen=True, slots=True)
class Adopted:
    """A person said that the ledger may be used where it lies now.

    Attributes:
        home: as in the head, 32 bytes.
    """

    home: bytes


@dataclass(frozen=True, slots=True)
class RosterAgreed:
    """Written before the site serves with a roster that it has not served with before.

    Attributes:
        roster_hash: Roster.hash, 32 bytes.
    """

    consortium: str
    epoch: int
    roster_hash: bytes


@dataclass(frozen=True, slots=True)
class ModelKnown:
    """Written before a site trains from a model that it had not known: how that is decided is in
    origin.py.

    Attributes:
        model_hash: 32 bytes.
        state_hash: of what the server's optimizer remembers beside it, 32 bytes.
    """

    task_id: str
    model_hash: bytes
    state_hash: bytes

    def covers(self, model: ModelKnown) -> bool:
        """Whether it is the same, or the same with an optimizer that begins anew: what that
        remembers is nothing that anyone could have chosen."""
        same = (self.task_id, self.model_hash) == (model.task_id, model.model_hash)
        return same and model.state_hash in (self.state_hash, NO_STATE)


@dataclass(frozen=True, slots=True)
class ResultRejected:
    """Written when the site found a result to be wrong, before it says so.

    Attributes:
        result_digest: as of AckSent.
    """

    attempt: Attempt
    result_digest: bytes


LedgerRecord: TypeAlias = (
    Opened
    | Contributed
    | VoteCast
    | AckSent
    | ResultRejected
    | Overtaken
    | RosterAgreed
    | Adopted
    | ModelKnown
)

_OPENED, _CONTRIBUTED, _VOTED, _ACKED, _OVERTAKEN, _ROSTER, _ADOPTED, _MODEL = range(1, 9)
_REJECTED = 9


def encode_record(record: LedgerRecord) -> bytes:
    """Body of a record."""
    match record:
        case Opened(attempt, manifest_hash):
            return _begun(_OPENED, attempt).raw(manifest_hash).bytes()
        case Contributed(attempt, t2, tag, header):
            return _begun(_CONTRIBUTED, attempt).raw(t2).raw(tag).raw(header).bytes()
        case VoteCast(attempt, t3, survivors):
            writer = _begun(_VOTED, attempt).raw(t3)
            return writer.sequence(survivors, lambda out, site: out.text(site)).bytes()
        case AckSent(attempt, result, model_hash):
            return _begun(_ACKED, attempt).raw(result).raw(model_hash).bytes()
        case ResultRejected(attempt, result):
            return _begun(_REJECTED, attempt).raw(result).bytes()
        case Overtaken(attempt, ack):
            return _begun(_OVERTAKEN, attempt).raw(ack).bytes()
        case RosterAgreed(consortium, epoch, roster_hash):
            writer = Writer().integer(_ROSTER, 1).text(consortium).integer(epoch, 4)
            return writer.raw(roster_hash).bytes()
        case ModelKnown(task_id, model_hash, state_hash):
            return Writer().integer(_MODEL, 1).text(task_id).raw(model_hash).raw(state_hash).bytes()
        case Adopted(home):
            return Writer().integer(_ADOPTED, 1).raw(home).bytes()


def _begun(kind: int, attempt: Attempt) -> Writer:
    writer = Writer().integer(kind, 1).text(attempt.task_id).text(attempt.run_id)
    writer.integer(attempt.round_number, 8).integer(attempt.attempt, 4)
    return writer.raw(attempt.context)


def decode_record(body: bytes) -> LedgerRecord:
    """Raises:
    DecodeError: not the body of a record.
    """
    reader = Reader(body)
    record = _read(reader, reader.integer(1, "record kind"))
    reader.expect_end("the record")
    return record


def _read(reader: Reader, kind: int) -> LedgerRecord:
    if kind == _ADOPTED:
        return Adopted(reader.digest("home"))
    if kind == _MODEL:
        task_id = reader.text(MAX_NAME_BYTES, "task")
        return ModelKnown(task_id, reader.digest("model hash"), reader.digest("state hash"))
    if kind == _ROSTER:
        consortium = reader.text(MAX_NAME_BYTES, "consortium")
        return RosterAgreed(consortium, reader.integer(4, "epoch"), reader.digest("roster hash"))
    if not (_OPENED <= kind <= _OVERTAKEN or kind == _REJECTED):
        raise DecodeError(f"there is no record of kind {kind}")
    attempt = Attempt(
        reader.text(MAX_NAME_BYTES, "task"),
        reader.text(MAX_NAME_BYTES, "run"),
        reader.integer(8, "round"),
        reader.integer(4, "attempt"),
        reader.digest("ctx"),
    )
    if kind == _OPENED:
        return Opened(attempt, reader.digest("manifest hash"))
    if kind == _CONTRIBUTED:
        tag_and_header = (reader.digest("T2"), reader.digest("update tag"), reader.digest("header"))
        return Contributed(attempt, *tag_and_header)
    if kind == _ACKED:
        return AckSent(attempt, reader.digest("the result's digest"), reader.digest("model hash"))
    if kind == _REJECTED:
        return ResultRejected(attempt, reader.digest("the result's digest"))
    if kind == _OVERTAKEN:
        return Overtaken(attempt, reader.digest("the acknowledgement's digest"))
    t3 = reader.digest("T3")
    return VoteCast(
        attempt, t3, reader.sequence(MAX_SITES, "survivors", lambda r: r.site("survivor"))
    )


# --- the chain --------------------------------------------------------------------


def make_head(ledger_id: bytes, home: bytes) -> bytes:
    """Args:
    ledger_id: 32 random bytes.
    home: hash of where the ledger was made, 32 bytes.
    """
    fields = MAGIC + ledger_id + home
    return fields + digest(Label.LEDGER, b"head", fields)


def home_in(head: bytes) -> bytes:
    """Where the ledger was made.

    Raises:
        LedgerError: this is not the head of a ledger.
    """
    fields, check = head[:-DIGEST_BYTES], head[-DIGEST_BYTES:]
    whole = len(head) == HEAD_BYTES and head.startswith(MAGIC)
    if not whole or check != digest(Label.LEDGER, b"head", fields):
        raise LedgerError("the ledger has no head, or a damaged one")
    return fields[-DIGEST_BYTES:]


class Chain:
    """The link that the next record is joined to.

    Args:
        head: of the ledger.
        key: of the ledger, 32 bytes: records joined under another one do not fit.
    """

    def __init__(self, head: bytes, key: Buffer) -> None:
        first = digest(Label.LEDGER, b"first", head, key)
        damage = "of the ledger was changed, or was written under another key"
        self._chain = HashChain(Label.LEDGER, first, damage)

    def join(self, record: LedgerRecord) -> bytes:
        """The record's bytes in the file; the next one will be joined to it."""
        return self._chain.join(encode_record(record))

    def read(self, data: bytes) -> Iterator[tuple[LedgerRecord, int]]:
        """The records of a file behind its head, each with the bytes it has there. A last one
        whose end is missing is left out.

        Raises:
            LedgerError: something was changed, or was written under another key.
        """
        for number, (body, size) in enumerate(self._chain.read(data), 1):
            yield _decoded(body, number), size


def _decoded(body: bytes, number: int) -> LedgerRecord:
    try:
        if len(body) > MAX_BODY_BYTES:
            raise DecodeError(f"it has {len(body)} bytes")
        return decode_record(body)
    except DecodeError as error:
        raise LedgerError(f"record {number} of the ledger has no meaning: {error}") from error
