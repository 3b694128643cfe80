"""Error feedback: what an encoder loses of one update is added to the site's next one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veilsum.arrays import round_to_bfloat16, widen_bfloat16
from veilsum.codecs.encoding import decode, encode
from veilsum.codecs.update import EncodedUpdate
from veilsum.errors import ConfigError
from veilsum.model import ModelLayout, fit_arrays

_FORMAT = "veilsum-error-feedback-1"
_FLOATS = {"f16": np.float32, "bf16": np.float32, "f32": np.float32, "f64": np.float64}


class Residual:
    """What was lost so far of a model's floating-point tensors, in the model's units.

    Integer tensors travel exactly and have none. Values are f32, or f64 for f64 tensors.
    """

    def __init__(self, layout: ModelLayout) -> None:
        self.layout = layout
        self.lost: dict[str, NDArray[Any]] = {
            name: np.zeros(shape, _FLOATS[dtype])
            for name, dtype, shape in layout.native.tensors
            if dtype in _FLOATS
        }

    def added_to(self, arrays: Sequence[NDArray[Any]], limit: float = math.inf) -> _Corrected:
        """The arrays plus what was lost before.

        Args:
            arrays: one per tensor, as fit_arrays() gives them.
            limit: the largest |value| that the codec takes. What lies beyond is cut off, and
                is part of what is lost this time.
        """
        sums: dict[str, NDArray[Any]] = {}
        to_encode: list[NDArray[Any]] = []
        for (name, dtype, _), array in zip(self.layout.native.tensors, arrays, strict=True):
            if name not in self.lost:
                to_encode.append(array)
                continue
            values = widen_bfloat16(array) if dtype == "bf16" else array
            # asarray: NumPy makes scalars of 0-d arrays, which are no tensors.
            sums[name] = np.asarray(values.astype(_FLOATS[dtype]) + self.lost[name])
            to_encode.append(_as_dtype(np.asarray(np.clip(sums[name], -limit, limit)), dtype))
        return _Corrected(self, sums, to_encode)


class _Corrected:
    """An update with what was lost before, on its way through an encoder.

    Attributes:
        arrays: what to encode, one per tensor.
    """

    def __init__(
        self, residual: Residual, sums: dict[str, NDArray[Any]], arrays: list[NDArray[Any]]
    ) -> None:
        self._residual = residual
        self._sums = sums
        self.arrays = arrays

    def encoded_as(self, decoded: Mapping[str, NDArray[Any]]) -> None:
        """Keeps the difference to what receivers will read."""
        before = self._residual.lost
        self._residual.lost = {
            # A value that is not finite was sent as 0, if at all; what was lost before stays.
            name: np.where(
                np.isfinite(summed), summed - decoded[name].astype(summed.dtype), before[name]
            )
            for name, summed in self._sums.items()
        }


def _as_dtype(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    if dtype == "bf16":
        return round_to_bfloat16(values)
    return values.astype(np.float16) if dtype == "f16" else values


class ErrorFeedback:
    """Encodes one site's updates, round after round, and makes up for what codecs lose.

    A codec with a bias (topk, sign, eden's biased variant, a ring whose clip is tight) loses
    the same part of an update in every round. With feedback, e <- (x + e) - decode(encode(x + e)),
    the losses of all rounds together stay as small as those of one (Seide et al. 2014; Karimireddy
    et al. 2019, arXiv 1901.09847). A clip must still be above the average of the values that it
    cuts off, or what is left grows without end.

    For sites that take part in most rounds and keep their state. Outside every claim of
    differential privacy: what is left carries the data of earlier rounds into later ones.
    """

    def __init__(self, codec: str, **options: Any) -> None:
        """Args:
        codec, options: as encode() takes them, but for `seed` and `update_id`.

        Raises:
            ConfigError: an option that belongs to a single update.
        """
        for option in ("seed", "update_id", "layout", "subsample_seed"):
            if option in options:
                raise ConfigError(f"option {option!r} is of one update; give it to encode()")
        if "subsample" in options and options.get("rescale", True):
            raise ConfigError(
                "error feedback makes up for what a subsample leaves out, so it must not be "
                "rescaled too",
                hint="give rescale=False",
            )
        self._codec = codec
        self._options = options
        self._residual: Residual | None = None
        self._before: dict[str, NDArray[Any]] | None = None

    @property
    def codec(self) -> str:
        """Name of the codec, as it was given."""
        return self._codec

    def encode(
        self,
        arrays: Mapping[str, Any],
        *,
        layout: ModelLayout | None = None,
        seed: int | bytes | None = None,
        **options: Any,
    ) -> EncodedUpdate:
        """Encodes an update and what was lost of those before it.

        Args:
            arrays, layout: as encode() takes them; alike in every round.
            seed, options: `seed`, `update_id` and `subsample_seed`, as encode() takes them.

        Raises:
            ConfigError: as encode(), or the model is another than before. What was lost is then
                what it was.
        """
        layout = layout or ModelLayout.from_arrays(arrays)
        residual = self._residual_for(layout)
        limit = float(self._options.get("clip", math.inf))
        corrected = residual.added_to(fit_arrays(layout, arrays), limit)
        update = encode(
            dict(zip(layout.names, corrected.arrays, strict=True)),
            self._codec,
            layout=layout,
            seed=seed,
            **self._options,
            **options,
        )
        self._before = residual.lost
        corrected.encoded_as(decode(update))
        self._residual = residual
        return update

    def undo(self) -> None:
        """Takes the last encode() back, for an update that did not count in the end.

        Raises:
            ConfigError: there is none to take back.
        """
        if self._residual is None or self._before is None:
            raise ConfigError("there is no update to take back")
        self._residual.lost = self._before
        self._before = None

    def reset(self) -> None:
        """Forgets what was lost, for a model that starts anew."""
        self._residual = None
        self._before = None

    # --- state ------------------------------------------------------------------------

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """What was lost, by tensor; empty before the first update. Copies."""
        lost = self._residual.lost if self._residual else {}
        return {name: values.copy() for name, values in lost.items()}

    def load_state_dict(self, state: Mapping[str, NDArray[Any]], layout: ModelLayout) -> None:
        """Goes on from a state_dict() of a model with this layout.

        Raises:
            ConfigError: it is the state of another model, or a value is not finite.
        """
        if not state:
            self.reset()
            return
        residual = Residual(layout)
        if list(residual.lost) != list(state):
            raise ConfigError("the error feedback is that of a model with other tensors")
        for name, expected in residual.lost.items():
            found = state[name]
            if found.shape != expected.shape or found.dtype != expected.dtype:
                raise ConfigError(
                    f"the error feedback of tensor {name!r} is {found.dtype} {found.shape}, "
                    f"expected {expected.dtype} {expected.shape}"
                )
            if not np.isfinite(found).all():
                raise ConfigError(f"the error feedback of tensor {name!r} is not finite")
        residual.lost = {name: state[name].copy() for name in residual.lost}
        self._residual, self._before = residual, None

    def save(self, path: str | Path) -> None:
        """Writes the state as safetensors that only this user can read: it is private data.

        Raises:
            ConfigError: there is no state yet, or the file cannot be written.
        """
        from safetensors.numpy import save

        if self._residual is None:
            raise ConfigError("there is no error feedback to save before the first update")
        data = save(
            self._residual.lost,
            {"format": _FORMAT, "layout": self._residual.layout.digest.hex()},
        )
        path = Path(path)
        new = path.with_name(path.name + ".new")
        try:
            new.unlink(missing_ok=True)
            new.touch(mode=0o600, exist_ok=False)
            new.write_bytes(data)
            new.replace(path)
        except OSError as error:
            raise ConfigError(f"cannot write {path}: {error.strerror}") from error

    def load(self, path: str | Path, layout: ModelLayout) -> None:
        """Goes on from save().

        Args:
            layout: of the model; its digest must be the one of the file.

        Raises:
            ConfigError: the file cannot be read, or is not the state of this model.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as opened:
                metadata = opened.metadata() or {}
                state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"cannot read error feedback from {path}: {error}") from error
        if metadata.get("format") != _FORMAT:
            raise ConfigError(f"{path} holds no error feedback")
        if metadata.get("layout") != layout.digest.hex():
            raise ConfigError(
                f"{path} is the error feedback of another model",
                hint="reset() to begin without what was lost before",
            )
        ordered = {name: state[name] for name in Residual(layout).lost if name in state}
        self.load_state_dict(ordered if len(ordered) == len(state) else state, layout)

    def _residual_for(self, layout: ModelLayout) -> Residual:
        if self._residual is None:
            return Residual(layout)
        if self._residual.layout != layout:
            raise ConfigError(
                "the update is one of another model than those before",
                hint="reset() forgets what was lost of the other model",
            )
        return self._residual
