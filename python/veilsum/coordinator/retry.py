"""When a round that failed is held again, and without whom.

Every attempt has keys, masks and a plan of its own; nothing of the one before enters it. What
does not change with it is what protects: the assumed number of colluders and the fewest updates
of a sum are the run's, however few sites are left to invite.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from veilsum.control import RoundId, RunSpec
from veilsum.coordinator.outcome import Failed, Outcome

COOLDOWN = "cooldown"
"""The phase between two attempts: time to reconnect, and for a person to look."""


class Retries:
    """Decides for one run. Plain rounds are not held again: what they lack is updates, and those
    would be the same."""

    def __init__(self, spec: RunSpec) -> None:
        self._attempts = spec.max_attempts if spec.masked else 1
        self._left_out: set[str] = set()

    def leave_out(self, sites: Iterable[str]) -> None:
        """Invites these sites to no further round of the run: they broke the protocol, or are in
        a dispute that nobody else can decide."""
        self._left_out.update(sites)

    @property
    def left_out(self) -> tuple[str, ...]:
        """Sites that are invited no more, sorted."""
        return tuple(sorted(self._left_out, key=str.encode))

    def invitable(self, cohort: tuple[str, ...]) -> tuple[str, ...]:
        """Those of the cohort that were not left out."""
        return tuple(site for site in cohort if site not in self._left_out)

    def after(self, ended: RoundId, outcome: Outcome) -> RoundId | None:
        """The next attempt at a round that ended; None if there is none."""
        if not isinstance(outcome, Failed) or outcome.final:
            return None
        attempt = ended.attempt + 1
        return replace(ended, attempt=attempt) if attempt < self._attempts else None
