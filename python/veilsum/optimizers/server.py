"""One optimizer at work: its moments, and the steps it makes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

from veilsum import _native
from veilsum.arrays import on_host
from veilsum.devices import available_threads, device_name
from veilsum.errors import ConfigError, DecodeError
from veilsum.model import (
    ModelLayout,
    StoredModel,
    TensorPart,
    fit_arrays,
    fit_resident,
    flat_part,
    is_resident,
    parts_of,
    widen_tensors,
)
from veilsum.optimizers.places import empty_model, writable_model
from veilsum.optimizers.settings import OptimizerSettings
from veilsum.optimizers.state import Moments, OptimizerState

_UNUSED = 0.0
_MOMENT_DTYPES = {np.dtype("<f4"): "f32", np.dtype("<f8"): "f64"}


class ServerOptimizer:
    """Turns mean updates into model steps; a function of settings, state and arguments alone,
    to the last bit, whatever the threads and the instruction set.

    Moments change in place, in host memory or on a device. For one thread at a time.
    """

    def __init__(
        self,
        settings: OptimizerSettings,
        layout: ModelLayout,
        *,
        threads: int | None = None,
        device: str | None = None,
    ) -> None:
        """See OptimizerSettings.start."""
        self._settings = settings
        self._layout = layout
        self._device = "" if device is None else device_name(device)
        self._threads = available_threads() if threads is None else threads
        self._steps = 0
        self._spoiled = False
        has_first, has_second = _native.optimizer_moments(settings.name)
        first, second = self.started_with
        self._first = self._placed(self._moments(first)) if has_first else {}
        self._second = self._placed(self._moments(second)) if has_second else {}

    @property
    def settings(self) -> OptimizerSettings:
        """Which optimizer, and its parameters."""
        return self._settings

    @property
    def layout(self) -> ModelLayout:
        """Of the model."""
        return self._layout

    @property
    def device(self) -> str | None:
        """On which its moments lie; None if in host memory."""
        return self._device or None

    @property
    def started_with(self) -> tuple[float, float]:
        """The value of each first and each second moment before any step."""
        tau = getattr(self._settings, "tau", _UNUSED)
        return 0.0, tau * tau

    @property
    def steps(self) -> int:
        """How many it has made."""
        return self._steps

    def step(
        self,
        model: Mapping[str, Any],
        mean: Mapping[str, Any],
        *,
        gain: float = 1.0,
        out: Mapping[str, NDArray[Any]] | None = None,
    ) -> dict[str, NDArray[Any]]:
        """The model after one step. Integer tensors (counters) add their mean as it is.

        Args:
            model, mean: arrays by name, as the layout has them; bfloat16 in any form that
                ModelLayout takes. A mean is what Aggregator.finish().arrays holds.
            gain: multiplies the mean first; see FedNova.
            out: arrays to write the new model to, of the layout's dtypes (bfloat16 as uint16
                bit patterns), C-contiguous; may be those of `model`. By default new ones.

        Returns:
            `out`, or new arrays, bfloat16 tensors as float32, which holds them exactly.

        Raises:
            ConfigError: arrays are not the layout's, or moments lie on a device, which only
                Aggregator.finish_step steps; or a new value does not fit its tensor's dtype,
                which leaves the optimizer unusable until a state is loaded, and `out` with some
                values old and some new.
        """
        means = fit_arrays(self._layout, mean)
        with self.stepping(model, gain=gain, out=out) as (native, updated):
            native.apply(means, threads=self._threads)
        return self.named(updated, out)

    def step_stored(
        self, model: StoredModel, mean: Mapping[str, NDArray[Any]], *, digest: str
    ) -> None:
        """step(model, mean, out=mean), reading the model part by part: in memory is one model,
        the mean, which becomes the new one.

        Args:
            mean: writable arrays of the layout's dtypes (bfloat16 as uint16 bit patterns).
            digest: of the model, as of model.result_digest.

        Raises:
            ConfigError: as step(), or the model cannot be read or is another; `mean` is then of
                no use either.
        """
        self._require_usable()
        if model.layout != self._layout:
            raise ConfigError("the stored model is not of the optimizer's layout")
        if self._device:
            raise ConfigError("moments on a device do not step a stored model")
        means = writable_model(self._layout, mean, "")
        self._spoiled = True
        found = hashlib.sha256(self._layout.digest)
        for part in parts_of(self._layout):
            old = model.read(part)
            found.update(old.view(np.uint8).data)
            self._step_part(part, old, flat_part(means[part.number], part))
        if found.hexdigest() != digest:
            raise ConfigError(
                f"the stored model has digest {found.hexdigest()}, it was stored as {digest}",
                hint="somebody changed the file, or its disk did; restore it from a copy",
            )
        self._spoiled = False
        self._steps += 1

    def _step_part(self, part: TensorPart, old: NDArray[Any], place: NDArray[Any]) -> None:
        name, dtype, _ = self._layout.native.tensors[part.number]
        native = self._native_step(
            _native.Layout([(name, dtype, (part.count,))]),
            [old],
            [place],
            gain=1.0,
            first=[flat_part(self._first[name], part)] if name in self._first else [],
            second=[flat_part(self._second[name], part)] if name in self._second else [],
        )
        native.apply([place], threads=self._threads)

    @contextmanager
    def stepping(
        self,
        model: Mapping[str, Any],
        *,
        gain: float,
        out: Mapping[str, Any] | None,
        device: str = "",
    ) -> Iterator[tuple[_native.ServerStep, list[Any]]]:
        """One step that the native core makes inside the `with`: the step, and the new model's
        arrays in layout order. If that fails, moments are half old and half new, so the
        optimizer makes no more steps.

        Args:
            device: where the step can be made, beside the host; "" is nowhere.
        """
        self._require_usable()
        if not 0.0 < gain < float("inf"):
            raise ConfigError(f"gain must be positive and finite, got {gain}")
        if self._device not in ("", device):
            raise ConfigError(
                f"the optimizer's moments are on {self._device}, the step is made on "
                f"{device or 'the host'}",
                hint=f"use finish_step of an aggregator with backend={self._device!r}, or start "
                "the optimizer without a device",
            )
        there = is_resident(device, self._layout, model)
        old = (fit_resident if there else fit_arrays)(self._layout, model)
        if out is None:
            updated = empty_model(self._layout, device if there else "")
        else:
            updated = writable_model(self._layout, out, device)
        native = self._native_step(
            self._layout.native,
            old,
            updated,
            gain=gain,
            first=list(self._first.values()),
            second=list(self._second.values()),
        )
        self._spoiled = True
        yield native, updated
        self._spoiled = False
        self._steps += 1

    def _native_step(
        self,
        layout: _native.Layout,
        model: list[Any],
        updated: list[Any],
        *,
        gain: float,
        first: list[Any],
        second: list[Any],
    ) -> _native.ServerStep:
        settings = self._settings
        return _native.ServerStep(
            layout,
            optimizer=settings.name,
            learning_rate=settings.learning_rate,
            gain=gain,
            beta1=getattr(settings, "beta1", getattr(settings, "momentum", _UNUSED)),
            beta2=getattr(settings, "beta2", _UNUSED),
            tau=getattr(settings, "tau", _UNUSED),
            model=model,
            first=first,
            second=second,
            updated=updated,
        )

    # --- state ----------------------------------------------------------------------

    def state(self) -> OptimizerState:
        """What the next step depends on. Its arrays are views that no one can write through;
        they change with the next step, so copy or write them out before. Of moments on a device
        they are copies.

        Raises:
            ConfigError: the last step failed.
            DeviceError: the device fails.
        """
        self._require_usable()
        return OptimizerState(
            optimizer=self._settings.name,
            layout_digest=self._layout.digest,
            steps=self._steps,
            first=_read_only(self._first),
            second=_read_only(self._second),
        )

    def state_dict(self) -> dict[str, Any]:
        """The state as a dictionary of copies: "optimizer", "layout_digest", "steps", "first"
        and "second" (tensor -> array)."""
        state = self.state()
        return {
            "optimizer": state.optimizer,
            "layout_digest": state.layout_digest,
            "steps": state.steps,
            "first": {name: array.copy() for name, array in state.first.items()},
            "second": {name: array.copy() for name, array in state.second.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from where state_dict() was taken. Settings are not part of a state, so a
        learning rate may change between two runs.

        Raises:
            ConfigError: the state is of another optimizer or layout, or damaged.
        """
        self.load_state(OptimizerState(**state))

    def to_bytes(self) -> bytes:
        """The state as a safetensors file."""
        return self.state().to_bytes()

    def load_bytes(self, data: Buffer) -> None:
        """Goes on from a file that to_bytes() made.

        Raises:
            DecodeError: not such a file.
            ConfigError: it is of another optimizer or layout.
        """
        self.load_state(OptimizerState.from_bytes(data))

    def load_state(self, state: OptimizerState) -> None:
        """Goes on from a state; as load_state_dict."""
        if state.optimizer != self._settings.name:
            raise ConfigError(
                f"the state is of optimizer {state.optimizer!r}, not {self._settings.name!r}"
            )
        if state.layout_digest != self._layout.digest:
            raise ConfigError("the state is of a model with another layout")
        shapes = self._moments(0.0)
        first = _checked("first", shapes if self._first else {}, state.first)
        second = _checked("second", shapes if self._second else {}, state.second)
        if any((array < 0).any() for array in second.values()):
            raise DecodeError("a second moment is negative")
        self._first, self._second = self._placed(first), self._placed(second)
        self._steps, self._spoiled = state.steps, False

    # --- arrays -----------------------------------------------------------------------

    def _moments(self, value: float) -> dict[str, NDArray[Any]]:
        """One array per floating-point tensor, in layout order."""
        tensors = self._layout.native.tensors
        floats = {number for number, _, _ in self._layout.native.offsets(1)}
        return {
            name: np.full(shape, value, "<f8" if dtype == "f64" else "<f4")
            for number, (name, dtype, shape) in enumerate(tensors)
            if number in floats
        }

    def _placed(self, moments: Moments) -> dict[str, Any]:
        """Moments where this optimizer keeps them."""
        if not self._device:
            return dict(moments)
        return {
            name: _native.DeviceArray(self._device, array, _MOMENT_DTYPES[array.dtype])
            for name, array in moments.items()
        }

    def named(self, arrays: list[Any], out: Mapping[str, Any] | None) -> dict[str, Any]:
        """A new model's arrays, in layout order, by name: the caller's own if there is an `out`."""
        if out is not None:
            return {name: out[name] for name in self._layout.names}
        named = dict(zip(self._layout.names, arrays, strict=True))
        there = any(isinstance(array, _native.DeviceArray) for array in arrays)
        return named if there else widen_tensors(self._layout, named)

    def _require_usable(self) -> None:
        if self._spoiled:
            raise ConfigError(
                "the optimizer's last step failed, so its moments are worthless",
                hint="load a state from before, or start a new optimizer",
            )


def _read_only(moments: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    arrays = on_host(list(moments.values()))
    views = {name: array.view() for name, array in zip(moments, arrays, strict=True)}
    for view in views.values():
        view.flags.writeable = False
    return views


def _checked(what: str, own: Moments, given: Moments) -> dict[str, NDArray[Any]]:
    if set(given) != set(own):
        raise DecodeError(f"the state's {what} moments are not those of the layout's tensors")
    for name, array in own.items():
        found = given[name]
        if found.shape != array.shape or found.dtype != array.dtype:
            raise DecodeError(
                f"the {what} moment of tensor {name!r} is {found.dtype} {found.shape}, "
                f"expected {array.dtype} {array.shape}"
            )
        if not np.isfinite(found).all():
            raise DecodeError(f"the {what} moment of tensor {name!r} is not finite")
    return {name: given[name].copy() for name in own}
