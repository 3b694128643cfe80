"""Tensors that are made one after the other and then read together, from a file in between.

What is being made is the only tensor in memory. The file has no name, so nobody else can open it
and it is gone with the process, however that ends.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from dataclasses import replace
from tempfile import TemporaryFile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veilsum.errors import ConfigError
from veilsum.integrations.nvflare.tensors import Tensor

_ALIGNMENT = 64


def staged(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The same tensors, in a mapped file that lives as long as they do.

    Args:
        tensors: one after the other.

    Raises:
        ConfigError: there is no room for them.
    """
    places: list[tuple[Tensor, int]] = []
    with TemporaryFile(prefix="veilsum-") as file:
        try:
            for tensor in tensors:
                file.write(bytes(-file.tell() % _ALIGNMENT))
                places.append((replace(tensor, values=_like(tensor.values)), file.tell()))
                file.write(np.ascontiguousarray(tensor.values).reshape(-1).view(np.uint8).data)
            file.write(b"\0")  # an empty file cannot be mapped
            file.flush()
        except OSError as error:
            raise ConfigError(
                f"an update cannot be kept on disk: {error}",
                hint="set TMPDIR to a directory with room for every site's update",
            ) from error
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return [
        replace(tensor, values=np.ndarray(tensor.values.shape, tensor.values.dtype, mapped, at))
        for tensor, at in places
    ]


def _like(values: NDArray[Any]) -> NDArray[Any]:
    """Of the same dtype and shape, in no memory."""
    return np.broadcast_to(np.zeros((), values.dtype), values.shape)
