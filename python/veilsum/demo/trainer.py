"""The trainer that the demo's sites run; their site.toml names make_trainer."""

from __future__ import annotations

from pathlib import Path

import torch

from veilsum.control import TaskSettings
from veilsum.demo import model as network
from veilsum.demo.data import hospitals, load_nodules
from veilsum.demo.metrics import auc
from veilsum.demo.notebook import Notebook
from veilsum.errors import ConfigError
from veilsum.site.torch_trainer import Examples, TorchTrainer
from veilsum.site.trainer import Arrays, EvaluationResult, Report, TrainingResult

MOMENTUM = 0.5


def make_trainer(*, site: str, sites: int, notebook: str) -> NotedTrainer:
    """The trainer of one site.

    Args:
        site: which one.
        sites: how many there are.
        notebook: folder for what the demo's proof needs to know of this site's trainings.

    Raises:
        ConfigError: there is no such site.
    """
    network.one_thread()
    nodules = load_nodules()
    for hospital in hospitals(nodules, sites):
        if hospital.name == site:
            inner = torch_trainer(
                network.examples(nodules, hospital.train),
                network.examples(nodules, hospital.test),
            )
            return NotedTrainer(inner, Notebook(Path(notebook), site))
    raise ConfigError(f"there is no site {site!r} among the demo's {sites}")


def torch_trainer(train: Examples, validation: Examples | None = None) -> TorchTrainer:
    """How the demo trains, at a site and in the comparison alike."""
    return TorchTrainer(
        network.build_model(0),
        network.loss,
        train,
        validation=validation,
        metrics={"auc": _auc},
        momentum=MOMENTUM,
    )


def _auc(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    return auc(outputs.numpy(), targets.numpy())


class NotedTrainer:
    """See site.trainer.Trainer. Writes down every result.

    The demo's proof sums the same updates again; a site that is not part of a demonstration
    has no reason to keep them.
    """

    def __init__(self, inner: TorchTrainer, notebook: Notebook) -> None:
        self._inner = inner
        self._notebook = notebook

    def fit(self, model: Arrays, task: TaskSettings, report: Report) -> TrainingResult:
        """Trains from `model`."""
        result = self._inner.fit(model, task, report)
        self._notebook.note_training(model, result)
        return result

    def evaluate(self, model: Arrays, task: TaskSettings) -> EvaluationResult:
        """Measures `model` on this site's own unseen patients."""
        result = self._inner.evaluate(model, task)
        self._notebook.note_evaluation(model, result)
        return result
