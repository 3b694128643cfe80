"""The backends that a test of devices goes through, and what it can ask of emulated ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import pytest

from veilsum import ModelLayout, _native
from veilsum.arrays import round_to_bfloat16
from veilsum.errors import DeviceError

Result = TypeVar("Result")

PASS_BYTES = 64 << 20  # csrc/device/device_mean.h
PASS_TILES = 256


def why_no_cuda() -> str:
    """Empty where there is a device."""
    _, devices, reason = _native.cuda_status()
    return "" if devices else f"no CUDA device: {reason}"


DEVICES = [
    "emu",
    pytest.param("cuda", marks=pytest.mark.skipif(bool(why_no_cuda()), reason=why_no_cuda())),
]
every_device = pytest.mark.parametrize("backend", DEVICES)
every_backend = pytest.mark.parametrize("backend", ["cpu", *DEVICES])


def reset_devices() -> None:
    """Back to what devices do by themselves."""
    _native.use_emulator()
    _native.use_launch_shape(blocks=0, threads=0)
    _native.use_pass_memory(window_bytes=PASS_BYTES, window_tiles=PASS_TILES)


@contextmanager
def small_windows(tiles: int = 1) -> Iterator[None]:
    """Passes take a few tiles at a time."""
    _native.use_pass_memory(window_bytes=PASS_BYTES, window_tiles=tiles)
    yield
    _native.use_pass_memory(window_bytes=PASS_BYTES, window_tiles=PASS_TILES)


def results_of_losses(action: Callable[[], Result], step: int = 1) -> list[Result | None]:
    """What the action gives when the emulated device is lost at its first call, `step` calls later,
    and so on until after its last one; None for the error. Each leaves no memory behind."""
    _native.use_emulator()
    action()
    results = []
    for call in range(1, _native.emulator_calls() + 1 + step, step):
        _native.use_emulator(lost_at_call=call)
        results.append(_result_of_loss(action))
        assert _native.emulator_bytes() == 0
    _native.use_emulator()
    return results


def _result_of_loss(action: Callable[[], Result]) -> Result | None:
    try:
        return action()
    except DeviceError as error:
        if "lost" not in str(error):
            raise
        return None


def on_device(
    arrays: Mapping[str, np.ndarray[Any, Any]], backend: str, layout: ModelLayout
) -> dict[str, Any]:
    """The floating-point tensors as DeviceArray, integers as they are."""
    moved: dict[str, Any] = {}
    for name, dtype, _ in layout.native.tensors:
        array = arrays[name]
        if dtype == "bf16" and array.dtype == np.float32:
            array = round_to_bfloat16(array)
        floating = dtype[0] in "fb"
        moved[name] = _native.DeviceArray(backend, array, dtype) if floating else array
    return moved
