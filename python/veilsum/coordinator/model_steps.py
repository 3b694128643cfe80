"""From model to model: what the means of a run's rounds do to its model and optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from veilsum.coordinator.events import RunSubmitted
from veilsum.coordinator.job_phases import CurrentModel
from veilsum.coordinator.outcome import Finished
from veilsum.coordinator.rounds import ModelRef
from veilsum.coordinator.standing import RestoredRun
from veilsum.errors import ConfigError
from veilsum.model import result_digest
from veilsum.optimizers.applying import (
    FRESH,
    apply_mean,
    saved_state,
    start_optimizer,
    state_hash,
)
from veilsum.optimizers.state import OptimizerState


class ModelSteps:
    """A run's server optimizer.

    Args:
        submitted: with the optimizer's state to go on from.

    Raises:
        ConfigError: the state is not one of this optimizer and layout.
    """

    def __init__(self, submitted: RunSubmitted, threads: int) -> None:
        self._spec = submitted.spec
        self.layout = submitted.layout
        self._threads = threads
        self._load(submitted.optimizer_state)

    def _load(self, state: OptimizerState | None) -> None:
        settings = self._spec.server_optimizer.settings(self._spec.server_learning_rate)
        self._optimizer = start_optimizer(settings, self.layout, state, self._threads)

    def let_go(self) -> None:
        """No step will be made any more. Idempotent."""
        self.__dict__.pop("_optimizer", None)

    @property
    def state(self) -> OptimizerState | None:
        """What has to be kept beside the model; its arrays change with the next step."""
        return saved_state(self._optimizer)

    def refer_to(self, arrays: Mapping[str, NDArray[Any]]) -> CurrentModel:
        """These arrays as the model that the optimizer is at."""
        model_hash = bytes.fromhex(result_digest(self.layout, arrays))
        # Plans of plain rounds do not state the hash of the optimizer's state.
        memory = state_hash(self._optimizer) if self._spec.masked else FRESH
        return CurrentModel(arrays, ModelRef(self.layout, model_hash, None, memory))

    def step(self, model: CurrentModel, result: Finished) -> CurrentModel:
        """The model after a round.

        Raises:
            RoundAborted: a value leaves the range of its tensor's dtype, or the model is not as it
                was kept any more.
        """
        return self.refer_to(
            apply_mean(self._optimizer, model.arrays, result.mean, model_hash=model.ref.model_hash)
        )

    def take_over(
        self, arrays: Mapping[str, NDArray[Any]], state: OptimizerState | None, model_hash: str
    ) -> CurrentModel:
        """The model after a step that was made before, as it was kept.

        Args:
            model_hash: hex, as the round's record has it.

        Raises:
            ConfigError: the model or the state is another.
        """
        self._load(state)
        model = self.refer_to(arrays)
        _require(model, model_hash)
        return model

    def check_kept(self, run: RestoredRun, model: CurrentModel) -> None:
        """After a restart.

        Args:
            model: that the run is to go on from.

        Raises:
            ConfigError: model or optimizer's state are not what the run's last round led to.
        """
        number = run.standing.round.number - 1 if run.standing else 0
        had_state = number > 0 or bool(self._spec.server_optimizer.state_file)
        if had_state and self.state is not None and run.submitted.optimizer_state is None:
            raise ConfigError(
                f"what the server's optimizer remembered after round {number} is gone",
                hint="start a new run, from a model and a state that belong together",
            )
        if number == 0:
            return
        led = [one for one in run.records if one.completed and one.round.number == number]
        if not led:
            raise ConfigError(f"there is no record of round {number}, which led to the kept model")
        _require(model, led[-1].model_hash)


def _require(model: CurrentModel, model_hash: str) -> None:
    found = model.ref.model_hash.hex()
    if found != model_hash:
        raise ConfigError(
            f"the kept model has hash {found}, its round's record says {model_hash}",
            hint="do not change files of a run; start a new one from a model that is in order",
        )
