"""What a site knows in each phase of a round: a type per phase, with only what exists in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

from numpy.typing import NDArray

from veilsum.control import RoundId, RoundOpened, TaskSettings
from veilsum.model import ModelLayout
from veilsum.site.contribution import Contribution, LocalUpdate, ModelTerms
from veilsum.site.effects import FetchLinks, FetchModel, SiteEffect, Upload


@dataclass(frozen=True, slots=True)
class Part:
    """This site's part in the current round.

    Attributes:
        opened: the invitation that it came with.
    """

    opened: RoundOpened
    task: TaskSettings
    contribution: Contribution
    terms: ModelTerms

    @property
    def round(self) -> RoundId:
        """Which round that is."""
        return self.opened.round


@dataclass(frozen=True, slots=True)
class Idle:
    """No round."""


@dataclass(frozen=True, slots=True)
class Asking:
    """The site does not know where the round's model comes from; the results that led to it are
    on their way."""

    opened: RoundOpened


@dataclass(frozen=True, slots=True)
class Fetching:
    """The model is on its way."""

    part: Part


@dataclass(frozen=True, slots=True)
class Training:
    """The trainer runs."""

    part: Part
    layout: ModelLayout
    received: dict[str, NDArray[Any]] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Holding:
    """The update is ready; the round is not yet ready for it."""

    part: Part
    update: LocalUpdate


@dataclass(frozen=True, slots=True)
class Delivering:
    """The update was made, once and for all.

    Attributes:
        upload: as long as the coordinator has not said that it holds the update.
    """

    part: Part
    upload: Upload | None


SitePhase: TypeAlias = Idle | Asking | Fetching | Training | Holding | Delivering


def round_of(phase: SitePhase) -> RoundId | None:
    """The round that a phase is about, whether or not the site takes part in it yet."""
    match phase:
        case Idle():
            return None
        case Asking(opened):
            return opened.round
        case _:
            return phase.part.round


def asked_for(phase: SitePhase) -> list[SiteEffect]:
    """What the site waits for to contribute; a new connection has to be asked for it once more."""
    match phase:
        case Asking(opened):
            return [FetchLinks(opened.round)]
        case Fetching(part):
            return [FetchModel(part.round)]
        case Delivering(_, upload) if upload is not None:
            return [upload]
        case _:
            return []
