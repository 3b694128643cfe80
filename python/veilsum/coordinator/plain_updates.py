"""What every update of a plain round must be, however the round collects them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TypedDict

from veilsum import _native, plain
from veilsum.control import PlainPlan, RoundId, UpdateHeader
from veilsum.coordinator.events import FiledChunks, UpdateArrived
from veilsum.coordinator.plain_receiver import PlainReceiver
from veilsum.errors import DecodeError, PeerError
from veilsum.model import ModelLayout


def check_header(plan: PlainPlan, round_id: RoundId, site: str, header: UpdateHeader) -> None:
    """Checks what a header says of itself against the plan.

    Raises:
        PeerError: it is not one of this plan, round and site.
    """
    if header.masked_header:
        raise PeerError(site, "sent a masked update in a plain round")
    if not 1 <= header.weight <= plan.weight_cap:
        raise PeerError(site, f"sent weight {header.weight}, expected 1 to {plan.weight_cap}")
    if header.update_id != plain.update_id(plan, round_id, site):
        raise PeerError(site, "sent an update id of another round or site")
    _check_metrics(site, header.metrics, plan.metrics)


def open_receiver(
    plan: PlainPlan, layout: ModelLayout, site: str, header: UpdateHeader
) -> PlainReceiver:
    """Takes the chunks of an update whose header was checked.

    Raises:
        PeerError: it announces another number of chunks than it must have.
    """
    receiver = PlainReceiver(plan, layout, site, header.update_id)
    if header.chunk_count != receiver.chunk_count:
        raise PeerError(
            site, f"announced {header.chunk_count} chunks, an update has {receiver.chunk_count}"
        )
    return receiver


def add_update(
    aggregator: _native.MeanAggregator,
    plan: PlainPlan,
    arrived: UpdateArrived,
    *,
    key: str,
    weight: int,
) -> None:
    """Commits a complete upload to the mean.

    Args:
        key: the aggregator knows it by; two updates have two.
        weight: it counts with.

    Raises:
        DecodeError, PeerError: why it cannot count; the mean is as before.
        VeilsumError: what FiledChunks.check() raises.
    """
    settings = plain.codec_settings(plan.codec, plan.clip)
    form: _Form = {
        "codec": settings.number,
        "scale": settings.scale,
        "plan_digest": plan.digest,
        "update_id": arrived.header.update_id,
        "chunk_coordinates": plan.chunk_coordinates,
    }
    chunks = arrived.chunks
    if not isinstance(chunks, FiledChunks):
        aggregator.add_chunks(key, weight, chunks, **form)
        return
    try:
        aggregator.add_file(key, weight, chunks.file, chunks.places, **form)
    except (DecodeError, PeerError):
        chunks.check()  # a disk that changed a byte is not the site's fault
        raise


class _Form(TypedDict):
    codec: int
    scale: float
    plan_digest: bytes
    update_id: int
    chunk_coordinates: int


def _check_metrics(site: str, metrics: Mapping[str, float], known: tuple[str, ...]) -> None:
    unknown = sorted(set(metrics) - set(known))
    if unknown:
        raise PeerError(site, f"sent metric {unknown[0]!r}, which the round does not ask for")
    for name, value in metrics.items():
        if not abs(value) <= plain.METRIC_LIMIT:  # so written, it refuses nan as well
            raise PeerError(
                site, f"sent metric {name!r} that is not a number within ±{plain.METRIC_LIMIT}"
            )


def mean_metrics(
    names: tuple[str, ...], reports: Iterable[tuple[int, Mapping[str, float]]]
) -> dict[str, float]:
    """Weighted means over the updates that reported each metric; fsum makes them independent
    of the order in which updates arrived.

    Args:
        reports: weight and metrics of each update.
    """
    reports = tuple(reports)
    means = {}
    for name in names:
        reported = [(weight, values[name]) for weight, values in reports if name in values]
        if reported:
            total = sum(weight for weight, _ in reported)
            means[name] = math.fsum(weight * value for weight, value in reported) / total
    return means
