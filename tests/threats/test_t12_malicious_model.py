"""T12: the coordinator names one malicious model to all, so that single updates show in the sum.

The defence: sites train only from models they know (secagg/origin.py), and make the server's step
themselves (site/following.py). The variant with the defence removed is a site whose policy says
`provenance = "off"`, or a site that takes its own step for proof.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from support.federation import Federation, ShiftTrainer, make_roster, signing_key, small_model
from support.links import round_before
from veilsum import secagg
from veilsum._native import Secret
from veilsum.control import RunSpec, TaskSettings
from veilsum.coordinator import model_steps
from veilsum.model import ModelLayout, result_digest
from veilsum.secagg import LocalPolicy
from veilsum.secagg.ledger_records import ModelKnown
from veilsum.secagg.origin import check_origin
from veilsum.secagg.policy import Refusal
from veilsum.secagg.refusals import TEXTS, RefusalCode
from veilsum.secagg.result_messages import MODEL_RECOMPUTED
from veilsum.site.trainer import Arrays, Report, TrainingResult

SITES = ("basel", "kyoto", "lyon", "oslo", "quito")
CREDULOUS = LocalPolicy(min_colluders=1, provenance="off")
CAREFUL = LocalPolicy(min_colluders=1)

Model = Mapping[str, NDArray[Any]]


def _spec(rounds: int = 1, **settings: Any) -> RunSpec:
    chosen = {"clip": 2.0, "weight_cap": 64, "colluders": 1, "max_attempts": 1}
    return RunSpec("task", rounds=rounds, **chosen | settings)


def canary() -> dict[str, NDArray[Any]]:
    """Trap weights: every other value is dead, so that updates hardly overlap."""
    model = small_model()
    model["conv.weight"] = np.where(np.arange(105).reshape(3, 5, 7) % 2, -9, 9).astype(np.float32)
    return model


@dataclass
class Watched(ShiftTrainer):
    """Notes what it trained from."""

    seen: list[Model] = field(default_factory=list)

    def fit(self, model: Arrays, task: TaskSettings, report: Report) -> TrainingResult:
        """As ShiftTrainer, with another draw in every run: updates are spent."""
        self.seen.append({name: np.array(array) for name, array in model.items()})
        return super().fit(model, task, report)


def _federation(policy: LocalPolicy) -> Federation:
    federation = Federation(SITES, policy_of=dict.fromkeys(SITES, policy))
    for site in SITES:
        federation.sites[site].trainer = Watched(site)
    return federation


def _trained_from(federation: Federation, model: Model) -> set[str]:
    return {
        site
        for site, simulated in federation.sites.items()
        if isinstance(simulated.trainer, Watched)
        for seen in simulated.trainer.seen
        if all(np.array_equal(seen[name], array) for name, array in model.items())
    }


def _refused_for_the_model(federation: Federation, run_id: str) -> set[str]:
    (record,) = federation.coordinator.status(run_id).rounds
    text = f"refused (model): {TEXTS[RefusalCode.MODEL]}"
    return {site for site in record.refusals if record.dropped[site] == text}


@pytest.mark.parametrize("policy", [CREDULOUS, CAREFUL], ids=["variant", "defended"])
def test_a_step_that_leads_to_a_model_of_the_coordinators_making(
    policy: LocalPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_steps, "apply_mean", lambda *_, **__: canary())
    federation = _federation(policy)
    federation.submit("run", _spec(rounds=2), small_model())

    status = federation.run("run")

    if policy is CREDULOUS:
        assert status.state == "completed"
        assert _trained_from(federation, canary()) == set(SITES)
        return
    assert status.state == "aborted"
    assert "0 sites acknowledged its result, 4 are needed" in status.reason
    assert _trained_from(federation, canary()) == set()


DOORS = [("run-2", "task"), ("run-2", "task-2")]


@pytest.mark.parametrize("policy", [CREDULOUS, CAREFUL], ids=["variant", "defended"])
@pytest.mark.parametrize(("run_id", "task"), DOORS)
def test_a_new_run_or_a_new_task_that_begins_with_it(
    run_id: str, task: str, policy: LocalPolicy
) -> None:
    federation = _federation(policy)
    federation.submit("run", _spec(), small_model())
    assert federation.run("run").state == "completed"

    federation.submit(run_id, RunSpec(task, clip=2.0, colluders=1, max_attempts=1), canary())
    status = federation.run(run_id)

    if policy is CREDULOUS:
        assert status.state == "completed"
        assert _trained_from(federation, canary()) == set(SITES)
        return
    assert status.state == "aborted"
    assert "sites sent keys, 4 are needed" in status.reason
    assert _refused_for_the_model(federation, run_id) >= set(SITES[:2])  # then it is over
    assert _trained_from(federation, canary()) == set()


@pytest.mark.parametrize("policy", [CREDULOUS, CAREFUL], ids=["variant", "defended"])
def test_a_site_that_was_restarted_is_shown_it(policy: LocalPolicy) -> None:
    """What it knew is in its ledger."""
    federation = _federation(policy)
    federation.submit("run", _spec(), small_model())
    assert federation.run("run").state == "completed"
    for site in SITES:
        federation.disconnect(site)
        federation.connect(site)

    federation.submit("run-2", _spec(), canary())
    federation.run("run-2")

    expected = set(SITES) if policy is CREDULOUS else set()
    assert _trained_from(federation, canary()) == expected


def test_a_sum_of_the_coordinators_making_that_one_site_alone_is_shown() -> None:
    """The victim's own step leads to the malicious model, over a sum that was made for it. The
    variant takes that for proof; the real site asks for a quorum that came to the same."""
    roster = make_roster(SITES)
    layout = ModelLayout.from_arrays(small_model())
    start = bytes.fromhex(result_digest(layout, small_model()))
    trap = bytes.fromhex(result_digest(layout, canary()))
    common: dict[str, Any] = {
        "roster": roster,
        "cohort": SITES,
        "spec": _spec(),
        "run_id": "run",
        "attempt": 0,
        "layout": layout,
        "nonce": bytes(32),
    }
    first = secagg.Plan.for_round(
        **common, round_number=1, model_hash=start, previous_result=bytes(32)
    )
    private = round_before(
        first, signing_key, model_hash=trap, acks=["lyon"], checked=MODEL_RECOMPUTED
    )
    second = secagg.Plan.for_round(
        **common, round_number=2, model_hash=trap, previous_result=private.digest
    )
    ledger = secagg.Ledger.in_memory(Secret.from_os)
    known = check_origin(CAREFUL, first, [], ledger)
    assert known is not None
    ledger.remember(known)

    believing = secagg.Ledger.in_memory(Secret.from_os)
    believing.remember(known)
    believing.remember(ModelKnown("task", trap, bytes(32)))  # its own step, taken for proof
    assert check_origin(CAREFUL, second, [], believing) is None

    with pytest.raises(Refusal, match=r"1 sites made the step .* 4 are needed") as refusal:
        check_origin(CAREFUL, second, [private.link], ledger)
    assert refusal.value.code == "model"
