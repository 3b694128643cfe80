"""What NVFLARE's ModelQuantizer sends, held to the package bitsandbytes."""

from __future__ import annotations

import math
import tracemalloc
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from veilsum import decode, encode
from veilsum.codecs.imports import import_nvflare, nvflare_arrays
from veilsum.codecs.nvflare import dynamic_map
from veilsum.errors import DecodeError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import bitsandbytes.functional as bnb

METHODS = ("blockwise8", "float4", "normfloat4")


def model() -> dict[str, torch.Tensor]:
    torch.manual_seed(4)
    return {
        "w": torch.randn(70, 90) * 0.03,
        "b": torch.randn(5),
        "odd": torch.randn(3, 11, 17).to(torch.float16),
        "brain": torch.randn(8, 16).to(torch.bfloat16),
        "zeros": torch.zeros(64),
    }


def quantize(
    method: str, values: torch.Tensor, nested: bool
) -> tuple[torch.Tensor, dict[str, Any]]:
    """As the filter does it (nvflare/app_opt/pt/quantization/quantizer.py)."""
    if method == "blockwise8":
        codes, state = bnb.quantize_blockwise(values)
        return codes, {"absmax": state.absmax, "code": state.code}
    kind = "fp4" if method == "float4" else "nf4"
    codes, state = bnb.quantize_4bit(values, quant_type=kind, compress_statistics=nested)
    return codes, state.as_dict()


def restored_by_bitsandbytes(
    method: str, codes: torch.Tensor, state: dict[str, Any]
) -> torch.Tensor:
    if method == "blockwise8":
        return bnb.dequantize_blockwise(codes, absmax=state["absmax"], code=state["code"])
    # Flat, because for rows shorter than a block the CPU kernel of bitsandbytes 0.50 takes the
    # scale of a row's first block for all of it, although its quantizer counts blocks through.
    flat = dict(state) | {"shape": (math.prod(state["shape"]),)}
    values = bnb.dequantize_4bit(codes, bnb.QuantState.from_dict(flat, torch.device("cpu")))
    return values.reshape(state["shape"])


def as_kind(value: Any, kind: str) -> Any:
    return value.numpy() if isinstance(value, torch.Tensor) and kind == "numpy" else value


def payload(
    method: str, kind: str = "torch", nested: bool = False
) -> tuple[dict[str, Any], dict[str, Any]]:
    data, states, sources = {}, {}, {}
    for name, values in model().items():
        if kind == "numpy" and values.dtype == torch.bfloat16:
            continue
        codes, state = quantize(method, values, nested)
        data[name] = as_kind(codes, kind)
        states[name] = {field: as_kind(value, kind) for field, value in state.items()}
        sources[name] = str(values.dtype).removeprefix("torch.")
    meta = {"quant_state": states, "source_datatype": sources, "PROCESSED_ALGORITHM": method}
    return data, meta


def test_the_dynamic_map_is_bitsandbytes_own() -> None:
    expected = bnb.create_dynamic_map().tolist()

    assert len(dynamic_map()) == 256
    assert np.allclose(dynamic_map(), expected, rtol=0, atol=2.0**-24)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", ["torch", "numpy"])
@pytest.mark.parametrize("method", METHODS)
def test_values_are_those_of_bitsandbytes(method: str, kind: str, nested: bool) -> None:
    data, meta = payload(method, kind, nested)

    arrays = nvflare_arrays(data, meta)

    assert list(arrays) == list(data)
    for name, array in arrays.items():
        values = model()[name]
        codes, state = quantize(method, values, nested)
        expected = restored_by_bitsandbytes(method, codes, state).to(values.dtype).float().numpy()
        assert array.shape == tuple(values.shape)
        assert array.dtype == (np.float16 if values.dtype == torch.float16 else np.float32)
        # bitsandbytes rounds to bfloat16 itself; we keep the float32 of it.
        tolerance = 2.0**-8 if values.dtype == torch.bfloat16 else 1e-6
        assert np.allclose(array, expected, rtol=tolerance, atol=1e-7)


def test_halves_and_tensors_the_filter_leaves_alone_pass_through() -> None:
    data = {"w": np.ones(3, np.float16), "h": np.full(2, 2, np.float16)}
    meta = {
        "quant_state": {"w": {}, "h": {}},
        "source_datatype": {"w": "float32", "h": "float16"},
        "PROCESSED_ALGORITHM": "float16",
    }

    arrays = nvflare_arrays(data, meta)

    assert arrays["w"].dtype == np.float32
    assert arrays["h"].dtype == np.float16


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.full(2, np.nan, np.float16), "not finite"),
        (np.full(2, 1e300), "values of dtype float64"),
        (np.full(2, 2**40), "values of dtype int64"),
    ],
)
def test_tensors_the_filter_leaves_alone_must_be_what_they_are_said_to_be(
    values: np.ndarray, reason: str
) -> None:
    meta = {
        "quant_state": {},
        "source_datatype": {"h": "float16"},
        "PROCESSED_ALGORITHM": "float16",
    }

    with pytest.raises(DecodeError, match=reason):
        nvflare_arrays({"h": values}, meta)


def test_a_block_larger_than_its_tensor_costs_no_memory() -> None:
    state = {
        "absmax": np.ones(1, np.float32),
        "quant_map": bnb.get_4bit_type("nf4", device="cpu").numpy(),
        "blocksize": 2**20,
        "shape": (2,),
    }
    meta = {
        "quant_state": {"w": state},
        "source_datatype": {"w": "float32"},
        "PROCESSED_ALGORITHM": "normfloat4",
    }

    tracemalloc.start()
    try:
        arrays = nvflare_arrays({"w": np.array([0x0F], np.uint8)}, meta)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert arrays["w"].tolist() == [-1.0, 1.0]
    assert peak < 2**19


def test_an_update_holds_the_values_in_the_codec_that_is_named() -> None:
    data, meta = payload("normfloat4")

    update = import_nvflare(data, meta, "f32")

    for name, array in nvflare_arrays(data, meta).items():
        assert np.array_equal(decode(update)[name], array)
    assert import_nvflare(data, meta).to_bytes() == encode(nvflare_arrays(data, meta)).to_bytes()


# --- refusals --------------------------------------------------------------------------


def changed(method: str, nested: bool, change: Callable[[Any, Any], None]) -> None:
    data, meta = payload(method, "numpy", nested)
    for state in meta["quant_state"].values():
        for field, value in state.items():
            if isinstance(value, np.ndarray):
                state[field] = value.copy()
    change(data, meta["quant_state"]["w"])
    nvflare_arrays(data, meta)


def setting(field: str, value: Any) -> Callable[[Any, Any], None]:
    return lambda _data, state: state.__setitem__(field, value)


def poking(field: str, value: Any) -> Callable[[Any, Any], None]:
    return lambda _data, state: state[field].__setitem__(0, value)


def removing(field: str) -> Callable[[Any, Any], None]:
    return lambda _data, state: state.pop(field)


REFUSALS: list[tuple[str, bool, Callable[[Any, Any], None], str]] = [
    ("blockwise8", False, removing("absmax"), "has no 'absmax'"),
    ("blockwise8", False, removing("code"), "has no 'code'"),
    ("blockwise8", False, poking("absmax", -1.0), "negative or not finite"),
    ("blockwise8", False, poking("absmax", math.nan), "negative or not finite"),
    ("blockwise8", False, setting("absmax", np.ones(3, np.float32)), "3 absmax, 6300 values"),
    ("blockwise8", False, setting("absmax", np.ones(2)), "absmax of dtype float64"),
    ("blockwise8", False, setting("absmax", "x"), "str, not an array"),
    ("blockwise8", False, poking("code", 0.5), "not bitsandbytes' own"),
    ("blockwise8", False, setting("code", np.zeros(255, np.float32)), "not bitsandbytes' own"),
    ("normfloat4", False, poking("quant_map", -0.9), "not bitsandbytes' own"),
    ("float4", False, poking("quant_map", math.nan), "not bitsandbytes' own"),
    ("normfloat4", False, setting("blocksize", 0), "blocksize 0"),
    ("normfloat4", False, setting("blocksize", 2**40), "blocksize"),
    ("normfloat4", False, setting("blocksize", True), "blocksize True"),
    ("normfloat4", False, setting("shape", (70, 91)), "bytes of codes for shape"),
    ("normfloat4", False, setting("shape", (2**30, 2**30)), "bytes of codes for shape"),
    ("normfloat4", False, setting("shape", (-70, -90)), "has shape"),
    ("normfloat4", False, setting("shape", None), "has shape None"),
    ("normfloat4", False, setting("shape", (70, 90) + (1,) * 70), "has shape"),
    ("normfloat4", False, setting("shape", (0, 2**39, 2**39)), "has shape"),
    ("normfloat4", True, removing("nested_quant_map"), "has no 'nested_quant_map'"),
    ("normfloat4", True, setting("nested_offset", math.inf), "nested_offset inf"),
    ("normfloat4", True, setting("nested_offset", 10**400), "nested_offset"),
    ("normfloat4", True, setting("nested_offset", 1e39), "nested_offset"),
    ("normfloat4", True, setting("absmax", np.zeros(5, np.uint8)), "5 absmax for 6300 values"),
    ("normfloat4", True, poking("nested_absmax", math.inf), "negative or not finite"),
]


@pytest.mark.parametrize(("method", "nested", "change", "reason"), REFUSALS)
def test_fields_that_bitsandbytes_does_not_write_are_refused(
    method: str, nested: bool, change: Callable[[Any, Any], None], reason: str
) -> None:
    with pytest.raises(DecodeError, match=reason):
        changed(method, nested, change)


def test_values_that_do_not_fit_their_dtype_are_refused() -> None:
    data, meta = payload("blockwise8", "numpy")
    meta["quant_state"]["odd"]["absmax"] = np.full(1, 3e38, np.float32)

    with pytest.raises(DecodeError, match="'odd' has values that are not finite as float16"):
        nvflare_arrays(data, meta)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"PROCESSED_ALGORITHM": "adaquant"}, "processed by 'adaquant', known are float16"),
        ({"PROCESSED_ALGORITHM": None}, "processed by None"),
        ({"quant_state": None}, "quant_state is a NoneType"),
        ({"quant_state": {}}, "quant_state of 'w' is a NoneType"),
        ({"source_datatype": {}}, "'w' came from None"),
        ({"source_datatype": {"w": "complex64"}}, "'w' came from 'complex64'"),
        ({"source_datatype": {"w": ["float32"]}}, "'w' came from "),
    ],
)
def test_a_meta_that_the_filter_does_not_write_is_refused(
    change: dict[str, Any], reason: str
) -> None:
    data, meta = payload("blockwise8", "numpy")

    with pytest.raises(DecodeError, match=reason):
        nvflare_arrays(data, meta | change)


def test_codes_of_another_dtype_are_refused() -> None:
    data, meta = payload("blockwise8", "numpy")
    with pytest.raises(DecodeError, match="'w' has codes of dtype float32"):
        nvflare_arrays(data | {"w": np.ones((70, 90), np.float32)}, meta)
    with pytest.raises(DecodeError, match="cannot be averaged"):
        nvflare_arrays(data | {"w": np.array(["x"])}, meta)
