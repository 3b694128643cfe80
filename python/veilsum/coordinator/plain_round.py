"""A round whose updates the coordinator can read: collect, screen, average."""

from __future__ import annotations

import math
from collections.abc import Mapping

from veilsum import _native, plain, secagg
from veilsum.control import PlainPlan, RoundOpened, RunSpec, UpdateHeader
from veilsum.coordinator.effects import AnswerUpload, Effect, OpenUploads, SendToSite
from veilsum.coordinator.events import UpdateArrived
from veilsum.coordinator.journal import Invitation, Journal, size_bytes
from veilsum.coordinator.outcome import Failed, Finished, Outcome
from veilsum.coordinator.plain_receiver import PlainReceiver
from veilsum.coordinator.policy import shortfall
from veilsum.errors import DecodeError, DeviceError, PeerError
from veilsum.model import ModelLayout, result_digest

PHASE = "updates"


class PlainRound:
    """See round.Round.

    Args:
        aggregator: empty; takes the updates as they come and refuses values that are not finite.
        spec: the run's, with the task of this round.
    """

    def __init__(
        self,
        plan: PlainPlan,
        layout: ModelLayout,
        aggregator: _native.MeanAggregator,
        invitation: Invitation,
        journal: Journal,
        spec: RunSpec,
    ) -> None:
        self._plan = plan
        self._layout = layout
        self._aggregator = aggregator
        self._invitation = invitation
        self._spec = spec
        self._headers: dict[str, UpdateHeader] = {}
        self.journal = journal
        self.outcome: Outcome | None = None
        self.settled = False
        self.previous: secagg.PreviousRound | None = None
        self.unacknowledged = ""

    def begin(self, now: float) -> list[Effect]:
        """Invites the cohort and takes updates from now on."""
        round_id, cohort = self._invitation.round, self._invitation.cohort
        opened = RoundOpened(round_id, self._spec.task_id, self._spec.task, b"", self._plan)
        effects: list[Effect] = [SendToSite(site, opened) for site in cohort]
        effects.append(OpenUploads(round_id, cohort))
        seconds = self._spec.deadlines.inputs_s
        return effects + self.journal.begin_phase(PHASE, cohort, seconds, now)

    def message(self, site: str, payload: bytes, now: float) -> list[Effect]:
        """A plain round has no protocol messages: its sender mistakes it for a masked one."""
        del payload
        return self.lost(site, "sent a protocol message in a plain round", now)

    def lost(self, site: str, reason: str, now: float) -> list[Effect]:
        """Stops waiting for the site; one whose update is in the mean is not needed any more."""
        if site in self._headers:
            return []
        effects = self.journal.drop(site, reason)
        self._close_if_complete(now)
        return effects

    def receiver(self, site: str, header: UpdateHeader) -> PlainReceiver:
        """Checks the header before the first chunk is taken."""
        self._check_header(site, header)
        receiver = PlainReceiver(self._plan, self._layout, site, header.update_id)
        if header.chunk_count != receiver.chunk_count:
            raise PeerError(
                site, f"announced {header.chunk_count} chunks, an update has {receiver.chunk_count}"
            )
        return receiver

    def _check_header(self, site: str, header: UpdateHeader) -> None:
        if self.outcome is not None:
            raise PeerError(site, "sent its update after the round closed")
        if site in self._headers:
            raise PeerError(site, "sent a second update in this round")
        if site in self.journal.dropped:
            raise PeerError(site, f"was dropped: {self.journal.dropped[site]}")
        if header.masked_header:
            raise PeerError(site, "sent a masked update in a plain round")
        if not 1 <= header.weight <= self._plan.weight_cap:
            raise PeerError(
                site, f"sent weight {header.weight}, expected 1 to {self._plan.weight_cap}"
            )
        if header.update_id != plain.update_id(self._plan, self._invitation.round, site):
            raise PeerError(site, "sent an update id of another round or site")
        _check_metrics(site, header.metrics, self._plan.metrics)

    def update(self, arrived: UpdateArrived, now: float) -> list[Effect]:
        """Commits a complete upload to the mean."""
        site, header = arrived.site, arrived.header
        try:
            self._check_header(site, header)
            self._commit(arrived)
        except (DecodeError, PeerError) as error:
            return [AnswerUpload(header.round, site, False, str(error))]
        self._headers[site] = header
        effects: list[Effect] = [AnswerUpload(header.round, site, True, "")]
        effects += self.journal.delivered(site, size_bytes(arrived.chunks), now)
        self._close_if_complete(now)
        return effects

    def _commit(self, arrived: UpdateArrived) -> None:
        settings = plain.codec_settings(self._plan.codec, self._plan.clip)
        self._aggregator.add_chunks(
            arrived.site,
            arrived.header.weight,
            arrived.chunks,
            codec=settings.number,
            scale=settings.scale,
            plan_digest=self._plan.digest,
            update_id=arrived.header.update_id,
            chunk_coordinates=self._plan.chunk_coordinates,
        )

    def deadline(self, now: float) -> list[Effect]:
        """Goes on without the silent sites."""
        effects: list[Effect] = []
        for site in self.journal.waiting:
            effects += self.journal.drop(site, "sent no update before the deadline")
        self._close_if_complete(now)
        return effects

    def publish(self, model_hash: bytes, state_hash: bytes, now: float) -> list[Effect]:
        """The sites of a plain round acknowledge nothing."""
        del model_hash, state_hash, now
        self.settled = True
        return []

    def close(self) -> None:
        """Holds no secret."""

    def _close_if_complete(self, now: float) -> None:
        """Ends the round as soon as no update is awaited any more."""
        if self.outcome is not None or self.journal.waiting:
            return
        self.journal.end_phase(now)
        count, invited = len(self._headers), len(self._invitation.cohort)
        reason = shortfall("sent an update", count, invited, self._spec.min_sites)
        self.outcome = self._mean() if reason is None else Failed(reason)

    def _mean(self) -> Finished | Failed:
        try:
            tensors = self._aggregator.finish()
        except DeviceError as error:
            return Failed(str(error))
        names = (name for name, _, _ in self._layout.native.tensors)
        mean = dict(zip(names, tensors, strict=True))
        return Finished(
            mean=mean,
            digest=result_digest(self._layout, mean),
            total_weight=self._aggregator.total_weight,
            sites=self._aggregator.sites,
            metrics=_mean_metrics(self._plan.metrics, self._headers),
        )


def _check_metrics(site: str, metrics: Mapping[str, float], known: tuple[str, ...]) -> None:
    unknown = sorted(set(metrics) - set(known))
    if unknown:
        raise PeerError(site, f"sent metric {unknown[0]!r}, which the round does not ask for")
    for name, value in metrics.items():
        if not abs(value) <= plain.METRIC_LIMIT:  # so written, it refuses nan as well
            raise PeerError(
                site, f"sent metric {name!r} that is not a number within ±{plain.METRIC_LIMIT}"
            )


def _mean_metrics(names: tuple[str, ...], headers: Mapping[str, UpdateHeader]) -> dict[str, float]:
    """Weighted means over the sites that reported each metric; fsum makes them independent
    of the order in which updates arrived."""
    means = {}
    for name in names:
        reported = [header for header in headers.values() if name in header.metrics]
        if reported:
            total = sum(header.weight for header in reported)
            means[name] = (
                math.fsum(header.weight * header.metrics[name] for header in reported) / total
            )
    return means
