"""One run, event by event: joins, deadlines, updates, refusals. Sites are hand-made here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from support.federation import counting_bytes, handle_and_go_on, make_roster, signing_key
from support.plain_updates import plain_update
from veilsum.control import (
    Deadlines,
    Decline,
    PlainPlan,
    Progress,
    ProtocolMessage,
    RoundClosed,
    RoundId,
    RoundOpened,
    RunClosed,
    RunEvent,
    RunSpec,
    SiteDropped,
    TaskSettings,
)
from veilsum.coordinator.core import Coordinator
from veilsum.coordinator.effects import (
    Announce,
    AnswerUpload,
    CloseUploads,
    DropUploads,
    Effect,
    GoOn,
    OpenUploads,
    PublishModel,
    SaveRound,
    SaveRun,
    SaveStanding,
    SendToSite,
    SetDeadline,
)
from veilsum.coordinator.events import (
    DeadlinePassed,
    Event,
    RunSubmitted,
    SiteJoined,
    SiteLeft,
    SiteSent,
    UpdateArrived,
)
from veilsum.coordinator.standing import JobMemory, Standing
from veilsum.errors import ConfigError, DecodeError, PeerError
from veilsum.model import ModelLayout

COHORT = ("basel", "kyoto", "lyon")
ROUND = RoundId("run", 1)
MODEL = {"weight": np.zeros(4, np.float32), "seen": np.array([5], np.int64)}
LAYOUT = ModelLayout.from_arrays(MODEL)
SPEC = RunSpec(
    "task",
    rounds=1,
    masked=False,
    min_sites=2,
    weight_cap=100,
    metrics=("auc",),
    cohort=COHORT,
    deadlines=Deadlines(join_s=60.0, inputs_s=600.0),
)


class Bench:
    """A coordinator with one plain run, and updates made by hand."""

    def __init__(self, spec: RunSpec = SPEC, present: tuple[str, ...] = COHORT) -> None:
        self.core = Coordinator(
            make_roster((*COHORT, "oslo")), signing_key("coordinator"), entropy=counting_bytes()
        )
        for site in present:
            self.core.handle(SiteJoined(site), now=0.0)
        self.opened = self.tell(RunSubmitted("run", spec, LAYOUT, MODEL), 1.0)

    def tell(self, event: Event, now: float) -> list[Effect]:
        return handle_and_go_on(self.core, event, now)

    @property
    def plan(self) -> PlainPlan:
        for effect in self.opened:
            match effect:
                case SendToSite(_, RoundOpened(plain=PlainPlan() as plan)):
                    return plan
        raise AssertionError("no round was opened")

    def update(
        self, site: str, value: float = 1.0, weight: int = 10, **header: Any
    ) -> UpdateArrived:
        arrays = [np.full(4, value, np.float32), np.array([2], np.int64)]
        made, chunks = plain_update(
            self.plan, (ROUND, site), LAYOUT, arrays, weight=weight, metrics={"auc": value}
        )
        return UpdateArrived(site, replace(made, **header), chunks)

    def size(self, site: str) -> int:
        return sum(len(memoryview(chunk)) for chunk in self.update(site).chunks)


def test_a_round_opens_as_soon_as_the_whole_cohort_is_there() -> None:
    bench = Bench()

    status = bench.core.status("run")
    waiting = replace(status, state="waiting", current_round=0, phase="", sites_waiting=())
    assert (status.state, status.current_round, status.phase) == ("running", 1, "updates")
    assert status.sites_waiting == COHORT
    assert bench.opened == [
        SaveRun(waiting),
        SaveRun(replace(status, phase="join", sites_waiting=())),
        SaveStanding(Standing(ROUND, JobMemory(False, (), (), None).to_bytes())),
        GoOn("run"),
        PublishModel(ROUND, LAYOUT, MODEL, bench.plan.model_hash, bytes(32)),
        *(
            SendToSite(site, RoundOpened(ROUND, "task", TaskSettings(), b"", bench.plan))
            for site in COHORT
        ),
        OpenUploads(ROUND, COHORT),
        SetDeadline(ROUND, "updates", 600.0),
        Announce(RunEvent("run", "phase", 1, phase="updates", sites_expected=3)),
    ]


def test_while_sites_are_missing_a_round_waits_for_them_to_join() -> None:
    bench = Bench(present=("lyon",))

    joined = bench.tell(SiteJoined("basel"), 2.0)

    assert bench.opened[4:] == [
        SetDeadline(ROUND, "join", 60.0),
        Announce(RunEvent("run", "phase", 1, phase="join", sites_in=1, sites_expected=3)),
    ]
    event = RunEvent(
        "run", "site", 1, phase="join", site="basel", detail="joined", sites_in=2, sites_expected=3
    )
    assert joined == [Announce(event)]
    assert bench.core.status("run").sites_waiting == ("kyoto",)


def test_at_the_join_deadline_a_round_opens_with_those_who_are_there() -> None:
    bench = Bench(present=("lyon", "basel"))

    effects = bench.tell(DeadlinePassed(ROUND, "join"), 61.0)

    assert OpenUploads(ROUND, ("basel", "lyon")) in effects
    assert bench.core.status("run").sites_waiting == ("basel", "lyon")


def test_a_site_outside_the_cohort_or_the_roster_does_not_open_a_round() -> None:
    bench = Bench(present=("lyon", "basel"))

    assert bench.tell(SiteJoined("oslo"), 2.0) == []
    assert bench.tell(SiteJoined("paris"), 3.0) == []


def test_a_round_ends_with_the_weighted_mean_as_soon_as_all_updates_are_there() -> None:
    bench = Bench()
    bench.tell(bench.update("basel", 1.0, weight=10), 5.0)
    bench.tell(bench.update("kyoto", 2.0, weight=10), 6.0)

    effects = bench.tell(bench.update("lyon", 4.0, weight=20), 8.0)

    status = bench.core.status("run")
    (record,) = status.rounds
    model = {"weight": np.full(4, 2.75, np.float32), "seen": np.array([7], np.int64)}
    saved = next(effect for effect in effects if isinstance(effect, SaveRound))
    assert saved.model is not None
    for name, array in model.items():
        np.testing.assert_array_equal(saved.model[name], array)
    assert (record.sites, record.dropped, record.total_weight) == (COHORT, {}, 40)
    assert record.metrics == {"auc": 2.75}
    assert record.bytes_in == dict.fromkeys(COHORT, bench.size("lyon"))
    assert record.seconds == {"join": 0.0, "updates": 7.0}
    size = bench.size("lyon")
    delivered = RunEvent(
        "run",
        "site",
        1,
        phase="updates",
        site="lyon",
        detail="delivered",
        sites_in=3,
        sites_expected=3,
        bytes_in=size,
        seconds=7.0,
    )
    ended = RunEvent(
        "run",
        "round",
        1,
        detail="completed",
        sites_in=3,
        sites_expected=3,
        bytes_in=3 * size,
        seconds=7.0,
        digest=record.digest,
        metrics={"auc": 2.75},
    )
    assert [effect for effect in effects if not isinstance(effect, SaveRound)] == [
        AnswerUpload(ROUND, "lyon", True, ""),
        Announce(delivered),
        CloseUploads(ROUND, "the round is complete"),
        DropUploads(ROUND),
        *(SendToSite(site, RoundClosed(ROUND, True, "", record.digest)) for site in COHORT),
        Announce(ended),
        SaveRun(status),
        *(SendToSite(site, RunClosed("run", True, "")) for site in COHORT),
        Announce(RunEvent("run", "run", 1, detail="completed")),
    ]


def test_the_server_learning_rate_scales_the_step() -> None:
    bench = Bench(replace(SPEC, server_learning_rate=0.5))
    for number, site in enumerate(COHORT):
        effects = bench.tell(bench.update(site, 2.0), 5.0 + number)

    saved = next(effect for effect in effects if isinstance(effect, SaveRound))
    assert saved.model is not None
    np.testing.assert_array_equal(saved.model["weight"], np.ones(4, np.float32))


def test_at_the_deadline_the_silent_sites_are_dropped_and_told() -> None:
    bench = Bench()
    bench.tell(bench.update("basel"), 5.0)
    bench.tell(bench.update("lyon"), 6.0)

    effects = bench.tell(DeadlinePassed(ROUND, "updates"), 601.0)

    reason = "sent no update before the deadline"
    event = RunEvent(
        "run",
        "site",
        1,
        phase="updates",
        site="kyoto",
        detail=f"dropped: {reason}",
        sites_in=2,
        sites_expected=3,
    )
    assert effects[:2] == [SendToSite("kyoto", SiteDropped(ROUND, reason)), Announce(event)]
    (record,) = bench.core.status("run").rounds
    assert (record.sites, record.dropped) == (("basel", "lyon"), {"kyoto": reason})


def test_a_deadline_of_another_phase_or_round_is_stale() -> None:
    bench = Bench()

    for stale in (
        DeadlinePassed(ROUND, "join"),
        DeadlinePassed(RoundId("run", 2), "updates"),
        DeadlinePassed(RoundId("run", 1, 1), "updates"),
        DeadlinePassed(RoundId("other", 1), "updates"),
    ):
        assert bench.tell(stale, 700.0) == []
    assert bench.core.status("run").state == "running"


def test_a_second_update_of_a_site_is_refused_and_changes_nothing() -> None:
    bench = Bench()
    first = bench.update("lyon", 1.0)
    bench.tell(first, 5.0)
    before = bench.core.status("run")

    effects = bench.tell(bench.update("lyon", 9.0), 6.0)

    reason = "site 'lyon' sent a second update in this round"
    assert effects == [AnswerUpload(ROUND, "lyon", False, reason)]
    assert bench.core.status("run") == before
    with pytest.raises(PeerError, match="sent a second update in this round"):
        bench.core.upload_check("lyon", first.header)


def test_a_late_update_is_refused_with_the_reason() -> None:
    bench = Bench()
    late = bench.update("kyoto")
    bench.tell(bench.update("basel"), 5.0)
    bench.tell(bench.update("lyon"), 6.0)
    bench.tell(DeadlinePassed(ROUND, "updates"), 601.0)

    effects = bench.tell(late, 602.0)

    reason = "site 'kyoto' sent an update for round 1 of run 'run', which is not open"
    assert effects == [AnswerUpload(ROUND, "kyoto", False, reason)]
    with pytest.raises(PeerError, match="which is not open"):
        bench.core.upload_check("kyoto", late.header)


def test_an_update_of_an_unknown_run_is_refused() -> None:
    bench = Bench()
    arrived = bench.update("lyon")
    strange = RoundId("walk", 1)
    header = replace(arrived.header, round=strange)

    effects = bench.tell(UpdateArrived("lyon", header, arrived.chunks), 5.0)

    assert effects == [AnswerUpload(strange, "lyon", False, "the run is unknown here")]
    with pytest.raises(PeerError, match="run 'walk', unknown here"):
        bench.core.upload_check("lyon", header)


@pytest.mark.parametrize(
    ("site", "header", "message"),
    [
        ("oslo", {}, "site 'oslo' is not in this round's cohort"),
        ("lyon", {"weight": 0}, "sent weight 0, expected 1 to 100"),
        ("lyon", {"weight": 101}, "sent weight 101, expected 1 to 100"),
        ("lyon", {"update_id": 7}, "update id of another round or site"),
        ("lyon", {"chunk_count": 3}, "announced 3 chunks, an update has 2"),
        ("lyon", {"metrics": {"mae": 1.0}}, "sent metric 'mae', which the round does not ask for"),
        ("lyon", {"metrics": {"auc": float("nan")}}, "metric 'auc' that is not a number within"),
        ("lyon", {"metrics": {"auc": -1e30}}, "metric 'auc' that is not a number within"),
        ("lyon", {"masked_header": b"x"}, "sent a masked update in a plain round"),
        ("lyon", {"round": RoundId("run", 1, 1)}, "which is not open"),
    ],
)
def test_an_upload_that_breaks_the_rules_is_refused_before_its_first_chunk(
    site: str, header: dict[str, Any], message: str
) -> None:
    bench = Bench()

    with pytest.raises(PeerError, match=message):
        bench.core.upload_check(site, bench.update(site, **header).header)


def test_an_update_that_is_not_finite_costs_only_its_sender_the_round() -> None:
    bench = Bench()
    arrived = bench.update("lyon")
    chunk = bytearray(arrived.chunks[0])
    chunk[64:68] = np.float32(np.inf).tobytes()

    effects = bench.tell(UpdateArrived("lyon", arrived.header, [chunk, arrived.chunks[1]]), 5.0)

    (answer,) = effects
    assert isinstance(answer, AnswerUpload)
    assert (answer.site, answer.accepted) == ("lyon", False)
    assert bench.core.status("run").sites_waiting == COHORT


def test_a_site_that_declines_is_not_waited_for() -> None:
    bench = Bench()
    bench.tell(bench.update("basel"), 5.0)
    bench.tell(bench.update("kyoto"), 6.0)

    bench.tell(SiteSent("lyon", Decline(ROUND, "policy", "not today")), 7.0)

    (record,) = bench.core.status("run").rounds
    assert record.dropped == {"lyon": "declined (policy): not today"}
    assert record.completed


def test_a_site_whose_update_is_in_the_mean_may_leave() -> None:
    bench = Bench()
    bench.tell(bench.update("lyon"), 5.0)

    assert bench.tell(SiteLeft("lyon", "bye"), 6.0) == []

    bench.tell(bench.update("basel"), 7.0)
    bench.tell(bench.update("kyoto"), 8.0)
    (record,) = bench.core.status("run").rounds
    assert (record.sites, record.dropped) == (COHORT, {})


def test_a_site_that_begins_anew_before_its_update_is_in_is_invited_again() -> None:
    bench = Bench()

    effects = bench.tell(SiteJoined("lyon"), 5.0)

    detail = "is back, and invited again"
    event = RunEvent(
        "run", "site", 1, phase="updates", site="lyon", detail=detail, sites_expected=3
    )
    assert effects == [
        Announce(event),
        OpenUploads(ROUND, ("lyon",)),
        SendToSite("lyon", RoundOpened(ROUND, "task", TaskSettings(), b"", bench.plan)),
    ]
    assert bench.core.status("run").sites_waiting == COHORT


def test_a_protocol_message_in_a_plain_round_costs_its_sender_the_round() -> None:
    bench = Bench()

    effects = bench.tell(SiteSent("lyon", ProtocolMessage(ROUND, b"x")), 5.0)

    reason = "sent a protocol message in a plain round"
    assert effects[0] == SendToSite("lyon", SiteDropped(ROUND, reason))


@pytest.mark.parametrize(
    ("site", "message"),
    [
        ("oslo", Progress(ROUND, 0.5)),
        ("lyon", Progress(RoundId("run", 2), 0.5)),
        ("lyon", Progress(RoundId("walk", 1), 0.5)),
        ("lyon", Progress(ROUND, 1.5)),
        ("lyon", Progress(ROUND, float("nan"))),
        ("oslo", Decline(ROUND, "policy", "no")),
        ("lyon", Decline(RoundId("run", 2), "policy", "no")),
    ],
)
def test_a_message_that_concerns_no_open_round_changes_nothing(
    site: str, message: Progress | Decline
) -> None:
    bench = Bench()
    before = bench.core.status("run")

    assert bench.tell(SiteSent(site, message), 5.0) == []
    assert bench.core.status("run") == before


def test_progress_is_passed_on_to_those_who_watch() -> None:
    bench = Bench()

    effects = bench.tell(SiteSent("lyon", Progress(ROUND, 0.25)), 5.0)

    event = RunEvent(
        "run", "progress", 1, phase="updates", site="lyon", sites_expected=3, fraction=0.25
    )
    assert effects == [Announce(event)]


def test_a_step_that_leaves_the_dtype_aborts_the_run_and_keeps_the_model() -> None:
    bench = Bench(replace(SPEC, server_learning_rate=100.0))
    for number, site in enumerate(COHORT):
        effects = bench.tell(bench.update(site, 3e38, metrics={}), 5.0 + number)

    status = bench.core.status("run")
    assert status.state == "aborted"
    assert "new values of tensor 'weight' do not fit f32" in status.reason
    assert [effect.model for effect in effects if isinstance(effect, SaveRound)] == [None]


def test_a_coordinator_with_another_key_than_the_rosters_does_not_start() -> None:
    with pytest.raises(ConfigError, match="not the one the roster lists for the coordinator"):
        Coordinator(make_roster(COHORT), signing_key("lyon"), entropy=counting_bytes())


# --- receiving chunk by chunk -------------------------------------------------------


def test_a_receiver_takes_the_chunks_in_order_and_repeats_change_nothing() -> None:
    bench = Bench()
    arrived = bench.update("lyon")
    receiver = bench.core.upload_check("lyon", arrived.header)

    first, second = arrived.chunks
    receiver.add(first)
    receiver.add(first)
    assert (receiver.next_index, receiver.chunk_count) == (1, 2)
    receiver.add(second)
    receiver.finish()

    assert receiver.next_index == 2
    assert receiver.max_chunk_bytes == max(len(memoryview(chunk)) for chunk in arrived.chunks)


def test_a_receiver_refuses_gaps_other_bytes_and_missing_chunks() -> None:
    bench = Bench()
    arrived = bench.update("lyon", 1.0)
    first, second = arrived.chunks
    other = bench.update("lyon", 2.0).chunks[0]
    receiver = bench.core.upload_check("lyon", arrived.header)

    with pytest.raises(PeerError, match="sent chunk 1 where chunk 0 is next"):
        receiver.add(second)
    receiver.add(first)
    with pytest.raises(PeerError, match="sent chunk 0 again with other bytes"):
        receiver.add(other)
    with pytest.raises(PeerError, match="sent 1 of 2 chunks"):
        receiver.finish()
    assert receiver.next_index == 1


def test_a_receiver_refuses_chunks_of_another_site_and_damaged_ones() -> None:
    bench = Bench()
    arrived = bench.update("lyon")
    receiver = bench.core.upload_check("lyon", arrived.header)
    damaged = bytearray(arrived.chunks[0])
    damaged[-1] ^= 1
    misplaced = bytearray(arrived.chunks[0])
    misplaced[12] = 9  # group

    for chunk in (bench.update("kyoto").chunks[0], damaged, misplaced, b"", b"VLC1" * 9):
        with pytest.raises(DecodeError):
            receiver.add(chunk)
    assert receiver.next_index == 0
