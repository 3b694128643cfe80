"""Masked rounds with a clip per tensor, straight and rotated."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from reference import ring_transform
from reference import secagg as reference
from support.secagg import Arrays, consortium, make_contributions, make_plan
from veilsum import _native, secagg
from veilsum.errors import ConfigError
from veilsum.model import ModelLayout
from veilsum.secagg.masks import MaskKeys
from veilsum.secagg.upload import encode_upload

CLIPS = (8.0, 0.08, 0.5)
SHAPES = {"dense": ((61, 50), np.float32), "norm": ((7,), np.float64), "half": ((1500,), "f2")}
rotated_or_not = pytest.mark.parametrize("block", [0, 1024, 4096])


def layered(seed: int) -> Arrays:
    """Layers of very different sizes, and one of integers between them."""
    draw = np.random.default_rng(seed)
    made: Arrays = {"steps": draw.integers(-9, 9, 3)}
    for (name, (shape, dtype)), clip in zip(SHAPES.items(), CLIPS, strict=True):
        made[name] = (draw.uniform(-1, 1, shape) * clip / 8).astype(dtype)
    return made


def plan_for(**changes: Any) -> secagg.Plan:
    layout = ModelLayout.from_arrays(layered(0))
    fields = {"clip": 8.0, "clips": CLIPS, "colluders": 0, "chunk_coordinates": 4096, **changes}
    return make_plan(4, layout=layout, **fields)


def on_grid(plan: secagg.Plan, per_tensor: list[Any]) -> np.ndarray:
    """Coordinates of group 1 from one value or array per tensor; 1 in gaps."""
    grid = np.ones(plan.layout.native.group_size(1))
    for (_, first, count), value in zip(plan.layout.native.offsets(1), per_tensor, strict=True):
        grid[first : first + count] = value
    return grid


def slow_steps(plan: secagg.Plan, contribution: secagg.Contribution) -> list[int]:
    values = on_grid(plan, [contribution.update[name].reshape(-1) for name in SHAPES])
    gaps = on_grid(plan, [0.0] * 3) == 1
    values[gaps] = 0
    gains = on_grid(plan, [(2 ** (plan.value_bits - 1) - 1) / clip for clip in CLIPS])
    return ring_transform.steps_of(
        values,
        gains * contribution.weight / plan.weight_cap,
        bytes(contribution.rounding),
        block=plan.hadamard,
        key=reference.rotation_key(plan.context),
    )


def words_of(plan: secagg.Plan, contribution: secagg.Contribution) -> list[int]:
    chunks = encode_upload(plan, contribution, MaskKeys(), update_id=0, threads=1).chunks
    _, stream, _ = plan.ring.streams
    words = np.zeros(stream.elements, np.uint32)
    own = chunks[1 : 1 + plan.ring.chunk_count(stream)]
    _native.fold_ring_chunks(words, [own], bits=stream.bits, chunk_coordinates=4096, threads=1)
    return _native.center_ring(words, stream.bits).tolist()


@pytest.mark.parametrize("isa", _native.supported_isas())
@rotated_or_not
def test_the_words_of_a_site_are_steps_of_each_tensors_own_size(isa: str, block: int) -> None:
    _native.use_isa(isa)
    plan = plan_for(hadamard=block)

    for contribution in make_contributions(plan, layered).values():
        assert words_of(plan, contribution) == slow_steps(plan, contribution)


@rotated_or_not
def test_every_tensor_is_decoded_by_its_own_clip(block: int) -> None:
    plan = plan_for(hadamard=block)
    contributions = make_contributions(plan, layered)

    result = secagg.plain_ring_sum(plan, contributions, plan.cohort)

    columns = zip(*(slow_steps(plan, one) for one in contributions.values()), strict=True)
    weight = sum(one.weight for one in contributions.values())
    scales = [plan.step_limit / clip for clip in CLIPS]
    means = ring_transform.values_of(
        [sum(column) for column in columns],
        np.ones(plan.layout.native.group_size(1)),
        block=block,
        key=reference.rotation_key(plan.context),
    ) * on_grid(plan, [plan.weight_cap / (scale * weight) for scale in scales])
    for name, (_, first, count) in zip(SHAPES, plan.layout.native.offsets(1), strict=True):
        mean = result.arrays[name]
        expected = means[first : first + count].astype(mean.dtype).reshape(mean.shape)
        np.testing.assert_array_equal(mean, expected)


@pytest.mark.parametrize("value_bits", [2, 8, 16, 24, 32])
@rotated_or_not
def test_the_masked_sum_is_the_plain_one(value_bits: int, block: int) -> None:
    plan = plan_for(value_bits=value_bits, hadamard=block)
    contributions = make_contributions(plan, layered)

    masked = secagg.run_in_process(
        plan, contributions, drop={"kyoto": "inputs"}, consortium=consortium()
    )

    assert masked.sites == ("basel", "lyon", "oslo")
    assert masked.digest == secagg.plain_ring_sum(plan, contributions, masked.sites).digest


@rotated_or_not
def test_a_small_layer_keeps_its_digits_beside_a_large_one(block: int) -> None:
    def error(plan: secagg.Plan) -> float:
        contributions = make_contributions(plan, layered)
        mean = secagg.plain_ring_sum(plan, contributions, plan.cohort).arrays["norm"]
        weights = np.array([one.weight for one in contributions.values()], float)
        exact = weights @ np.array([one.update["norm"] for one in contributions.values()])
        return float(np.linalg.norm(mean - exact / weights.sum()))

    assert error(plan_for(hadamard=block)) < 0.03 * error(plan_for(hadamard=block, clips=()))


def test_a_table_of_one_clip_changes_nothing() -> None:
    table, single = plan_for(clips=(8.0,) * 3), plan_for(clips=())
    contributions = make_contributions(table, layered)
    digests = {
        secagg.plain_ring_sum(plan, contributions, plan.cohort).digest for plan in (table, single)
    }

    assert len(digests) == 1


@pytest.mark.parametrize("weight", [1, 100])
def test_a_value_beyond_the_clip_of_its_own_tensor_is_refused(weight: int) -> None:
    plan = plan_for()
    contribution = make_contributions(plan, layered)["basel"]._replace(weight=weight)
    contribution.update["norm"][3] = 0.08
    words_of(plan, contribution)

    contribution.update["norm"][3] = -0.0801
    with pytest.raises(ConfigError, match=r"tensor 'norm' has 1 values beyond its limit of 0.08"):
        words_of(plan, contribution)


def test_a_manifest_gives_back_its_clips() -> None:
    plan = plan_for(hadamard=1024)

    again = secagg.Plan.from_bytes(plan.to_bytes(), roster=plan.roster)

    assert again == plan
    assert again.clips == CLIPS
    assert replace(plan, clips=()).hash != plan.hash
