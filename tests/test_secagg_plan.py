"""What a plan must hold before a round may begin, and what a site demands of it."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.secagg import NAMES, consortium, make_plan
from veilsum import _native, secagg
from veilsum.control import MaskGenerator, RunSpec
from veilsum.errors import ConfigError, DecodeError
from veilsum.model import ModelLayout
from veilsum.secagg.payload import SUITES
from veilsum.secagg.policy import Refusal
from veilsum.secagg.refusals import RefusalCode
from veilsum.secagg.thresholds import check_thresholds, share_threshold, smallest_ring, vote_quorum

H = bytes(32)


def planned(sites: int, **settings) -> secagg.Plan:
    layout = ModelLayout.from_arrays({"weight": np.zeros(3, np.float32)})
    return secagg.Plan.for_round(
        roster=consortium().roster,
        cohort=NAMES[:sites],
        spec=RunSpec("diagnosis", **settings),
        run_id="run-1",
        round_number=1,
        attempt=0,
        layout=layout,
        model_hash=H,
        previous_result=H,
        nonce=H,
    )


# (n, c, q, t available), as tabled for c = floor(n/3) and c = floor(n/5)
THRESHOLDS = [
    (3, 1, 3, 2),
    (4, 1, 3, 3),
    (5, 1, 4, 3),
    (7, 2, 5, 4),
    (10, 3, 7, 6),
    (12, 4, 9, 7),
    (20, 6, 14, 11),
    (50, 16, 34, 26),
    (200, 66, 134, 101),
    (12, 2, 8, 7),
    (50, 10, 31, 26),
]


@pytest.mark.parametrize(("sites", "colluders", "quorum", "available"), THRESHOLDS)
def test_quorum_and_thresholds_are_the_tabled_ones(sites, colluders, quorum, available):
    assert vote_quorum(sites, colluders) == quorum
    assert share_threshold("strict", sites, colluders) == quorum
    assert share_threshold("available", sites, colluders) == available


@given(sites=st.integers(3, 255), data=st.data())
def test_a_quorum_for_the_invited_is_one_for_any_subset_that_sends_keys(sites, data):
    colluders = data.draw(st.integers(0, sites))
    present = data.draw(st.integers(1, sites))

    assert 2 * vote_quorum(sites, colluders) > present + colluders


@given(sites=st.integers(3, 255), data=st.data())
def test_two_certified_survivor_sets_would_need_more_honest_votes_than_there_are(sites, data):
    """Colluders may vote twice, honest sites do not."""
    colluders = data.draw(st.integers(0, sites - 1))
    quorum = vote_quorum(sites, colluders)

    assert 2 * (quorum - colluders) > sites - colluders
    assert 2 * (quorum - 1 - colluders) <= sites - colluders  # and no smaller quorum does


@pytest.mark.parametrize(
    ("sites", "value_bits", "ring_bits"), [(12, 8, 14), (12, 16, 22), (50, 16, 24), (200, 24, 34)]
)
def test_the_ring_is_the_smallest_that_leaves_the_headroom(sites, value_bits, ring_bits):
    assert smallest_ring(sites, 2 ** (value_bits - 1) - 1, 2) == ring_bits


@given(sites=st.integers(3, 255), value_bits=st.integers(2, 32), headroom=st.integers(2, 8))
def test_the_ring_rule_holds_at_the_bound_and_not_one_bit_below(sites, value_bits, headroom):
    limit = 2 ** (value_bits - 1) - 1
    bits = smallest_ring(sites, limit, headroom)

    assert 2**bits >= 2**headroom * (2 * sites * limit + 1) > 2 ** (bits - 1)


def test_a_plan_at_the_ring_bound_is_accepted_and_one_bit_less_is_not():
    bound = smallest_ring(4, 2**15 - 1, 2)

    assert make_plan(4, ring_bits=bound).ring_bits == bound
    with pytest.raises(ConfigError, match=f"need a ring of {bound} to 64 bits, got {bound - 1}"):
        make_plan(4, ring_bits=bound - 1)


# (n, value bits, headroom) whose ring has all 64 bits, and one step further
LARGEST_RINGS = [
    ((4, 32, 30), {"sites": 5}, "5 sites with steps of 32 bits and 30 .* ring of 65 to 64 bits"),
    ((4, 31, 31), {"value_bits": 32}, "steps of 32 bits and 31 bits of headroom .* of 65 to 64"),
    ((8, 31, 30), {"headroom": 31}, "8 sites with steps of 31 bits and 31 bits .* of 65 to 64"),
]


@pytest.mark.parametrize(("bound", "further", "reason"), LARGEST_RINGS)
def test_the_largest_ring_is_planned_with_and_one_step_more_is_refused(bound, further, reason):
    at = dict(zip(("sites", "value_bits", "headroom"), bound, strict=True))

    plan = make_plan(**at, ring_bits=64)
    largest = plan.step_limit * len(plan.cohort)
    assert smallest_ring(len(plan.cohort), plan.step_limit, plan.headroom) == 64
    assert 2**plan.headroom * (2 * largest + 1) <= 2**64

    with pytest.raises(ConfigError, match=reason):
        make_plan(**{**at, **further}, ring_bits=64)


@pytest.mark.parametrize(
    ("value_bits", "sites"), [(2, 7), (3, 5), (8, 4), (16, 4), (24, 4), (31, 4), (32, 4)]
)
def test_one_site_more_than_a_ring_holds_is_refused(value_bits, sites):
    full = make_plan(sites, value_bits=value_bits).ring_bits

    with pytest.raises(
        ConfigError,
        match=f"{sites + 1} sites with steps of {value_bits} bits and 2 bits of headroom need "
        f"a ring of {full + 1} to 64 bits, got {full}",
    ):
        make_plan(sites + 1, value_bits=value_bits, ring_bits=full)


def test_a_plan_is_derived_from_the_settings_of_a_run():
    plan = planned(7, value_bits=12, weight_cap=500, metrics=("auc",), clip=0.5)

    assert (plan.colluders, plan.vote_quorum, plan.share_threshold) == (2, 5, 5)
    assert (plan.step_limit, plan.scale) == (2047, 4094.0)
    assert plan.ring_bits == smallest_ring(7, 2047, 2)
    assert plan.metrics == ("auc",)


def test_a_plan_for_part_of_the_roster_withstands_a_third_of_all_of_it():
    assert len(consortium().roster.sites) == 8

    assert [planned(sites).colluders for sites in (4, 5, 8)] == [2, 2, 2]
    with pytest.raises(ConfigError, match="3 updates with 2 colluders would show them the one"):
        planned(3)
    assert planned(3, colluders=1).colluders == 1


def test_the_available_profile_lowers_the_share_threshold_only():
    plan = planned(7, share_profile="available")

    assert (plan.vote_quorum, plan.share_threshold) == (5, 4)


def test_a_manifest_gives_back_the_same_plan():
    plan = make_plan(5, metrics=("loss", "auc"), overrange="clip", attempt=3)

    again = secagg.Plan.from_bytes(plan.to_bytes(), roster=plan.roster)

    assert again == plan
    assert (again.hash, again.context) == (plan.hash, plan.context)


def test_the_order_of_the_cohort_does_not_matter():
    plan = make_plan(4)

    assert replace(plan, cohort=plan.cohort[::-1]).hash == plan.hash


CHANGES = [
    {"task_id": "other"},
    {"run_id": "run-2"},
    {"round_number": 2},
    {"attempt": 1},
    {"model_hash": b"\1" * 32},
    {"previous_result": b"\1" * 32},
    {"task_hash": b"\1" * 32},
    {"nonce": b"\1" * 32},
    {"min_sites": 4},
    {"vote_quorum": 4, "share_threshold": 3},
    {"mask_generator": "aes256ctr"},
    {"ring_bits": 40},
    {"headroom": 3, "ring_bits": 40},
    {"clip": 2.0},
    {"clips": (1.0,)},
    {"overrange": "clip"},
    {"weight_cap": 99},
    {"integer_limit": 5},
    {"metrics": ("auc",)},
    {"metric_limit": 5},
    {"chunk_coordinates": 4096 * 4},
    {"hadamard": 4096},
    {"step_rule": b"any"},
    {"state_hash": b"\1" * 32},
    {"cohort": NAMES[1:5]},
]


@pytest.mark.parametrize("change", CHANGES, ids="+".join)
def test_every_field_of_a_plan_is_bound_into_the_context(change):
    assert make_plan(4, **change).context != make_plan(4).context


def test_another_roster_makes_another_context():
    plan = make_plan(4)
    older = replace(plan.roster, epoch=plan.roster.epoch + 1)

    assert replace(plan, roster=older).context != plan.context


def test_a_manifest_for_another_roster_is_refused():
    plan = make_plan(4)
    older = replace(plan.roster, epoch=plan.roster.epoch + 1)

    with pytest.raises(ConfigError, match="another roster"):
        secagg.Plan.from_bytes(plan.to_bytes(), roster=older)


@given(position=st.integers(0, 10**6), value=st.integers(1, 255))
def test_a_changed_manifest_is_refused_or_is_another_plan(position, value):
    plan = make_plan(4)
    manifest = bytearray(plan.to_bytes())
    manifest[position % len(manifest)] ^= value

    try:
        other = secagg.Plan.from_bytes(bytes(manifest), roster=plan.roster)
    except (ConfigError, DecodeError):
        return
    assert other.context != plan.context


def test_a_cut_or_lengthened_manifest_is_refused():
    manifest = make_plan(4).to_bytes()

    for data in (manifest[:-1], manifest + b"\0", b""):
        with pytest.raises(DecodeError):
            secagg.Plan.from_bytes(data, roster=consortium().roster)


FAULTS = [
    ({"cohort": NAMES[:2], "min_sites": 3, "vote_quorum": 2}, "3 sites or more"),
    ({"min_sites": 2}, "min_sites must be 3 to 4"),
    ({"min_sites": 5}, "min_sites must be 3 to 4"),
    ({"vote_quorum": 2, "share_threshold": 2}, "allows two survivor sets"),
    ({"vote_quorum": 5}, "only 4 sites are invited"),
    ({"share_threshold": 1}, "share_threshold must be 2"),
    ({"share_threshold": 4}, r"share_threshold must be 2 \(above the colluders\) to 3"),
    ({"colluders": 2, "vote_quorum": 4, "share_threshold": 2}, "share_threshold must be 3"),
    ({"colluders": 3, "vote_quorum": 4, "share_threshold": 4}, "one honest update"),
    ({"colluders": 4}, "colluders must be"),
    ({"cohort": (*NAMES[:3], "nobody")}, "outside the roster"),
    ({"cohort": (*NAMES[:3], NAMES[0])}, "twice"),
    ({"task_id": ""}, "a name must be"),
    ({"metrics": ("a", "a")}, "different names"),
    ({"round_number": 0}, "rounds count from 1"),
    ({"attempt": -1}, "attempt"),
    ({"nonce": b"short"}, "nonce must have 32 bytes"),
    ({"mask_generator": "rc4"}, "mask_generator must be one of"),
    ({"value_bits": 1}, "value_bits"),
    ({"value_bits": 33}, "value_bits"),
    ({"headroom": 1}, "headroom"),
    ({"ring_bits": 65}, "ring of"),
    ({"clip": 0.0}, "clip"),
    ({"clip": float("nan")}, "clip"),
    ({"clip": float("inf")}, "clip"),
    ({"clips": (1.0, 0.5)}, "one entry for each of the 1 floating-point tensors, got 2"),
    ({"clips": (0.5,)}, "clip must be 0.5, the largest of clips, got 1.0"),
    ({"clips": (float("inf"),)}, "clip must be positive and finite"),
    ({"overrange": "ignore"}, "overrange"),
    ({"weight_cap": 0}, "weight_cap"),
    ({"weight_cap": 2**31}, "weight_cap"),
    ({"integer_limit": 2**60}, "integer tensors"),
    ({"metric_limit": 2**40}, "sum of the metrics"),
    ({"integer_limit": 0}, "integer_limit"),
    ({"metric_limit": 0}, "metric_limit"),
    ({"metric_limit": 2**62, "metrics": ()}, "metric_limit"),
    ({"chunk_coordinates": 1000}, "chunk_coordinates"),
    ({"step_rule": bytes(1025)}, "step_rule must have at most 1024 bytes, got 1025"),
    ({"state_hash": b"short"}, "state_hash must have 32 bytes"),
]


@pytest.mark.parametrize(("change", "reason"), FAULTS, ids=lambda value: str(value)[:40])
def test_a_plan_that_cannot_protect_or_add_up_is_refused(change, reason):
    with pytest.raises(ConfigError, match=reason):
        make_plan(4, **change)


@pytest.mark.parametrize("sites", [255, 256])
def test_a_masked_round_has_no_more_sites_than_a_share_can_number(sites):
    numbers = {"min_sites": 3, "colluders": 0, "quorum": 200, "threshold": 200}

    with (
        pytest.raises(ConfigError, match="at most 255 sites, got 256")
        if sites > 255
        else nullcontext()
    ):
        check_thresholds(sites=sites, **numbers)


def test_sums_of_64_bit_words_are_accepted_up_to_their_bound():
    largest = (2**62 - 1) // (4 * 100)

    assert make_plan(4, integer_limit=largest).integer_limit == largest
    with pytest.raises(ConfigError, match="does not fit below"):
        make_plan(4, integer_limit=largest + 1)


POLICIES = [
    ({"min_sites": 4}, "min_sites is 3"),
    ({"min_invited": 5}, "the number of invited sites is 4, this site demands 5"),
    ({"min_colluders": 2}, "colluders is 1"),
    ({"min_vote_quorum": 4}, "vote_quorum is 3"),
    ({"max_weight_cap": 99}, "weight_cap is 100"),
    ({"task_ids": frozenset({"triage"})}, "task 'diagnosis'"),
    (
        {"mask_generators": frozenset({"aes256ctr"})},
        "masks of 'chacha20' are not allowed at this site",
    ),
]


@pytest.mark.parametrize(("demands", "reason"), POLICIES)
def test_a_plan_outside_the_sites_own_policy_is_refused(demands, reason):
    policy = secagg.LocalPolicy(**{"min_colluders": 1} | demands)

    with pytest.raises(Refusal, match=reason) as refusal:
        policy.check(make_plan(4))
    assert refusal.value.code == "policy"


def test_a_plan_at_the_limits_of_the_policy_is_accepted():
    policy = secagg.LocalPolicy(3, 1, 3, 100, frozenset({"diagnosis"}), frozenset({"chacha20"}), 4)

    assert policy.check(make_plan(4)) is None


@pytest.mark.parametrize("names", [frozenset({"chacha"}), frozenset()])
@pytest.mark.parametrize("key", ["mask_generators", "suites"])
def test_a_policy_that_no_plan_could_meet_is_refused(key, names):
    with pytest.raises(ConfigError, match=f"{key} must name some of"):
        secagg.LocalPolicy(**{key: names})


def test_a_suite_that_the_site_does_not_list_is_refused(monkeypatch):
    monkeypatch.setitem(SUITES, "VS-2", 2)
    policy = secagg.LocalPolicy(min_colluders=1, suites=frozenset({"VS-2"}))

    with pytest.raises(Refusal, match="suite is not allowed") as refusal:
        policy.check(make_plan(4))
    assert refusal.value.number is RefusalCode.SUITE


def test_a_manifest_with_an_unknown_generator_is_refused():
    known, other = make_plan(4).to_bytes(), make_plan(4, mask_generator="aes256ctr").to_bytes()
    (place,) = [at for at, pair in enumerate(zip(known, other, strict=True)) if len({*pair}) > 1]
    assert (known[place], other[place]) == (0, 1)

    with pytest.raises(DecodeError, match="mask generator 2 is unknown"):
        secagg.Plan.from_bytes(
            known[:place] + b"\2" + known[place + 1 :], roster=consortium().roster
        )


def test_a_plan_takes_its_generator_from_the_settings_of_a_run():
    assert planned(7).mask_generator == "chacha20"
    assert planned(7, mask_generator="aes256ctr").mask_generator == "aes256ctr"


def test_the_generators_of_plans_are_those_of_the_core():
    for name in get_args(MaskGenerator):
        words = np.zeros(1, np.uint32)
        _native.add_masks(words, [], [], generator=name, stream=1, first=0, bits=22, threads=1)
