"""The PyTorch trainer: arrays in, arrays out, the same every time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from veilsum.control import TaskSettings
from veilsum.errors import ConfigError
from veilsum.site.torch_trainer import Examples, TorchTrainer, load_arrays, module_arrays
from veilsum.site.trainer import EvaluationResult, train_and_evaluate


class Net(torch.nn.Module):
    """Something of everything: dropout, a counter, tensors of two dtypes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(3, 8)
        self.norm = torch.nn.BatchNorm1d(8)
        self.dropout = torch.nn.Dropout(0.3)
        self.last = torch.nn.Linear(8, 1)
        self.register_buffer("scale", torch.ones(2, dtype=torch.bfloat16))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        hidden = self.dropout(torch.relu(self.norm(self.first(rows))))
        return self.last(hidden).squeeze(1)


def examples(count: int, seed: int = 1) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 3, generator=generator)
    return Examples(inputs, inputs @ torch.tensor([1.0, -2.0, 0.5]))


def net(seed: int = 0) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Net()


def trainer(**options: Any) -> TorchTrainer:
    return TorchTrainer(net(), torch.nn.functional.mse_loss, examples(37), **options)


def linear(loss: Any = torch.nn.functional.mse_loss, **options: Any) -> TorchTrainer:
    return TorchTrainer(torch.nn.Linear(3, 1, bias=False), loss, _column(examples(8)), **options)


def _column(made: Examples) -> Examples:
    return Examples(made.inputs, made.targets.unsqueeze(1))


def ignore(fraction: float) -> None:
    del fraction


TASK = TaskSettings(epochs=3, batch_size=8, learning_rate=0.05, seed=5)


def test_training_lowers_the_loss_and_leaves_the_received_model_alone() -> None:
    model = module_arrays(net())
    before = {name: array.copy() for name, array in model.items()}

    first = trainer().fit(model, TaskSettings(epochs=1, batch_size=8), ignore)
    last = trainer().fit(model, TaskSettings(epochs=20, batch_size=8), ignore)

    assert last.metrics["train_loss"] < 0.5 * first.metrics["train_loss"]
    assert last.weight == 37
    _assert_equal(model, before)


def test_the_same_seed_gives_the_same_bits_whatever_torch_drew_before() -> None:
    model = module_arrays(net())
    torch.manual_seed(1)
    one = trainer(momentum=0.9).fit(model, TASK, ignore)
    torch.manual_seed(2)
    two = trainer(momentum=0.9).fit(model, TASK, ignore)

    _assert_equal(one.arrays, two.arrays)
    assert one.metrics == two.metrics


def test_another_seed_gives_another_model() -> None:
    model = module_arrays(net())
    one = trainer().fit(model, TASK, ignore)
    two = trainer().fit(model, TaskSettings(epochs=3, batch_size=8, seed=6), ignore)

    assert not np.array_equal(one.arrays["first.weight"], two.arrays["first.weight"])


def test_training_leaves_the_global_generator_as_it_was() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)

    trainer().fit(module_arrays(net()), TASK, ignore)

    assert torch.equal(torch.rand(4), expected)


def test_a_second_training_starts_from_the_model_it_is_given() -> None:
    model = module_arrays(net())
    used = trainer(momentum=0.9)
    used.fit(module_arrays(net(seed=9)), TASK, ignore)

    _assert_equal(
        used.fit(model, TASK, ignore).arrays, trainer(momentum=0.9).fit(model, TASK, ignore).arrays
    )


def test_one_full_batch_step_is_gradient_descent_by_hand() -> None:
    data = _column(examples(8))
    start = np.array([[0.5, -0.25, 1.0]], np.float32)

    result = linear().fit({"weight": start}, TaskSettings(batch_size=8, learning_rate=0.1), ignore)

    inputs, targets = data.inputs.double().numpy(), data.targets.double().numpy()
    gradient = 2 * (inputs @ start.T - targets).T @ inputs / 8
    np.testing.assert_allclose(result.arrays["weight"], start - 0.1 * gradient, rtol=1e-5)


def test_the_proximal_term_pulls_towards_the_received_model() -> None:
    data = _column(examples(8))
    start = np.array([[0.5, -0.25, 1.0]], np.float32)
    task = TaskSettings(epochs=2, batch_size=8, learning_rate=0.1, proximal=0.7)

    result = linear().fit({"weight": start}, task, ignore)

    inputs, targets = data.inputs.double().numpy(), data.targets.double().numpy()
    weight = start.astype(np.float64)
    for _ in range(2):
        gradient = 2 * (inputs @ weight.T - targets).T @ inputs / 8
        weight = weight - 0.1 * (gradient + 0.7 * (weight - start))
    np.testing.assert_allclose(result.arrays["weight"], weight, rtol=1e-5)


def test_progress_rises_to_one_in_equal_steps() -> None:
    fractions: list[float] = []

    trainer().fit(module_arrays(net()), TASK, fractions.append)

    assert fractions == [(n + 1) / 15 for n in range(15)]  # 3 epochs of 5 batches


def test_a_report_that_raises_stops_training() -> None:
    def stop(fraction: float) -> None:
        raise InterruptedError(fraction)

    with pytest.raises(InterruptedError):
        trainer().fit(module_arrays(net()), TASK, stop)


def test_evaluation_measures_the_received_model_without_dropout_or_gradients() -> None:
    def error(outputs: torch.Tensor, targets: torch.Tensor) -> float:
        assert not outputs.requires_grad
        return float((outputs - targets).abs().mean())

    held_out = examples(11, seed=2)
    measured = trainer(validation=held_out, metrics={"mae": error})
    model = module_arrays(net(seed=4))

    found = measured.evaluate(model, TASK)

    reference = net(seed=4).eval()
    with torch.no_grad():
        expected = float((reference(held_out.inputs) - held_out.targets).abs().mean())
    assert found.examples == 11
    assert found.metrics == pytest.approx({"mae": expected}, rel=1e-5)


def test_without_held_out_examples_there_is_nothing_to_measure() -> None:
    assert trainer().evaluate(module_arrays(net()), TASK) == EvaluationResult()


def test_the_model_is_measured_as_received_and_trained_afterwards() -> None:
    model = module_arrays(net())
    both = trainer(validation=examples(5), metrics={"mean": lambda outputs, _: outputs.mean()})

    result, evaluation = train_and_evaluate(both, model, TASK, ignore)

    assert evaluation == both.evaluate(model, TASK)
    _assert_equal(result.arrays, trainer().fit(model, TASK, ignore).arrays)


def test_arrays_are_in_state_dict_order_and_bfloat16_travels_as_bit_patterns() -> None:
    arrays = module_arrays(net())

    assert list(arrays) == list(net().state_dict())
    assert (arrays["scale"].dtype, arrays["scale"].tolist()) == (np.uint16, [0x3F80, 0x3F80])
    assert arrays["norm.num_batches_tracked"].dtype == np.int64
    assert arrays["norm.num_batches_tracked"].shape == ()


def test_loading_what_was_read_changes_nothing() -> None:
    source, target = net(seed=1), net(seed=2)
    arrays = {name: array.copy() for name, array in module_arrays(source).items()}
    arrays["scale"][:] = 0x4040

    load_arrays(target, arrays)

    _assert_equal(module_arrays(target), arrays)
    assert target.scale.tolist() == [3.0, 3.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra": np.zeros(1, np.float32)}, "the model has tensors"),
        ({"last.bias": np.zeros(2, np.float32)}, "tensor 'last.bias' of the model is float32"),
        ({"last.bias": np.zeros(1, np.float64)}, "tensor 'last.bias' of the model is float64"),
    ],
)
def test_a_model_that_is_not_the_modules_is_refused(
    change: dict[str, NDArray[Any]], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        trainer().fit({**module_arrays(net()), **change}, TASK, ignore)


def test_settings_that_cannot_work_are_refused() -> None:
    loss = torch.nn.functional.mse_loss
    with pytest.raises(ConfigError, match="no examples to train on"):
        TorchTrainer(net(), loss, examples(0))
    with pytest.raises(ConfigError, match="momentum must be 0 to below 1"):
        trainer(momentum=1.0)
    with pytest.raises(ConfigError, match="3 inputs and 2 targets"):
        Examples(torch.zeros(3, 1), torch.zeros(2))


def _assert_equal(one: Any, other: Any) -> None:
    assert list(one) == list(other)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])
