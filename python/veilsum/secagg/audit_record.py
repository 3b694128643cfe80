"""What a coordinator keeps of a round so that others can check its sum."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from typing_extensions import Buffer

from veilsum.aggregate.ring_spec import RingSpec, Stream
from veilsum.aggregate.secure_sum import SecureSum
from veilsum.errors import ConfigError
from veilsum.secagg import audit, merkle
from veilsum.secagg.audit_keys import AuditKeys
from veilsum.secagg.certified import SignedRound
from veilsum.secagg.envelope import Envelope
from veilsum.secagg.phases import (
    CollectingKeys,
    CollectingPhase,
    CollectingShares,
    CollectingVotes,
)
from veilsum.secagg.plan import Plan
from veilsum.secagg.sum_tree import SumTree
from veilsum.secagg.transcript_file import TranscriptHead, sum_section, upload_section


@dataclass(slots=True)
class AuditRecord:
    """The signed messages of a round as it goes on, 32 bytes for each chunk of an upload, and at
    the end the seeds that its masks came off with.

    Attributes:
        leaves: of each upload's chunks, in (group, index) order.
        seeds: None before the sum is unmasked.
        result: envelope of the RoundResult, None before it is published.
    """

    adverts: dict[str, Envelope] = field(default_factory=dict, repr=False)
    deals: dict[str, Envelope] = field(default_factory=dict, repr=False)
    inputs: dict[str, Envelope] = field(default_factory=dict, repr=False)
    votes: dict[str, Envelope] = field(default_factory=dict, repr=False)
    leaves: dict[str, Sequence[bytes]] = field(default_factory=dict, repr=False)
    seeds: AuditKeys | None = field(default=None, repr=False)
    result: Envelope | None = field(default=None, repr=False)

    def closed(self, phase: CollectingPhase) -> None:
        """Keeps what a phase has collected."""
        match phase:
            case CollectingKeys(received=adverts):
                self.adverts = dict(adverts)
            case CollectingShares(received=deals):
                self.deals = {site: sealed.header for site, sealed in deals.items()}
            case CollectingVotes(received=votes):
                self.votes = dict(votes)
            case _:
                pass

    def uploaded(self, site: str, header: Envelope, leaves: Sequence[bytes]) -> None:
        """Keeps what an upload that is in the sum was promised to be."""
        self.inputs[site], self.leaves[site] = header, leaves

    @property
    def signed(self) -> SignedRound:
        """The messages, sorted by site."""
        return SignedRound(*map(_sorted, (self.adverts, self.deals, self.inputs, self.votes)))

    def audited_sum(
        self, plan: Plan, total: SecureSum, uploads: Mapping[str, Sequence[Buffer]]
    ) -> AuditedSum:
        """See CoordinatorSession.audited_sum."""
        if self.seeds is None or self.result is None:
            raise ConfigError("there is no published sum that could be checked")
        head = TranscriptHead(plan, self.signed, self.seeds, self.result)
        return AuditedSum(head, total, self.leaves, uploads)

    def wipe(self) -> None:
        """Overwrites the seeds."""
        if self.seeds is not None:
            self.seeds.wipe()


def _sorted(envelopes: Mapping[str, Envelope]) -> tuple[Envelope, ...]:
    return tuple(envelopes[site] for site in sorted(envelopes, key=str.encode))


class AuditedSum:
    """A finished sum with all that proves it.

    Args:
        head: of its transcript.
        total: the sum, without masks.
        leaves: of each survivor's upload.
        uploads: all chunks of each survivor's upload, in (group, index) order.
    """

    def __init__(
        self,
        head: TranscriptHead,
        total: SecureSum,
        leaves: Mapping[str, Sequence[bytes]],
        uploads: Mapping[str, Sequence[Buffer]],
    ) -> None:
        self._head = head
        self._total = total
        self._uploads = {site: uploads[site] for site in sorted(leaves, key=str.encode)}
        self._proofs = {site: merkle.root_and_proofs(leaves[site])[1] for site in self._uploads}
        tree = SumTree.over(total.spec, total.chunks())
        self._sum_proofs = {
            stream: merkle.root_and_proofs(leaves)[1] for stream, leaves in tree.leaves.items()
        }

    @property
    def spec(self) -> RingSpec:
        """Which streams and chunks the sum has."""
        return self._total.spec

    def wipe(self) -> None:
        """Overwrites the seeds; no sections are made any more."""
        self._head.seeds.wipe()

    def sections(self, chunks: Sequence[tuple[Stream, int]] | None = None) -> Iterator[Buffer]:
        """The bytes of a transcript, or of its part with these chunks. Not to be kept on a disk
        unasked: it holds the seeds of the sum's masks."""
        yield from self._head.sections()
        spec = self._total.spec
        for stream, index in audit.all_chunks(spec) if chunks is None else chunks:
            proof = self._sum_proofs[stream.group][index]
            yield from sum_section(self._total.chunk(stream, index), proof)
            position = audit.chunk_position(spec, stream, index)
            for site, upload in self._uploads.items():
                yield from upload_section(upload[position], self._proofs[site][position])
