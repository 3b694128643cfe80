"""Plain rounds whose stragglers deliver into the next one (late = "next")."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.federation import Federation, small_model
from support.plain_run import LAYOUT, SITES, PlainRun, sent, spec
from veilsum.control import Decline, Progress, RoundClosed, RoundId, RoundOpened, SiteDropped
from veilsum.coordinator.effects import (
    Announce,
    AnswerUpload,
    CloseUploads,
    DropUploads,
    Effect,
    OpenUploads,
    PublishModel,
    SaveStanding,
    SendToSite,
)
from veilsum.coordinator.events import (
    DeadlinePassed,
    Event,
    RunAbortRequested,
    RunSubmitted,
    SiteJoined,
    SiteLeft,
    SiteSent,
)
from veilsum.coordinator.standing import JobMemory, RestoredRun
from veilsum.coordinator.stragglers import Stragglers
from veilsum.errors import PeerError

FIRST, SECOND = RoundId("run", 1), RoundId("run", 2)
FAST, SLOW = SITES[:3], SITES[3:]
LATE = spec(rounds=3, quorum=3, late="next")


def after_first_round(settings: Any = LATE) -> PlainRun:
    """The first round has closed with the fast sites; oslo and quito still work on it."""
    run = PlainRun(settings)
    for site in FAST:
        run.deliver(site)
    return run


def of_uploads(effects: list[Effect]) -> list[Effect]:
    return [e for e in effects if isinstance(e, OpenUploads | CloseUploads | DropUploads)]


def test_a_straggler_hears_nothing_of_the_end_of_its_round_and_is_not_in_the_next() -> None:
    run = after_first_round()

    told = {e.site for e in run.effects if isinstance(e, SendToSite)}
    to_slow = [e.message for e in run.effects if isinstance(e, SendToSite) and e.site in SLOW]
    assert told == set(SITES)
    assert [type(message) for message in to_slow] == [RoundOpened, RoundOpened]
    assert run.invited(2) == FAST
    reason = "sent no update before the round had its quorum of 3; the next round takes it"
    assert run.records[0].dropped == dict.fromkeys(SLOW, reason)
    assert of_uploads(run.effects) == [
        OpenUploads(FIRST, SITES),
        DropUploads(FIRST, FAST),  # theirs are in the mean; the others' go on
        OpenUploads(SECOND, FAST),
    ]
    published = [e.since for e in run.effects if isinstance(e, PublishModel)]
    assert published == [None, 1]


def test_its_update_counts_in_the_next_round_as_if_it_were_of_that_one() -> None:
    run = after_first_round()
    digest = run.records[0].digest
    run.deliver("basel", 2, value=1.0, weight=10)

    effects = run.deliver("oslo", 1, value=7.0, weight=20)
    run.deliver("lyon", 2, value=4.0, weight=10)

    assert effects[0] == AnswerUpload(FIRST, "oslo", True, "")
    assert sent(effects, RoundClosed) == [("oslo", RoundClosed(FIRST, True, "", digest))]
    record = run.records[1]
    assert (record.sites, record.late) == (("basel", "lyon", "oslo"), ("oslo",))
    assert record.total_weight == 40
    # The model was at 1 after the first round; the step is (10*1 + 20*7 + 10*4) / 40.
    assert run.model_after(2) == 1.0 + 4.75


def test_who_watches_sees_that_it_was_late() -> None:
    run = after_first_round()

    effects = run.deliver("oslo", 1)

    details = [e.event.detail for e in effects if isinstance(e, Announce)]
    assert details == ["delivered, late: of round 1"]


def test_without_a_quorum_the_next_round_waits_for_the_stragglers_of_the_one_before() -> None:
    run = PlainRun(spec(rounds=3, late="next"))
    for site in FAST:
        run.deliver(site)
    run.tell(DeadlinePassed(FIRST, "updates"))
    assert run.core.status("run").sites_waiting == SITES

    for site in FAST:
        run.deliver(site, 2)
    assert run.core.status("run").sites_waiting == SLOW
    for site in SLOW:
        run.deliver(site, 1)

    assert (run.records[1].sites, run.records[1].late) == (SITES, SLOW)


def test_a_straggler_is_invited_again_to_the_round_after_the_next() -> None:
    run = after_first_round()
    run.deliver("oslo", 1)
    run.deliver("basel", 2)

    effects = run.deliver("kyoto", 2)

    assert run.invited(3) == ("basel", "kyoto", "oslo", "quito")  # lyon is a straggler by now
    reason = "sent no update before the round had its quorum of 3"
    assert sent(effects, SiteDropped) == [("quito", SiteDropped(FIRST, reason))]
    assert of_uploads(effects) == [
        CloseUploads(FIRST, "the round is complete"),
        DropUploads(FIRST),
        DropUploads(SECOND, ("basel", "kyoto")),
        OpenUploads(RoundId("run", 3), ("basel", "kyoto", "oslo", "quito")),
    ]


def test_an_update_that_misses_the_next_round_as_well_is_refused() -> None:
    run = after_first_round()
    late = run.update("quito", 1)
    for site in FAST:
        run.deliver(site, 2)

    effects = run.tell(late)

    refused = "site 'quito' sent an update for round 1 of run 'run', which is not open"
    assert effects == [AnswerUpload(FIRST, "quito", False, refused)]
    with pytest.raises(PeerError, match="which is not open"):
        run.core.upload_check("quito", late.header)


@pytest.mark.parametrize(
    ("site", "number", "change", "message"),
    [
        ("oslo", 1, {}, "sent a second update in this round"),
        ("oslo", 2, {}, "is not in this round's cohort"),
        ("quito", 2, {}, "is not in this round's cohort"),
        ("basel", 1, {}, "sent an update for round 1 of run 'run', which is not open"),
        ("quito", 1, {"weight": 101}, "sent weight 101, expected 1 to 100"),
        ("quito", 1, {"update_id": 7}, "sent an update id of another round or site"),
        ("quito", 1, {"metrics": {"auc": 1.0}}, "sent metric 'auc'"),
    ],
)
def test_a_site_has_one_update_in_a_round_and_late_ones_are_held_to_their_own_plan(
    site: str, number: int, change: dict[str, Any], message: str
) -> None:
    run = after_first_round()
    run.deliver("oslo", 1)
    arrived = run.update(site, number)
    arrived = replace(arrived, header=replace(arrived.header, **change))

    with pytest.raises(PeerError, match=message):
        run.core.upload_check(site, arrived.header)
    (answer,) = run.tell(arrived)

    assert isinstance(answer, AnswerUpload)
    assert not answer.accepted
    assert message in answer.reason
    assert run.core.status("run").sites_waiting == ("basel", "kyoto", "lyon", "quito")


def test_in_the_last_round_nobody_is_late() -> None:
    run = PlainRun(spec(rounds=1, quorum=3, late="next"))
    for site in FAST[:2]:
        run.deliver(site)

    effects = run.deliver(FAST[2])

    reason = "sent no update before the round had its quorum of 3"
    assert sent(effects, SiteDropped) == [(s, SiteDropped(FIRST, reason)) for s in SLOW]
    assert DropUploads(FIRST) in effects


def test_a_round_without_a_result_has_no_stragglers() -> None:
    run = PlainRun(spec(rounds=2, late="next", min_weight=1000, weight_cap=500))
    for site in FAST:
        run.deliver(site)

    effects = run.tell(DeadlinePassed(FIRST, "updates"))

    assert run.core.status("run").state == "aborted"
    assert {site for site, _ in sent(effects, RoundClosed)} == set(SITES)
    assert DropUploads(FIRST) in effects


@pytest.mark.parametrize(
    "lost",
    [SiteLeft("oslo", "gone"), SiteSent("oslo", Decline(FIRST, "training_failed", "no room"))],
)
def test_a_straggler_that_gives_up_is_not_waited_for(lost: Event) -> None:
    run = after_first_round()

    effects = run.tell(lost)

    ((site, told),) = sent(effects, SiteDropped)
    assert (site, told.round) == ("oslo", FIRST)  # type: ignore[union-attr]
    assert run.core.status("run").sites_waiting == ("basel", "kyoto", "lyon", "quito")
    (answer,) = run.deliver("oslo", 1)
    assert isinstance(answer, AnswerUpload)
    assert not answer.accepted


def test_a_straggler_that_begins_anew_is_in_the_round_after_the_next() -> None:
    """What it worked on is gone, and the next round has not invited it."""
    run = after_first_round()
    run.tell(SiteJoined("oslo"))
    assert run.core.status("run").sites_waiting == ("basel", "kyoto", "lyon", "quito")
    run.deliver("quito", 1)
    for site in FAST[:2]:
        run.deliver(site, 2)

    assert "oslo" not in run.invited(2)
    assert "oslo" in run.invited(3)


def test_progress_of_a_straggler_is_shown() -> None:
    run = after_first_round()

    (shown,) = run.tell(SiteSent("oslo", Progress(FIRST, 0.5)))

    assert isinstance(shown, Announce)
    assert (shown.event.site, shown.event.fraction) == ("oslo", 0.5)


def test_an_operator_who_stops_the_run_ends_both_rounds() -> None:
    run = after_first_round()

    effects = run.tell(RunAbortRequested("run", "enough"))

    assert of_uploads(effects) == [
        CloseUploads(FIRST, "enough"),
        CloseUploads(SECOND, "enough"),
        DropUploads(FIRST),
        DropUploads(SECOND),
    ]


# --- while the next round is not open yet ------------------------------------------------------


def gathering() -> PlainRun:
    """As after_first_round, but lyon has left, and the second round waits for it."""
    run = PlainRun(LATE)
    run.deliver("basel")
    run.deliver("lyon")
    run.tell(SiteLeft("lyon", "gone"))
    run.deliver("kyoto")
    assert run.core.status("run").phase == "join"
    return run


def test_what_comes_before_the_next_round_opens_is_answered_when_it_does() -> None:
    run = gathering()
    assert run.core.upload_check("oslo", run.update("oslo", 1).header).chunk_count == 1
    assert run.deliver("oslo", 1, value=5.0) == []

    effects = run.tell(SiteJoined("lyon"))
    run.deliver("basel", 2, value=2.0)
    run.deliver("lyon", 2, value=2.0)

    assert AnswerUpload(FIRST, "oslo", True, "") in effects
    assert run.records[1].sites == ("basel", "lyon", "oslo")
    assert run.model_after(2) == 1.0 + 3.0


@pytest.mark.parametrize(
    ("site", "message"),
    [("oslo", "sent a second update in this round"), ("basel", "which is not open")],
)
def test_before_the_next_round_opens_too_each_straggler_has_one_update(
    site: str, message: str
) -> None:
    run = gathering()
    run.deliver("oslo", 1)

    with pytest.raises(PeerError, match=message):
        run.core.upload_check(site, run.update(site, 1).header)
    (answer,) = run.deliver(site, 1)

    assert isinstance(answer, AnswerUpload)
    assert (answer.accepted, message in answer.reason) == (False, True)


@pytest.mark.parametrize(
    "lost",
    [
        SiteSent("oslo", Decline(FIRST, "training_failed", "no room")),
        SiteJoined("oslo"),  # another process
    ],
)
def test_a_straggler_that_gives_up_before_the_next_round_opens_is_invited_to_it(
    lost: Event,
) -> None:
    run = gathering()
    assert run.core.written(lost) == lost
    run.tell(lost)

    run.tell(SiteJoined("lyon"))

    assert run.invited(2) == ("basel", "kyoto", "lyon", "oslo")


def test_a_straggler_that_leaves_before_the_next_round_opens_is_not_waited_for() -> None:
    run = gathering()
    run.tell(SiteLeft("oslo", "gone"))
    run.tell(SiteJoined("lyon"))

    run.tell(DeadlinePassed(SECOND, "join"))

    assert run.core.status("run").sites_waiting == ("basel", "kyoto", "lyon", "quito")


def test_an_update_that_is_held_counts_whatever_becomes_of_its_site() -> None:
    run = gathering()
    run.deliver("oslo", 1)
    run.tell(SiteLeft("oslo", "gone"))
    run.tell(SiteJoined("oslo"))
    run.tell(SiteJoined("lyon"))

    run.deliver("basel", 2)
    run.deliver("kyoto", 2)

    assert run.invited(2) == FAST  # one update of a site in a round
    assert (run.records[1].sites, run.records[1].late) == (("basel", "kyoto", "oslo"), ("oslo",))


def test_a_run_that_ends_before_the_next_round_opens_refuses_what_it_holds() -> None:
    run = gathering()
    run.deliver("oslo", 1)

    effects = run.tell(RunAbortRequested("run", "enough"))

    assert effects[:3] == [
        AnswerUpload(FIRST, "oslo", False, "enough"),
        CloseUploads(FIRST, "enough"),
        DropUploads(FIRST),
    ]


# --- across a restart --------------------------------------------------------------------------


def test_the_memory_of_a_run_holds_its_stragglers() -> None:
    memory = JobMemory(
        False, (), (), None, late=Stragglers(FIRST, b"m" * 32, "ab" * 32, ("oslo", "quito"))
    )

    assert JobMemory.from_bytes(memory.to_bytes()) == memory


@pytest.mark.parametrize("so_far", [0, 1, 2, 3])
def test_a_coordinator_that_starts_again_waits_for_the_same_stragglers(so_far: int) -> None:
    """It stands after the first round and is told again what happened since: `so_far` events."""
    undisturbed = after_first_round()
    second = [("oslo", 1), ("basel", 2), ("lyon", 2)]
    for site, number in second:
        undisturbed.deliver(site, number, value=0.1 * (1 + SITES.index(site)))

    first = after_first_round()
    (standing,) = [e.standing for e in first.effects if isinstance(e, SaveStanding)][1:]
    for site, number in second[:so_far]:
        first.deliver(site, number, value=0.1 * (1 + SITES.index(site)))
    model = {"weight": np.full(4, first.model_after(1), np.float32)}
    submitted = RunSubmitted("run", LATE, LAYOUT, model)
    after = PlainRun.restored(RestoredRun(submitted, first.records[:1], standing), first)
    for site, number in second[:so_far]:
        after.deliver(site, number, value=0.1 * (1 + SITES.index(site)))
    again = after.core.resume()
    for site, number in second[so_far:]:
        after.deliver(site, number, value=0.1 * (1 + SITES.index(site)))

    assert after.records == undisturbed.records
    if so_far < 3:
        left = SLOW if so_far == 0 else SLOW[1:]
        opened = RoundOpened(FIRST, "task", LATE.task, b"", first.plan(1))
        assert [e for e in again if not isinstance(e, PublishModel)] == [
            OpenUploads(FIRST, left),
            *(SendToSite(site, opened) for site in left),
        ]
        published = [e for e in again if isinstance(e, PublishModel)]
        assert [(e.round, e.since) for e in published] == [(FIRST, 1)]
        assert published[0].model_hash == first.plan(1).model_hash


# --- whatever comes when -----------------------------------------------------------------------

ACTIONS = st.one_of(
    st.tuples(st.just("deliver"), st.sampled_from(SITES), st.integers(1, 4)),
    st.tuples(st.just("leave"), st.sampled_from(SITES)),
    st.tuples(st.just("join"), st.sampled_from(SITES)),
    st.tuples(st.just("deadline"), st.integers(1, 4), st.sampled_from(("join", "updates"))),
)


def value_of(site: str, number: int) -> float:
    return float(2 ** SITES.index(site) + number / 8)


def apply(run: PlainRun, action: tuple[Any, ...]) -> list[Effect]:
    match action:
        case ("deliver", site, number):
            if not run.invited(number):
                return []
            weight = 1 + SITES.index(site)
            return run.deliver(site, number, value=value_of(site, number), weight=weight)
        case ("leave", site):
            return run.tell(SiteLeft(site, "gone")) if site in run.core.present else []
        case ("join", site):
            return run.tell(SiteJoined(site))
        case ("deadline", number, phase):
            return run.tell(DeadlinePassed(RoundId("run", number), phase))
    raise AssertionError(action)


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(
    st.lists(ACTIONS, min_size=10, max_size=60),
    st.sampled_from(["refuse", "next"]),
    st.sampled_from([0, 2, 3]),
)
def test_every_accepted_update_counts_once_and_a_digest_follows_from_those_that_count(
    actions: list[tuple[Any, ...]], late: str, quorum: int
) -> None:
    run = PlainRun(spec(rounds=4, late=late, quorum=quorum))
    accepted: list[tuple[str, int]] = []
    for action in actions:
        answers = [e for e in apply(run, action) if isinstance(e, AnswerUpload)]
        accepted += [(e.site, e.round.number) for e in answers if e.accepted]
    finished = [record for record in run.records if record.completed]
    value = 0.0

    counted: list[tuple[str, int]] = []
    for record in finished:
        number = record.round.number
        updates = {s: number - 1 if s in record.late else number for s in record.sites}
        counted += updates.items()
        weights = {site: 1 + SITES.index(site) for site in updates}
        mean = sum(value_of(s, n) * weights[s] for s, n in updates.items()) / sum(weights.values())
        value = float(np.float32(value) + np.float32(mean))
        assert run.model_after(number) == pytest.approx(value, rel=1e-6)
        assert record.total_weight == sum(weights.values())
        assert record.digest == digest_of(updates)
    assert len(set(counted)) == len(counted)
    assert set(counted) <= set(accepted)
    if len(finished) == len(run.records):  # else what was accepted for the last one was lost
        still_open = {number for _, number in set(accepted) - set(counted)}
        assert still_open <= {len(finished), len(finished) + 1}


def digest_of(updates: dict[str, int]) -> str:
    """Of a round that was invited these sites, all of whom delivered, in order."""
    run = PlainRun(spec(min_sites=1, cohort=tuple(updates)), present=tuple(updates))
    for site, number in sorted(updates.items()):
        weight = 1 + SITES.index(site)
        run.deliver(site, 1, value=value_of(site, number), weight=weight)
    return run.records[0].digest


# --- with sites -----------------------------------------------------------------------------------


class SlowSite(Federation):
    """One site's update of the first round takes until another round is open."""

    slow = "oslo"

    def _upload(self, site: str, upload: Any) -> None:
        status = self.coordinator.status("run")
        if site == self.slow and upload.header.round.number == 1 and not status.rounds:
            self._queue.append(lambda: self._upload(site, upload))
        else:
            super()._upload(site, upload)


@pytest.mark.parametrize("feedback", [False, True])
def test_a_site_that_is_slow_once_is_in_every_round_but_one_with_one_update(feedback: bool) -> None:
    federation = SlowSite(SITES)
    settings = spec(
        rounds=4, quorum=4, late="next", codec="int8", error_feedback=feedback, weight_cap=64
    )
    federation.submit("run", settings, small_model())

    status = federation.run("run")

    assert status.state == "completed"
    first, second, third, _ = status.rounds
    assert (first.sites, first.late) == (("basel", "kyoto", "lyon", "quito"), ())
    assert "oslo" in second.sites
    assert second.late == ("oslo",)
    assert "oslo" in third.sites or "oslo" in third.dropped  # invited, and it may be slower
    assert "the coordinator holds the update" in federation.sites["oslo"].notes
    assert not [note for note in federation.sites["oslo"].notes if "refused" in note]
