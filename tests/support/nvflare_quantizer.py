"""What NVFLARE's ModelQuantizer makes of an update, on a machine without a GPU.

Its own filter moves tensors to CUDA. This one takes bitsandbytes' functions for the processor, and
writes the same fields (nvflare/app_opt/pt/quantization/quantizer.py).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from nvflare.apis.dxo import DXO, DataKind, MetaKey
from nvflare.apis.dxo_filter import DXOFilter
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import bitsandbytes.functional as bnb

_BITS = {"float16": 16, "blockwise8": 8, "float4": 4, "normfloat4": 4}
_KINDS = {"float4": "fp4", "normfloat4": "nf4"}


class Quantizer(DXOFilter):
    def __init__(self, method: str) -> None:
        kinds = [DataKind.WEIGHTS, DataKind.WEIGHT_DIFF]
        super().__init__(supported_data_kinds=kinds, data_kinds_to_filter=kinds)
        self.method = method

    def process_dxo(self, dxo: DXO, shareable: Shareable, fl_ctx: FLContext) -> DXO:
        data, meta = quantized(dxo.data, self.method)
        return DXO(dxo.data_kind, data, {**dxo.meta, **meta})


def quantized(params: Mapping[str, Any], method: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Params and meta as the filter leaves them."""
    data: dict[str, Any] = {}
    states: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for name, values in params.items():
        tensor = torch.as_tensor(np.asarray(values))
        sources[name] = str(tensor.dtype).removeprefix("torch.")
        codes, state = _quantized(tensor, method)
        in_numpy = isinstance(values, np.ndarray | np.generic)
        data[name] = codes.numpy() if in_numpy else codes
        states[name] = {
            field: value.numpy() if in_numpy and isinstance(value, torch.Tensor) else value
            for field, value in state.items()
        }
    meta = {
        "quant_state": states,
        "source_datatype": sources,
        MetaKey.PROCESSED_ALGORITHM: method,
    }
    return data, meta


def _quantized(tensor: torch.Tensor, method: str) -> tuple[torch.Tensor, dict[str, Any]]:
    if _BITS[method] >= tensor.element_size() * 8:
        return tensor, {}
    if method == "float16":
        return tensor.to(torch.float16), {}
    if method == "blockwise8":
        codes, state = bnb.quantize_blockwise(tensor)
        return codes, {"absmax": state.absmax, "code": state.code}
    codes, state = bnb.quantize_4bit(tensor, quant_type=_KINDS[method])
    return codes, state.as_dict()


def restored(
    data: Mapping[str, Any], meta: Mapping[str, Any], method: str
) -> dict[str, np.ndarray]:
    """What bitsandbytes reads from them."""
    return {
        name: _restored(torch.as_tensor(codes), meta["quant_state"][name], method)
        for name, codes in data.items()
    }


def _restored(codes: torch.Tensor, state: Mapping[str, Any], method: str) -> np.ndarray:
    if not state:
        return codes.to(torch.float32).numpy()
    fields = {
        name: torch.as_tensor(value) if isinstance(value, np.ndarray) else value
        for name, value in state.items()
    }
    if method == "blockwise8":
        values = bnb.dequantize_blockwise(codes, absmax=fields["absmax"], code=fields["code"])
        return values.numpy()
    # Flat: for rows shorter than a block the processor's kernel of bitsandbytes 0.50 takes the
    # scale of a row's first block for all of it, although its quantizer counts blocks through.
    flat = fields | {"shape": (math.prod(state["shape"]),)}
    values = bnb.dequantize_4bit(codes, bnb.QuantState.from_dict(flat, torch.device("cpu")))
    return values.reshape(tuple(state["shape"])).numpy()
