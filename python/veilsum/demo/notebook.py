"""What a demo site writes down of each training, for the proof that masked equals plain.

<folder>/<site>/<hash of the model trained from>.trained.npz
<folder>/<site>/<hash of the model measured>.measured.json
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

from veilsum.errors import ConfigError
from veilsum.model import ModelLayout, result_digest
from veilsum.site.trainer import Arrays, EvaluationResult, TrainingResult

_WEIGHT = "weight"
_METRICS = "metrics"
_TENSOR = "tensor:"


class Notebook:
    """One site's pages. A page is complete or not there, even if its writer is killed."""

    def __init__(self, folder: Path, site: str) -> None:
        self._folder = folder / site
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def note_training(self, model: Arrays, result: TrainingResult) -> None:
        """Keeps what training from `model` gave."""
        columns: dict[str, Any] = {_TENSOR + name: array for name, array in result.arrays.items()}
        columns[_WEIGHT] = np.array(result.weight)
        columns[_METRICS] = np.array(json.dumps(dict(result.metrics)))
        name = f"{_hash(model)}.trained.npz"
        self._write(name, lambda stream: np.savez(stream, allow_pickle=False, **columns))

    def note_evaluation(self, model: Arrays, result: EvaluationResult) -> None:
        """Keeps how good `model` is."""
        page = {"metrics": dict(result.metrics), "examples": result.examples}
        data = json.dumps(page).encode()
        self._write(f"{_hash(model)}.measured.json", lambda stream: stream.write(data))

    def training(self, model_hash: str) -> TrainingResult:
        """What training from the model of that hash gave.

        Raises:
            ConfigError: it is not there.
        """
        with np.load(self._page(f"{model_hash}.trained.npz"), allow_pickle=False) as columns:
            arrays = {
                name.removeprefix(_TENSOR): columns[name]
                for name in columns.files
                if name.startswith(_TENSOR)
            }
            return TrainingResult(arrays, int(columns[_WEIGHT]), json.loads(str(columns[_METRICS])))

    def evaluation(self, model_hash: str) -> EvaluationResult:
        """How good the model of that hash is.

        Raises:
            ConfigError: it is not there.
        """
        page = json.loads(self._page(f"{model_hash}.measured.json").read_bytes())
        return EvaluationResult(page["metrics"], page["examples"])

    def _page(self, name: str) -> Path:
        file = self._folder / name
        if not file.is_file():
            raise ConfigError(f"site {self._folder.name!r} has no note {name}")
        return file

    def _write(self, name: str, write: Callable[[IO[bytes]], object]) -> None:
        unfinished = self._folder / f".{name}"
        with open(unfinished, "wb") as stream:
            write(stream)
        os.replace(unfinished, self._folder / name)


def _hash(model: Arrays) -> str:
    """The model's name in plans and records."""
    return result_digest(ModelLayout.from_arrays(model), model)
