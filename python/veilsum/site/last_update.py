"""Whether the update that a site made last counts; what depends on it stays open until then."""

from __future__ import annotations

from veilsum.control import RoundId
from veilsum.site.contribution import Contribution


class LastUpdate:
    """With error feedback an update holds a part of the residual. That was sent if the update
    counts, and is taken back if it does not.

    A site may have left the round by then: what tells it so can come after its connection broke,
    and after the coordinator went on.
    """

    def __init__(self) -> None:
        self._round: RoundId | None = None
        self._contribution: Contribution | None = None
        self._held = False

    def made(self, round_id: RoundId, contribution: Contribution) -> None:
        """It was encoded, and the residual with it."""
        self._round, self._contribution, self._held = round_id, contribution, False

    def held(self, round_id: RoundId) -> None:
        """The coordinator said that it has the whole update."""
        self._held = self._held or round_id == self._round

    def told(self, round_id: RoundId, *, counts: bool) -> None:
        """The coordinator said what became of it."""
        if round_id == self._round:
            self._settle(counts)

    def assume(self) -> None:
        """Another update is to be made, and nobody told what became of the last one. If the
        coordinator has not even said that it has it, it is taken not to count."""
        self._settle(self._held)

    def forget(self, run_id: str) -> None:
        """The run has ended: nothing depends on it any more, and what it holds is let go."""
        if self._round is not None and self._round.run_id == run_id:
            self._settle(True)

    def _settle(self, counts: bool) -> None:
        if self._contribution is not None and not counts:
            self._contribution.undo()
        self._round, self._contribution, self._held = None, None, False
