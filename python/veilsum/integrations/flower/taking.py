"""The replies of one round, one at a time: which counted, which failed, which were refused."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from flwr.app import Message, MetricRecord, RecordDict
from flwr.serverapp.exception import AggregationError

from veilsum.errors import DecodeError, PeerError
from veilsum.integrations.flower.one_by_one import Replies
from veilsum.integrations.flower.replies import alike, site_of

_LOG = logging.getLogger("flwr")  # Flower's own


class Taken:
    """What became of each reply. Logs as Flower does, and why a reply was refused.

    Attributes:
        contents: site -> what is left of its reply.
        refused: site -> why its reply does not count.
    """

    def __init__(self, phase: str) -> None:
        """Args:
        phase: "aggregate_train", for example; for the log.
        """
        self._phase = phase
        self._failed: list[tuple[str, str | None]] = []
        self.contents: dict[str, RecordDict] = {}
        self.refused: dict[str, str] = {}

    def take(self, replies: Iterable[Message], read: Callable[[Message, str], RecordDict]) -> None:
        """Takes all replies, and holds none of them while it waits for the next.

        Args:
            read: checks a reply of a site, makes use of it and returns what is to be kept.
        """
        for message in replies:
            self._take_one(message, read)
            del message
        self._log()

    def require_some(self, replies: Iterable[Message]) -> None:
        """Refuses a round without a result in which most nodes that were asked sent something of
        no use: that is no bad site, but two settings that do not fit each other.

        Raises:
            AggregationError: with the reason of each site.
        """
        useless, asked = len(self.refused), len(self.refused) + len(self._failed)
        if isinstance(replies, Replies):
            useless, asked = useless + replies.unreadable, replies.asked
        if not self.contents and 2 * useless > asked:
            reasons = list(self.refused.values())
            if useless > len(reasons):
                reasons.append(f"{useless - len(reasons)} cannot be read (the log has more)")
            raise AggregationError(
                f"{self._phase}: no reply of {asked} can be used: {'; '.join(reasons)}"
            )

    def require_a_usual_first(self) -> None:
        """Of a round in which the first reply decided what all must look like: it must suit most.
        Else one site that is quick would put all others out, and be the model alone.

        Raises:
            AggregationError: with the reason of each site.
        """
        if len(self.refused) < len(self.contents):
            return
        reasons = "; ".join(self.refused.values())
        raise AggregationError(
            f"{self._phase}: there was no model to start from, the first reply decided what all "
            f"must look like, and {len(self.refused)} others were refused: {reasons} (give "
            "start() the model as initial_arrays)"
        )

    def aggregated(
        self, function: Callable[[list[RecordDict], str], MetricRecord], weighted_by_key: str
    ) -> MetricRecord:
        """The metrics of the replies that count, in the order of the sites' names."""
        records, left_out = alike(self.contents)
        for site, reason in left_out.items():
            _LOG.warning("\t> Metrics of node %s are left out: %s", site, reason)
        return function(records, weighted_by_key)

    def _take_one(self, message: Message, read: Callable[[Message, str], RecordDict]) -> None:
        site = site_of(message)
        if message.has_error():
            self._failed.append((site, message.error.reason))
            return
        try:
            if site in self.contents:
                raise PeerError(site, "sent a second reply in one round")
            self.contents[site] = read(message, site)
        except (PeerError, DecodeError) as error:
            self.refused[site] = error.in_a_line

    def _log(self) -> None:
        _LOG.info(
            "%s: Received %s results and %s failures",
            self._phase,
            len(self.contents) + len(self.refused),
            len(self._failed),
        )
        for site, reason in self._failed:
            _LOG.info("\t> Received error in reply from node %s: %s", site, reason)
        for site, reason in self.refused.items():
            _LOG.warning("\t> Reply of node %s is left out: %s", site, reason)
