"""Transcripts: everything that a check of one round's sum needs, in one file without a key.

    file    = "VST1" || section*
    section = 1 byte kind || LE64 size || body

Sections come in one order, and every size follows from what came before:

    1 roster     canonical bytes
    2 manifest
    3 messages   certified.SignedRound
    4 seeds      audit_keys.AuditKeys
    5 result     envelope of the RoundResult
    then, for every chunk of the sum in (stream, index) order,
    6 sum        inclusion proof, then the packed words of the chunk
    7 upload     of each survivor, sorted: inclusion proof, then the chunk as it was uploaded

A proof is its nodes, 32 bytes each from the leaf upwards; how many follows from the plan. A part of
a transcript has the same form with some chunks only.

A transcript holds seeds of masks (audit_keys.py). They unmask the sum and nothing else, but the
protocol keeps them off disks, so that transcripts are written where they were asked for only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from typing_extensions import Buffer

from veilsum.aggregate.ring_spec import Stream, SumChunk
from veilsum.errors import ConfigError, DecodeError
from veilsum.roster import Roster
from veilsum.secagg import audit, merkle
from veilsum.secagg.audit_keys import AuditKeys
from veilsum.secagg.certified import CertifiedRound, SignedRound
from veilsum.secagg.envelope import MAX_PAYLOAD_BYTES, Envelope
from veilsum.secagg.payload import COORDINATOR, MAX_ENVELOPE_BYTES, open_envelope
from veilsum.secagg.plan import Plan
from veilsum.secagg.result_messages import RoundResult
from veilsum.secagg.sum_tree import check_roots
from veilsum.secagg.wire import DIGEST_BYTES

MAGIC = b"VST1"

_ROSTER, _MANIFEST, _MESSAGES, _SEEDS, _RESULT, _SUM, _UPLOAD = range(1, 8)
_SECTION_BYTES = 1 + 8
_LIMITS = {
    _ROSTER: 2**20,
    _MANIFEST: MAX_PAYLOAD_BYTES,
    _MESSAGES: 4 * MAX_PAYLOAD_BYTES,
    _SEEDS: 2**16,
    _RESULT: MAX_ENVELOPE_BYTES,
}
_NAMES = {
    _ROSTER: "the roster",
    _MANIFEST: "the manifest",
    _MESSAGES: "the messages",
    _SEEDS: "the seeds",
    _RESULT: "the result",
    _SUM: "a chunk of the sum",
    _UPLOAD: "a chunk of an upload",
}


class ProvenChunk(NamedTuple):
    """A chunk, and the proof that it is under its root."""

    chunk: Buffer
    proof: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class TranscriptHead:
    """What stands in front of the chunks.

    Attributes:
        plan: of the round; its roster is the coordinator's.
        signed: the sites' messages.
        seeds: what the masks of the sum came off with.
        result: envelope of the RoundResult.
    """

    plan: Plan = field(repr=False)
    signed: SignedRound
    seeds: AuditKeys
    result: Envelope = field(repr=False)

    def sections(self) -> Iterator[bytes]:
        """The beginning of a transcript. Holds seeds: see the top of this file."""
        yield MAGIC
        bodies = {
            _ROSTER: self.plan.roster.to_bytes(),
            _MANIFEST: self.plan.to_bytes(),
            _MESSAGES: self.signed.to_bytes(),
            _SEEDS: self.seeds.to_bytes(),
            _RESULT: self.result.to_bytes(),
        }
        for kind, body in bodies.items():
            yield _section_head(kind, len(body))
            yield body


def sum_section(found: SumChunk, proof: Sequence[bytes]) -> Iterator[Buffer]:
    """One chunk of the sum."""
    yield from _chunk_section(_SUM, ProvenChunk(found.words, tuple(proof)))


def upload_section(chunk: Buffer, proof: Sequence[bytes]) -> Iterator[Buffer]:
    """One chunk of a survivor's upload."""
    yield from _chunk_section(_UPLOAD, ProvenChunk(chunk, tuple(proof)))


def _chunk_section(kind: int, proven: ProvenChunk) -> Iterator[Buffer]:
    nodes = b"".join(proven.proof)
    yield _section_head(kind, len(nodes) + memoryview(proven.chunk).nbytes)
    yield nodes
    yield proven.chunk


def _section_head(kind: int, size: int) -> bytes:
    return bytes([kind]) + size.to_bytes(8, "little")


class Transcript:
    """A transcript, or a part of one, as it lies in memory or in a mapped file.

    The signatures and the result's form are checked when it is opened; chunks when they are read.
    Nothing is copied that is not asked for.

    Args:
        data: the bytes.
        roster: whose keys are to be believed; None for the one in the transcript, which proves
            only that the transcript agrees with itself.
        plan: the one that it must be of, with a roster that can be believed; None for any.
        chunks: (stream, index) of those that a part was asked to hold; None for all.

    Raises:
        DecodeError, PeerError: it is not a whole and consistent transcript, or a signature is
            wrong.
        ConfigError: it is of another roster.
    """

    def __init__(
        self,
        data: Buffer,
        *,
        roster: Roster | None = None,
        plan: Plan | None = None,
        chunks: Sequence[tuple[Stream, int]] | None = None,
    ) -> None:
        self._data = memoryview(data).cast("B")
        self._at = 0
        if bytes(self._take(len(MAGIC), "a transcript")) != MAGIC:
            raise DecodeError("this is not a transcript: it does not begin with VST1")
        bodies = {kind: bytes(self._section(kind)) for kind in _LIMITS}
        self.roster = _roster(bodies[_ROSTER], plan.roster if plan else roster)
        self.plan = _plan(bodies[_MANIFEST], self.roster, plan)
        # Before anything is made for each chunk: a manifest of a few bytes can plan 2^28 of them.
        count = self.plan.ring.all_chunk_count if chunks is None else len(chunks)
        if count * 2 * _SECTION_BYTES > len(self._data):
            raise DecodeError(f"a transcript of {len(self._data)} bytes cannot hold {count} chunks")
        self.certified = CertifiedRound.opened(self.plan, SignedRound.from_bytes(bodies[_MESSAGES]))
        self.seeds = AuditKeys.from_bytes(bodies[_SEEDS])
        self.result = open_result(self.certified, Envelope.from_bytes(bodies[_RESULT]))
        self._chunks = list(audit.all_chunks(self.plan.ring)) if chunks is None else list(chunks)
        self._check_size()

    @property
    def chunks(self) -> list[tuple[Stream, int]]:
        """Those it holds, in order."""
        return list(self._chunks)

    def sum_chunk(self, stream: Stream, index: int) -> tuple[SumChunk, tuple[bytes, ...]]:
        """A chunk of the sum and its proof, neither checked.

        Raises:
            DecodeError: the section is not what stands in this place.
        """
        proven = self._proven(_SUM, stream, index, self._places[stream.group, index])
        first = self.plan.ring.chunk_range(stream, index).start
        return SumChunk(stream.group, first, bytes(proven.chunk)), proven.proof

    def uploads(self, stream: Stream, index: int) -> Iterator[tuple[str, ProvenChunk]]:
        """(site, its chunk) of every survivor, sorted; a view of the transcript, not checked.

        Raises:
            DecodeError: a section is not what stands in this place.
        """
        place = self._places[stream.group, index]
        place += _SECTION_BYTES + self._sum_bytes(stream, index)
        for site in self.certified.survivors:
            yield site, self._proven(_UPLOAD, stream, index, place)
            place += _SECTION_BYTES + self._upload_bytes(stream, index)

    # --- places -------------------------------------------------------------------

    def _section(self, kind: int) -> memoryview:
        """The next section, which must be of this kind."""
        found, size = self._section_head(kind, self._at)
        if size > _LIMITS[kind]:
            raise DecodeError(
                f"{_NAMES[kind]} has {size} bytes, at most {_LIMITS[kind]} are allowed"
            )
        self._at += _SECTION_BYTES
        return self._take(size, _NAMES[found])

    def _section_head(self, kind: int, place: int) -> tuple[int, int]:
        head = bytes(self._data[place : place + _SECTION_BYTES])
        if len(head) != _SECTION_BYTES or head[0] != kind:
            raise DecodeError(f"{_NAMES[kind]} is missing from the transcript")
        return kind, int.from_bytes(head[1:], "little")

    def _take(self, size: int, what: str) -> memoryview:
        left = len(self._data) - self._at
        if size > left:
            raise DecodeError(f"{what} needs {size} bytes, {left} are left")
        self._at += size
        return self._data[self._at - size : self._at]

    @cached_property
    def _places(self) -> dict[tuple[int, int], int]:
        """Where the sections of a chunk begin."""
        places, place = {}, self._at
        for stream, index in self._chunks:
            places[stream.group, index] = place
            place += self._sections_bytes(stream, index)
        return places

    def _check_size(self) -> None:
        expected = self._at + sum(self._sections_bytes(*chunk) for chunk in self._chunks)
        if len(self._data) != expected:
            raise DecodeError(
                f"the transcript has {len(self._data)} bytes, its plan and its survivors make it "
                f"{expected}"
            )

    def _sections_bytes(self, stream: Stream, index: int) -> int:
        uploads = _SECTION_BYTES + self._upload_bytes(stream, index)
        survivors = len(self.certified.survivors)
        return _SECTION_BYTES + self._sum_bytes(stream, index) + survivors * uploads

    def _sum_bytes(self, stream: Stream, index: int) -> int:
        spec = self.plan.ring
        words = len(spec.chunk_range(stream, index)) * stream.bits // 8
        return self._proof_length(_SUM, stream, index) * DIGEST_BYTES + words

    def _upload_bytes(self, stream: Stream, index: int) -> int:
        nodes = self._proof_length(_UPLOAD, stream, index)
        return nodes * DIGEST_BYTES + self.plan.ring.chunk_bytes(stream, index)

    def _proof_length(self, kind: int, stream: Stream, index: int) -> int:
        spec = self.plan.ring
        if kind == _SUM:
            return merkle.proof_length(spec.chunk_count(stream), index)
        return merkle.proof_length(spec.all_chunk_count, audit.chunk_position(spec, stream, index))

    def _proven(self, kind: int, stream: Stream, index: int, place: int) -> ProvenChunk:
        expected = (self._sum_bytes if kind == _SUM else self._upload_bytes)(stream, index)
        _, size = self._section_head(kind, place)
        if size != expected:
            raise DecodeError(f"{_NAMES[kind]} has {size} bytes, {expected} are expected")
        nodes = self._proof_length(kind, stream, index)
        body = self._data[place + _SECTION_BYTES : place + _SECTION_BYTES + size]
        split = nodes * DIGEST_BYTES
        proof = tuple(bytes(body[at : at + DIGEST_BYTES]) for at in range(0, split, DIGEST_BYTES))
        return ProvenChunk(body[split:], proof)


def open_result(certified: CertifiedRound, envelope: Envelope) -> RoundResult:
    """Verifies the coordinator's result of a round.

    Raises:
        DecodeError: a wrong signature, another round, another survivor set or certificate, or
            roots of other streams.
    """
    plan = certified.plan
    result = open_envelope(
        RoundResult,
        envelope,
        plan.roster.coordinator_key,
        sender=COORDINATOR,
        context=plan.context,
    )
    if result.t3 != certified.t3:
        raise DecodeError("the result is of other updates than the sites voted for (T3 differs)")
    if result.certificate != certified.certificate:
        raise DecodeError("the result names another certificate than these votes make")
    check_roots(plan.ring, result.roots)
    return result


def _roster(data: bytes, trusted: Roster | None) -> Roster:
    try:
        roster = Roster.from_bytes(data)
    except ConfigError as error:
        raise DecodeError(f"the transcript's roster: {error}") from error
    if trusted is not None and trusted.hash != roster.hash:
        raise ConfigError(
            f"the transcript is of roster {roster.hash.hex()[:16]}, "
            f"not of {trusted.hash.hex()[:16]}",
            hint="take the roster that was valid when the round was held",
        )
    return roster


def _plan(manifest: bytes, roster: Roster, expected: Plan | None) -> Plan:
    if expected is not None:
        if manifest != expected.to_bytes():
            raise DecodeError("the transcript is of another plan than was asked for")
        return expected
    try:
        return Plan.from_bytes(manifest, roster=roster)
    except DecodeError:
        raise
    except ConfigError as error:
        raise DecodeError(f"the transcript's plan cannot work: {error}") from error
