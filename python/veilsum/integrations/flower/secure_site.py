"""Carries out what a site's core asks for, with the frames of Flower messages for a line."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import assert_never

from veilsum.errors import ConfigError, DecodeError
from veilsum.integrations.flower import secure_parts as parts
from veilsum.integrations.flower.secure_parts import About, read_model_part
from veilsum.integrations.flower.secure_wire import Part
from veilsum.records import RoundId
from veilsum.site.effects import (
    FetchAudit,
    FetchLinks,
    FetchModel,
    FetchSum,
    KeepEvidence,
    Note,
    SendToCoordinator,
    SiteEffect,
    StopTraining,
    Train,
    Upload,
)
from veilsum.site.events import (
    AuditFetchFailed,
    CoordinatorSent,
    Disconnected,
    LinksFetched,
    ModelFetched,
    ModelFetchFailed,
    SiteEvent,
    SumFetched,
    SumFetchFailed,
    TrainingDone,
    TrainingFailed,
    UploadDone,
    UploadRefused,
)
from veilsum.site.session import SiteCore
from veilsum.transport import wire, wire_data


class SiteCourier:
    """Between a site's core and its frames. One event at a time.

    Args:
        max_model_bytes: larger models are refused.
        keep: keeps evidence.
        note: takes lines for the site's own log.

    Attributes:
        training: what the app is to train now, if it is to.
    """

    def __init__(
        self,
        core: SiteCore,
        max_model_bytes: int,
        keep: Callable[[bytes], None],
        note: Callable[[str], None],
    ) -> None:
        self._core = core
        self._max_model_bytes = max_model_bytes
        self._keep = keep
        self._note = note
        self.training: Train | None = None
        self._waiting: Train | None = None  # for its turn
        self._asked_sum: FetchSum | None = None
        self._leaving: list[Part] = []

    def reset(self) -> None:
        """What was under way on another session ends; whatever round it was goes on without."""
        self.training = self._waiting = self._asked_sum = None
        self.tell(Disconnected())
        self._leaving = []

    def take(self, arrived: Iterable[Part]) -> None:
        """Hands the core what a frame of the coordinator says.

        Raises:
            DecodeError: a part is not what it should be; those before it are dealt with.
            ConfigError: coordinator and site have different rosters.
            LedgerError: what must be written down cannot be.
        """
        for part in arrived:
            event = self._event(part)
            if event is not None:
                self.tell(event)

    def tell(self, event: SiteEvent) -> None:
        """Hands the core an event and carries out what follows."""
        for effect in self._core.handle(event):
            if isinstance(effect, Train) and not isinstance(event, ModelFetched):
                self._wait_for_turn(effect)
            else:
                self._carry_out(effect)

    def trained(self, event: TrainingDone | TrainingFailed) -> None:
        """The app is through with what it was to train; of anything else the core takes no note."""
        if self.training is not None and self.training.round == event.round:
            self.training = None
        self.tell(event)

    def leaving(self) -> tuple[Part, ...]:
        """What is to be answered, once."""
        leaving, self._leaving = tuple(self._leaving), []
        return leaving

    def close(self) -> None:
        """Wipes what is left of a round."""
        self._core.close()

    def _event(self, part: Part) -> SiteEvent | None:
        match part.kind:
            case parts.MESSAGE:
                return CoordinatorSent(wire.decode_to_site(part.head))
            case parts.MODEL:
                return self._model(part)
            case parts.SUM:
                return self._sum(part)
            case parts.LINKS:
                about = About.from_bytes(part.head)
                return LinksFetched(about.round, tuple(map(bytes, part.blobs)))
            case parts.TURN:
                self._begin_turn(About.from_bytes(part.head).round)
                return None
            case parts.UPLOADED:
                about = About.from_bytes(part.head)
                if about.flag:
                    return UploadDone(about.round)
                return UploadRefused(about.round, about.reason)
            case _:
                raise DecodeError(f"a frame of the coordinator has a part of kind {part.kind!r}")

    def _model(self, part: Part) -> SiteEvent:
        size = sum(memoryview(blob).nbytes for blob in part.blobs)
        round_id, layout, arrays = read_model_part(part)
        if size > self._max_model_bytes:
            most = self._max_model_bytes
            return ModelFetchFailed(round_id, f"it has {size} bytes, this site takes {most}")
        return ModelFetched(round_id, layout, arrays)

    def _sum(self, part: Part) -> SiteEvent | None:
        about, asked = About.from_bytes(part.head), self._asked_sum
        if asked is None or asked.round != about.round:
            return None
        self._asked_sum = None
        if len(part.blobs) < int(asked.state) or not about.flag:
            return SumFetchFailed(about.round, about.reason or "the optimizer's state is missing")
        state = bytes(part.blobs[0]) if asked.state else None
        try:
            for piece in part.blobs[int(asked.state) :]:
                asked.receiver.add(piece)
        except DecodeError as error:
            return SumFetchFailed(about.round, str(error))
        return SumFetched(about.round, state)

    def _carry_out(self, effect: SiteEffect) -> None:
        match effect:
            case SendToCoordinator(message):
                self._leaving.append(Part(parts.MESSAGE, wire.encode_to_coordinator(message)))
            case FetchModel(round_id):
                self._ask(parts.WANT_MODEL, round_id)
            case FetchSum(round_id):
                effect.receiver.restart()
                self._asked_sum = effect
                self._ask(parts.WANT_SUM, round_id, flag=effect.state)
            case FetchLinks(round_id):
                self._ask(parts.WANT_LINKS, round_id)
            case FetchAudit(round_id):
                # Seeds of masks would travel through the SuperLink: no sum is checked that way.
                reason = "sums are not checked over Flower"
                self.tell(AuditFetchFailed(round_id, reason))
            case Train():
                self.training = effect
            case StopTraining(round_id):
                if self.training is not None and self.training.round == round_id:
                    self.training = None
                if self._waiting is not None and self._waiting.round == round_id:
                    self._waiting = None
            case Upload(header, chunks):
                head = wire_data.encode_update_header(header, 0)
                self._leaving.append(Part(parts.UPLOAD, head, chunks))
            case KeepEvidence(evidence):
                self._save(evidence)
            case Note(text):
                self._note(text)
            case _:
                assert_never(effect)

    def _wait_for_turn(self, effect: Train) -> None:
        """With a model that it has, a site could train at once; but what it trains holds back all
        that it has to say, and a round's keys and shares must not wait for that."""
        self._waiting = effect
        self._ask(parts.WANT_TURN, effect.round)

    def _begin_turn(self, round_id: RoundId) -> None:
        if self._waiting is not None and self._waiting.round == round_id:
            self.training, self._waiting = self._waiting, None

    def _ask(self, kind: str, round_id: RoundId, *, flag: bool = False) -> None:
        self._leaving.append(Part(kind, About(round_id, flag).to_bytes()))

    def _save(self, evidence: bytes) -> None:
        """That it cannot be kept is no reason to do anything else."""
        try:
            self._keep(evidence)
        except ConfigError as error:
            self._note(f"evidence could not be kept: {error}")
