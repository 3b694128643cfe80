"""A trainer for PyTorch modules: plain SGD over tensors in memory.

Deterministic on a CPU: the order of the examples and the module's own randomness (dropout)
follow from the task's seed alone, and PyTorch's global generator is left as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from veilsum.control import TaskSettings
from veilsum.errors import ConfigError
from veilsum.site.trainer import Arrays, EvaluationResult, Report, TrainingResult

if TYPE_CHECKING:
    import torch

Loss: TypeAlias = "Callable[[torch.Tensor, torch.Tensor], torch.Tensor]"
"""(outputs, targets) -> mean loss over the batch, a scalar."""

Metric: TypeAlias = "Callable[[torch.Tensor, torch.Tensor], float]"
"""(outputs, targets) over all held-out examples -> a number."""


@dataclass(frozen=True)
class Examples:
    """Inputs and targets; one example per row of both."""

    inputs: torch.Tensor
    targets: torch.Tensor

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.targets):
            raise ConfigError(
                f"there are {len(self.inputs)} inputs and {len(self.targets)} targets"
            )

    def __len__(self) -> int:
        return len(self.inputs)


class TorchTrainer:
    """See trainer.Trainer.

    Reports the metric "train_loss": mean over the last epoch.

    Args:
        module: its state_dict, in order, is the model; its own values are overwritten.
        loss: mean loss of a batch.
        train: examples to train on, at least one.
        validation: held-out examples; None for none.
        metrics: measured on `validation` by name.
        momentum: of SGD, 0 to below 1.

    Raises:
        ConfigError: no examples, or momentum out of range.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        loss: Loss,
        train: Examples,
        *,
        validation: Examples | None = None,
        metrics: Mapping[str, Metric] | None = None,
        momentum: float = 0.0,
    ) -> None:
        if not len(train):
            raise ConfigError("there are no examples to train on")
        if not 0.0 <= momentum < 1.0:
            raise ConfigError(f"momentum must be 0 to below 1, got {momentum}")
        self._module = module
        self._loss = loss
        self._train = train
        self._validation = validation
        self._metrics = dict(metrics or {})
        self._momentum = momentum

    def fit(self, model: Arrays, task: TaskSettings, report: Report) -> TrainingResult:
        """Trains with the task's epochs, batch size, learning rate and proximal coefficient."""
        import torch

        load_arrays(self._module, model)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(task.seed)
            loss = self._run_epochs(task, report)
        return TrainingResult(module_arrays(self._module), len(self._train), {"train_loss": loss})

    def _run_epochs(self, task: TaskSettings, report: Report) -> float:
        """Mean loss over the last epoch."""
        import torch

        optimizer = torch.optim.SGD(
            self._module.parameters(), lr=task.learning_rate, momentum=self._momentum
        )
        anchors = [parameter.detach().clone() for parameter in self._module.parameters()]
        order = torch.Generator().manual_seed(task.seed)
        batches = -(-len(self._train) // task.batch_size)
        total = 0.0
        self._module.train()
        for epoch in range(task.epochs):
            total = 0.0
            shuffled = torch.randperm(len(self._train), generator=order)
            for number, rows in enumerate(torch.split(shuffled, task.batch_size), start=1):
                loss = self._step(optimizer, rows, anchors, task.proximal)
                total += loss * len(rows)
                report((epoch * batches + number) / (task.epochs * batches))
        return total / len(self._train)

    def _step(
        self,
        optimizer: torch.optim.Optimizer,
        rows: torch.Tensor,
        anchors: Sequence[torch.Tensor],
        proximal: float,
    ) -> float:
        """One step on one batch; its mean loss, without the proximal term."""
        optimizer.zero_grad(set_to_none=True)
        loss = self._loss(self._module(self._train.inputs[rows]), self._train.targets[rows])
        loss.backward()  # type: ignore[no-untyped-call]
        if proximal:
            # Gradient of mu/2 * |w - w_received|^2 (Li et al. 2020, FedProx).
            for parameter, anchor in zip(self._module.parameters(), anchors, strict=True):
                if parameter.grad is not None:
                    parameter.grad.add_(parameter.detach() - anchor, alpha=proximal)
        optimizer.step()
        return float(loss.detach())

    def evaluate(self, model: Arrays, task: TaskSettings) -> EvaluationResult:
        """Measures the metrics on the validation examples, in batches of the task's size."""
        import torch

        if self._validation is None or not len(self._validation) or not self._metrics:
            return EvaluationResult()
        load_arrays(self._module, model)
        self._module.eval()
        with torch.no_grad():
            outputs = torch.cat(
                [
                    self._module(rows)
                    for rows in torch.split(self._validation.inputs, task.batch_size)
                ]
            )
        targets = self._validation.targets
        measured = {name: float(metric(outputs, targets)) for name, metric in self._metrics.items()}
        return EvaluationResult(measured, len(self._validation))


def module_arrays(module: torch.nn.Module) -> dict[str, NDArray[Any]]:
    """A copy of a module's state_dict, in its order; bfloat16 as uint16 bit patterns."""
    return {name: _to_array(tensor) for name, tensor in module.state_dict().items()}


def load_arrays(module: torch.nn.Module, arrays: Arrays) -> None:
    """Overwrites a module's state_dict.

    Raises:
        ConfigError: names, shapes or dtypes are not the module's.
    """
    own = module_arrays(module)
    if list(own) != list(arrays):
        raise ConfigError(f"the model has tensors {list(arrays)}, the module has {list(own)}")
    for name, array in arrays.items():
        if (array.shape, array.dtype) != (own[name].shape, own[name].dtype):
            raise ConfigError(
                f"tensor {name!r} of the model is {array.dtype} {array.shape}, "
                f"the module's is {own[name].dtype} {own[name].shape}"
            )
    state = module.state_dict()
    module.load_state_dict({name: _to_tensor(array, state[name]) for name, array in arrays.items()})


def _to_array(tensor: torch.Tensor) -> NDArray[Any]:
    import torch

    host = tensor.detach().cpu().contiguous()
    if host.dtype == torch.bfloat16:  # NumPy has no such dtype
        return host.view(torch.int16).numpy().view(np.uint16).copy()
    return host.numpy().copy()


def _to_tensor(array: NDArray[Any], like: torch.Tensor) -> torch.Tensor:
    import torch

    if like.dtype == torch.bfloat16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())
