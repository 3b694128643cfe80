"""Late updates: of a plain round that is over, on their way into the next one.

A site that was still working when its round closed goes on. Its update is a difference, so it can
be added to a newer model than the one it was made from; it counts in the next round as if it were
of that one. There are three times on the way: a round closes with stragglers; the next one is not
open yet (LateUpdates); it is, and takes theirs beside those of the sites it invited (PlainRound).
"""

from __future__ import annotations

from veilsum.control import RoundId, RunSpec, UpdateHeader
from veilsum.coordinator.effects import AnswerUpload, Effect
from veilsum.coordinator.events import UpdateArrived
from veilsum.coordinator.plain_receiver import PlainReceiver
from veilsum.coordinator.plain_updates import check_header, open_receiver
from veilsum.coordinator.stragglers import Stragglers
from veilsum.errors import PeerError
from veilsum.model import ModelLayout


class LateUpdates:
    """Between two plain rounds: who still works on the first, and what came of it meanwhile.

    Attributes:
        stragglers: those that are waited for, and those whose updates are held.
        held: updates for the next round, which answers them when it opens.
    """

    def __init__(self, stragglers: Stragglers, spec: RunSpec, layout: ModelLayout) -> None:
        self._plan = stragglers.plan(spec, layout)
        self._layout = layout
        self.stragglers = stragglers
        self.held: dict[str, UpdateArrived] = {}

    def awaits(self, site: str, round_id: RoundId) -> bool:
        """Whether a site is still to deliver for the round that is over."""
        late = self.stragglers
        return round_id == late.round and site in late.sites and site not in self.held

    def lost(self, site: str) -> None:
        """The site will not deliver any more. What it has delivered stays."""
        if site not in self.held:
            self.stragglers = self.stragglers.without(site)

    def receiver(self, site: str, header: UpdateHeader) -> PlainReceiver:
        """Opens a straggler's upload.

        Raises:
            PeerError: why it is refused.
        """
        self._check(site, header)
        return open_receiver(self._plan, self._layout, site, header)

    def hold(self, arrived: UpdateArrived) -> list[Effect]:
        """Keeps a complete upload until the next round opens."""
        site, header = arrived.site, arrived.header
        try:
            self._check(site, header)
        except PeerError as error:
            return [AnswerUpload(header.round, site, False, str(error))]
        self.held[site] = arrived
        return []

    def refuse(self, reason: str) -> list[Effect]:
        """There is no next round after all."""
        refused = [
            AnswerUpload(one.header.round, one.site, False, reason) for one in self.held.values()
        ]
        self.held.clear()
        return list(refused)

    def _check(self, site: str, header: UpdateHeader) -> None:
        if site in self.held:
            raise PeerError(site, "sent a second update in this round")
        if not self.awaits(site, header.round):
            raise PeerError(
                site,
                f"sent an update for round {header.round.number} of run "
                f"{header.round.run_id!r}, which is not open",
            )
        check_header(self._plan, header.round, site, header)
