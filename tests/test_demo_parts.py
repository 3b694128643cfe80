"""The demo's smaller parts: AUC, options, folder, notebook, ledger, configuration, processes."""

from __future__ import annotations

import json
import signal
import tomllib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from veilsum.cli.config import load_coordinator, load_site
from veilsum.demo.consortium import (
    make_consortium,
    rounding_seed,
    write_coordinator_toml,
    write_site_toml,
)
from veilsum.demo.data import Hospital
from veilsum.demo.folder import prepare_folder
from veilsum.demo.ledger import Traffic, kinds, read_ledger, total_bytes
from veilsum.demo.metrics import auc
from veilsum.demo.notebook import Notebook
from veilsum.demo.options import DemoOptions, Drop
from veilsum.demo.processes import DemoFailed, Processes
from veilsum.demo.stopping import stop_if_asked, stops_between_steps
from veilsum.demo.view import DemoView
from veilsum.errors import ConfigError
from veilsum.model import ModelLayout, result_digest
from veilsum.site.trainer import EvaluationResult, TrainingResult

SIZES = {"hospital-01": 300, "hospital-02": 500, "hospital-05": 400, "hospital-10": 500}

# --- AUC --------------------------------------------------------------------------

EXAMPLES = st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=60).filter(
    lambda rows: len({label for _, label in rows}) == 2
)


@given(EXAMPLES)
def test_auc_is_the_rank_statistic_with_ties_counted_half(rows: list[tuple[int, bool]]) -> None:
    scores = np.array([score for score, _ in rows], np.float64)
    labels = np.array([label for _, label in rows])
    positive, negative = scores[labels], scores[~labels]

    expected = mannwhitneyu(positive, negative).statistic / (len(positive) * len(negative))

    assert auc(scores, labels) == pytest.approx(expected, abs=1e-12)


def test_perfect_scores_have_an_auc_of_one() -> None:
    assert auc([0.1, 0.4, 2.0], [0, 0, 1]) == 1.0


@pytest.mark.parametrize(
    ("scores", "labels", "reason"),
    [
        ([1.0, 2.0], [1, 1], "needs examples of both classes"),
        ([1.0, float("nan")], [0, 1], "not a number"),
        ([1.0, 2.0, 3.0], [0, 1], "scores have shape"),
    ],
)
def test_auc_of_what_cannot_be_ranked_is_refused(
    scores: list[float], labels: list[int], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        auc(scores, labels)


# --- options ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"sites": 2}, "sites must be 3 to 12"),
        ({"sites": 13}, "sites must be 3 to 12"),
        ({"rounds": 0}, "rounds must be 1 to 1000"),
        ({"seed": -1}, "seed must be 0"),
        ({"codec": "int8"}, "is for plain rounds"),
        ({"codec": "zip", "plain": True}, "zip"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, int], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        DemoOptions(**options)  # type: ignore[arg-type]


def test_by_default_the_largest_site_is_killed_in_the_middle() -> None:
    assert DemoOptions(sites=4, rounds=5).chosen_drop(SIZES) == Drop("hospital-02", 3)


def test_which_site_is_killed_when_can_be_chosen() -> None:
    options = DemoOptions(sites=4, rounds=5, drop="hospital-05@5")

    assert options.chosen_drop(SIZES) == Drop("hospital-05", 5)
    assert DemoOptions(sites=4, drop="none").chosen_drop(SIZES) is None


@pytest.mark.parametrize(
    ("sites", "drop", "reason"),
    [
        (4, "hospital-05", "must be SITE@ROUND"),
        (4, "hospital-77@1", "there is no site 'hospital-77'"),
        (4, "hospital-05@9", "cannot drop a site in round 9 of 5"),
        (4, "hospital-05@0", "cannot drop a site in round 0 of 5"),
        (3, "hospital-05@1", "cannot lose one"),
    ],
)
def test_a_drop_that_cannot_work_is_refused(sites: int, drop: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        DemoOptions(sites=sites, rounds=5, drop=drop).chosen_drop(SIZES)


def test_three_masked_sites_are_left_alone_because_none_can_be_spared() -> None:
    assert DemoOptions(sites=3).chosen_drop(SIZES) is None
    assert DemoOptions(sites=3, plain=True).chosen_drop(SIZES) is not None


# --- folder -----------------------------------------------------------------------


def test_a_folder_of_an_earlier_demo_is_emptied_of_what_a_demo_makes(tmp_path: Path) -> None:
    folder = prepare_folder(tmp_path / "demo")
    folder.report.write_text("old")
    folder.notes.mkdir()
    (folder.root / "mine.txt").write_text("keep")

    again = prepare_folder(tmp_path / "demo")

    assert not again.report.exists()
    assert not again.notes.exists()
    assert (again.root / "mine.txt").read_text() == "keep"
    assert again.root.stat().st_mode & 0o077 == 0


def test_a_folder_that_no_demo_made_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("mine")

    with pytest.raises(ConfigError, match="is not empty and no demo made it"):
        prepare_folder(tmp_path)

    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


# --- notebook ---------------------------------------------------------------------


def test_a_notebook_gives_back_what_was_noted_of_a_model(tmp_path: Path) -> None:
    model = {"w": np.ones(3, np.float32)}
    trained = {"w": np.array([1.5, 0.25, -1.0], np.float32)}
    notebook = Notebook(tmp_path, "quito")

    notebook.note_training(model, TrainingResult(trained, 12, {"train_loss": 0.1}))
    notebook.note_evaluation(model, EvaluationResult({"auc": 0.7}, 5))

    name = result_digest(ModelLayout.from_arrays(model), model)
    noted = Notebook(tmp_path, "quito").training(name)
    assert (noted.weight, noted.metrics) == (12, {"train_loss": 0.1})
    assert noted.arrays["w"].tobytes() == trained["w"].tobytes()
    assert notebook.evaluation(name) == EvaluationResult({"auc": 0.7}, 5)


def test_a_note_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"site 'quito' has no note 00\.trained\.npz"):
        Notebook(tmp_path, "quito").training("00")


# --- ledger -----------------------------------------------------------------------


def test_the_ledger_adds_up_what_the_logs_say_was_sent(tmp_path: Path) -> None:
    lines = [
        json.dumps({"event": "sent", "kind": "hello", "bytes": 40}),
        json.dumps({"event": "sent", "kind": "masked-update", "bytes": 900}),
        json.dumps({"event": "connected"}),
        "a line that is not JSON",
        json.dumps({"event": "sent", "kind": "hello", "bytes": 40}),
        '{"event": "sent", "ki',
    ]
    (tmp_path / "quito.log").write_text("\n".join(lines))

    ledger = read_ledger(tmp_path, ["quito"])

    assert ledger == {"quito": {"hello": Traffic(2, 80), "masked-update": Traffic(1, 900)}}
    assert total_bytes(ledger["quito"]) == 980
    assert kinds(ledger) == ["masked-update", "hello"]


# --- configuration ------------------------------------------------------------------


@pytest.mark.parametrize("plain", [False, True])
def test_the_processes_can_read_the_files_that_the_demo_writes(tmp_path: Path, plain: bool) -> None:
    sites = [
        Hospital(name, "europe", np.arange(3), np.arange(2)) for name in ("hospital-01", "b", "c")
    ]
    consortium = make_consortium(prepare_folder(tmp_path / "demo"), sites)
    options = DemoOptions(sites=3, plain=plain, seed=5)

    coordinator = load_coordinator(write_coordinator_toml(consortium))
    file = write_site_toml(consortium, "hospital-01", 5000, options)
    site = load_site(file)

    assert coordinator.listen == "127.0.0.1:0"
    assert site.coordinator == "127.0.0.1:5000"
    assert site.bounds.plain_rounds is plain
    assert site.policy.task_ids == frozenset({options.run_spec().task_id})
    assert site.rounding_seed == rounding_seed(5, "hospital-01").hex()
    assert file.stat().st_mode & 0o077 == 0
    site.bounds.check(options.task())


def test_the_written_toml_is_what_it_says(tmp_path: Path) -> None:
    sites = [Hospital(name, "asia", np.arange(3), np.arange(2)) for name in ('od"d', "b", "c")]
    consortium = make_consortium(prepare_folder(tmp_path / "demo"), sites)

    file = write_site_toml(consortium, 'od"d', 5000, DemoOptions(sites=3))

    assert tomllib.loads(file.read_text())["trainer_settings"]["site"] == 'od"d'


# --- processes ----------------------------------------------------------------------


def test_a_coordinator_that_cannot_start_is_reported_with_the_end_of_its_log(
    tmp_path: Path,
) -> None:
    with Processes(tmp_path) as processes, pytest.raises(DemoFailed) as failed:
        processes.start_coordinator(tmp_path / "missing.toml")

    assert "process 'coordinator' ended unasked with code 2" in str(failed.value)
    assert str(tmp_path / "coordinator.log") in str(failed.value)


def check_until_it_fails(processes: Processes) -> None:
    while True:
        processes.check()


def test_a_site_that_ends_by_itself_fails_the_demo(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        processes.start_site("quito", tmp_path / "missing.toml")
        with pytest.raises(DemoFailed, match="process 'quito' ended unasked"):
            check_until_it_fails(processes)


def test_a_site_that_was_killed_on_purpose_does_not_fail_the_demo(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        processes.start_site("quito", tmp_path / "missing.toml")
        processes.kill("quito")
        processes.check()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_demo_at_its_next_step_and_only_once(number: signal.Signals) -> None:
    before = signal.getsignal(number)

    with stops_between_steps():
        signal.raise_signal(number)
        with pytest.raises(KeyboardInterrupt):
            stop_if_asked()
        stop_if_asked()

    assert signal.getsignal(number) is before


def test_a_process_check_and_a_line_of_progress_are_steps(tmp_path: Path) -> None:
    with stops_between_steps():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            Processes(tmp_path).check()
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            DemoView(None, None).now("training")
