"""T27: a member sends ring words that no update has: garbage, huge values, a weight over the cap.

The defence: the sum is held against the range that honest updates can have before anything is
published, and its weights against their cap. That an update is *useful* nothing checks: what is
within the clip and the cap is summed, whatever it does to the model.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from support.secagg import Federation, make_contributions, make_plan
from veilsum import _native, secagg
from veilsum._native import Secret
from veilsum.aggregate import secure_sum, step_sums
from veilsum.model import ModelLayout
from veilsum.secagg import site as site_module
from veilsum.secagg.upload import EncodedUpload, encode_upload

POISONER = "kyoto"


class Poisoned(Federation):
    """One member adds words of its choice to its own, under the same masks."""

    def __init__(self, words: dict[int, list[int]], plan: secagg.Plan | None = None) -> None:
        self._words = words
        super().__init__(plan or make_plan(4, metrics=()))

    def contribute(self, site: str) -> list[secagg.SiteEffect]:
        with pytest.MonkeyPatch.context() as dishonest:
            if site == POISONER:
                dishonest.setattr(site_module, "encode_upload", self._encode)
            return super().contribute(site)

    def _encode(self, plan, contribution, masks, *, update_id, threads, **_) -> EncodedUpload:
        honest = encode_upload(plan, contribution, masks, update_id=update_id, threads=threads)
        chunks = list(honest.chunks)
        for at, stream in enumerate(plan.ring.streams):
            words = np.zeros(stream.elements, np.uint64)
            _native.fold_ring_chunks(
                words,
                [[chunks[at]]],
                bits=stream.bits,
                chunk_coordinates=plan.chunk_coordinates,
                threads=1,
            )
            added = np.array(self._words.get(stream.group, []), np.uint64)
            words[: added.size] += added
            (chunks[at],) = _native.ring_word_chunks(
                words & np.uint64(2**stream.bits - 1),
                bits=stream.bits,
                group=stream.group,
                keys=[Secret.zeros(32)] * 2,  # a mask and its opposite: the chunk must say masked
                signs=[1, -1],
                generator=plan.mask_generator,
                plan_digest=plan.context,
                update_id=update_id,
                chunk_coordinates=plan.chunk_coordinates,
                threads=1,
            )
        return replace(honest, chunks=tuple(chunks))

    def reason(self) -> str:
        self.run()
        last = self.coordinator_effects[-1]
        return last.reason if isinstance(last, secagg.Aborted) else ""


HUGE = {1: [2**16 * 7]}


def test_without_the_range_check_one_site_writes_any_number_into_the_model(monkeypatch):
    monkeypatch.setattr(step_sums, "check_range", lambda *_: None)
    federation = Poisoned(HUGE)

    assert not federation.reason()
    honest = secagg.plain_ring_sum(
        federation.plan, federation.contributions, federation.plan.cohort
    )
    moved = abs(federation.result.arrays["weight"][0] - honest.arrays["weight"][0])
    assert moved > 4 * federation.plan.clip


def test_a_huge_value_ends_the_round():
    assert "tensor 'weight' is out of range" in Poisoned(HUGE).reason()


def test_garbage_ends_the_round():
    garbage = np.random.default_rng(27).integers(0, 2**60, 10).tolist()

    assert "is out of range" in Poisoned({1: garbage}).reason()


def test_without_the_bound_on_weights_one_site_is_the_whole_mean(monkeypatch):
    monkeypatch.setattr(secure_sum, "trip", lambda *_: None)
    federation = Poisoned({0: [10**6]})

    assert not federation.reason()
    assert federation.result.total_weight > 10**6


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([10**6], "the sum of the weights is out of range"),
        ([2**64 - 10**6], "the sum of the weights is out of range"),
        ([0, 1], "it counts 5 updates instead of 4"),
    ],
)
def test_a_weight_beyond_what_all_sites_may_have_ends_the_round(words, reason):
    assert reason in Poisoned({0: words}).reason()


@pytest.mark.parametrize("headroom", [2, 3, 4, 5])
def test_garbage_in_one_coordinate_passes_as_rarely_as_the_headroom_says(headroom):
    """Of words that are uniform in the ring 2^-h at most look like a sum of updates; d of them
    pass with 2^-(h d)."""
    layout = ModelLayout.from_arrays({"weight": np.zeros(1, np.float32)})
    value_bits = 8
    bits = (((2 * 4 * 127 + 1) << headroom) - 1).bit_length()
    plan = make_plan(
        4, layout=layout, value_bits=value_bits, headroom=headroom, ring_bits=bits, metrics=()
    )
    words = np.random.default_rng(headroom).integers(0, 2**bits, 40_000).astype(np.uint32)

    steps = _native.center_ring(words, bits)

    passing = (np.abs(steps) <= 4 * plan.step_limit).mean()
    exact = (2 * 4 * plan.step_limit + 1) / 2**bits
    assert exact <= 2**-headroom
    assert abs(passing - exact) < 5 * (exact / words.size) ** 0.5


def test_a_hostile_update_within_its_bounds_is_summed_like_any_other():
    """What is not claimed: masks hide a poisoned update as well as an honest one."""
    plan = make_plan(4, metrics=())
    contributions = make_contributions(plan)
    hostile = {"weight": np.full(10, plan.clip, np.float32), "steps": np.full(3, 2**20)}
    contributions[POISONER] = contributions[POISONER]._replace(update=hostile, weight=100)
    federation = Federation(plan, contributions=contributions)
    federation.run()

    assert federation.result.sites == plan.cohort
