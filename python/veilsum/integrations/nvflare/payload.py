"""What params of a contribution hold: tensors, an update of EncodeFilter, or quantized tensors.

Who has worked on them is in the DXO's meta as PROCESSED_ALGORITHM:

- nothing: tensors, NumPy or torch, in memory or on disk.
- "veilsum.<codec>": EncodedUpdate.to_bytes() as the one array "update", of NumPy's dtype of raw
  bytes, V1: it travels like any other array, and whoever computes with it gets a TypeError and not
  a number. Decoded while it is summed, and kept as small as it came until then.
- "float16", "blockwise8", "float4", "normfloat4": NVFLARE's ModelQuantizer. Decoded tensor by
  tensor: its 8-bit map, its 4-bit float and its blocks are those of no codec here, so that an exact
  copy has to hold what they stand for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from nvflare.apis.dxo import MetaKey

from veilsum.codecs import EncodedUpdate
from veilsum.codecs.imports import nvflare_arrays
from veilsum.codecs.nvflare import METHODS
from veilsum.errors import DecodeError
from veilsum.integrations.nvflare.tensors import Tensor, is_lazy, materialised, read_tensors
from veilsum.model import ModelLayout

_PREFIX = "veilsum."
_KEY = "update"
_RAW = np.dtype("V1")


def native_params(update: EncodedUpdate) -> tuple[dict[str, NDArray[np.void]], str]:
    """The params in which an encoded update travels, and its PROCESSED_ALGORITHM."""
    return {_KEY: np.frombuffer(update.to_bytes(), _RAW)}, _PREFIX + update.codec


def native_bytes(params: Mapping[str, Any], meta: Mapping[str, Any]) -> tuple[bytes, str] | None:
    """The bytes of an encoded update and the codec it is said to be of; None for other params.

    Raises:
        DecodeError: they are not one such array.
    """
    algorithm = meta.get(MetaKey.PROCESSED_ALGORITHM)
    if not isinstance(algorithm, str) or not algorithm.startswith(_PREFIX):
        return None
    data = materialised(params.get(_KEY))
    if len(params) != 1 or not isinstance(data, np.ndarray) or data.dtype != _RAW:
        raise DecodeError(f"params of {algorithm!r} are one array of raw bytes, {_KEY!r}")
    return data.tobytes(), algorithm.removeprefix(_PREFIX)


def one_by_one(params: Mapping[str, Any], meta: Mapping[str, Any]) -> bool:
    """Whether params have tensors that are not in memory as they are summed."""
    return MetaKey.PROCESSED_ALGORITHM in meta or any(map(is_lazy, params.values()))


def read_params(
    params: Mapping[str, Any], meta: Mapping[str, Any], layout: ModelLayout | None
) -> Iterator[Tensor]:
    """The tensors, made one after the other.

    Raises:
        DecodeError: a filter has worked on them that is not known here, or not as it says; or as
            tensors.read_tensors.
    """
    algorithm = meta.get(MetaKey.PROCESSED_ALGORITHM)
    if algorithm is None:
        yield from read_tensors(params, layout)
        return
    if algorithm not in METHODS:
        raise DecodeError(
            f"the update was processed by {algorithm!r}, known are veilsum's EncodeFilter and "
            f"ModelQuantizer with {', '.join(METHODS)}",
            hint="undo it in a filter of the server's task results",
        )
    for name, tensor in params.items():
        decoded = nvflare_arrays({name: materialised(tensor)}, _meta_of(name, meta))
        yield from read_tensors(decoded, layout)


def _meta_of(name: str, meta: Mapping[str, Any]) -> dict[str, Any]:
    """The meta with what undoes one tensor only, read from disk where it is there."""
    states = meta.get("quant_state")
    if not isinstance(states, Mapping) or not isinstance(states.get(name), Mapping):
        return dict(meta)  # refused where it is used
    state = {field: materialised(value) for field, value in states[name].items()}
    return {**meta, "quant_state": {name: state}}
