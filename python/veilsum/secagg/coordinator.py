"""The coordinator's side of one masked round, without I/O, clock or randomness of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typing_extensions import Buffer

from veilsum.aggregate.ring_spec import SumChunk
from veilsum.aggregate.secure_sum import SecureSum
from veilsum.errors import ConfigError, DecodeError, DeviceError, PeerError, RoundAborted
from veilsum.secagg import closing, collecting
from veilsum.secagg.accusing import Accuser
from veilsum.secagg.audit_record import AuditedSum, AuditRecord
from veilsum.secagg.blame import ProvenFault
from veilsum.secagg.complaints import Accusation, Complaint, Finding, Justification
from veilsum.secagg.effects import (
    Aborted,
    Completed,
    CoordinatorEffect,
    Excluded,
    PhaseBegan,
    Refused,
    SendTo,
)
from veilsum.secagg.envelope import Envelope
from veilsum.secagg.evidence import FAULT_TEXTS, Fault
from veilsum.secagg.judging import Judging
from veilsum.secagg.messages import InputHeader, RoundOpen
from veilsum.secagg.payload import COORDINATOR, Message
from veilsum.secagg.phases import (
    CollectingAcks,
    CollectingInputs,
    CollectingKeys,
    CollectingPhase,
    CollectingUnmask,
    CoordinatorPhase,
    Ended,
    Summed,
)
from veilsum.secagg.plan import Plan
from veilsum.secagg.receiver import InputReceiver
from veilsum.secagg.refusals import TEXTS, Refuse, open_refusal
from veilsum.secagg.result_checks import NO_RESULT
from veilsum.secagg.result_messages import PreviousRound
from veilsum.secagg.unmask import WrongSecrets

_COMPLAINTS = (Complaint.kind, Justification.kind)


class CoordinatorSession:
    """The coordinator in one attempt.

    It holds no secret before the sites return their unmask shares, and wipes what it rebuilt
    from them before it reports the result. A message that breaks the protocol costs its
    sender the round (Excluded) and never the others theirs.

    Args:
        plan: of the attempt.
        signing_key: the coordinator's; its public half is in the roster.
        audit_seed: 32 fresh random bytes, which choose the tiles of the sum that are computed twice
            (SecureSum). A difference aborts the round.
        record: keeps what others need to check the sum; None where nobody is to check it.
        threads: to sum and unmask with.
        backend: where the sum is, "cpu" or a device such as "cuda:0"; one that fails aborts the
            round.
        previous: the run's last round, as its session acknowledged it; None in the first.

    Raises:
        ConfigError: the key is not the roster's, the seed has another size, or the plan follows
            another round than `previous`.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        signing_key: Ed25519PrivateKey,
        audit_seed: bytes,
        record: AuditRecord | None = None,
        threads: int = 1,
        backend: str = "cpu",
        previous: PreviousRound | None = None,
    ) -> None:
        if signing_key.public_key().public_bytes_raw() != plan.roster.coordinator_key:
            raise ConfigError("the signing key is not the one the roster lists for the coordinator")
        if plan.previous_result != (previous.digest if previous else NO_RESULT):
            raise ConfigError("the plan does not follow the round that came before it")
        self._plan = plan
        self._previous = previous
        self._signing_key = signing_key
        self._sum = SecureSum(plan.ring, threads=threads, backend=backend, audit_seed=audit_seed)
        self._record = record
        self._lost: dict[str, str] = {}
        self._heard: set[tuple[str, bytes]] = set()
        self._accuser = Accuser(plan)
        self._found: list[CoordinatorEffect] = []  # about uploads, which have no effects to return
        self._phase: CoordinatorPhase | Judging = CollectingKeys(plan.cohort)
        self.published = b""  # the signed result, once sites are told of it

    @property
    def plan(self) -> Plan:
        """The round's plan."""
        return self._plan

    @property
    def phase(self) -> str:
        """One of keys, shares, inputs, complaints, votes, unmask, acks, completed, aborted."""
        return self._phase.name

    def open(self) -> list[CoordinatorEffect]:
        """Invites the cohort."""
        plan, link = self._plan, self._previous.link if self._previous else None
        opening = self._seal(RoundOpen(plan.context, COORDINATOR, plan.to_bytes(), link))
        opened, cohort = opening.to_bytes(), plan.cohort
        return self._begin(closing.Opening(CollectingKeys(cohort), dict.fromkeys(cohort, opened)))

    def sum_chunks(self) -> Iterator[SumChunk]:
        """The words of the unmasked sum, in order: what the result's roots are over.

        Raises:
            ConfigError: the round has no result yet, or none any more.
        """
        if not isinstance(self._phase, Summed | CollectingAcks):
            raise ConfigError(f"there is no sum in phase {self.phase!r}")
        return self._sum.chunks()

    def hears(self, site: str, message: bytes) -> bool:
        """Whether handle() would change anything: not for repeats, nor for those who are out."""
        return not (isinstance(self._phase, Summed | Ended) or self._ignores(site, message))

    def _ignores(self, site: str, message: bytes) -> bool:
        known = (site, hashlib.sha256(message).digest()) in self._heard
        return known or site in self._lost or collecting.repeats_answer(self._phase, site, message)

    def handle(self, site: str, message: bytes) -> list[CoordinatorEffect]:
        """Takes a message of a site, whose identity the transport vouches for.

        A repeat of an accepted message is ignored, whenever it comes.
        """
        phase, heard = self._phase, (site, hashlib.sha256(message).digest())
        if self._ignores(site, message):
            return []
        if isinstance(phase, Summed | Ended):  # too late for anything but to contradict oneself
            return self._accuser.accuse(self._accuser.contradiction(site, message))
        try:
            kind = collecting.kind_or_none(message)
            if kind == Refuse.kind:
                return self._on_refusal(site, message)
            if isinstance(phase, CollectingInputs | Judging) and kind in _COMPLAINTS:
                effects = self._on_complaint(phase, site, kind, Envelope.from_bytes(message))
                self._heard.add(heard)
                return effects
            if isinstance(phase, Judging):
                raise PeerError(site, "sent something else than an answer to a complaint")
            if site not in phase.expected:
                raise PeerError(site, f"has no part in the {phase.name} phase")
            if site in phase.received:
                raise PeerError(site, f"sent two different messages in the {phase.name} phase")
            collecting.collect(self._plan, phase, site, message)
            self._heard.add(heard)
            self._accuser.took(site, message)
        except (DecodeError, PeerError) as error:
            return self._refuse(site, message, error)
        except ConfigError as error:  # this machine's: no more memory to lock
            return self.abort(str(error))
        return self._advance()

    def _refuse(
        self, site: str, message: bytes, error: DecodeError | PeerError
    ) -> list[CoordinatorEffect]:
        proven = [error.evidence] if isinstance(error, ProvenFault) else []
        papers = [*proven, *self._accuser.contradiction(site, message)]
        return [
            *self._accuser.accuse(papers),
            *self.lost(site, collecting.without_name(site, error)),
        ]

    def _on_refusal(self, site: str, message: bytes) -> list[CoordinatorEffect]:
        plan = self._plan
        code = open_refusal(plan.roster, site, plan.context, message)
        why = f"refused ({code.name.lower()}): {TEXTS[code]}"
        return [Refused(site, code, message), *self.lost(site, why)]

    def _on_complaint(
        self, phase: CollectingInputs | Judging, site: str, kind: str, envelope: Envelope
    ) -> list[CoordinatorEffect]:
        plan = self._plan
        judging = phase
        if isinstance(judging, CollectingInputs):
            judging = Judging(closing.present(phase.dealers.sites, self._lost), phase.dealers)
        hear = judging.hear if kind == Complaint.kind else judging.answer
        heard = hear(plan, site, envelope)
        finding, dealer = heard.finding, heard.complaint.dealer
        if finding is Finding.UNFOUNDED:
            accused = self._accuser.accuse([judging.evidence(plan, heard)])
            del judging.received[site]
            return [*accused, *self.lost(site, FAULT_TEXTS[Fault.FALSE_COMPLAINT])]
        if finding in (Finding.BAD_DEAL, Finding.UNJUSTIFIED):
            accused = self._accuser.accuse([judging.evidence(plan, heard)])
            return [*accused, *self._conclude(judging)]
        effects: list[CoordinatorEffect] = []
        if judging is not phase:
            self._phase = judging
            effects.append(PhaseBegan(judging.name, judging.expected))
        if finding is Finding.OPEN:
            accusation = Accusation(plan.context, COORDINATOR, envelope)
            effects.append(SendTo(dealer, self._seal(accusation).to_bytes()))
        return effects

    def _conclude(self, judging: Judging) -> list[CoordinatorEffect]:
        return [*judging.conclude(self._plan), *self.abort(judging.reason)]

    def input_receiver(self, site: str, header: bytes, update_id: int) -> InputReceiver:
        """Opens an upload; nothing enters the sum until accept_input. The first header that a site
        has signed is the only one it may upload under.

        Raises:
            PeerError: the site may not upload (now, or again).
            DecodeError, PeerError: the header is not one of this round.
        """
        _, message = self._checked_header(site, header, update_id)
        return InputReceiver(self._plan, site, message, update_id)

    def accept_input(
        self, site: str, header: bytes, update_id: int, chunks: Sequence[Buffer]
    ) -> list[CoordinatorEffect]:
        """Checks a complete upload once more as a whole and folds it into the sum.

        Args:
            chunks: in (group, index) order.

        Raises:
            PeerError, DecodeError: late, second or wrong; nothing has changed. What becomes
                of the site is up to the caller: see lost().
        """
        phase, message = self._checked_header(site, header, update_id)
        receiver = InputReceiver(self._plan, site, message, update_id)
        if len(chunks) != receiver.chunk_count:
            raise PeerError(site, f"sent {len(chunks)} of {receiver.chunk_count} chunks")
        for chunk in chunks:
            receiver.add(chunk)
        receiver.finish()
        try:
            self._sum.fold(chunks)
        except DeviceError as error:
            return self.abort(str(error))
        envelope = Envelope.from_bytes(header)
        phase.received[site] = envelope.payload_digest
        if self._record is not None:
            self._record.uploaded(site, envelope, receiver.hashes)
        return self._advance()

    def lost(self, site: str, reason: str) -> list[CoordinatorEffect]:
        """Goes on without a site. What it delivered before stays in the round. Idempotent."""
        if isinstance(self._phase, Ended) or site in self._lost or site not in self._plan.cohort:
            return []
        self._lost[site] = reason
        if isinstance(self._phase, Summed):
            return []  # nothing is awaited of it; it will not be told of the result
        return [Excluded(site, reason), *self._advance()]

    def close_phase(self) -> list[CoordinatorEffect]:
        """The phase's deadline passed: goes on without the sites that were silent."""
        phase = self._phase
        if isinstance(phase, Summed | Ended):
            return []
        if isinstance(phase, Judging):
            return self._conclude(phase)
        effects: list[CoordinatorEffect] = []
        for site in closing.awaited(phase, self._lost):
            reason = f"sent no {phase.noun} in time"
            self._lost[site] = reason
            effects.append(Excluded(site, reason))
        return [*effects, *self._advance()]

    def abort(self, reason: str) -> list[CoordinatorEffect]:
        """Ends the round without a result and wipes what it holds. One that has its result keeps
        it: then only acknowledgements are no longer taken."""
        if isinstance(self._phase, Summed | CollectingAcks):
            self._phase = Ended("completed")
        if isinstance(self._phase, Ended):
            return []
        if isinstance(self._phase, CollectingUnmask):
            self._phase.wipe()
        self._phase = Ended("aborted")
        return [*self._take_found(), Aborted(reason)]

    def publish(self, model_hash: bytes, state_hash: bytes) -> list[CoordinatorEffect]:
        """Tells the sites what became of the round, after Completed; Acknowledged will follow.

        To be called when the result is kept: from then on it is out, and there is no other.

        Args:
            model_hash, state_hash: of the model and of what the server's optimizer remembers
                after the step, 32 bytes; zeros where it remembers nothing.

        Raises:
            ConfigError: there is no result, or it was published already.
        """
        phase = self._phase
        if not isinstance(phase, Summed):
            raise ConfigError(f"there is no result to publish in phase {phase.name!r}")
        after = closing.AfterStep(model_hash, state_hash)
        return self._publish(
            closing.open_acks(self._plan, phase, self._lost, self._sum, after, self._seal)
        )

    def republish(self, result: bytes, words: Buffer) -> list[CoordinatorEffect]:
        """Takes the place of unmask shares, and of publish(), after a restart: what they led to is
        out already, and they were kept nowhere. The record that others check the sum by is lost.

        Args:
            result: as it was published.
            words: of the sum, its chunks one after the other.

        Raises:
            ConfigError: it is not the time for it.
            DecodeError: the result is not one of this round and sum.
        """
        phase, sent = self._phase, Envelope.from_bytes(result)
        if not isinstance(phase, CollectingUnmask):
            raise ConfigError(f"a result cannot be taken up again in phase {phase.name!r}")
        self._record = None
        return self._publish(
            closing.reopen_acks(self._plan, phase, self._lost, self._sum, sent, words)
        )

    def _publish(self, acking: closing.AcksOpened) -> list[CoordinatorEffect]:
        result = acking.phase.result
        self.published = result.to_bytes()
        if self._record is not None:
            self._record.result = result
        return self._begin(acking.opening)

    def audited_sum(self, uploads: Mapping[str, Sequence[Buffer]]) -> AuditedSum:
        """The published sum with all that proves it; holds seeds (audit_keys.py).

        Args:
            uploads: all chunks of every upload that is in the sum, in (group, index) order.

        Raises:
            ConfigError: nothing was published, or no record was kept.
        """
        if self._record is None:
            raise ConfigError("the round keeps no record that others could check its sum by")
        return self._record.audited_sum(self._plan, self._sum, uploads)

    def _checked_header(
        self, site: str, header: bytes, update_id: int
    ) -> tuple[CollectingInputs, InputHeader]:
        phase = self._phase
        if site in self._lost:
            raise PeerError(site, f"is out of the round: it {self._lost[site]}")
        contradiction = self._accuser.contradiction(site, header)
        if contradiction:
            self._found += self._accuser.accuse(contradiction)
            raise PeerError(site, "signed two different headers in this round")
        if not isinstance(phase, CollectingInputs):
            raise PeerError(site, f"sent an update in the {phase.name} phase")
        checked = collecting.checked_header(self._plan, phase, site, header, update_id)
        self._accuser.took(site, header)
        return phase, checked

    # --- from phase to phase ------------------------------------------------------

    def _advance(self) -> list[CoordinatorEffect]:
        """Closes the phase once nobody is awaited any more, or it cannot succeed."""
        return [*self._take_found(), *self._advanced()]

    def _take_found(self) -> list[CoordinatorEffect]:
        found, self._found = self._found, []
        return found

    def _advanced(self) -> list[CoordinatorEffect]:
        phase = self._phase
        if isinstance(phase, Judging | Summed | Ended):
            return []
        awaited, received = closing.awaited(phase, self._lost), len(phase.received)
        needed, invited = closing.needed(self._plan, phase), len(self._plan.cohort)
        if received + len(awaited) < needed:
            sent = f"{received} of {invited} sites sent {phase.noun}"
            return self.abort(f"{sent}, {needed} are needed")
        return [] if awaited else self._close(phase)

    def _close(self, phase: CollectingPhase) -> list[CoordinatorEffect]:
        if self._record is not None:
            self._record.closed(phase)
        match phase:
            case CollectingUnmask():
                return self._close_unmask(phase)
            case CollectingAcks():
                self._phase = Ended("completed")
                return [closing.close_acks(self._plan, phase, self._previous, self._signing_key)]
            case _:
                return self._begin(closing.close(self._plan, phase, self._lost, self._seal))

    def _begin(self, opening: closing.Opening) -> list[CoordinatorEffect]:
        phase = opening.phase
        self._phase = phase
        sends = [SendTo(site, opening.messages[site]) for site in phase.expected]
        return [*sends, PhaseBegan(phase.name, phase.expected), *self._advance()]

    def _close_unmask(self, phase: CollectingUnmask) -> list[CoordinatorEffect]:
        try:
            result, evidence = closing.close_unmask(
                self._plan, phase, self._lost, self._sum, self._record
            )
        except (ConfigError, DeviceError, RoundAborted) as error:
            evidence = error.evidence if isinstance(error, WrongSecrets) else ()
            return [*self._accuser.accuse(evidence), *self.abort(str(error))]
        unmasked = replace(phase, received={})  # whose shares are wiped
        self._phase = Summed(unmasked, result.total_weight, bytes.fromhex(result.digest))
        return [*self._accuser.accuse(evidence), Completed(result)]

    def _seal(self, message: Message) -> Envelope:
        return Envelope.sign(message.kind, message.to_payload(), self._signing_key)
