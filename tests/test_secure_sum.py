"""The ring sum: what it adds, what it decodes, and what it refuses to publish."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.secagg import make_contributions, make_plan
from support.word_uploads import upload_of_words
from veilsum import _native, secagg
from veilsum._native import Secret
from veilsum.aggregate.ring_spec import METRIC_STEPS
from veilsum.aggregate.secure_sum import SecureSum, divide_half_even, round_to_bfloat16
from veilsum.errors import ConfigError, RoundAborted
from veilsum.model import ModelLayout
from veilsum.secagg.masks import MaskKeys
from veilsum.secagg.upload import encode_upload

CONTRIBUTORS, WEIGHT = 3, 120


@pytest.fixture
def plan() -> secagg.Plan:
    """Three sites; stream 1 is one tensor of 10 in 64 coordinates, stream 2 one of 3."""
    return make_plan(3)


def summed(plan: secagg.Plan, words: dict[int, list[int]]) -> SecureSum:
    total = SecureSum(plan.ring)
    total.fold(upload_of_words(plan, {0: [WEIGHT, CONTRIBUTORS, 0, 0], **words}))
    return total


def test_words_decode_to_the_weighted_mean(plan):
    mean = summed(plan, {1: [0, plan.step_limit, -plan.step_limit], 2: [360, -121, 60]}).finish(3)

    share = plan.weight_cap / WEIGHT
    expected = np.array([0, share, -share] + [0] * 7, np.float32)
    np.testing.assert_array_equal(mean.arrays[0], expected)
    assert mean.arrays[1].tolist() == [3, -1, 0]
    assert (mean.total_weight, mean.metrics) == (WEIGHT, {})


def test_masks_that_were_added_can_be_taken_away(plan):
    keys = [Secret.from_bytes(bytes([number]) * 32) for number in (1, 2, 3)]
    total = summed(plan, {1: [5, 6]})
    plain = summed(plan, {1: [5, 6]}).finish(3)

    total.add_masks(keys, [1, -1, 1])
    total.add_masks(keys, [-1, 1, -1])

    np.testing.assert_array_equal(total.finish(3).arrays[0], plain.arrays[0])


def test_one_mask_left_over_trips_the_range_check(plan):
    total = summed(plan, {})

    total.add_masks([Secret.from_bytes(b"\1" * 32)], [1])

    with pytest.raises(RoundAborted, match="not one that honest updates can have"):
        total.finish(3)


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_sum_at_the_bound_is_published_and_one_step_beyond_is_not(plan, group, sign):
    bound = {1: CONTRIBUTORS * plan.step_limit, 2: plan.integer_limit * WEIGHT}[group]

    summed(plan, {group: [0, sign * bound]}).finish(3)
    with pytest.raises(RoundAborted, match="is out of range"):
        summed(plan, {group: [0, sign * (bound + 1)]}).finish(3)


@pytest.mark.parametrize("sites", [3, 4, 8])
@pytest.mark.parametrize("value_bits", [2, 3, 8, 16, 24, 31, 32])
def test_the_largest_sum_that_a_plan_allows_decodes_exactly(sites, value_bits):
    """With a total weight of one full weight, and steps of one unit, the mean is the sum."""
    limit = 2 ** (value_bits - 1) - 1
    layout = ModelLayout.from_arrays({"weight": np.zeros(2)})
    plan = make_plan(
        sites, layout=layout, value_bits=value_bits, clip=float(limit), colluders=0, metrics=()
    )
    keys = [Secret.from_bytes(bytes([number]) * 32) for number in range(sites)]
    total = SecureSum(plan.ring)
    for number in range(sites):
        scalars = [plan.weight_cap if number == 0 else 0, 1]
        total.fold(upload_of_words(plan, {0: scalars, 1: [limit, -limit]}))
    total.add_masks(keys, [1] * sites)
    total.add_masks(keys, [-1] * sites)

    mean = total.finish(sites)

    assert [int(value) for value in mean.arrays[0]] == [sites * limit, -sites * limit]
    total.fold(upload_of_words(plan, {1: [1]}))
    with pytest.raises(RoundAborted, match="is out of range"):
        total.finish(sites)


def test_the_largest_sum_of_integers_that_a_plan_allows_decodes_exactly():
    layout = ModelLayout.from_arrays({"steps": np.zeros(2, np.int64)})
    largest = (2**62 - 1) // (3 * 100)
    plan = make_plan(3, layout=layout, integer_limit=largest, metrics=())
    words = 100 * largest

    total = SecureSum(plan.ring)
    for _ in range(3):
        total.fold(upload_of_words(plan, {0: [100, 1], 2: [words, -words]}))

    assert total.finish(3).arrays[0].tolist() == [largest, -largest]
    total.fold(upload_of_words(plan, {2: [1]}))
    with pytest.raises(RoundAborted, match="is out of range"):
        total.finish(3)


@st.composite
def wrapping_sums(draw) -> tuple[int, list[list[int]]]:
    """A width, and uploads of words whose sums all leave the signed range of that width."""
    bits = draw(st.integers(1, 64))
    count = draw(st.integers(1, 70))
    word = st.integers(-(2**bits), 2**bits)
    uploads = draw(st.lists(st.lists(word, min_size=count, max_size=count), max_size=4))
    sums = [sum(column) for column in zip(*uploads, strict=True)] or [0] * count
    last = [
        draw(st.sampled_from([-1, 1])) * (2 ** (bits - 1) + 1 + draw(st.integers(0, 2**bits)))
        for _ in sums
    ]
    # Beyond the range whatever the others are: what they sum to is taken away again.
    return bits, [*uploads, [one - total for one, total in zip(last, sums, strict=True)]]


@settings(max_examples=60, deadline=None)
@given(case=wrapping_sums(), mask=st.booleans())
def test_sums_that_leave_the_ring_wrap_as_integers_do(case, mask):
    """A plan never lets it come to this. The ring must still be one, or masks would not cancel."""
    bits, uploads = case
    count = len(uploads[0])
    sums = np.zeros(count, np.uint32 if bits <= 32 else np.uint64)
    key = [Secret.from_bytes(b"\7" * 32)]
    place = {"generator": "chacha20", "stream": 1, "first": 0, "bits": bits, "threads": 1}
    shape = {"bits": bits, "chunk_coordinates": 4096, "threads": 1}
    chunks = [
        _native.ring_word_chunks(
            np.array([word % 2**64 for word in words], np.uint64),
            group=1,
            keys=[],
            signs=[],
            generator="chacha20",
            plan_digest=bytes(32),
            update_id=0,
            **shape,
        )
        for words in uploads
    ]

    if mask:
        _native.add_masks(sums, key, [1], **place)
    _native.fold_ring_chunks(sums, chunks, **shape)
    if mask:
        _native.add_masks(sums, key, [-1], **place)

    half = 2 ** (bits - 1)
    exact = [sum(column) for column in zip(*uploads, strict=True)]
    assert not any(-half <= one < half for one in exact)
    wrapped = [(one + half) % 2**bits - half for one in exact]
    assert _native.center_ring(sums, bits).tolist() == wrapped


STEP = METRIC_STEPS
SCALARS = [
    ([WEIGHT, 2, 0, 0], "counts 2 updates instead of 3"),
    ([301, 3, 0, 0], "sum of the weights"),
    ([-1, 3, 0, 0], "sum of the weights"),
    ([0, 3, 0, 0], "all weights are 0"),
    ([WEIGHT, 3, 0, 121], "metric 'loss'"),
    ([WEIGHT, 3, 0, -1], "metric 'loss'"),
    ([WEIGHT, 3, 1, 0], "metric 'loss'"),
    ([WEIGHT, 3, 7 * 2**16 * STEP + 1, 7], "metric 'loss'"),
]


@pytest.mark.parametrize(("scalars", "reason"), SCALARS)
def test_scalars_that_honest_sites_cannot_have_sent_abort_the_round(plan, scalars, reason):
    with pytest.raises(RoundAborted, match=reason):
        summed(plan, {0: scalars}).finish(3)


def test_scalars_at_their_bounds_are_fine(plan):
    mean = summed(plan, {0: [300, 3, 300 * 2**16 * STEP, 300]}).finish(3)

    assert (mean.total_weight, mean.metrics) == (300, {"loss": 2.0**16})


@pytest.mark.parametrize("group", [1, 2])
def test_anything_in_a_gap_between_tensors_aborts_the_round(plan, group):
    with pytest.raises(RoundAborted, match="a gap between tensors is not zero"):
        summed(plan, {group: [0] * 20 + [1]}).finish(3)


def test_an_upload_with_a_chunk_too_few_is_not_folded(plan):
    total = summed(plan, {1: [5]})
    chunks = upload_of_words(plan, {0: [1, 1], 1: [7]})

    with pytest.raises(ConfigError, match="an upload has 3 chunks, got 2"):
        total.fold(chunks[:2])

    assert total.finish(3).arrays[0][0] == summed(plan, {1: [5]}).finish(3).arrays[0][0]


def test_the_order_of_folding_does_not_matter(plan):
    contributions = make_contributions(plan)
    uploads = [
        encode_upload(plan, one, MaskKeys(), update_id=0, threads=1).chunks
        for one in contributions.values()
    ]

    digests = set()
    for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        total = SecureSum(plan.ring)
        for number in order:
            total.fold(uploads[number])
        digests.add(b"".join(array.tobytes() for array in total.finish(3).arrays))
    assert len(digests) == 1


def test_a_mean_that_does_not_fit_half_precision_aborts_instead_of_turning_infinite():
    layout = ModelLayout.from_arrays({"half": np.zeros(3, np.float16)})
    plan = make_plan(3, layout=layout, clip=1e6, value_bits=4)

    with pytest.raises(RoundAborted, match="does not fit f16"):
        summed(plan, {1: [0, 3 * plan.step_limit]}).finish(3)


def test_an_integer_mean_that_does_not_fit_its_dtype_aborts():
    layout = ModelLayout.from_arrays({"small": np.zeros(3, np.int8)})
    plan = make_plan(3, layout=layout)

    assert summed(plan, {2: [127 * WEIGHT]}).finish(3).arrays[0][0] == 127
    with pytest.raises(RoundAborted, match="does not fit i8"):
        summed(plan, {2: [128 * WEIGHT]}).finish(3)


@given(
    sums=st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=8),
    divisor=st.integers(1, 2**62 - 1),
)
def test_integers_are_divided_half_to_even(sums, divisor):
    quotients = divide_half_even(np.array(sums, np.int64), divisor)

    assert quotients.tolist() == [round(Fraction(one, divisor)) for one in sums]


@pytest.mark.parametrize(
    ("total", "mean"), [(1, 0), (3, 2), (5, 2), (7, 4), (-1, 0), (-3, -2), (-5, -2)]
)
def test_halves_go_to_the_even_neighbour(total, mean):
    assert divide_half_even(np.array([total], np.int64), 2).tolist() == [mean]


def bfloat16_value(pattern: int) -> Fraction:
    (value,) = np.array([pattern << 16], np.uint32).view(np.float32).tolist()
    return Fraction(value)


def nearest_bfloat16(value: float) -> int:
    """Pattern of the nearest of the two neighbours, the even one on a tie."""
    (bits,) = np.array([abs(value)], np.float32).view(np.uint32).tolist()
    around = {
        pattern for pattern in ((bits >> 16) - 1, bits >> 16, (bits >> 16) + 1) if pattern >= 0
    }
    exact = Fraction(abs(value))
    best = min(around, key=lambda pattern: (abs(bfloat16_value(pattern) - exact), pattern & 1))
    return best | (0x8000 if math.copysign(1.0, value) < 0 else 0)


@given(st.floats(-1e30, 1e30) | st.floats(-2.0, 2.0))
def test_doubles_are_rounded_to_bfloat16_once(value):
    assert round_to_bfloat16(np.array([value])).tolist() == [nearest_bfloat16(value)]


@pytest.mark.parametrize("bit", [2.0**-40, -(2.0**-40), 0.0])
@pytest.mark.parametrize("base", [1.0, -1.0, 1.0 + 2**-7])
def test_a_value_next_to_a_tie_is_not_rounded_twice(base, bit):
    value = base * (1 + 2**-8) + bit

    assert round_to_bfloat16(np.array([value])).tolist() == [nearest_bfloat16(value)]
