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


async def receive_model(call: Any, max_bytes: int) -> tuple[ModelLayout, dict[str, NDArray[Any]]]:
    """Args:
        call: the answer to FetchModel.

    Raises:
        DecodeError: it is larger than `max_bytes`, or not what its header announced.
    """
    pieces = aiter(call)
    first = await anext(pieces, None)
    if first is None:
        raise DecodeError("the model's stream is empty")
    layout_bytes, size, model_hash = wire_data.decode_model_header(first)
    layout = ModelLayout.from_bytes(layout_bytes)
    expected = sum(_tensor_bytes(dtype, shape) for _, dtype, shape in layout.native.tensors)
    if size != expected:
        raise DecodeError(f"the model announces {size} bytes, its layout has {expected}")
    if size > max_bytes:
        raise DecodeError(f"the model has {size} bytes, this site accepts {max_bytes}")
    data = np.empty(size, np.uint8)
    state = hashlib.sha256(layout.digest)
    begin = 0
    async for piece in pieces:
        part = np.frombuffer(wire_data.decode_model_data(piece), np.uint8)
        if begin + part.size > size:
            raise DecodeError(f"the model has more than the announced {size} bytes")
        data[begin : begin + part.size] = part
        state.update(part.data)
        begin += part.size
    if begin != size:
        raise DecodeError(f"the model ended after {begin} of {size} bytes")
    if state.digest() != model_hash:
        raise DecodeError("the model is not the one that its hash names")
    return layout, _split(layout, data)


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
