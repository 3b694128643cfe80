"""What came out of a demo: one object behind the table, the report and the JSON line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from veilsum._version import __version__
from veilsum.control import RoundRecord, RunStatus
from veilsum.demo.baselines import Baselines, Scorecard
from veilsum.demo.data import Hospital
from veilsum.demo.folder import DemoFolder
from veilsum.demo.ledger import Traffic, kinds, total_bytes
from veilsum.demo.options import DemoOptions, Drop
from veilsum.demo.proof import RoundProof


@dataclass(frozen=True)
class RoundOutcome:
    """A finished round.

    Attributes:
        federated: the model after the round.
    """

    record: RoundRecord
    federated: Scorecard
    proof: RoundProof


@dataclass(frozen=True)
class DemoOutcome:
    """A demo that came to its end.

    Attributes:
        images, patients: of all sites together.
        by_extent: AUC of a nodule's size alone, which the model does not see.
        before: the initial model.
        ledger: site -> kind of message -> what left.
        seconds: the whole demo took.
    """

    options: DemoOptions
    folder: DemoFolder
    sites: tuple[Hospital, ...]
    images: int
    patients: int
    by_extent: float
    drop: Drop | None
    run: RunStatus
    before: Scorecard
    rounds: tuple[RoundOutcome, ...]
    baselines: Baselines
    ledger: Mapping[str, Mapping[str, Traffic]]
    seconds: float

    @property
    def federated(self) -> Scorecard:
        """The final model."""
        return self.rounds[-1].federated

    @property
    def digest(self) -> str:
        """Of the last round's mean update, hex."""
        return self.rounds[-1].record.digest

    @property
    def proof_holds(self) -> bool:
        """Whether every round's sum is, to the last bit, the sum of its updates."""
        return all(outcome.proof.holds for outcome in self.rounds)

    @property
    def problems(self) -> tuple[str, ...]:
        """Why the demo failed; empty if it did not."""
        return tuple(
            f"round {outcome.proof.round_number} was published with digest "
            f"{outcome.proof.published}, its updates sum to {outcome.proof.recomputed}"
            for outcome in self.rounds
            if not outcome.proof.holds
        )

    def document(self) -> dict[str, Any]:
        """For machines; as in result.json and as `--json` prints it."""
        return {
            "version": __version__,
            "masked": not self.options.plain,
            "codec": self.options.codec if self.options.plain else "ring",
            "seed": self.options.seed,
            "seconds": round(self.seconds, 1),
            "data": {
                "images": self.images,
                "patients": self.patients,
                "test_images": sum(len(site.test) for site in self.sites),
            },
            "sites": {site.name: self._site_document(site) for site in self.sites},
            "drop": self._drop_document(),
            "auc": {
                "federated": _card_document(self.federated),
                "centralized": _card_document(self.baselines.centralized),
                "alone_mean": {
                    "all": round(self.baselines.mean_alone_on_all, 4),
                    "own": round(self.baselines.mean_alone_on_own, 4),
                },
                "size_alone": round(self.by_extent, 4),
            },
            "rounds": [_round_document(outcome) for outcome in self.rounds],
            "bytes_by_kind": {
                kind: sum(
                    traffic[kind].size_bytes for traffic in self.ledger.values() if kind in traffic
                )
                for kind in kinds(self.ledger)
            },
            "run_id": self.run.run_id,
            "digest": self.digest,
            "model_hash": self.rounds[-1].record.model_hash,
            "proof_holds": self.proof_holds,
            "files": {
                "report": str(self.folder.report),
                "model": str(self.folder.model),
                "result": str(self.folder.result),
                "logs": str(self.folder.logs),
            },
        }

    def _site_document(self, site: Hospital) -> dict[str, Any]:
        alone = self.baselines.alone[site.name]
        return {
            "region": site.region,
            "train_images": len(site.train),
            "test_images": len(site.test),
            "auc_alone": {
                "own": round(alone.on_site[site.name], 4),
                "all": round(alone.on_all, 4),
            },
            "auc_federated": round(self.federated.on_site[site.name], 4),
            "auc_centralized": round(self.baselines.centralized.on_site[site.name], 4),
            "bytes_sent": total_bytes(self.ledger[site.name]),
            "sent": {
                kind: {"messages": sent.messages, "bytes": sent.size_bytes}
                for kind, sent in self.ledger[site.name].items()
            },
        }

    def _drop_document(self) -> dict[str, Any] | None:
        if self.drop is None:
            return None
        record = self.rounds[self.drop.round_number - 1].record
        later = [outcome.record.sites for outcome in self.rounds[self.drop.round_number :]]
        return {
            "site": self.drop.site,
            "round": self.drop.round_number,
            "in_the_sum": self.drop.site in record.sites,
            "reason": record.dropped.get(self.drop.site, ""),
            "back": any(self.drop.site in sites for sites in later),
        }


def _card_document(card: Scorecard) -> dict[str, float]:
    return {"all": round(card.on_all, 4), "own_mean": round(card.mean_on_site, 4)}


def _round_document(outcome: RoundOutcome) -> dict[str, Any]:
    record = outcome.record
    return {
        "number": record.round.number,
        "sites": list(record.sites),
        "dropped": dict(record.dropped),
        "auc": round(outcome.federated.on_all, 4),
        "metrics": {name: round(value, 6) for name, value in record.metrics.items()},
        "bytes": sum(record.bytes_in.values()),
        "seconds": {phase: round(took, 3) for phase, took in record.seconds.items()},
        "digest": record.digest,
        "recomputed": outcome.proof.recomputed,
        "model_hash": record.model_hash,
    }
