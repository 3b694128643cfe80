"""The thread in which a site's own training code runs."""

from __future__ import annotations

import importlib
import queue
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from veilsum.control import RoundId
from veilsum.errors import ConfigError
from veilsum.site.effects import Train
from veilsum.site.events import SiteEvent, TrainingDone, TrainingFailed, TrainingProgressed
from veilsum.site.trainer import EvaluationResult, Trainer, TrainingResult, train_and_evaluate
from veilsum.transport.logs import Log

_PROGRESS_SECONDS = 0.5


def load_trainer(name: str, settings: Mapping[str, Any]) -> Trainer:
    """Imports and calls the "package.module:factory" of this site's own configuration.

    Raises:
        ConfigError: no such module or name, or the factory does not take these settings.
    """
    module_name, _, attribute = name.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"cannot find the trainer {name!r}: {error}",
            hint="it must be importable: install its package, or set PYTHONPATH to its folder",
        ) from error
    try:
        trainer = factory(**settings)
    except TypeError as error:
        raise ConfigError(
            f"the trainer {name!r} does not take these settings: {error}",
            hint="compare trainer_settings with the factory's arguments",
        ) from error
    missing = [part for part in ("fit", "evaluate") if not callable(getattr(trainer, part, None))]
    if missing:
        raise ConfigError(f"what {name!r} made has no method {missing[0]!r}, so it is no trainer")
    return trainer  # type: ignore[no-any-return]


class _Stopped(Exception):  # noqa: N818  a request, not an error
    """The round no longer wants the result."""


@dataclass(eq=False)
class _Job:
    train: Train
    stop: threading.Event = field(default_factory=threading.Event)
    reported: float = 0.0


class TrainingThread:
    """Trains for one round at a time.

    A daemon thread: a training that takes hours must not keep a stopped process alive.

    Args:
        post: takes events, from this thread.
    """

    def __init__(self, trainer: Trainer, post: Callable[[SiteEvent], None], log: Log) -> None:
        self._trainer = trainer
        self._post = post
        self._log = log
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()  # None ends the thread
        self._wanted: _Job | None = None
        threading.Thread(target=self._work, name="training", daemon=True).start()

    def start(self, train: Train) -> None:
        """Trains when what ran before has come to its end; that is asked to stop."""
        self._stop_all()
        self._wanted = _Job(train)
        self._jobs.put(self._wanted)

    def stop(self, round_id: RoundId) -> None:
        """The result of this round is not wanted any more."""
        if self._wanted is not None and self._wanted.train.round == round_id:
            self._wanted.stop.set()

    def close(self) -> None:
        """Ends the thread when what runs has come to its end; that is asked to stop."""
        self._stop_all()
        self._jobs.put(None)

    def _stop_all(self) -> None:
        if self._wanted is not None:
            self._wanted.stop.set()
        # One that was not begun holds a model, and what runs may take long to come to its end.
        with suppress(queue.Empty):
            self._jobs.get_nowait()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if not job.stop.is_set():
                self._run(job)

    def _run(self, job: _Job) -> None:
        train = job.train
        began = time.monotonic()
        try:
            result, evaluation = train_and_evaluate(
                self._trainer,
                train.arrays,
                train.task,
                lambda fraction: self._report(job, fraction),
            )
            if not isinstance(result, TrainingResult) or not isinstance(
                evaluation, EvaluationResult
            ):
                raise TypeError("fit must return a TrainingResult, evaluate an EvaluationResult")
        except _Stopped:
            self._log.info("training stopped", run=train.round.run_id, round=train.round.number)
        except Exception as error:  # noqa: BLE001
            # The site's own code may raise anything. The traceback stays in the site's log.
            self._log.exception("training failed", run=train.round.run_id)
            self._post(TrainingFailed(train.round, type(error).__name__))
        else:
            self._log.info(
                "training done",
                run=train.round.run_id,
                round=train.round.number,
                examples=result.weight,
                seconds=time.monotonic() - began,
            )
            self._post(TrainingDone(train.round, result, evaluation))

    def _report(self, job: _Job, fraction: float) -> None:
        if job.stop.is_set():
            raise _Stopped
        now = time.monotonic()
        if now - job.reported >= _PROGRESS_SECONDS:
            job.reported = now
            self._post(TrainingProgressed(job.train.round, min(max(float(fraction), 0.0), 1.0)))
