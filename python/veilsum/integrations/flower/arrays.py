"""Flower's ArrayRecord and arrays: payloads are read where they lie, and never unpickled.

Flower carries each tensor as the bytes of a .npy file (NumPy Enhancement Proposal 1). NumPy has no
bfloat16; libraries that add one write it as two untyped bytes, and Array.dtype says "bfloat16".
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from veilsum.arrays import as_native
from veilsum.errors import ConfigError, DecodeError
from veilsum.model import NUMPY_DTYPES, ModelLayout, fit_array

R = TypeVar("R", ArrayRecord, MetricRecord)

NPY_STYPE = "numpy.ndarray"
"""Array.stype of the bytes of a .npy file."""

_MAGIC = b"\x93NUMPY"
_LENGTH_BYTES = {1: 2, 2: 4}  # format version -> width of the header's length
_ALIGNMENT = 64
# What numpy.save writes, to the letter. Any other spelling would have to be evaluated as Python.
_HEADER = re.compile(
    rb"\{'descr': '([<>|=])([biufV])(\d{1,2})', "
    rb"'fortran_order': (True|False), 'shape': \(((?:\d{1,18}(?:,|(?:, \d{1,18})+))?)\), \} *\n"
)
_BFLOAT16 = "bfloat16"
_BFLOAT16_DESCRIPTION = "<V2"


def records_of(content: RecordDict, kind: type[R]) -> list[tuple[str, R]]:
    """Names and records of one kind in a message's content.

    RecordDict.array_records and its like make objects that refer to themselves and to all records,
    which then stay in memory until the garbage collector comes by.
    """
    return [(key, record) for key, record in content.items() if isinstance(record, kind)]


def read_arrays(record: ArrayRecord) -> dict[str, NDArray[Any]]:
    """The arrays of a record, without copies where numpy.save wrote them in C order.

    Returns:
        Name -> array, read-only, in the record's order; bfloat16 as uint16 bit patterns.

    Raises:
        DecodeError: a payload is not that of an array, or of a dtype that cannot be averaged.
    """
    return {name: values for name, values, _ in _tensors(record)}


def read_model(record: ArrayRecord) -> tuple[ModelLayout, dict[str, NDArray[Any]]]:
    """What a record's model looks like, and its arrays as read_arrays() gives them.

    Raises:
        DecodeError: as read_arrays().
        ConfigError: a limit of the format is passed.
    """
    tensors = list(_tensors(record))
    layout = ModelLayout.from_tensors((name, dtype, a.shape) for name, a, dtype in tensors)
    return layout, {name: values for name, values, _ in tensors}


def layout_of(record: ArrayRecord) -> ModelLayout:
    """What a record's model looks like; raises as read_model()."""
    return read_model(record)[0]


def to_record(layout: ModelLayout, arrays: Mapping[str, Any]) -> ArrayRecord:
    """A record with the arrays, in layout order and in the layout's dtypes.

    Args:
        arrays: one per tensor, as ModelLayout takes them; bfloat16 also as float32. A dictionary
            is emptied on the way, so that the model is not there twice.

    Raises:
        ConfigError: a tensor is missing, or of another shape or dtype.
    """
    record = ArrayRecord()
    for name, dtype, shape in layout.native.tensors:
        if name not in arrays:
            raise ConfigError(f"tensor {name!r} is missing")
        given = arrays.pop(name) if isinstance(arrays, dict) else arrays[name]
        record[name] = to_array(fit_array(given, name, dtype, shape), dtype)
    return record


def to_array(values: NDArray[Any], dtype: str) -> Array:
    """One tensor as Flower carries it: what Array(values) makes, with one copy instead of two.

    Args:
        values: C-contiguous, of the layout dtype `dtype`; bfloat16 as uint16 bit patterns.
    """
    stored = NUMPY_DTYPES[dtype]
    patterns = dtype == "bf16"
    description = _BFLOAT16_DESCRIPTION if patterns else stored.str
    shape = repr(tuple(map(int, values.shape)))
    text = f"{{'descr': '{description}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    # magic, version, length, text and a line end fill whole units of the alignment
    used = len(_MAGIC) + 4 + len(text) + 1
    text += b" " * (-used % _ALIGNMENT) + b"\n"
    head = _MAGIC + b"\x01\x00" + len(text).to_bytes(2, "little") + text
    body = np.asarray(values, stored, order="C").reshape(-1).view(np.uint8)
    return Array(
        dtype=_BFLOAT16 if patterns else str(stored),
        shape=tuple(map(int, values.shape)),
        stype=NPY_STYPE,
        data=b"".join((head, body.data)),
    )


def _tensors(record: ArrayRecord) -> Iterator[tuple[str, NDArray[Any], str]]:
    """Name, array and layout dtype of each."""
    for name, array in record.items():
        if array.stype != NPY_STYPE:
            raise DecodeError(
                f"tensor {name!r} has serialization type {array.stype!r}, expected {NPY_STYPE!r}",
                hint="send arrays as Flower makes them from NumPy or torch",
            )
        values = _npy_view(name, array.data)
        if values.dtype.kind == "V":
            yield name, _bfloat16_patterns(name, array.dtype, values), "bf16"
            continue
        try:
            native, dtype = as_native(values, name)
        except ConfigError as error:
            raise DecodeError(str(error), hint=error.hint) from error
        yield name, native, dtype


def _npy_view(name: str, data: bytes) -> NDArray[Any]:
    """A read-only view of the values in the bytes of a .npy file."""
    width = _LENGTH_BYTES.get(data[6] if len(data) > 6 else 0)
    if data[:6] != _MAGIC or width is None:
        raise DecodeError(f"the payload of tensor {name!r} is not a .npy file of version 1 or 2")
    start = 8 + width
    end = start + int.from_bytes(data[8:start], "little")
    found = _HEADER.fullmatch(data, start, end)
    if found is None:
        raise DecodeError(
            f"the .npy header of tensor {name!r} is not one that numpy.save writes for numbers"
        )
    order, kind, size, fortran, dimensions = (part.decode() for part in found.groups())
    shape = tuple(int(part) for part in dimensions.split(",") if part)
    try:
        dtype = np.dtype(f"{order}{kind}{size}")
    except TypeError as error:
        raise DecodeError(f"tensor {name!r} has an unknown dtype {kind}{size}") from error
    expected = math.prod(shape) * dtype.itemsize
    if len(data) - end != expected:
        raise DecodeError(
            f"the payload of tensor {name!r} has {len(data) - end} bytes of values, its header "
            f"asks for {expected}"
        )
    try:
        return np.ndarray(
            shape, dtype, buffer=data, offset=end, order="F" if fortran == "True" else "C"
        )
    except ValueError as error:  # without values, dimensions can be of any number and size
        raise DecodeError(f"tensor {name!r} has dimensions that no array has") from error


def _bfloat16_patterns(name: str, dtype: str, values: NDArray[Any]) -> NDArray[np.uint16]:
    if dtype != _BFLOAT16 or values.dtype.itemsize != 2:
        raise DecodeError(f"tensor {name!r} holds untyped bytes, and its dtype is {dtype!r}")
    # Untyped values have no strides to speak of unless they are in Fortran's order.
    return np.ascontiguousarray(values).reshape(values.shape).view("<u2")
