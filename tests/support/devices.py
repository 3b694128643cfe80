"""The backends that a test of devices goes through, and what it can ask of emulated ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from veilsum import _native

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
