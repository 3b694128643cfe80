"""Error feedback: losses do not add up, whatever the codec; state survives."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from veilsum import ErrorFeedback, ModelLayout, decode, encode
from veilsum.codecs.error_feedback import Residual
from veilsum.errors import ConfigError

CODECS: list[tuple[str, dict[str, Any]]] = [
    ("topk", {"density": 0.1}),
    ("topk", {"density": 0.01, "values": "f16"}),
    ("sign", {}),
    ("ring2", {"clip": 6.0}),  # the largest values of a burst lie far beyond it
    ("eden1", {"variant": "biased"}),
]
every_codec = pytest.mark.parametrize(("codec", "options"), CODECS)


def model() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(6)
    return {
        "w": rng.normal(size=(40, 100)).astype(np.float32),
        "wide": rng.normal(size=300),
        "half": rng.normal(size=65).astype(np.float16),
        "n": np.array([3, -4]),
    }


def without_feedback(codec: str, options: dict[str, Any], arrays: dict[str, Any]) -> Any:
    if "clip" in options:
        limit = options["clip"]
        arrays = {
            name: np.clip(array, -limit, limit) if array.dtype.kind == "f" else array
            for name, array in arrays.items()
        }
    return decode(encode(arrays, codec, **options))


def distance(mean: dict[str, np.ndarray], true: dict[str, np.ndarray]) -> float:
    squares = [
        (np.sum((mean[name] - array.astype(float)) ** 2), np.sum(array.astype(float) ** 2))
        for name, array in true.items()
    ]
    return float(np.sqrt(sum(lost for lost, _ in squares) / sum(total for _, total in squares)))


def burst(number: int) -> dict[str, np.ndarray]:
    """Five times the model in every fifth round, else zeros."""
    factor = 5 if number % 5 == 0 else 0
    return {
        name: (array if array.dtype.kind == "i" else array * array.dtype.type(factor))
        for name, array in model().items()
    }


@every_codec
def test_the_mean_over_rounds_converges_with_feedback_only(
    codec: str, options: dict[str, Any]
) -> None:
    feedback = ErrorFeedback(codec, **options)
    rounds = 400
    with_it = {name: np.zeros(array.shape) for name, array in model().items()}
    without = {name: np.zeros(array.shape) for name, array in model().items()}

    for number in range(rounds):
        for name, values in decode(feedback.encode(burst(number), seed=number)).items():
            with_it[name] += values / rounds
        plain = without_feedback(codec, options | {"seed": number}, burst(number))
        for name, values in plain.items():
            without[name] += values / rounds

    assert distance(with_it, model()) < 0.35
    assert distance(with_it, model()) < 0.6 * distance(without, model())


@every_codec
def test_what_was_sent_and_what_is_left_are_what_was_put_in(
    codec: str, options: dict[str, Any]
) -> None:
    feedback = ErrorFeedback(codec, **options)
    sent = {name: np.zeros(array.shape) for name, array in model().items()}
    for number in range(5):
        for name, values in decode(feedback.encode(model(), seed=number)).items():
            sent[name] += values

    for name, left in feedback.state_dict().items():
        assert np.allclose(sent[name] + left, 5 * model()[name].astype(float), atol=1e-4)
    assert list(feedback.state_dict()) == ["w", "wide", "half"]
    assert sent["n"].tolist() == [15, -20]


def test_bfloat16_tensors_have_feedback_too() -> None:
    feedback = ErrorFeedback("topk", density=0.02)
    values = torch.linspace(-3, 3, 200).to(torch.bfloat16)
    sent = np.zeros(200)
    for _ in range(200):
        sent += decode(feedback.encode({"w": values}))["w"]

    left = feedback.state_dict()["w"]
    assert np.allclose(sent + left, 200 * values.float().numpy().astype(float), atol=1e-2)
    assert np.abs(sent / 200 - values.float().numpy()).max() < 0.5


def test_a_tensor_without_dimensions_has_feedback_too() -> None:
    gain = {"gain": np.array(1.3, np.float32)}
    residual = Residual(ModelLayout.from_arrays(gain))

    corrected = residual.added_to([gain["gain"]], limit=1.0)
    corrected.encoded_as({"gain": corrected.arrays[0]})

    assert [type(array) for array in corrected.arrays] == [np.ndarray]
    np.testing.assert_allclose(residual.lost["gain"], 0.3, rtol=1e-6)


def test_a_refused_update_changes_nothing() -> None:
    feedback = ErrorFeedback("topk")
    feedback.encode(model())
    before = feedback.state_dict()
    bad = model()
    bad["w"][0, 0] = np.nan

    with pytest.raises(ConfigError, match="'w' has 1 values that are not finite"):
        feedback.encode(bad)
    with pytest.raises(ConfigError, match="another model"):
        feedback.encode({"w": np.ones(3)})

    for name, values in feedback.state_dict().items():
        assert np.array_equal(values, before[name])


def test_a_value_that_was_zeroed_leaves_what_was_lost_before() -> None:
    feedback = ErrorFeedback("topk", density=0.5, nonfinite="zero")
    feedback.encode({"w": np.array([1.0, 2.0, 3.0, 4.0], np.float32)})
    left = feedback.state_dict()["w"]
    assert left.tolist() == [0, 0, 0, 0], "64 coordinates, so half of them is all of these"
    feedback.load_state_dict({"w": left + 7}, ModelLayout.from_arrays({"w": left}))

    update = feedback.encode({"w": np.array([np.nan, 2.0, -np.inf, 4.0], np.float32)})

    assert update.zeroed == 2
    assert decode(update)["w"].tolist() == [0, 9, 0, 11]
    assert feedback.state_dict()["w"].tolist() == [7, 0, 7, 0]


def test_an_update_that_did_not_count_can_be_taken_back_once() -> None:
    feedback, other = ErrorFeedback("topk"), ErrorFeedback("topk")
    feedback.encode(model())
    other.encode(model())
    feedback.encode({name: 2 * array for name, array in model().items()})

    feedback.undo()

    assert feedback.encode(model()).to_bytes() == other.encode(model()).to_bytes()
    feedback.undo()
    with pytest.raises(ConfigError, match="no update to take back"):
        feedback.undo()


def test_reset_forgets() -> None:
    feedback = ErrorFeedback("topk")
    first = feedback.encode(model()).to_bytes()
    assert feedback.encode(model()).to_bytes() != first

    feedback.reset()

    assert feedback.state_dict() == {}
    assert feedback.encode(model()).to_bytes() == first
    feedback.reset()
    feedback.encode({"other": np.ones(3)})


# --- state -----------------------------------------------------------------------------


def test_a_saved_state_goes_on_where_it_was(tmp_path: Path) -> None:
    layout = ModelLayout.from_arrays(model())
    feedback, again, by_dict = (ErrorFeedback("topk") for _ in range(3))
    feedback.encode(model())
    file = tmp_path / "left.safetensors"
    feedback.save(file)
    feedback.save(file)  # over an older one

    again.load(file, layout)
    by_dict.load_state_dict(feedback.state_dict(), layout)

    expected = feedback.encode(model()).to_bytes()
    assert again.encode(model()).to_bytes() == expected
    assert by_dict.encode(model()).to_bytes() == expected
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [file]


def test_a_state_of_another_model_is_refused(tmp_path: Path) -> None:
    feedback = ErrorFeedback("topk")
    with pytest.raises(ConfigError, match="before the first update"):
        feedback.save(tmp_path / "x")
    feedback.encode(model())
    file = tmp_path / "left.safetensors"
    feedback.save(file)
    layout = ModelLayout.from_arrays(model())
    other = ModelLayout.from_arrays({"w": np.ones(3, np.float32)})

    with pytest.raises(ConfigError, match="of another model"):
        feedback.load(file, other)
    with pytest.raises(ConfigError, match="other tensors"):
        feedback.load_state_dict(feedback.state_dict(), other)
    with pytest.raises(ConfigError, match=r"'w' is float32 \(3,\), expected float32 \(40, 100\)"):
        feedback.load_state_dict(feedback.state_dict() | {"w": np.ones(3, np.float32)}, layout)
    with pytest.raises(ConfigError, match="'wide' is not finite"):
        feedback.load_state_dict(feedback.state_dict() | {"wide": np.full(300, np.inf)}, layout)
    with pytest.raises(ConfigError, match="cannot read error feedback"):
        feedback.load(tmp_path / "missing", layout)
    save_file({"w": np.ones(3)}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match="holds no error feedback"):
        feedback.load(tmp_path / "model.safetensors", layout)
    (tmp_path / "junk").write_bytes(bytes(100))
    with pytest.raises(ConfigError, match="cannot read error feedback"):
        feedback.load(tmp_path / "junk", layout)


def test_options_of_a_single_update_are_not_the_encoders() -> None:
    for option in ("seed", "update_id"):
        with pytest.raises(ConfigError, match="is of one update"):
            ErrorFeedback("topk", **{option: 3})
    update = ErrorFeedback("eden1", variant="biased").encode(model(), update_id=12)
    assert update.form.update_id == 12
