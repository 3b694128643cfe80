"""What a round of TinyTrainers must come to, from who is in it and what they trained: by a plain
sum, without masks, files, connections or anybody who dies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from support.tiny_trainer import TinyTrainer
from veilsum import _native, plain, secagg
from veilsum._native import Secret
from veilsum.control import RoundRecord, RunSpec, TaskSettings
from veilsum.difference import model_difference
from veilsum.model import ModelLayout, result_digest
from veilsum.optimizers.applying import apply_mean, start_optimizer
from veilsum.roster import Roster
from veilsum.site.contribution import LocalUpdate, PlainContribution
from veilsum.site.effects import Upload
from veilsum.site.rounding import rounding_secret

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Reference:
    """Computes rounds of one run again.

    Args:
        numbers: site -> number of its TinyTrainer.
        rounding: site -> its rounding seed.
    """

    roster: Roster
    spec: RunSpec
    layout: ModelLayout
    numbers: Mapping[str, int]
    rounding: Mapping[str, bytes]

    def result(
        self, record: RoundRecord, before: Arrays, seeds: Mapping[str, int]
    ) -> tuple[str, dict[str, NDArray[Any]]]:
        """Digest of the mean, and the model after the round.

        Args:
            before: the model before it.
            seeds: site -> seed that it trained with.
        """
        updates = {site: self._update(site, record, before, seeds[site]) for site in record.sites}
        summed = self._ring_sum if self.spec.masked else self._mean
        digest, mean = summed(record, before, updates)
        rule = self.spec.server_optimizer.settings(self.spec.server_learning_rate)
        optimizer = start_optimizer(rule, self.layout, None, 1)
        return digest, apply_mean(optimizer, before, mean)

    def _update(self, site: str, record: RoundRecord, before: Arrays, seed: int) -> LocalUpdate:
        task = TaskSettings(seed=seed)
        trained = TinyTrainer(self.numbers[site]).fit(before, task, lambda _: None)
        return LocalUpdate(
            model_difference(self.layout, trained.arrays, before),
            trained.weight,
            {},
            rounding_secret(Secret.from_bytes(self.rounding[site]), record.round, site),
        )

    def _ring_sum(
        self, record: RoundRecord, before: Arrays, updates: Mapping[str, LocalUpdate]
    ) -> tuple[str, Arrays]:
        plan = secagg.Plan.for_round(
            roster=self.roster,
            cohort=tuple(sorted({*record.sites, *record.dropped})),
            spec=self.spec,
            run_id=record.round.run_id,
            round_number=record.round.number,
            attempt=record.round.attempt,
            layout=self.layout,
            model_hash=self._hash(before),
            # Both make masks differ from round to round; there are none here.
            previous_result=bytes(32),
            nonce=bytes(32),
        )
        contributions = {
            site: secagg.Contribution(update.arrays, update.weight, {}, update.rounding)
            for site, update in updates.items()
        }
        result = secagg.plain_ring_sum(plan, contributions, record.sites)
        return result.digest, result.arrays

    def _mean(
        self, record: RoundRecord, before: Arrays, updates: Mapping[str, LocalUpdate]
    ) -> tuple[str, Arrays]:
        model_hash = self._hash(before)
        plan = plain.make_plan(self.spec, self.layout, model_hash)
        codec = plain.codec_settings(plan.codec, plan.clip)
        mean = _native.MeanAggregator(
            self.layout.native,
            threads=1,
            spool="",
            streaming_max_abs=0.0,
            streaming_max_total_weight=0,
        )
        # In the opposite order, which must not matter.
        for site in sorted(updates, reverse=True):
            part = PlainContribution(plan, record.round, site, threads=1)
            for upload in part.contribute(updates[site]):
                assert isinstance(upload, Upload)
                mean.add_chunks(
                    site,
                    updates[site].weight,
                    upload.chunks,
                    codec=codec.number,
                    scale=codec.scale,
                    plan_digest=plan.digest,
                    update_id=upload.header.update_id,
                    chunk_coordinates=plan.chunk_coordinates,
                )
        tensors = mean.finish()
        return result_digest(self.layout, tensors), dict(zip(before, tensors, strict=True))

    def _hash(self, model: Arrays) -> bytes:
        return bytes.fromhex(result_digest(self.layout, model))
