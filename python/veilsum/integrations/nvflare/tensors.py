"""Tensors as NVFLARE hands them over, and back: NumPy or torch, in memory or still on disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from veilsum.arrays import as_native, widen_bfloat16
from veilsum.errors import ConfigError, DecodeError
from veilsum.integrations.rounds import Model
from veilsum.model import NUMPY_DTYPES, ModelLayout

# Layout dtypes whose values are all values of the other.
_WIDENS = {("f16", "f32"), ("f16", "f64"), ("bf16", "f32"), ("bf16", "f64"), ("f32", "f64")}


def is_lazy(value: Any) -> bool:
    """Whether a tensor is a reference to a file that NVFLARE has written (its disk offload)."""
    return callable(getattr(value, "materialize", None))


def materialised(value: Any) -> Any:
    """The tensor itself.

    Raises:
        DecodeError: its file is gone, or holds no such tensor.
    """
    if not is_lazy(value):
        return value
    try:
        return value.materialize()
    except (OSError, LookupError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise DecodeError(f"a tensor on disk cannot be read: {error!r}") from error


def read_global_model(params: Mapping[str, Any]) -> Model | None:
    """The model that a server sends out; None if there is none, in which case the first
    contribution says what all must look like.

    Raises:
        ConfigError: it cannot be summed.
    """
    arrays = {name: materialised(value) for name, value in params.items()}
    if not arrays:
        return None
    try:
        read = {name: as_native(value, name)[0] for name, value in arrays.items()}
        return Model(ModelLayout.from_arrays(arrays), read)
    except ConfigError as error:
        raise ConfigError(
            f"the model that was sent out cannot be summed: {error}",
            hint="let sites send what can be summed alone, and set layout='first'",
        ) from error


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a contribution; bfloat16 as uint16 bit patterns."""

    name: str
    dtype: str
    values: NDArray[Any]


def read_tensors(params: Mapping[str, Any], layout: ModelLayout | None) -> Iterator[Tensor]:
    """The tensors, read one after the other.

    Floating-point tensors that are narrower than the layout's are widened, which changes no value.
    Other differences to the layout are left for the sum to refuse.

    Raises:
        DecodeError: what is not an array, or of a dtype that cannot be averaged.
    """
    wanted = {} if layout is None else {name: dtype for name, dtype, _ in layout.native.tensors}
    for name, value in params.items():
        try:
            values, dtype = as_native(materialised(value), str(name))
        except ConfigError as error:
            raise DecodeError(str(error), hint=error.hint) from error
        if (dtype, wanted.get(name)) in _WIDENS:
            values = widen_bfloat16(values) if dtype == "bf16" else values
            dtype = wanted[name]
            values = values.astype(NUMPY_DTYPES[dtype], copy=False)
        yield Tensor(name, dtype, values)


def gathered(tensors: Iterable[Tensor]) -> tuple[ModelLayout, dict[str, NDArray[Any]]]:
    """Layout and arrays of an update.

    Raises:
        DecodeError: they make no layout.
    """
    found = list(tensors)
    try:
        layout = ModelLayout.from_tensors((t.name, t.dtype, t.values.shape) for t in found)
    except ConfigError as error:
        raise DecodeError(f"the tensors make no layout: {error}", hint=error.hint) from error
    return layout, {tensor.name: tensor.values for tensor in found}


def like(arrays: Mapping[str, NDArray[Any]], examples: Mapping[str, Any]) -> dict[str, Any]:
    """Result arrays in the library and dtype in which NVFLARE has the model.

    Args:
        arrays: name -> array; bfloat16 tensors as float32.
        examples: name -> tensor of the global model, or of a contribution.
    """
    return {name: _like(array, examples.get(name)) for name, array in arrays.items()}


def _like(array: NDArray[Any], example: Any) -> Any:
    if type(example).__module__.partition(".")[0] != "torch":
        dtype = getattr(example, "dtype", None)
        is_bfloat16 = isinstance(dtype, np.dtype) and dtype.name == "bfloat16"
        return array.astype(dtype) if is_bfloat16 else array
    import torch  # the caller has it, as it has such a tensor

    tensor = torch.from_numpy(array)
    return tensor.to(torch.bfloat16) if example.dtype == torch.bfloat16 else tensor
