"""What sites of a masked run fetch from the coordinator: models, sums, links, optimizer states."""

from __future__ import annotations

import hashlib
from typing import TypeVar

from veilsum.coordinator.effects import PublishModel, PublishSum, SaveLink, SaveRound
from veilsum.integrations.flower import secure_parts as parts
from veilsum.integrations.flower.secure_parts import About, model_part
from veilsum.integrations.flower.secure_wire import Part
from veilsum.optimizers.state import OptimizerState
from veilsum.records import RoundId
from veilsum.secagg.origin import MOST_LINKS

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")

_KEPT = 2  # rounds whose sums and optimizer states are still asked for


class Served:
    """Holds what the last rounds left to be served."""

    def __init__(self) -> None:
        self._opened: PublishModel | None = None
        self._invited: set[str] = set()  # to the round that is open
        self._model: Part | None = None
        self._sums: dict[RoundId, tuple[bytes, ...]] = {}
        self._states: dict[bytes, bytes] = {}  # by hash
        self._links: dict[tuple[bytes, bytes], SaveLink] = {}

    def publish(self, effect: PublishModel) -> None:
        """The model of the round that opens, instead of the one before."""
        self._opened, self._invited = effect, set()
        self._model = model_part(effect.round, effect.layout, effect.model)

    def invite(self, round_id: RoundId, site: str) -> None:
        """A site may fetch what there is of the round that is open; nobody else may."""
        if self._opened is not None and self._opened.round == round_id:
            self._invited.add(site)

    def publish_sum(self, effect: PublishSum) -> None:
        """Takes the sum of a round."""
        self._sums[effect.round] = tuple(effect.words)
        _drop_oldest(self._sums, _KEPT)

    def saved(self, effect: SaveRound) -> None:
        """Takes what the optimizer remembers after a round."""
        if isinstance(effect.optimizer_state, OptimizerState):
            data = effect.optimizer_state.to_bytes()
            self._states[hashlib.sha256(data).digest()] = data
            _drop_oldest(self._states, _KEPT)

    def link(self, effect: SaveLink) -> None:
        """Takes a link between two models."""
        self._links.pop(effect.after, None)  # what led there last is the last to be dropped
        self._links[effect.after] = effect
        _drop_oldest(self._links, MOST_LINKS)

    def model(self, round_id: RoundId, site: str) -> Part | None:
        """The model of a round, while it is the last that opened."""
        return None if self._open_for(round_id, site) is None else self._model

    def sum(self, round_id: RoundId, site: str, *, state: bool) -> Part:
        """A round's sum, behind the optimizer's state where that is asked for; or that there is
        none."""
        words = self._sums.get(round_id)
        opened = self._open_for(round_id, site)
        if words is None or opened is None:
            return Part(parts.SUM, About(round_id, reason="that sum is gone").to_bytes())
        before = []
        if state:
            kept = self._states.get(opened.state_hash)
            if kept is None:
                reason = "the optimizer's state is gone"
                return Part(parts.SUM, About(round_id, reason=reason).to_bytes())
            before = [kept]
        return Part(parts.SUM, About(round_id, flag=True).to_bytes(), (*before, *words))

    def links(self, round_id: RoundId, site: str) -> Part:
        """The results that led to a round's model, the last one first."""
        found: list[bytes] = []
        opened = self._open_for(round_id, site)
        if opened is not None:
            after = (opened.model_hash, opened.state_hash)
            for _ in range(MOST_LINKS):
                # To a model whose optimizer begins anew leads whatever leads to the model.
                if after not in self._links and not any(after[1]):
                    after = next((key for key in self._links if key[0] == after[0]), after)
                if after not in self._links:
                    break
                found.append(self._links[after].link)
                after = self._links[after].before
        return Part(parts.LINKS, About(round_id).to_bytes(), found)

    def _open_for(self, round_id: RoundId, site: str) -> PublishModel | None:
        opened = self._opened
        invited = opened is not None and opened.round == round_id and site in self._invited
        return opened if invited else None


def _drop_oldest(kept: dict[_Key, _Value], most: int) -> None:
    while len(kept) > most:
        del kept[next(iter(kept))]
