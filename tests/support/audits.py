"""Finished rounds for tests, with everything that a check of their sum needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from support.secagg import Federation, make_contributions, seal
from veilsum import secagg
from veilsum.aggregate.ring_spec import Stream
from veilsum.aggregate.secure_sum import SecureSum
from veilsum.errors import RoundAborted
from veilsum.secagg.audit_record import AuditedSum, AuditRecord
from veilsum.secagg.certified import CertifiedRound
from veilsum.secagg.envelope import Envelope
from veilsum.secagg.payload import COORDINATOR
from veilsum.secagg.result import secure_result
from veilsum.secagg.result_messages import RoundResult
from veilsum.secagg.sum_tree import SumTree
from veilsum.secagg.transcript_file import TranscriptHead

Tamper = Callable[[SecureSum], None]


class AuditedRound:
    """A round whose coordinator keeps what an audit needs.

    Args:
        lost: sites that are lost before their upload.
        tamper: what the coordinator does to the words of the sum before it signs them.
    """

    def __init__(
        self,
        plan: secagg.Plan,
        *,
        contributions: Any = None,
        lost: Sequence[str] = (),
        tamper: Tamper = lambda total: None,
    ) -> None:
        self.plan = plan
        self.record = AuditRecord()
        self.contributions = contributions or make_contributions(plan)
        self.federation = Federation(plan, contributions=self.contributions, record=self.record)
        for site in lost:
            self.federation.hold("masked-input", origin=site)
            lose = self.federation.coordinator.lost(site, "is gone")
            self.federation.from_coordinator(lose)
        self.federation.run()
        self.total = SecureSum(plan.ring)  # a coordinator that tampers does not audit itself
        self.total.load(self.federation.coordinator._sum.chunks())
        self.uploads = {
            origin: message.chunks
            for origin, _, message in self.federation.sent
            if isinstance(message, secagg.UploadInput) and origin not in lost
        }
        tamper(self.total)

    @property
    def certified(self) -> CertifiedRound:
        return CertifiedRound.opened(self.plan, self.record.signed)

    def result(self, **changes: Any) -> bytes:
        """M10 of the sum as it is now, as its coordinator signs it."""
        certified = self.certified
        try:
            mean = self.total.finish(len(certified.survivors))
            result = secure_result(self.plan.layout, mean, certified.survivors, {})
        except RoundAborted:  # no sum of survivors: then it says the true one's mean
            result = self.federation.result
        fields = {
            "t3": certified.t3,
            "certificate": certified.certificate,
            "roots": SumTree.over(self.plan.ring, self.total.chunks()).roots,
            "total_weight": result.total_weight,
            "responders": tuple((site, bytes(32)) for site in certified.voters),
            "mean_digest": bytes.fromhex(result.digest),
            "model_hash": bytes(32),
            "state_hash": bytes(32),
        }
        return seal(RoundResult(self.plan.context, COORDINATOR, **{**fields, **changes}))

    def head(self, **changes: Any) -> TranscriptHead:
        assert self.record.seeds is not None
        result = Envelope.from_bytes(self.result(**changes))
        return TranscriptHead(self.plan, self.record.signed, self.record.seeds, result)

    def transcript(
        self, chunks: Sequence[tuple[Stream, int]] | None = None, **changes: Any
    ) -> bytes:
        """The file, or a part of it."""
        audited = AuditedSum(self.head(**changes), self.total, self.record.leaves, self.uploads)
        return b"".join(bytes(piece) for piece in audited.sections(chunks))
