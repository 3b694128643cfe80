"""What is written down while a round runs: phases and their durations, bytes, dropped sites.

Both kinds of round keep one. It turns what it is told into the effects that tell sites and
watchers, so that a masked and a plain round look the same from outside.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from typing_extensions import Buffer

from veilsum.control import RoundId, RoundRecord, RunEvent, SiteDropped
from veilsum.coordinator.effects import Announce, Effect, SendToSite, SetDeadline
from veilsum.coordinator.outcome import Failed, Finished, Outcome
from veilsum.coordinator.stragglers import Stragglers


@dataclass(frozen=True, slots=True)
class Invitation:
    """Who was asked into which round; sites sorted by the bytes of their names.

    Attributes:
        late: sites that were asked into the round before and are to deliver in this one.
    """

    round: RoundId
    cohort: tuple[str, ...]
    late: Stragglers | None = None

    @property
    def sites(self) -> tuple[str, ...]:
        """All that have a part in the round."""
        late = self.late.sites if self.late else ()
        return tuple(sorted((*self.cohort, *late), key=str.encode)) if late else self.cohort

    def round_of(self, site: str) -> RoundId | None:
        """The round whose update is awaited of a site; None if it has no part."""
        if site in self.cohort:
            return self.round
        return self.late.round if self.late and site in self.late.sites else None


def size_bytes(chunks: Iterable[Buffer]) -> int:
    """Bytes of all chunks together. Those that are in a file know it without being read."""
    known: int | None = getattr(chunks, "nbytes", None)
    return sum(memoryview(chunk).nbytes for chunk in chunks) if known is None else known


class Journal:
    """Book-keeping of one round; decides nothing.

    Attributes:
        phase: name of the current phase, "" before the first.
        dropped: site -> why the round went on without it.
        refusals: site -> the signed refusal with which it left.
        left_out: site -> why no further attempt or round should have it.
    """

    def __init__(self, invitation: Invitation, *, joined_s: float) -> None:
        self._invitation = invitation
        self._seconds = {"join": joined_s}
        self._began = 0.0
        self._expected: tuple[str, ...] = ()
        self._answered: set[str] = set()
        self._bytes_in: dict[str, int] = {}
        self.phase = ""
        self.dropped: dict[str, str] = {}
        self.refusals: dict[str, bytes] = {}
        self.left_out: dict[str, str] = {}

    @property
    def waiting(self) -> tuple[str, ...]:
        """Sites the current phase still waits for."""
        return tuple(
            site
            for site in self._expected
            if site not in self._answered and site not in self.dropped
        )

    @property
    def deliveries(self) -> int:
        """How many updates are complete and accepted."""
        return len(self._bytes_in)

    def begin_phase(
        self, phase: str, expected: tuple[str, ...], seconds: float, now: float
    ) -> list[Effect]:
        """Ends the phase before, if any."""
        self.end_phase(now)
        self.phase, self._began = phase, now
        self._expected, self._answered = expected, set()
        deadline = SetDeadline(self._invitation.round, phase, seconds)
        return [deadline, self._announce("phase")]

    def end_phase(self, now: float) -> None:
        """Notes how long the current phase took. Harmless if there is none."""
        if self.phase:
            self._seconds[self.phase] = now - self._began
        self.phase = ""

    def answered(self, site: str) -> None:
        """The current phase need not wait for this site any more."""
        self._answered.add(site)

    def delivered(self, site: str, size_bytes: int, now: float) -> list[Effect]:
        """A site's update is complete and accepted."""
        self.answered(site)
        self._bytes_in[site] = size_bytes
        took = now - self._began
        of = self._invitation.round_of(site)
        late = of is not None and of != self._invitation.round
        detail = f"delivered, late: of round {of.number}" if of and late else "delivered"
        return [self._announce("site", site, detail, bytes_in=size_bytes, seconds=took)]

    def drop(self, site: str, reason: str) -> list[Effect]:
        """The round goes on without the site, which is told; the first reason counts."""
        if site in self.dropped:
            return []
        told = SiteDropped(self._invitation.round_of(site) or self._invitation.round, reason)
        return [SendToSite(site, told), *self.leave_behind(site, reason)]

    def leave_behind(self, site: str, reason: str) -> list[Effect]:
        """The round goes on without the site, which is not told: what it works on still counts."""
        self.dropped[site] = reason
        return [self._announce("site", site, f"dropped: {reason}")]

    def readmit(self, site: str) -> list[Effect]:
        """The phase waits again for a site that the round went on without."""
        self.dropped.pop(site, None)
        return [self._announce("site", site, "is back, and invited again")]

    def leave_out(self, site: str, reason: str) -> list[Effect]:
        """No further attempt or round should have the site; the first reason counts."""
        if site in self.left_out:
            return []
        self.left_out[site] = reason
        return [self._announce("site", site, f"left out from now on: {reason}")]

    def progress(self, site: str, fraction: float) -> list[Effect]:
        """A site's training came so far."""
        return [self._announce("progress", site, fraction=fraction)]

    def record(self, outcome: Outcome, model_hash: str, now: float) -> RoundRecord:
        """The round as it is kept. `model_hash`: hex, of the model after it."""
        self.end_phase(now)
        match outcome:
            case Finished():
                return self._record(outcome, "", model_hash)
            case Failed(reason):
                return self._record(None, reason, model_hash)

    def _record(self, result: Finished | None, reason: str, model_hash: str) -> RoundRecord:
        sites = result.sites if result else ()
        return RoundRecord(
            round=self._invitation.round,
            completed=result is not None,
            reason=reason,
            digest=result.digest if result else "",
            model_hash=model_hash,
            sites=sites,
            dropped=self._dropped_but(sites),
            total_weight=result.total_weight if result else 0,
            metrics=dict(result.metrics) if result else {},
            bytes_in=dict(self._bytes_in),
            seconds=dict(self._seconds),
            refusals=dict(self.refusals),
            late=tuple(site for site in sites if site not in self._invitation.cohort),
        )

    def _dropped_but(self, sites: tuple[str, ...]) -> dict[str, str]:
        """A site that was lost after its update was in the sum was not dropped from it."""
        return {site: why for site, why in self.dropped.items() if site not in sites}

    def _announce(
        self,
        kind: Literal["phase", "site", "progress"],
        site: str = "",
        detail: str = "",
        *,
        bytes_in: int = 0,
        seconds: float = 0.0,
        fraction: float = 0.0,
    ) -> Announce:
        round_id = self._invitation.round
        return Announce(
            RunEvent(
                round_id.run_id,
                kind,
                round_number=round_id.number,
                phase=self.phase,
                site=site,
                detail=detail,
                sites_in=len(self._answered),
                sites_expected=len(self._expected),
                bytes_in=bytes_in,
                seconds=seconds,
                fraction=fraction,
            )
        )
