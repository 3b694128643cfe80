"""How often a server of Flower asks for answers that have not come, and how soon it has them."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="flwr is not installed (extra `flower`)")

from flwr.app import Message, RecordDict

from support.consortium import make_consortium
from support.flower_grid import LocalGrid, flower_task
from support.flower_masked import SITES, SPEC, masked_federation, says, start
from support.flower_round import honest
from veilsum.integrations.flower.one_by_one import OneByOneGrid
from veilsum.integrations.flower.polling import Polling

TEN_MINUTES = 600.0


class ExactClock:
    """Waiting takes as long as it should, and no time.

    Attributes:
        waits: seconds of each.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.waits: list[float] = []

    def now(self) -> float:
        return self.seconds

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.seconds += seconds


@pytest.fixture
def clock() -> ExactClock:
    return ExactClock()


def test_what_comes_is_noticed_soon_in_proportion_to_how_long_it_took(clock):
    polling = Polling(clock)

    while clock.seconds < TEN_MINUTES:
        before = clock.seconds
        polling.pause()
        assert clock.waits[-1] <= min(max(0.05, before / 4), 3.0)

    assert len(clock.waits) < 250


def test_after_something_has_come_the_pauses_are_short_again(clock):
    polling = Polling(clock)
    while clock.seconds < TEN_MINUTES:
        polling.pause()

    polling.happened()
    polling.pause()

    assert clock.waits[-2:] == [3.0, 0.05]


@pytest.mark.parametrize("left", [2.0, 0.01, 0.0, -1.0])
def test_no_pause_goes_beyond_a_deadline(clock, left):
    polling = Polling(clock)
    clock.seconds = TEN_MINUTES

    polling.pause(until=TEN_MINUTES + left)

    assert clock.waits == [pytest.approx(max(0.0, left))]


def test_a_masked_phase_waits_for_a_silent_site_with_few_questions_and_ends_on_time(
    tmp_path: Path, clock
):
    with flower_task(), masked_federation(make_consortium(tmp_path / "c", SITES)) as federation:

        def silent(site, number, message):
            return None if site == SITES[1] and "upload" in says(message) else message

        federation.to_server = silent
        grid = federation.grid()

        start(federation.strategy(clock=clock), grid)

    assert SPEC.deadlines.inputs_s == TEN_MINUTES
    assert clock.seconds == pytest.approx(TEN_MINUTES)
    assert len(grid.pulls) < 350


@pytest.mark.parametrize("arrives", [True, False])
@pytest.mark.parametrize("place", [0, 2, 4])
def test_a_node_that_sends_for_minutes_costs_no_other_site_the_round(
    tmp_path, clock, place, arrives
):
    """Flower's pull waits for what a node is still sending, and nobody is heard meanwhile."""

    class LaterGrid(LocalGrid):
        """An answer is not there when it is asked for first."""

        def pull_messages(self, message_ids):
            names = tuple(message_ids)
            if names not in self.pulls:
                self.pulls.append(names)
                return []
            return super().pull_messages(names)

    def sends_slowly(site, number, message):
        if site == SITES[place] and number > 0:
            clock.seconds += 6 * SPEC.deadlines.keys_s
            if not arrives:
                raise ValueError("its session is over")
        return message

    with flower_task(), masked_federation(make_consortium(tmp_path / "c", SITES)) as federation:
        federation.to_server = sends_slowly
        strategy = federation.strategy(clock=clock)

        start(strategy, LaterGrid(federation.grid().nodes))

    (record,) = strategy.rounds
    assert record.completed
    assert {*SITES} - {*record.sites} <= {SITES[place]}
    assert not arrives or record.sites == SITES


def test_a_plain_round_waits_for_a_silent_node_with_few_questions_and_ends_on_time(
    flower_task, clock
):
    grid = LocalGrid({1: honest, 2: lambda message: None})
    messages = [Message(RecordDict(), dst_node_id=node, message_type="train") for node in (1, 2)]

    replies = OneByOneGrid(grid, clock).send_and_receive(messages, timeout=TEN_MINUTES)

    assert len(list(replies)) == 1
    assert clock.seconds == pytest.approx(TEN_MINUTES)
    assert len(grid.pulls) < 250
