"""Buffered runs under schedules that nobody thought of: what comes when, who goes, who comes back,
and when the coordinator dies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from reference import fedbuff
from support import plain_run
from support.federation import counting_bytes, make_roster, signing_key
from support.plain_run import LAYOUT, MODEL, SITES, PlainRun
from veilsum.control import (
    Decline,
    RoundClosed,
    RoundId,
    RoundOpened,
    RoundRecord,
    RunClosed,
    SiteDropped,
)
from veilsum.coordinator.core import Coordinator
from veilsum.coordinator.effects import (
    AnswerUpload,
    CloseUploads,
    Effect,
    GoOn,
    OpenUploads,
    SaveRound,
    SaveStanding,
    SendToSite,
)
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
from veilsum.coordinator.standing import RestoredRun, Standing
from veilsum.model import ModelLayout, result_digest

SPEC = replace(plain_run.SPEC, rounds=8, buffer_size=2, max_staleness=1, min_sites=1)
ACTIONS = ("deliver",) * 6 + ("again", "decline", "leave", "join", "deadline", "die")

schedules = st.lists(
    st.tuples(st.sampled_from(ACTIONS), st.sampled_from(SITES)), min_size=20, max_size=60
)


class Kept(Mapping[str, NDArray[Any]]):
    """A model on the disk: read when it is needed, which may be after it was written only."""

    def __init__(self, models: Mapping[int, Mapping[str, NDArray[Any]]], number: int) -> None:
        self._models = models
        self._number = number

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._models[self._number][name]

    def __iter__(self) -> Iterator[str]:
        return iter(LAYOUT.names)

    def __len__(self) -> int:
        return len(LAYOUT.names)


class Play(PlainRun):
    """A run, what its sites know, and what the coordinator's disk holds."""

    def __init__(self) -> None:
        self.asked: dict[str, int] = {}  # site -> round it is in
        self.open: set[tuple[str, int]] = set()
        self.counted: list[tuple[str, int]] = []
        self._first: dict[str, UpdateArrived] = {}
        self._log: list[tuple[Event, float]] = []
        self._standing: Standing | None = None
        self._models = {0: MODEL}
        self._processes = 0
        self._came: list[SiteJoined] = []  # since the standing
        super().__init__(SPEC)

    @property
    def running(self) -> bool:
        return self.core.status("run").state == "running"

    def tell(self, event: Event) -> list[Effect]:
        self.clock += 1.0
        written = self.core.written(event)
        effects = self.core.handle(event, now=self.clock)
        if written is not None:
            self._log.append((written, self.clock))
        self.effects += effects
        for effect in effects:
            self._see(effect)
        if GoOn("run") in effects:
            effects = effects + self.tell(Proceed("run"))
        return effects

    def _see(self, effect: Effect) -> None:
        match effect:
            case SaveStanding(standing):
                self._standing = standing
                joined = (SiteJoined(*one) for one in self.core.present.items())
                self._log = [(one, self.clock) for one in joined]
                self._came = []
            case SaveRound(record, model=model) if model is not None:
                self._models[record.round.number] = dict(model)
            case OpenUploads(round_id, sites):
                self.open |= {(site, round_id.number) for site in sites}
            case CloseUploads(round_id):
                self.open = {one for one in self.open if one[1] != round_id.number}
            case AnswerUpload(round_id, site, True):
                assert (site, round_id.number) in self.open
                self.counted.append((site, round_id.number))
                del self.asked[site]
            case SendToSite(site, RoundOpened(round_id)):
                assert (site, round_id.number) in self.open
                assert site not in self.asked
                self.asked[site] = round_id.number
            case SendToSite(site, SiteDropped(round_id)):
                assert self.asked.pop(site) == round_id.number
            case SendToSite(site, RoundClosed(round_id)):
                assert site not in self.asked
            case SendToSite(site, RunClosed()):
                self.asked.pop(site, None)

    # --- what can happen ------------------------------------------------------------

    def deliver_now(self, site: str) -> None:
        if site in self.asked:
            number = self.asked[site]
            update = self.update(site, number, value=_value(site, number), weight=_weight(site))
            self._first.setdefault(site, update)
            (answer,) = (e for e in self.tell(update) if isinstance(e, AnswerUpload))
            assert answer.accepted, answer.reason

    def again(self, site: str) -> None:
        """What counted once does not count again."""
        if site in self._first:
            before = self.core.status("run")
            (answer,) = self.tell(self._first[site])
            assert isinstance(answer, AnswerUpload)
            assert not answer.accepted
            assert self.core.status("run") == before

    def decline(self, site: str) -> None:
        if site in self.asked:
            self.tell(SiteSent(site, Decline(RoundId("run", self.asked[site]), "policy", "no")))

    def leave(self, site: str) -> None:
        if site in self.core.present:
            self.asked.pop(site, None)
            self.tell(SiteLeft(site, "the stream ended"))

    def join(self, site: str) -> None:
        self.asked.pop(site, None)
        self._processes += 1
        event = SiteJoined(site, self._processes.to_bytes(16, "big"))
        self._came.append(event)
        self.tell(event)

    def deadline(self) -> None:
        number = self.core.status("run").current_round
        self.tell(DeadlinePassed(RoundId("run", number), "updates"))

    def die(self) -> None:
        """Another process takes over what this one left."""
        assert self._standing is not None
        before, number = self.core.status("run"), self._standing.round.number
        self.core = Coordinator(
            make_roster(SITES),
            signing_key("coordinator"),
            entropy=counting_bytes(),
            kept=lambda run_id, number, layout: Kept(self._models, number),
        )
        submitted = RunSubmitted("run", SPEC, LAYOUT, self._models[number - 1])
        records = tuple(one for one in before.rounds if one.round.number < number)
        effects = self.core.restore(RestoredRun(submitted, records, self._standing))
        asked, counted = self.asked, self.counted
        self.asked, self.open, self.counted = {}, set(), []
        self._replayed(effects)
        for event, now in self._log:
            gone = isinstance(event, SiteLeft) or event in self._came
            if gone and isinstance(event, SiteLeft | SiteJoined):
                self.asked.pop(event.site, None)
            self._replayed(self.core.handle(event, now=now))
        self.counted = counted
        assert self.core.resume() == []
        assert self.core.status("run") == before
        assert self.asked == asked

    def _replayed(self, effects: list[Effect]) -> None:
        for effect in effects:
            if not isinstance(effect, SaveStanding | SaveRound):
                self._see(effect)


def _value(site: str, number: int) -> float:
    return len(site) / 8 - number / 4


def _weight(site: str) -> int:
    return 1 + 23 * SITES.index(site)


def check(record: RoundRecord, counted: list[tuple[str, int]]) -> None:
    """A step is made of what was accepted since the one before, by the reference's numbers."""
    assert sorted((one.site, one.version + 1) for one in record.updates) == sorted(counted)
    for one in record.updates:
        assert one.staleness == record.round.number - 1 - one.version <= SPEC.max_staleness
        assert one.counted == fedbuff.counted(one.weight, one.staleness, SPEC.weight_cap)
    assert len(record.sites) >= SPEC.min_sites
    assert record.total_weight == sum(one.counted for one in record.updates)
    updates = [
        fedbuff.Update(one.weight, one.staleness, [_value(one.site, one.version + 1)], [0])
        for one in record.updates
    ]
    floats, _ = fedbuff.buffer_mean(updates, ["f32"], SPEC.weight_cap)
    mean = {"weight": np.full(4, floats[0], np.float32)}
    assert record.digest == result_digest(ModelLayout.from_arrays(mean), mean)


@settings(max_examples=40, deadline=None)
@given(schedules)
def test_whatever_happens_every_step_is_what_the_reference_makes_of_its_updates(
    schedule: list[tuple[str, str]],
) -> None:
    play = Play()
    taken = 0
    for action, site in schedule:
        if not play.running:
            break
        match action:
            case "deliver":
                play.deliver_now(site)
            case "again":
                play.again(site)
            case "decline":
                play.decline(site)
            case "leave":
                play.leave(site)
            case "join":
                play.join(site)
            case "deadline":
                play.deadline()
            case "die":
                play.die()
        if play.records[taken:] and play.records[-1].completed:
            (record,) = play.records[taken:]
            check(record, play.counted)
            taken, play.counted = taken + 1, []
    if not play.running:
        assert play.open == set()
        assert play.asked == {}
