"""Model updates quantized by NVFLARE's filter ModelQuantizer, which uses bitsandbytes.

The filter replaces tensors of a DXO by codes and adds to its meta, per tensor, what undoes it:
`quant_state`, `source_datatype`, and the method as `PROCESSED_ALGORITHM`. (Facts: NVFLARE's
nvflare/app_opt/pt/quantization; bitsandbytes' functional.py, `QuantState.as_dict`; held to the
package bitsandbytes by tests.)

- `blockwise8`: a byte per value, index into a table `code` of 256 values, times the `absmax` of its
  block of 4,096 values.
- `float4`, `normfloat4`: two codes per byte, the first in the high half, index into `quant_map`
  of 16 values, times the `absmax` of its block of `blocksize`. `absmax` may itself be coded like
  blockwise8: `nested_quant_map`, `nested_absmax`, `nested_blocksize`, plus `nested_offset`.
- `float16`: the values as halves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veilsum.arrays import as_native, widen_bfloat16
from veilsum.codecs.encoding import encode
from veilsum.codecs.update import EncodedUpdate
from veilsum.errors import ConfigError, DecodeError
from veilsum.model import ModelLayout

METHODS = ("float16", "blockwise8", "float4", "normfloat4")

_BLOCKWISE8_BLOCK = 4096
_LARGEST_BLOCK = 1 << 20
_LARGEST_FLOAT = float(np.finfo(np.float32).max)
_MOST_DIMENSIONS = 32  # NumPy's limit before 2.0
_DTYPES: dict[str, type[np.floating[Any]]] = {
    "float64": np.float64,
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": np.float32,
}
_BITS = {"float64": 64, "float32": 32, "float16": 16, "bfloat16": 16}
_METHOD_BITS = {"float16": 16, "blockwise8": 8, "float4": 4, "normfloat4": 4}
_MAP_TOLERANCE = 1e-6

# bitsandbytes' 4-bit tables: NormalFloat4 (Dettmers et al. 2023, appendix E), and a float with
# a sign, two bits of exponent and one of fraction, in twelfths.
_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip
_FP4 = tuple(sign * value / 12 for sign in (1, -1) for value in (0, 0.0625, 8, 12, 4, 6, 2, 3))


def dynamic_map() -> tuple[float, ...]:
    """The 256 values of bitsandbytes' dynamic 8-bit type (Dettmers 2016, arXiv 1511.04561).

    For each of seven powers of ten, from 1e-6 to 1, the middles of 2**k equal parts of
    [0.1, 1] of it, k from 0 to 6, with both signs; and 0 and 1.
    """
    values = [0.0, 1.0]
    for k in range(7):
        middles = [0.1 + 0.9 * (part + 0.5) / 2**k for part in range(2**k)]
        values += [sign * middle * 10.0 ** (k - 6) for middle in middles for sign in (1, -1)]
    return tuple(sorted(values))


def nvflare_arrays(data: Mapping[str, Any], meta: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """The tensors of a DXO that ModelQuantizer has worked on.

    Args:
        data: the DXO's data: name -> NumPy array or torch tensor.
        meta: the DXO's meta, with `quant_state`, `source_datatype` and `PROCESSED_ALGORITHM`.

    Returns:
        Name -> array, dtype as before the filter; bfloat16 tensors as float32.

    Raises:
        DecodeError: a field is missing, or is not as bitsandbytes writes it; names the tensor.
    """
    _mapping(data, "data")
    method = _mapping(meta, "meta").get("PROCESSED_ALGORITHM")
    if not isinstance(method, str) or method not in METHODS:
        raise DecodeError(f"the update was processed by {method!r}, known are {', '.join(METHODS)}")
    states = _mapping(meta.get("quant_state"), "quant_state")
    sources = _mapping(meta.get("source_datatype"), "source_datatype")
    return {
        name: _restored(name, tensor, method, states.get(name), sources.get(name))
        for name, tensor in data.items()
    }


def import_nvflare(
    data: Mapping[str, Any], meta: Mapping[str, Any], codec: str = "int8", **options: Any
) -> EncodedUpdate:
    """An update from a DXO that ModelQuantizer has worked on: its values, encoded anew.

    Args:
        data, meta: as nvflare_arrays() takes them.
        codec, options: as encode() takes them.

    Raises:
        DecodeError: as nvflare_arrays(), or names and shapes make no layout.
        ConfigError: as encode().
    """
    arrays = nvflare_arrays(data, meta)
    try:
        layout = ModelLayout.from_arrays(arrays)
    except ConfigError as error:
        raise DecodeError(f"the tensors make no layout: {error}") from error
    return encode(arrays, codec, **{"layout": layout, **options})


def _restored(name: Any, tensor: Any, method: str, state: Any, source: Any) -> NDArray[Any]:
    if not isinstance(name, str):
        raise DecodeError(f"a tensor's name is a {type(name).__name__}, expected a string")
    if not isinstance(source, str) or source not in _DTYPES:
        raise DecodeError(f"tensor {name!r} came from {source!r}, known are {', '.join(_DTYPES)}")
    values = _foreign(tensor, name)
    if _METHOD_BITS[method] >= _BITS[source]:
        # The filter leaves such tensors alone.
        return _finite(name, _expect(values, name, "values", (_DTYPES[source],)), source)
    if method == "float16":
        decoded = _expect(values, name, "values", (np.float16,))
    elif method == "blockwise8":
        decoded = _blockwise8(name, values, _mapping(state, f"quant_state of {name!r}"))
    else:
        table = _NF4 if method == "normfloat4" else _FP4
        decoded = _four_bits(name, values, _mapping(state, f"quant_state of {name!r}"), table)
    with np.errstate(over="ignore"):  # looked for just below
        restored = decoded.astype(_DTYPES[source])
    return _finite(name, restored, source)


def _finite(name: str, values: NDArray[Any], source: str) -> NDArray[Any]:
    if not np.isfinite(values).all():
        raise DecodeError(f"tensor {name!r} has values that are not finite as {source}")
    return values


# --- the methods --------------------------------------------------------------------------


def _blockwise8(name: str, codes: NDArray[Any], state: Mapping[str, Any]) -> NDArray[np.float32]:
    _expect(codes, name, "codes", (np.uint8,))
    table = _table(name, state, "code", dynamic_map())
    scales = _scales(name, state, "absmax", codes.size, _BLOCKWISE8_BLOCK)
    return _times(table[codes.reshape(-1)], scales, _BLOCKWISE8_BLOCK).reshape(codes.shape)


def _four_bits(
    name: str, packed: NDArray[Any], state: Mapping[str, Any], known: tuple[float, ...]
) -> NDArray[np.float32]:
    _expect(packed, name, "codes", (np.uint8,))
    shape = _shape(name, state)
    size = math.prod(shape)
    if packed.size != -(-size // 2):
        raise DecodeError(f"tensor {name!r} has {packed.size} bytes of codes for shape {shape}")
    block = _block(name, state, "blocksize")
    codes = np.stack([packed.reshape(-1) >> 4, packed.reshape(-1) & 15], axis=1).reshape(-1)
    scales = _absmax(name, state, size, block)
    table = _table(name, state, "quant_map", known)
    return _times(table[codes[:size]], scales, block).reshape(shape)


def _absmax(name: str, state: Mapping[str, Any], size: int, block: int) -> NDArray[np.float32]:
    if "nested_absmax" not in state:
        return _scales(name, state, "absmax", size, block)
    codes = _expect(_field(name, state, "absmax"), name, "absmax", (np.uint8,)).reshape(-1)
    if codes.size != -(-size // block):
        raise DecodeError(f"tensor {name!r} has {codes.size} absmax for {size} values")
    table = _table(name, state, "nested_quant_map", dynamic_map())
    nested = _block(name, state, "nested_blocksize")
    scales = _scales(name, state, "nested_absmax", codes.size, nested)
    offset = state.get("nested_offset")
    if not isinstance(offset, int | float) or not abs(offset) <= _LARGEST_FLOAT:
        raise DecodeError(f"tensor {name!r} has nested_offset {offset!r}")
    return _times(table[codes], scales, nested) + np.float32(offset)


def _times(
    values: NDArray[np.float32], scales: NDArray[np.float32], block: int
) -> NDArray[np.float32]:
    # A block may be much larger than a small tensor that has only a part of it.
    repeated = np.repeat(scales, min(block, values.size))[: values.size]
    with np.errstate(over="ignore"):  # what is not finite is refused in the end
        return values * repeated


# --- foreign fields -----------------------------------------------------------------------


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise DecodeError(f"{what} is a {type(value).__name__}, expected a mapping")
    return value


def _foreign(array: Any, what: str) -> NDArray[Any]:
    try:
        values, dtype = as_native(array, what)
    except ConfigError as error:
        raise DecodeError(str(error), hint=error.hint) from error
    return widen_bfloat16(values) if dtype == "bf16" else values


def _field(name: str, state: Mapping[str, Any], field: str) -> NDArray[Any]:
    if field not in state:
        raise DecodeError(f"quant_state of {name!r} has no {field!r}")
    return _foreign(state[field], f"{name}: {field}")


def _expect(
    values: NDArray[Any], name: str, what: str, dtypes: tuple[Callable[..., Any], ...]
) -> NDArray[Any]:
    if values.dtype.type not in dtypes:
        raise DecodeError(f"tensor {name!r} has {what} of dtype {values.dtype}")
    return values


def _table(
    name: str, state: Mapping[str, Any], field: str, known: tuple[float, ...]
) -> NDArray[np.float32]:
    """A table that is the published one up to rounding: a peer does not bring its own."""
    values = _expect(_field(name, state, field), name, field, (np.float32,)).reshape(-1)
    table: NDArray[np.float32] = values
    if table.size != len(known) or not np.allclose(table, known, rtol=0, atol=_MAP_TOLERANCE):
        raise DecodeError(f"tensor {name!r} has a {field} that is not bitsandbytes' own")
    return table


def _scales(
    name: str, state: Mapping[str, Any], field: str, size: int, block: int
) -> NDArray[np.float32]:
    values = _expect(_field(name, state, field), name, field, (np.float32,)).reshape(-1)
    scales: NDArray[np.float32] = values
    if scales.size != -(-size // block):
        raise DecodeError(
            f"tensor {name!r} has {scales.size} {field}, {size} values in blocks of {block} have "
            f"{-(-size // block)}"
        )
    if not (np.isfinite(scales) & (scales >= 0)).all():
        raise DecodeError(f"tensor {name!r} has a {field} that is negative or not finite")
    return scales


def _block(name: str, state: Mapping[str, Any], field: str) -> int:
    block = state.get(field)
    if not isinstance(block, int) or isinstance(block, bool) or not 1 <= block <= _LARGEST_BLOCK:
        raise DecodeError(f"tensor {name!r} has {field} {block!r}")
    return block


def _shape(name: str, state: Mapping[str, Any]) -> tuple[int, ...]:
    shape = state.get("shape")
    if (
        not isinstance(shape, tuple | list)
        or len(shape) > _MOST_DIMENSIONS
        or not all(isinstance(size, int) and 0 <= size < 2**40 for size in shape)
        # Beside an empty dimension nothing bounds the others, and NumPy multiplies them all.
        or (0 in shape and math.prod(max(size, 1) for size in shape) >= 2**40)
    ):
        raise DecodeError(f"tensor {name!r} has shape {shape!r}")
    return tuple(map(int, shape))
