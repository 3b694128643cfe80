"""A federation in memory whose coordinator's power fails: what was not synced yet is lost.

Sites stay as they are, know more than the coordinator, and are sent what their outboxes hold. What
is kept, and when it is synced, follows the rules of keeping.py and runner.py.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import Any

import numpy as np

from support.federation import Federation, signing_key
from veilsum.control import ProtocolMessage, RoundId, RoundOpened, ToSite, Welcome
from veilsum.coordinator import effects as to_do
from veilsum.coordinator.core import Coordinator
from veilsum.coordinator.events import (
    DeadlinePassed,
    Event,
    ResultPublished,
    RunSubmitted,
    SiteJoined,
    UpdateArrived,
)
from veilsum.coordinator.standing import RestoredRun, Standing
from veilsum.optimizers.state import OptimizerState
from veilsum.secagg.messages import kind_of_message
from veilsum.site import effects as site_to_do
from veilsum.site.events import SiteEvent, UploadDone
from veilsum.transport.event_log import Draws, entry_of, event_of
from veilsum.transport.outbox import Outbox


@dataclass(frozen=True)
class _Kept:
    """An entry of the log: an event, or a round whose result stands for unmask shares."""

    what: Event | to_do.SaveRound
    now: float
    draws: tuple[bytes, ...] = ()


class Interrupted(Federation):
    """One run.

    Args:
        random: decides when the power fails and what is lost with it.

    Attributes:
        rate: how likely the power fails behind an event.
        said: (site, round, kind of message) -> all that the coordinator's lives said of it.
        acknowledged: (round, site) of updates that sites were told to count.
        cuts: how often the power has failed.
    """

    def __init__(self, sites: tuple[str, ...], random: Random, **federation: Any) -> None:
        self.random = random
        self.rate = 0.0
        self.cuts = 0
        self.ended = False
        self.records: list[Any] = []
        self.said: defaultdict[tuple[str, RoundId, str], set[bytes]] = defaultdict(set)
        self.acknowledged: set[tuple[RoundId, str]] = set()
        self._log: list[_Kept] = []
        self._synced = 0
        self._standing: Standing | None = None
        self._after: dict[int, tuple[Mapping[str, Any], OptimizerState | None]] = {}
        self._outboxes: defaultdict[str, Outbox] = defaultdict(Outbox)
        self._processes: dict[str, int] = dict.fromkeys(sites, 0)
        super().__init__(sites, connect=False, **federation)
        self._new_core()
        for site in sites:
            self.connect(site)

    def _new_core(self) -> None:
        self._draws = Draws(_bytes_of_life(self.cuts))
        key = signing_key("coordinator")
        self.coordinator = Coordinator(self.roster, key, entropy=self._draws)

    # --- what is kept -----------------------------------------------------------------

    def tell(self, event: Event) -> list[to_do.Effect]:
        self.clock += 0.25
        if isinstance(event, RunSubmitted):
            self._submitted = event
        written = self.coordinator.written(event)
        self._draws.taken()
        effects = self.coordinator.handle(event, now=self.clock)
        draws = self._draws.taken()
        if isinstance(event, UpdateArrived) and _refused(event, effects):
            written = None
        self._keep(None if written is None else _Kept(_read(written), self.clock, draws), effects)
        for effect in effects:
            self.effects.append(effect)
            self._carry_out(effect)
        if not self.ended and self._standing and self.random.random() < self.rate:
            self.cut()
        return effects

    def _keep(self, entry: _Kept | None, effects: list[to_do.Effect]) -> None:
        results = []
        for effect in effects:
            match effect:
                case to_do.SaveRound(record, _, model, state):
                    self.records.append(record)
                    if model is not None:
                        arrays = {name: np.array(array) for name, array in model.items()}
                        state = OptimizerState.from_bytes(state.to_bytes()) if state else None
                        self._after[record.round.number] = arrays, state
                    results += [_Kept(effect, self.clock)] if effect.result else []
                case to_do.SaveStanding(standing):
                    self._standing = standing
                case to_do.SaveRun(status) if status.state in ("completed", "aborted"):
                    self.ended = True
        if any(isinstance(effect, to_do.SaveStanding) for effect in effects):
            present = self.coordinator.present.items()
            self._log = [_Kept(SiteJoined(*one), self.clock) for one in present]
        elif not self.coordinator.idle:
            self._log += [*([entry] if entry else []), *results]
        self._synced = len(self._log) if effects else min(self._synced, len(self._log))

    # --- a new life -------------------------------------------------------------------

    def cut(self) -> None:
        """The power fails, and comes back."""
        self.cuts += 1
        if self.random.random() < 0.7:  # else the system had written all of it in time
            del self._log[self._synced :]
        self._synced = len(self._log)
        self._queue = deque(act for act in self._queue if self._survives(act))
        self._due = [due for due in self._due if self._survives(due[2])]
        heapq.heapify(self._due)
        self._outboxes.clear()
        self._new_core()
        assert self._standing is not None
        for effect in self.coordinator.restore(self._restored(self._standing)):
            self._again(effect)
        for entry in self._log:
            self._draws.again(entry.draws)
            for effect in self.coordinator.handle(self._event(entry), now=entry.now):
                self._again(effect)
            self._draws.again(None)
        effects = self.coordinator.resume()
        self._keep(None, effects)
        for effect in effects:
            self._carry_out(effect)
        for site in self.sites:
            if self.sites[site].connected:
                self._call_again(site)

    def _survives(self, act: Callable[[], object]) -> bool:
        """Not what the coordinator was about to do; of what sites were sending, a part."""
        if not isinstance(act, partial):
            return True
        if act.func == self._carry_out_for:
            sending = isinstance(act.args[1], site_to_do.SendToCoordinator)
            return not sending or self.random.random() < 0.5
        return False

    def _restored(self, standing: Standing) -> RestoredRun:
        where, submitted = standing.round, self._submitted
        if where.number > 1:
            model, state = self._after[where.number - 1]
            submitted = replace(submitted, model=model, optimizer_state=state)
        before = (where.number, where.attempt)
        records = (one for one in self.records if (one.round.number, one.round.attempt) < before)
        return RestoredRun(submitted, tuple(records), standing)

    def _event(self, entry: _Kept) -> Event:
        if not isinstance(entry.what, to_do.SaveRound):
            return entry.what
        saved = entry.what
        words = memoryview(b"".join(self._sums[saved.record.round]))
        after = self._after[saved.record.round.number]
        where = saved.record.round
        return ResultPublished(where, saved.result, words, saved.record, *after, saved.left_out)

    def _again(self, effect: to_do.Effect) -> None:
        match effect:
            case to_do.SendToSite(site, message):
                self._said(site, message)
            case to_do.SetDeadline() | to_do.PublishModel() | to_do.PublishSum():
                self._carry_out(effect)

    def _call_again(self, site: str) -> None:
        box, process = self._outboxes[site], self._process(site)
        if self.coordinator.present.get(site) != process:
            box.clear()
            self._queue.append(partial(self.tell, SiteJoined(site, process)))
        for message in (Welcome("test", self.roster.hash, box.round), *box.messages):
            self._queue.append(partial(self._deliver, site, message))

    # --- sites ------------------------------------------------------------------------

    def connect(self, site: str) -> None:
        self._processes[site] += 1
        self._outboxes[site].clear()
        self.sites[site].core = self._core(site)
        self.sites[site].connected = True
        self.tell(SiteJoined(site, self._process(site)))

    def disconnect(self, site: str) -> None:
        self._outboxes[site].clear()
        super().disconnect(site)

    def _process(self, site: str) -> bytes:
        return bytes([self._processes[site]]) * 16

    def _tell_site(self, site: str, event: SiteEvent) -> None:
        if isinstance(event, UploadDone):
            self.acknowledged.add((event.round, site))
        for effect in self.sites[site].core.handle(event):
            self._queue.append(partial(self._carry_out_for, site, effect))

    def _carry_out(self, effect: to_do.Effect) -> None:
        match effect:
            case to_do.SendToSite(site, message):
                self._said(site, message)
                if self.sites[site].connected:
                    self._queue.append(partial(self._deliver, site, message))
            case to_do.SetDeadline(round_id, phase, seconds):
                self._later(seconds, partial(self.tell, DeadlinePassed(round_id, phase)))
            case to_do.GoOn(run_id):
                self._queue.append(partial(self._go_on, run_id))
            case _:
                super()._carry_out(effect)

    def _said(self, site: str, message: ToSite) -> None:
        self._outboxes[site].file(message)
        match message:
            case RoundOpened(round_id) if message.open_message:
                self.said[site, round_id, "round-open"].add(message.open_message)
            case ProtocolMessage(round_id, payload):
                self.said[site, round_id, kind_of_message(payload)].add(payload)

    @property
    def contradictions(self) -> list[tuple[str, RoundId, str]]:
        """Of which the coordinator has said two things, where there is one."""
        return [key for key, said in self.said.items() if len(said) > 1 and key[2] != "accusation"]


def _read(written: Event) -> Event:
    """As it comes back from the disk; an update from its file."""
    if isinstance(written, UpdateArrived):
        return written
    return event_of(entry_of(written, 0.0, ()))


def _refused(arrived: UpdateArrived, effects: list[to_do.Effect]) -> bool:
    return any(
        isinstance(effect, to_do.AnswerUpload)
        and effect.site == arrived.site
        and not effect.accepted
        for effect in effects
    )


def _bytes_of_life(number: int) -> Callable[[int], bytes]:
    calls = 0

    def draw(size: int) -> bytes:
        nonlocal calls
        calls += 1
        return hashlib.shake_256(f"{number}/{calls}".encode()).digest(size)

    return draw
