"""A site's side without I/O: takes events, returns effects.

One round at a time. In a masked round the protocol's messages go back and forth while
training runs; the update is masked when both are through. Whatever goes wrong costs this
site the round and nothing else: it declines with a reason and may join the next.

Reasons that go to the coordinator speak of settings it knows already. What an exception or
an update says about this site's data stays here, as a Note.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, assert_never

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from veilsum import secagg
from veilsum._native import Secret
from veilsum.control import (
    Decline,
    Progress,
    ProtocolMessage,
    RoundClosed,
    RoundId,
    RoundOpened,
    RunClosed,
    SiteDropped,
    ToSite,
    Welcome,
)
from veilsum.errors import ConfigError, DecodeError, DeviceError
from veilsum.model import ModelLayout
from veilsum.roster import Roster
from veilsum.site.bounds import TaskBounds
from veilsum.site.declining import LastWords, declined
from veilsum.site.effects import (
    FetchLinks,
    FetchModel,
    Note,
    SendToCoordinator,
    SiteEffect,
    StopTraining,
    Train,
    Upload,
)
from veilsum.site.events import (
    AuditFetched,
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
    TrainingProgressed,
    UploadDone,
    UploadRefused,
)
from veilsum.site.last_update import LastUpdate
from veilsum.site.local_update import local_update
from veilsum.site.participation import Participation
from veilsum.site.phases import (
    Asking,
    Delivering,
    Fetching,
    Holding,
    Idle,
    Part,
    SitePhase,
    Training,
    asked_for,
    round_of,
)
from veilsum.site.provenance import check_model
from veilsum.site.results import ResultEvent, Results
from veilsum.site.rounding import SECRET_BYTES, rounding_secret
from veilsum.site.unsent import Unsent

_SEE_LOG = "this site's log says why"


class SiteCore:
    """One site. Not thread-safe: one event at a time.

    Args:
        site: own name in the roster.
        signing_key: for protocol messages; its public half is in the roster.
        roster: the site's own copy.
        policy: what it demands of a masked round's plan.
        bounds: what it is willing to do at all.
        entropy: source of fresh secret bytes.
        rounding_seed: 32 bytes that stay with the site; see rounding.py.
        ledger: what the site must not forget; None: it takes part in plain rounds only.
        threads: to encode and mask with.
        backend: what encodes and masks the floating-point tensors of masked rounds: "cpu", or a
            device such as "cuda:0".
        egress: what left this site until now; its acknowledgements of results say it.

    Raises:
        ConfigError: the key is not the one the roster lists for this site.
    """

    def __init__(
        self,
        site: str,
        signing_key: Ed25519PrivateKey,
        roster: Roster,
        policy: secagg.LocalPolicy,
        bounds: TaskBounds,
        entropy: secagg.Entropy,
        rounding_seed: Secret,
        ledger: secagg.Ledger | None,
        *,
        threads: int = 1,
        backend: str = "cpu",
        egress: secagg.Egress = secagg.no_egress,
    ) -> None:
        if len(rounding_seed) != SECRET_BYTES:
            raise ConfigError(f"the rounding seed must have {SECRET_BYTES} bytes")
        self._site = site
        self._rounding_seed = rounding_seed
        self._participation = Participation(
            site,
            signing_key,
            roster,
            policy,
            bounds,
            entropy,
            ledger,
            threads=threads,
            backend=backend,
            egress=egress,
        )
        self._unsent = Unsent()
        self._results = Results(policy, entropy, ledger, threads=threads)
        self._phase: SitePhase = Idle()
        self._last_words = LastWords()
        self._last_update = LastUpdate()

    @property
    def phase(self) -> str:
        """One of idle, asking, fetching, training, holding, delivering."""
        return type(self._phase).__name__.lower()

    def handle(self, event: SiteEvent) -> list[SiteEffect]:
        """Takes one event and returns what the caller must do because of it. Events about
        another round than the current one are stale and change nothing.

        Raises:
            ConfigError: coordinator and site do not have the same roster; a person must act.
        """
        effects = self._on_event(event)
        self._last_words.listen(effects)
        return effects

    def _on_event(self, event: SiteEvent) -> list[SiteEffect]:
        match event:
            case CoordinatorSent(message):
                return self._on_message(message)
            case ModelFetched():
                return self._on_model(event)
            case LinksFetched():
                return self._on_links(event)
            case SumFetched() | SumFetchFailed() | AuditFetched() | AuditFetchFailed():
                return self._on_result_event(event)
            case ModelFetchFailed(round_id, reason):
                return self._give_up(round_id, "model", "the model could not be fetched", reason)
            case TrainingProgressed(round_id, fraction):
                return self._on_progress(round_id, fraction)
            case TrainingDone():
                return self._on_trained(event)
            case TrainingFailed(round_id, reason):
                return self._give_up(round_id, "training_failed", "training failed", reason)
            case UploadDone(round_id):
                return self._on_delivered(round_id)
            case UploadRefused(round_id, reason):
                return self._give_up(round_id, "upload_refused", "its update was refused", reason)
            case Disconnected():
                return self._leave("the connection is gone")
            case _:
                assert_never(event)

    def close(self) -> None:
        """Wipes what is left of a round. Idempotent."""
        self._leave("the site stops")
        self._unsent.drop()

    # --- messages of the coordinator ----------------------------------------------

    def _on_message(self, message: ToSite) -> list[SiteEffect]:
        match message:
            case Welcome():
                return self._on_welcome(message)
            case RoundOpened():
                return self._on_opened(message)
            case ProtocolMessage(round_id, payload):
                return self._on_protocol(round_id, payload)
            case RoundClosed(round_id, completed, reason, digest):
                self._last_update.told(round_id, counts=completed)
                ended = f"completed, digest {digest}" if completed else f"aborted: {reason}"
                return self._leave_round(round_id, f"round {round_id.number} {ended}")
            case SiteDropped(round_id, reason):
                self._last_update.told(round_id, counts=False)
                return self._leave_round(round_id, f"dropped by the coordinator: {reason}")
            case RunClosed(run_id, completed, reason):
                ended = "completed" if completed else f"aborted: {reason}"
                return self._on_run_closed(run_id, ended)
            case _:
                assert_never(message)

    def _on_welcome(self, message: Welcome) -> list[SiteEffect]:
        self._participation.check_welcome(message)
        joined = Note(f"joined {message.consortium}")
        if message.round == round_of(self._phase):
            return [joined, *asked_for(self._phase), *self._results.asked_for]
        return [joined, *self._leave("the coordinator went on without this site")]

    def _on_run_closed(self, run_id: str, ended: str) -> list[SiteEffect]:
        self._participation.forget(run_id)
        self._last_update.forget(run_id)
        self._unsent.drop()
        current = round_of(self._phase)
        left = self._leave("the run ended") if current and current.run_id == run_id else []
        return [*left, Note(f"run {run_id} {ended}")]

    def _on_opened(self, opened: RoundOpened) -> list[SiteEffect]:
        part = self._part()
        if part is not None and part.round == opened.round:
            return self._on_opened_again(part, opened)
        if isinstance(self._phase, Asking) and self._phase.opened == opened:
            return []  # what was asked for is on its way
        left = self._leave("another round was opened")
        if said := self._last_words.about(opened.round):
            return left + said
        refusal = self._participation.refusal(opened)
        if refusal is not None:
            return left + declined(opened.round, *refusal)
        if self._participation.wants_links(opened):
            self._phase = Asking(opened)
            return [*left, FetchLinks(opened.round)]
        return left + self._take_part(opened, ())

    def _on_opened_again(self, part: Part, opened: RoundOpened) -> list[SiteEffect]:
        """A repeat is answered as it was; whatever else it is, it is no invitation to anything."""
        masked = part.contribution.plan is not None and opened.plain is None
        again = part.contribution.message(opened.open_message) if masked else []
        effects = self._settled(part, again)
        if part.contribution.over or opened == part.opened:
            return effects
        return self._give_up(part.round, "plan", "another invitation to the same round came", "")

    def _on_links(self, event: LinksFetched) -> list[SiteEffect]:
        phase = self._phase
        if not isinstance(phase, Asking) or phase.opened.round != event.round:
            return []
        self._phase = Idle()
        return self._take_part(phase.opened, event.links)

    def _take_part(self, opened: RoundOpened, links: tuple[bytes, ...]) -> list[SiteEffect]:
        self._last_update.assume()
        try:
            contribution, effects = self._participation.take_part(opened, links)
        except (ConfigError, DecodeError) as error:
            return declined(opened.round, "plan", str(error))
        if contribution.over:
            return effects
        self._participation.entered(opened.round)
        task = self._participation.task_of(opened)
        part = Part(opened, task, contribution, contribution.terms)
        unsent = self._unsent.take(part.round, part.task, part.terms)
        if unsent is not None:
            self._phase = Holding(part, unsent)
            return [*effects, Note("this attempt gets the update of the one before")]
        held = self._results.models.model_of(part.terms)
        if held is not None:
            return [*effects, *self._train(part, held.layout, held.arrays)]
        self._phase = Fetching(part)
        return [*effects, FetchModel(opened.round)]

    def _on_protocol(self, round_id: RoundId, payload: bytes) -> list[SiteEffect]:
        part = self._part()
        if part is None or part.round != round_id:
            return self._last_words.to_a_message_of(round_id)
        effects = part.contribution.message(payload)
        if part.contribution.over:
            return effects + self._leave("withdrew")
        effects += self._contribute_if_ready()
        if self._part() is None:  # contributing has ended it
            return effects
        return effects + self._settled(part, self._results.after_message(part))

    # --- model, training, update ----------------------------------------------------

    def _on_model(self, event: ModelFetched) -> list[SiteEffect]:
        phase = self._phase
        if not isinstance(phase, Fetching) or phase.part.round != event.round:
            return []
        try:
            check_model(event, phase.part.terms)
        except ConfigError as error:
            return self._give_up(event.round, "model", str(error), "")
        self._results.models.fetched(phase.part.terms, event.layout, event.arrays)
        return self._train(phase.part, event.layout, event.arrays)

    def _train(
        self, part: Part, layout: ModelLayout, arrays: Mapping[str, NDArray[Any]]
    ) -> list[SiteEffect]:
        received = dict(arrays)
        self._phase = Training(part, layout, received)
        return [Train(part.round, received, part.task)]

    def _on_progress(self, round_id: RoundId, fraction: float) -> list[SiteEffect]:
        phase = self._phase
        if not isinstance(phase, Training) or phase.part.round != round_id:
            return []
        return [SendToCoordinator(Progress(round_id, min(max(fraction, 0.0), 1.0)))]

    def _on_trained(self, event: TrainingDone) -> list[SiteEffect]:
        phase = self._phase
        if not isinstance(phase, Training) or phase.part.round != event.round:
            return []
        try:
            rounding = rounding_secret(self._rounding_seed, event.round, self._site)
            update, notes = local_update(phase, event, rounding)
        except ConfigError as error:
            return self._give_up(event.round, "update", "the update cannot be used", str(error))
        self._phase = Holding(phase.part, update)
        return notes + self._contribute_if_ready()

    def _contribute_if_ready(self) -> list[SiteEffect]:
        phase = self._phase
        if not isinstance(phase, Holding) or not phase.part.contribution.ready:
            return []
        try:
            effects = phase.part.contribution.contribute(phase.update)
        except ConfigError as error:
            reason = "the update does not fit the round"
            left = self._give_up(phase.part.round, "update", reason, str(error))
            self._unsent.drop()
            return left
        except DeviceError as error:
            reason = "the site's device failed"
            return self._give_up(phase.part.round, "device", reason, str(error))
        phase.update.rounding.wipe()
        if phase.part.contribution.over:
            self._phase = Delivering(phase.part, None)  # nothing that another attempt may have
            return effects + self._leave("withdrew")
        self._last_update.made(phase.part.round, phase.part.contribution)
        (upload,) = (effect for effect in effects if isinstance(effect, Upload))
        self._phase = Delivering(phase.part, upload)
        return effects

    def _on_delivered(self, round_id: RoundId) -> list[SiteEffect]:
        phase = self._phase
        if not isinstance(phase, Delivering) or phase.part.round != round_id:
            return []
        self._last_update.held(round_id)
        self._phase = Delivering(phase.part, None)
        return [Note("the coordinator holds the update")]

    # --- the result -----------------------------------------------------------------

    def _on_result_event(self, event: ResultEvent) -> list[SiteEffect]:
        part = self._part()
        if part is None or part.round != event.round:
            return []
        return self._settled(part, self._results.on_event(part, event))

    def _settled(self, part: Part, effects: list[SiteEffect]) -> list[SiteEffect]:
        return effects + self._leave("withdrew") if part.contribution.over else effects

    # --- leaving a round ------------------------------------------------------------

    def _part(self) -> Part | None:
        return None if isinstance(self._phase, Idle | Asking) else self._phase.part

    def _leave(self, why: str) -> list[SiteEffect]:
        """Ends this site's part in whatever round is current, and wipes what it held."""
        phase = self._phase
        self._phase = Idle()
        if isinstance(phase, Idle | Asking):
            return []
        self._results.left()
        phase.part.contribution.close()
        if isinstance(phase, Holding):
            self._unsent.keep(phase.part.round, phase.part.task, phase.part.terms, phase.update)
        note = Note(why)
        return [StopTraining(phase.part.round), note] if isinstance(phase, Training) else [note]

    def _leave_round(self, round_id: RoundId, why: str) -> list[SiteEffect]:
        return self._leave(why) if round_of(self._phase) == round_id else []

    def _give_up(
        self, round_id: RoundId, code: str, reason: str, local_reason: str
    ) -> list[SiteEffect]:
        """Declines the current round. `local_reason` stays on this site."""
        part = self._part()
        if part is None or part.round != round_id:
            return []
        told = f"{reason}; {_SEE_LOG}" if local_reason else reason
        decline = SendToCoordinator(Decline(round_id, code, told))
        return [decline, *self._leave(f"declined ({code}): {reason} {local_reason}".rstrip())]
