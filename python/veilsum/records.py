"""What names a round, and what is kept and told of it once it runs: plain frozen data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class RoundId:
    """Names one attempt at one round of one run. Rounds count from 1, attempts from 0."""

    run_id: str
    number: int
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class BufferedUpdate:
    """An update in the sum of a buffered run's round.

    Attributes:
        site: whose.
        version: the round after which the model was as the site received it; 0: the initial one.
        staleness: steps that the model had made since.
        weight: as the site gave it.
        counted: what it counted for, in the units of the record's total_weight.
    """

    site: str
    version: int
    staleness: int
    weight: int
    counted: int


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """What the coordinator keeps of a finished round.

    Attributes:
        digest: hex SHA-256 of the mean update; empty if aborted.
        model_hash: hex, of the model after this round.
        sites: whose updates are in the sum.
        dropped: site -> reason, for those invited, or late for the last round, and not in the sum.
        total_weight: sum of the weights; in a buffered run of what they counted for, in units of
            2 to the power of minus buffering.fraction_bits.
        metrics: weighted means over the sites that reported them.
        bytes_in: site -> bytes of its accepted upload.
        seconds: phase -> duration.
        refusals: site -> the signed refusal with which it left; secagg.open_refusal checks it.
        late: those of `sites` whose updates are of the round before, and made from its model.
        updates: of a buffered run, each update in the sum; a site may have several.
    """

    round: RoundId
    completed: bool
    reason: str
    digest: str
    model_hash: str
    sites: tuple[str, ...]
    dropped: Mapping[str, str]
    total_weight: int
    metrics: Mapping[str, float]
    bytes_in: Mapping[str, int]
    seconds: Mapping[str, float]
    refusals: Mapping[str, bytes] = field(default_factory=dict)
    late: tuple[str, ...] = ()
    updates: tuple[BufferedUpdate, ...] = ()


@dataclass(frozen=True, slots=True)
class RunEvent:
    """One line of `veilsum run watch`.

    kind: "phase" (a phase began), "site" (a site joined, delivered, declined or was dropped),
    "progress" (training), "round" (a round ended), "run" (the run ended).
    number: grows from event to event once the event is kept; 0 for progress, which is not.
    """

    run_id: str
    kind: Literal["phase", "site", "progress", "round", "run"]
    round_number: int = 0
    phase: str = ""
    site: str = ""
    detail: str = ""
    sites_in: int = 0
    sites_expected: int = 0
    bytes_in: int = 0
    seconds: float = 0.0
    fraction: float = 0.0
    digest: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    number: int = 0
