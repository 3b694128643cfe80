"""A model as it arrives at a site: one buffer, hashed on the way, taken apart into tensors."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veilsum.errors import DecodeError
from veilsum.model import NUMPY_DTYPES, ModelLayout
from veilsum.transport import wire_data


class IncomingModel:
    """What has come of a model so far; what is missing may come by another call.

    Args:
        max_bytes: a larger one is refused at its header.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._header = b""
        self._layout: ModelLayout | None = None
        self._data = np.empty(0, np.uint8)
        self._hash = hashlib.sha256()
        self._model_hash = b""
        self.held = 0

    async def receive(self, call: Any) -> tuple[ModelLayout, dict[str, NDArray[Any]]]:
        """Takes what is missing; `held` counts the bytes that are there.

        Args:
            call: the answer to FetchModel from byte `held` on.

        Raises:
            DecodeError: it is larger than `max_bytes`, or not what its header announced.
        """
        pieces = aiter(call)
        first = await anext(pieces, None)
        if first is None:
            raise DecodeError("the model's stream is empty")
        if self._layout is None:
            self._begin(first)
        elif first != self._header:
            raise DecodeError("the model is another one than at first")
        async for piece in pieces:
            self._take(wire_data.decode_model_data(piece))
        return self._finish()

    def _begin(self, header: bytes) -> None:
        layout_bytes, size, model_hash = wire_data.decode_model_header(header)
        layout = ModelLayout.from_bytes(layout_bytes)
        expected = sum(_tensor_bytes(dtype, shape) for _, dtype, shape in layout.native.tensors)
        if size != expected:
            raise DecodeError(f"the model announces {size} bytes, its layout has {expected}")
        if size > self._max_bytes:
            raise DecodeError(f"the model has {size} bytes, this site accepts {self._max_bytes}")
        self._data = np.empty(size, np.uint8)
        self._hash = hashlib.sha256(layout.digest)
        self._header, self._layout, self._model_hash = header, layout, model_hash

    def _take(self, data: memoryview) -> None:
        part = np.frombuffer(data, np.uint8)
        end = self.held + part.size
        if end > self._data.size:
            raise DecodeError(f"the model has more than the announced {self._data.size} bytes")
        self._data[self.held : end] = part
        self._hash.update(part.data)
        self.held = end

    def _finish(self) -> tuple[ModelLayout, dict[str, NDArray[Any]]]:
        if self._layout is None or self.held != self._data.size:
            raise DecodeError(f"the model ended after {self.held} of {self._data.size} bytes")
        if self._hash.digest() != self._model_hash:
            raise DecodeError("the model is not the one that its hash names")
        return self._layout, _split(self._layout, self._data)


def _tensor_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * NUMPY_DTYPES[dtype].itemsize


def _split(layout: ModelLayout, data: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    """Views of the data, copied only where a tensor does not begin on its own alignment."""
    arrays = {}
    begin = 0
    for name, dtype, shape in layout.native.tensors:
        end = begin + _tensor_bytes(dtype, shape)
        array: NDArray[Any] = np.frombuffer(data[begin:end], NUMPY_DTYPES[dtype]).reshape(shape)
        if not array.flags.aligned:
            array = array.copy()
        # Read-only: the update is the difference from this very model.
        array.flags.writeable = False
        arrays[name] = array
        begin = end
    return arrays
