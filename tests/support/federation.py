"""A coordinator and its sites in one process: no I/O, a fake clock, seeded randomness.

The driver carries out the effects of both sides by calling the other. When nobody has
anything left to do, the clock jumps to the next deadline; so a run always ends.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from veilsum._native import Secret
from veilsum.control import ProtocolMessage, RoundId, RunSpec, RunStatus, TaskSettings, ToSite
from veilsum.coordinator import effects as to_do
from veilsum.coordinator.core import Coordinator
from veilsum.coordinator.events import (
    DeadlinePassed,
    Event,
    Proceed,
    RunSubmitted,
    SiteJoined,
    SiteLeft,
    SiteSent,
    UpdateArrived,
)
from veilsum.errors import ConfigError, DecodeError, PeerError
from veilsum.model import ModelLayout
from veilsum.optimizers.state import OptimizerState
from veilsum.roster import Roster, RosterEntry
from veilsum.secagg import Ledger, LocalPolicy
from veilsum.site import effects as site_to_do
from veilsum.site.bounds import TaskBounds
from veilsum.site.events import (
    AuditFetched,
    AuditFetchFailed,
    CoordinatorSent,
    Disconnected,
    LinksFetched,
    ModelFetched,
    SiteEvent,
    SumFetched,
    SumFetchFailed,
    TrainingDone,
    TrainingFailed,
    TrainingProgressed,
    UploadDone,
    UploadRefused,
)
from veilsum.site.session import SiteCore
from veilsum.site.trainer import (
    Arrays,
    EvaluationResult,
    Report,
    TrainingResult,
    train_and_evaluate,
)
from veilsum.transport.audits import Audits, pieces

PLAIN_ALLOWED = TaskBounds(plain_rounds=True)


def signing_key(name: str) -> Ed25519PrivateKey:
    """A key that follows from a name."""
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())


def make_roster(sites: tuple[str, ...]) -> Roster:
    """A roster of sites whose keys follow from their names."""
    entries = tuple(
        RosterEntry(site, signing_key(site).public_key().public_bytes_raw()) for site in sites
    )
    key = signing_key("coordinator").public_key().public_bytes_raw()
    return Roster("test", 1, key, entries)


def counting_bytes() -> Callable[[int], bytes]:
    """Bytes that differ from call to call and are the same in every test run."""
    calls = 0

    def draw(size: int) -> bytes:
        nonlocal calls
        calls += 1
        return hashlib.shake_256(calls.to_bytes(8, "little")).digest(size)

    return draw


def counting_secrets(name: str) -> Callable[[int], Secret]:
    """The same as secrets, another sequence per name."""
    calls = 0

    def draw(size: int) -> Secret:
        nonlocal calls
        calls += 1
        material = f"{name}/{calls}".encode()
        return Secret.from_bytes(hashlib.shake_256(material).digest(size))

    return draw


def rounding_seed(site: str) -> Secret:
    """A site's rounding seed, which follows from its name."""
    return Secret.from_bytes(hashlib.sha256(f"rounding/{site}".encode()).digest())


def small_model() -> dict[str, NDArray[Any]]:
    """Five tensors: floating point of two dtypes, a counter, a 0-d and an empty one."""
    values = np.random.default_rng(7)
    return {
        "conv.weight": values.normal(size=(3, 5, 7)).astype(np.float32),
        "conv.bias": values.normal(size=9).astype(np.float16),
        "seen": np.array(40, np.int64),
        "gain": np.array(1.5, np.float32),
        "empty": np.zeros((0, 4), np.float32),
    }


@dataclass
class ShiftTrainer:
    """Adds a shift that follows from the site's name and the task's seed.

    Attributes:
        weight: what the site says its number of examples is.
        faulty: raise instead.
    """

    site: str
    weight: int = 10
    faulty: bool = False
    metrics: Mapping[str, float] = field(default_factory=lambda: {"train_loss": 0.5})
    measured: Mapping[str, float] = field(default_factory=lambda: {"auc": 0.75})

    def fit(self, model: Arrays, task: TaskSettings, report: Report) -> TrainingResult:
        """One report half-way, then the shifted model."""
        if self.faulty:
            raise RuntimeError("record 4711 cannot be read")
        report(0.5)
        return TrainingResult(self.shifted(model, task), self.weight, dict(self.metrics))

    def shifted(self, model: Arrays, task: TaskSettings) -> dict[str, NDArray[Any]]:
        """What fit returns."""
        material = hashlib.sha256(f"{self.site}/{task.seed}".encode()).digest()
        values = np.random.default_rng(list(material))
        return {
            name: np.asarray(
                array + values.integers(0, 9, array.shape).astype(array.dtype)
                if array.dtype.kind in "iu"
                else (array + 0.1 * values.uniform(-1, 1, array.shape)).astype(array.dtype)
            )
            for name, array in model.items()
        }

    def evaluate(self, model: Arrays, task: TaskSettings) -> EvaluationResult:
        """The same numbers for every model."""
        del model, task
        return EvaluationResult(dict(self.measured), 20)


def handle_and_go_on(coordinator: Coordinator, event: Event, now: float) -> list[to_do.Effect]:
    """What comes of an event, and of every Proceed that it asks for."""
    effects = coordinator.handle(event, now=now)
    for effect in list(effects):
        if isinstance(effect, to_do.GoOn):
            effects += handle_and_go_on(coordinator, Proceed(effect.run_id), now)
    return effects


@dataclass
class SimulatedSite:
    """One site: its core, its trainer and whether it is connected."""

    core: SiteCore
    trainer: ShiftTrainer
    connected: bool = False
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Fault:
    """A site is lost in a round, when it is about to send what `phase` collects.

    With `silent` the connection stays and the site just does not send. With `back_in` it
    connects again as a new process when that round gathers. It happens in attempts below `until`.
    """

    round_number: int
    phase: str
    silent: bool = False
    back_in: int | None = None
    until: int = 2**31


class Federation:
    """See the top of this file. `effects` holds everything the coordinator asked for."""

    def __init__(
        self,
        sites: tuple[str, ...],
        *,
        bounds: TaskBounds = PLAIN_ALLOWED,
        bounds_of: Mapping[str, TaskBounds] | None = None,
        policy_of: Mapping[str, LocalPolicy] | None = None,
        faults: Mapping[str, Fault] | None = None,
        pace_of: Mapping[str, float] | None = None,
        connect: bool = True,
        backend: str = "cpu",
        site_backend: str = "cpu",
        audits: bool = False,
    ) -> None:
        self.roster = make_roster(sites)
        self.coordinator = Coordinator(
            self.roster,
            signing_key("coordinator"),
            entropy=counting_bytes(),
            backend=backend,
            audits=audits,
        )
        self.clock = 100.0
        self.effects: list[to_do.Effect] = []
        self.uploads: dict[str, UpdateArrived] = {}  # the latest of each site, sent or not
        self._site_backend = site_backend
        self._ledgers = {site: Ledger.in_memory(Secret.from_os) for site in sites}
        self._bounds = dict.fromkeys(sites, bounds) | dict(bounds_of or {})
        self._policies = dict(policy_of or {})
        self.sites = {site: SimulatedSite(self._core(site), ShiftTrainer(site)) for site in sites}
        self._faults = dict(faults or {})
        self._models: dict[RoundId, to_do.PublishModel] = {}
        self.audits = Audits()
        self.served: Callable[[bytes], bytes] = lambda data: data  # what a coordinator makes of it
        self.transcripts: dict[RoundId, bytes] = {}
        self._sums: dict[RoundId, tuple[bytes, ...]] = {}
        self._states: dict[bytes, bytes] = {}  # by hash, as files
        self._links: dict[tuple[bytes, bytes], to_do.SaveLink] = {}
        self._pace_of = dict(pace_of or {})  # seconds that training takes; none at other sites
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()
        self._queue: deque[Callable[[], None]] = deque()
        if connect:
            for site in sites:
                self.connect(site)

    def _core(self, site: str) -> SiteCore:
        return SiteCore(
            site,
            signing_key(site),
            self.roster,
            self._policies.get(site, LocalPolicy()),
            self._bounds[site],
            counting_secrets(site),
            rounding_seed(site),
            self._ledgers[site],
            backend=self._site_backend,
        )

    # --- what a test does -----------------------------------------------------------

    def connect(self, site: str) -> None:
        """The site's process starts and joins."""
        self.sites[site].core = self._core(site)
        self.sites[site].connected = True
        self.tell(SiteJoined(site))

    def disconnect(self, site: str) -> None:
        """The site's process is gone."""
        self.sites[site].connected = False
        self._tell_site(site, Disconnected())
        self.tell(SiteLeft(site, "the stream ended"))

    def submit(
        self,
        run_id: str,
        spec: RunSpec,
        model: Mapping[str, NDArray[Any]],
        layout: ModelLayout | None = None,
    ) -> None:
        """An operator submits a run. Without a layout it is the one of the arrays."""
        self.tell(RunSubmitted(run_id, spec, layout or ModelLayout.from_arrays(model), model))

    def run(self, run_id: str) -> RunStatus:
        """Goes on until the run has ended."""
        while self.coordinator.status(run_id).state in ("waiting", "running"):
            if not self.step():
                raise AssertionError("the federation stands still before the run has ended")
        return self.coordinator.status(run_id)

    def step(self) -> bool:
        """Does one thing; False if there is nothing left to do."""
        if self._queue:
            self._queue.popleft()()
            return True
        while self._due:
            due, _, act = heapq.heappop(self._due)
            self.clock = max(self.clock, due)
            before = len(self.effects)
            act()
            if len(self.effects) > before or self._queue:
                return True
        return False

    def settle(self) -> None:
        """Goes on until only deadlines are left."""
        while self._queue:
            self._queue.popleft()()

    def tell(self, event: Event) -> list[to_do.Effect]:
        """Hands the coordinator an event and carries out what it asks for."""
        self.clock += 0.25
        effects = self.coordinator.handle(event, now=self.clock)
        for effect in effects:
            self.effects.append(effect)
            self._carry_out(effect)
        return effects

    def saved_models(self, run_id: str) -> list[Mapping[str, NDArray[Any]]]:
        """Models of the completed rounds, in order."""
        return [
            effect.model
            for effect in self.effects
            if isinstance(effect, to_do.SaveRound)
            and effect.record.round.run_id == run_id
            and effect.model is not None
        ]

    # --- the coordinator's effects ----------------------------------------------------

    def _carry_out(self, effect: to_do.Effect) -> None:
        match effect:
            case to_do.SendToSite(site, message):
                if self.sites[site].connected:
                    self._queue.append(lambda: self._deliver(site, message))
            case to_do.SetDeadline(round_id, phase, seconds):
                self._later(seconds, lambda: self.tell(DeadlinePassed(round_id, phase)))
            case to_do.PublishModel(round_id):
                self._models[round_id] = effect
                self._bring_back(round_id)
            case to_do.PublishAudit(round_id, _, audited):
                self.transcripts[round_id] = b"".join(map(bytes, audited.sections()))
                self.audits.put(effect)
            case to_do.DropAudit(round_id):
                self.audits.drop(round_id.run_id)
            case to_do.PublishSum(round_id, words):
                self._sums[round_id] = tuple(words)
            case to_do.SaveRound(optimizer_state=OptimizerState() as state):
                data = state.to_bytes()
                self._states[hashlib.sha256(data).digest()] = data
            case to_do.GoOn(run_id):
                self._queue.append(lambda: self._go_on(run_id))
            case to_do.SaveLink(_, after, _):
                self._links[after] = effect
            case to_do.AnswerUpload(round_id, site, accepted, reason):
                answer: SiteEvent = UploadDone(round_id)
                if not accepted:
                    answer = UploadRefused(round_id, reason)
                self._tell_site(site, answer)
            case _:
                pass

    def _go_on(self, run_id: str) -> None:
        self.tell(Proceed(run_id))

    def _bring_back(self, round_id: RoundId) -> None:
        """A site that is to be back in the next round connects while this one runs."""
        for site, fault in self._faults.items():
            if fault.back_in == round_id.number + 1:
                self._queue.append(lambda site=site: self._reconnect_later(site))

    def _reconnect_later(self, site: str) -> None:
        if self.sites[site].connected:  # not lost yet
            self._queue.append(lambda: self._reconnect_later(site))
        else:
            self.connect(site)

    def _deliver(self, site: str, message: ToSite) -> None:
        if self.sites[site].connected:
            self._tell_site(site, CoordinatorSent(message))

    # --- the sites' effects -----------------------------------------------------------

    def _tell_site(self, site: str, event: SiteEvent) -> None:
        for effect in self.sites[site].core.handle(event):
            self._queue.append(lambda effect=effect: self._carry_out_for(site, effect))

    def _carry_out_for(self, site: str, effect: site_to_do.SiteEffect) -> None:
        simulated = self.sites[site]
        if isinstance(effect, site_to_do.Note):
            simulated.notes.append(effect.text)
            return
        if isinstance(effect, site_to_do.Upload):
            self.uploads[site] = UpdateArrived(site, effect.header, effect.chunks)
        if not simulated.connected or self._strikes(site, effect):
            return
        match effect:
            case site_to_do.SendToCoordinator(message):
                self.tell(SiteSent(site, message))
            case site_to_do.FetchModel(round_id):
                model = self._models[round_id]
                self._tell_site(site, ModelFetched(round_id, model.layout, model.model))
            case site_to_do.FetchSum():
                self._fetch_sum(site, effect)
            case site_to_do.FetchAudit():
                self._tell_site(site, self._audit(site, effect))
            case site_to_do.FetchLinks(round_id):
                self._tell_site(site, LinksFetched(round_id, self.links_to(round_id)))
            case site_to_do.Train(round_id, arrays, task):
                pace, core = self._pace_of.get(site, 0.0), simulated.core
                if not pace:
                    self._train(site, round_id, arrays, task)
                    return

                def trained() -> None:
                    if simulated.core is core:  # or the process that trained is gone
                        self._train(site, round_id, arrays, task)

                self._later(pace, trained)
            case site_to_do.Upload():
                self._upload(site, effect)
            case site_to_do.StopTraining():
                pass

    def _later(self, seconds: float, act: Callable[[], object]) -> None:
        heapq.heappush(self._due, (self.clock + seconds, next(self._numbers), act))

    def _fetch_sum(self, site: str, effect: site_to_do.FetchSum) -> None:
        try:
            for piece in self.sum_for(site, effect.round):
                effect.receiver.add(piece)
        except DecodeError as error:
            self._tell_site(site, SumFetchFailed(effect.round, str(error)))
            return
        state = self._states[self._models[effect.round].state_hash] if effect.state else None
        self._tell_site(site, SumFetched(effect.round, state))

    def sum_for(self, site: str, round_id: RoundId) -> tuple[bytes, ...]:
        """What the coordinator hands this site of a round's sum."""
        del site
        return self._sums[round_id]

    def links_to(self, round_id: RoundId) -> tuple[bytes, ...]:
        """The results that led to a round's model, the last one first."""
        model = self._models[round_id]
        after, found = (model.model_hash, model.state_hash), list[bytes]()
        if after not in self._links and not any(after[1]):
            after = next((key for key in self._links if key[0] == after[0]), after)
        while after in self._links:
            link = self._links[after]
            found.append(link.link)
            after = link.before
        return tuple(found)

    def _audit(self, site: str, asked: site_to_do.FetchAudit) -> SiteEvent:
        chunks = [(stream.group, index) for stream, index in asked.chunks]
        try:
            data = b"".join(pieces(self.audits.get(asked.round, site), chunks))
        except ConfigError as error:
            return AuditFetchFailed(asked.round, str(error))
        assert len(data) <= asked.max_bytes
        return AuditFetched(asked.round, self.served(data))

    def _train(self, site: str, round_id: RoundId, arrays: Arrays, task: TaskSettings) -> None:
        def report(fraction: float) -> None:
            self._tell_site(site, TrainingProgressed(round_id, fraction))

        try:
            result, evaluation = train_and_evaluate(self.sites[site].trainer, arrays, task, report)
        except RuntimeError as error:
            self._tell_site(site, TrainingFailed(round_id, str(error)))
            return
        self._tell_site(site, TrainingDone(round_id, result, evaluation))

    def _upload(self, site: str, upload: site_to_do.Upload) -> None:
        try:
            receiver = self.coordinator.upload_check(site, upload.header)
            for chunk in upload.chunks:
                receiver.add(chunk)
            receiver.finish()
        except (DecodeError, PeerError) as error:
            self._tell_site(site, UploadRefused(upload.header.round, str(error)))
            return
        self.tell(self.uploads[site])

    def _strikes(self, site: str, effect: site_to_do.SiteEffect) -> bool:
        """Whether the site's fault happens instead of this effect."""
        fault = self._faults.get(site)
        if fault is None or not _sends(effect):
            return False
        round_id = _round_of(effect)
        if round_id.number != fault.round_number or round_id.attempt >= fault.until:
            return False
        if self.coordinator.status(round_id.run_id).phase != fault.phase:
            return False
        if not fault.silent:
            self.disconnect(site)
        return True


def _sends(effect: site_to_do.SiteEffect) -> bool:
    match effect:
        case site_to_do.Upload() | site_to_do.SendToCoordinator(ProtocolMessage()):
            return True
    return False


def _round_of(effect: site_to_do.SiteEffect) -> RoundId:
    match effect:
        case site_to_do.Upload(header):
            return header.round
        case site_to_do.SendToCoordinator(message):
            return message.round
    raise AssertionError(f"{effect} is not sent")
