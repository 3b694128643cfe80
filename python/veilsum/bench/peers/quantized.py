"""Decoding to float32 and adding, as it is done without a fused pass.

Every peer has codes and scales of its own making, in the layout that is natural to it: blocks of
64 values where there are scales.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from veilsum.bench.contenders import Contender, Work

if TYPE_CHECKING:
    from veilsum.bench.codec import CodecPayload

BLOCK = 64
Floats = NDArray[np.float32]
Coded = tuple[NDArray[Any], ...]


def _numpy(
    coded: Callable[[Floats], Coded],
    decoded: Callable[..., Floats],
    payload: CodecPayload,
    threads: int,
) -> Work:
    """Decode into a temporary, multiply by the weight, add."""
    updates = [coded(_whole_blocks(row)) for row in payload.rows]
    size = payload.rows[0].size

    def call() -> Mapping[str, Any]:
        total = np.zeros(size + -size % BLOCK, np.float32)
        for update, weight in zip(updates, payload.weights, strict=True):
            values = decoded(*update)
            np.multiply(values, np.float32(weight), out=values)
            np.add(total, values, out=total)
        return {"w": np.divide(total, np.float32(sum(payload.weights)), out=total)[:size]}

    reference = payload.reference([decoded(*update)[:size] for update in updates])
    return Work(call, reference.rounded_on_the_way)


def _whole_blocks(row: Floats) -> Floats:
    return np.pad(row, (0, -row.size % BLOCK))


def _torch(dtype: str, payload: CodecPayload, threads: int) -> Work:
    """One pass: torch adds a half to a float as it is."""
    import torch

    torch.set_num_threads(threads)
    updates = [torch.from_numpy(row).to(getattr(torch, dtype)) for row in payload.rows]

    def call() -> Mapping[str, Any]:
        total = torch.zeros(updates[0].shape, dtype=torch.float32)
        for update, weight in zip(updates, payload.weights, strict=True):
            total.add_(update, alpha=weight)
        return {"w": total.div_(sum(payload.weights)).numpy()}

    reference = payload.reference([update.float().numpy() for update in updates])
    return Work(call, reference.rounded_on_the_way)


def _bitsandbytes(kind: str, payload: CodecPayload, threads: int) -> Work:
    """Its decoder for the CPU, and torch's sum. NVFLARE's filters call the same decoder."""
    import torch
    from bitsandbytes import functional

    torch.set_num_threads(threads)
    rows = [torch.from_numpy(row) for row in payload.rows]
    if kind == "int8":
        updates = [functional.quantize_blockwise(row, blocksize=4096) for row in rows]
        decode: Callable[..., Any] = functional.dequantize_blockwise
    else:
        updates = [functional.quantize_4bit(row, blocksize=BLOCK, quant_type=kind) for row in rows]
        decode = functional.dequantize_4bit

    def call() -> Mapping[str, Any]:
        total = torch.zeros(rows[0].shape, dtype=torch.float32)
        for (codes, state), weight in zip(updates, payload.weights, strict=True):
            total.add_(decode(codes, state).view(-1), alpha=weight)
        return {"w": total.div_(sum(payload.weights)).numpy()}

    decoded = [decode(codes, state).view(-1).numpy() for codes, state in updates]
    return Work(call, payload.reference(decoded).rounded_on_the_way)


# --- NumPy's codes ------------------------------------------------------------------------


def _scaled(row: Floats, largest: float) -> tuple[NDArray[Any], Floats]:
    blocks = row.reshape(-1, BLOCK)
    scales = np.maximum(np.abs(blocks).max(axis=1, keepdims=True), 1e-30) / np.float32(largest)
    return blocks / scales, scales.astype(np.float32)


def _int8(row: Floats) -> Coded:
    steps, scales = _scaled(row, 127)
    return np.rint(steps).astype(np.int8), scales


def _from_int8(codes: NDArray[np.int8], scales: Floats) -> Floats:
    return np.multiply(codes, scales, dtype=np.float32).reshape(-1)


def _table(row: Floats, table: Floats) -> Coded:
    """Two codes a byte, the first in the high half: the nearest entry for each value."""
    steps, scales = _scaled(row, 1.0)
    order = np.argsort(table)
    middles = (table[order][1:] + table[order][:-1]) / 2
    codes = order[np.searchsorted(middles, steps.reshape(-1))].astype(np.uint8)
    return codes[::2] << 4 | codes[1::2], scales


def _from_table(table: Floats, packed: NDArray[np.uint8], scales: Floats) -> Floats:
    values = np.empty((packed.size, 2), np.float32)
    values[:, 0] = table[packed >> 4]
    values[:, 1] = table[packed & 15]
    blocks = values.reshape(-1, BLOCK)
    return np.multiply(blocks, scales, out=blocks).reshape(-1)


def _sign(row: Floats) -> Coded:
    blocks = row.reshape(-1, BLOCK)
    return np.packbits(row > 0), np.abs(blocks).mean(axis=1, keepdims=True)


def _from_sign(packed: NDArray[np.uint8], scales: Floats) -> Floats:
    signs = np.unpackbits(packed).astype(np.float32).reshape(-1, BLOCK)
    signs *= 2
    signs -= 1
    return np.multiply(signs, scales, out=signs).reshape(-1)


def _bf16(row: Floats) -> Coded:
    return ((row.view(np.uint32) >> 16).astype(np.uint16),)


def _from_bf16(codes: NDArray[np.uint16]) -> Floats:
    return (codes.astype(np.uint32) << 16).view(np.float32)


_INT4: Floats = ((np.arange(16) - 8) / 7).astype(np.float32)
# NormalFloat4 (Dettmers et al. 2023, appendix E) to seven digits, and a float of one sign, two
# exponent and one fraction bit.
_NF4 = np.array(
    [-1, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0, 0.0795803,
     0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1], np.float32,
)  # fmt: skip
_FP4 = np.array([0, 0.0052083, 0.6666667, 1, 0.3333333, 0.5, 0.1666667, 0.25], np.float32)
_TABLES: dict[str, Floats] = {"int4": _INT4, "nf4": _NF4, "fp4": np.concatenate([_FP4, -_FP4])}


def _numpy_contender(coded: Callable[..., Coded], decoded: Callable[..., Floats]) -> Contender:
    return Contender("NumPy decode, add", partial(_numpy, coded, decoded), host="numpy", memory=8.0)


def _torch_contender(dtype: str) -> Contender:
    return Contender(
        "torch add_", partial(_torch, dtype), host="torch", memory=float("inf"), threads=True
    )


def _bnb_contender(kind: str) -> Contender:
    return Contender(
        "bitsandbytes decode, torch add_",
        partial(_bitsandbytes, kind),
        host="bitsandbytes",
        memory=float("inf"),
        threads=True,
    )


def _by_table(codec: str) -> Contender:
    table: Floats = _TABLES[codec]
    return _numpy_contender(partial(_table, table=table), partial(_from_table, table))


SUMS: dict[str, tuple[Contender, ...]] = {
    "f32": (
        _numpy_contender(lambda row: (row,), lambda row: row.copy()),
        _torch_contender("float32"),
    ),
    "f16": (
        _numpy_contender(
            lambda row: (row.astype(np.float16),), lambda codes: codes.astype(np.float32)
        ),
        _torch_contender("float16"),
    ),
    "bf16": (_numpy_contender(_bf16, _from_bf16), _torch_contender("bfloat16")),
    "int8": (_numpy_contender(_int8, _from_int8), _bnb_contender("int8")),
    "int4": (_by_table("int4"),),
    "nf4": (_by_table("nf4"), _bnb_contender("nf4")),
    "fp4": (_by_table("fp4"), _bnb_contender("fp4")),
    "sign": (_numpy_contender(_sign, _from_sign),),
}
