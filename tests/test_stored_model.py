"""A model that stays in its file: read part by part, and stepped without a second one in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from veilsum import model as model_module
from veilsum.errors import ConfigError, RoundAborted
from veilsum.model import ModelLayout, StoredModel, TensorPart, parts_of, result_digest
from veilsum.optimizers import (
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedYogi,
    OptimizerSettings,
)
from veilsum.optimizers.applying import FRESH, apply_mean, state_hash
from veilsum.transport.checkpoints import save_model, stored_model

SHAPES: dict[str, tuple[str, tuple[int, ...]]] = {
    "bulk": ("f4", (37, 61)),
    "half": ("f2", (1500,)),
    "nothing": ("f4", (0, 3)),
    "double": ("f8", (9, 9, 9)),
    "counter": ("i8", ()),
    "brain": ("u2", (2001,)),
}


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_module, "_PART_ELEMENTS", 700)


def _layout() -> ModelLayout:
    codes = {"f4": "f32", "f2": "f16", "f8": "f64", "i8": "i64", "u2": "bf16"}
    tensors = [(name, codes[code], shape) for name, (code, shape) in SHAPES.items()]
    return ModelLayout(model_module._native.Layout(tensors))


def _arrays(seed: int, scale: float = 1.0) -> dict[str, np.ndarray[Any, Any]]:
    random = np.random.default_rng(seed)
    arrays = {}
    for name, (code, shape) in SHAPES.items():
        values = scale * random.standard_normal(shape)
        if code == "u2":
            arrays[name] = np.asarray(values, np.float32).view(np.uint32).__rshift__(16)
            arrays[name] = arrays[name].astype(np.uint16)
        else:
            arrays[name] = np.array(3 * values if code == "i8" else values, f"<{code}")
    return arrays


LAYOUT = _layout()


def _stored(folder: Path, arrays: dict[str, np.ndarray[Any, Any]]) -> StoredModel:
    save_model(folder / "round-0.safetensors", LAYOUT, arrays)
    return stored_model(folder / "round-0.safetensors", LAYOUT)


def test_tensors_and_their_parts_come_as_they_were_saved(tmp_path: Path) -> None:
    arrays = _arrays(1)
    stored = _stored(tmp_path, arrays)

    assert list(stored) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(stored[name], array, strict=True)
    parts = list(parts_of(LAYOUT))
    assert max(part.count for part in parts) == 700
    for number, name in enumerate(arrays):
        read = [stored.read(part) for part in parts if part.number == number]
        flat = np.concatenate([*read, arrays[name].reshape(-1)[:0]])
        np.testing.assert_array_equal(flat, arrays[name].reshape(-1), strict=True)
    assert result_digest(LAYOUT, stored) == result_digest(LAYOUT, arrays)


def test_a_stored_model_is_saved_again_with_the_same_bytes(tmp_path: Path) -> None:
    save_model(tmp_path / "copy", LAYOUT, _stored(tmp_path, _arrays(2)))

    assert (tmp_path / "copy").read_bytes() == (tmp_path / "round-0.safetensors").read_bytes()


@pytest.mark.parametrize(
    "settings",
    [FedAvg(0.3), FedAvgM(0.3), FedAdagrad(0.1), FedAdam(0.1), FedYogi(0.1)],
    ids=lambda settings: settings.name,
)
def test_a_step_of_a_stored_model_has_the_bits_of_one_in_memory(
    settings: OptimizerSettings, tmp_path: Path
) -> None:
    in_memory, by_parts = settings.start(LAYOUT, threads=1), settings.start(LAYOUT, threads=2)
    expected, stored = _arrays(3), _stored(tmp_path, _arrays(3))
    assert state_hash(by_parts) == FRESH

    for seed in (4, 5, 6):
        expected = apply_mean(in_memory, expected, _arrays(seed, 0.1))
        digest = bytes.fromhex(result_digest(LAYOUT, stored))
        stepped = apply_mean(by_parts, stored, _arrays(seed, 0.1), model_hash=digest)
        for name, array in expected.items():
            np.testing.assert_array_equal(stepped[name], array, strict=True)
        stored = _stored(tmp_path, stepped)

    assert by_parts.state().to_bytes() == in_memory.state().to_bytes()


def test_the_new_model_takes_the_place_of_the_mean(tmp_path: Path) -> None:
    mean, model = _arrays(7, 0.1), _stored(tmp_path, _arrays(8))
    digest = bytes.fromhex(result_digest(LAYOUT, model))

    stepped = apply_mean(FedAvg(1.0).start(LAYOUT), model, mean, model_hash=digest)

    assert all(stepped[name] is mean[name] for name in mean)


@pytest.mark.parametrize("damage", ["gone", "cut", "longer", "another"])
def test_a_file_that_is_not_what_was_saved_is_refused(damage: str, tmp_path: Path) -> None:
    stored = _stored(tmp_path, _arrays(9))
    file = tmp_path / "round-0.safetensors"
    content = file.read_bytes()
    if damage == "gone":
        file.unlink()
    elif damage == "another":
        file.write_bytes(content.replace(b"bulk", b"hulk"))
    else:
        file.write_bytes(content[:-1] if damage == "cut" else content + b"\0")

    with pytest.raises(ConfigError, match=r"round-0\.safetensors"):
        stored.read(TensorPart(0, 0, 1))
    with pytest.raises(RoundAborted, match=r"round-0\.safetensors"):
        apply_mean(FedAvg(1.0).start(LAYOUT), stored, _arrays(10, 0.1))


def test_a_stored_model_of_another_layout_is_not_stepped(tmp_path: Path) -> None:
    stored = _stored(tmp_path, _arrays(11))
    other = ModelLayout.from_arrays({"w": np.zeros(3, np.float32)})

    with pytest.raises(ConfigError, match="not of the optimizer's layout"):
        FedAvg(1.0).start(other).step_stored(stored, {"w": np.zeros(3, np.float32)}, digest="")


def test_a_file_whose_values_were_changed_makes_no_step(tmp_path: Path) -> None:
    stored = _stored(tmp_path, _arrays(12))
    digest = result_digest(LAYOUT, stored)
    file = tmp_path / "round-0.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    optimizer = FedAvg(1.0).start(LAYOUT)

    with pytest.raises(RoundAborted, match=f"it was stored as {digest}"):
        apply_mean(optimizer, stored, _arrays(13, 0.1), model_hash=bytes.fromhex(digest))
    with pytest.raises(ConfigError, match="last step failed"):
        optimizer.state()
