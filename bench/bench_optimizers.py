"""Speed of server steps and of private noise, one thread. Results are checked before the time.

A step reads model, mean and moments once and writes model and moments once. A copy moves each
byte of its payload twice, so half of what a step moves is what its speed is counted in: 14 bytes
per coordinate for FedAdam. "of copy" then says how much of the memory's speed a step gets.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from harness import Report

from veilsum import Aggregator, ModelLayout, _native
from veilsum._native import Secret
from veilsum.optimizers import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedYogi

ELEMENTS = 1 << 24
# Settings, and arrays of four bytes that a step reads or writes.
CASES = [
    (FedAvg(0.5), 3),
    (FedAvgM(0.5), 5),
    (FedAdagrad(), 5),
    (FedAdam(), 7),
    (FedYogi(), 7),
]


def _values(seed: int, scale: float, elements: int = ELEMENTS) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal(elements, np.float32)
    return values * np.float32(scale)


def _numpy_adam(model: np.ndarray, mean: np.ndarray, moments: Any, spare: np.ndarray) -> None:
    """FedAdam as NumPy code has it, in place, with one spare array."""
    first, second = moments
    first *= np.float32(0.9)
    np.multiply(mean, np.float32(0.1), out=spare)
    first += spare
    second *= np.float32(0.99)
    np.multiply(mean, mean, out=spare)
    spare *= np.float32(0.01)
    second += spare
    np.sqrt(second, out=spare)
    spare += np.float32(1e-3)
    np.divide(first, spare, out=spare)
    spare *= np.float32(0.1)
    model += spare


@pytest.mark.parametrize(("settings", "arrays"), CASES, ids=lambda case: getattr(case, "name", ""))
def test_one_server_step(settings: Any, arrays: int, report: Report, torch_one_thread: Any) -> None:
    torch = torch_one_thread
    layout = ModelLayout(_native.Layout([("w", "f32", (ELEMENTS,))]))
    model, mean = {"w": _values(1, 1.0)}, {"w": _values(2, 0.01)}
    start = model["w"].copy()
    optimizer = settings.start(layout, threads=1)

    optimizer.step(model, mean, out=model)

    theirs = start.copy()
    moments = (np.zeros(ELEMENTS, np.float32), np.full(ELEMENTS, 1e-6, np.float32))
    spare = np.empty(ELEMENTS, np.float32)
    _numpy_adam(theirs, mean["w"], moments, spare)
    if settings.name == "fedadam":
        np.testing.assert_allclose(model["w"], theirs, rtol=1e-5, atol=1e-6)
    assert not np.array_equal(model["w"], start)

    tensors = [torch.from_numpy(array) for array in (theirs, mean["w"], *moments)]

    def torch_adam() -> None:
        values, change, first, second = tensors
        first.mul_(0.9).add_(change, alpha=0.1)
        second.mul_(0.99).addcmul_(change, change, value=0.01)
        values.addcdiv_(first, second.sqrt().add_(1e-3), value=0.1)

    adam = settings.name == "fedadam"
    report(
        lambda: optimizer.step(model, mean, out=model),
        numpy=(lambda: _numpy_adam(theirs, mean["w"], moments, spare)) if adam else None,
        torch=torch_adam if adam else None,
        size=4 * ELEMENTS * arrays // 2,
        coordinates=ELEMENTS,
    )


def test_the_mean_of_12_updates_and_the_step_in_one_pass(report: Report) -> None:
    elements = ELEMENTS // 4
    layout = ModelLayout(_native.Layout([("w", "f32", (elements,))]))
    model = {"w": _values(1, 1.0, elements)}
    aggregator = Aggregator(layout, threads=1)
    for number in range(12):
        aggregator.add({"w": _values(number, 0.01, elements)}, weight=1 + number, site=f"{number}")
    fused, apart = FedAdam().start(layout, threads=1), FedAdam().start(layout, threads=1)
    out, other = {"w": np.empty_like(model["w"])}, {"w": np.empty_like(model["w"])}
    native = aggregator._native

    def one_pass() -> None:
        with fused.stepping(model, gain=1.0, out=out) as (step, _):
            native.finish_step(step)

    def two_passes() -> None:
        (mean,) = native.finish()
        apart.step(model, {"w": mean}, out=other)

    one_pass()
    two_passes()
    np.testing.assert_array_equal(out["w"], other["w"])
    report(
        one_pass,
        peers={"two passes": two_passes},
        size=4 * elements * 12,
        coordinates=elements * 12,
    )


def test_discrete_gaussian_noise(report: Report) -> None:
    count = 1 << 20
    key = Secret.from_bytes(bytes(range(32)))

    def ours() -> np.ndarray:
        return _native.sample_discrete_gaussian(key, stream=1, sigma=2**30, count=count)

    generator = np.random.default_rng(1)
    assert abs(ours().std() / 2**30 - 1) < 0.01
    report(
        ours,
        numpy=lambda: generator.standard_normal(count),  # neither exact nor unpredictable
        size=8 * count,
        coordinates=count,
    )
