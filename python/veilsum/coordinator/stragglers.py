"""Sites that still work on a plain round that is over; see late.py for what comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from veilsum import plain
from veilsum.control import PlainPlan, RoundId, RunSpec
from veilsum.model import ModelLayout


@dataclass(frozen=True, slots=True)
class Stragglers:
    """Sites that still work on a plain round that is over.

    Attributes:
        round: that is over.
        model_hash: of the model they train from, 32 bytes; with the run it gives their plan.
        digest: of the round's mean, as of its record.
        sites: sorted.
    """

    round: RoundId
    model_hash: bytes
    digest: str
    sites: tuple[str, ...]

    def without(self, site: str) -> Stragglers:
        """Once one of them is not waited for any more."""
        return replace(self, sites=tuple(one for one in self.sites if one != site))

    def plan(self, spec: RunSpec, layout: ModelLayout) -> PlainPlan:
        """What they were invited with."""
        return plain.make_plan(spec, layout, self.model_hash)

    def to_document(self) -> dict[str, Any]:
        """As a standing holds it."""
        return {
            "run": self.round.run_id,
            "number": self.round.number,
            "model_hash": self.model_hash.hex(),
            "digest": self.digest,
            "sites": list(self.sites),
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Stragglers:
        """Inverse of to_document."""
        return cls(
            RoundId(document["run"], document["number"]),
            bytes.fromhex(document["model_hash"]),
            document["digest"],
            tuple(document["sites"]),
        )
