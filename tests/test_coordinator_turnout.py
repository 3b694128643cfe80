"""When a plain round closes, and what is too little for a result."""

from __future__ import annotations

import itertools

import pytest

from support.plain_run import SITES, PlainRun, sent, spec
from veilsum.control import Decline, ProtocolMessage, RoundId, RoundOpened, SiteDropped
from veilsum.coordinator.effects import Announce, AnswerUpload, OpenUploads, SendToSite
from veilsum.coordinator.events import DeadlinePassed, SiteJoined, SiteLeft, SiteSent
from veilsum.coordinator.standing import JobMemory

ROUND = RoundId("run", 1)
TOO_LATE = "sent no update before the round had its quorum of 3"


def test_a_round_closes_with_its_quorum_and_tells_those_it_does_not_wait_for() -> None:
    run = PlainRun(spec(quorum=3))
    run.deliver("basel", value=1.0)
    run.deliver("oslo", value=2.0)

    effects = run.deliver("lyon", value=6.0)

    (record,) = run.records
    assert (record.completed, record.sites) == (True, ("basel", "lyon", "oslo"))
    assert record.dropped == {"kyoto": TOO_LATE, "quito": TOO_LATE}
    assert run.model_after(1) == 3.0
    assert sent(effects, SiteDropped) == [
        ("kyoto", SiteDropped(ROUND, TOO_LATE)),
        ("quito", SiteDropped(ROUND, TOO_LATE)),
    ]
    # The site's own call is answered first: it waits.
    assert effects[0] == AnswerUpload(ROUND, "lyon", True, "")


def test_without_a_quorum_a_round_waits_for_everybody() -> None:
    run = PlainRun(spec(quorum=0))

    for site in SITES[:-1]:
        run.deliver(site)

    assert run.core.status("run").sites_waiting == SITES[-1:]


def test_a_quorum_that_cannot_be_met_any_more_is_not_waited_for() -> None:
    run = PlainRun(spec(quorum=4))
    for site in SITES[:3]:
        run.deliver(site)
    run.tell(SiteLeft("oslo", "gone"))

    run.tell(SiteLeft("quito", "gone"))

    assert run.records[0].sites == SITES[:3]


def test_at_the_deadline_a_round_without_its_quorum_goes_on_with_min_sites() -> None:
    run = PlainRun(spec(quorum=4))
    run.deliver("basel")
    run.deliver("lyon")

    run.tell(DeadlinePassed(ROUND, "updates"))

    assert run.records[0].sites == ("basel", "lyon")
    assert set(run.records[0].dropped.values()) == {"sent no update before the deadline"}


def test_a_round_whose_updates_weigh_too_little_has_no_result() -> None:
    run = PlainRun(spec(min_weight=51))

    for site in SITES:
        run.deliver(site, weight=10)

    (record,) = run.records
    reason = "5 updates weigh 50 together, min_weight is 51"
    assert (record.completed, record.reason, record.digest) == (False, reason, "")
    status = run.core.status("run")
    assert (status.state, status.reason) == ("aborted", f"round 1: {reason}")


def test_a_round_whose_updates_weigh_just_enough_has_one() -> None:
    run = PlainRun(spec(min_weight=50))

    for site in SITES:
        run.deliver(site, weight=10)

    assert (run.records[0].completed, run.records[0].total_weight) == (True, 50)


def test_a_quorum_that_weighs_too_little_waits_for_more() -> None:
    run = PlainRun(spec(quorum=2, min_weight=45))
    run.deliver("basel", weight=20)
    run.deliver("kyoto", weight=20)
    assert run.core.status("run").phase == "updates"

    run.deliver("lyon", weight=5)

    assert (run.records[0].sites, run.records[0].total_weight) == (("basel", "kyoto", "lyon"), 45)


def test_too_few_sites_are_the_reason_before_too_little_weight() -> None:
    run = PlainRun(spec(min_weight=50))
    run.deliver("basel")

    run.tell(DeadlinePassed(ROUND, "updates"))

    assert run.records[0].reason == "1 of 5 sites sent an update, 2 are needed"


@pytest.mark.parametrize("first", list(itertools.combinations(SITES, 3)))
def test_the_digest_follows_from_the_committed_updates_whatever_came_when(
    first: tuple[str, ...],
) -> None:
    """A round that closed at its quorum, and one in which the others were lost."""
    values = dict(zip(SITES, (0.1, 0.25, 0.7, -3.0, 1e-9), strict=True))
    digests = set()
    for order in itertools.permutations(first):
        run = PlainRun(spec(quorum=3))
        for site in order:
            run.deliver(site, value=values[site], weight=1 + SITES.index(site))
        digests.add(run.records[0].digest)
    lost = PlainRun(spec())
    for site in set(SITES) - set(first):
        lost.tell(SiteLeft(site, "gone"))
    for site in first:
        lost.deliver(site, value=values[site], weight=1 + SITES.index(site))

    assert digests == {lost.records[0].digest}


def test_those_who_watch_are_told_whom_a_round_does_not_wait_for() -> None:
    run = PlainRun(spec(quorum=4))
    for site in SITES[:3]:
        run.deliver(site)

    effects = run.deliver("oslo")

    told = [
        e.event.site for e in effects if isinstance(e, Announce) and "dropped" in e.event.detail
    ]
    assert told == ["quito"]
    assert not any(isinstance(e, SendToSite) and e.site == "lyon" for e in effects[:2])


# --- sites that come back -----------------------------------------------------------------


@pytest.mark.parametrize(
    "lost",
    [
        SiteLeft("lyon", "gone"),
        SiteSent("lyon", Decline(ROUND, "training_failed", "no room")),
        SiteSent("lyon", ProtocolMessage(ROUND, b"x")),
    ],
)
def test_a_site_that_a_round_lost_and_that_comes_back_takes_part_in_it_again(lost: object) -> None:
    run = PlainRun()
    run.deliver("basel")
    run.tell(lost)  # type: ignore[arg-type]
    assert "lyon" not in run.core.status("run").sites_waiting

    effects = run.tell(SiteJoined("lyon"))

    opened = RoundOpened(ROUND, "task", spec().task, b"", run.plan())
    assert [e for e in effects if not isinstance(e, Announce)] == [
        OpenUploads(ROUND, ("lyon",)),
        SendToSite("lyon", opened),
    ]
    for site in ("kyoto", "lyon", "oslo", "quito"):
        run.deliver(site)
    assert (run.records[0].sites, run.records[0].dropped) == (SITES, {})


def test_a_site_whose_update_is_in_is_not_invited_again() -> None:
    run = PlainRun()
    run.deliver("lyon")
    run.tell(SiteLeft("lyon", "gone"))

    assert run.tell(SiteJoined("lyon")) == []


def test_a_site_that_comes_back_when_its_round_has_closed_is_in_the_next_one() -> None:
    run = PlainRun(spec(rounds=2))
    run.tell(SiteLeft("lyon", "gone"))
    for site in set(SITES) - {"lyon"}:
        run.deliver(site)

    run.tell(SiteJoined("lyon"))

    assert run.invited(1) == SITES
    assert run.invited(2) == SITES


def test_a_site_that_was_not_there_when_the_round_opened_is_in_the_next_one() -> None:
    run = PlainRun(present=SITES[:-1])
    run.tell(DeadlinePassed(ROUND, "join"))

    assert run.tell(SiteJoined("quito")) == []


# --- drawn sites ----------------------------------------------------------------------------


def test_of_the_sites_that_are_there_as_many_are_invited_as_the_run_selects() -> None:
    run = PlainRun(spec(select=3, rounds=2), present=SITES)

    first = run.invited(1)
    for site in first:
        run.deliver(site)
    second = run.invited(2)

    assert (len(first), len(second)) == (3, 3)
    assert set(first) | set(second) <= set(SITES)
    assert run.records[0].sites == first
    assert OpenUploads(ROUND, first) in run.effects


def test_a_run_that_selects_draws_once_a_round_and_one_that_does_not_draws_nothing() -> None:
    asked: list[int] = []

    def draw(size: int) -> bytes:
        asked.append(size)
        return bytes(size)

    selecting = PlainRun(spec(select=3, rounds=2), draw=draw)
    assert (selecting.invited(1), asked) == (SITES[:3], [1])  # one of ten sets of three

    for site in SITES[:3]:
        selecting.deliver(site)
    assert (selecting.invited(2), asked) == (SITES[:3], [1, 1])

    asked.clear()
    PlainRun(draw=draw)
    assert asked == []


def test_where_fewer_are_there_than_selected_all_of_them_are_invited() -> None:
    run = PlainRun(spec(select=4), present=SITES[:3])

    run.tell(DeadlinePassed(ROUND, "join"))

    assert run.invited() == SITES[:3]


def test_a_round_invites_more_than_it_selects_and_closes_with_as_many() -> None:
    run = PlainRun(spec(select=3, over_select=0.5))
    assert len(run.invited()) == 5

    for site in ("quito", "basel", "lyon"):
        run.deliver(site)

    assert run.records[0].sites == ("basel", "lyon", "quito")


def test_a_source_of_randomness_that_is_broken_ends_the_run_with_the_reason() -> None:
    run = PlainRun(spec(select=3), draw=lambda size: b"\xff" * size)

    status = run.core.status("run")
    assert status.state == "aborted"
    assert "round 1: none of 128 numbers of 4 random bits was below 10" in status.reason


def test_whom_the_failed_attempt_had_invited_is_remembered_across_a_restart() -> None:
    memory = JobMemory(True, ("quito",), ("oslo",), None, ("basel", "lyon"))

    assert JobMemory.from_bytes(memory.to_bytes()) == memory
