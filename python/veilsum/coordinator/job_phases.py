"""What a run is at: one type per phase, holding only what exists in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from numpy.typing import NDArray

from veilsum.control import RoundId, RoundRecord, RunState
from veilsum.coordinator.journal import Invitation
from veilsum.coordinator.late import LateUpdates
from veilsum.coordinator.round import Round
from veilsum.coordinator.rounds import ModelRef


@dataclass(frozen=True, slots=True)
class CurrentModel:
    """The model as the finished rounds left it."""

    arrays: Mapping[str, NDArray[Any]] = field(repr=False)
    ref: ModelRef


@dataclass(frozen=True, slots=True)
class Waiting:
    """Another run is in the way."""

    model: CurrentModel


@dataclass(frozen=True, slots=True)
class Between:
    """`round` comes next, as soon as it is told to go on.

    Attributes:
        late: what is still to come of the round before, if anything is.
    """

    model: CurrentModel
    round: RoundId
    late: LateUpdates | None = None


@dataclass(frozen=True, slots=True)
class Gathering:
    """A round waits for sites to join.

    Attributes:
        late: as of Between.
    """

    model: CurrentModel
    round: RoundId
    began: float
    late: LateUpdates | None = None


@dataclass(frozen=True, slots=True)
class CoolingDown:
    """A round failed; its next attempt will be `round`."""

    model: CurrentModel
    round: RoundId


@dataclass(frozen=True, slots=True)
class Running:
    """A round is open."""

    model: CurrentModel
    invitation: Invitation
    round: Round


@dataclass(frozen=True, slots=True)
class Settling:
    """A round is finished and kept; its sites' acknowledgements are awaited.

    Attributes:
        model: after the round.
    """

    model: CurrentModel
    invitation: Invitation
    round: Round
    record: RoundRecord


@dataclass(frozen=True, slots=True)
class Ended:
    """No more rounds. The model is with whoever carried out SaveRound."""

    state: RunState
    reason: str


JobPhase: TypeAlias = Waiting | Between | Gathering | CoolingDown | Running | Settling | Ended
