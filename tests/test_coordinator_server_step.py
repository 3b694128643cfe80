"""What a mean update does to the model, in every dtype; and the difference a site takes."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from veilsum._native import Layout
from veilsum.difference import model_difference, narrow, widen
from veilsum.errors import ConfigError, RoundAborted
from veilsum.model import ModelLayout
from veilsum.optimizers import FedAvg
from veilsum.optimizers.applying import apply_mean


def layout_of(dtype: str, shape: tuple[int, ...]) -> ModelLayout:
    return ModelLayout.from_bytes(Layout([("t", dtype, shape)]).to_bytes())


def step(dtype: str, old: NDArray[Any], mean: NDArray[Any], rate: float = 1.0) -> NDArray[Any]:
    optimizer = FedAvg(rate).start(layout_of(dtype, old.shape))
    return apply_mean(optimizer, {"t": old}, {"t": mean})["t"]


def difference(dtype: str, trained: NDArray[Any], received: NDArray[Any]) -> NDArray[Any]:
    layout = layout_of(dtype, received.shape)
    return model_difference(layout, {"t": trained}, {"t": received})["t"]


def test_the_step_is_computed_in_double_and_rounded_once() -> None:
    old = np.array([1.0, -3.25, 0.0], np.float32)
    mean = np.array([1e-8, 0.1, -0.7], np.float32)

    new = step("f32", old, mean, rate=0.3)

    expected = old.astype(np.float64) + 0.3 * mean.astype(np.float64)
    assert new.dtype == np.float32
    np.testing.assert_array_equal(new, expected.astype(np.float32))


def test_integer_tensors_add_their_mean_whatever_the_learning_rate() -> None:
    new = step("i64", np.array([40, -7]), np.array([3, -5]), rate=0.1)

    np.testing.assert_array_equal(new, [43, -12])


@pytest.mark.parametrize(
    ("dtype", "one"),
    [
        ("f16", np.float16(1)),
        ("bf16", np.uint16(0x3F80)),
        ("f32", np.float32(1)),
        ("f64", np.float64(1)),
        ("i32", np.int32(1)),
        ("u8", np.uint8(1)),
    ],
)
def test_a_tensor_without_dimensions_stays_an_array_of_its_dtype(dtype: str, one: Any) -> None:
    value = np.array(one)

    new = step(dtype, value, value)
    change = difference(dtype, new, value)

    assert isinstance(new, np.ndarray)
    assert isinstance(change, np.ndarray)
    assert (new.shape, new.dtype) == ((), value.dtype)
    assert (change.shape, change.dtype, change.item()) == ((), value.dtype, value.item())


@pytest.mark.parametrize(
    ("dtype", "old", "mean"),
    [
        ("f16", np.array([60000.0], np.float16), np.array([6000.0], np.float16)),
        ("f32", np.array([3e38], np.float32), np.array([3e38], np.float32)),
        ("bf16", np.array([0x7F7F], np.uint16), np.array([0x7F7F], np.uint16)),
        ("i8", np.array([100], np.int8), np.array([28], np.int8)),
        ("i64", np.array([-(2**63)]), np.array([-1])),
        ("u8", np.array(255, np.uint8), np.array(1, np.uint8)),
    ],
)
def test_a_step_that_leaves_its_dtype_aborts_and_names_the_tensor(
    dtype: str, old: NDArray[Any], mean: NDArray[Any]
) -> None:
    with pytest.raises(RoundAborted, match=f"tensor 't' do not fit {dtype}"):
        step(dtype, old, mean)


@given(st.integers(0, 0x7F7F), st.sampled_from([0.0, 0.25, 0.5, 0.75]), st.booleans())
def test_bfloat16_is_rounded_once_and_ties_go_to_even(
    pattern: int, part: float, negative: bool
) -> None:
    low, high = (_exact(pattern), _exact(pattern + 1)) if pattern < 0x7F7F else (None, None)
    if low is None or high is None:
        return
    value = float(low + (high - low) * Fraction(part)) * (-1.0 if negative else 1.0)

    rounded = narrow("bf16", np.array([value]))

    up = part > 0.5 or (part == 0.5 and pattern % 2 == 1)
    assert rounded[0] & 0x7FFF == pattern + up


def test_bfloat16_does_not_round_twice_on_its_way_through_float() -> None:
    just_above_a_tie = 1.0 + 2.0**-8 + 2.0**-40

    assert narrow("bf16", np.array([just_above_a_tie]))[0] == 0x3F81
    assert narrow("bf16", np.array([1.0 + 2.0**-8]))[0] == 0x3F80


def _exact(pattern: int) -> Fraction:
    return Fraction(float(widen("bf16", np.array([pattern], np.uint16))[0]))


def test_stepping_by_the_difference_gives_the_trained_model_back() -> None:
    values = np.random.default_rng(3)
    received = values.integers(-100, 100, 50).astype(np.float32) / 8
    trained = received + values.integers(-100, 100, 50).astype(np.float32) / 8

    np.testing.assert_array_equal(
        step("f32", received, difference("f32", trained, received)), trained
    )


@pytest.mark.parametrize(
    ("dtype", "trained", "received", "message"),
    [
        ("f32", np.array([np.nan], np.float32), np.ones(1, np.float32), "not finite"),
        ("f32", np.array([3e38], np.float32), np.array([-3e38], np.float32), "does not fit f32"),
        ("i8", np.array([100], np.int8), np.array([-100], np.int8), "does not fit i8"),
        ("u32", np.array([1], np.uint32), np.array([2], np.uint32), "does not fit u32"),
        ("f32", np.ones(2, np.float32), np.ones(1, np.float32), r"is float32 \(2,\)"),
        ("f32", np.ones(1), np.ones(1, np.float32), r"is float64 \(1,\)"),
    ],
)
def test_a_difference_that_cannot_be_sent_is_refused(
    dtype: str, trained: NDArray[Any], received: NDArray[Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        difference(dtype, trained, received)


def test_a_trained_model_with_other_tensors_is_refused() -> None:
    layout = layout_of("f32", (1,))
    one = np.ones(1, np.float32)

    with pytest.raises(ConfigError, match=r"lacks tensors \['t'\] and has unknown ones \['u'\]"):
        model_difference(layout, {"u": one}, {"t": one})


@pytest.mark.parametrize("dtype", ["f32", "i64"])
def test_arrays_in_any_memory_order_give_the_same_result(dtype: str) -> None:
    values = np.random.default_rng(5)
    plain = [values.integers(-99, 99, (3, 4)).astype(_NUMPY[dtype]) for _ in range(2)]
    odd = [np.asfortranarray(plain[0]), np.repeat(plain[1], 2, axis=1)[:, ::2]]

    for function in (step, difference):
        result = function(dtype, *odd)
        np.testing.assert_array_equal(result, function(dtype, *plain))
        assert result.flags.c_contiguous


_NUMPY = {"f32": np.float32, "i64": np.int64}
