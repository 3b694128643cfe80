"""Whole rounds: against the slow reference, against the plain sum, and with every dropout."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from fractions import Fraction

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import secagg as reference
from support.secagg import (
    Arrays,
    Federation,
    consortium,
    fixed_entropy,
    make_contributions,
    make_plan,
    read,
    small_arrays,
)
from veilsum import _native, secagg
from veilsum.errors import ConfigError, RoundAborted
from veilsum.model import ModelLayout
from veilsum.secagg import merkle
from veilsum.secagg.masks import MaskKeys
from veilsum.secagg.messages import ShareRelay
from veilsum.secagg.thresholds import share_threshold, vote_quorum
from veilsum.secagg.upload import encode_upload

STAGES = ("keys", "shares", "inputs", "votes", "unmask")

# --- against the reference ------------------------------------------------------------------


class ReferenceSite:
    """One site's secrets, rebuilt from the same entropy in the same order."""

    def __init__(self, site: str, context: bytes, entropy, threshold: int) -> None:
        def draw(size: int) -> bytes:
            return bytes(entropy(size))

        self.site = site
        name = reference.prefixed(site)
        self.mask_seed = reference.derive(context, draw(32), "hedge/m", name)
        self.self_seed = reference.derive(context, draw(32), "hedge/b", name)
        self.channel = draw(32)
        self.mask_coefficients = draw(32 * (threshold - 1))
        self.self_coefficients = draw(32 * (threshold - 1))
        self.private = reference.mask_private(self.mask_seed, context, site)
        self.public = reference.public(self.private)


def chunk_words(chunks: tuple[bytes, ...], group: int, bits: int, count: int) -> list[int]:
    """Words of a group, read from the layout of a chunk alone."""
    words: list[int] = []
    for chunk in chunks:
        if int.from_bytes(chunk[12:16], "little") == group:
            here = int.from_bytes(chunk[24:28], "little")
            packed = int.from_bytes(chunk[64 : 64 + -(-here * bits // 8)], "little")
            words += [(packed >> (at * bits)) % 2**bits for at in range(here)]
    assert len(words) == count
    return words


def payload_digests(federation: Federation, kind: str) -> dict[str, bytes]:
    payloads = federation.payloads(kind)
    return {site: hashlib.sha256(payload).digest() for site, payload in payloads.items()}


@pytest.mark.parametrize("generator", ["chacha20", "aes256ctr"])
@pytest.mark.parametrize(("sites", "value_bits"), [(4, 8), (4, 16), (4, 29), (7, 14), (7, 16)])
def test_a_round_with_a_dropout_is_word_for_word_the_reference_round(sites, value_bits, generator):
    plan = make_plan(sites, value_bits=value_bits, mask_generator=generator)
    gone = plan.cohort[2]
    federation = Federation(plan, seed=value_bits)
    federation.hold("masked-input", origin=gone)
    federation.from_coordinator(federation.coordinator.lost(gone, "is gone"))
    federation.run()

    t1 = reference.chain("T1", plan.context, payload_digests(federation, "key-advert"))
    t2 = reference.chain("T2", t1, payload_digests(federation, "share-deal"))
    known = {
        site: ReferenceSite(
            site,
            plan.context,
            fixed_entropy(value_bits * 1000 + number),
            plan.share_threshold,
        )
        for number, site in enumerate(plan.cohort)
    }
    self_keys = {s: reference.self_key(t2, one.self_seed, s) for s, one in known.items()}
    pairs = {
        (u, v): reference.pair_key(t2, known[u].private, u, v, known[v].public)
        for u, v in itertools.permutations(plan.cohort, 2)
    }
    uploads = {
        site: effect
        for site, effect in federation.site_effects
        if isinstance(effect, secagg.UploadInput)
    }
    for stream in plan.ring.streams:
        shape = (stream.group, stream.bits, stream.elements)
        masked = {site: chunk_words(up.chunks, *shape) for site, up in uploads.items()}
        plain = {site: plain_words(plan, federation, site, *shape) for site in plan.cohort}
        for site in plan.cohort:
            peers = {v: pairs[site, v] for v in plan.cohort if v != site}
            assert masked[site] == reference.masked_words(
                plain[site], stream.bits, stream.group, site, self_keys[site], peers, generator
            )
        survivors = {site: words for site, words in masked.items() if site != gone}
        total = reference.unmasked_sum(
            survivors,
            stream.bits,
            stream.group,
            self_keys,
            {(site, gone): pairs[site, gone] for site in survivors},
            generator,
        )
        assert total == signed_sum([plain[site] for site in survivors], stream.bits)
        if stream.group == 1:
            (_, first, count), *_ = plan.layout.native.offsets(1)
            assert_mean(plan, federation.result, total[first : first + count])


def plain_words(plan, federation, site, group, bits, count) -> list[int]:
    encoded = encode_upload(
        plan, federation.contributions[site], MaskKeys(), update_id=0, threads=1
    )
    return chunk_words(encoded.chunks, group, bits, count)


def signed_sum(columns: list[list[int]], bits: int) -> list[int]:
    half = 2 ** (bits - 1)
    return [(sum(words) + half) % 2**bits - half for words in zip(*columns, strict=True)]


def assert_mean(plan, result, total: list[int]) -> None:
    scale = Fraction(plan.step_limit) / Fraction(plan.clip)
    for mean, steps in zip(result.arrays["weight"].tolist(), total, strict=True):
        exact = Fraction(steps) * plan.weight_cap / (scale * result.total_weight)
        assert abs(Fraction(mean) - exact) <= abs(exact) * Fraction(1, 2**23)


@pytest.mark.parametrize("sites", [3, 4, 5])
def test_every_deal_is_byte_for_byte_the_reference_deal_and_is_relayed_with_its_proof(sites):
    plan = make_plan(sites)
    federation = Federation(plan)
    relay = federation.hold("share-relay", to="basel")
    t1 = reference.chain("T1", plan.context, payload_digests(federation, "key-advert"))
    headers = federation.payloads("share-deal")
    known = {
        site: ReferenceSite(site, plan.context, fixed_entropy(1000 + number), plan.share_threshold)
        for number, site in enumerate(plan.cohort)
    }
    ends = {site: (site, reference.public(one.channel)) for site, one in known.items()}

    relayed = dict(zip(plan.cohort, read(ShareRelay, relay).deals, strict=True))
    for dealer, one in known.items():
        shares = zip(
            plan.cohort,
            reference.deal(one.mask_seed, one.mask_coefficients, range(1, sites + 1)),
            reference.deal(one.self_seed, one.self_coefficients, range(1, sites + 1)),
            strict=True,
        )
        entries = []
        for receiver, mask, own in shares:
            key = reference.box_key(t1, one.channel, ends[dealer], ends[receiver])
            box = reference.seal(key, t1, dealer, receiver, mask + own)
            commitments = (
                reference.share_commitment(kind, t1, dealer, receiver, share)
                for kind, share in (("m", mask), ("b", own))
            )
            entries.append((*commitments, box))
        root = reference.dealt_root(entries)
        deal = relayed[dealer]

        assert headers[dealer] == reference.share_deal(plan.context, dealer, t1, root)
        assert deal.header.payload == headers[dealer]
        assert (
            deal.share.mask_commitment,
            deal.share.self_commitment,
            deal.share.box,
        ) == entries[0]
        merkle.check_inclusion(root, sites, 0, deal.share.entry.leaf, deal.proof)


def test_dealt_shares_rebuild_both_seeds_in_the_reference_field():
    plan = make_plan(4)
    one = ReferenceSite("basel", plan.context, fixed_entropy(5), plan.share_threshold)
    indices = [1, 2, 3, 4]

    native = _native.deal_shares(
        _native.Secret.from_bytes(one.mask_seed),
        plan.share_threshold,
        indices,
        _native.Secret.from_bytes(one.mask_coefficients),
    )

    slow = reference.deal(one.mask_seed, one.mask_coefficients, indices)
    assert [bytes(share) for share in native] == slow
    assert reference.combine({1: slow[0], 3: slow[2], 4: slow[3]}) == one.mask_seed


# --- against the plain sum --------------------------------------------------------------------


def vector(size: int):
    return lambda seed: {
        "weight": np.random.default_rng(seed).uniform(-1, 1, size).astype(np.float32)
    }


@settings(max_examples=25, deadline=None)
@given(
    sites=st.integers(3, 6),
    value_bits=st.integers(2, 32),
    size=st.sampled_from([1, 2, 63, 64, 65, 511, 512, 513, 1023, 1024, 1025]),
    generator=st.sampled_from(["chacha20", "aes256ctr"]),
    data=st.data(),
)
def test_the_masked_sum_is_the_plain_sum(sites, value_bits, size, generator, data):
    layout = ModelLayout.from_arrays(vector(size)(0))
    plan = make_plan(
        sites, value_bits=value_bits, layout=layout, colluders=0, mask_generator=generator
    )
    contributions = make_contributions(plan, vector(size))
    spare = sites - plan.fewest_survivors
    lost = data.draw(st.lists(st.sampled_from(plan.cohort), max_size=spare, unique=True))
    drop = {site: data.draw(st.sampled_from(STAGES)) for site in lost}

    masked = secagg.run_in_process(plan, contributions, drop=drop, consortium=consortium())
    plain = secagg.plain_ring_sum(plan, contributions, masked.sites)

    assert masked.digest == plain.digest
    assert masked.metrics == plain.metrics
    assert masked.total_weight == plain.total_weight


@pytest.mark.parametrize("value_bits", range(2, 33))
def test_masks_of_aes_cancel_at_every_width_a_plan_can_ask_for(value_bits):
    layout = ModelLayout.from_arrays(vector(700)(0))
    plans = [
        make_plan(4, value_bits=value_bits, layout=layout, mask_generator=generator)
        for generator in ("aes256ctr", "chacha20")
    ]
    contributions = make_contributions(plans[0], vector(700))

    aes, chacha = (
        secagg.run_in_process(plan, contributions, drop={"kyoto": "inputs"}) for plan in plans
    )

    assert aes.sites == ("basel", "lyon", "oslo")
    assert aes.digest == secagg.plain_ring_sum(plans[0], contributions, aes.sites).digest
    assert aes.digest == chacha.digest  # the sum does not depend on what hid its parts


def test_models_of_several_chunks_and_dtypes_add_up_on_any_number_of_threads():
    def arrays(seed: int) -> Arrays:
        rng = np.random.default_rng(seed)
        return {
            "a": rng.uniform(-1, 1, (3, 3000)).astype(np.float32),
            "count": rng.integers(0, 99, (5,)).astype(np.uint8),
            "half": rng.uniform(-1, 1, (70,)).astype(np.float16),
            "scalar": np.float64(rng.uniform(-1, 1)).reshape(()),
            "brain": rng.integers(0x3C00, 0x3F80, (9,)).astype(np.uint16),
            "none": np.zeros((0, 4), np.float32),
            "long": rng.integers(-(2**20), 2**20, (4100,)).astype(np.int64),
        }

    dtypes = {"a": "f32", "count": "u8", "half": "f16", "scalar": "f64", "brain": "bf16"}
    native = _native.Layout(
        [
            (name, dtypes.get(name, "i64" if name == "long" else "f32"), array.shape)
            for name, array in arrays(0).items()
        ]
    )
    layout = ModelLayout.from_bytes(native.to_bytes())
    plan = make_plan(4, layout=layout, chunk_coordinates=4096, colluders=0)
    contributions = make_contributions(plan, arrays)

    one = secagg.run_in_process(
        plan, contributions, drop={"kyoto": "inputs"}, consortium=consortium()
    )
    two = secagg.run_in_process(
        plan, contributions, drop={"kyoto": "keys"}, consortium=consortium(), threads=2
    )
    plain = secagg.plain_ring_sum(plan, contributions, one.sites)

    assert one.digest == two.digest == plain.digest
    for name, array in arrays(0).items():
        assert one.arrays[name].shape == array.shape
        assert one.arrays[name].dtype == array.dtype
    step = plan.weight_cap / (plan.scale * one.total_weight)
    assert_weighted_mean(one, contributions, "a", tolerance=3 * step)
    assert_weighted_mean(one, contributions, "long", tolerance=0.5)


def assert_weighted_mean(result, contributions, name: str, tolerance: float) -> None:
    chosen = [contributions[site] for site in result.sites]
    weights = [one.weight for one in chosen]
    exact = np.average([one.update[name] for one in chosen], axis=0, weights=weights)
    np.testing.assert_allclose(
        result.arrays[name].astype(float), exact, rtol=0, atol=tolerance * 1.001
    )


def test_weights_and_metrics_come_back_as_their_exact_means():
    plan = make_plan(4, metrics=("loss", "auc"))
    contributions = make_contributions(plan)

    result = secagg.run_in_process(plan, contributions, consortium=consortium())

    weights = {site: one.weight for site, one in contributions.items()}
    reporting = {s: one.metrics["loss"] for s, one in contributions.items() if one.metrics}
    assert result.total_weight == sum(weights.values())
    assert result.metrics == {
        "loss": sum(weights[s] * value for s, value in reporting.items())
        / sum(weights[s] for s in reporting)
    }


def test_the_same_rounding_gives_the_same_digest_whatever_the_keys():
    plan = make_plan(4)
    contributions = make_contributions(plan)

    digests = {
        secagg.run_in_process(plan, contributions, consortium=consortium()).digest for _ in range(2)
    }

    assert len(digests) == 1


def test_one_site_of_weight_leaves_just_its_own_update_as_the_mean():
    plan = make_plan(3)
    contributions = {
        site: one._replace(weight=plan.weight_cap if site == "lyon" else 0)
        for site, one in make_contributions(plan).items()
    }

    result = secagg.run_in_process(plan, contributions, consortium=consortium())

    expected = contributions["lyon"].update["weight"]
    np.testing.assert_allclose(result.arrays["weight"], expected, rtol=0, atol=1.001 / plan.scale)
    np.testing.assert_array_equal(result.arrays["steps"], contributions["lyon"].update["steps"])


def test_a_round_in_which_all_weights_are_zero_aborts():
    plan = make_plan(3)
    contributions = {s: one._replace(weight=0) for s, one in make_contributions(plan).items()}

    with pytest.raises(RoundAborted, match="all weights are 0"):
        secagg.run_in_process(plan, contributions, consortium=consortium())


def test_keys_are_made_where_the_caller_has_none():
    plan = make_plan(3)
    contributions = make_contributions(plan)

    result = secagg.run_in_process(plan, contributions)

    assert result.digest == secagg.plain_ring_sum(plan, contributions, plan.cohort).digest


def test_a_site_without_an_update_is_lost_and_a_stranger_refused():
    plan = make_plan(4)
    contributions = make_contributions(plan)
    del contributions["oslo"]

    result = secagg.run_in_process(plan, contributions, consortium=consortium())

    assert result.dropped == {"oslo": "has no update"}
    with pytest.raises(ConfigError, match="outside the cohort"):
        secagg.run_in_process(plan, contributions, drop={"nobody": "keys"})


def test_the_plain_sum_needs_every_survivor_with_its_rounding_secret():
    plan = make_plan(3)
    contributions = make_contributions(plan)
    contributions["lyon"] = contributions["lyon"]._replace(rounding=None)

    with pytest.raises(ConfigError, match="'lyon' has no contribution with its rounding secret"):
        secagg.plain_ring_sum(plan, contributions, plan.cohort)


# --- what masked words show ----------------------------------------------------------------------


def late_upload(value: float, size: int) -> tuple[secagg.Plan, Federation, list[int]]:
    """A site whose upload comes too late, and its masked words of stream 1."""
    layout = ModelLayout.from_arrays({"weight": np.zeros(size, np.float32)})
    plan = make_plan(4, layout=layout)
    contributions = make_contributions(
        plan, lambda seed: {"weight": np.full(size, value, np.float32)}
    )
    federation = Federation(plan, contributions=contributions, seed=3)
    upload = federation.hold("masked-input", origin="kyoto")
    federation.from_coordinator(federation.coordinator.lost("kyoto", "is late"))
    federation.run()
    return plan, federation, chunk_words(upload.chunks, 1, plan.ring_bits, size)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_late_update_stays_hidden_though_the_dropouts_pair_masks_are_known(value):
    """The coordinator has every pair mask of the dropout, from its mask seed. What is left is
    the update under the self mask, which no site helps to reveal: it must look uniform."""
    plan, federation, words = late_upload(value, size=2**14)
    t1 = reference.chain("T1", plan.context, payload_digests(federation, "key-advert"))
    t2 = reference.chain("T2", t1, payload_digests(federation, "share-deal"))
    entropy = fixed_entropy(3 * 1000 + plan.cohort.index("kyoto"))
    dropout = ReferenceSite("kyoto", plan.context, entropy, plan.share_threshold)
    adverts = {site: data[-96:-64] for site, data in federation.payloads("key-advert").items()}
    residual = np.array(words, np.uint64)
    for peer in plan.cohort:
        if peer != "kyoto":
            key = reference.pair_key(t2, dropout.private, "kyoto", peer, adverts[peer])
            sign = -1 if peer > "kyoto" else 1
            _native.add_masks(
                residual,
                [_native.Secret.from_bytes(key)],
                [sign],
                generator=plan.mask_generator,
                stream=1,
                first=0,
                bits=plan.ring_bits,
                threads=1,
            )

    top = (residual % 2**plan.ring_bits) >> (plan.ring_bits - 6)
    counts = np.bincount(top.astype(np.int64), minlength=64)
    assert scipy.stats.chisquare(counts).pvalue > 1e-6
    own_key = reference.self_key(t2, dropout.self_seed, "kyoto")
    mask = reference.mask_words(own_key, 1, 0, 3, plan.ring_bits)
    plain = [(int(word) - m) % 2**plan.ring_bits for word, m in zip(residual, mask, strict=False)]
    expected = round(plan.scale * value * federation.contributions["kyoto"].weight / 100)
    assert all(abs(word - expected) <= 1 for word in plain)  # nothing else was left on it


# --- dropouts -----------------------------------------------------------------------------------


def expected_survivors(plan: secagg.Plan, drop: Mapping[str, str]) -> tuple[str, ...] | None:
    """The protocol's rules as one function: U3, or None where the round must abort."""

    def left(*stages: str) -> list[str]:
        return [site for site in plan.cohort if drop.get(site) not in stages]

    enough = (
        len(left("keys")) >= plan.fewest_survivors
        and len(left("keys", "shares")) >= plan.fewest_survivors
        and len(left("keys", "shares", "inputs")) >= plan.fewest_survivors
        and len(left("keys", "shares", "inputs", "votes")) >= plan.vote_quorum
        and len(left(*STAGES)) >= plan.share_threshold
    )
    return tuple(left("keys", "shares", "inputs")) if enough else None


def every_pattern(sites: tuple[str, ...]) -> Iterator[dict[str, secagg.Stage]]:
    for stages in itertools.product((None, *STAGES), repeat=len(sites)):
        yield {site: stage for site, stage in zip(sites, stages, strict=True) if stage}


def turned_patterns(
    sites: tuple[str, ...], turns: Callable[[int], Iterable[int]]
) -> Iterator[dict[str, secagg.Stage]]:
    """Each multiset of stages, by `turns` of its number: how far it is turned on."""
    multisets = itertools.combinations_with_replacement((None, *STAGES), len(sites))
    for number, stages in enumerate(multisets):
        for turn in turns(number):
            turned = stages[turn:] + stages[:turn]
            yield {site: stage for site, stage in zip(sites, turned, strict=True) if stage}


def patterns_up_to_renaming(sites: tuple[str, ...]) -> Iterator[dict[str, secagg.Stage]]:
    """Each multiset of stages once; who gets which stage rotates from one to the next."""
    return turned_patterns(sites, lambda number: [number % len(sites)])


def check_patterns(plan: secagg.Plan, patterns: Iterable[dict[str, secagg.Stage]]) -> set[int]:
    """Runs each pattern and returns the sizes of the survivor sets that were seen."""
    contributions = make_contributions(plan)
    digests: dict[tuple[str, ...], str] = {}
    sizes = set()
    for drop in patterns:
        survivors = expected_survivors(plan, drop)
        if survivors is None:
            with pytest.raises(RoundAborted, match="are needed"):
                secagg.run_in_process(plan, contributions, drop=drop, consortium=consortium())
            continue
        result = secagg.run_in_process(plan, contributions, drop=drop, consortium=consortium())
        if survivors not in digests:
            digests[survivors] = secagg.plain_ring_sum(plan, contributions, survivors).digest
        assert (result.sites, result.digest) == (survivors, digests[survivors]), drop
        assert set(result.dropped) == set(plan.cohort) - set(survivors)
        sizes.add(len(survivors))
    return sizes


def small_plan(sites: int, colluders: int, profile: str = "strict") -> secagg.Plan:
    layout = ModelLayout.from_arrays(small_arrays(0))
    return make_plan(
        sites,
        layout=layout,
        colluders=colluders,
        vote_quorum=vote_quorum(sites, colluders),
        share_threshold=share_threshold(profile, sites, colluders),
    )


@pytest.mark.parametrize(
    ("sites", "colluders", "profile"),
    [
        (3, 1, "strict"),
        (4, 1, "strict"),
        pytest.param(5, 1, "strict", marks=pytest.mark.slow),
        pytest.param(5, 0, "strict", marks=pytest.mark.slow),
        pytest.param(5, 0, "available", marks=pytest.mark.slow),
    ],
)
def test_every_dropout_pattern_gives_the_exact_sum_or_a_clear_abort(sites, colluders, profile):
    """All patterns that must complete, name by name; those that must abort up to renaming."""
    plan = small_plan(sites, colluders, profile)
    completing = [drop for drop in every_pattern(plan.cohort) if expected_survivors(plan, drop)]
    aborting = [
        drop
        for drop in patterns_up_to_renaming(plan.cohort)
        if expected_survivors(plan, drop) is None
    ]

    sizes = check_patterns(plan, [*completing, *aborting])

    assert sizes == set(range(plan.fewest_survivors, sites + 1))


@pytest.mark.parametrize(("colluders", "profile"), [(0, "strict"), (1, "available")])
def test_four_sites_survive_every_kind_of_dropout_pattern(colluders, profile):
    plan = small_plan(4, colluders, profile)

    sizes = check_patterns(plan, patterns_up_to_renaming(plan.cohort))

    assert sizes == set(range(plan.fewest_survivors, 5))


@pytest.mark.slow
def test_every_dropout_pattern_name_by_name():
    plan = small_plan(4, 1)

    sizes = check_patterns(plan, every_pattern(plan.cohort))

    assert sizes == set(range(plan.fewest_survivors, 5))


@pytest.mark.slow
def test_five_sites_survive_every_kind_of_dropout_pattern_whoever_is_lost():
    """Those that complete name by name; of those that abort, each site in each place."""
    plan = small_plan(5, 1, "available")
    everyone_in_turn = turned_patterns(plan.cohort, lambda _: range(5))
    completing = [drop for drop in every_pattern(plan.cohort) if expected_survivors(plan, drop)]

    sizes = check_patterns(plan, [*completing, *everyone_in_turn])

    assert sizes == set(range(plan.fewest_survivors, 6))


def test_an_abort_says_how_many_were_there_and_how_many_are_needed():
    plan = make_plan(5)
    drop = dict.fromkeys(plan.cohort[3:], "inputs")

    with pytest.raises(RoundAborted, match="3 of 5 sites sent updates, 4 are needed"):
        secagg.run_in_process(plan, make_contributions(plan), drop=drop, consortium=consortium())


def test_a_site_lost_after_its_upload_stays_in_the_sum():
    plan = make_plan(4)
    federation = Federation(plan)
    federation.hold("survivor-vote", origin="lyon")
    federation.from_coordinator(federation.coordinator.lost("lyon", "hung up"))
    federation.run()

    assert federation.result.sites == plan.cohort
    assert federation.excluded == {"lyon": "hung up"}
    assert federation.result.dropped == {}
