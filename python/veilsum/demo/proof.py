"""The proof that a round's sum is the sum of its updates: the demo sums them again, in plain.

In a masked round the coordinator never sees an update. The demo, which is all sites at once,
does: it encodes every survivor's update with the same rounding, adds the encoded steps without
any mask, and compares digests. One wrong bit anywhere would make them differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from veilsum import _native, plain
from veilsum._native import Secret
from veilsum.control import RoundRecord, RunSpec
from veilsum.demo.notebook import Notebook
from veilsum.difference import model_difference
from veilsum.model import ModelLayout, result_digest
from veilsum.roster import Roster
from veilsum.secagg import Contribution, Plan, plain_ring_sum
from veilsum.site.contribution import LocalUpdate, PlainContribution
from veilsum.site.effects import Upload
from veilsum.site.rounding import SECRET_BYTES, rounding_secret
from veilsum.site.trainer import merged_metrics

_THREADS = 2


@dataclass(frozen=True, slots=True)
class RoundProof:
    """One round, summed twice.

    Attributes:
        round_number: which.
        sites: whose updates are in the sum.
        published: the digest that the coordinator published, hex.
        recomputed: the digest of the plain sum, hex.
    """

    round_number: int
    sites: tuple[str, ...]
    published: str
    recomputed: str

    @property
    def holds(self) -> bool:
        """Whether the two sums are the same to the last bit."""
        return self.published == self.recomputed


@dataclass(frozen=True)
class StartOfRound:
    """The model that a round's sites trained from, and its hash (hex)."""

    layout: ModelLayout
    arrays: Mapping[str, NDArray[Any]]
    model_hash: str


@dataclass(frozen=True)
class Prover:
    """Knows what all sites know.

    Args:
        notes: folder of the sites' notebooks.
        rounding_seeds: site -> its 32 bytes.
    """

    spec: RunSpec
    roster: Roster
    notes: Path
    rounding_seeds: Mapping[str, bytes]

    def prove(self, record: RoundRecord, start: StartOfRound) -> RoundProof:
        """Sums a completed round again.

        Raises:
            ConfigError: a site's note is missing or does not fit the round.
            RoundAborted: the plain sum fails a check that the masked one passed.
        """
        updates = {site: self._update(site, record, start) for site in record.sites}
        resum = self._ring_sum if self.spec.masked else self._mean
        return RoundProof(
            record.round.number, record.sites, record.digest, resum(record, start, updates)
        )

    def _update(self, site: str, record: RoundRecord, start: StartOfRound) -> LocalUpdate:
        notebook = Notebook(self.notes, site)
        trained = notebook.training(start.model_hash)
        metrics = merged_metrics(trained, notebook.evaluation(start.model_hash))
        seed = Secret.from_bytes(self.rounding_seeds[site])
        return LocalUpdate(
            model_difference(start.layout, trained.arrays, start.arrays),
            trained.weight,
            {name: metrics[name] for name in self.spec.metrics if name in metrics},
            rounding_secret(seed, record.round, site),
        )

    def _ring_sum(
        self, record: RoundRecord, start: StartOfRound, updates: Mapping[str, LocalUpdate]
    ) -> str:
        plan = Plan.for_round(
            roster=self.roster,
            cohort=_invited(record),
            spec=self.spec,
            run_id=record.round.run_id,
            round_number=record.round.number,
            attempt=record.round.attempt,
            layout=start.layout,
            model_hash=bytes.fromhex(start.model_hash),
            # Both make masks differ from round to round; there are none here.
            previous_result=bytes(SECRET_BYTES),
            nonce=bytes(SECRET_BYTES),
        )
        contributions = {
            site: Contribution(update.arrays, update.weight, update.metrics, update.rounding)
            for site, update in updates.items()
        }
        return plain_ring_sum(plan, contributions, record.sites, threads=_THREADS).digest

    def _mean(
        self, record: RoundRecord, start: StartOfRound, updates: Mapping[str, LocalUpdate]
    ) -> str:
        plan = plain.make_plan(self.spec, start.layout, bytes.fromhex(start.model_hash))
        codec = plain.codec_settings(plan.codec, plan.clip)
        mean = _native.MeanAggregator(
            start.layout.native,
            threads=_THREADS,
            spool="",
            streaming_max_abs=0.0,
            streaming_max_total_weight=0,
        )
        # In the opposite order, which must not matter.
        for site in sorted(updates, reverse=True):
            update = updates[site]
            encoded = PlainContribution(plan, record.round, site, threads=_THREADS)
            for upload in encoded.contribute(update):
                assert isinstance(upload, Upload)
                mean.add_chunks(
                    site,
                    update.weight,
                    upload.chunks,
                    codec=codec.number,
                    scale=codec.scale,
                    plan_digest=plan.digest,
                    update_id=upload.header.update_id,
                    chunk_coordinates=plan.chunk_coordinates,
                )
        return result_digest(start.layout, mean.finish())


def _invited(record: RoundRecord) -> tuple[str, ...]:
    return tuple(sorted({*record.sites, *record.dropped}, key=str.encode))
