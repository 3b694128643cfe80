"""A server optimizer's state as a safetensors file: moments, and whose they are.

Tensors are named "first/<tensor>" and "second/<tensor>", in layout order, f64 for tensors of
f64 and f32 otherwise. The metadata says `format` "veilsum optimizer 1", `optimizer`, `layout`
(its digest, hex) and `steps`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray
from typing_extensions import Buffer

from veilsum.errors import DecodeError

_FORMAT = "veilsum optimizer 1"
_ALIGNMENT = 8
_DTYPES: dict[np.dtype[Any], str] = {np.dtype("<f4"): "F32", np.dtype("<f8"): "F64"}
_NUMPY = {name: dtype for dtype, name in _DTYPES.items()}

Moments = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class OptimizerState:
    """Everything a step depends on beside the settings.

    Attributes:
        optimizer: its name.
        layout_digest: of the model, 32 bytes.
        steps: made so far.
        first, second: tensor -> moment; empty if the optimizer has none.
    """

    optimizer: str
    layout_digest: bytes
    steps: int
    first: Moments = field(repr=False)
    second: Moments = field(repr=False)

    def pieces(self) -> list[bytes | memoryview]:
        """The file's bytes, in order; moments are views, not copies."""
        tensors = {f"first/{name}": array for name, array in self.first.items()}
        tensors |= {f"second/{name}": array for name, array in self.second.items()}
        flat = [
            np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in tensors.values()
        ]
        return [self._header(tensors), *(array.data for array in flat)]

    def to_bytes(self) -> bytes:
        """The file in memory."""
        return b"".join(self.pieces())

    def _header(self, tensors: Moments) -> bytes:
        document: dict[str, Any] = {
            "__metadata__": {
                "format": _FORMAT,
                "optimizer": self.optimizer,
                "layout": self.layout_digest.hex(),
                "steps": str(self.steps),
            }
        }
        end = 0
        for name, array in tensors.items():
            begin, end = end, end + array.nbytes
            document[name] = {
                "dtype": _DTYPES[array.dtype],
                "shape": list(array.shape),
                "data_offsets": [begin, end],
            }
        text = json.dumps(document, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        return len(text).to_bytes(8, "little") + text

    @classmethod
    def from_bytes(cls, data: Buffer) -> OptimizerState:
        """Parses the bytes of a file.

        Raises:
            DecodeError: not such a file.
        """
        content = bytes(data)
        try:
            found = dict(safetensors.deserialize(content))  # type: ignore[no-untyped-call]
        except safetensors.SafetensorError as error:
            raise DecodeError(f"not a safetensors file: {error}") from error
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        metadata = _metadata(header.pop("__metadata__", None) or {})
        first: dict[str, NDArray[Any]] = {}
        second: dict[str, NDArray[Any]] = {}
        # The library returns them in an order that changes from process to process.
        for key in sorted(header, key=lambda key: tuple(header[key]["data_offsets"])):
            tensor = found[key]
            moment, _, name = key.partition("/")
            place = {"first": first, "second": second}.get(moment)
            if place is None or tensor["dtype"] not in _NUMPY:
                raise DecodeError(f"tensor {key!r} of dtype {tensor['dtype']} is no moment")
            values = np.frombuffer(tensor["data"], _NUMPY[tensor["dtype"]])
            place[name] = values.reshape(tensor["shape"])
        return cls(first=first, second=second, **metadata)


def _metadata(found: Mapping[str, Any]) -> dict[str, Any]:
    if found.get("format") != _FORMAT:
        raise DecodeError(
            "not a server optimizer's state", hint="a model's file has no such state in it"
        )
    try:
        digest, steps = bytes.fromhex(found["layout"]), int(found["steps"])
        optimizer = found["optimizer"]
    except (KeyError, ValueError) as error:
        raise DecodeError(f"the optimizer state's metadata is damaged: {error}") from error
    if steps < 0:
        raise DecodeError("the optimizer state's metadata is damaged: steps are negative")
    return {"optimizer": optimizer, "layout_digest": digest, "steps": steps}
