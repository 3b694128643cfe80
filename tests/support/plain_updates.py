"""Updates of plain rounds, made by hand as a site would make them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from veilsum import _native, plain
from veilsum.control import PlainPlan, RoundId, UpdateHeader
from veilsum.model import ModelLayout


def plain_update(
    plan: PlainPlan,
    where: tuple[RoundId, str],
    layout: ModelLayout,
    arrays: Sequence[NDArray[Any]],
    *,
    weight: int = 10,
    metrics: Mapping[str, float] | None = None,
) -> tuple[UpdateHeader, list[bytes]]:
    """Header and chunks of an update with these values.

    Args:
        where: the round, and the site.
        arrays: one for each tensor of the layout.
    """
    round_id, site = where
    codec = plain.codec_settings(plan.codec, plan.clip)
    update_id = plain.update_id(plan, round_id, site)
    chunks: list[bytes] = _native.encode_chunks(
        layout.native,
        arrays,
        codec=codec.number,
        scale=codec.scale,
        limit=codec.limit,
        rounding=None,
        least_error=False,
        plan_digest=plan.digest,
        update_id=update_id,
        chunk_coordinates=plan.chunk_coordinates,
        threads=1,
    )
    return UpdateHeader(round_id, update_id, len(chunks), weight, dict(metrics or {}), b""), chunks
