"""Mean and server step in one pass; gains of single updates."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from reference import mean as reference
from veilsum import Aggregator, ModelLayout, Streaming, _native, encode
from veilsum.arrays import round_to_bfloat16, widen_bfloat16
from veilsum.errors import ConfigError, PeerError
from veilsum.model import result_digest
from veilsum.optimizers import (
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedYogi,
    effective_steps,
    fednova_gain,
)

TENSORS = [
    ("a", "f32", (9000,)),
    ("h", "f16", (70,)),
    ("n", "i16", (5000,)),
    ("d", "f32", (3, 5)),
    ("b", "bf16", (130,)),
    ("u", "i64", ()),
]
LAYOUT = ModelLayout(_native.Layout(TENSORS))
WITH_DOUBLES = ModelLayout(_native.Layout([*TENSORS, ("w", "f64", (77,))]))
WEIGHTS = {"lyon": 12, "osaka": 700, "quito": 3}
SETTINGS = [FedAvg(0.5), FedAvgM(), FedAdagrad(), FedAdam(), FedYogi()]


def values_of(seed: int, layout: ModelLayout) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)

    def one(dtype: str, shape: tuple[int, ...]) -> Any:
        if dtype in ("i16", "i64"):
            return np.asarray(rng.integers(-900, 900, shape)).astype({"i16": "i2"}.get(dtype, "i8"))
        values = rng.normal(size=shape)
        if dtype == "bf16":
            return widen_bfloat16(round_to_bfloat16(values.astype(np.float32)))
        return values.astype({"f16": "f2", "f32": "f4", "f64": "f8"}[dtype])

    return {name: one(dtype, shape) for name, dtype, shape in layout.native.tensors}


def filled(layout: ModelLayout, **options: Any) -> Aggregator:
    aggregator = Aggregator(layout, **options)
    for number, (site, weight) in enumerate(WEIGHTS.items()):
        aggregator.add(values_of(number, layout), weight=weight, site=site)
    return aggregator


def bits(model: Any) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in model.items()}


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: s.name)
@pytest.mark.parametrize("layout", [LAYOUT, WITH_DOUBLES], ids=["floats", "doubles"])
@pytest.mark.parametrize(
    "options", [{}, {"threads": 3}, {"streaming": Streaming(10.0, 10_000)}], ids=str
)
def test_one_pass_gives_the_bits_of_mean_and_step(
    settings: Any, layout: ModelLayout, options: Any
) -> None:
    model = values_of(99, layout)
    apart, fused = settings.start(layout), settings.start(layout)

    for _ in range(2):
        aggregator = filled(layout, **options)
        mean = aggregator.finish()
        expected = apart.step(model, mean.arrays, gain=1.5)
        result = aggregator.finish_step(model, fused, gain=1.5)

        assert bits(result.arrays) == bits(expected)
        assert result.digest == result_digest(layout, expected)
        assert (result.sites, result.total_weight) == (mean.sites, mean.total_weight)
        model = expected
    assert fused.to_bytes() == apart.to_bytes()


def test_a_model_can_be_stepped_where_it_lies() -> None:
    layout = ModelLayout(_native.Layout([("w", "f32", (5000,)), ("v", "bf16", (100,))]))
    update = values_of(1, layout)
    model = {**values_of(2, layout), "v": np.full(100, 0x3F80, np.uint16)}
    aggregator = Aggregator(layout)
    aggregator.add(update, weight=1, site="lyon")
    expected = aggregator.finish_step(model, FedAdam().start(layout))

    stepped = aggregator.finish_step(model, FedAdam().start(layout), out=model)

    assert stepped.arrays["w"] is model["w"]
    assert stepped.digest == expected.digest == result_digest(layout, model)


def test_an_optimizer_of_another_layout_is_refused_before_anything_is_done() -> None:
    optimizer = FedAdam().start(WITH_DOUBLES)

    with pytest.raises(ConfigError, match="another layout"):
        filled(LAYOUT).finish_step(values_of(9, LAYOUT), optimizer)

    assert optimizer.steps == 0
    optimizer.state()


def test_a_step_by_no_updates_is_refused() -> None:
    with pytest.raises(ConfigError, match="no mean of no updates"):
        Aggregator(LAYOUT).finish_step(values_of(9, LAYOUT), FedAvg().start(LAYOUT))


# --- gains ------------------------------------------------------------------------


def gained_mean(updates: list[tuple[int, float, list[float]]], s: int) -> list[float]:
    """sum(round(value * (weight * gain * 2^s))) * 2^-s / sum(weight), rounded to f32."""
    total = sum(weight for weight, _, _ in updates)
    means = []
    for place in range(len(updates[0][2])):
        steps = 0
        for weight, gain, values in updates:
            factor = float(Fraction(weight) * Fraction(gain) * Fraction(2) ** s)
            steps += round(Fraction(values[place] * factor))
        means.append(reference.mean_of_sum(steps, s, total, "f32"))
    return means


@pytest.mark.parametrize("isa", _native.supported_isas())
@pytest.mark.parametrize("streaming", [None, Streaming(8.0, 1000)], ids=["spool", "streaming"])
def test_a_gain_multiplies_values_and_not_the_divisor(isa: str, streaming: Any) -> None:
    _native.use_isa(isa)
    layout = ModelLayout(_native.Layout([("w", "f32", (300,)), ("n", "i32", (3,))]))
    gains = {"lyon": 1.0, "osaka": 1 / 3, "quito": 2.0**-32}
    aggregator = Aggregator(layout, streaming=streaming)
    updates, largest = [], []
    for number, (site, gain) in enumerate(gains.items()):
        values = np.random.default_rng(number).normal(size=300).astype(np.float32)
        counters = np.full(3, 10 * number, np.int32)
        aggregator.add({"w": values, "n": counters}, weight=number + 1, site=site, gain=gain)
        updates.append((number + 1, gain, values.tolist()))
        largest.append(float(np.abs(values).max()))

    result = aggregator.finish().arrays

    s = (
        reference.tile_exponent(largest, [1, 2, 3])
        if streaming is None
        else reference.scale_exponent(4 + (1000).bit_length(), 1)
    )
    assert result["w"].tolist() == gained_mean(updates, s)
    assert result["n"].tolist() == [13, 13, 13]  # (0 + 2 * 10 + 3 * 20) / 6


def test_gains_reach_encoded_updates_too() -> None:
    layout = ModelLayout(_native.Layout([("w", "f32", (300,))]))
    values = {"w": np.random.default_rng(1).normal(size=300).astype(np.float32)}
    means = []
    for update in (values, encode(values, codec="f32"), encode(values, codec="f32").to_bytes()):
        aggregator = Aggregator(layout)
        aggregator.add(update, weight=5, site="lyon", gain=0.3)
        means.append(aggregator.finish().digest)

    assert len(set(means)) == 1


@pytest.mark.parametrize("gain", [0.0, -1.0, 1.0000001, float("nan"), 2.0**-33])
def test_a_gain_that_could_overflow_or_vanish_is_refused(gain: float) -> None:
    layout = ModelLayout(_native.Layout([("w", "f32", (3,))]))

    with pytest.raises(PeerError, match="allowed is 2\\*\\*-32 to 1"):
        Aggregator(layout).add({"w": np.ones(3, np.float32)}, weight=1, site="a", gain=gain)


def test_fednova_is_a_gain_per_site_and_one_of_the_mean() -> None:
    layout = ModelLayout(_native.Layout([("w", "f32", (1,))]))
    weights, steps = {"lyon": 100, "quito": 300}, {"lyon": 8, "quito": 2}
    updates = {"lyon": 5.0, "quito": -1.0}
    aggregator = Aggregator(layout)
    for site, value in updates.items():
        aggregator.add(
            {"w": np.full(1, value, np.float32)},
            weight=weights[site],
            site=site,
            gain=fednova_gain(steps[site]),
        )

    model = aggregator.finish_step(
        {"w": np.full(1, 10.0, np.float32)},
        FedAvg().start(layout),
        gain=effective_steps(weights, steps),
    )

    # p = 1/4, 3/4; effective steps 8/4 + 2*3/4 = 3.5; direction 5/32 - 3/8
    assert model.arrays["w"][0] == np.float32(10.0 + 3.5 * (5 / 32 - 3 / 8))
