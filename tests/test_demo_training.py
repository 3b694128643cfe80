"""The demo's model, its trainer, and what federation is compared with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from veilsum.control import TaskSettings
from veilsum.demo.baselines import Comparison, scorecard
from veilsum.demo.data import Nodules, hospitals, load_nodules
from veilsum.demo.model import initial_arrays, scores
from veilsum.demo.notebook import Notebook
from veilsum.demo.options import DemoOptions
from veilsum.demo.trainer import make_trainer
from veilsum.errors import ConfigError
from veilsum.model import ModelLayout, result_digest

QUICK = TaskSettings(epochs=1, batch_size=64, learning_rate=0.1)


@pytest.fixture(scope="module")
def nodules() -> Nodules:
    return load_nodules()


def test_the_model_is_small_and_the_same_for_the_same_seed() -> None:
    first, again, other = initial_arrays(1), initial_arrays(1), initial_arrays(2)

    assert sum(array.size for array in first.values()) < 60_000
    assert {array.dtype for array in first.values()} == {np.dtype(np.float32)}
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert any(not np.array_equal(first[name], other[name]) for name in first)


def test_a_trainer_notes_what_it_gives_to_the_site(tmp_path: Path, nodules: Nodules) -> None:
    trainer = make_trainer(site="hospital-07", sites=12, notebook=str(tmp_path))
    model = initial_arrays(1)

    measured = trainer.evaluate(model, QUICK)
    trained = trainer.fit(model, QUICK, lambda fraction: None)

    name = result_digest(ModelLayout.from_arrays(model), model)
    notebook = Notebook(tmp_path, "hospital-07")
    noted = notebook.training(name)
    assert notebook.evaluation(name) == measured
    assert (noted.weight, noted.metrics) == (trained.weight, trained.metrics)
    assert all(np.array_equal(noted.arrays[k], trained.arrays[k]) for k in trained.arrays)
    assert trained.weight == len(hospitals(nodules)[6].train)
    assert set(measured.metrics) | set(trained.metrics) == set(DemoOptions().run_spec().metrics)


def test_an_update_stays_far_below_the_clip(tmp_path: Path) -> None:
    options = DemoOptions()
    trainer = make_trainer(site="hospital-10", sites=12, notebook=str(tmp_path))
    model = initial_arrays(options.seed)

    trained = trainer.fit(model, options.task(), lambda fraction: None)

    largest = max(np.abs(trained.arrays[name] - model[name]).max() for name in model)
    assert 0 < largest < options.run_spec().clip / 2


def test_no_site_weighs_more_than_the_cap(nodules: Nodules) -> None:
    for sites in range(3, 13):
        cap = DemoOptions(sites=sites).run_spec().weight_cap
        assert max(len(site.train) for site in hospitals(nodules, sites)) <= cap


def test_a_site_that_does_not_exist_has_no_trainer(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no site 'hospital-13'"):
        make_trainer(site="hospital-13", sites=12, notebook=str(tmp_path))


def test_a_scorecard_measures_on_all_and_on_each_site(nodules: Nodules) -> None:
    sites = hospitals(nodules, 3)

    card = scorecard(initial_arrays(1), nodules, sites)

    assert set(card.on_site) == {site.name for site in sites}
    assert 0.0 < card.on_all < 1.0
    assert card.mean_on_site == pytest.approx(np.mean(list(card.on_site.values())))


def test_baselines_are_trained_for_every_site_and_for_all_together(nodules: Nodules) -> None:
    sites = hospitals(nodules, 3)
    told: list[tuple[str, float]] = []

    found = Comparison(
        nodules, sites, initial_arrays(1), QUICK, 2, lambda who, part: told.append((who, part))
    ).baselines()

    names = [*(site.name for site in sites), "all in one place"]
    assert set(found.alone) == set(names[:-1])
    assert told == [(name, part) for name in names for part in (0.5, 1.0)]


def test_a_model_that_broke_is_refused(nodules: Nodules) -> None:
    broken = {
        name: np.full_like(array, np.float32("nan")) for name, array in initial_arrays(1).items()
    }

    with pytest.raises(ConfigError, match="outputs are not finite"):
        scores(broken, nodules, np.arange(4))
