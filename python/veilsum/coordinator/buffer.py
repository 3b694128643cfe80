"""One buffer of a buffered run: the updates that make one step of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from veilsum import _native
from veilsum.control import BufferedUpdate, PlainPlan, RoundId, RoundRecord, RunEvent, RunSpec
from veilsum.coordinator.effects import Announce
from veilsum.coordinator.events import UpdateArrived
from veilsum.coordinator.journal import size_bytes
from veilsum.coordinator.outcome import Failed, Finished, Outcome
from veilsum.coordinator.plain_updates import add_update, mean_metrics
from veilsum.coordinator.policy import shortfall, too_light
from veilsum.errors import DeviceError
from veilsum.model import ModelLayout, result_digest

PHASE = "updates"


@dataclass(frozen=True, slots=True)
class _Committed:
    update: BufferedUpdate
    size_bytes: int
    metrics: Mapping[str, float] = field(repr=False)


class Buffer:
    """Collects updates of several versions of a model.

    Args:
        round_id: the step's number; a fresh update was trained for it.
        aggregator: empty; takes the updates as they come and refuses values that are not finite.

    Attributes:
        dropped: site -> why no update of it is awaited any more.
    """

    def __init__(
        self,
        round_id: RoundId,
        layout: ModelLayout,
        aggregator: _native.MeanAggregator,
        spec: RunSpec,
    ) -> None:
        self.round = round_id
        self.dropped: dict[str, str] = {}
        self._layout = layout
        self._aggregator = aggregator
        self._spec = spec
        self._committed: dict[str, _Committed] = {}  # by the aggregator's keys
        self._began: float | None = None

    def begin(self, now: float) -> None:
        """Its time runs from now on, unless an update came before."""
        if self._began is None:
            self._began = now

    @property
    def updates(self) -> tuple[BufferedUpdate, ...]:
        """What it holds, sorted by the bytes of the site's name, then by version."""
        found = (committed.update for committed in self._committed.values())
        return tuple(sorted(found, key=lambda update: (update.site.encode(), update.version)))

    @property
    def sites(self) -> tuple[str, ...]:
        """Whose updates it holds, each once, sorted by the bytes of their names."""
        return tuple(dict.fromkeys(update.site for update in self.updates))

    @property
    def enough(self) -> bool:
        """Whether it holds updates of so many sites, and of so much weight, as a step needs at
        least."""
        return self._lacks() is None

    def _lacks(self, invited: int = 0) -> str | None:
        """Why what it holds makes no step, or None if it does."""
        spec, count = self._spec, len(self.sites)
        short = shortfall("sent an update", count, invited, spec.min_sites)
        weight = sum(update.weight for update in self.updates)
        return short or too_light(len(self.updates), weight, spec.min_weight)

    @property
    def full(self) -> bool:
        """Whether the model makes its step now."""
        return len(self._committed) >= self._spec.buffer_size and self.enough

    def staleness(self, number: int) -> int:
        """Steps that the model has made since the one with which a round of that number begins."""
        return self.round.number - number

    def add(self, plan: PlainPlan, arrived: UpdateArrived, now: float) -> BufferedUpdate:
        """Commits a complete upload whose header was checked.

        Raises:
            DecodeError, PeerError: why it cannot count; the buffer is as before.
        """
        site, header = arrived.site, arrived.header
        version, staleness = header.round.number - 1, self.staleness(header.round.number)
        counted = self._spec.buffering.counted(header.weight, staleness)
        # A site may have two updates here: a stale one, and one that it began after that.
        key = f"{site}@{version}"
        add_update(self._aggregator, plan, arrived, key=key, weight=counted)
        update = BufferedUpdate(site, version, staleness, header.weight, counted)
        self._committed[key] = _Committed(update, size_bytes(arrived.chunks), header.metrics)
        self.begin(now)
        return update

    def bytes_in(self, site: str) -> int:
        """Bytes of all that it holds of a site."""
        return sum(
            committed.size_bytes
            for committed in self._committed.values()
            if committed.update.site == site
        )

    def outcome(self, invited: int) -> Outcome:
        """The mean of what it holds, or why there is none."""
        reason = self._lacks(invited)
        if reason is not None:
            return Failed(reason)
        try:
            tensors = self._aggregator.finish()
        except DeviceError as error:
            return Failed(str(error))
        mean = dict(zip(self._layout.names, tensors, strict=True))
        reports = (
            (committed.update.counted, committed.metrics) for committed in self._committed.values()
        )
        return Finished(
            mean=mean,
            digest=result_digest(self._layout, mean),
            total_weight=self._aggregator.total_weight,
            sites=self.sites,
            metrics=mean_metrics(self._spec.metrics, reports),
        )

    def record(self, outcome: Outcome, model_hash: str, now: float) -> RoundRecord:
        """The round as it is kept. `model_hash`: hex, of the model after it."""
        result = outcome if isinstance(outcome, Finished) else None
        sites = result.sites if result else ()
        return RoundRecord(
            round=self.round,
            completed=result is not None,
            reason=outcome.reason if isinstance(outcome, Failed) else "",
            digest=result.digest if result else "",
            model_hash=model_hash,
            sites=sites,
            dropped={site: why for site, why in self.dropped.items() if site not in sites},
            total_weight=result.total_weight if result else 0,
            metrics=dict(result.metrics) if result else {},
            bytes_in={site: self.bytes_in(site) for site in self.sites},
            seconds={} if self._began is None else {PHASE: now - self._began},
            updates=self.updates if result else (),
        )

    def tell(
        self,
        kind: Literal["phase", "site", "progress"],
        site: str = "",
        detail: str = "",
        *,
        bytes_in: int = 0,
        fraction: float = 0.0,
    ) -> Announce:
        """Something to tell those who watch the run: how full it is, and what happened."""
        return Announce(
            RunEvent(
                self.round.run_id,
                kind,
                round_number=self.round.number,
                phase=PHASE,
                site=site,
                detail=detail,
                sites_in=len(self._committed),
                sites_expected=self._spec.buffer_size,
                bytes_in=bytes_in,
                fraction=fraction,
            )
        )
