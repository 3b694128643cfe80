"""An update that has not left the site, kept for another attempt at its round."""

from __future__ import annotations

from dataclasses import dataclass

from veilsum.control import RoundId, TaskSettings
from veilsum.site.contribution import LocalUpdate, ModelTerms


@dataclass(frozen=True, slots=True)
class _Kept:
    round: RoundId
    task: TaskSettings
    terms: ModelTerms
    update: LocalUpdate


class Unsent:
    """Holds one update at most.

    Only one that was never masked may be kept: masked for a second attempt, it could be in two
    sums whose difference shows it (docs/security.md, "Once").
    """

    def __init__(self) -> None:
        self._kept: _Kept | None = None

    def keep(
        self, round_id: RoundId, task: TaskSettings, terms: ModelTerms, update: LocalUpdate
    ) -> None:
        """The attempt is over, and the update has not been masked in it."""
        self.drop()
        self._kept = _Kept(round_id, task, terms, update)

    def take(self, round_id: RoundId, task: TaskSettings, terms: ModelTerms) -> LocalUpdate | None:
        """The update, if this is a later attempt at its round, with the same model, task and
        metrics. Whatever was kept is not kept any more."""
        kept, self._kept = self._kept, None
        if kept is None:
            return None
        if _is_again(kept.round, round_id) and (kept.task, kept.terms) == (task, terms):
            return kept.update
        kept.update.rounding.wipe()
        return None

    def drop(self) -> None:
        """Forgets it, and wipes its secret. Idempotent."""
        if self._kept is not None:
            self._kept.update.rounding.wipe()
        self._kept = None


def _is_again(first: RoundId, second: RoundId) -> bool:
    same = (first.run_id, first.number) == (second.run_id, second.number)
    return same and second.attempt > first.attempt
