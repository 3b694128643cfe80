"""Masked rounds that fail and are held again: when, how often, with whom and with which update."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from support.faults import OTHER, seals_badly
from support.federation import Fault, Federation, ShiftTrainer, small_model
from support.secagg import read
from veilsum import secagg
from veilsum._native import Secret
from veilsum.control import (
    Deadlines,
    RoundClosed,
    RoundId,
    RoundOpened,
    RunEvent,
    RunSpec,
    RunStatus,
    TaskSettings,
)
from veilsum.coordinator.effects import (
    Announce,
    PublishModel,
    SaveEvidence,
    SaveRound,
    SendToSite,
    SetDeadline,
)
from veilsum.coordinator.events import DeadlinePassed, RunAbortRequested
from veilsum.coordinator.outcome import Failed, Finished
from veilsum.coordinator.retry import Retries
from veilsum.errors import ConfigError
from veilsum.secagg import site_complaints
from veilsum.secagg.messages import RoundOpen
from veilsum.site.contribution import LocalUpdate, ModelTerms
from veilsum.site.unsent import Unsent

SITES = ("basel", "kyoto", "lyon", "oslo", "quito")
SILENT = ("lyon", "oslo")  # one more than a round of five with one helper can lose
SPEC = RunSpec(
    "task",
    rounds=2,
    clip=0.5,
    weight_cap=64,
    colluders=1,
    deadlines=Deadlines(join_s=60.0, cooldown_s=7.0),
)
TRIES = 2**40  # between the seeds of updates that were trained for attempts at one round


class Watched(ShiftTrainer):
    """Remembers which seeds it trained with."""

    def __init__(self, site: str) -> None:
        super().__init__(site)
        self.seeds: list[int] = []

    def fit(self, model: Any, task: TaskSettings, report: Any) -> Any:
        self.seeds.append(task.seed)
        return super().fit(model, task, report)


def failing(phase: str, until: int = 1, number: int = 1) -> Federation:
    """Two sites are silent in a phase of one round, in attempts before `until`."""
    faults = {site: Fault(number, phase, silent=True, until=until) for site in SILENT}
    federation = Federation(SITES, faults=faults)
    for site in SITES:
        federation.sites[site].trainer = Watched(site)
    return federation


def run(federation: Federation, spec: RunSpec = SPEC) -> RunStatus:
    federation.submit("run", spec, small_model())
    return federation.run("run")


def seeds(federation: Federation) -> dict[str, list[int]]:
    return {name: site.trainer.seeds for name, site in federation.sites.items()}


@pytest.mark.parametrize("phase", ["keys", "shares", "inputs", "votes", "unmask"])
@pytest.mark.parametrize("number", [1, 2])
def test_a_round_that_failed_is_held_again_and_the_run_goes_on(phase: str, number: int) -> None:
    federation = failing(phase, number=number)

    status = run(federation)

    assert status.state == "completed", status.reason
    tried = [(record.round.number, record.round.attempt) for record in status.rounds]
    assert tried == sorted([(1, 0), (2, 0), (number, 1)])
    assert [record.completed for record in status.rounds] == [
        (record.round.number, record.round.attempt) != (number, 0) for record in status.rounds
    ]
    assert all(record.sites == SITES for record in status.rounds if record.completed)
    assert len(federation.saved_models("run")) == 2


def test_between_two_attempts_the_run_pauses_and_says_so() -> None:
    federation = failing("votes")

    run(federation)

    again = RoundId("run", 1, 1)
    detail = "attempt 2 of at most 3 follows"
    event = RunEvent("run", "phase", round_number=1, phase="cooldown", detail=detail)
    pause = federation.effects.index(SetDeadline(again, "cooldown", 7.0))
    assert federation.effects[pause + 1] == Announce(event)
    (ended,) = [
        index
        for index, effect in enumerate(federation.effects)
        if isinstance(effect, SaveRound) and effect.record.round == RoundId("run", 1, 0)
    ]
    (opened,) = [
        index
        for index, effect in enumerate(federation.effects)
        if isinstance(effect, PublishModel) and effect.round == again
    ]
    assert ended < pause < opened
    told = [effect for effect in federation.effects if isinstance(effect, SendToSite)]
    closed = [effect.message for effect in told if isinstance(effect.message, RoundClosed)]
    assert [message.completed for message in closed[: len(SITES)]] == [False] * len(SITES)


def test_the_last_attempt_that_fails_ends_the_run() -> None:
    federation = failing("keys", until=2)

    status = run(federation, replace(SPEC, max_attempts=2))

    assert (status.state, status.current_round) == ("aborted", 1)
    assert status.reason == "round 1: 3 of 5 sites sent keys, 4 are needed"
    assert [record.round.attempt for record in status.rounds] == [0, 1]


def test_the_sites_own_limit_of_attempts_holds_whatever_the_run_says() -> None:
    federation = failing("keys", until=5)

    status = run(federation, replace(SPEC, max_attempts=5))

    assert status.state == "aborted"
    assert [record.round.attempt for record in status.rounds] == [0, 1, 2, 3, 4]
    reason = "refused (attempts): the round was attempted too often"
    assert set(status.rounds[3].dropped.values()) == {reason}


def test_an_update_that_has_not_left_serves_another_attempt_without_training() -> None:
    federation = failing("shares")

    status = run(federation)

    assert status.state == "completed"
    assert seeds(federation) == {site: [0, 1] for site in SITES}


@pytest.mark.parametrize("phase", ["votes", "unmask"])
def test_an_update_that_has_left_is_trained_anew_with_another_seed(phase: str) -> None:
    federation = failing(phase)

    status = run(federation)

    assert status.state == "completed"
    assert seeds(federation) == {site: [0, TRIES, 1] for site in SITES}
    trained = [
        ShiftTrainer(site).shifted(small_model(), TaskSettings(seed=TRIES)) for site in SITES
    ]
    mean = np.mean([one["conv.weight"] for one in trained], axis=0)
    np.testing.assert_allclose(federation.saved_models("run")[0]["conv.weight"], mean, atol=2e-3)


def test_a_trainer_that_repeats_itself_stays_out_of_the_other_attempts() -> None:
    """Whatever its seed: what left a site once is not in a second attempt at the round."""
    federation = failing("votes")
    stubborn = federation.sites["basel"].trainer
    always = stubborn.shifted(small_model(), TaskSettings())
    stubborn.shifted = lambda model, task: always  # type: ignore[method-assign]

    status = run(federation, replace(SPEC, rounds=1))

    assert status.state == "completed"
    assert status.rounds[1].sites == tuple(site for site in SITES if site != "basel")
    assert "spent" in status.rounds[1].dropped["basel"]


def test_a_site_that_restarts_between_two_attempts_still_knows_what_left_it() -> None:
    federation = failing("votes")
    federation.submit("run", SPEC, small_model())
    while federation.coordinator.status("run").phase != "cooldown":
        federation.step()
    federation.disconnect("basel")
    federation.connect("basel")

    status = federation.run("run")

    assert status.state == "completed"
    assert seeds(federation)["basel"] == [0, TRIES, 1]
    assert status.rounds[1].sites == SITES


def test_an_update_is_kept_for_its_own_round_and_no_other() -> None:
    """The run ends while updates wait; the next run trains for itself."""
    federation = failing("shares", until=9)
    run(federation, replace(SPEC, max_attempts=1))
    federation._faults.clear()

    federation.submit("walk", replace(SPEC, rounds=1), small_model())

    assert federation.run("walk").state == "completed"
    assert seeds(federation)["basel"] == [0, 0]


@pytest.mark.parametrize(
    "other",
    [
        {"round_id": RoundId("walk", 1, 1)},
        {"round_id": RoundId("run", 2, 1)},
        {"round_id": RoundId("run", 1, 0)},
        {"task": TaskSettings(epochs=2)},
        {"terms": ModelTerms(b"layout", b"other", ("auc",))},
        {"terms": ModelTerms(b"layout", b"model", ())},
    ],
)
def test_a_kept_update_fits_a_later_attempt_with_the_same_model_and_task_only(other: Any) -> None:
    kept = (RoundId("run", 1, 0), TaskSettings(), ModelTerms(b"layout", b"model", ("auc",)))
    again = {"round_id": RoundId("run", 1, 2), "task": kept[1], "terms": kept[2]}
    update = LocalUpdate({}, 1, {}, Secret.from_bytes(b"r" * 32))
    unsent = Unsent()
    unsent.keep(*kept, update)
    assert unsent.take(**again) is update
    assert unsent.take(**again) is None

    unsent.keep(*kept, update)
    assert unsent.take(**(again | other)) is None
    with pytest.raises(ConfigError, match="wiped"):
        bytes(update.rounding)
    assert unsent.take(**again) is None


def test_an_operator_can_stop_a_run_between_two_attempts() -> None:
    federation = failing("votes")
    federation.submit("run", SPEC, small_model())
    while federation.coordinator.status("run").phase != "cooldown":
        federation.step()
    before = federation.coordinator.status("run")
    assert (before.state, before.current_round, before.sites_waiting) == ("running", 1, ())

    federation.tell(RunAbortRequested("run", "enough"))

    assert (federation.run("run").state, federation.run("run").reason) == ("aborted", "enough")
    assert federation.tell(DeadlinePassed(RoundId("run", 1, 1), "cooldown")) == []


def test_an_operator_who_stops_a_round_does_not_get_another_attempt() -> None:
    federation = failing("votes")
    federation.submit("run", SPEC, small_model())

    federation.tell(RunAbortRequested("run", "enough"))

    assert federation.run("run").state == "aborted"


def test_a_plain_round_is_not_held_again() -> None:
    faults = {site: Fault(1, "updates", silent=True) for site in SITES[1:]}
    status = run(Federation(SITES, faults=faults), replace(SPEC, masked=False))

    assert status.state == "aborted"
    assert len(status.rounds) == 1


def test_who_was_left_out_is_not_invited_again_and_no_protection_shrinks_with_the_cohort() -> None:
    retries = Retries(SPEC)
    retries.leave_out(["oslo"])

    assert retries.invitable(SITES) == ("basel", "kyoto", "lyon", "quito")
    assert retries.after(RoundId("run", 1, 1), Failed("why")) == RoundId("run", 1, 2)
    assert retries.after(RoundId("run", 1, 2), Failed("why")) is None
    assert retries.after(RoundId("run", 1), Failed("why", final=True)) is None
    assert retries.after(RoundId("run", 1), Finished({}, "", 1, SITES, {})) is None


@pytest.mark.parametrize("attempts", [0, 11])
def test_a_number_of_attempts_that_makes_no_sense_is_refused(attempts: int) -> None:
    with pytest.raises(ConfigError, match="max_attempts must be 1 to 10"):
        replace(SPEC, max_attempts=attempts)


# --- without the guilty -------------------------------------------------------------------


def evidence_in(federation: Federation) -> list[secagg.Verdict]:
    return [
        secagg.check_evidence(effect.evidence, federation.roster)
        for effect in federation.effects
        if isinstance(effect, SaveEvidence)
    ]


def test_the_next_attempt_and_the_next_round_are_without_the_guilty(monkeypatch: Any) -> None:
    seals_badly(monkeypatch, "lyon", ["basel"], "content")
    federation = Federation(SITES)

    status = run(federation)

    others = tuple(site for site in SITES if site != "lyon")
    assert status.state == "completed", status.reason
    assert [record.sites for record in status.rounds] == [(), others, others]
    assert evidence_in(federation) == [secagg.Guilty("lyon", secagg.Fault.BAD_DEAL)]
    assert "lyon" not in status.rounds[1].dropped  # it was not invited
    plans = [effect for effect in federation.effects if isinstance(effect, SendToSite)]
    assert not [one for one in plans if one.site == "lyon" and is_invitation(one, attempt=1)]


def is_invitation(effect: SendToSite, attempt: int) -> bool:
    return isinstance(effect.message, RoundOpened) and effect.message.round.attempt == attempt


def test_both_ends_of_an_open_complaint_are_out_and_the_protection_of_the_others_is_what_it_was(
    monkeypatch: Any,
) -> None:
    """Of five sites three are left: a round of three withstands one helper still. The dealer has
    masked its update when it is asked, and cannot answer."""
    seals_badly(monkeypatch, "lyon", ["basel"], "key")
    honest = site_complaints._box_key
    monkeypatch.setattr(
        site_complaints,
        "_box_key",
        lambda channel, site, peer, *, sending: (
            OTHER if site == "lyon" else honest(channel, site, peer, sending=sending)
        ),
    )
    federation = Federation(SITES)

    status = run(federation)

    assert status.state == "completed", status.reason
    assert status.rounds[1].sites == ("kyoto", "oslo", "quito")
    assert evidence_in(federation) == []
    invited = [e.message for e in federation.effects if isinstance(e, SendToSite)]
    opened = [m for m in invited if isinstance(m, RoundOpened) and m.round.attempt == 1]
    manifest = read(RoundOpen, opened[0].open_message).manifest
    plan = secagg.Plan.from_bytes(manifest, roster=federation.roster)
    assert (plan.colluders, plan.min_sites, plan.vote_quorum) == (1, 3, 3)


def test_with_too_few_left_for_the_colluders_the_run_ends(monkeypatch: Any) -> None:
    seals_badly(monkeypatch, "lyon", ["basel"], "content")
    federation = Federation(SITES[:3])

    status = run(federation, replace(SPEC, cohort=SITES[:3]))

    assert status.state == "aborted"
    assert "2 of 2 sites joined, 3 are needed" in status.reason
