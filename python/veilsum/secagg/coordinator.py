"""The coordinator's side of one masked round, without I/O, clock or randomness of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar, assert_never

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typing_extensions import Buffer

from veilsum.aggregate.secure_sum import SecureSum
from veilsum.errors import ConfigError, DecodeError, DeviceError, PeerError, RoundAborted
from veilsum.secagg import keys
from veilsum.secagg.effects import (
    Aborted,
    Completed,
    CoordinatorEffect,
    Excluded,
    PhaseBegan,
    SendTo,
)
from veilsum.secagg.envelope import Envelope
from veilsum.secagg.messages import (
    COORDINATOR,
    InputHeader,
    KeyAdvert,
    KeyRoster,
    Message,
    RelayedDeal,
    RoundOpen,
    SealedDeal,
    ShareRelay,
    SurvivorCertificate,
    SurvivorProposal,
    UnmaskShares,
    open_envelope,
)
from veilsum.secagg.phases import (
    CollectingInputs,
    CollectingKeys,
    CollectingPhase,
    CollectingShares,
    CollectingUnmask,
    CollectingVotes,
    CoordinatorPhase,
    Dealers,
    Ended,
)
from veilsum.secagg.plan import Plan
from veilsum.secagg.receiver import InputReceiver, stream_headers
from veilsum.secagg.result import secure_result
from veilsum.secagg.transcript import (
    check_advert,
    check_box_digests,
    check_vote,
    members_of,
    open_deal,
    shares_transcript,
    survivors_transcript,
)
from veilsum.secagg.unmask import checked_shares, masks_to_remove

_Message = TypeVar("_Message", bound=Message)


class CoordinatorSession:
    """The coordinator in one attempt.

    It holds no secret before the sites return their unmask shares, and wipes what it rebuilt
    from them before it reports the result. A message that breaks the protocol costs its
    sender the round (Excluded) and never the others theirs.

    Args:
        plan: of the attempt.
        signing_key: the coordinator's; its public half is in the roster.
        threads: to sum and unmask with.
        backend: where the sum is, "cpu" or a device such as "cuda:0"; one that fails or computes
            another sum than the CPU aborts the round.
        audit_seed: with a device 32 fresh random bytes (SecureSum).

    Raises:
        ConfigError: the key is not the roster's, or a device comes without a seed.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        signing_key: Ed25519PrivateKey,
        threads: int = 1,
        backend: str = "cpu",
        audit_seed: bytes | None = None,
    ) -> None:
        if signing_key.public_key().public_bytes_raw() != plan.roster.coordinator_key:
            raise ConfigError("the signing key is not the one the roster lists for the coordinator")
        self._plan = plan
        self._signing_key = signing_key
        self._sum = SecureSum(plan.ring, threads=threads, backend=backend, audit_seed=audit_seed)
        self._lost: dict[str, str] = {}
        self._heard: set[tuple[str, bytes]] = set()
        self._phase: CoordinatorPhase = CollectingKeys(plan.cohort)

    @property
    def plan(self) -> Plan:
        """The round's plan."""
        return self._plan

    @property
    def phase(self) -> str:
        """One of keys, shares, inputs, votes, unmask, completed, aborted."""
        return self._phase.name

    def open(self) -> list[CoordinatorEffect]:
        """Invites the cohort."""
        opened = self._seal(
            RoundOpen(self._plan.context, COORDINATOR, manifest=self._plan.to_bytes())
        )
        return self._begin(
            CollectingKeys(self._plan.cohort), dict.fromkeys(self._plan.cohort, opened)
        )

    def handle(self, site: str, message: bytes) -> list[CoordinatorEffect]:
        """Takes a message of a site, whose identity the transport vouches for.

        A repeat of an accepted message is ignored, whenever it comes.
        """
        phase = self._phase
        heard = (site, hashlib.sha256(message).digest())
        if isinstance(phase, Ended) or site in self._lost or heard in self._heard:
            return []
        try:
            if site not in phase.expected:
                raise PeerError(site, f"has no part in the {phase.name} phase")
            if site in phase.received:
                raise PeerError(site, f"sent two different messages in the {phase.name} phase")
            self._collect(phase, site, message)
            self._heard.add(heard)
        except (DecodeError, PeerError) as error:
            return self.lost(site, _without_name(site, error))
        return self._advance()

    def input_receiver(self, site: str, header: bytes, update_id: int) -> InputReceiver:
        """Opens an upload; nothing changes until accept_input.

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
        phase.received[site] = Envelope.from_bytes(header).payload_digest
        return self._advance()

    def lost(self, site: str, reason: str) -> list[CoordinatorEffect]:
        """Goes on without a site. What it delivered before stays in the round. Idempotent."""
        if isinstance(self._phase, Ended) or site in self._lost or site not in self._plan.cohort:
            return []
        self._lost[site] = reason
        return [Excluded(site, reason), *self._advance()]

    def close_phase(self) -> list[CoordinatorEffect]:
        """The phase's deadline passed: goes on without the sites that were silent."""
        phase = self._phase
        if isinstance(phase, Ended):
            return []
        effects: list[CoordinatorEffect] = []
        for site in self._awaited(phase):
            reason = f"sent no {phase.noun} in time"
            self._lost[site] = reason
            effects.append(Excluded(site, reason))
        return [*effects, *self._advance()]

    def abort(self, reason: str) -> list[CoordinatorEffect]:
        """Ends the round without a result and wipes what it holds."""
        if isinstance(self._phase, Ended):
            return []
        if isinstance(self._phase, CollectingUnmask):
            self._phase.wipe()
        self._phase = Ended("aborted")
        return [Aborted(reason)]

    # --- collecting -------------------------------------------------------------

    def _collect(self, phase: CollectingPhase, site: str, message: bytes) -> None:
        match phase:
            case CollectingKeys():
                self._collect_keys(phase, site, Envelope.from_bytes(message))
            case CollectingShares():
                self._collect_shares(phase, site, SealedDeal.from_bytes(message))
            case CollectingInputs():
                raise PeerError(site, "sent a message where its update was awaited")
            case CollectingVotes():
                self._collect_vote(phase, site, Envelope.from_bytes(message))
            case CollectingUnmask():
                self._collect_unmask(phase, site, Envelope.from_bytes(message))
            case _:
                assert_never(phase)

    def _collect_keys(self, phase: CollectingKeys, site: str, envelope: Envelope) -> None:
        advert = self._open(KeyAdvert, site, envelope)
        check_advert(advert, phase.adverts.values())
        phase.received[site], phase.adverts[site] = envelope, advert

    def _collect_shares(self, phase: CollectingShares, site: str, sealed: SealedDeal) -> None:
        deal = open_deal(self._plan, phase.members, site, sealed.header)
        check_box_digests(deal, sealed.boxes)
        phase.received[site], phase.deals[site] = sealed, deal

    def _collect_vote(self, phase: CollectingVotes, site: str, envelope: Envelope) -> None:
        check_vote(self._plan, site, envelope, phase.t3)
        phase.received[site] = envelope

    def _collect_unmask(self, phase: CollectingUnmask, site: str, envelope: Envelope) -> None:
        answer = self._open(UnmaskShares, site, envelope)
        held = checked_shares(phase.dealers, phase.survivors, phase.t3, answer)
        phase.received[site] = held

    def _checked_header(
        self, site: str, header: bytes, update_id: int
    ) -> tuple[CollectingInputs, InputHeader]:
        phase = self._phase
        if site in self._lost:
            raise PeerError(site, f"is out of the round: it {self._lost[site]}")
        if not isinstance(phase, CollectingInputs):
            raise PeerError(site, f"sent an update in the {phase.name} phase")
        if site not in phase.expected:
            raise PeerError(site, "sent an update without having dealt shares")
        if site in phase.received:
            raise PeerError(site, "sent a second update in this round")
        message = self._open(InputHeader, site, Envelope.from_bytes(header))
        t2 = phase.dealers.t2
        if message.t2 != t2:
            raise PeerError(site, "masked its update for another set of shares (T2 differs)")
        if message.streams != stream_headers(self._plan):
            raise PeerError(site, "sent an update of another shape than the plan's")
        if update_id != keys.update_id(t2, site):
            raise PeerError(site, "sent an update under a number that is not its own")
        return phase, message

    # --- from phase to phase ------------------------------------------------------

    def _awaited(self, phase: CollectingPhase) -> list[str]:
        return [
            site for site in phase.expected if site not in phase.received and site not in self._lost
        ]

    def _needed(self, phase: CollectingPhase) -> int:
        match phase:
            case CollectingVotes():
                return self._plan.vote_quorum
            case CollectingUnmask():
                return self._plan.share_threshold
            case _:
                return self._plan.fewest_survivors

    def _advance(self) -> list[CoordinatorEffect]:
        """Closes the phase once nobody is awaited any more, or it cannot succeed."""
        phase = self._phase
        if isinstance(phase, Ended):
            return []
        awaited, received = self._awaited(phase), len(phase.received)
        if received + len(awaited) < self._needed(phase):
            return self.abort(
                f"{received} of {len(self._plan.cohort)} sites sent {phase.noun}, "
                f"{self._needed(phase)} are needed"
            )
        return [] if awaited else self._close(phase)

    def _close(self, phase: CollectingPhase) -> list[CoordinatorEffect]:
        match phase:
            case CollectingKeys():
                return self._close_keys(phase)
            case CollectingShares():
                return self._close_shares(phase)
            case CollectingInputs():
                return self._close_inputs(phase)
            case CollectingVotes():
                return self._close_votes(phase)
            case CollectingUnmask():
                return self._close_unmask(phase)
            case _:
                assert_never(phase)

    def _begin(self, phase: CollectingPhase, messages: dict[str, bytes]) -> list[CoordinatorEffect]:
        self._phase = phase
        sends = [SendTo(site, messages[site]) for site in phase.expected]
        return [*sends, PhaseBegan(phase.name, phase.expected), *self._advance()]

    def _present(self, sites: Sequence[str]) -> tuple[str, ...]:
        return tuple(site for site in sites if site not in self._lost)

    def _close_keys(self, phase: CollectingKeys) -> list[CoordinatorEffect]:
        members = members_of(self._plan, phase.adverts, phase.received)
        adverts = tuple(phase.received[site] for site in members.sites)
        message = self._seal(KeyRoster(self._plan.context, COORDINATOR, adverts))
        expected = self._present(members.sites)
        return self._begin(CollectingShares(expected, members), dict.fromkeys(expected, message))

    def _close_shares(self, phase: CollectingShares) -> list[CoordinatorEffect]:
        members = phase.members
        headers = {site: sealed.header for site, sealed in phase.received.items()}
        dealers = Dealers(members, phase.deals, shares_transcript(members, headers))
        messages = {}
        for receiver in dealers.sites:
            position = members.index(receiver) - 1
            deals = tuple(
                RelayedDeal(phase.received[dealer].header, phase.received[dealer].boxes[position])
                for dealer in dealers.sites
            )
            messages[receiver] = self._seal(ShareRelay(self._plan.context, COORDINATOR, deals))
        return self._begin(CollectingInputs(self._present(dealers.sites), dealers), messages)

    def _close_inputs(self, phase: CollectingInputs) -> list[CoordinatorEffect]:
        survivors = tuple(sorted(phase.received, key=str.encode))
        t2 = phase.dealers.t2
        message = self._seal(
            SurvivorProposal(
                self._plan.context,
                COORDINATOR,
                t2,
                tuple((site, phase.received[site]) for site in survivors),
            )
        )
        expected = self._present(phase.dealers.sites)
        voting = CollectingVotes(
            expected, phase.dealers, survivors, survivors_transcript(t2, phase.received)
        )
        return self._begin(voting, dict.fromkeys(expected, message))

    def _close_votes(self, phase: CollectingVotes) -> list[CoordinatorEffect]:
        votes = tuple(phase.received[site] for site in sorted(phase.received, key=str.encode))
        message = self._seal(SurvivorCertificate(self._plan.context, COORDINATOR, phase.t3, votes))
        expected = self._present(phase.dealers.sites)
        unmasking = CollectingUnmask(expected, phase.dealers, phase.survivors, phase.t3)
        return self._begin(unmasking, dict.fromkeys(expected, message))

    def _close_unmask(self, phase: CollectingUnmask) -> list[CoordinatorEffect]:
        survivors = phase.survivors
        try:
            masks = masks_to_remove(self._plan, phase.dealers, survivors, phase.received)
            try:
                self._sum.add_masks(masks.keys, masks.signs)
            finally:
                masks.wipe()
            mean = self._sum.finish(len(survivors))
        except (DeviceError, RoundAborted) as error:
            return self.abort(str(error))
        finally:
            phase.wipe()
        self._phase = Ended("completed")
        dropped = {site: reason for site, reason in self._lost.items() if site not in survivors}
        return [Completed(secure_result(self._plan.layout, mean, survivors, dropped))]

    # --- envelopes ------------------------------------------------------------------

    def _seal(self, message: Message) -> bytes:
        return Envelope.sign(message.kind, message.to_payload(), self._signing_key).to_bytes()

    def _open(self, kind: type[_Message], site: str, envelope: Envelope) -> _Message:
        key = self._plan.roster.signing_key(site)
        return open_envelope(kind, envelope, key, sender=site, context=self._plan.context)


def _without_name(site: str, error: Exception) -> str:
    return str(error).removeprefix(f"site {site!r} ")
