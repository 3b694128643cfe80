"""Models as safetensors files: written so that a crash leaves the old file or the new one."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray
from typing_extensions import Buffer

from veilsum._native import Layout
from veilsum.errors import ConfigError, DecodeError
from veilsum.model import NUMPY_DTYPES, ModelLayout, StoredModel, TensorPart, parts_of
from veilsum.optimizers.state import OptimizerState
from veilsum.transport.durable import Points, no_points, sync_folder

Arrays = Mapping[str, NDArray[Any]]

_FILE_DTYPES = {dtype: dtype.upper() for dtype in NUMPY_DTYPES}
_LAYOUT_DTYPES = {name: dtype for dtype, name in _FILE_DTYPES.items()}
_ALIGNMENT = 8
_LARGEST_HEADER = 1 << 28  # bytes


def tensor_bytes(layout: ModelLayout, arrays: Arrays) -> list[memoryview]:
    """Each tensor's bytes in layout order, as views where an array is laid out so already."""
    views = []
    for name, dtype, _ in layout.native.tensors:
        flat = np.ascontiguousarray(arrays[name], dtype=NUMPY_DTYPES[dtype]).reshape(-1)
        views.append(flat.view(np.uint8).data)
    return views


def tensor_pieces(layout: ModelLayout, arrays: Arrays) -> Iterator[memoryview]:
    """The same bytes; of a stored model no more than a part is in memory."""
    if not isinstance(arrays, StoredModel):
        yield from tensor_bytes(layout, arrays)
        return
    for part in parts_of(layout):
        yield arrays.read(part).view(np.uint8).data


def save_model(
    file: Path, layout: ModelLayout, arrays: Arrays, *, points: Points = no_points
) -> None:
    """Writes a safetensors file with the tensors in layout order.

    The bytes are on disk, under their final name, when this returns.

    Raises:
        ConfigError: the file cannot be written.
    """
    pieces = chain[bytes | memoryview]([_header(layout)], tensor_pieces(layout, arrays))
    save_pieces(file, pieces, what="the model", points=points)


def save_pieces(
    file: Path, pieces: Iterable[bytes | memoryview], *, what: str, points: Points = no_points
) -> None:
    """Writes the bytes of a file; they are on disk, under its final name, when this returns.

    Args:
        what: the file is, for errors.

    Raises:
        ConfigError: the file cannot be written.
    """
    unfinished = file.with_name(f".{file.name}.unfinished")
    name = what.removeprefix("the ")
    try:
        _make_folder(file.parent)
        points(f"{name}.begin")
        with open(unfinished, "wb") as stream:
            for piece in pieces:
                stream.write(piece)
            stream.flush()
            os.fsync(stream.fileno())
        points(f"{name}.written")
        os.replace(unfinished, file)
        sync_folder(file.parent)
        points(f"{name}.replaced")
    except OSError as error:
        raise ConfigError(f"cannot write {what} {file}: {error.strerror}") from error


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        sync_folder(folder.parent)


def model_to_bytes(layout: ModelLayout, arrays: Arrays) -> bytes:
    """The same as a safetensors file, in memory."""
    return b"".join((_header(layout), *tensor_bytes(layout, arrays)))


def tensor_range(file: Path, layout: ModelLayout) -> range:
    """Which bytes of a file that save_model() wrote are the tensors, one after the other in
    layout order. Reads no more than its header.

    Raises:
        ConfigError: the file cannot be read, or is not what was written.
    """
    header = _header(layout)
    tensors = range(len(header), len(header) + _data_bytes(layout))
    try:
        with open(file, "rb") as stream:
            found = stream.read(len(header))
            size = os.fstat(stream.fileno()).st_size
    except OSError as error:
        raise ConfigError(f"cannot read the model {file.name}: {error.strerror}") from error
    if found != header or size != tensors.stop:
        raise ConfigError(
            f"{file} is not the model that was written there: it has {size} bytes, "
            f"{tensors.stop} were written",
            hint="do not change files of a run; restore it from a copy, or abort the run",
        )
    return tensors


def _data_bytes(layout: ModelLayout) -> int:
    return sum(
        math.prod(shape) * NUMPY_DTYPES[dtype].itemsize for _, dtype, shape in layout.native.tensors
    )


def _header(layout: ModelLayout) -> bytes:
    document: dict[str, Any] = {}
    end = 0
    for name, dtype, shape in layout.native.tensors:
        begin, end = end, end + math.prod(shape) * NUMPY_DTYPES[dtype].itemsize
        document[name] = {
            "dtype": _FILE_DTYPES[dtype],
            "shape": list(shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def load_model(file: Path) -> tuple[ModelLayout, dict[str, NDArray[Any]]]:
    """Reads a safetensors file.

    Raises:
        ConfigError: names the file and what is wrong with it.
    """
    data = _read(file, "the model")
    try:
        return model_from_bytes(data)
    except DecodeError as error:
        raise ConfigError(f"{file.name}: {error}") from error


def stored_model(file: Path, layout: ModelLayout) -> StoredModel:
    """A model that save_model() writes, or will have written when it is read: it is never in
    memory as a whole. Reading raises ConfigError if the file is gone or is another."""
    begins = [0]
    for _, dtype, shape in layout.native.tensors:
        begins.append(begins[-1] + math.prod(shape) * NUMPY_DTYPES[dtype].itemsize)

    def read(part: TensorPart) -> NDArray[Any]:
        dtype = NUMPY_DTYPES[layout.native.tensors[part.number][1]]
        place = begins[part.number] + part.first * dtype.itemsize
        begin = tensor_range(file, layout).start + place
        try:
            values = np.fromfile(file, dtype, part.count, offset=begin)
        except OSError as error:
            raise ConfigError(f"cannot read the model {file.name}: {error.strerror}") from error
        if values.size != part.count:
            raise ConfigError(f"the model {file.name} was cut short while it was read")
        return values

    return StoredModel(layout, read)


def load_optimizer_state(file: Path) -> OptimizerState:
    """Reads what a server's optimizer remembers.

    Raises:
        ConfigError: names the file and what is wrong with it.
    """
    data = _read(file, "the optimizer's state")
    try:
        return OptimizerState.from_bytes(data)
    except DecodeError as error:
        raise ConfigError(f"{file.name}: {error}", hint=error.hint) from error


def _read(file: Path, what: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {what} {file.name}: {error.strerror}") from error


def model_from_bytes(data: Buffer) -> tuple[ModelLayout, dict[str, NDArray[Any]]]:
    """Parses the bytes of a safetensors file; the tensors are in the order of their bytes.

    Raises:
        DecodeError: not such a file, or a tensor of a dtype that cannot be averaged.
    """
    content = bytes(data)
    try:
        found = dict(safetensors.deserialize(content))  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as error:
        raise DecodeError(f"not a safetensors file: {error}") from error
    if not found:
        raise DecodeError("the model has no tensors")
    tensors, arrays = [], {}
    for name in _names_in_order(content):
        tensor = found[name]
        dtype = _LAYOUT_DTYPES.get(tensor["dtype"])
        if dtype is None:
            raise DecodeError(
                f"tensor {name!r} has dtype {tensor['dtype']}, which cannot be averaged",
                hint=f"use one of {', '.join(_LAYOUT_DTYPES)}",
            )
        tensors.append((name, dtype, tuple(tensor["shape"])))
        flat = np.frombuffer(tensor["data"], dtype=NUMPY_DTYPES[dtype])
        arrays[name] = flat.reshape(tensor["shape"])
    try:
        return ModelLayout(Layout(tensors)), arrays
    except ConfigError as error:
        raise DecodeError(str(error)) from error


def read_layout(file: Path) -> ModelLayout:
    """The tensors of a file that save_model() wrote, of which no more than the header is read.

    Raises:
        ConfigError: names the file and what is wrong with it.
    """
    try:
        with open(file, "rb") as stream:
            header_size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(min(header_size, _LARGEST_HEADER)))
        header.pop("__metadata__", None)
        ordered = sorted(header.items(), key=lambda item: tuple(item[1]["data_offsets"]))
        tensors = [
            (name, _LAYOUT_DTYPES[about["dtype"]], tuple(about["shape"])) for name, about in ordered
        ]
        return ModelLayout(Layout(tensors))
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{file} is not a model as a coordinator keeps it") from error


def _names_in_order(content: bytes) -> list[str]:
    """Names by the place of their bytes, in content that was checked: the library returns
    them in an order that changes from process to process."""
    header_size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + header_size])
    header.pop("__metadata__", None)
    return sorted(header, key=lambda name: tuple(header[name]["data_offsets"]))
