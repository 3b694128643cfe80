"""Coordinators that start again at any event, in plain runs with every way to turn out.

What a restart must not change: which updates were accepted, what counted, whom a round drew.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.federation import counting_bytes, make_roster, signing_key
from support.plain_run import LAYOUT, MODEL, SITES, PlainRun, spec
from veilsum.control import Decline, RoundId, RunSpec
from veilsum.coordinator.core import Coordinator
from veilsum.coordinator.effects import AnswerUpload, Effect, GoOn, SaveRound, SaveStanding
from veilsum.coordinator.events import (
    DeadlinePassed,
    Event,
    Proceed,
    RunSubmitted,
    SiteJoined,
    SiteLeft,
    SiteSent,
)
from veilsum.coordinator.standing import RestoredRun, Standing


class RestartedRun(PlainRun):
    """One whose events are written down as a coordinator's are; it can begin anew from them."""

    def __init__(self, run: RunSpec) -> None:
        self._spec = run
        self._fresh = counting_bytes()
        self._drawn: list[bytes] = []
        self._again: deque[bytes] | None = None
        self._log: list[tuple[Event, float, tuple[bytes, ...]]] = []
        self._standing: Standing | None = None
        self.answers: list[AnswerUpload] = []
        super().__init__(run, draw=self._draw)

    def _draw(self, size: int) -> bytes:
        drawn = self._again.popleft() if self._again is not None else self._fresh(size)
        self._drawn.append(drawn)
        return drawn

    def tell(self, event: Event) -> list[Effect]:
        self.clock += 1.0
        effects: list[Effect] = []
        to_do = deque([event])
        while to_do:
            new = self._handled(to_do.popleft(), self.clock)
            to_do += [Proceed(effect.run_id) for effect in new if isinstance(effect, GoOn)]
            effects += new
        self.answers += [effect for effect in effects if isinstance(effect, AnswerUpload)]
        self.effects += effects
        return effects

    def _handled(self, event: Event, now: float) -> list[Effect]:
        written = self.core.written(event)
        self._drawn.clear()
        effects = self.core.handle(event, now=now)
        if written is not None:
            self._log.append((written, now, tuple(self._drawn)))
        for effect in effects:
            if isinstance(effect, SaveStanding):
                self._standing = effect.standing
                self._log = [(SiteJoined(site), now, ()) for site in self.core.present]
        return effects

    def restart(self) -> None:
        """Another process takes over, unless no run is active: then there is nothing to do."""
        if self.core.idle or self._standing is None:
            return
        records = [record for record in self.records if self._before(record.round.number)]
        submitted = RunSubmitted("run", self._spec, LAYOUT, self._model())
        roster, key = make_roster(SITES), signing_key("coordinator")
        self.core = Coordinator(roster, key, entropy=self._draw)
        self.core.restore(RestoredRun(submitted, tuple(records), self._standing))
        for event, now, drawn in self._log:
            self._again = deque(drawn)
            self.core.handle(event, now=now)
            assert not self._again
        self._again = None
        for effect in self.core.resume():
            if isinstance(effect, GoOn):
                self.tell(Proceed(effect.run_id))

    def _before(self, number: int) -> bool:
        return self._standing is not None and number < self._standing.round.number

    def _model(self) -> dict[str, np.ndarray]:
        saved = [e for e in self.effects if isinstance(e, SaveRound) and e.model is not None]
        before = [e.model for e in saved if self._before(e.record.round.number)]
        return {"weight": np.array(before[-1]["weight"])} if before else dict(MODEL)


DELIVER = st.tuples(st.just("deliver"), st.sampled_from(SITES), st.integers(0, 1))
LOSE = st.tuples(st.sampled_from(["leave", "join", "decline"]), st.sampled_from(SITES))
PASS = st.tuples(st.just("deadline"), st.sampled_from(["join", "updates"]))
ACTIONS = st.lists(st.one_of(DELIVER, DELIVER, DELIVER, LOSE, PASS), min_size=10, max_size=50)


def act(run: PlainRun, action: tuple[Any, ...]) -> None:
    """Deliveries and declines are of the round that is open, or of the one before."""
    number = run.core.status("run").current_round
    match action:
        case ("deliver", site, back) if run.invited(max(1, number - back)):
            of = max(1, number - back)
            run.deliver(site, of, value=float(of + SITES.index(site)), weight=5)
        case ("leave", site) if site in run.core.present:
            run.tell(SiteLeft(site, "gone"))
        case ("join", site):
            run.tell(SiteJoined(site))
        case ("decline", site):
            run.tell(SiteSent(site, Decline(RoundId("run", number), "policy", "no")))
        case ("late decline", site):
            run.tell(SiteSent(site, Decline(RoundId("run", number - 1), "policy", "no")))
        case ("deadline", phase):
            run.tell(DeadlinePassed(RoundId("run", number), phase))


@pytest.mark.parametrize("turnout", [{}, {"select": 3}, {"select": 2, "over_select": 0.5}])
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(ACTIONS, st.sets(st.integers(0, 49), max_size=12), st.sampled_from([0, 2]))
def test_a_run_comes_to_the_same_wherever_its_coordinator_starts_again(
    turnout: dict[str, Any], actions: list[Any], restarts: set[int], quorum: int
) -> None:
    closing = {"quorum": quorum} if not turnout else {}
    settings = spec(rounds=5, late="next", **turnout, **closing)
    undisturbed, restarted = RestartedRun(settings), RestartedRun(settings)

    for number, action in enumerate(actions):
        if number in restarts:
            restarted.restart()
        act(undisturbed, action)
        act(restarted, action)

    assert restarted.answers == undisturbed.answers
    assert restarted.core.status("run") == undisturbed.core.status("run")
    assert restarted.core.present == undisturbed.core.present


STORIES = {
    "a straggler declines while the next round gathers": [
        ("deliver", "basel", 0),
        ("deliver", "lyon", 0),
        ("leave", "lyon"),
        ("deliver", "kyoto", 0),
        ("late decline", "oslo"),
        ("join", "lyon"),
    ],
    "a site was waited for in vain": [
        ("leave", "quito"),
        *(("deliver", site, 0) for site in SITES[:3]),
        ("deadline", "join"),
        *(("deliver", site, 0) for site in SITES[:3]),
        *(("deliver", site, 0) for site in SITES[:3]),
    ],
}


@pytest.mark.parametrize("actions", STORIES.values(), ids=STORIES)
def test_a_run_that_starts_again_before_every_event_remembers(actions: list[Any]) -> None:
    settings = spec(rounds=5, quorum=3, late="next")
    undisturbed, restarted = RestartedRun(settings), RestartedRun(settings)

    for action in actions:
        act(undisturbed, action)
        restarted.restart()
        act(restarted, action)
    restarted.restart()

    assert restarted.core.status("run") == undisturbed.core.status("run")
    assert len(undisturbed.records) > 0


def test_the_runs_above_come_to_what_they_are_about() -> None:
    """Late updates, stragglers and ends of rounds, across restarts."""
    run = RestartedRun(spec(rounds=3, quorum=3, late="next"))
    for number, sites in ((1, SITES[:3]), (1, SITES[3:4]), (2, SITES[:2])):
        for site in sites:
            run.restart()
            run.deliver(site, number)

    assert [(r.sites, r.late) for r in run.records] == [
        (SITES[:3], ()),
        ((*SITES[:2], SITES[3]), (SITES[3],)),
    ]
