"""M5 to M9 as a small model, and an exhaustive search of every state it can reach.

What a site does is the protocol's: it votes once, for a set that is large enough, and returns
shares to a certificate of the set it voted for. The adversary is the coordinator together with
the corrupt sites: it hands any proposal and any certificate it has votes for to any honest site
at any time, and corrupt sites vote for everything. A message that is dropped is one it does not
hand over, and a site that crashes for good is one it hands nothing any more; so neither needs a
step of its own.

Sets of sites are bit masks. Corrupt are the last sites; any others would be the same up to names.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from veilsum.control import ShareProfile
from veilsum.secagg.thresholds import share_threshold, vote_quorum

TWO_SETS = "two survivor sets are certified"
BOTH_SECRETS = "both secrets of a site can be rebuilt"


@dataclass(frozen=True)
class Rules:
    """Who takes part, and what each site insists on.

    Attributes:
        members: sites that dealt shares; thresholds are those of the invited.
        corrupt: of them, how many help the coordinator.
        quorum, threshold: q and t.
        fewest: smallest survivor set that anyone votes for.
        remembers: a site that crashed and came back, from a copy of its memory, knows its vote.
        asks_for_votes: shares are returned to a certificate only.
    """

    members: int
    corrupt: int
    quorum: int
    threshold: int
    fewest: int
    remembers: bool = True
    asks_for_votes: bool = True

    @classmethod
    def of(
        cls, invited: int, colluders: int, *, profile: ShareProfile = "strict", absent: int = 0
    ) -> Rules:
        """The product's thresholds."""
        quorum = vote_quorum(invited, colluders)
        return cls(
            members=invited - absent,
            corrupt=colluders,
            quorum=quorum,
            threshold=share_threshold(profile, invited, colluders),
            fewest=max(quorum, 3),
        )

    def without(self, **defences: bool | int) -> Rules:
        return replace(self, **defences)

    @property
    def honest(self) -> int:
        return self.members - self.corrupt

    @cached_property
    def survivor_sets(self) -> tuple[int, ...]:
        """Every set a site may vote for."""
        return tuple(one for one in range(2**self.members) if one.bit_count() >= self.fewest)


class Site(NamedTuple):
    """An honest site: what it stands for now, and what it ever signed and returned.

    Attributes:
        stands_for: its vote as it remembers it; None before there is one.
        votes: bit k: a vote for survivor set k has left the site.
        answers: bit k: the shares that set k calls for have left the site.
        restarts: how often it came back from a copy of its memory of before the vote.
    """

    stands_for: int | None = None
    votes: int = 0
    answers: int = 0
    restarts: int = 0


State = tuple[Site, ...]
"""One per honest site."""


@dataclass(frozen=True)
class Found:
    """A forbidden state and the shortest way there, the start first."""

    fault: str
    path: tuple[State, ...]


class Search:
    """Breadth first, over every interleaving.

    Args:
        faults: what to look for.
        restarts: how often a site without memory may come back; one is enough for the worst.
    """

    def __init__(
        self, rules: Rules, *, faults: Sequence[str] = (TWO_SETS, BOTH_SECRETS), restarts: int = 1
    ) -> None:
        self.rules = rules
        self._faults = faults
        self._restarts = restarts
        self._before: dict[State, State | None] = {}
        self._steps: dict[tuple[Site, int], tuple[Site, ...]] = {}
        self._certified: dict[tuple[int, ...], int] = {}
        self._rebuilt: dict[tuple[int, ...], bool] = {}

    def run(self) -> Found | None:
        """The first forbidden state, or None if there is none."""
        start: State = (Site(),) * self.rules.honest
        before = self._before = {start: None}
        queue = deque([start])
        while queue:
            state = queue.popleft()
            fault = self.fault(state)
            if fault is not None:
                return Found(fault, self._path(state))
            for following in self.successors(state):
                if following not in before:
                    before[following] = state
                    queue.append(following)
        return None

    @property
    def states(self) -> int:
        """How many were reached."""
        return len(self._before)

    def reached(self, state: State) -> bool:
        """Whether some order of steps leads there."""
        return state in self._before

    def certified(self, state: State) -> int:
        """Bit k: the adversary holds enough votes for survivor set k."""
        votes = tuple(site.votes for site in state)
        if votes not in self._certified:
            needed = self.rules.quorum - self.rules.corrupt
            self._certified[votes] = sum(
                1 << number
                for number in range(len(self.rules.survivor_sets))
                if sum(vote >> number & 1 for vote in votes) >= needed
            )
        return self._certified[votes]

    def rebuilt(self, state: State) -> bool:
        """Whether the adversary holds enough shares of both secrets of some honest site."""
        answers = tuple(site.answers for site in state)
        if answers not in self._rebuilt:
            self._rebuilt[answers] = any(
                min(self._shares(answers, dealer)) >= self.rules.threshold
                for dealer in range(self.rules.honest)
            )
        return self._rebuilt[answers]

    def fault(self, state: State) -> str | None:
        """What must never be, if it is."""
        if BOTH_SECRETS in self._faults and self.rebuilt(state):
            return BOTH_SECRETS
        if TWO_SETS in self._faults and self.certified(state).bit_count() > 1:
            return TWO_SETS
        return None

    def _shares(self, answers: tuple[int, ...], dealer: int) -> tuple[int, int]:
        """How many shares of its self seed and of its mask seed the adversary holds."""
        own = mask = self.rules.corrupt
        for answer in answers:
            inside = {
                chosen >> dealer & 1
                for number, chosen in enumerate(self.rules.survivor_sets)
                if answer >> number & 1
            }
            own += 1 in inside
            mask += 0 in inside
        return own, mask

    def successors(self, state: State) -> Iterator[State]:
        """The states after one more step of the adversary."""
        certified = self.certified(state) if self.rules.asks_for_votes else -1
        for at, site in enumerate(state):
            key = (site, certified)
            if key not in self._steps:
                self._steps[key] = tuple(self._of_a_site(site, certified))
            for following in self._steps[key]:
                yield (*state[:at], following, *state[at + 1 :])

    def _of_a_site(self, site: Site, certified: int) -> Iterator[Site]:
        chosen = site.stands_for
        if chosen is None:  # any proposal
            for number in range(len(self.rules.survivor_sets)):
                yield site._replace(stands_for=number, votes=site.votes | 1 << number)
            return
        if certified >> chosen & 1:
            yield site._replace(answers=site.answers | 1 << chosen)
        if not self.rules.remembers and site.restarts < self._restarts:
            yield site._replace(stands_for=None, restarts=site.restarts + 1)

    def _path(self, state: State) -> tuple[State, ...]:
        path = [state]
        while (earlier := self._before[path[-1]]) is not None:
            path.append(earlier)
        return tuple(reversed(path))
