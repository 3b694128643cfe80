"""Server optimizers: the papers' formulas to the last bit, whatever runs them; their state."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference import optimizers as reference
from veilsum import ModelLayout, _native, optimizers
from veilsum.arrays import round_to_bfloat16, widen_bfloat16
from veilsum.errors import ConfigError, DecodeError
from veilsum.optimizers import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedYogi
from veilsum.optimizers.state import OptimizerState

TENSORS = [
    ("a", "f32", (90,)),
    ("h", "f16", (70,)),
    ("n", "i16", (5,)),
    ("d", "f64", (3, 5)),
    ("b", "bf16", (67,)),
    ("e", "f32", (0,)),
    ("s", "f32", ()),
]
LAYOUT = ModelLayout(_native.Layout(TENSORS))
SETTINGS = [
    FedAvg(learning_rate=0.7),
    FedAvgM(learning_rate=0.3, momentum=0.85),
    FedAdagrad(learning_rate=0.05, tau=1e-2),
    FedAdam(learning_rate=0.02, beta1=0.9, beta2=0.99, tau=1e-3),
    FedYogi(learning_rate=0.02, beta1=0.8, beta2=0.95, tau=1e-4),
]
every_optimizer = pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: s.name)


def values_of(seed: int, scale: float) -> dict[str, np.ndarray]:
    """Values over twenty powers of two, with zeros of both signs."""
    rng = np.random.default_rng(seed)

    def floats(shape: Any) -> Any:
        values = rng.normal(size=shape) * scale * 2.0 ** rng.integers(-18, 3, shape)
        return np.where(rng.random(shape) < 0.1, -0.0, values)

    return {
        "a": floats(90).astype(np.float32),
        "h": floats(70).astype(np.float16),
        "n": rng.integers(-1000, 1000, 5).astype(np.int16),
        "d": floats((3, 5)),
        "b": widen_bfloat16(round_to_bfloat16(floats(67).astype(np.float32))),
        "e": np.empty(0, np.float32),
        "s": np.asarray(floats(())).astype(np.float32),
    }


MODEL = values_of(0, 1.0)
MEANS = [values_of(seed, 0.1) for seed in range(1, 5)]
GAINS = [1.0, 3.7, 1.0, 0.25]


def oracle(settings: Any) -> reference.Optimizer:
    return reference.Optimizer(
        settings.name,
        settings.learning_rate,
        beta1=getattr(settings, "beta1", getattr(settings, "momentum", 0.0)),
        beta2=getattr(settings, "beta2", 0.0),
        tau=getattr(settings, "tau", 0.0),
    )


def expected_models(settings: Any) -> list[dict[str, np.ndarray]]:
    exact, model, models = oracle(settings), MODEL, []
    for mean, gain in zip(MEANS, GAINS, strict=True):
        new = {}
        for name, dtype, shape in TENSORS:
            old, step = model[name].reshape(-1).tolist(), mean[name].reshape(-1).tolist()
            if dtype == "i16":
                stepped = [x + y for x, y in zip(old, step, strict=True)]
            else:
                stepped = exact.step(name, dtype, old, step, gain)
            new[name] = np.array(stepped, MODEL[name].dtype).reshape(shape)
        models.append(model := new)
    return models


def run(settings: Any, **options: Any) -> list[dict[str, np.ndarray]]:
    optimizer, model, models = settings.start(LAYOUT, **options), MODEL, []
    for mean, gain in zip(MEANS, GAINS, strict=True):
        model = optimizer.step(model, mean, gain=gain)
        models.append(model)
    return models


def bits(model: dict[str, np.ndarray]) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in model.items()}


@every_optimizer
@pytest.mark.parametrize("isa", _native.supported_isas())
def test_every_instruction_set_gives_the_bits_of_the_papers_formulas(
    settings: Any, isa: str
) -> None:
    _native.use_isa(isa)

    models = run(settings, threads=1)

    for found, exact in zip(models, expected_models(settings), strict=True):
        assert bits(found) == bits(exact)


def test_every_optimizer_makes_other_steps_than_the_others() -> None:
    last = [bits(run(settings)[-1])["a"] for settings in SETTINGS]

    assert len(set(last)) == len(SETTINGS)


@every_optimizer
def test_threads_and_the_place_of_the_output_do_not_show_in_a_step(settings: Any) -> None:
    layout = ModelLayout(_native.Layout([("w", "f32", (200_003,)), ("v", "bf16", (70_001,))]))
    rng = np.random.default_rng(5)
    model = {
        "w": rng.normal(size=200_003).astype(np.float32),
        "v": round_to_bfloat16(rng.normal(size=70_001).astype(np.float32)),
    }
    mean = {
        "w": (rng.normal(size=200_003) * 0.1).astype(np.float32),
        "v": round_to_bfloat16((rng.normal(size=70_001) * 0.1).astype(np.float32)),
    }

    one = settings.start(layout, threads=1)
    apart = {"w": np.empty_like(model["w"]), "v": np.empty_like(model["v"])}
    one.step(model, mean, out=apart)
    four = settings.start(layout, threads=4)
    own = {name: array.copy() for name, array in model.items()}
    same = four.step(own, mean, out=own)

    assert same["w"] is own["w"]
    assert bits(own) == bits(apart)
    assert four.to_bytes() == one.to_bytes()


@every_optimizer
@pytest.mark.parametrize("form", ["bytes", "dictionary"])
def test_a_run_that_was_stopped_and_resumed_makes_the_same_models(settings: Any, form: str) -> None:
    undisturbed = run(settings)
    before = settings.start(LAYOUT)
    model = MODEL
    for mean, gain in zip(MEANS[:2], GAINS[:2], strict=True):
        model = before.step(model, mean, gain=gain)

    after = settings.start(LAYOUT)
    if form == "bytes":
        after.load_bytes(before.to_bytes())
    else:
        after.load_state_dict(before.state_dict())
    for mean, gain in zip(MEANS[2:], GAINS[2:], strict=True):
        model = after.step(model, mean, gain=gain)

    assert bits(model) == bits(undisturbed[-1])
    assert after.steps == 4


def test_the_first_step_of_adam_starts_from_zero_and_tau_squared() -> None:
    optimizer = FedAdam(tau=0.5).start(LAYOUT)

    state = optimizer.state_dict()

    assert (state["optimizer"], state["steps"]) == ("fedadam", 0)
    assert all((array == 0).all() for array in state["first"].values())
    assert all((array == 0.25).all() for array in state["second"].values())
    assert {name: str(array.dtype) for name, array in state["first"].items()} == {
        "a": "float32", "h": "float32", "d": "float64", "b": "float32", "e": "float32",
        "s": "float32",
    }  # fmt: skip


def test_a_state_is_refused_by_another_optimizer_or_layout() -> None:
    state = FedAdam().start(LAYOUT).to_bytes()
    other = ModelLayout(_native.Layout([("a", "f32", (91,))]))

    with pytest.raises(ConfigError, match="is of optimizer 'fedadam', not 'fedyogi'"):
        FedYogi().start(LAYOUT).load_bytes(state)
    with pytest.raises(ConfigError, match="another layout"):
        FedAdam().start(other).load_bytes(state)


def _damaged(**changes: Any) -> bytes:
    state = FedAdam().start(LAYOUT).state()
    return replace(state, **changes).to_bytes()


def _moments(**changes: Any) -> dict[str, Any]:
    second = FedAdam().start(LAYOUT).state_dict()["second"]
    return {**second, **changes}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"no such file", "not a safetensors file"),
        (_damaged(second=_moments(a=np.full(90, np.nan, np.float32))), "'a' is not finite"),
        (_damaged(second=_moments(a=np.full(90, -1.0, np.float32))), "is negative"),
        (_damaged(second=_moments(a=np.zeros(90))), r"is float64 \(90,\), expected float32"),
        (_damaged(second={}), "second moments are not those"),
        (_damaged(steps=-1), "steps are negative"),
    ],
)
def test_a_damaged_state_is_refused_and_changes_nothing(data: bytes, message: str) -> None:
    optimizer = FedAdam().start(LAYOUT)
    optimizer.step(MODEL, MEANS[0])
    before = optimizer.to_bytes()

    with pytest.raises(DecodeError, match=message):
        optimizer.load_bytes(data)

    assert optimizer.to_bytes() == before


def test_a_model_file_is_no_optimizer_state() -> None:
    header = b'{"first/a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}    '
    file = len(header).to_bytes(8, "little") + header + bytes(4)

    with pytest.raises(DecodeError, match="not a server optimizer's state"):
        OptimizerState.from_bytes(file)


@pytest.mark.parametrize(
    ("dtype", "old", "mean"),
    [
        ("f16", np.float16(60000), np.float16(6000)),
        ("f32", np.float32(3e38), np.float32(3e38)),
        ("f64", 1.7e308, 1.7e308),
        ("bf16", np.uint16(0x7F7F), np.uint16(0x7F7F)),
        ("i8", np.int8(100), np.int8(28)),
        ("u64", np.uint64(2**64 - 1), np.uint64(1)),
        ("i64", np.int64(-(2**63)), np.int64(-1)),
    ],
)
def test_a_value_that_does_not_fit_is_refused_and_no_step_follows(
    dtype: str, old: Any, mean: Any
) -> None:
    layout = ModelLayout(_native.Layout([("t", dtype, (3,))]))
    optimizer = FedAvg().start(layout)
    fine = {"t": np.zeros(3, np.asarray(old).dtype)}
    bad = {"t": np.array([0, 0, mean], np.asarray(old).dtype)}
    clean = optimizer.state()

    with pytest.raises(ConfigError, match=f"new values of tensor 't' do not fit {dtype}"):
        optimizer.step({"t": np.array([0, 0, old], np.asarray(old).dtype)}, bad)
    with pytest.raises(ConfigError, match="last step failed"):
        optimizer.step(fine, fine)
    with pytest.raises(ConfigError, match="last step failed"):
        optimizer.state()

    optimizer.load_state(clean)
    optimizer.step(fine, fine)
    assert optimizer.steps == 1


def test_a_second_moment_that_overflows_is_refused() -> None:
    layout = ModelLayout(_native.Layout([("t", "f32", (1,))]))
    one = {"t": np.ones(1, np.float32)}

    with pytest.raises(ConfigError, match="do not fit f32"):
        FedAdam().start(layout).step(one, {"t": np.full(1, 1e30, np.float32)})


def test_arrays_that_could_not_take_the_result_are_refused() -> None:
    layout = ModelLayout(_native.Layout([("t", "f32", (2, 2))]))
    model = {"t": np.ones((2, 2), np.float32)}
    step = FedAvg().start(layout).step
    fixed = np.ones((2, 2), np.float32)
    fixed.flags.writeable = False

    for bad, error in [
        ({"t": fixed}, "must be writable"),
        ({"t": np.asfortranarray(np.ones((2, 2), np.float32))}, "must be C-contiguous"),
        ({"t": np.ones((2, 2))}, "must have dtype float32"),
        ({"t": np.ones(4, np.float32)}, r"array of shape \(2, 2\)"),
        ({}, "no more and no fewer"),
    ]:
        with pytest.raises((TypeError, ConfigError), match=error):
            step(model, model, out=bad)
    step(model, model)  # none of them has spoiled it


@pytest.mark.parametrize("gain", [0.0, -1.0, math.inf, math.nan])
def test_a_gain_that_is_not_positive_and_finite_is_refused(gain: float) -> None:
    with pytest.raises(ConfigError, match="gain must be positive and finite"):
        FedAvg().start(LAYOUT).step(MODEL, MEANS[0], gain=gain)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FedAvg(learning_rate=0.0), "learning_rate must be positive"),
        (lambda: FedAvgM(momentum=1.0), "momentum must be at least 0 and below 1"),
        (lambda: FedAdam(beta1=-0.1), "beta1 must be at least 0"),
        (lambda: FedYogi(beta2=1.0), "beta2 must be at least 0"),
        (lambda: FedAdagrad(tau=math.inf), "tau must be positive and finite"),
        (lambda: optimizers.optimizer_settings("adamw"), "unknown optimizer 'adamw'"),
        (lambda: optimizers.optimizer_settings("fedavg", tau=1.0), "no parameter 'tau'"),
    ],
)
def test_settings_that_cannot_work_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_settings_can_be_named() -> None:
    assert optimizers.optimizer_settings("fedadam", beta1=0.5) == FedAdam(beta1=0.5)


@given(st.dictionaries(st.text(min_size=1), st.integers(1, 2**31 - 1), min_size=1, max_size=9))
def test_effective_steps_of_equal_sites_are_their_steps(weights: dict[str, int]) -> None:
    assert optimizers.effective_steps(weights, dict.fromkeys(weights, 7)) == 7.0


def test_fednova_weighs_normalised_updates_as_its_paper_does() -> None:
    weights, steps = {"lyon": 100, "quito": 300}, {"lyon": 10, "quito": 2}
    update = {"lyon": 5.0, "quito": -1.0}

    mean = sum(weights[s] * optimizers.fednova_gain(steps[s]) * update[s] for s in weights) / 400
    moved = optimizers.effective_steps(weights, steps) * mean

    share = {"lyon": 0.25, "quito": 0.75}
    effective = sum(share[s] * steps[s] for s in share)
    direction = sum(share[s] * update[s] / steps[s] for s in share)
    assert moved == pytest.approx(effective * direction)
    assert effective == 4.0


@pytest.mark.parametrize(
    ("weights", "steps"),
    [({}, {}), ({"a": 1}, {"b": 1}), ({"a": 1}, {"a": 0}), ({"a": 0}, {"a": 1})],
)
def test_local_steps_that_make_no_sense_are_refused(
    weights: dict[str, int], steps: dict[str, int]
) -> None:
    with pytest.raises(ConfigError):
        optimizers.effective_steps(weights, steps)
