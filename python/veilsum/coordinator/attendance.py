"""Which sites of a run's cohort are there, are waited for, and are invited to a round."""

from __future__ import annotations

from collections.abc import Collection, Set

from veilsum import secagg
from veilsum.control import RoundId, RunSpec
from veilsum.coordinator.policy import missing_sites, shortfall
from veilsum.coordinator.retry import Retries
from veilsum.coordinator.selection import Draw, invited
from veilsum.coordinator.standing import JobMemory
from veilsum.coordinator.stragglers import Stragglers


class Attendance:
    """Of one run.

    Args:
        cohort: sites that may be invited, sorted.
        present: live view of the connected sites, kept by the caller.
        retries: knows who is left out.
        draw: source of the samples of runs that draw their sites.

    Attributes:
        given_up: sites for which a whole join time was spent in vain: not waited for again until
            they are back, or one broken site would cost every round that time.
        drawn: whom the last attempt had invited, where sites are drawn.
    """

    def __init__(
        self,
        spec: RunSpec,
        cohort: tuple[str, ...],
        present: Set[str],
        retries: Retries,
        draw: Draw,
    ) -> None:
        self._turnout = spec.turnout
        self._cohort = cohort
        self._present = present
        self._retries = retries
        self._draw = draw
        self.given_up: set[str] = set()
        self.drawn: tuple[str, ...] = ()

    @property
    def invitable(self) -> tuple[str, ...]:
        """The cohort without those who are left out."""
        return self._retries.invitable(self._cohort)

    @property
    def missing(self) -> tuple[str, ...]:
        """Sites that a round would wait for before it opens."""
        return missing_sites(self.invitable, self._present, self.given_up)

    @property
    def there(self) -> tuple[str, ...]:
        """Sites that are there and may be invited."""
        return tuple(site for site in self.invitable if site in self._present)

    def give_up(self) -> None:
        """Waits no more for those who are missing, until they are back."""
        self.given_up.update(self.missing)

    def shortfall(self) -> str | None:
        """Why no round can begin with those who are there, or None if one can."""
        return shortfall("joined", len(self.there), len(self.invitable), self._turnout.min_sites)

    def recall(self, memory: JobMemory) -> None:
        """Takes over what an earlier process remembered."""
        self.given_up.update(memory.given_up)
        self.drawn = memory.drawn
        self._retries.leave_out(memory.left_out)

    def memory(
        self, *, cooling: bool, previous: secagg.PreviousRound | None, late: Stragglers | None
    ) -> JobMemory:
        """What has to be remembered from round to round, or from attempt to attempt (cooling)."""
        drawn = self.drawn if cooling else ()
        left_out = self._retries.left_out
        return JobMemory(cooling, tuple(self.given_up), left_out, previous, drawn, late)

    def choose(self, round_id: RoundId, busy: Collection[str] = ()) -> tuple[str, ...]:
        """Whom an attempt at a round invites, sorted.

        Args:
            busy: sites that are there and not to be invited.

        Raises:
            ConfigError: the source of the samples gives no random bytes.
        """
        free = tuple(site for site in self.there if site not in busy)
        before = self.drawn if round_id.attempt else ()
        chosen = invited(free, self._turnout.invites, before, self._draw)
        self.drawn = chosen if self._turnout.invites else ()
        return chosen
