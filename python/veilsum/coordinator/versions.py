"""Which site of a buffered run trains which version of its model.

The round with number n trains the model after n - 1 steps. A site trains for one round at a time
and for each at most once; only if its process is lost may it be asked again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any

from numpy.typing import NDArray

from veilsum import plain
from veilsum.control import (
    BufferedUpdate,
    PlainPlan,
    RoundClosed,
    RoundId,
    RoundOpened,
    RoundRecord,
    RunSpec,
    SiteDropped,
)
from veilsum.coordinator.effects import (
    CloseUploads,
    DropUploads,
    Effect,
    OpenUploads,
    PublishModel,
    SendToSite,
)
from veilsum.coordinator.policy import task_of_round
from veilsum.errors import PeerError
from veilsum.model import ModelLayout
from veilsum.optimizers.applying import FRESH


class Versions:
    """Book-keeping, and the effects that follow from it.

    Args:
        present: live view of the connected sites.

    Attributes:
        left_behind: site -> why it was stopped before the round that comes now.
    """

    def __init__(self, run_id: str, spec: RunSpec, layout: ModelLayout, present: Set[str]) -> None:
        self._run_id = run_id
        self._spec = spec
        self._layout = layout
        self._present = present
        self._training: dict[str, int] = {}  # site -> round it trains for
        self._done: dict[str, int] = {}  # site -> last round it has sent an update for, or will not
        self._plans: dict[int, PlainPlan] = {}  # of rounds whose uploads are open
        self.left_behind: dict[str, str] = {}

    @property
    def sites(self) -> tuple[str, ...]:
        """Whose updates are awaited, sorted by the bytes of their names."""
        return tuple(sorted(self._training, key=str.encode))

    def trains(self, site: str) -> bool:
        """Whether an update of this site is awaited."""
        return site in self._training

    def takes_part(self, site: str, round_id: RoundId) -> bool:
        """Whether a site trains for this round."""
        number = round_id.number
        return self._training.get(site) == number and round_id == self._round(number)

    def plan_for(self, site: str, round_id: RoundId) -> PlainPlan:
        """What the site's update for a round must be.

        Raises:
            PeerError: none is awaited.
        """
        if not self.takes_part(site, round_id):
            raise PeerError(
                site,
                f"sent an update for round {round_id.number} of run {round_id.run_id!r}, for which "
                "none of it is awaited",
            )
        return self._plans[round_id.number]

    # --- what happens -----------------------------------------------------------

    def publish(
        self, number: int, model: Mapping[str, NDArray[Any]], model_hash: bytes
    ) -> list[Effect]:
        """Serves the model of a round beside those that are still trained.

        Raises:
            ConfigError: the codec cannot be used with these settings.
        """
        self._plans[number] = plain.make_plan(self._spec, self._layout, model_hash)
        since = min(self._plans)
        round_id = self._round(number)
        return [PublishModel(round_id, self._layout, model, model_hash, FRESH, since=since)]

    def invite(self, number: int, sites: Iterable[str]) -> list[Effect]:
        """To a round: those of the sites that are there, train nothing and may train for it."""
        invited = tuple(
            site
            for site in sites
            if site in self._present and not self.trains(site) and self._done.get(site, 0) < number
        )
        self._training.update(dict.fromkeys(invited, number))
        return self._opened(number, invited)

    def _opened(self, number: int, sites: tuple[str, ...]) -> list[Effect]:
        if not sites:
            return []
        round_id = self._round(number)
        task = task_of_round(self._spec.task, number)
        opened = RoundOpened(round_id, self._spec.task_id, task, b"", self._plans[number])
        return [OpenUploads(round_id, sites), *(SendToSite(site, opened) for site in sites)]

    def done(self, site: str) -> None:
        """A site has sent its update, or will not."""
        self._done[site] = self._training.pop(site)

    def lost(self, site: str) -> None:
        """A site's process is gone, and with it what it has trained."""
        del self._training[site]

    def leave_behind(self, number: int) -> list[Effect]:
        """Before a round begins: stops the sites whose updates it could not take, and closes the
        rounds that no site trains for any more."""
        effects: list[Effect] = []
        self.left_behind = {}
        for site in self.sites:
            staleness = number - self._training[site]
            if staleness > self._spec.max_staleness:
                reason = self.left_behind[site] = too_stale(staleness, self._spec.max_staleness)
                stopped = SiteDropped(self._round(self._training[site]), reason)
                effects.append(SendToSite(site, stopped))
                self.done(site)
        for old in sorted(set(self._plans) - set(self._training.values())):
            effects += self._closed(old, "no update of it is awaited any more")
        return effects

    def free(self, updates: Iterable[BufferedUpdate]) -> list[Effect]:
        """These updates are summed, and not needed any more."""
        return [DropUploads(self._round(one.version + 1), (one.site,)) for one in updates]

    def tell_end(self, record: RoundRecord, updates: Iterable[BufferedUpdate]) -> list[Effect]:
        """Tells those whose updates a step took, and that wait for a new model since, what came of
        it. A site that trains again keeps to that."""
        latest = {update.site: self._round(update.version + 1) for update in updates}
        return [
            SendToSite(site, RoundClosed(of, record.completed, record.reason, record.digest))
            for site, of in latest.items()
            if not self.trains(site)
        ]

    def close(self, reason: str) -> list[Effect]:
        """The run is over: takes no more updates."""
        return [effect for number in sorted(self._plans) for effect in self._closed(number, reason)]

    def _closed(self, number: int, reason: str) -> list[Effect]:
        del self._plans[number]
        round_id = self._round(number)
        return [CloseUploads(round_id, reason), DropUploads(round_id)]

    def _round(self, number: int) -> RoundId:
        return RoundId(self._run_id, number)

    # --- from one process of the coordinator to the next ------------------------------

    def to_bytes(self) -> bytes:
        """As a standing holds it. What sites have done is of rounds before, and means nothing to
        the one that comes."""
        hashes = {number: plan.model_hash.hex() for number, plan in self._plans.items()}
        document = {
            "training": self._training,
            "left_behind": self.left_behind,
            "models": hashes,
        }
        return json.dumps(document, sort_keys=True).encode()

    def load(self, data: bytes) -> None:
        """Goes on from what to_bytes() gave, in this coordinator or an earlier process of it."""
        document = json.loads(data)
        self._training.update(document["training"])
        self.left_behind.update(document["left_behind"])
        for number, model_hash in document["models"].items():
            plan = plain.make_plan(self._spec, self._layout, bytes.fromhex(model_hash))
            self._plans[int(number)] = plan

    def reopen(self, model_of: Callable[[int], Mapping[str, NDArray[Any]]]) -> list[Effect]:
        """After load(): what the process before had open.

        Args:
            model_of: the model that a round begins with, by the round's number.
        """
        effects: list[Effect] = []
        for number in sorted(self._plans):
            plan = self._plans[number]
            effects += self.publish(number, model_of(number), plan.model_hash)
            sites = (site for site in self.sites if self._training[site] == number)
            effects += self._opened(number, tuple(sites))
        return effects


def too_stale(staleness: int, most: int) -> str:
    """Why an update does not count."""
    return f"trained a model of staleness {staleness}, max_staleness is {most}"
