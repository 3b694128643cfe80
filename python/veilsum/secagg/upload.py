"""From an update to the chunks of an upload: check everything, then encode and mask."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from veilsum import _native
from veilsum._native import Secret
from veilsum.aggregate.secure_sum import METRIC_STEPS, WORD_BITS
from veilsum.errors import ConfigError
from veilsum.model import NUMPY_DTYPES
from veilsum.secagg.masks import MaskKeys
from veilsum.secagg.plan import Plan


class Contribution(NamedTuple):
    """What one site puts into the sum.

    Attributes:
        update: trained minus received, one array per tensor of the layout; bf16 as uint16
            bit patterns.
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


def encode_upload(
    plan: Plan, contribution: Contribution, masks: MaskKeys, *, update_id: int, threads: int
) -> EncodedUpload:
    """Encodes and masks one update. Without masks the chunks can be read by anyone.

    Raises:
        ConfigError: the contribution does not fit the plan. Every check runs before the
            first chunk exists.
    """
    contribution = contribution._replace(weight=_checked_weight(plan, contribution.weight))
    arrays = _in_layout_order(plan, contribution.update)
    scalars = _scalar_words(plan, contribution)
    integers = _integer_words(plan, arrays, contribution.weight)
    try:
        floats, clipped = _float_chunks(plan, arrays, contribution, masks, update_id, threads)
        chunks = [*_word_chunks(plan, 0, scalars, masks, update_id, threads), *floats]
        if integers.size:
            chunks += _word_chunks(plan, 2, integers, masks, update_id, threads)
    finally:
        scalars.fill(0)  # plain values have no business in memory once they are masked
        integers.fill(0)
    return EncodedUpload(tuple(chunks), clipped)


def _float_chunks(
    plan: Plan,
    arrays: Sequence[NDArray[Any]],
    contribution: Contribution,
    masks: MaskKeys,
    update_id: int,
    threads: int,
) -> tuple[list[bytes], int]:
    if not plan.tensor_clips:
        return [], 0
    clips = np.array(plan.tensor_clips)
    gains = _gains(plan, contribution.weight)
    if not contribution.weight:
        # The core wants a gain above 0. Zeros at any gain are the zeros that are meant, and
        # dither never moves a zero.
        gains, arrays = np.array(plan.ring.scales), [np.zeros_like(array) for array in arrays]
    return _native.encode_ring_chunks(
        plan.layout.native,
        arrays,
        bits=plan.ring_bits,
        gains=gains,
        limits=clips[:0] if plan.hadamard else clips,
        clip=plan.overrange == "clip",
        rounding=contribution.rounding,
        keys=masks.keys,
        signs=masks.signs,
        generator=plan.mask_generator,
        plan_digest=plan.context,
        update_id=update_id,
        chunk_coordinates=plan.chunk_coordinates,
        threads=threads,
        rotation_block=plan.hadamard,
        rotation_key=plan.rotation_key,
        rotated_limit=float((clips * gains).min()),
    )


def _gains(plan: Plan, weight: int) -> NDArray[np.float64]:
    """Steps per model unit for a site of this weight, one per floating-point tensor."""
    # A little below step_limit at the clip: there, adding a dither just under 1 can round up
    # to the next integer in double (from 31 value bits on), and with it to a step too many.
    largest = plan.step_limit * (1 - 2**-50) / np.array(plan.tensor_clips)
    return np.minimum(np.array(plan.ring.scales) * weight / plan.weight_cap, largest)


def _word_chunks(
    plan: Plan, group: int, words: NDArray[np.uint64], masks: MaskKeys, update_id: int, threads: int
) -> list[bytes]:
    return _native.ring_word_chunks(
        words,
        bits=WORD_BITS,
        group=group,
        keys=masks.keys,
        signs=masks.signs,
        generator=plan.mask_generator,
        plan_digest=plan.context,
        update_id=update_id,
        chunk_coordinates=plan.chunk_coordinates,
        threads=threads,
    )


def _in_layout_order(plan: Plan, update: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    tensors = plan.layout.native.tensors
    names = {name for name, _, _ in tensors}
    if set(update) != names:
        missing, unknown = sorted(names - set(update)), sorted(set(update) - names)
        raise ConfigError(f"the update lacks tensors {missing} and has unknown ones {unknown}")
    return [_tensor(name, dtype, shape, update[name]) for name, dtype, shape in tensors]


def _tensor(name: str, dtype: str, shape: tuple[int, ...], value: NDArray[Any]) -> NDArray[Any]:
    array = np.asarray(value)
    if array.dtype != NUMPY_DTYPES[dtype] or array.shape != shape:
        raise ConfigError(
            f"tensor {name!r} is {array.dtype} {array.shape}, the model has {dtype} {shape}"
        )
    return np.ascontiguousarray(array).reshape(shape)


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


def _integer_words(plan: Plan, arrays: Sequence[NDArray[Any]], weight: int) -> NDArray[np.uint64]:
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
