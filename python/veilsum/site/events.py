"""What can happen to a site's core. Frozen, so that a failing round can be stored and replayed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray
from typing_extensions import Buffer

from veilsum.control import RoundId, ToSite
from veilsum.model import ModelLayout
from veilsum.site.trainer import EvaluationResult, TrainingResult


@dataclass(frozen=True, slots=True)
class CoordinatorSent:
    """A message came down the Join stream."""

    message: ToSite


@dataclass(frozen=True, slots=True)
class ModelFetched:
    """The model of a round, one array per tensor in layout order. Nothing is verified yet."""

    round: RoundId
    layout: ModelLayout
    arrays: Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class ModelFetchFailed:
    """The coordinator did not hand out the model of a round."""

    round: RoundId
    reason: str


@dataclass(frozen=True, slots=True)
class SumFetched:
    """All of a round's sum is with its receiver. `state`: the bytes of the state of the server's
    optimizer, if they were asked for. Nothing is verified yet."""

    round: RoundId
    state: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class SumFetchFailed:
    """The coordinator did not hand out the sum of a round, or not what it should be."""

    round: RoundId
    reason: str


@dataclass(frozen=True, slots=True)
class LinksFetched:
    """The results that led to a round's model, the last one first. Nothing is verified yet."""

    round: RoundId
    links: tuple[bytes, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class AuditFetched:
    """What the site asked for to check a sum. Nothing is verified yet."""

    round: RoundId
    data: Buffer = field(repr=False)


@dataclass(frozen=True, slots=True)
class AuditFetchFailed:
    """The coordinator did not send it."""

    round: RoundId
    reason: str


@dataclass(frozen=True, slots=True)
class TrainingProgressed:
    """How far training is, 0 to 1."""

    round: RoundId
    fraction: float


@dataclass(frozen=True, slots=True)
class TrainingDone:
    """Training ended well. `evaluation` is of the model as received, before training."""

    round: RoundId
    result: TrainingResult
    evaluation: EvaluationResult


@dataclass(frozen=True, slots=True)
class TrainingFailed:
    """Training raised. The reason stays on this site: an exception's text may quote records."""

    round: RoundId
    reason: str


@dataclass(frozen=True, slots=True)
class UploadDone:
    """The coordinator holds the whole update and counts it."""

    round: RoundId


@dataclass(frozen=True, slots=True)
class UploadRefused:
    """The coordinator will not take the update."""

    round: RoundId
    reason: str


@dataclass(frozen=True, slots=True)
class Disconnected:
    """There was no connection for too long, or what came over it could not be read. Whatever
    round was running goes on without this site."""


SiteEvent = (
    CoordinatorSent
    | ModelFetched
    | ModelFetchFailed
    | SumFetched
    | SumFetchFailed
    | LinksFetched
    | AuditFetched
    | AuditFetchFailed
    | TrainingProgressed
    | TrainingDone
    | TrainingFailed
    | UploadDone
    | UploadRefused
    | Disconnected
)
