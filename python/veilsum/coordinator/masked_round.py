"""A round of secure aggregation: carries the protocol session's effects into the job."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from typing_extensions import Buffer

from veilsum import secagg
from veilsum.control import ProtocolMessage, RoundOpened, RunSpec, UpdateHeader
from veilsum.coordinator.effects import (
    AnswerUpload,
    CloseUploads,
    DropAudit,
    Effect,
    OpenUploads,
    PublishAudit,
    PublishSum,
    SaveEvidence,
    SaveLink,
    SaveReceipt,
    SendToSite,
)
from veilsum.coordinator.events import ResultPublished, UpdateArrived
from veilsum.coordinator.journal import Invitation, Journal, size_bytes
from veilsum.coordinator.outcome import Failed, Finished, Outcome
from veilsum.coordinator.policy import too_light
from veilsum.coordinator.stragglers import Stragglers
from veilsum.errors import DecodeError, PeerError
from veilsum.secagg.audit_record import AuditedSum

_INPUTS = "inputs"


class MaskedRound:
    """See round.Round. The session decides who is in the sum; this class only translates.

    Args:
        session: not opened yet.
        spec: the run's, with the task of this round.
        audits: whether the session keeps a record that others can check the sum by.
    """

    def __init__(
        self,
        session: secagg.CoordinatorSession,
        invitation: Invitation,
        journal: Journal,
        spec: RunSpec,
        *,
        audits: bool = False,
    ) -> None:
        self._session = session
        self._audits = audits
        self._uploads: dict[str, Sequence[Buffer]] = {}  # of the sum, for audits
        self._audited: AuditedSum | None = None
        self._invitation = invitation
        self._spec = spec
        deadlines = spec.deadlines
        self._seconds = {
            "keys": deadlines.keys_s,
            "shares": deadlines.shares_s,
            "complaints": deadlines.shares_s,
            _INPUTS: deadlines.inputs_s,
            "votes": deadlines.votes_s,
            "unmask": deadlines.unmask_s,
            "acks": deadlines.acks_s,
        }
        self._opened = False
        self.journal = journal
        self.outcome: Outcome | None = None
        self.settled = False
        self.previous: secagg.PreviousRound | None = None
        self.unacknowledged = ""
        self.stragglers: Stragglers | None = None
        self._led_to = b"", b""  # hashes of model and optimizer state

    @property
    def published(self) -> bytes:
        """See CoordinatorSession."""
        return self._session.published

    def hears(self, site: str, payload: bytes) -> bool:
        """See CoordinatorSession."""
        return self._session.hears(site, payload)

    def begin(self, now: float) -> list[Effect]:
        """Sends every invited site the signed plan."""
        effects = self._carry_out(self._session.open(), now)
        self._opened = True
        return effects

    def message(self, site: str, payload: bytes, now: float) -> list[Effect]:
        """A message that breaks the protocol costs its sender the round, and nobody else."""
        # Where updates are collected an upload is the answer; a repeat answers nothing.
        if self.journal.phase != _INPUTS and self._session.hears(site, payload):
            self.journal.answered(site)
        return self._carry_out(self._session.handle(site, payload), now)

    def lost(self, site: str, reason: str, now: float) -> list[Effect]:
        """Stops waiting for the site. An update that is in the sum already stays there."""
        return self._carry_out(self._session.lost(site, reason), now)

    def rejoined(self, site: str, reason: str, now: float) -> list[Effect]:
        """What a process held for the round is gone with it."""
        return self.lost(site, reason, now) if reason else []

    def receiver(self, site: str, header: UpdateHeader) -> secagg.InputReceiver:
        """Checks the signed header before the first chunk is taken."""
        receiver = self._session.input_receiver(site, header.masked_header, header.update_id)
        if header.chunk_count != receiver.chunk_count:
            raise PeerError(
                site, f"announced {header.chunk_count} chunks, an update has {receiver.chunk_count}"
            )
        return receiver

    def update(self, arrived: UpdateArrived, now: float) -> list[Effect]:
        """Folds a complete upload into the sum."""
        site, header = arrived.site, arrived.header
        try:
            folded = self._session.accept_input(
                site, header.masked_header, header.update_id, arrived.chunks
            )
        except (DecodeError, PeerError) as error:
            return [AnswerUpload(header.round, site, False, str(error))]
        if reason := _why_aborted(folded):  # a device failed: the update counts for nothing
            return [
                AnswerUpload(header.round, site, False, reason),
                *self._carry_out(folded, now),
            ]
        if self._audits:
            self._uploads[site] = arrived.chunks
        answer = AnswerUpload(header.round, site, True, "")
        delivered = self.journal.delivered(site, size_bytes(arrived.chunks), now)
        went_on = self._carry_out(folded, now)
        return [answer, *delivered, *went_on, *self._close_at_quorum(now)]

    def _close_at_quorum(self, now: float) -> list[Effect]:
        """Goes on without the sites whose updates are not needed any more. They vote no more
        either: the quorum of a run is no less than the votes that its rounds need (check_run)."""
        quorum = self._spec.turnout.closes_at
        if self.journal.phase != _INPUTS or not 0 < quorum <= self.journal.deliveries:
            return []
        reason = f"sent no update before the round had its quorum of {quorum}"
        lost = [step for site in self.journal.waiting for step in self._session.lost(site, reason)]
        return self._carry_out(lost, now)

    def deadline(self, now: float) -> list[Effect]:
        """Goes on without the silent sites, or aborts, as the protocol says."""
        return self._carry_out(self._session.close_phase(), now)

    def publish(self, model_hash: bytes, state_hash: bytes, now: float) -> list[Effect]:
        """Sends the signed result to the sites that helped to unmask it."""
        self._led_to = model_hash, state_hash
        effects = self._carry_out(self._session.publish(model_hash, state_hash), now)
        if not self._audits:
            return effects
        self._audited = self._session.audited_sum(self._uploads)
        # Served before anyone hears that there is something to check.
        return [
            PublishAudit(self._invitation.round, self._invitation.cohort, self._audited),
            *effects,
        ]

    def republish(self, sent: ResultPublished, state_hash: bytes, now: float) -> list[Effect]:
        """Awaits acknowledgements again. What others could check the sum by is lost."""
        self._led_to = bytes.fromhex(sent.record.model_hash), state_hash
        self._audits = False
        republished = self._session.republish(sent.result, sent.words)
        # Served before anyone hears of it again.
        publish = PublishSum(self._invitation.round, (bytes(sent.words),))
        return [publish, *self._carry_out(republished, now)]

    def close(self) -> None:
        """Wipes the session if the round is cut short, and what others could check it by."""
        self._session.abort("the round was closed")
        self._uploads.clear()
        if self._audited is not None:
            self._audited.wipe()

    def _carry_out(self, steps: Sequence[secagg.CoordinatorEffect], now: float) -> list[Effect]:
        # A site may upload as soon as its invitation to do so is out, so uploads are open
        # before the messages of the same step are sent.
        effects = [
            OpenUploads(self._invitation.round, step.expected)
            for step in steps
            if isinstance(step, secagg.PhaseBegan) and step.name == _INPUTS
        ]
        return [*effects, *(effect for step in steps for effect in self._translated(step, now))]

    def _translated(self, step: secagg.CoordinatorEffect, now: float) -> list[Effect]:
        match step:
            case secagg.SendTo(site, message):
                return [SendToSite(site, self._wrapped(message))]
            case secagg.PhaseBegan(name, expected):
                return self._begin_phase(name, expected, now)
            case secagg.Excluded(site, reason):
                return self.journal.drop(site, reason)
            case secagg.Refused(site, _, refusal):
                self.journal.refusals[site] = refusal
            case secagg.Blamed(_, _, evidence):
                return [SaveEvidence(self._invitation.round, evidence)]
            case secagg.Disputed(_, _, evidence):
                return [SaveEvidence(self._invitation.round, evidence)]
            case secagg.LeaveOut(site, reason):
                return self.journal.leave_out(site, reason)
            case secagg.Aborted(reason):
                self.outcome = Failed(reason)
            case secagg.Completed(result):
                return self._completed(result)
            case secagg.Acknowledged(previous, receipt, quorum):
                self.settled, self.previous = True, previous
                self.unacknowledged = "" if quorum else self._too_few(len(previous.link.acks))
                return self._kept(previous, receipt, quorum)
            case _:
                assert_never(step)
        return []

    def _completed(self, result: secagg.SecureResult) -> list[Effect]:
        """What updates weigh is in their sum. One that weighs too little goes no further."""
        light = too_light(len(result.sites), result.total_weight, self._spec.min_weight)
        if light is not None:
            self.outcome = Failed(light)
            return []
        self.outcome = _finished(result)
        words = (chunk.words for chunk in self._session.sum_chunks())
        return [PublishSum(self._invitation.round, words)]

    def _begin_phase(self, name: str, expected: tuple[str, ...], now: float) -> list[Effect]:
        began = self.journal.phase
        effects = self.journal.begin_phase(name, expected, self._seconds[name], now)
        if began == _INPUTS:
            reason = "the round no longer takes updates"
            effects = [CloseUploads(self._invitation.round, reason), *effects]
        return effects

    def _kept(self, previous: secagg.PreviousRound, receipt: bytes, quorum: bool) -> list[Effect]:
        where, plan = self._invitation.round, self._session.plan
        effects: list[Effect] = [SaveReceipt(where, receipt)]
        if quorum:
            before = plan.model_hash, plan.state_hash
            effects.append(SaveLink(before, self._led_to, secagg.link_bytes(previous.link)))
        return [*effects, DropAudit(where)] if self._audits else effects

    def _too_few(self, acks: int) -> str:
        needed = self._session.plan.vote_quorum
        return f"{acks} sites acknowledged its result, {needed} are needed for a next round"

    def _wrapped(self, message: bytes) -> RoundOpened | ProtocolMessage:
        round_id = self._invitation.round
        if self._opened:
            return ProtocolMessage(round_id, message)
        return RoundOpened(round_id, self._spec.task_id, self._spec.task, message, None)


def _why_aborted(steps: Sequence[secagg.CoordinatorEffect]) -> str:
    return next((step.reason for step in steps if isinstance(step, secagg.Aborted)), "")


def _finished(result: secagg.SecureResult) -> Finished:
    return Finished(
        mean=result.arrays,
        digest=result.digest,
        total_weight=result.total_weight,
        sites=result.sites,
        metrics=result.metrics,
    )
