"""Makes the rounds of a run: the one place that knows both kinds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from veilsum import _native, plain, secagg
from veilsum.control import RunSpec
from veilsum.coordinator.journal import Invitation, Journal
from veilsum.coordinator.masked_round import MaskedRound
from veilsum.coordinator.plain_round import PlainRound
from veilsum.coordinator.policy import task_of_round
from veilsum.coordinator.round import Round
from veilsum.model import ModelLayout, StoredModel
from veilsum.roster import Roster
from veilsum.secagg.audit_record import AuditRecord
from veilsum.secagg.result_checks import NO_RESULT

Entropy: TypeAlias = Callable[[int], bytes]
"""size -> that many fresh random bytes. They become public nonces."""

ReadKept: TypeAlias = Callable[[str, int, ModelLayout], StoredModel]
"""(run, round, layout) -> the model after that round, once SaveRound was carried out."""

_NONCE_BYTES = 32


@dataclass(frozen=True, slots=True)
class ModelRef:
    """Which model a round starts from.

    Attributes:
        model_hash: of its arrays, 32 bytes.
        previous: the round that led to it; None in the first round, and in plain runs.
        state_hash: of what the server's optimizer remembers (optimizers.applying), 32 bytes.
    """

    layout: ModelLayout
    model_hash: bytes
    previous: secagg.PreviousRound | None
    state_hash: bytes


@dataclass(frozen=True, slots=True)
class RoundFactory:
    """What every round needs from the coordinator.

    Attributes:
        spool: a directory for the updates of plain rounds, "" to keep them in memory.
        backend: what sums them: "cpu", or a device such as "cuda:0".
        audits: whether masked rounds keep what others need to check their sums.
        kept: gives models back that were saved; None keeps a run's model in memory.
    """

    roster: Roster
    signing_key: Ed25519PrivateKey
    entropy: Entropy
    threads: int
    spool: str
    backend: str = "cpu"
    audits: bool = False
    kept: ReadKept | None = None

    def make(
        self, spec: RunSpec, invitation: Invitation, start: ModelRef, journal: Journal
    ) -> Round:
        """A round that has not begun.

        Raises:
            ConfigError: the settings cannot work for this cohort.
        """
        task = task_of_round(spec.task, invitation.round.number)
        spec = replace(spec, task=task)
        make = self._masked if spec.masked else self._plain
        return make(spec, invitation, start, journal)

    def _masked(
        self, spec: RunSpec, invitation: Invitation, start: ModelRef, journal: Journal
    ) -> Round:
        plan = secagg.Plan.for_round(
            roster=self.roster,
            cohort=invitation.cohort,
            spec=spec,
            run_id=invitation.round.run_id,
            round_number=invitation.round.number,
            attempt=invitation.round.attempt,
            layout=start.layout,
            model_hash=start.model_hash,
            previous_result=start.previous.digest if start.previous else NO_RESULT,
            state_hash=start.state_hash,
            nonce=self.entropy(_NONCE_BYTES),
        )
        session = secagg.CoordinatorSession(
            plan,
            signing_key=self.signing_key,
            threads=self.threads,
            backend=self.backend,
            audit_seed=self.entropy(_NONCE_BYTES),
            record=AuditRecord() if self.audits else None,
            previous=start.previous,
        )
        return MaskedRound(session, invitation, journal, spec, audits=self.audits)

    def _plain(
        self, spec: RunSpec, invitation: Invitation, start: ModelRef, journal: Journal
    ) -> Round:
        aggregator = self.aggregator(start.layout)
        plan = plain.make_plan(spec, start.layout, start.model_hash)
        return PlainRound(plan, start.layout, aggregator, invitation, journal, spec)

    def aggregator(self, layout: ModelLayout) -> _native.MeanAggregator:
        """An empty mean of updates that may be read.

        Raises:
            ConfigError, DeviceError: the device is not there.
        """
        return _native.MeanAggregator(
            layout.native,
            threads=self.threads,
            spool=self.spool,
            backend=self.backend,
            streaming_max_abs=0.0,
            streaming_max_total_weight=0,
        )
