"""Robust rules: equal to the papers' formulas, whatever the order, threads or instruction set."""

from __future__ import annotations

import random
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from reference import rules as reference
from support.every_rule import EVERY_RULE
from veilsum import (
    Aggregator,
    EncodedUpdate,
    ModelLayout,
    Streaming,
    _native,
    decode,
    encode,
    rules,
)
from veilsum.errors import ConfigError

ISAS = _native.supported_isas()


def sites(count: int) -> list[str]:
    return [f"site {number:04}" for number in range(count)]


def values_of(count: int, size: int, seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, size)).astype(dtype)


def filled(
    updates: list[Mapping[str, Any]] | list[EncodedUpdate], *, order: Any = None, **options: Any
) -> Aggregator:
    first = updates[0]
    layout = first.layout if isinstance(first, EncodedUpdate) else ModelLayout.from_arrays(first)
    aggregator = Aggregator(layout, **options)
    names = sites(len(updates))
    for number in order or range(len(updates)):
        aggregator.add(updates[number], weight=1, site=names[number])
    return aggregator


def vectors(rows: np.ndarray) -> list[Mapping[str, Any]]:
    return [{"w": row} for row in rows]


def result_of(rows: np.ndarray, rule: Any) -> np.ndarray:
    return filled(vectors(rows)).finish(rule=rule).arrays["w"]


# --- coordinate by coordinate ------------------------------------------------------------


@pytest.mark.parametrize("isa", ISAS)
def test_the_median_is_the_middle_value_or_the_exact_mean_of_two_rounded_once(isa):
    _native.use_isa(isa)
    for n in (*range(1, 36), 63, 64, 65, 100, 131):
        rows = values_of(n, 5000, seed=n)
        rows[:, :50] = rows[0, :50]  # ties
        rows[:, 50:90] = np.float32(2.0**-149) * np.arange(n)[:, None]  # subnormal numbers
        rows[:, 90:120] *= np.float32(2.0**125)  # whose sum is no float

        expected = np.median(rows.astype(np.float64), axis=0).astype(np.float32)
        assert result_of(rows, "median").tolist() == expected.tolist()


def test_zeros_lose_their_sign_and_the_median_is_never_minus_zero():
    rows = np.array([[-0.0, -0.0, 0.0], [-0.0, 0.0, -1.0], [-0.0, -0.0, 5.0]], np.float32)

    for rule in ("median", rules.Krum(byzantine=0), rules.TrimmedMean(trim=1)):
        assert not np.signbit(result_of(rows, rule)[:2]).any()


def grid_values(n: int, size: int, seed: int) -> np.ndarray:
    """Multiples of 2**-12: every sum of them is exact, so rounding once is the only rounding."""
    return (np.random.default_rng(seed).integers(-5000, 5000, (n, size)) / 4096).astype(np.float32)


def rounded(value: Fraction) -> float:
    return float(np.float32(value.numerator / value.denominator))


@pytest.mark.parametrize("isa", ISAS)
def test_means_of_what_is_kept_are_exact_sums_rounded_once(isa):
    _native.use_isa(isa)
    for n, f in ((3, 1), (5, 1), (8, 3), (20, 4), (32, 15), (33, 7), (64, 20), (70, 3)):
        rows = grid_values(n, 300, seed=n)
        exact = [[Fraction(float(x)) for x in column] for column in rows.T]

        trimmed = [rounded(sum(sorted(c)[f : n - f], Fraction(0)) / (n - 2 * f)) for c in exact]
        assert result_of(rows, rules.TrimmedMean(trim=f)).tolist() == trimmed
        nearest = []
        for column in exact:
            ordered = sorted(column)
            middle = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
            kept = sorted(ordered, key=lambda x, m=middle: abs(x - m))[: n - f]
            nearest.append(rounded(sum(kept, Fraction(0)) / (n - f)))
        assert result_of(rows, rules.Meamed(byzantine=f)).tolist() == nearest


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_coordinate_rules_equal_the_papers_formulas(dtype):
    rows = values_of(19, 9000, dtype=dtype)
    wide = rows.astype(np.float64)
    close = {"rtol": 1e-6, "atol": 1e-9}

    assert np.array_equal(result_of(rows, "median"), reference.median(wide).astype(dtype))
    trimmed = result_of(rows, rules.TrimmedMean(trim=4))
    np.testing.assert_allclose(trimmed, reference.trimmed_mean(wide, 4), **close)
    meamed = result_of(rows, rules.Meamed(byzantine=6))
    np.testing.assert_allclose(meamed, reference.meamed(wide, 6), **close)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n", range(1, 9))
def test_the_median_of_few_wide_updates_stays_in_its_scratch(n, isa):
    _native.use_isa(isa)
    rows = values_of(n, 9000, seed=n, dtype=np.float64)

    assert result_of(rows, "median").tolist() == np.median(rows, axis=0).tolist()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n", [2, 4, 32, 34])
def test_a_median_of_two_floats_does_not_overflow_between_them(n, isa):
    _native.use_isa(isa)
    largest = np.finfo(np.float32).max
    rows = np.zeros((n, 70), np.float32)
    rows[: n // 2 - 1], rows[n // 2 + 1 :] = -largest, largest
    middle = [float(np.float32(3.0e38)), float(np.float32(3.2e38))]
    rows[n // 2 - 1 : n // 2 + 1] = np.array(middle)[:, None]

    found = result_of(rows, rules.CoordinateMedian())

    assert set(found.tolist()) == {rounded(sum(map(Fraction, middle)) / 2)}


def test_a_median_of_doubles_neither_overflows_nor_loses_halves():
    rows = np.array([[1.5 * 2.0**1023, 5e-324, -1.7e308], [1.25 * 2.0**1023, 1e-323, 1.7e308]])

    assert result_of(rows, "median").tolist() == [1.375 * 2.0**1023, 1e-323, 0.0]


def test_a_share_to_trim_is_rounded_down():
    assert rules.TrimmedMean(trim=0.1).cut(19) == 1
    assert rules.TrimmedMean(trim=0.25).cut(8) == 2


def test_trimming_nothing_is_the_mean():
    aggregator = filled(vectors(grid_values(9, 5000, seed=3)))

    assert aggregator.finish(rule=rules.TrimmedMean(trim=0)).digest == aggregator.finish().digest


def test_integer_tensors_follow_coordinate_rules_in_integers():
    rng = np.random.default_rng(5)
    for n in (4, 7):
        columns = rng.integers(-(2**62), 2**62, (n, 40))
        columns[:, :20] %= 5
        aggregator = filled([{"n": row} for row in columns])

        def expected(of: Any, columns: Any = columns) -> list[int]:
            return [of([int(x) for x in column]) for column in columns.T]

        median = aggregator.finish(rule="median").arrays["n"].tolist()
        assert median == expected(reference.integer_median)
        trimmed = aggregator.finish(rule=rules.TrimmedMean(trim=1)).arrays["n"].tolist()
        assert trimmed == expected(lambda c: reference.integer_trimmed(c, 1))
        meamed = aggregator.finish(rule=rules.Meamed(byzantine=1)).arrays["n"].tolist()
        assert meamed == expected(lambda c: reference.integer_meamed(c, 1))


# --- by distance --------------------------------------------------------------------------


def selected(rows: np.ndarray, rule: Any) -> list[int]:
    result = filled(vectors(rows)).finish(rule=rule)
    assert result.selected is not None
    return [sites(len(rows)).index(site) for site in result.selected]


@pytest.mark.parametrize(("n", "f"), [(3, 0), (7, 1), (11, 2), (40, 8)])
def test_krum_and_its_kin_select_what_the_papers_select(n, f):
    rows = values_of(n, 3000, seed=n)
    wide = rows.astype(np.float64)

    best = reference.krum(wide, f)
    assert selected(rows, rules.Krum(byzantine=f)) == [best]
    assert result_of(rows, rules.Krum(byzantine=f)).tolist() == rows[best].tolist()
    chosen = reference.multi_krum(wide, f, n - f - 1)
    assert selected(rows, rules.MultiKrum(byzantine=f, select=n - f - 1)) == chosen
    mean = filled(vectors(rows[chosen])).finish().arrays["w"]
    result = result_of(rows, rules.MultiKrum(byzantine=f, select=n - f - 1))
    np.testing.assert_allclose(result, mean, rtol=1e-6, atol=1e-9)
    assert selected(rows, rules.Bulyan(byzantine=f)) == reference.bulyan_selection(wide, f)
    bulyan = result_of(rows, rules.Bulyan(byzantine=f))
    np.testing.assert_allclose(bulyan, reference.bulyan(wide, f), rtol=1e-6, atol=1e-9)


def test_of_equal_updates_krum_selects_the_site_whose_name_comes_first():
    rows = np.repeat(values_of(1, 100), 5, axis=0)

    assert selected(rows, rules.Krum(byzantine=1)) == [0]


def snapshot_of(rows: np.ndarray) -> Any:
    return _native.UpdateSnapshot(filled(vectors(rows))._native)


def test_krum_tells_distances_apart_that_differ_in_the_tenth_digit():
    # As floats the squared distances of the first two and of the last two would be the same.
    rows = np.zeros((3, 4096), np.float32)
    rows[0] = -1.0
    rows[0, 7:9] = -1.0005, -0.9995  # 4096.0000005 in place of 4096
    rows[2] = 1.0

    assert selected(rows, rules.Krum(byzantine=0)) == [1]
    assert selected(rows[[2, 1, 0]], rules.Krum(byzantine=0)) == [0]


def test_of_equally_near_updates_those_whose_names_come_first_are_mixed():
    # Two of four others are as near as each other; one of them is left out.
    rows = np.array([[0.0], [1.0], [-1.0], [50.0], [-60.0]], np.float32)
    distances = _native.squared_distances(snapshot_of(rows).gram(center=None))

    assert _native.nearest_rows(distances, count=2)[0] == [0, 1]
    assert _native.nearest_rows(distances, count=3)[0] == [0, 1, 2]
    back = _native.squared_distances(snapshot_of(rows[[0, 2, 1, 3, 4]]).gram(center=None))
    assert _native.nearest_rows(back, count=2)[0] == [0, 1]


def test_centred_clipping_moves_what_is_within_the_radius_by_no_more_than_it_is():
    rows = np.array([[0.25, 0.5], [0.5, -0.25]], np.float32)

    clipped = result_of(rows, rules.CenteredClipping(radius=100.0))

    np.testing.assert_allclose(clipped, [0.375, 0.125], rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_threads_and_instruction_sets_do_not_show_in_a_gram_matrix_of_many_ranges(dtype):
    # Products are added in doubles within a range of 65,536 coordinates, exactly beyond. Those of
    # doubles are rounded, on an instruction set that could fuse them, too.
    updates = vectors(values_of(3, 200_001, seed=8, dtype=dtype))
    grams = set()
    for isa in ISAS:
        _native.use_isa(isa)
        for threads in (1, 2, 3):
            native = filled(updates, threads=threads)._native
            grams.add(_native.UpdateSnapshot(native).gram(center=None).tobytes())

    assert len(grams) == 1


def test_the_gram_matrix_is_that_of_float64_to_fourteen_digits():
    for n, size in ((1, 10), (5, 70_000), (9, 131_073)):
        rows = (
            values_of(n, size, seed=n) * np.float32(2.0) ** np.arange(n, dtype=np.float32)[:, None]
        )
        gram = _native.UpdateSnapshot(filled(vectors(rows))._native).gram(center=None)

        wide = rows.astype(np.float64)
        scale = np.sqrt(np.outer((wide**2).sum(axis=1), (wide**2).sum(axis=1)))
        assert (np.abs(gram - wide @ wide.T) <= 1e-14 * scale).all()
        assert np.array_equal(gram, gram.T)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_iterations_on_the_gram_matrix_equal_those_on_the_updates(dtype):
    rows = values_of(12, 8000, dtype=dtype)
    rows[3] *= 50
    wide = rows.astype(np.float64)
    center = values_of(1, 8000, seed=9, dtype=dtype)
    close = {"rtol": 2e-6, "atol": 1e-7}

    result = result_of(rows, rules.GeometricMedian(iterations=6, smoothing=1e-3))
    expected = reference.geometric_median(wide, [1.0] * 12, 6, 1e-3)
    np.testing.assert_allclose(result, expected, **close)
    result = result_of(rows, rules.CenteredClipping(radius=20.0, iterations=4))
    expected = reference.centered_clipping(wide, 20.0, 4, np.zeros(8000))
    np.testing.assert_allclose(result, expected, **close)
    rule = rules.CenteredClipping(radius=20.0, iterations=4, center={"w": center[0]})
    expected = reference.centered_clipping(wide, 20.0, 4, center[0].astype(np.float64))
    np.testing.assert_allclose(result_of(rows, rule), expected, **close)


def test_the_geometric_median_counts_weights_as_its_paper_does():
    rows = values_of(5, 400)
    aggregator = Aggregator(ModelLayout.from_arrays({"w": rows[0]}), rule="geometric_median")
    for site, row, weight in zip("abcde", rows, (1, 2, 3, 4, 500), strict=True):
        aggregator.add({"w": row}, weight=weight, site=site)

    result = aggregator.finish()
    expected = reference.geometric_median(rows.astype(np.float64), [1, 2, 3, 4, 500], 128, 1e-6)
    np.testing.assert_allclose(result.arrays["w"], expected, rtol=1e-5, atol=1e-6)
    assert result.weights is not None
    assert abs(sum(result.weights.values()) - 1) < 1e-12


def test_norms_are_clipped_and_filtered_over_all_tensors_together():
    rows = values_of(6, 500)
    rows[4] *= 9
    updates = [{"a": row[:100], "b": row[100:], "n": np.array([7])} for row in rows]
    aggregator = Aggregator(ModelLayout.from_arrays(updates[0]))
    weights = [3, 1, 4, 1, 5, 9]
    for site, update, weight in zip("abcdef", updates, weights, strict=True):
        aggregator.add(update, weight=weight, site=site)
    wide = rows.astype(np.float64)

    clipped = aggregator.finish(rule=rules.NormClipping(max_norm=22.0)).arrays
    expected = reference.norm_clipping(wide, weights, 22.0)
    flat = np.concatenate([clipped["a"], clipped["b"]])
    np.testing.assert_allclose(flat, expected, rtol=1e-6, atol=1e-8)
    assert clipped["n"].tolist() == [7]
    filtered = aggregator.finish(rule=rules.NormFilter(multiplier=2.0))
    assert filtered.selected == ("a", "b", "c", "d", "f")
    aggregator.remove("e")
    assert filtered.digest == aggregator.finish().digest


# --- pre-steps ----------------------------------------------------------------------------


def test_nearest_neighbour_mixing_is_the_papers():
    rows = values_of(9, 700)
    mixed = reference.nearest_neighbor_mixing(rows.astype(np.float64), 2)

    result = result_of(rows, [rules.NearestNeighborMixing(byzantine=2), rules.CoordinateMedian()])
    np.testing.assert_allclose(result, reference.median(mixed), rtol=1e-6, atol=1e-8)
    best = reference.krum(mixed, 2)
    result = result_of(rows, [rules.NearestNeighborMixing(byzantine=2), rules.Krum(byzantine=2)])
    np.testing.assert_allclose(result, mixed[best], rtol=1e-6, atol=1e-8)


def test_buckets_are_means_of_sites_in_the_order_of_a_hash():
    rows = values_of(7, 300)
    groups = reference.buckets(sites(7), 3, 42)
    means = np.array([rows[group].astype(np.float64).mean(axis=0) for group in groups])

    result = result_of(rows, [rules.Bucketing(size=3, seed=42), rules.CoordinateMedian()])
    np.testing.assert_allclose(result, reference.median(means), rtol=1e-6, atol=1e-8)
    result = result_of(rows, [rules.Bucketing(size=3, seed=42), rules.Mean()])
    np.testing.assert_allclose(result, means.mean(axis=0), rtol=1e-6, atol=1e-8)


# --- the same bits ------------------------------------------------------------------------


def mixed_updates() -> list[Mapping[str, Any]]:
    updates = []
    for number in range(11):
        rng = np.random.default_rng(number)
        bf16 = torch.from_numpy(rng.normal(size=130)).to(torch.bfloat16).view(torch.uint16)
        updates.append({
            "a": (rng.normal(size=(3, 3000)) * 2.0 ** rng.integers(-20, 3)).astype(np.float32),
            "h": rng.normal(size=70).astype(np.float16),
            "n": rng.integers(-(2**62), 2**62, 6),
            "b": bf16.view(torch.bfloat16),
        })  # fmt: skip
    return updates


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_means_of_a_tile_of_zeros_are_zeros_and_nothing_of_another_tile(isa, dtype):
    _native.use_isa(isa)
    rows = values_of(7, 3 * 4096, dtype=dtype)
    rows[:, 4096:8192] = 0
    bucketed = [rules.Bucketing(size=2, seed=3), rules.CoordinateMedian()]

    found = filled([{"w": row} for row in rows], threads=1).finish(rule=bucketed).arrays["w"]

    assert not found[4096:8192].any()
    assert not np.signbit(found[4096:8192]).any()


@pytest.mark.parametrize("name", EVERY_RULE)
def test_order_threads_instruction_set_and_spool_do_not_show(name, tmp_path):
    updates = mixed_updates()
    rule = EVERY_RULE[name]
    digests = set()
    for seed, isa in enumerate(ISAS * 3):
        _native.use_isa(isa)
        order = random.Random(seed).sample(range(11), 11)
        spool = tmp_path if seed % 2 else None
        aggregator = filled(updates, order=order, threads=1 + seed % 3, spool=spool)
        digests.add(aggregator.finish(rule=rule).digest)

    assert len(digests) == 1


@pytest.mark.parametrize("codec", ["f16", "bf16", "int8", "ring22"])
def test_coordinate_rules_and_krum_over_encoded_updates_are_those_over_decoded_ones(codec):
    options = {"clip": 8.0} if codec.startswith("ring") else {}
    encoded = [encode({"w": row}, codec=codec, **options) for row in values_of(9, 20_000)]
    decoded = [decode(update) for update in encoded]

    for name in ("median", "trimmed", "meamed", "bulyan", "bucketed mixed trimmed"):
        rule = rules.Bulyan(byzantine=1) if name == "bulyan" else EVERY_RULE[name]
        assert filled(encoded).finish(rule=rule).digest == filled(decoded).finish(rule=rule).digest
    krum = rules.Krum(byzantine=1)
    assert filled(encoded).finish(rule=krum).digest == filled(decoded).finish(rule=krum).digest


def test_a_rule_sees_what_was_removed_and_added_since():
    rows = values_of(6, 100)
    aggregator = filled(vectors(rows), rule="median")
    aggregator.remove(sites(6)[0])

    assert aggregator.finish().arrays["w"].tolist() == np.median(rows[1:], axis=0).tolist()
    assert aggregator.finish().sites == tuple(sites(6)[1:])


def test_the_columns_of_a_thousand_updates_are_ordered_too():
    rows = values_of(1000, 200)

    expected = np.median(rows.astype(np.float64), axis=0).astype(np.float32)
    assert result_of(rows, "median").tolist() == expected.tolist()


# --- what a rule withstands ---------------------------------------------------------------


@pytest.mark.parametrize("evil", [1e38, -1e38, 3.0, 0.0])
def test_byzantine_updates_cannot_move_a_coordinate_beyond_the_honest_values(evil):
    honest = values_of(9, 600)
    rows = np.concatenate([honest, np.full((2, 600), evil, np.float32)])

    for rule in (
        rules.CoordinateMedian(),
        rules.TrimmedMean(trim=2),
        rules.Krum(byzantine=2),
        rules.Bulyan(byzantine=2),
        [rules.NearestNeighborMixing(byzantine=2), rules.TrimmedMean(trim=2)],
    ):
        result = result_of(rows, rule)
        inside = (result >= honest.min(axis=0)) & (result <= honest.max(axis=0))
        # What byzantine updates could do by lying among the honest ones they may.
        assert inside.all() or abs(evil) <= 3.0


@pytest.mark.parametrize("evil", [1e38, 1e30, -1e20])
def test_a_huge_value_in_one_update_costs_the_others_none_of_their_bits(evil):
    rows = values_of(11, 6000)
    rows[4, ::3] = evil
    wide = rows.astype(np.float64)
    close = {"rtol": 1e-5, "atol": 1e-6}

    trimmed = result_of(rows, rules.TrimmedMean(trim=2))
    np.testing.assert_allclose(trimmed, reference.trimmed_mean(wide, 2), **close)
    meamed = result_of(rows, rules.Meamed(byzantine=2))
    np.testing.assert_allclose(meamed, reference.meamed(wide, 2), **close)
    rows[4] = evil  # its neighbours are a matter of chance, and must not show
    wide = rows.astype(np.float64)
    mixed = reference.nearest_neighbor_mixing(wide, 2)
    chain = [rules.NearestNeighborMixing(byzantine=2), rules.TrimmedMean(trim=2)]
    np.testing.assert_allclose(result_of(rows, chain), reference.trimmed_mean(mixed, 2), **close)
    clipped = result_of(rows, rules.NormClipping(max_norm=50.0))
    np.testing.assert_allclose(clipped, reference.norm_clipping(wide, [1] * 11, 50.0), **close)
    clipped = result_of(rows, rules.CenteredClipping(radius=50.0))
    expected = reference.centered_clipping(wide, 50.0, 1, np.zeros(6000))
    np.testing.assert_allclose(clipped, expected, **close)


@pytest.mark.parametrize("evil", [1e38, -3e38, 1e6])
def test_byzantine_updates_move_the_result_of_distance_rules_by_little(evil):
    honest = values_of(9, 600)
    rows = np.concatenate([honest, np.full((2, 600), evil, np.float32)])
    radius = np.sqrt((honest.astype(np.float64) ** 2).sum(axis=1)).max()

    # A clipped step can be its radius long each time; Weiszfeld needs some steps to leave 1e38.
    for rule, steps in (
        (rules.GeometricMedian(), 3),
        (rules.CenteredClipping(radius=radius, iterations=3), 3),
        (rules.NormClipping(max_norm=radius), 1),
        (rules.NormFilter(multiplier=2.0), 1),
        (rules.MultiKrum(byzantine=2, select=9), 1),
    ):
        result = result_of(rows, rule).astype(np.float64)
        assert np.sqrt((result**2).sum()) <= steps * radius


def test_the_geometric_median_leaves_one_of_three_updates_behind_whatever_its_size():
    rows = np.concatenate([values_of(2, 600), np.full((1, 600), 3e38, np.float32)])

    result = result_of(rows, rules.GeometricMedian()).astype(np.float64)

    honest = rows[:2].astype(np.float64)
    assert np.linalg.norm(result) <= 3 * np.linalg.norm(honest, axis=1).max()


# --- refusals -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "n", "needed"),
    [
        (rules.TrimmedMean(trim=2), 4, "5 updates"),
        (rules.Meamed(byzantine=2), 4, "5 updates"),
        (rules.Krum(byzantine=2), 6, "7 updates"),
        (rules.MultiKrum(byzantine=1, select=5), 5, "6 updates"),
        (rules.Bulyan(byzantine=1), 6, "7 updates"),
        ([rules.NearestNeighborMixing(byzantine=2), rules.Mean()], 4, "5 updates"),
        ([rules.Bucketing(size=2, seed=1), rules.Krum(byzantine=1)], 8, "5 updates, there are 4"),
    ],
)
def test_too_few_updates_for_a_guarantee_are_refused_with_how_many_it_takes(rule, n, needed):
    aggregator = filled(vectors(values_of(n, 10)), rule=rule)

    with pytest.raises(ConfigError, match=needed):
        aggregator.finish()


@pytest.mark.parametrize("rule", ["median", "krum", "mixed median", "multi-krum"])
def test_weights_that_mean_nothing_to_a_rule_are_refused(rule):
    aggregator = Aggregator(ModelLayout.from_arrays({"w": np.zeros(3, np.float32)}))
    for number, site in enumerate("abcdefg"):
        aggregator.add({"w": np.ones(3, np.float32)}, weight=1 + number, site=site)

    with pytest.raises(ConfigError, match="counts every update the same, but weights are 1 to 7"):
        aggregator.finish(rule=EVERY_RULE[rule])


def test_gains_are_refused_by_every_rule_but_the_mean():
    aggregator = Aggregator(ModelLayout.from_arrays({"w": np.zeros(3, np.float32)}))
    aggregator.add({"w": np.ones(3, np.float32)}, weight=1, site="a", gain=0.5)

    with pytest.raises(ConfigError, match="takes no gains"):
        aggregator.finish(rule="median")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("average", "unknown rule 'average'"),
        ("krum", "rule 'krum' needs settings"),
        ("norm_filter", "needs settings"),
    ],
)
def test_a_name_that_does_not_say_enough_is_refused(name, message):
    with pytest.raises(ConfigError, match=message):
        Aggregator(ModelLayout.from_arrays({"w": np.zeros(3)}), rule=name)


@pytest.mark.parametrize(
    "given", [3, [], [rules.CoordinateMedian(), rules.Mean()], [rules.Bucketing(size=2, seed=1)]]
)
def test_what_is_no_rule_is_refused(given):
    with pytest.raises(ConfigError, match=r"cannot be|is not a pre-step"):
        rules.choose_rule(given)


@pytest.mark.parametrize(
    "make",
    [
        lambda: rules.TrimmedMean(trim=0.5),
        lambda: rules.TrimmedMean(trim=-1),
        lambda: rules.Meamed(byzantine=-1),
        lambda: rules.Krum(byzantine=True),
        lambda: rules.MultiKrum(byzantine=1, select=0),
        lambda: rules.Bulyan(byzantine=1.5),
        lambda: rules.GeometricMedian(iterations=0),
        lambda: rules.GeometricMedian(smoothing=0.0),
        lambda: rules.CenteredClipping(radius=float("nan")),
        lambda: rules.NormClipping(max_norm=-1.0),
        rules.NormFilter,
        lambda: rules.NormFilter(max_norm=1.0, multiplier=1.0),
        lambda: rules.Bucketing(size=0, seed=1),
        lambda: rules.NearestNeighborMixing(byzantine="1"),
    ],
)
def test_settings_that_cannot_work_are_refused(make):
    with pytest.raises(ConfigError):
        make()


def test_streaming_keeps_nothing_a_rule_could_be_applied_to():
    layout = ModelLayout.from_arrays({"w": np.zeros(3, np.float32)})
    bounds = Streaming(max_abs=1.0, max_total_weight=9)

    with pytest.raises(ConfigError, match="streaming keeps no updates"):
        Aggregator(layout, rule="median", streaming=bounds)
    aggregator = Aggregator(layout, streaming=bounds)
    aggregator.add({"w": np.ones(3, np.float32)}, weight=1, site="a")
    with pytest.raises(ConfigError, match="keeps no updates"):
        aggregator.finish(rule="median")


@pytest.mark.parametrize("name", ["mean", "median", "geometric_median", "norm_clipping"])
def test_a_rule_over_no_updates_is_refused(name):
    rule = rules.NormClipping(max_norm=1.0) if name == "norm_clipping" else name
    aggregator = Aggregator(ModelLayout.from_arrays({"w": np.zeros(3)}), rule=rule)

    with pytest.raises(ConfigError):
        aggregator.finish()


def test_a_filter_that_lets_nothing_through_is_an_error():
    with pytest.raises(ConfigError, match="no update has a norm of at most"):
        result_of(values_of(3, 10), rules.NormFilter(max_norm=1e-9))


@pytest.mark.parametrize("rule", ["median", "trimmed", "krum", "geometric median"])
def test_borrowed_arrays_that_changed_are_refused(rule):
    rows = values_of(7, 5000)
    aggregator = Aggregator(ModelLayout.from_arrays({"w": rows[0]}))
    for site, row in zip("abcdefg", rows, strict=True):
        aggregator.add({"w": row}, weight=1, site=site, copy=False)
    rows[2, 17] = np.nan

    with pytest.raises(ConfigError, match="arrays were changed"):
        aggregator.finish(rule=EVERY_RULE[rule])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_centre_must_be_finite_and_fit_the_layout(bad):
    rows = values_of(3, 10)
    center = {"w": np.full(10, bad, np.float32)}

    with pytest.raises(ConfigError, match="center"):
        result_of(rows, rules.CenteredClipping(radius=1.0, center=center))
    with pytest.raises(ConfigError):
        result_of(rows, rules.CenteredClipping(radius=1.0, center={"w": np.zeros(9, np.float32)}))


def test_doubles_far_beyond_floats_cost_their_site_the_round_and_nobody_else():
    rows = values_of(7, 100, dtype=np.float64)
    rows[2] = 1e308

    assert selected(rows, rules.Krum(byzantine=2)) != [2]
    result = result_of(rows, rules.CenteredClipping(radius=5.0, iterations=3))
    assert np.abs(result).max() < 10


@pytest.mark.parametrize("huge", [1e145, 1.7e308])
def test_doubles_far_beyond_floats_hide_no_other_byzantine_update(huge):
    honest = 1e-3 * values_of(8, 8, dtype=np.float64)
    rows = np.concatenate([np.full((1, 8), 20.0), honest, np.full((1, 8), huge)])
    radius = np.sqrt((honest**2).sum(axis=1)).max()

    for rule in (
        rules.Krum(byzantine=2),
        rules.MultiKrum(byzantine=2, select=8),
        [rules.NearestNeighborMixing(byzantine=2), rules.Krum(byzantine=2)],
        rules.CenteredClipping(radius=radius),
        rules.CenteredClipping(radius=radius, center={"w": honest[0]}),
        [rules.NearestNeighborMixing(byzantine=2), rules.CenteredClipping(radius=radius)],
    ):
        assert np.sqrt((result_of(rows, rule) ** 2).sum()) <= 3 * radius
    assert set(selected(rows, rules.MultiKrum(byzantine=2, select=8))) == set(range(1, 9))


def test_a_centre_too_large_for_distances_is_refused():
    rule = rules.CenteredClipping(radius=1.0, center={"w": np.full(10, 1e200)})

    with pytest.raises(ConfigError, match="too large for distances"):
        result_of(values_of(3, 10, dtype=np.float64), rule)


def test_a_spool_gives_the_same_result_as_memory(tmp_path: Path):
    updates = vectors(values_of(9, 30_000))

    for rule in EVERY_RULE.values():
        if rule is EVERY_RULE["bulyan"]:
            continue
        in_memory = filled(updates).finish(rule=rule)
        assert filled(updates, spool=tmp_path).finish(rule=rule).digest == in_memory.digest
