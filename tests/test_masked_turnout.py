"""Masked rounds that close at a quorum, whose sum weighs too little, or whose sites are drawn."""

from __future__ import annotations

from typing import Any

import pytest

from support.federation import (
    Fault,
    Federation,
    ShiftTrainer,
    small_model,
)
from support.unmasked import sum_without_masks
from veilsum.control import (
    Deadlines,
    RoundId,
    RoundOpened,
    RunSpec,
    SiteDropped,
    TaskSettings,
)
from veilsum.coordinator.effects import PublishSum, SaveReceipt, SendToSite
from veilsum.secagg.policy import LocalPolicy
from veilsum.site.trainer import Arrays, Report, TrainingResult

SITES = ("basel", "kyoto", "lyon", "oslo", "quito", "turin")
DEADLINES = Deadlines(
    join_s=60.0, keys_s=10.0, shares_s=11.0, inputs_s=1000.0, votes_s=12.0, unmask_s=13.0
)
TOO_LATE = "sent no update before the round had its quorum of 5"


def spec(**settings: Any) -> RunSpec:
    chosen = {"rounds": 1, "clip": 0.5, "weight_cap": 64}
    return RunSpec("task", deadlines=DEADLINES, **chosen | settings)


def started(federation: Federation, settings: RunSpec) -> Federation:
    federation.submit("run", settings, small_model())
    return federation


def invited(federation: Federation, number: int, attempt: int = 0) -> tuple[str, ...]:
    return tuple(
        effect.site
        for effect in federation.effects
        if isinstance(effect, SendToSite)
        and isinstance(effect.message, RoundOpened)
        and effect.message.round == RoundId("run", number, attempt)
    )


# --- the quorum ----------------------------------------------------------------------------


@pytest.mark.parametrize("silent", [("turin",), ("kyoto",), ()])
def test_a_masked_round_closes_with_its_quorum_and_sums_who_was_in_time(
    silent: tuple[str, ...],
) -> None:
    faults = {site: Fault(1, "inputs", silent=True) for site in silent}
    federation = started(Federation(SITES, faults=faults), spec(quorum=5))

    record = federation.run("run").rounds[0]

    assert federation.clock < 100.0 + DEADLINES.inputs_s  # nobody waited for the deadline
    assert record.completed
    assert len(record.sites) == 5
    assert record.dropped == dict.fromkeys(set(SITES) - set(record.sites), TOO_LATE)
    assert record.digest == sum_without_masks(spec(), SITES, record.sites, {}).digest
    told = {
        effect.site
        for effect in federation.effects
        if isinstance(effect, SendToSite)
        and effect.message == SiteDropped(RoundId("run", 1), TOO_LATE)
    }
    assert told == set(record.dropped)


def test_a_site_that_was_too_slow_is_in_the_next_round() -> None:
    faults = {"turin": Fault(1, "inputs", silent=True)}
    federation = started(Federation(SITES, faults=faults), spec(quorum=5, rounds=2))

    federation.run("run")

    assert invited(federation, 2) == SITES


# --- the weight ------------------------------------------------------------------------------


def test_a_sum_that_weighs_too_little_is_neither_published_nor_a_step() -> None:
    federation = started(Federation(SITES), spec(min_weight=61, max_attempts=2))

    status = federation.run("run")

    reason = "6 updates weigh 60 together, min_weight is 61"
    assert [(r.completed, r.reason, r.digest, r.sites) for r in status.rounds] == [
        (False, reason, "", ()),
        (False, reason, "", ()),
    ]
    assert (status.state, status.reason) == ("aborted", f"round 1: {reason}")
    assert not any(isinstance(e, PublishSum | SaveReceipt) for e in federation.effects)
    assert federation.saved_models("run") == []


class CountingTrainer(ShiftTrainer):
    """Knows the seeds that it trained with."""

    def fit(self, model: Arrays, task: TaskSettings, report: Report) -> TrainingResult:
        self.seeds = (*getattr(self, "seeds", ()), task.seed)
        return super().fit(model, task, report)


def test_the_next_attempt_may_weigh_enough_and_its_sites_train_anew() -> None:
    """The coordinator has seen the first sum: none of its updates may be in another one."""
    federation = Federation(SITES, faults={"turin": Fault(1, "inputs", until=1)})
    for site in SITES:
        federation.sites[site].trainer = CountingTrainer(site)
    started(federation, spec(min_weight=60, max_attempts=2))
    while not federation.coordinator.status("run").rounds:
        federation.step()
    federation.connect("turin")

    failed, completed = federation.run("run").rounds

    assert failed.reason == "5 updates weigh 50 together, min_weight is 60"
    assert failed.digest == ""
    assert (completed.round.attempt, completed.sites) == (1, SITES)
    assert completed.total_weight == 60
    for site in SITES:
        seeds = federation.sites[site].trainer.seeds  # type: ignore[attr-defined]
        assert len(set(seeds)) == 2, site
    assert len(federation.saved_models("run")) == 1


# --- drawn sites ------------------------------------------------------------------------------


def test_each_masked_round_draws_its_sites_and_those_who_were_not_drawn_can_follow() -> None:
    federation = started(Federation(SITES), spec(select=4, rounds=4))

    status = federation.run("run")

    cohorts = [invited(federation, number) for number in (1, 2, 3, 4)]
    assert status.state == "completed"
    assert [record.sites for record in status.rounds] == cohorts
    assert {len(cohort) for cohort in cohorts} == {4}
    assert len(set(cohorts)) > 1
    assert set().union(*cohorts) == set(SITES)


def test_another_attempt_keeps_the_drawn_sites_that_are_there_and_draws_for_the_others() -> None:
    """Eight of twelve, of whom seven must vote: two are lost."""
    federation = Federation(tuple(f"site-{number:02}" for number in range(12)))
    started(federation, spec(select=8))
    while not (first := invited(federation, 1)):
        federation.step()
    for site in first[:2]:
        federation.disconnect(site)

    status = federation.run("run")

    second = invited(federation, 1, attempt=1)
    assert status.state == "completed"
    assert len(second) == 8
    assert set(first[2:]) < set(second)
    assert not set(first[:2]) & set(second)


def test_a_site_that_minds_changing_cohorts_refuses_rounds_of_drawn_sites() -> None:
    """Five of six: two cohorts differ by two sites, or by none."""
    policies = {site: LocalPolicy(cohort_difference="refuse") for site in SITES}
    federation = started(
        Federation(SITES, policy_of=policies), spec(select=5, rounds=6, max_attempts=1)
    )

    status = federation.run("run")

    cohorts = [set(invited(federation, record.round.number)) for record in status.rounds]
    assert status.state == "aborted"
    assert len(cohorts[-1] ^ cohorts[-2]) == 2
    assert all("cohort_difference" in why for why in status.rounds[-1].dropped.values())


def test_a_site_that_goes_on_with_its_own_acknowledgements_only_cannot_skip_a_round() -> None:
    policies = {site: LocalPolicy(missed_rounds="refuse") for site in SITES}
    federation = started(
        Federation(SITES, policy_of=policies), spec(select=4, rounds=4, max_attempts=1)
    )

    status = federation.run("run")

    *_, last = status.rounds
    skipped = set(invited(federation, last.round.number)) - set(status.rounds[-2].sites)
    assert status.state == "aborted"
    assert skipped
    assert {site for site, why in last.dropped.items() if why.startswith("refused")} == skipped
