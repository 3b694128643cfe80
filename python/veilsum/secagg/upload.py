"""From an update to the chunks of an upload: check everything, then encode and mask."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from veilsum import _native
from veilsum._native import DeviceArray, Secret
from veilsum.aggregate.ring_spec import METRIC_STEPS, WORD_BITS
from veilsum.aggregate.tile_audit import SEED_BYTES, audit_encoding
from veilsum.arrays import on_its_device
from veilsum.errors import ConfigError
from veilsum.model import NUMPY_DTYPES
from veilsum.secagg.masks import MaskKeys
from veilsum.secagg.plan import Plan

_Array: TypeAlias = NDArray[Any] | DeviceArray


class Contribution(NamedTuple):
    """What one site puts into the sum.

    Attributes:
        update: trained minus received, one array per tensor of the layout; bf16 as uint16
            bit patterns. Arrays of a device (torch, CuPy, DeviceArray) are taken too.
        weight: number of examples, 0 to the plan's weight_cap.
        metrics: those of the plan's metrics that the site has.
        rounding: 32 secret bytes for stochastic rounding.
    """

    update: Mapping[str, NDArray[Any]]
    weight: int
    metrics: Mapping[str, float] = {}
    rounding: Secret | None = None

    def __repr__(self) -> str:
        return f"Contribution(<{len(self.update)} tensors>)"  # values stay out of logs


@dataclass(frozen=True)
class EncodedUpload:
    """Chunks in (group, index) order, and how many values were clipped."""

    chunks: tuple[bytes, ...] = field(repr=False)
    clipped: int


class _How(NamedTuple):
    """What chunks are made with, and what they are called."""

    update_id: int
    threads: int
    backend: str
    audit_seed: bytes


def encode_upload(
    plan: Plan,
    contribution: Contribution,
    masks: MaskKeys,
    *,
    update_id: int,
    threads: int,
    backend: str = "cpu",
    audit_seed: bytes | None = None,
) -> EncodedUpload:
    """Encodes and masks one update. Without masks the chunks can be read by anyone.

    Args:
        plan: of the round.
        contribution: what is encoded. Floating-point tensors that lie on the device of `backend`
            are read there.
        masks: keys of the site, with their signs.
        update_id: of the upload.
        threads: of the native core.
        backend: what encodes floating-point tensors, "cpu" or a device such as "cuda:0". The
            bytes are the same.
        audit_seed: SEED_BYTES fresh random bytes for a device, which choose the tiles that the
            CPU encodes as well.

    Raises:
        ConfigError: the contribution does not fit the plan. Every check runs before the
            first chunk exists. Or a device has no audit_seed.
        DeviceError: there is no such device, it failed, or it made other words than the CPU.
    """
    how = _How(update_id, threads, backend, audit_seed or b"")
    if backend != "cpu" and len(how.audit_seed) != SEED_BYTES:
        raise ConfigError(
            f"what backend {backend!r} encodes is audited: it needs audit_seed",
            hint=f"pass {SEED_BYTES} fresh random bytes",
        )
    contribution = contribution._replace(weight=_checked_weight(plan, contribution.weight))
    arrays = _in_layout_order(plan, contribution.update, backend)
    scalars = _scalar_words(plan, contribution)
    integers = _integer_words(plan, arrays, contribution.weight)
    try:
        floats, clipped = _float_chunks(plan, arrays, contribution, masks, how)
        chunks = [*_word_chunks(plan, 0, scalars, masks, how), *floats]
        if integers.size:
            chunks += _word_chunks(plan, 2, integers, masks, how)
    finally:
        scalars.fill(0)  # plain values have no business in memory once they are masked
        integers.fill(0)
    return EncodedUpload(tuple(chunks), clipped)


def _float_chunks(
    plan: Plan,
    arrays: Sequence[_Array],
    contribution: Contribution,
    masks: MaskKeys,
    how: _How,
) -> tuple[list[bytes], int]:
    if not plan.tensor_clips:
        return [], 0
    clips = np.array(plan.tensor_clips)
    gains = _gains(plan, contribution.weight)
    if not contribution.weight:
        # The core wants a gain above 0. Zeros at any gain are the zeros that are meant, and
        # dither never moves a zero.
        gains, arrays = np.array(plan.ring.scales), _zeros(plan)
    steps: dict[str, Any] = {
        "bits": plan.ring_bits,
        "gains": gains,
        "limits": clips[:0] if plan.hadamard else clips,
        "rounding": contribution.rounding,
        "keys": masks.keys,
        "signs": masks.signs,
        "generator": plan.mask_generator,
        "rotation_block": plan.hadamard,
        "rotation_key": plan.rotation_key,
        "rotated_limit": float((clips * gains).min()),
        "backend": how.backend,
    }
    layout = plan.layout.native
    chunks, clipped = _native.encode_ring_chunks(
        layout,
        arrays,
        **steps,
        clip=plan.overrange == "clip",
        plan_digest=plan.context,
        update_id=how.update_id,
        chunk_coordinates=plan.chunk_coordinates,
        threads=how.threads,
    )
    if how.backend != "cpu":
        audit_encoding(
            how.audit_seed,
            chunks,
            lambda tiles: _native.encode_ring_tiles(layout, arrays, tiles=tiles, **steps),
            group=1,
            elements=layout.group_size(1),
            bits=plan.ring_bits,
            chunk_coordinates=plan.chunk_coordinates,
            backend=how.backend,
        )
    return chunks, clipped


def _zeros(plan: Plan) -> list[_Array]:
    return [np.zeros(shape, NUMPY_DTYPES[dtype]) for _, dtype, shape in plan.layout.native.tensors]


def _gains(plan: Plan, weight: int) -> NDArray[np.float64]:
    """Steps per model unit for a site of this weight, one per floating-point tensor."""
    # A little below step_limit at the clip: there, adding a dither just under 1 can round up
    # to the next integer in double (from 31 value bits on), and with it to a step too many.
    largest = plan.step_limit * (1 - 2**-50) / np.array(plan.tensor_clips)
    return np.minimum(np.array(plan.ring.scales) * weight / plan.weight_cap, largest)


def _word_chunks(
    plan: Plan, group: int, words: NDArray[np.uint64], masks: MaskKeys, how: _How
) -> list[bytes]:
    return _native.ring_word_chunks(
        words,
        bits=WORD_BITS,
        group=group,
        keys=masks.keys,
        signs=masks.signs,
        generator=plan.mask_generator,
        plan_digest=plan.context,
        update_id=how.update_id,
        chunk_coordinates=plan.chunk_coordinates,
        threads=how.threads,
    )


def _in_layout_order(plan: Plan, update: Mapping[str, Any], backend: str) -> list[_Array]:
    tensors = plan.layout.native.tensors
    names = {name for name, _, _ in tensors}
    if set(update) != names:
        missing, unknown = sorted(names - set(update)), sorted(set(update) - names)
        raise ConfigError(f"the update lacks tensors {missing} and has unknown ones {unknown}")
    return [_tensor(*tensor, update[tensor[0]], backend) for tensor in tensors]


def _tensor(name: str, dtype: str, shape: tuple[int, ...], value: Any, backend: str) -> _Array:
    if _is_on_device(value):
        return _tensor_on_device(name, dtype, shape, value, backend)
    array = np.asarray(value)
    if array.dtype != NUMPY_DTYPES[dtype] or array.shape != shape:
        raise ConfigError(
            f"tensor {name!r} is {array.dtype} {array.shape}, the model has {dtype} {shape}"
        )
    return np.ascontiguousarray(array).reshape(shape)


def _is_on_device(value: Any) -> bool:
    return not isinstance(value, np.ndarray | np.generic) and _native.is_device_array(value)


def _tensor_on_device(
    name: str, dtype: str, shape: tuple[int, ...], value: Any, backend: str
) -> _Array:
    """Where it lies if `backend` is there too, and it is no counter; else a copy."""
    array = on_its_device(value, name)
    if array.dtype != dtype or array.shape != shape:
        raise ConfigError(
            f"tensor {name!r} is {array.dtype} {array.shape}, the model has {dtype} {shape}"
        )
    here = array.device == (backend if ":" in backend else f"{backend}:0")
    return array if here and dtype[0] in "fb" else array.to_host()


def _checked_weight(plan: Plan, weight: int) -> int:
    try:
        exact = operator.index(weight)
    except TypeError:
        exact = -1
    if isinstance(weight, bool) or not 0 <= exact <= plan.weight_cap:
        raise ConfigError(
            f"this site's weight is no integer from 0 to {plan.weight_cap}, the round's weight_cap",
            hint="have the coordinator plan rounds with a higher weight_cap",
        )
    return exact


def _scalar_words(plan: Plan, contribution: Contribution) -> NDArray[np.uint64]:
    weight = contribution.weight
    unknown = sorted(set(contribution.metrics) - set(plan.metrics))
    if unknown:
        raise ConfigError(f"metrics {unknown} are not summed in this round: {plan.metrics} are")
    words = [weight, 1]
    for name in plan.metrics:
        if name in contribution.metrics:
            words += [weight * _metric_steps(plan, name, contribution.metrics[name]), weight]
        else:
            words += [0, 0]
    return np.array([word % 2**WORD_BITS for word in words], np.uint64)


def _metric_steps(plan: Plan, name: str, value: float) -> int:
    if not math.isfinite(value) or abs(value) > plan.metric_limit:
        raise ConfigError(f"metric {name!r} is not a finite number within ±{plan.metric_limit}")
    return round(value * METRIC_STEPS)


def _integer_words(plan: Plan, arrays: Sequence[Any], weight: int) -> NDArray[np.uint64]:
    """weight * value at every coordinate of group 2. Integers are refused, never clipped."""
    words = np.zeros(plan.layout.native.group_size(2), np.uint64)
    for number, first, count in plan.layout.native.offsets(2):
        values = arrays[number].reshape(-1)
        limit = plan.integer_limit
        if count and not -limit <= int(values.min()) <= int(values.max()) <= limit:
            name = plan.layout.native.tensors[number][0]
            raise ConfigError(f"tensor {name!r} holds an integer outside ±{limit}")
        words[first : first + count] = (values.astype(np.int64) * weight).view(np.uint64)
    return words
