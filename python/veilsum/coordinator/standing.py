"""Where a run stands between two rounds: with its models and records, all that it takes to go on.

What happens after it is written down event by event, so a run is rebuilt from its standing and
those events (Coordinator.restore).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field

from veilsum import secagg
from veilsum.control import RoundId, RoundRecord
from veilsum.coordinator.events import RunSubmitted
from veilsum.coordinator.stragglers import Stragglers


@dataclass(frozen=True, slots=True)
class Standing:
    """A run's standing.

    Attributes:
        round: that comes next. Records, models and optimizer states of rounds before it belong to
            the standing; of later ones, and of this one, to what happened after it.
        data: what else the run's job remembers, in its own encoding.
    """

    round: RoundId
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class RestoredRun:
    """A run that had not ended when the coordinator's process did, as it was kept.

    Attributes:
        submitted: with the model and the optimizer's state that the standing's round begins with,
            or the run if it has no standing.
        records: of rounds and attempts before the standing's.
        standing: None: the run's turn had not come.
    """

    submitted: RunSubmitted
    records: tuple[RoundRecord, ...]
    standing: Standing | None


@dataclass(frozen=True, slots=True)
class JobMemory:
    """What the job of a synchronous run remembers from round to round.

    Attributes:
        cooling: whether a failed attempt came before.
        given_up: sites that a whole join time was waited for in vain.
        left_out: sites that are invited no more.
        previous: the round before, which the next one's plan names; None in a first or plain one.
        drawn: whom the failed attempt had invited.
        late: sites that still work on the round before.
    """

    cooling: bool
    given_up: tuple[str, ...]
    left_out: tuple[str, ...]
    previous: secagg.PreviousRound | None
    drawn: tuple[str, ...] = ()
    late: Stragglers | None = None

    def to_bytes(self) -> bytes:
        """As a standing holds it."""
        previous = self.previous.to_bytes().hex() if self.previous else None
        document = {
            "cooling": self.cooling,
            "given_up": _sorted(self.given_up),
            "left_out": _sorted(self.left_out),
            "previous": previous,
            "drawn": list(self.drawn),
            "late": self.late.to_document() if self.late else None,
        }
        return json.dumps(document).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> JobMemory:
        """Inverse of to_bytes, for what this coordinator itself has kept."""
        document = json.loads(data)
        previous, late = document["previous"], document["late"]
        return cls(
            cooling=document["cooling"],
            given_up=tuple(document["given_up"]),
            left_out=tuple(document["left_out"]),
            previous=secagg.PreviousRound.from_bytes(bytes.fromhex(previous)) if previous else None,
            drawn=tuple(document["drawn"]),
            late=Stragglers.from_document(late) if late else None,
        )


def _sorted(sites: Iterable[str]) -> list[str]:
    return sorted(sites, key=str.encode)
