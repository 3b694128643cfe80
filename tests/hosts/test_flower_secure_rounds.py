"""Masked rounds over Flower's messages: what they compute, and with whom lost where."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("flwr", reason="flwr is not installed (extra `flower`)")


from flwr.app import ConfigRecord
from flwr.serverapp.exception import AggregationError

from support.consortium import make_consortium
from support.flower_grid import error_reply, flower_task, record_of
from support.flower_masked import (
    SITES,
    STEP,
    masked_federation,
    model,
    plain_digests,
    reference,
    says,
    start,
    weight_of,
)
from veilsum.control import RunSpec
from veilsum.errors import ConfigError
from veilsum.integrations.flower.arrays import read_arrays

STAGES = {
    "keys": "key-advert",
    "shares": "share-deal",
    "inputs": "upload",
    "votes": "survivor-vote",
    "unmask": "unmask-shares",
}
"""Stage -> what it collects."""


@pytest.fixture
def federation(tmp_path: Path):
    with flower_task(), masked_federation(make_consortium(tmp_path / "c", SITES)) as found:
        yield found


def assert_is_mean(arrays, rounds, seeds):
    weight = min(sum(map(weight_of, sites)) for sites in rounds)
    bound = sum(len(sites) for sites in rounds) * STEP / weight + 1e-6
    expected = reference(rounds, seeds)
    found = read_arrays(arrays)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=0, atol=bound)


def test_three_rounds_of_five_sites_are_the_weighted_mean_and_the_plain_ring_sum(federation):
    strategy = federation.strategy()

    arrays = start(strategy, federation.grid(), rounds=3)

    assert_is_mean(arrays, [SITES] * 3, [3, 4, 5])
    assert [record.sites for record in strategy.rounds] == [SITES] * 3
    digests = [record.digest for record in strategy.rounds]
    assert digests == plain_digests(strategy, federation.consortium.roster, [3, 4, 5])
    assert len(strategy.receipts) == 3


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("how", ["vanishes", "errs"])
def test_a_site_that_is_lost_at_any_stage_costs_itself_the_round(federation, stage, how):
    gone = set()

    def lost(site, number, message):
        if site != SITES[1] or (STAGES[stage] not in says(message) and site not in gone):
            return message
        gone.add(site)
        return None if how == "vanishes" else error_reply(message, "the process died")

    federation.to_server = lost
    strategy = federation.strategy()

    arrays = start(strategy, federation.grid())

    (record,) = strategy.rounds
    counted = stage in ("votes", "unmask")
    sites = SITES if counted else tuple(site for site in SITES if site != SITES[1])
    assert record.sites == sites
    assert_is_mean(arrays, [sites], [3])
    assert [record.digest] == plain_digests(strategy, federation.consortium.roster, [3])


@pytest.mark.parametrize("stage", STAGES)
def test_too_few_sites_at_any_stage_end_the_run_with_the_reason(federation, stage):
    def lost(site, number, message):
        return None if site in SITES[:3] and STAGES[stage] in says(message) else message

    federation.to_server = lost
    strategy = federation.strategy()

    with pytest.raises(AggregationError, match="the masked run was aborted"):
        start(strategy, federation.grid())

    assert not any(record.completed for record in strategy.rounds)


def test_a_round_that_failed_is_held_again_with_newly_trained_updates(federation):
    gone = set()

    def lost_once(site, number, message):
        if site not in SITES[:2] or "upload" not in says(message) or site in gone:
            return message
        gone.add(site)
        return None

    federation.to_server = lost_once
    strategy = federation.strategy()

    start(strategy, federation.grid())

    assert [record.completed for record in strategy.rounds] == [False, True]
    assert [record.round.attempt for record in strategy.rounds] == [0, 1]


def test_a_site_that_answers_late_is_back_in_the_next_round(federation):
    held = []

    def late(site, number, message):
        if site == SITES[1] and "upload" in says(message) and not held:
            held.append(message)
            return None
        return message

    federation.to_server = late
    grid = federation.grid()
    pulled = grid.pull_messages

    def pull(names):
        """Once the round has gone on, what was held comes as the answer."""
        if held and strategy.rounds and grid._sent[names[0]].metadata.dst_node_id == 913:
            return [held.pop()]
        return pulled(names)

    grid.pull_messages = pull
    strategy = federation.strategy()

    start(strategy, grid, rounds=3)

    without = tuple(site for site in SITES if site != SITES[1])
    assert strategy.rounds[0].sites == without
    assert strategy.rounds[2].sites == SITES


def test_the_server_knows_a_site_by_its_signature_only(federation):
    strategy = federation.strategy()

    start(strategy, federation.grid())

    said = [str(message.metadata) for sent in federation.taken.values() for message in sent]
    assert not [line for line in said for site in SITES if site in line]


def test_a_folder_that_cannot_hold_receipts_is_known_before_anything_is_sent(federation, tmp_path):
    file = tmp_path / "receipts"
    file.write_text("mine")
    strategy = federation.strategy(receipts=file)

    with pytest.raises(ConfigError, match="receipts cannot be kept in"):
        start(strategy, federation.grid())

    assert not federation.taken
    assert file.read_text() == "mine"


def test_a_folder_that_takes_no_file_is_known_before_anything_is_sent(federation):
    strategy = federation.strategy(receipts="/proc")  # is there, and takes none even from root

    with pytest.raises(ConfigError, match="receipts cannot be kept in /proc"):
        start(strategy, federation.grid())

    assert not federation.taken


@pytest.mark.parametrize("becomes_a_file", [False, True])
def test_a_folder_that_is_lost_during_a_run_does_not_cost_its_result(
    federation, tmp_path, caplog, becomes_a_file
):
    folder = tmp_path / "receipts"

    def loses_it(site, number, message):
        if "survivor-vote" in says(message) and folder.is_dir():
            folder.rmdir()
            if becomes_a_file:
                folder.write_text("")
        return message

    federation.to_server = loses_it
    strategy = federation.strategy(receipts=folder)

    arrays = start(strategy, federation.grid())

    assert_is_mean(arrays, [SITES], [3])
    assert ("cannot be kept in" in caplog.text) == becomes_a_file
    assert folder.is_file() or list(folder.iterdir())


def test_nothing_but_masked_rounds_is_carried_out(federation):
    with pytest.raises(ConfigError, match="must be masked"):
        federation.strategy(RunSpec("shift", masked=False))
    strategy = federation.strategy()
    with pytest.raises(ConfigError, match="signed settings only"):
        strategy.start(federation.grid(), record_of(model()), train_config=ConfigRecord({"lr": 1}))
    with pytest.raises(ConfigError, match="has no single steps"):
        strategy.configure_train(1, record_of(model()), ConfigRecord(), federation.grid())
