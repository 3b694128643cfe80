"""Masked rounds between processes over mutual TLS, with sites that die at every point."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from support.consortium import Consortium, make_consortium
from support.processes import PHASES, start
from support.tiny_trainer import TinyTrainer
from veilsum.control import (
    Deadlines,
    MaskGenerator,
    OptimizerSpec,
    RunSpec,
    RunStatus,
    TaskSettings,
)
from veilsum.model import ModelLayout, result_digest
from veilsum.secagg import LocalPolicy
from veilsum.secagg.origin import read_links
from veilsum.secagg.receipt import ReceiptFacts, check_receipt
from veilsum.secagg.result_checks import open_link
from veilsum.secagg.result_messages import MODEL_RECOMPUTED
from veilsum.transport.checkpoints import load_model, model_to_bytes
from veilsum.transport.operator import OperatorClient

SITES = ("a", "b", "c", "d", "e")
VICTIM = "e"
MODEL = {
    "w": np.linspace(-1, 1, 700, dtype=np.float32).reshape(7, 100),
    "steps": np.array([4, 6], np.int64),
}
LAYOUT = ModelLayout.from_arrays(MODEL)
# Far longer than anything here takes: a round must go on because a connection broke, and
# the test would notice if it waited for a deadline instead.
DEADLINES = Deadlines(*[50.0] * 7, cooldown_s=0.1)
SPEC = RunSpec(
    task_id="tiny", min_sites=4, weight_cap=10, metrics=("auc", "loss"), deadlines=DEADLINES
)
SECONDS = 240


@dataclass
class Federation:
    """A running coordinator, its operator, and whatever sites were started."""

    consortium: Consortium
    folder: Path
    coordinator: subprocess.Popen[str]
    port: int
    operator: OperatorClient
    sites: dict[str, subprocess.Popen[str]] = field(default_factory=dict)
    ever_started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start_site(self, site: str, *phase: str) -> None:
        # One model for many tasks, whose names no policy lists.
        policy = LocalPolicy(start_models=frozenset({result_digest(LAYOUT, MODEL)}))
        settings = self.consortium.site_settings(site, self.port, policy=policy)
        number = str(SITES.index(site))
        self.sites[site] = start("site", settings, self.folder, number, *phase)
        self.ever_started.append(self.sites[site])

    def run(self, spec: RunSpec = SPEC) -> RunStatus:
        """Submits a run and waits for its end."""
        run = self.operator.submit(spec, model_to_bytes(LAYOUT, MODEL))
        *_, last = self.operator.watch(run.run_id)
        assert last.kind == "run"
        return self.operator.get(run.run_id)

    def receipt_of(self, run: RunStatus) -> ReceiptFacts:
        file = self.folder / "state" / "receipts" / run.run_id / "round-1.json"
        return check_receipt(file.read_bytes(), self.consortium.roster)

    def checked(self, model_hash: str) -> dict[str, int]:
        """How much each site checked of the result that led to a model, by what it signed."""
        (file,) = (self.folder / "state" / "links").glob(f"{model_hash}-*.link")
        (link,) = read_links([file.read_bytes()[64:]])
        last = open_link(self.consortium.roster, link)
        return {site: ack.checked for site, ack in last.acks.items()}

    def model_after(self, run: RunStatus) -> dict[str, np.ndarray]:
        file = self.folder / "state" / "models" / run.run_id / "round-1.safetensors"
        return load_model(file)[1]


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    consortium = make_consortium(tmp_path / "consortium", SITES)
    folder = tmp_path / "run"
    # Sites die here, and do not come back.
    settings = consortium.coordinator_settings(folder / "state", reconnect_s=0.2)
    coordinator = start("coordinator", settings, folder)
    assert coordinator.stdout is not None
    port = int(coordinator.stdout.readline())
    with OperatorClient(consortium.operator_settings(port)) as operator:
        federation = Federation(consortium, folder, coordinator, port, operator)
        try:
            yield federation
        finally:
            for process in (*federation.ever_started, coordinator):
                process.kill()
                process.communicate()


def expected_model(sites: Sequence[str]) -> dict[str, np.ndarray]:
    """The mean of these sites' trained models, all of one weight, in double precision."""
    trained = [
        TinyTrainer(SITES.index(site)).fit(MODEL, TaskSettings(), lambda _: None).arrays
        for site in sites
    ]
    return {name: np.mean([arrays[name] for arrays in trained], axis=0) for name in MODEL}


def assert_mean_of(model: dict[str, np.ndarray], sites: Sequence[str]) -> None:
    expected = expected_model(sites)
    # Stochastic rounding is off by less than one step at each site, so is their mean; and the
    # sum of two floats is rounded.
    step = SPEC.clip / (2 ** (SPEC.value_bits - 1) - 1) + 2**-22
    np.testing.assert_allclose(model["w"], expected["w"], atol=step)
    np.testing.assert_array_equal(model["steps"], np.rint(expected["steps"]).astype(np.int64))


def test_a_site_killed_in_any_phase_costs_the_round_that_site_only(
    federation: Federation,
) -> None:
    for site in SITES[:-1]:
        federation.start_site(site)
    for phase in PHASES:
        federation.start_site(VICTIM, phase)
        # A task of its own: this trainer repeats itself, and what left a site once is spent.
        run = federation.run(replace(SPEC, task_id=f"tiny-{phase}"))
        assert federation.sites[VICTIM].wait(SECONDS) == -signal.SIGKILL
        (record,) = run.rounds
        assert (run.state, record.completed) == ("completed", True), (phase, run.reason)
        # Its update counts once it was handed in; dying later changes nothing in the sum.
        counted = SITES if phase in ("votes", "unmask", "acks") else SITES[:-1]
        assert record.sites == counted, phase
        assert set(record.dropped) == set(SITES) - set(counted), phase
        assert record.total_weight == 10 * len(counted)
        assert record.metrics["auc"] == 0.75
        assert_mean_of(federation.model_after(run), counted)
        assert max(record.seconds.values()) < DEADLINES.keys_s / 2
        receipt = federation.receipt_of(run)
        assert receipt.survivors == counted
        # Whoever answered to the end acknowledged, and said what it sent.
        assert tuple(receipt.last.acks) == SITES[:-1], phase
        for ack in receipt.last.acks.values():
            kinds = {one.kind for one in ack.egress.sent}
            assert {"key-advert", "share-deal", "survivor-vote", "unmask-shares"} <= kinds
    # After all that, everybody is back for a round without a loss.
    federation.start_site(VICTIM)
    specs = [replace(SPEC, mask_generator=generator) for generator in get_args(MaskGenerator)]
    specs.append(replace(SPEC, hadamard=4096))
    for number, other in enumerate(specs):
        spec = replace(other, task_id=f"tiny-{number}")
        run = federation.run(spec)
        assert (run.state, run.rounds[0].sites, run.rounds[0].dropped) == ("completed", SITES, {})
        assert run.spec == spec
        assert_mean_of(federation.model_after(run), SITES)
    for process in federation.sites.values():
        process.send_signal(signal.SIGINT)
    assert [process.wait(SECONDS) for process in federation.sites.values()] == [0] * len(SITES)
    federation.coordinator.send_signal(signal.SIGTERM)
    assert federation.coordinator.wait(SECONDS) == 0


def test_a_round_that_loses_too_many_sites_is_aborted_and_says_so(
    federation: Federation,
) -> None:
    for site in SITES[:3]:
        federation.start_site(site)
    for site in SITES[3:]:
        federation.start_site(site, "inputs")
    run = federation.run(replace(SPEC, max_attempts=1))
    assert run.state == "aborted"
    # The round ends as soon as two are lost; not all of the other three need have sent by then.
    assert re.search("[0-3] of 5 sites sent updates, 4 are needed", run.reason), run.reason
    assert not run.rounds[0].completed
    assert list((federation.folder / "state" / "spool").rglob("*.update")) == []
    # The coordinator and the others live on. Another seed: what left a site once is spent.
    for site in SITES[3:]:
        federation.start_site(site)
    another = replace(SPEC, task=replace(SPEC.task, seed=SPEC.task.seed + 1))
    assert federation.run(another).state == "completed"


def test_a_site_that_missed_a_run_follows_its_results_and_makes_the_next_steps(
    federation: Federation,
) -> None:
    """It has neither model nor optimizer state, and knows the model of three rounds ago."""
    adam = replace(
        SPEC,
        rounds=3,
        cohort=SITES[:-1],
        min_sites=3,
        server_optimizer=OptimizerSpec("fedadam"),
        server_learning_rate=0.1,
    )
    for site in SITES[:-1]:
        federation.start_site(site)
    run = federation.run(adam)
    assert run.state == "completed", run.reason
    models = federation.folder / "state" / "models"
    last = models / run.run_id / "round-3.safetensors"
    shutil.copy(models / run.run_id / "optimizer-3.safetensors", models / "state.safetensors")

    federation.start_site(VICTIM)
    goes_on = replace(
        adam,
        rounds=2,
        cohort=(),
        min_sites=4,
        server_optimizer=OptimizerSpec("fedadam", state_file="state.safetensors"),
    )
    second = federation.operator.submit(goes_on, last.read_bytes())
    list(federation.operator.watch(second.run_id))

    status = federation.operator.get(second.run_id)
    assert status.state == "completed", status.reason
    assert [record.sites for record in status.rounds] == [SITES] * 2
    for record in status.rounds:
        assert federation.checked(record.model_hash) == dict.fromkeys(SITES, MODEL_RECOMPUTED)
