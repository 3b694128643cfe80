"""From a decoded sum to what the round reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from veilsum.aggregate.secure_sum import RingMean
from veilsum.model import ModelLayout, result_digest
from veilsum.secagg.effects import SecureResult


def secure_result(
    layout: ModelLayout, mean: RingMean, survivors: Sequence[str], dropped: Mapping[str, str]
) -> SecureResult:
    """Names the tensors and adds the digest."""
    names = [name for name, _, _ in layout.native.tensors]
    return SecureResult(
        arrays=dict(zip(names, mean.arrays, strict=True)),
        digest=result_digest(layout, mean.arrays),
        total_weight=mean.total_weight,
        sites=tuple(survivors),
        metrics=mean.metrics,
        dropped=dict(dropped),
    )
