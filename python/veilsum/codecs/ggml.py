"""Tensors quantized by GGML (llama.cpp, GGUF files): Q8_0 and Q4_0 blocks in, Q8_0 out.

Both formats cut a tensor into blocks of 32 values: a half-precision scale, then the codes. A
value is code * scale. Q8_0 has signed bytes for codes; Q4_0 has 4 bits per code, less 8, the
first 16 values in the low halves of 16 bytes, the others in the high halves, and its scale may
be negative. (Facts: ggml's `block_q8_0`, `block_q4_0`; held to the package gguf by tests.)
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

from veilsum import _native
from veilsum.codecs.encoding import DEFAULT_CHUNK_COORDINATES, encode
from veilsum.codecs.form import UpdateForm
from veilsum.codecs.update import EncodedUpdate
from veilsum.errors import ConfigError, DecodeError
from veilsum.model import ModelLayout

_BLOCK = 32
_SAME_AS_Q8_0 = "int8/b32/f16"
_Q8_0 = np.dtype([("scale", "<f2"), ("codes", "i1", _BLOCK)])
_Q4_0 = np.dtype([("scale", "<f2"), ("codes", "u1", _BLOCK // 2)])
_ALIGNMENT = 64  # of tensors in the coordinate space
_MOST_DIMENSIONS = 8
_MOST_ELEMENTS = 2**40  # of a layout
_CHUNK_HEADER_BYTES = 64
_SECTION_ALIGNMENT = 16


@dataclass(frozen=True, slots=True)
class GgmlTensor:
    """A quantized tensor as a GGUF file holds it.

    Attributes:
        data: the blocks, row-major, nothing between them.
        shape: of the values, outermost dimension first (GGUF files list it the other way round).
        kind: the block format.
    """

    data: Buffer = field(repr=False)
    shape: tuple[int, ...]
    kind: Literal["Q8_0", "Q4_0"] = "Q8_0"


def ggml_arrays(tensors: Mapping[str, GgmlTensor]) -> dict[str, NDArray[np.float32]]:
    """The values, exactly: a product of a half and a code of 8 bits always is a float32.

    Raises:
        DecodeError: the blocks are not those of the shape, or a scale is not finite.
    """
    arrays = {}
    for name, tensor in tensors.items():
        shape = _shape(name, tensor)
        blocks = _blocks(name, tensor)
        codes = _codes(blocks, tensor.kind).astype(np.float32)
        values = codes * blocks["scale"].astype(np.float32)[:, None]
        arrays[name] = (values + np.float32(0)).reshape(shape)  # no negative zeros
    return arrays


def import_ggml(
    tensors: Mapping[str, GgmlTensor], codec: str | None = None, **options: Any
) -> EncodedUpdate:
    """An update of f32 tensors from GGML blocks.

    Args:
        tensors: by name, in the order of the model.
        codec: encodes the exact values anew, with options as encode() takes them. Without one
            the scales and codes of Q8_0 blocks are taken over as they are, as int8/b32/f16;
            codes under a scale of 0 become 0, which is what they stand for.

    Raises:
        DecodeError: the blocks are not those of the shape; a scale is not finite; names or shapes
            make no layout; or, without a codec, a scale is negative or there is a code -128, which
            int8 does not have.
        ConfigError: Q4_0 without a codec, or encode() refuses the codec or its options.
    """
    if codec is not None:
        return encode(ggml_arrays(tensors), codec, **{"layout": _layout(tensors), **options})
    if options:
        raise ConfigError(f"option {next(iter(options))!r} is of a codec, and there is none")
    blocks = {name: _taken_over(name, tensor) for name, tensor in tensors.items()}
    layout = _layout(tensors)
    size = layout.native.group_size(1)
    scales = np.zeros(size // _BLOCK, "<f2")
    codes = np.zeros((size // _BLOCK, _BLOCK), np.int8)
    for first, part in zip(_first_blocks(tensors), blocks.values(), strict=True):
        scales[first : first + len(part)] = part["scale"]
        codes[first : first + len(part)] = part["codes"]
    return _assembled(layout, scales, codes)


def export_ggml(update: EncodedUpdate) -> dict[str, GgmlTensor]:
    """The Q8_0 blocks of an update in int8/b32/f16, the opposite of import_ggml().

    Raises:
        ConfigError: another codec, or a tensor that is not f32 or not made of blocks of 32.
    """
    if update.codec != _SAME_AS_Q8_0:
        raise ConfigError(
            f"Q8_0 is written from codec {_SAME_AS_Q8_0}, this update is {update.codec}",
            hint=f"encode(decode(update), {_SAME_AS_Q8_0!r})",
        )
    if update.form.subsample is not None:
        raise ConfigError(
            "Q8_0 is written from whole updates, this one is subsampled",
            hint=f"encode(decode(update), {_SAME_AS_Q8_0!r})",
        )
    tensors = {name: GgmlTensor(b"", shape) for name, _, shape in update.layout.native.tensors}
    for name, dtype, shape in update.layout.native.tensors:
        if dtype != "f32" or math.prod(shape) % _BLOCK:
            raise ConfigError(f"tensor {name!r} is {dtype} {shape}, Q8_0 has f32 in blocks of 32")
    scales, codes = _sections(update)
    for first, (name, tensor) in zip(_first_blocks(tensors), tensors.items(), strict=True):
        part = np.zeros(math.prod(tensor.shape) // _BLOCK, _Q8_0)
        part["scale"] = scales[first : first + len(part)]
        part["codes"] = codes[first : first + len(part)]
        tensors[name] = GgmlTensor(part.tobytes(), tensor.shape)
    return tensors


def _layout(tensors: Mapping[str, GgmlTensor]) -> ModelLayout:
    shapes = [(name, "f32", _shape(name, tensor)) for name, tensor in tensors.items()]
    try:
        return ModelLayout(_native.Layout(shapes))
    except ConfigError as error:  # names and shapes are as foreign as the blocks
        raise DecodeError(f"the tensors make no layout: {error}") from error


def _shape(name: str, tensor: GgmlTensor) -> tuple[int, ...]:
    """In Python's integers: a product of NumPy's, which readers of GGUF files give, could wrap."""
    if len(tensor.shape) > _MOST_DIMENSIONS:
        raise DecodeError(
            f"tensor {name!r} has rank {len(tensor.shape)}, at most {_MOST_DIMENSIONS} is allowed"
        )
    try:
        shape = tuple(map(operator.index, tensor.shape))
    except TypeError as error:
        raise DecodeError(f"tensor {name!r} has shape {tensor.shape}: {error}") from error
    # Beside an empty dimension nothing bounds the others, and NumPy multiplies them all.
    if 0 in shape and math.prod(max(size, 1) for size in shape) > _MOST_ELEMENTS:
        raise DecodeError(f"tensor {name!r} has shape {shape}, which no layout holds")
    return shape


def _blocks(name: str, tensor: GgmlTensor) -> NDArray[Any]:
    kinds = {"Q8_0": _Q8_0, "Q4_0": _Q4_0}
    if tensor.kind not in kinds:
        raise ConfigError(f"tensor {name!r} is {tensor.kind!r}, known are {', '.join(kinds)}")
    dtype = kinds[tensor.kind]
    shape = _shape(name, tensor)
    elements = math.prod(shape)
    view = memoryview(tensor.data)
    if min(shape, default=1) < 0 or elements % _BLOCK:
        raise DecodeError(f"tensor {name!r} has shape {shape}, not of blocks of {_BLOCK}")
    if view.nbytes != elements // _BLOCK * dtype.itemsize:
        raise DecodeError(
            f"tensor {name!r} has {view.nbytes} bytes, {tensor.kind} of shape {shape} has "
            f"{elements // _BLOCK * dtype.itemsize}"
        )
    blocks = np.frombuffer(view, dtype)
    if not np.isfinite(blocks["scale"]).all():
        raise DecodeError(f"tensor {name!r} has a block scale that is not finite")
    return blocks


def _codes(blocks: NDArray[Any], kind: str) -> NDArray[np.int8]:
    packed: NDArray[Any] = blocks["codes"]
    if kind == "Q8_0":
        return packed
    return np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.int8) - np.int8(8)


def _taken_over(name: str, tensor: GgmlTensor) -> NDArray[Any]:
    """The blocks of a Q8_0 tensor that int8/b32/f16 can hold."""
    if tensor.kind != "Q8_0":
        raise ConfigError(
            f"tensor {name!r} is {tensor.kind}, which no codec holds as it is",
            hint="give a codec; the values are then decoded exactly and encoded with it",
        )
    blocks = _blocks(name, tensor).copy()
    hint = "give a codec; the values are then decoded exactly and encoded with it"
    blocks["codes"][blocks["scale"] == 0] = 0
    blocks["scale"] += np.float16(0)  # a negative zero becomes a positive one
    if (blocks["scale"] < 0).any():
        raise DecodeError(f"tensor {name!r} has a negative block scale", hint=hint)
    if (blocks["codes"] == -128).any():
        raise DecodeError(f"tensor {name!r} has a code -128", hint=hint)
    return blocks


def _first_blocks(tensors: Mapping[str, GgmlTensor]) -> list[int]:
    """Where each tensor begins in the coordinate space, in blocks."""
    firsts, end = [], 0
    for tensor in tensors.values():
        firsts.append(end // _BLOCK)
        end += -(-math.prod(tensor.shape) // _ALIGNMENT) * _ALIGNMENT
    return firsts


def _assembled(
    layout: ModelLayout, scales: NDArray[np.float16], codes: NDArray[np.int8]
) -> EncodedUpdate:
    form = UpdateForm(
        layout=layout,
        number=_native.codec_number(_SAME_AS_Q8_0),
        scale=0.0,
        update_id=0,
        chunk_coordinates=DEFAULT_CHUNK_COORDINATES,
    )
    chunks = _native.assemble_chunks(
        layout.native,
        scales.tobytes(),
        codes.tobytes(),
        codec=form.number,
        plan_digest=form.plan_digest,
        update_id=form.update_id,
        chunk_coordinates=form.chunk_coordinates,
    )
    form.check(chunks)
    return EncodedUpdate(form, chunks)


def _sections(update: EncodedUpdate) -> tuple[NDArray[np.float16], NDArray[np.int8]]:
    """Scales and codes of all chunks, by block."""
    scales, codes = [], []
    left = update.layout.native.group_size(1)
    for chunk in update.body:
        count = min(left, update.form.chunk_coordinates)
        blocks = count // _BLOCK
        begin = _CHUNK_HEADER_BYTES + -(-2 * blocks // _SECTION_ALIGNMENT) * _SECTION_ALIGNMENT
        scales.append(np.frombuffer(chunk, "<f2", blocks, _CHUNK_HEADER_BYTES))
        codes.append(np.frombuffer(chunk, np.int8, count, begin))
        left -= count
    empty = np.zeros(0, np.int8)
    return (
        np.concatenate([empty.view("<f2"), *scales]),
        np.concatenate([empty, *codes]).reshape(-1, _BLOCK),
    )
