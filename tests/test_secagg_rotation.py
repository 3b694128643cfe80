"""Masked rounds whose updates are rotated before they are rounded."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import ring_transform
from reference import rotation as slow_rotation
from reference import secagg as reference
from support.secagg import (
    Arrays,
    Federation,
    consortium,
    forge,
    make_contributions,
    make_plan,
)
from support.word_uploads import upload_of_words
from veilsum import _native, secagg
from veilsum._native import Secret
from veilsum.aggregate import step_sums
from veilsum.aggregate.secure_sum import SecureSum, round_to_bfloat16
from veilsum.control import RunSpec
from veilsum.errors import ConfigError, DecodeError, RoundAborted
from veilsum.model import ModelLayout
from veilsum.secagg.masks import MaskKeys
from veilsum.secagg.messages import InputHeader, RoundOpen
from veilsum.secagg.receiver import InputReceiver
from veilsum.secagg.upload import encode_upload

BLOCKS = (1024, 4096)
every_block = pytest.mark.parametrize("block", BLOCKS)


def mixed(seed: int) -> Arrays:
    """A whole tile, a tail of 1024 + 256 + 64, gaps, and every kind of floating-point tensor."""
    draw = np.random.default_rng(seed)
    return {
        "first": draw.uniform(-1, 1, (61, 50)).astype(np.float32),
        "steps": draw.integers(-50, 50, 3).astype(np.int64),
        "bias": draw.uniform(-1, 1, 3).astype(np.float32),
        "wide": draw.uniform(-1, 1, 1500).astype(np.float64),
        "half": draw.uniform(-1, 1, 770).astype(np.float16),
    }


def vector(size: int, seed: int = 0) -> Arrays:
    draw = np.random.default_rng(seed)
    return {"weight": draw.uniform(-1, 1, size).astype(np.float32)}


def plan_for(arrays: Arrays, sites: int = 3, **changes: Any) -> secagg.Plan:
    layout = ModelLayout.from_arrays(arrays)
    return make_plan(sites, layout=layout, **{"clip": 8.0, "colluders": 0, **changes})


def group(layout: ModelLayout, arrays: Arrays) -> np.ndarray:
    """The coordinates of group 1, gaps 0."""
    grid = np.zeros(layout.native.group_size(1))
    for number, first, count in layout.native.offsets(1):
        grid[first : first + count] = arrays[layout.names[number]].reshape(-1)
    return grid


def steps_of(plan: secagg.Plan, chunks: tuple[bytes, ...]) -> list[int]:
    """Signed words of group 1 of an upload without masks."""
    (stream,) = (stream for stream in plan.ring.streams if stream.group == 1)
    first = plan.ring.chunk_count(plan.ring.streams[0])
    own = chunks[first : first + plan.ring.chunk_count(stream)]
    words = np.zeros(stream.elements, np.uint64)
    shape = {"bits": stream.bits, "chunk_coordinates": plan.chunk_coordinates, "threads": 1}
    if stream.bits <= 32:
        words = words.astype(np.uint32)
    _native.fold_ring_chunks(words, [own], **shape)
    return _native.center_ring(words, stream.bits).tolist()


def encoded(plan: secagg.Plan, contribution: secagg.Contribution) -> Any:
    return encode_upload(plan, contribution, MaskKeys(), update_id=0, threads=1)


def slow_steps(plan: secagg.Plan, contribution: secagg.Contribution) -> list[int]:
    grid = group(plan.layout, contribution.update)
    gain = (2 ** (plan.value_bits - 1) - 1) / plan.clip * contribution.weight / plan.weight_cap
    return ring_transform.steps_of(
        grid,
        np.full(grid.size, gain),
        bytes(contribution.rounding),
        block=plan.hadamard,
        key=reference.rotation_key(plan.context),
    )


# --- against the definition -------------------------------------------------------------


@pytest.mark.parametrize("isa", _native.supported_isas())
@every_block
def test_the_words_of_a_site_are_the_steps_of_its_rotated_update(isa: str, block: int) -> None:
    _native.use_isa(isa)
    plan = plan_for(mixed(0), hadamard=block, chunk_coordinates=4096)

    for contribution in make_contributions(plan, mixed).values():
        chunks = encoded(plan, contribution).chunks

        assert steps_of(plan, chunks) == slow_steps(plan, contribution)


@every_block
def test_the_sum_is_rotated_back_once_and_rounded_once(block: int) -> None:
    plan = plan_for(mixed(0), hadamard=block, chunk_coordinates=4096)
    contributions = make_contributions(plan, mixed)

    result = secagg.plain_ring_sum(plan, contributions, plan.cohort)

    columns = zip(*(slow_steps(plan, one) for one in contributions.values()), strict=True)
    total = np.array([sum(column) for column in columns], np.float64)
    back = slow_rotation.unrotate(total, block, reference.rotation_key(plan.context))
    weight = sum(one.weight for one in contributions.values())
    means = back * (plan.weight_cap / (plan.scale * weight))
    for number, first, count in plan.layout.native.offsets(1):
        mean = result.arrays[plan.layout.names[number]]
        expected = means[first : first + count].astype(mean.dtype).reshape(mean.shape)
        np.testing.assert_array_equal(mean, expected)


def test_integers_weights_and_metrics_are_not_rotated() -> None:
    plans = [plan_for(mixed(0), hadamard=block) for block in (0, *BLOCKS)]
    contributions = make_contributions(plans[0], mixed)

    results = [secagg.plain_ring_sum(plan, contributions, plan.cohort) for plan in plans]

    for result in results[1:]:
        np.testing.assert_array_equal(result.arrays["steps"], results[0].arrays["steps"])
        assert result.metrics == results[0].metrics != {}
        assert result.total_weight == results[0].total_weight


def test_bfloat16_tensors_are_rotated_too() -> None:
    def arrays(seed: int) -> Arrays:
        draw = np.random.default_rng(seed)
        return {"brain": round_to_bfloat16(draw.uniform(-1, 1, 300))}

    layout = ModelLayout.from_bytes(_native.Layout([("brain", "bf16", (300,))]).to_bytes())
    plan = make_plan(3, layout=layout, clip=8.0, colluders=0, hadamard=4096, value_bits=24)
    contributions = make_contributions(plan, arrays)

    result = secagg.plain_ring_sum(plan, contributions, plan.cohort)

    exact = sum(
        one.weight * (one.update["brain"].astype(np.uint32) << 16).view(np.float32).astype(float)
        for one in contributions.values()
    ) / sum(one.weight for one in contributions.values())
    mean = (result.arrays["brain"].astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_allclose(mean, exact, atol=2**-8)


# --- masked = plain ------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    sites=st.integers(3, 6),
    value_bits=st.integers(2, 32),
    size=st.sampled_from([1, 64, 65, 1023, 1024, 4096, 4097, 9000]),
    block=st.sampled_from(BLOCKS),
    overrange=st.sampled_from(["refuse", "clip"]),
    data=st.data(),
)
def test_the_masked_sum_of_rotated_updates_is_the_plain_one(
    sites: int, value_bits: int, size: int, block: int, overrange: str, data: st.DataObject
) -> None:
    plan = plan_for(
        vector(size),
        sites,
        value_bits=value_bits,
        hadamard=block,
        overrange=overrange,
        clip=0.25 if overrange == "clip" else 8.0,
        chunk_coordinates=4096,
    )
    contributions = make_contributions(plan, lambda seed: vector(size, seed))
    spare = sites - plan.fewest_survivors
    lost = data.draw(st.lists(st.sampled_from(plan.cohort), max_size=spare, unique=True))
    stages = ("keys", "shares", "inputs", "votes", "unmask")
    drop = {site: data.draw(st.sampled_from(stages)) for site in lost}

    masked = secagg.run_in_process(plan, contributions, drop=drop, consortium=consortium())
    plain = secagg.plain_ring_sum(plan, contributions, masked.sites)

    assert masked.digest == plain.digest
    assert masked.total_weight == plain.total_weight


@pytest.mark.parametrize("generator", ["chacha20", "aes256ctr"])
@every_block
@pytest.mark.parametrize("value_bits", [2, 8, 16, 28, 32])
def test_masked_and_plain_agree_with_a_dropout_at_many_widths(
    value_bits: int, block: int, generator: str
) -> None:
    plan = plan_for(mixed(0), 4, value_bits=value_bits, hadamard=block, mask_generator=generator)
    contributions = make_contributions(plan, mixed)

    masked = secagg.run_in_process(
        plan, contributions, drop={"kyoto": "inputs"}, consortium=consortium()
    )

    assert masked.sites == ("basel", "lyon", "oslo")
    assert masked.digest == secagg.plain_ring_sum(plan, contributions, masked.sites).digest


def test_every_level_and_number_of_threads_gives_the_same_digest() -> None:
    plan = plan_for(mixed(0), hadamard=4096, chunk_coordinates=4096)
    contributions = make_contributions(plan, mixed)

    digests = set()
    for isa in _native.supported_isas():
        _native.use_isa(isa)
        for threads in (1, 3):
            result = secagg.plain_ring_sum(plan, contributions, plan.cohort, threads=threads)
            digests.add(result.digest)
    assert len(digests) == 1


@pytest.mark.parametrize("arrays", [mixed, lambda seed: vector(9000, seed)])
def test_decoding_in_small_pieces_gives_the_same_digest(arrays: Any, monkeypatch: Any) -> None:
    """Tensors begin, end and continue across the pieces, which are rotated back one by one."""
    plan = plan_for(arrays(0), hadamard=4096)
    contributions = make_contributions(plan, arrays)
    whole = secagg.plain_ring_sum(plan, contributions, plan.cohort)

    monkeypatch.setattr(step_sums, "_BLOCK", 4096)

    assert secagg.plain_ring_sum(plan, contributions, plan.cohort).digest == whole.digest


# --- how good it is ----------------------------------------------------------------------


@every_block
@pytest.mark.parametrize("value_bits", [8, 12, 16, 20])
def test_the_mean_is_within_the_rounding_of_the_steps(value_bits: int, block: int) -> None:
    size = 9000
    plan = plan_for(vector(size), 4, value_bits=value_bits, hadamard=block)
    contributions = make_contributions(plan, lambda seed: vector(size, seed))

    result = secagg.plain_ring_sum(plan, contributions, plan.cohort)

    weights = np.array([one.weight for one in contributions.values()], float)
    updates = np.array([one.update["weight"] for one in contributions.values()], float)
    error = result.arrays["weight"] - weights @ updates / weights.sum()
    unit = plan.weight_cap / (plan.scale * weights.sum())  # a step of the sum, in model units
    # Rotations keep lengths, so the error has the length of the rounding: below one step per
    # site and coordinate at worst, and a variance of at most 1/4 step^2 each. Besides there are
    # the roundings of 24-bit floats.
    floats = 2.0**-20
    assert np.linalg.norm(error) <= np.sqrt(size + 64) * (4 * unit + floats)
    assert np.sqrt(np.mean(error**2)) <= np.sqrt(4 * 1 / 4) * unit + floats


def test_a_spike_fits_a_clip_that_it_is_far_beyond() -> None:
    """Spread over 4096 coordinates, a spike of 63 clips is 63/64 of a clip in each of them."""
    arrays = {"weight": np.zeros(4096, np.float32)}
    arrays["weight"][1234] = 63.0
    straight, rotated = (plan_for(arrays, clip=1.0, hadamard=block) for block in (0, 4096))
    contributions = make_contributions(rotated, lambda seed: arrays)

    with pytest.raises(ConfigError, match=r"tensor 'weight' has 1 values beyond its limit of 1"):
        secagg.plain_ring_sum(straight, contributions, straight.cohort)

    mean = secagg.run_in_process(rotated, contributions, consortium=consortium()).arrays["weight"]
    assert abs(mean[1234] - 63) < 0.1
    assert np.abs(np.delete(mean, 1234)).max() < 0.01


# --- values beyond the clip ------------------------------------------------------------------


def aligned(plan: secagg.Plan, size: float) -> Arrays:
    """Every value is ±size/64, and together they are one rotated coordinate of `size`."""
    values = np.zeros(4096)
    values[77] = size
    rotation = {"block": 4096, "key": plan.rotation_key, "first": 0, "threads": 1}
    _native.rotate(values, inverse=True, **rotation)
    return {"weight": values.astype(np.float32)}


def one_of(plan: secagg.Plan, arrays: Arrays, weight: int = 100) -> secagg.Contribution:
    return secagg.Contribution(arrays, weight, {}, Secret.from_bytes(b"\1" * 32))


@pytest.mark.parametrize("weight", [1, 50, 100])
def test_values_within_the_clip_that_line_up_beyond_it_are_refused(weight: int) -> None:
    plan = plan_for(vector(4096), clip=1.0, hadamard=4096)

    assert encoded(plan, one_of(plan, aligned(plan, 0.99), weight)).clipped == 0
    values = aligned(plan, 1.01)
    assert np.abs(values["weight"]).max() < 0.02
    with pytest.raises(ConfigError, match="1 values of the rotated update are beyond its limit"):
        encoded(plan, one_of(plan, values, weight))


def test_with_clipping_a_rotated_value_is_cut_to_the_clip_and_counted() -> None:
    plan = plan_for(vector(4096), clip=1.0, hadamard=4096, overrange="clip")

    made = encoded(plan, one_of(plan, aligned(plan, 5.0)))

    assert made.clipped == 1
    steps = steps_of(plan, made.chunks)
    assert steps[77] == plan.step_limit
    assert max(map(abs, steps[:77] + steps[78:])) <= 1
    harmless = encoded(plan, one_of(plan, aligned(plan, 0.5))).chunks
    assert [len(chunk) for chunk in made.chunks] == [len(chunk) for chunk in harmless]


def test_with_clipping_values_are_counted_before_the_rotation_and_after_it() -> None:
    plan = plan_for(vector(4096), clip=1.0, hadamard=4096, overrange="clip")
    arrays = {"weight": np.zeros(4096, np.float32)}
    arrays["weight"][5] = 1e30  # cut to 64 clips, a clip in every rotated coordinate

    made = encoded(plan, one_of(plan, arrays))

    # As a float the cut value is a hair above 64 clips, and so is what becomes of it.
    assert made.clipped == 1 + 4096
    assert {abs(step) for step in steps_of(plan, made.chunks)} <= {
        plan.step_limit - 1,
        plan.step_limit,
    }


@pytest.mark.parametrize("overrange", ["refuse", "clip"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_whatever_the_rule(
    overrange: str, value: float
) -> None:
    plan = plan_for(vector(4096), hadamard=4096, overrange=overrange)
    arrays = vector(4096)
    arrays["weight"][9] = value

    with pytest.raises(ConfigError, match="'weight' has 1 values that are not finite"):
        encoded(plan, one_of(plan, arrays))


def test_an_update_of_weight_0_is_all_zeros() -> None:
    plan = plan_for(vector(5000), hadamard=1024)

    assert set(steps_of(plan, encoded(plan, one_of(plan, vector(5000), 0)).chunks)) == {0}


# --- the coordinator's checks --------------------------------------------------------------


def summed(plan: secagg.Plan, words: list[int]) -> SecureSum:
    """Sums of three sites with one full weight in all; group 1 is given, rotated."""
    total = SecureSum(plan.ring)
    groups = [stream.group for stream in plan.ring.streams]
    given = dict(zip(groups, ([plan.weight_cap, 3], words), strict=True))
    total.fold(upload_of_words(plan, given))
    return total


@pytest.mark.parametrize("value_bits", [2, 16, 31, 32])
@every_block
def test_the_largest_sum_that_a_plan_allows_is_rotated_back_exactly(
    value_bits: int, block: int
) -> None:
    """All words at the bound are one value of sqrt(block) times as much; a unit is a step."""
    limit = 2 ** (value_bits - 1) - 1
    arrays = {"weight": np.zeros(block)}
    plan = plan_for(arrays, value_bits=value_bits, clip=float(limit), hadamard=block, metrics=())
    bound = 3 * limit

    (mean,) = summed(plan, [bound] * block).finish(3).arrays

    sign = slow_rotation.sign(0, reference.rotation_key(plan.context))
    assert mean.tolist() == [sign * bound * int(block**0.5)] + [0.0] * (block - 1)
    with pytest.raises(RoundAborted, match="the rotated update is out of range"):
        summed(plan, [bound] * (block - 1) + [bound + 1]).finish(3)


def test_words_between_tensors_are_held_against_their_range_too() -> None:
    plan = plan_for({"weight": np.zeros(65, np.float32)}, hadamard=4096, metrics=())
    bound = 3 * plan.step_limit

    summed(plan, [0] * 127 + [bound]).finish(3)
    with pytest.raises(RoundAborted, match="the rotated update is out of range"):
        summed(plan, [0] * 127 + [-bound - 1]).finish(3)


def test_a_mask_left_over_trips_the_range_check_of_the_rotated_sum() -> None:
    plan = plan_for(vector(4096), hadamard=4096, metrics=())
    total = summed(plan, [1, 2, 3])
    scalars = total._words[0].copy()

    total.add_masks([Secret.from_bytes(b"\1" * 32)], [1])
    total._words[0][:] = scalars

    with pytest.raises(RoundAborted, match="the rotated update is out of range"):
        total.finish(3)


def masked_chunks(plan: secagg.Plan, rotation_block: int) -> list[bytes]:
    """Group 1 of an upload, with or without what the plan says about rotation."""
    chunks, _ = _native.encode_ring_chunks(
        plan.layout.native,
        list(vector(100).values()),
        bits=plan.ring_bits,
        gains=np.ones(1),
        limits=np.ones(0 if rotation_block else 1),
        clip=True,
        rounding=None,
        keys=[Secret.from_bytes(b"\1" * 32)],
        signs=[1],
        generator=plan.mask_generator,
        plan_digest=plan.context,
        update_id=0,
        chunk_coordinates=plan.chunk_coordinates,
        threads=1,
        rotation_block=rotation_block,
        rotation_key=plan.rotation_key,
        rotated_limit=1.0,
    )
    return chunks


@pytest.mark.parametrize(("planned", "sent"), [(0, 4096), (4096, 0)])
def test_chunks_must_say_whether_they_are_rotated_as_the_plan_does(planned: int, sent: int) -> None:
    plan = plan_for(vector(100), hadamard=planned)
    header = InputHeader(plan.context, "basel", bytes(32), (), bytes(32))
    masks = MaskKeys([Secret.from_bytes(b"\1" * 32)], [1])
    scalars, *_ = encode_upload(
        plan, one_of(plan, vector(100)), masks, update_id=0, threads=1
    ).chunks
    receiver = InputReceiver(plan, "basel", header, 0)
    receiver.add(scalars)

    with pytest.raises(DecodeError, match="flags"):
        receiver.add(*masked_chunks(plan, sent))
    receiver.add(*masked_chunks(plan, planned))


# --- the plan --------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [64, 256, 1, 2048, 8192, -1024, True, 1024.0, None])
def test_a_rotation_of_another_size_is_refused(block: Any) -> None:
    with pytest.raises(ConfigError, match="hadamard must be 0, 1024 or 4096, got"):
        make_plan(4, hadamard=block)
    with pytest.raises(ConfigError, match="hadamard must be 0, 1024 or 4096, got"):
        RunSpec("diagnosis", hadamard=block)


def test_a_plain_run_has_no_rotation() -> None:
    with pytest.raises(ConfigError, match="hadamard is for masked runs"):
        RunSpec("diagnosis", masked=False, hadamard=4096)


def _with_code(plan: secagg.Plan, code: int) -> bytes:
    """The plan's manifest, with another number for the rotation."""
    behind = 4 + len(plan.step_rule) + 32
    manifest = plan.to_bytes()
    return manifest[: -1 - behind] + bytes([code]) + manifest[-behind:]


@pytest.mark.parametrize(("block", "code"), [(0, 0), (1024, 1), (4096, 2)])
def test_a_manifest_names_the_rotation_and_gives_it_back(block: int, code: int) -> None:
    plan = make_plan(4, hadamard=block)
    manifest = plan.to_bytes()

    assert manifest == _with_code(make_plan(4), code)
    assert secagg.Plan.from_bytes(manifest, roster=plan.roster) == plan


def test_a_site_takes_no_part_in_a_round_with_a_rotation_that_it_does_not_know() -> None:
    plan = make_plan(4, hadamard=4096)
    federation = Federation(plan)
    opened = federation.hold("round-open", to="basel")
    unknown = _with_code(plan, 3)

    with pytest.raises(DecodeError, match="rotation 3 is unknown"):
        secagg.Plan.from_bytes(unknown, roster=plan.roster)
    (effect,) = federation.sites["basel"].handle(forge(RoundOpen, opened, manifest=unknown))

    assert isinstance(effect, secagg.Withdraw)
    assert "rotation 3 is unknown" in effect.reason


def test_the_key_of_the_rotation_follows_from_all_that_names_the_attempt() -> None:
    plan = make_plan(4, hadamard=4096)
    others = [
        replace(plan, **change)
        for change in (
            {"nonce": b"\1" * 32},
            {"attempt": 1},
            {"round_number": 2},
            {"task_id": "triage"},
            {"model_hash": b"\1" * 32},
            {"hadamard": 1024},
        )
    ]

    assert plan.rotation_key == reference.rotation_key(plan.context)
    assert len({one.rotation_key for one in (plan, *others)}) == 1 + len(others)


def test_a_plan_takes_its_rotation_from_the_settings_of_a_run() -> None:
    plan = make_plan(4)

    derived = secagg.Plan.for_round(
        roster=plan.roster,
        cohort=plan.cohort,
        spec=RunSpec("diagnosis", hadamard=1024),
        run_id="run-1",
        round_number=1,
        attempt=0,
        layout=plan.layout,
        model_hash=plan.model_hash,
        previous_result=plan.previous_result,
        nonce=plan.nonce,
    )

    assert derived.hadamard == derived.ring.hadamard == 1024
