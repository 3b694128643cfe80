"""A coordinator with one plain run, event by event; its sites' updates are made by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from support.federation import (
    counting_bytes,
    handle_and_go_on,
    make_roster,
    signing_key,
)
from support.plain_updates import plain_update
from veilsum.control import (
    Deadlines,
    PlainPlan,
    RoundId,
    RoundOpened,
    RoundRecord,
    RunSpec,
    ToSite,
)
from veilsum.coordinator.core import Coordinator
from veilsum.coordinator.effects import Effect, SaveRound, SendToSite
from veilsum.coordinator.events import Event, Proceed, RunSubmitted, SiteJoined, UpdateArrived
from veilsum.coordinator.rounds import Entropy
from veilsum.coordinator.standing import RestoredRun
from veilsum.model import ModelLayout

SITES = ("basel", "kyoto", "lyon", "oslo", "quito")
MODEL = {"weight": np.zeros(4, np.float32)}
LAYOUT = ModelLayout.from_arrays(MODEL)
SPEC = RunSpec(
    "task", masked=False, min_sites=2, weight_cap=100, deadlines=Deadlines(join_s=60, inputs_s=600)
)


class PlainRun:
    """See the top of this file. `effects` holds everything the coordinator asked for."""

    def __init__(
        self,
        spec: RunSpec = SPEC,
        present: tuple[str, ...] = SITES,
        draw: Entropy | None = None,
    ) -> None:
        entropy = draw or counting_bytes()
        self.core = Coordinator(make_roster(SITES), signing_key("coordinator"), entropy=entropy)
        self.effects: list[Effect] = []
        self.clock = 0.0
        for site in present:
            self.tell(SiteJoined(site))
        self.tell(RunSubmitted("run", spec, LAYOUT, MODEL))

    @classmethod
    def restored(cls, run: RestoredRun, before: PlainRun) -> PlainRun:
        """What another process comes to from a standing, with the sites that were there."""
        after = cls.__new__(cls)
        entropy = counting_bytes()
        after.core = Coordinator(make_roster(SITES), signing_key("coordinator"), entropy=entropy)
        after.core.restore(run)
        after.effects, after.clock = list(before.effects), before.clock
        for site in before.core.present:
            after.tell(SiteJoined(site))
        after.tell(Proceed("run"))
        return after

    def tell(self, event: Event) -> list[Effect]:
        """Hands the coordinator an event."""
        self.clock += 1.0
        effects = handle_and_go_on(self.core, event, self.clock)
        self.effects += effects
        return effects

    def deliver(self, site: str, number: int = 1, **update: Any) -> list[Effect]:
        """A site's update for a round arrives."""
        return self.tell(self.update(site, number, **update))

    def update(self, site: str, number: int = 1, value: float = 1.0, weight: int = 10) -> Any:
        """One whose values are all the same."""
        plan, round_id = self.plan(number), RoundId("run", number)
        header, chunks = plain_update(
            plan, (round_id, site), LAYOUT, [np.full(4, value, np.float32)], weight=weight
        )
        return UpdateArrived(site, header, chunks)

    def plan(self, number: int = 1) -> PlainPlan:
        """Of a round that was opened."""
        for effect in self.effects:
            match effect:
                case SendToSite(_, RoundOpened(RoundId(number=n), plain=PlainPlan() as plan)):
                    if n == number:
                        return plan
        raise AssertionError(f"round {number} was not opened")

    def invited(self, number: int = 1) -> tuple[str, ...]:
        """Whom a round invited, in order, as often as it did."""
        return tuple(
            effect.site
            for effect in self.effects
            if isinstance(effect, SendToSite)
            and isinstance(effect.message, RoundOpened)
            and effect.message.round.number == number
        )

    @property
    def records(self) -> tuple[RoundRecord, ...]:
        """Of the finished rounds."""
        return self.core.status("run").rounds

    def model_after(self, number: int) -> float:
        """The one value of the model after a round."""
        for effect in self.effects:
            if isinstance(effect, SaveRound) and effect.record.round.number == number:
                assert effect.model is not None
                (value,) = set(effect.model["weight"].tolist())
                return float(value)
        raise AssertionError(f"round {number} has no model")


def spec(**settings: Any) -> RunSpec:
    """A plain run."""
    return replace(SPEC, **settings)


def sent(effects: list[Effect], kind: type[Any]) -> list[tuple[str, ToSite]]:
    """What sites are told of this kind, in order."""
    return [
        (effect.site, effect.message)
        for effect in effects
        if isinstance(effect, SendToSite) and isinstance(effect.message, kind)
    ]
