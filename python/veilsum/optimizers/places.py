"""Where the new model of a step is written to: host memory, or a device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from veilsum import _native
from veilsum.errors import ConfigError
from veilsum.model import (
    NUMPY_DTYPES,
    ModelLayout,
    fit_on_device,
    floating_names,
    is_resident,
    require_names,
)


def empty_model(layout: ModelLayout, device: str) -> list[Any]:
    """New arrays in layout order; floating-point ones on a device, unless that is "".

    Raises:
        DeviceError: there is no room on it.
    """
    floating = floating_names(layout) if device else set()
    return [
        _native.DeviceArray.empty(device, shape, dtype)
        if name in floating
        else np.empty(shape, NUMPY_DTYPES[dtype])
        for name, dtype, shape in layout.native.tensors
    ]


def writable_model(layout: ModelLayout, out: Mapping[str, Any], device: str) -> list[Any]:
    """The arrays themselves, in layout order: a converted copy would take the result with it.

    Args:
        device: where floating-point ones may lie, beside host memory; "" is nowhere.

    Raises:
        ConfigError: they are not the layout's, or do not lie all on the host or all there.
    """
    try:
        require_names(layout, out)
    except ConfigError as error:
        raise ConfigError("out must have the layout's tensors, no more and no fewer") from error
    there = floating_names(layout) if is_resident(device, layout, out) else set()
    return [
        fit_on_device(out[name], name, dtype, shape)
        if name in there
        else _host_array(out[name], name, shape, device)
        for name, dtype, shape in layout.native.tensors
    ]


def _host_array(array: Any, name: str, shape: tuple[int, ...], device: str) -> Any:
    if _native.is_device_array(array):
        or_there = f", or all floating-point ones on {device}" if device else ""
        raise ConfigError(
            f"out[{name!r}] is on a device where this step does not write it",
            hint=f"give all arrays in host memory{or_there}",
        )
    if getattr(array, "shape", None) != shape:
        raise ConfigError(f"out[{name!r}] must be an array of shape {shape}")
    return array
