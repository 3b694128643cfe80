"""The demo's proof: it finds a right sum right and a wrong one wrong, masked and plain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from veilsum._native import Secret
from veilsum.control import RoundId, RoundRecord, RunSpec
from veilsum.demo.notebook import Notebook
from veilsum.demo.proof import Prover, StartOfRound
from veilsum.difference import model_difference
from veilsum.errors import ConfigError
from veilsum.model import ModelLayout, result_digest
from veilsum.secagg import Contribution, Plan, make_consortium, run_in_process
from veilsum.site.rounding import rounding_secret
from veilsum.site.trainer import EvaluationResult, TrainingResult

SITES = ("lyon", "osaka", "quito", "turin")
ROUND = RoundId("run-1", 2)
SEEDS = {site: bytes([number]) * 32 for number, site in enumerate(SITES)}
MODEL = {"w": np.linspace(-1, 1, 700, dtype=np.float32), "b": np.zeros(3, np.float32)}
LAYOUT = ModelLayout.from_arrays(MODEL)
SPEC = RunSpec("task", rounds=3, metrics=("auc", "train_loss"), weight_cap=100, value_bits=18)


def trained(site: str) -> dict[str, NDArray[Any]]:
    shift = 0.01 * (1 + SITES.index(site))
    return {name: (array + np.float32(shift)).astype(np.float32) for name, array in MODEL.items()}


def start() -> StartOfRound:
    return StartOfRound(LAYOUT, MODEL, result_digest(LAYOUT, MODEL))


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    for number, site in enumerate(SITES):
        notebook = Notebook(tmp_path, site)
        notebook.note_training(MODEL, TrainingResult(trained(site), 10 + number, {"train_loss": 2}))
        notebook.note_evaluation(MODEL, EvaluationResult({"auc": 0.5 + 0.1 * number}, 4))
    return tmp_path


def record(digest: str, sites: tuple[str, ...]) -> RoundRecord:
    return RoundRecord(
        round=ROUND,
        completed=True,
        reason="",
        digest=digest,
        model_hash="",
        sites=sites,
        dropped={site: "lost" for site in SITES if site not in sites},
        total_weight=0,
        metrics={},
        bytes_in={},
        seconds={},
    )


def masked_digest(lost: Mapping[str, Any]) -> str:
    """A real masked round with every message, in which some sites are lost."""
    consortium = make_consortium(SITES)
    plan = Plan.for_round(
        roster=consortium.roster,
        cohort=SITES,
        spec=SPEC,
        run_id=ROUND.run_id,
        round_number=ROUND.number,
        attempt=0,
        layout=LAYOUT,
        model_hash=bytes.fromhex(start().model_hash),
        previous_result=bytes(32),
        nonce=b"n" * 32,
    )
    contributions = {
        site: Contribution(
            model_difference(LAYOUT, trained(site), MODEL),
            10 + number,
            {"auc": 0.5 + 0.1 * number, "train_loss": 2},
            rounding_secret(Secret.from_bytes(SEEDS[site]), ROUND, site),
        )
        for number, site in enumerate(SITES)
    }
    return run_in_process(plan, contributions, drop=lost, consortium=consortium).digest


def prover(notes: Path, spec: RunSpec = SPEC) -> Prover:
    return Prover(spec, make_consortium(SITES).roster, notes, SEEDS)


@pytest.mark.parametrize("lost", [{}, {"quito": "inputs"}])
def test_a_masked_round_is_proved_by_the_plain_sum_of_its_survivors(
    notes: Path, lost: dict[str, Any]
) -> None:
    sites = tuple(site for site in SITES if site not in lost)

    proof = prover(notes).prove(record(masked_digest(lost), sites), start())

    assert proof.holds
    assert proof.published == proof.recomputed


def test_a_round_that_left_a_survivor_out_of_the_sum_is_found_out(notes: Path) -> None:
    proof = prover(notes).prove(record(masked_digest({"quito": "inputs"}), SITES), start())

    assert not proof.holds


def test_one_changed_value_of_one_update_is_found_out(notes: Path) -> None:
    digest = masked_digest({})
    changed = trained("osaka")
    changed["w"][5] += np.float32(1e-3)
    result = TrainingResult(changed, 11, {"train_loss": 2})
    Notebook(notes, "osaka").note_training(MODEL, result)

    assert not prover(notes).prove(record(digest, SITES), start()).holds


@pytest.mark.parametrize("codec", ["f32", "f16", "bf16", "int8", "ring12"])
def test_a_plain_round_is_proved_by_a_second_sum(notes: Path, codec: str) -> None:
    plain = prover(notes, replace(SPEC, masked=False, codec=codec))
    first = plain.prove(record("", SITES), start()).recomputed

    assert plain.prove(record(first, SITES), start()).holds
    assert not plain.prove(record(first, SITES[:3]), start()).holds


def test_a_survivor_without_notes_is_an_error_and_not_a_proof(notes: Path, tmp_path: Path) -> None:
    (notes / "osaka" / f"{start().model_hash}.trained.npz").unlink()

    with pytest.raises(ConfigError, match="site 'osaka' has no note"):
        prover(notes).prove(record("", SITES), start())
