"""A site's side of one masked round, without I/O, clock or randomness of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from veilsum._native import Secret
from veilsum.aggregate.tile_audit import SEED_BYTES
from veilsum.errors import ConfigError, DecodeError, PeerError
from veilsum.roster import Roster
from veilsum.secagg import dealing, keys
from veilsum.secagg.complaints import Accusation
from veilsum.secagg.dealing import BadBox
from veilsum.secagg.effects import (
    Done,
    NeedUpdate,
    ResultReady,
    Send,
    SiteEffect,
    UploadInput,
    Warn,
    Withdraw,
)
from veilsum.secagg.egress_summary import Egress, no_egress
from veilsum.secagg.envelope import Envelope
from veilsum.secagg.guard import cohort_warning
from veilsum.secagg.ledger import Ledger, attempt_of
from veilsum.secagg.ledger_records import AckSent, Contributed, Opened, VoteCast
from veilsum.secagg.messages import (
    KeyRoster,
    RoundOpen,
    SealedDeal,
    ShareRelay,
    SurvivorCertificate,
    SurvivorProposal,
    SurvivorVote,
)
from veilsum.secagg.origin import check_chain
from veilsum.secagg.payload import Message, kind_of
from veilsum.secagg.phases import (
    Advertised,
    Channel,
    Checking,
    Complaining,
    Dealt,
    Ended,
    Invited,
    Ready,
    SitePhase,
    Unmasked,
    Uploaded,
    Voted,
)
from veilsum.secagg.plan import Plan
from veilsum.secagg.policy import LocalPolicy, Refusal
from veilsum.secagg.receiver import input_header
from veilsum.secagg.refusals import Refuse, code_of
from veilsum.secagg.result_checks import check_result
from veilsum.secagg.result_messages import ResultAck, RoundResult
from veilsum.secagg.site_answers import (
    Answer,
    Signer,
    check_is_of_this_attempt,
    open_message,
    shown_by,
)
from veilsum.secagg.site_checks import (
    check_certificate,
    checked_members,
    checked_relay,
    checked_survivors,
    open_plan,
    remember,
    unmask_shares,
)
from veilsum.secagg.site_complaints import complaint_about, justification_for
from veilsum.secagg.transcript import shares_transcript, survivors_transcript
from veilsum.secagg.upload import Contribution, encode_upload

_Message = TypeVar("_Message", bound=Message)


class SiteSession:
    """One site in one attempt. After Withdraw or close() every secret is gone.

    Args:
        site: own name in the roster.
        signing_key: for protocol messages; its public half is in the roster.
        roster: the site's own copy.
        policy: what the site demands of a plan.
        entropy: source of fresh secret bytes.
        ledger: what the site must not forget; written before anything leaves that it forbids
            to repeat. Shared by all sessions of the site.
        backend: what encodes and masks floating-point tensors, "cpu" or a device such as
            "cuda:0". The upload is the same; some tiles are computed on the CPU as well.
        egress: what left the site until now, for its acknowledgement of the result.
        chained: whether rounds must follow from others; within one process nobody is mistrusted.
        links: results that led to the model, the last one first (origin.py).

    Raises:
        ConfigError: the key is not the one the roster lists for this site.
    """

    def __init__(
        self,
        *,
        site: str,
        signing_key: Ed25519PrivateKey,
        roster: Roster,
        policy: LocalPolicy,
        entropy: keys.Entropy,
        ledger: Ledger,
        backend: str = "cpu",
        egress: Egress = no_egress,
        chained: bool = True,
        links: Sequence[bytes] = (),
    ) -> None:
        self._site = site
        self._signer = Signer.of_roster(roster, site, signing_key)
        self._roster = roster
        self._policy = policy
        self._entropy = entropy
        self._ledger = ledger
        self._backend = backend
        self._egress = egress
        self._chained = chained
        self._sent_before = egress()
        self._links = links
        self._verified: bytes | None = None  # the context of a verified invitation
        self._refusal: bytes | None = None
        self._plan: Plan | None = None
        self._phase: SitePhase = Invited()
        self._answers: dict[str, Answer] = {}

    @property
    def plan(self) -> Plan | None:
        """The verified plan; None before the round was opened."""
        return self._plan

    @property
    def phase(self) -> str:
        """One of open, keys, shares, complaint, inputs, votes, unmask, result, check, done,
        withdrawn, closed."""
        return self._phase.name

    @property
    def upload(self) -> UploadInput | None:
        """The masked update while it may have to be sent again, else None."""
        return self._phase.upload if isinstance(self._phase, Uploaded) else None

    @property
    def refusal(self) -> bytes | None:
        """After Withdraw: the signed refusal to send to the coordinator. None if the site left
        before it had verified an invitation, whose context a refusal would name."""
        return self._refusal

    def handle(self, message: bytes) -> list[SiteEffect]:
        """Takes one message of the coordinator.

        A repeat of an earlier message gets the identical answer again. Anything that breaks
        the protocol ends the session: the last effect then is Withdraw, before it what shows
        others that the coordinator did so, if there is such evidence.
        """
        if self.phase in ("withdrawn", "closed"):
            return []
        try:
            envelope = Envelope.from_bytes(message)
            return self._receive(kind_of(envelope.payload), envelope)
        except Refusal as refusal:
            return [*shown_by(self._plan, self._answers, message), *self._withdraw(refusal)]
        except DecodeError as error:
            why = Refusal("malformed", str(error))
            return [*shown_by(self._plan, self._answers, message), *self._withdraw(why)]

    def contribute(
        self,
        update: Mapping[str, NDArray[Any]],
        *,
        weight: int,
        metrics: Mapping[str, float],
        rounding: Secret,
        threads: int = 1,
    ) -> list[SiteEffect]:
        """Masks the update, once: a second one under the same masks would show the difference.

        An update that left this site before, in whatever round of the task, ends the session,
        and so does a ledger that cannot be written: the only effect then is Withdraw.

        Args:
            update: trained minus received model, one array per tensor.
            weight: number of examples.
            metrics: those of the plan's metrics that the site has.
            rounding: 32 secret bytes for stochastic rounding.
            threads: to encode and mask with.

        Raises:
            ConfigError: not the time for it, or the update does not fit the plan (wrong
                tensors, not finite, beyond the clip, weight over the cap). Nothing was
                masked, and a corrected update may follow.
            DeviceError: the device failed, or made other words than the CPU. Nothing left the
                site, and the update may follow again.
        """
        phase, plan = self._phase, self._plan
        if plan is None or not isinstance(phase, Ready):
            raise ConfigError(f"site {self._site!r} cannot contribute in phase {self.phase!r}")
        contribution = Contribution(update, weight, metrics, rounding)
        update_id = keys.update_id(phase.t2, self._site)
        encoded = encode_upload(
            plan,
            contribution,
            phase.masks,
            update_id=update_id,
            threads=threads,
            backend=self._backend,
            audit_seed=None if self._backend == "cpu" else bytes(self._entropy(SEED_BYTES)),
        )
        if self._phase is not phase:
            # Mask keys that were wiped meanwhile are zeros, and masks of those hide nothing.
            raise ConfigError(f"site {self._site!r} left the round while its update was masked")
        header = self._signer.seal(input_header(plan, self._site, phase.t2, encoded.chunks))
        upload = UploadInput(header.to_bytes(), update_id, encoded.chunks, encoded.clipped)
        phase.masks.wipe()
        phase.channel.wipe()
        tag = self._ledger.tag_of(update)
        try:
            if self._policy.spent == "input":
                self._ledger.check_never_sent(plan.task_id, tag)
            sent = Contributed(attempt_of(plan), phase.t2, tag, header.payload_digest)
            remember(self._ledger, sent)
        except Refusal as refusal:
            return self._withdraw(refusal)
        self._phase = Uploaded(phase.t2, phase.held, upload, header.payload_digest)
        return [upload]

    def checked_result(self, level: int) -> list[SiteEffect]:
        """Acknowledges the result, once: the next round needs a quorum's acknowledgements.

        Args:
            level: how much the host has checked of it, 0 to 3 (result_messages.py).

        Raises:
            ConfigError: no result awaits it.
        """
        phase, plan = self._phase, self._plan
        if plan is None or not isinstance(phase, Checking):
            raise ConfigError(f"site {self._site!r} has no result to check in phase {self.phase!r}")
        sent = self._egress().since(self._sent_before)
        message = ResultAck(plan.context, self._site, phase.result_digest, level, sent)
        try:
            ack = AckSent(attempt_of(plan), message.result, phase.result.model_hash)
            remember(self._ledger, ack)
        except Refusal as refusal:
            return self._withdraw(refusal)
        send = Send(self._signer.seal(message).to_bytes())
        self._answers[RoundResult.kind] = Answer(self._answers[RoundResult.kind].message, (send,))
        self._phase = Ended("done")
        return [send]

    def reject_result(self, reason: str, *, code: str = "model") -> list[SiteEffect]:
        """Refuses the result: what was checked of it is wrong. The only effect is Withdraw.

        Args:
            reason: for people; it goes to the coordinator, so it says nothing of this site's data.

        Raises:
            ConfigError: no result awaits it.
        """
        if not isinstance(self._phase, Checking):
            raise ConfigError(f"site {self._site!r} has no result to check in phase {self.phase!r}")
        return self._withdraw(Refusal(code, reason))

    def close(self) -> None:
        """Wipes every secret and forgets its answers, when the round has closed: the session takes
        no more messages. Idempotent."""
        self._phase.wipe()
        self._phase = Ended("closed")
        self._answers.clear()

    # --- dispatch ---------------------------------------------------------------

    def _withdraw(self, refusal: Refusal) -> list[SiteEffect]:
        if self._verified is not None:
            code = refusal.number or code_of(refusal.code)
            refuse = Refuse(self._verified, self._site, code)
            self._refusal = self._signer.seal(refuse).to_bytes()
        self.close()
        self._phase = Ended("withdrawn")
        return [Withdraw(refusal.code, refusal.reason, refusal.local_reason)]

    def _receive(self, kind: str, envelope: Envelope) -> list[SiteEffect]:
        match self._phase, self._plan:
            case (Ready() | Complaining()) as phase, Plan() as plan if kind == Accusation.kind:
                return self._on_accusation(plan, phase.channel, envelope)
            case Uploaded(), _ if kind == Accusation.kind:
                return []  # the key went with the mask keys
        answer = self._answers.get(kind)
        if answer is not None:
            if answer.message.payload_digest != envelope.payload_digest:
                if self._plan is not None:
                    check_is_of_this_attempt(self._roster, self._plan, kind, envelope)
                raise Refusal("equivocation", f"a second, different {kind} message came")
            return list(answer.sends)
        effects = self._advance(kind, envelope)
        sends = tuple(effect for effect in effects if isinstance(effect, Send))
        self._answers[kind] = Answer(envelope, sends)
        return effects

    def _advance(self, kind: str, envelope: Envelope) -> list[SiteEffect]:
        match self._phase, self._plan:
            case Invited(), None if kind == RoundOpen.kind:
                return self._on_open(envelope)
            case Advertised() as phase, Plan() as plan if kind == KeyRoster.kind:
                return self._on_roster(plan, phase, envelope)
            case Dealt() as phase, Plan() as plan if kind == ShareRelay.kind:
                return self._on_relay(plan, phase, envelope)
            case (Ready() | Uploaded()) as phase, Plan() as plan if kind == SurvivorProposal.kind:
                return self._on_proposal(plan, phase, envelope)
            case Voted() as phase, Plan() as plan if kind == SurvivorCertificate.kind:
                return self._on_certificate(plan, phase, envelope)
            case Unmasked() as phase, Plan() as plan if kind == RoundResult.kind:
                return self._on_result(plan, phase, envelope)
            case _:
                raise Refusal("protocol", f"a {kind!r} message came in phase {self.phase!r}")

    # --- one method per message ---------------------------------------------------

    def _on_open(self, envelope: Envelope) -> list[SiteEffect]:
        plan, link = open_plan(self._roster, envelope)
        self._verified = plan.context
        if self._site not in plan.cohort:
            raise Refusal("not_invited", f"site {self._site!r} is not in the cohort")
        self._policy.check(plan)
        opened = Opened(attempt_of(plan), plan.hash)
        self._ledger.check(opened)
        if self._chained:
            where = self._policy, plan, link, self._links
            check_chain(*where, self._site, self._ledger, partial(remember, self._ledger))
        remember(self._ledger, opened)
        secrets = dealing.make_secrets(plan.context, self._site, self._entropy)
        advert = self._signer.seal(dealing.own_advert(plan.context, self._site, secrets))
        self._plan, self._phase = plan, Advertised(secrets, advert)
        return [Send(advert.to_bytes())]

    def _on_roster(self, plan: Plan, phase: Advertised, envelope: Envelope) -> list[SiteEffect]:
        message = self._open(KeyRoster, plan, envelope)
        members = checked_members(plan, self._site, phase.advert, message)
        try:
            deal, shares = dealing.deal_shares(
                plan, self._site, members, phase.secrets, self._entropy
            )
        except PeerError as error:
            raise Refusal("keys", str(error)) from error
        self._phase = Dealt(phase.secrets, members, self._signer.seal(deal))
        return [Send(SealedDeal(self._phase.deal, shares).to_bytes())]

    def _on_relay(self, plan: Plan, phase: Dealt, envelope: Envelope) -> list[SiteEffect]:
        message = self._open(ShareRelay, plan, envelope)
        relayed = checked_relay(plan, self._site, phase.deal, message)
        secrets, members = phase.secrets, phase.members
        channel = Channel(members, phase.deal, secrets.channel_private)
        t2 = shares_transcript(members, {site: deal.header for site, deal in relayed.items()})
        try:
            held = dealing.open_shares(plan, self._site, members, secrets, relayed)
            masks = dealing.derive_masks(self._site, members, t2, relayed, secrets)
        except BadBox as fault:
            complaint = complaint_about(plan, self._site, channel, fault, relayed)
            secrets.wipe_seeds()
            self._phase = Complaining(channel)
            return [Warn(f"complains: {fault}"), Send(self._signer.seal(complaint).to_bytes())]
        except PeerError as error:
            raise Refusal("bad_share", str(error)) from error
        secrets.wipe_seeds()
        self._phase = Ready(t2, held, masks, channel)
        return [NeedUpdate()]

    def _on_accusation(self, plan: Plan, channel: Channel, envelope: Envelope) -> list[SiteEffect]:
        accusation = self._open(Accusation, plan, envelope)
        answer = justification_for(plan, self._site, channel, accusation)
        return [Send(self._signer.seal(answer).to_bytes())]

    def _on_proposal(
        self, plan: Plan, phase: Ready | Uploaded, envelope: Envelope
    ) -> list[SiteEffect]:
        message = self._open(SurvivorProposal, plan, envelope)
        survivors = checked_survivors(plan, self._site, phase, message)
        t3 = survivors_transcript(phase.t2, survivors)
        last = self._ledger.last_survivors(plan.task_id)
        warning = cohort_warning(self._policy, plan, last, survivors.keys())
        remember(self._ledger, VoteCast(attempt_of(plan), t3, tuple(survivors)))
        # A site that is left out votes as well, so that the others reach their quorum. Leaving
        # this phase gives up its update for good: its mask seed may be rebuilt from now on.
        if isinstance(phase, Ready):
            phase.masks.wipe()
            phase.channel.wipe()
        self._phase = Voted(t3, frozenset(survivors), phase.held)
        vote = self._signer.seal(SurvivorVote(plan.context, self._site, t3))
        return [*([Warn(warning)] if warning else []), Send(vote.to_bytes())]

    def _on_certificate(self, plan: Plan, phase: Voted, envelope: Envelope) -> list[SiteEffect]:
        message = self._open(SurvivorCertificate, plan, envelope)
        check_certificate(plan, phase, message)
        sealed = self._signer.seal(unmask_shares(plan, self._site, phase))
        phase.wipe()
        seen = (envelope.payload_digest, sealed.payload_digest)
        self._phase = Unmasked(phase.t3, phase.survivors, frozenset(phase.held.mask_shares), *seen)
        return [Send(sealed.to_bytes()), Done()]

    def _on_result(self, plan: Plan, phase: Unmasked, envelope: Envelope) -> list[SiteEffect]:
        message = self._open(RoundResult, plan, envelope)
        check_result(plan, self._site, phase, message)
        self._phase = Checking(message, envelope.payload_digest)
        return [ResultReady(message, tuple(sorted(phase.survivors, key=str.encode)))]

    def _open(self, kind: type[_Message], plan: Plan, envelope: Envelope) -> _Message:
        return open_message(kind, self._roster, plan, envelope)
