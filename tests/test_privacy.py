"""Central differential privacy: exact clipping, exact noise, one result, an honest bill."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from reference import privacy as reference
from veilsum import ModelLayout, _native, encode
from veilsum._native import Secret
from veilsum.errors import ConfigError, PeerError
from veilsum.model import result_digest
from veilsum.optimizers import FedAdam
from veilsum.privacy import AdaptiveClip, CentralDP, PrivateAggregator, aggregator

KEY = bytes(range(100, 132))
ISAS = _native.supported_isas()
COUNT_STREAM = 2**32 - 1


def key() -> Secret:
    return Secret.from_bytes(KEY)


def samples(sigma: int, count: int, stream: int = 1) -> np.ndarray:
    return _native.sample_discrete_gaussian(key(), stream=stream, sigma=sigma, count=count)


def layout_of(*tensors: Any) -> ModelLayout:
    return ModelLayout(_native.Layout(list(tensors)))


DOUBLES = layout_of(("w", "f64", (300,)))


@pytest.fixture
def known_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the operating system's generator out of the public classes."""
    monkeypatch.setattr(aggregator, "_fresh_key", key)


# --- the sampler --------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [1, 2, 7])
def test_samples_have_the_probabilities_of_the_discrete_gaussian(sigma: int) -> None:
    count = 200_000
    reach = 4 * sigma
    found = np.clip(samples(sigma, count), -reach, reach)

    inner = [reference.probability(x, sigma) for x in range(-reach + 1, reach)]
    tail = (1 - math.fsum(inner)) / 2
    expected = count * np.array([tail, *inner, tail])
    observed = np.bincount(found + reach, minlength=2 * reach + 1)

    assert stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-3


@pytest.mark.parametrize("sigma", [2**29, 2**30, 2**31 - 1])
def test_samples_of_a_large_sigma_are_normal_and_of_that_variance(sigma: int) -> None:
    count = 200_000
    found = samples(sigma, count) / sigma

    assert stats.kstest(found, "norm").pvalue > 1e-3
    assert abs(found.mean()) < 4 / math.sqrt(count)
    assert abs(found.var() - 1) < 4 * math.sqrt(2 / count)
    assert abs(np.corrcoef(found[1:], found[:-1])[0, 1]) < 4 / math.sqrt(count)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("sigma", [1, 3, 1000, 2**29 + 12_345, 2**31 - 1])
def test_samples_are_those_of_the_papers_algorithms(isa: str, sigma: int) -> None:
    _native.use_isa(isa)
    source = reference.words(KEY, 7)

    expected = [reference.discrete_gaussian(sigma, source) for _ in range(700)]

    assert samples(sigma, 700, stream=7).tolist() == expected


def test_streams_and_keys_have_noise_of_their_own() -> None:
    other = _native.sample_discrete_gaussian(
        Secret.from_bytes(bytes(32)), stream=1, sigma=2**30, count=50
    )

    drawn = [*samples(2**30, 50), *samples(2**30, 50, stream=2), *other]

    assert len(set(drawn)) == 150


def test_a_rounded_normal_sample_is_as_good_up_to_a_share_that_falls_with_sigma_squared() -> None:
    """What lets accounts of the continuous mechanism be used (docs/privacy.md): the distance
    times sigma^2 does not grow, and is below 1/40."""
    for sigma in (2, 4, 8, 16, 32):
        x = np.arange(-40 * sigma, 40 * sigma + 1)
        discrete = np.exp(-(x.astype(float) ** 2) / (2 * sigma**2))
        discrete /= math.fsum(discrete)
        rounded = np.diff(stats.norm.cdf(np.append(x, x[-1] + 1) - 0.5, scale=sigma))

        distance = 0.5 * math.fsum(np.abs(discrete - rounded))

        assert distance * sigma**2 < 1 / 40


# --- the mean -----------------------------------------------------------------------


def native(layout: ModelLayout = DOUBLES, **changes: Any) -> _native.PrivateMean:
    options: dict[str, Any] = {
        "clip": 1.5,
        "noise_multiplier": 0.5,
        "denominator": 0,
        "count_noise": 0.0,
        "threads": 1,
        "spool": "",
    }
    return _native.PrivateMean(layout.native, **{**options, **changes})


def dyadic(seed: int, size: int, scale: float) -> np.ndarray:
    """Multiples of a power of two, whose squares add up exactly in any order."""
    return np.random.default_rng(seed).integers(-50, 51, size) * scale


UPDATES = {
    "lyon": dyadic(1, 300, 2.0**-4),  # beyond the clip
    "osaka": dyadic(2, 300, 2.0**-16),  # within it
    "quito": dyadic(3, 300, 2.0**9),
    "oslo": np.zeros(300),
}


def noise(sigma: int, count: int) -> list[int]:
    source = reference.words(KEY, 0)
    return [reference.discrete_gaussian(sigma, source) for _ in range(count)]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["f64", "f32", "f16", "bf16"])
def test_the_mean_is_that_of_the_clipped_updates_and_the_noise_to_the_last_bit(
    isa: str, dtype: str
) -> None:
    _native.use_isa(isa)
    mean = native(layout_of(("w", dtype, (300,))))
    numpy_dtype = {"f64": "f8", "f32": "f4", "f16": "f2", "bf16": "f4"}[dtype]
    exponent, _, sigma = mean.grid
    sums = noise(sigma, 300)
    for site, values in UPDATES.items():
        typed = values.astype(numpy_dtype)
        given = (typed.view("u4") >> 16).astype("u2") if dtype == "bf16" else typed
        mean.add_arrays(site, 1, [given], gain=1.0)
        factor = reference.gain(typed.tolist(), 1.5) * 2.0**exponent
        sums = [a + b for a, b in zip(sums, reference.steps(typed.tolist(), factor), strict=True)]

    (found,), (sites, denominator, balance) = mean.finish(key=key())

    if dtype == "bf16":
        found = np.left_shift(found, 16, dtype=np.uint32).view(np.float32)
    assert found.tolist() == reference.mean(sums, exponent, 4, dtype)
    assert (sites, denominator, balance) == (("lyon", "osaka", "oslo", "quito"), 4, 0.0)


def test_order_threads_spool_and_encoding_do_not_show(tmp_path: Path, known_noise: None) -> None:
    layout = layout_of(("a", "f32", (9000,)), ("b", "f32", (3, 7)))
    rng = np.random.default_rng(4)
    updates = {
        site: {
            "a": rng.normal(size=9000).astype(np.float32),
            "b": rng.normal(size=(3, 7)).astype(np.float32),
        }
        for site in "abcde"
    }
    digests = set()
    for order, options in [("abcde", {"threads": 1}), ("edcba", {"threads": 3, "spool": tmp_path})]:
        mean = PrivateAggregator(layout, CentralDP(1.0, clip=2.0), **options)
        for site in order:
            mean.add(updates[site], site=site)
        digests.add(mean.finish().digest)
    encoded = PrivateAggregator(layout, CentralDP(1.0, clip=2.0))
    for site in "cbade":
        encoded.add(encode(updates[site], codec="f32"), site=site)
    digests.add(encoded.finish().digest)

    assert len(digests) == 1


@given(
    st.lists(
        st.floats(-1e6, 1e6, allow_subnormal=False) | st.sampled_from([0.0, 1e-300, 1e200, -0.5]),
        min_size=300,
        max_size=300,
    ),
    st.sampled_from([1e-30, 1e-3, 1.0, 77.7, 1e30]),
    st.sampled_from([1 / 512, 0.7, 512.0]),
)
@settings(max_examples=60, deadline=None)
def test_no_update_moves_the_sum_further_than_the_sensitivity(
    values: list[float], clip: float, multiplier: float
) -> None:
    mean = native(clip=clip, noise_multiplier=multiplier)
    exponent, sensitivity, sigma = mean.grid
    mean.add_arrays("lyon", 1, [np.array(values)], gain=1.0)

    (found,), _ = mean.finish(key=key())

    # Doubles hold the sum exactly, so that the known noise can be taken away again.
    steps = [int(value * 2.0**exponent) for value in found.tolist()]
    moved = [a - b for a, b in zip(steps, noise(sigma, 300), strict=True)]
    assert sum(step**2 for step in moved) <= sensitivity**2


def test_rounding_alone_stays_within_the_sensitivity() -> None:
    """Every coordinate half a unit off, the worst there is."""
    mean = native(layout_of(("w", "f64", (4096,))), clip=1.0, noise_multiplier=512.0)
    exponent, sensitivity, sigma = mean.grid
    per_value = math.floor(2.0**exponent / 64) + 0.5000001  # 4096 of them make the clip
    mean.add_arrays("a", 1, [np.full(4096, per_value * 2.0**-exponent)], gain=1.0)

    (found,), _ = mean.finish(key=key())

    moved = (found * 2.0**exponent).astype(np.int64) - noise(sigma, 4096)
    assert int((moved**2).sum()) <= sensitivity**2


@pytest.mark.parametrize("clip", [1e-30, 0.3, 1.0, 12_345.6, 1e30])
@pytest.mark.parametrize("multiplier", [1 / 512, 0.01, 1.0, 512.0])
@pytest.mark.parametrize("elements", [1, 10**6, 2**39])
def test_the_grid_is_fine_and_its_noise_is_no_less_than_promised(
    clip: float, multiplier: float, elements: int
) -> None:
    exponent, sensitivity, sigma = native(
        layout_of(("w", "f32", (elements,))), clip=clip, noise_multiplier=multiplier
    ).grid

    assert sigma >= sensitivity * multiplier
    assert 2**28 < sigma <= 2**30
    rounding = math.sqrt(elements) / 2
    assert clip * 2.0**exponent + rounding <= sensitivity
    assert sensitivity <= (clip * 2.0**exponent + rounding) * (1 + 2.0**-19) + 4
    assert sensitivity * 2**22 < 2**62  # as many updates as there may be


def test_a_private_mean_is_taken_once() -> None:
    mean = PrivateAggregator(DOUBLES, CentralDP(1.0, clip=1.0))
    with pytest.raises(ConfigError, match="no mean of no updates"):
        mean.finish()
    mean.add({"w": np.ones(300)}, site="lyon")
    mean.finish()

    for again in (
        mean.finish,
        lambda: mean.add({"w": np.ones(300)}, site="osaka"),
        lambda: mean.remove("lyon"),
        lambda: mean.finish_step({"w": np.ones(300)}, FedAdam().start(DOUBLES)),
    ):
        with pytest.raises(ConfigError, match="taken already"):
            again()


def test_of_many_threads_one_takes_the_mean() -> None:
    mean = PrivateAggregator(layout_of(("w", "f32", (20_000,))), CentralDP(1.0, clip=1.0))
    mean.add({"w": np.ones(20_000, np.float32)}, site="lyon")
    taken = []

    def take() -> None:
        try:
            taken.append(mean.finish())
        except ConfigError:
            taken.append(None)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sum(result is not None for result in taken) == 1


def test_a_step_that_fails_has_taken_the_mean() -> None:
    layout = layout_of(("w", "f16", (3,)))
    mean = PrivateAggregator(layout, CentralDP(512.0, clip=1e6))
    mean.add({"w": np.ones(3, np.float16)}, site="lyon")

    with pytest.raises(ConfigError, match="do not fit f16"):
        mean.finish_step({"w": np.ones(3, np.float16)}, FedAdam(1e9).start(layout))
    with pytest.raises(ConfigError, match="taken already"):
        mean.finish()


def test_one_pass_gives_the_bits_of_private_mean_and_step(known_noise: None) -> None:
    layout = layout_of(("w", "f32", (5000,)), ("b", "bf16", (70,)))
    update = {"w": np.ones(5000, np.float32), "b": np.full(70, 0.5, np.float32)}
    model = {"w": np.zeros(5000, np.float32), "b": np.ones(70, np.float32)}
    results = []
    for _ in range(2):
        mean = PrivateAggregator(layout, CentralDP(0.1, clip=3.0))
        mean.add(update, site="lyon")
        results.append(mean)
    first, second = results

    stepped = second.finish_step(model, FedAdam().start(layout))

    expected = FedAdam().start(layout).step(model, first.finish().arrays)
    assert stepped.digest == result_digest(layout, expected)
    assert stepped.sites == ("lyon",)


def test_every_mean_has_noise_of_its_own() -> None:
    digests = set()
    for _ in range(3):
        mean = PrivateAggregator(DOUBLES, CentralDP(1.0, clip=1.0))
        mean.add({"w": np.ones(300)}, site="lyon")
        digests.add(mean.finish().digest)

    assert len(digests) == 3


def test_the_published_noise_is_the_one_that_was_added() -> None:
    layout = layout_of(("w", "f32", (100_000,)))
    mean = PrivateAggregator(layout, CentralDP(2.0, clip=0.25))
    for site in ("lyon", "osaka", "quito", "oslo"):
        mean.add({"w": np.zeros(100_000, np.float32)}, site=site)

    result = mean.finish()

    # sqrt(d) / 2 units and the slack of double precision are on top
    assert result.noise_stddev == pytest.approx(2.0 * 0.25 / 4, rel=1e-5)
    found = result.arrays["w"].astype(float)
    assert abs(found.std() / result.noise_stddev - 1) < 5 / math.sqrt(2 * 100_000)


def test_a_fixed_denominator_divides_instead_of_the_number_of_sites(known_noise: None) -> None:
    results = []
    for denominator in (None, 8):
        mean = PrivateAggregator(DOUBLES, CentralDP(1.0, clip=1.0, denominator=denominator))
        mean.add({"w": np.ones(300)}, site="lyon")
        mean.add({"w": np.ones(300)}, site="osaka")
        results.append(mean.finish())

    assert [result.denominator for result in results] == [2, 8]
    np.testing.assert_array_equal(results[0].arrays["w"], 4 * results[1].arrays["w"])


def test_an_array_that_changes_after_it_was_added_changes_nothing(known_noise: None) -> None:
    digests = set()
    for later in (1.0, 1e30):
        mean = PrivateAggregator(DOUBLES, CentralDP(1.0, clip=1.0))
        values = np.ones(300)
        mean.add({"w": values}, site="lyon")
        values[:] = later
        digests.add(mean.finish().digest)

    assert len(digests) == 1


def test_a_norm_beyond_double_precision_counts_as_zero(known_noise: None) -> None:
    digests = set()
    for value in (0.0, 1e300):
        mean = PrivateAggregator(DOUBLES, CentralDP(1.0, clip=1.0))
        mean.add({"w": np.full(300, value)}, site="lyon")
        digests.add(mean.finish().digest)

    assert len(digests) == 1


@pytest.mark.parametrize(("weight", "gain"), [(2, 1.0), (1, 0.5), (0, 1.0)])
def test_an_update_that_would_count_more_or_less_is_refused(weight: int, gain: float) -> None:
    with pytest.raises(PeerError, match="counts all alike"):
        native().add_arrays("lyon", weight, [np.ones(300)], gain=gain)


def test_integer_tensors_are_refused_because_nothing_would_hide_them() -> None:
    with pytest.raises(ConfigError, match="'steps' holds integers") as caught:
        PrivateAggregator(
            layout_of(("w", "f32", (3,)), ("steps", "i64", ())), CentralDP(1.0, clip=1.0)
        )
    assert caught.value.hint is not None


def test_a_key_of_another_size_is_refused_and_takes_nothing() -> None:
    mean = native()
    mean.add_arrays("lyon", 1, [np.ones(300)], gain=1.0)

    with pytest.raises(ConfigError, match="32 bytes"):
        mean.finish(key=Secret.from_bytes(b"short"))
    mean.finish(key=key())


# --- the adaptive clip ----------------------------------------------------------------


@pytest.mark.parametrize("count_noise", [1 / 512, 0.6, 5.0, 2.0**20])
def test_the_count_of_unclipped_updates_gets_noise_of_its_own(count_noise: float) -> None:
    mean = native(count_noise=count_noise)
    for site, values in UPDATES.items():
        mean.add_arrays(site, 1, [values], gain=1.0)

    _, (_, _, balance) = mean.finish(key=key())

    # Two are within the clip and two are not. Sigma of twice the noise has 2^29 units or more.
    exponent = 30 - math.frexp(2 * count_noise)[1]
    sigma = math.ceil(2 * count_noise * 2.0**exponent)
    assert 2**29 <= sigma <= 2**30
    drawn = reference.discrete_gaussian(sigma, reference.words(KEY, COUNT_STREAM))
    assert balance == drawn * 2.0**-exponent / 2


def test_sum_and_count_together_cost_the_rounds_noise_multiplier() -> None:
    dp = CentralDP(1.1, clip=AdaptiveClip(0.1, count_noise=2.0))

    # Independent Gaussian mechanisms: squares of sensitivity over sigma add up.
    together = dp.sum_noise_multiplier**-2 + (0.5 / 2.0) ** 2

    assert together == pytest.approx(1.1**-2, rel=1e-12)
    assert CentralDP(1.1, clip=0.1).sum_noise_multiplier == 1.1


def test_the_clip_moves_by_the_papers_rule() -> None:
    clip = AdaptiveClip(2.0, count_noise=1.0, quantile=0.4, learning_rate=0.3)

    assert clip.after(0.9).norm == 2.0 * math.exp(-0.3 * 0.5)
    assert clip.after(0.9).quantile == 0.4


def test_noise_of_any_size_moves_the_clip_to_its_bounds_at_most() -> None:
    clip = AdaptiveClip(1.0, count_noise=2.0**20, learning_rate=10.0)

    assert clip.after(-1e6).norm == 1e30
    assert clip.after(1e6).norm == 1e-30


@pytest.mark.parametrize("start", [0.1, 20.0])
@pytest.mark.parametrize("quantile", [0.5, 0.8])
def test_the_clip_finds_the_quantile_of_the_norms(
    start: float, quantile: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = layout_of(("w", "f64", (4,)))
    rng = np.random.default_rng(6)
    dp = CentralDP(0.5, clip=AdaptiveClip(start, count_noise=5.0, quantile=quantile))
    norms = []
    for round_number in range(120):
        number = round_number.to_bytes(32, "little")
        monkeypatch.setattr(aggregator, "_fresh_key", lambda seed=number: Secret.from_bytes(seed))
        mean = PrivateAggregator(layout, dp)
        for site in range(100):
            direction = rng.normal(size=4)
            length = rng.lognormal(0.5, 0.6)
            mean.add({"w": direction / np.linalg.norm(direction) * length}, site=f"s{site}")
        dp = mean.finish().next_round
        norms.append(dp.norm)

    wanted = stats.lognorm.ppf(quantile, 0.6, scale=math.exp(0.5))
    assert np.mean(norms[-30:]) == pytest.approx(wanted, rel=0.08)


def test_a_fixed_clip_publishes_no_count_and_stays() -> None:
    dp = CentralDP(1.0, clip=1.0)
    mean = PrivateAggregator(DOUBLES, dp)
    mean.add({"w": np.ones(300)}, site="lyon")

    result = mean.finish()

    assert (result.unclipped, result.next_round) == (None, dp)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CentralDP(0.0, clip=1.0), "noise_multiplier must be"),
        (lambda: CentralDP(math.nan, clip=1.0), "noise_multiplier must be"),
        (lambda: CentralDP(1.0, clip=0.0), "a clip must be"),
        (lambda: CentralDP(1.0, clip=math.inf), "a clip must be"),
        (lambda: CentralDP(1.0, clip=1.0, denominator=0), "denominator must be"),
        (lambda: CentralDP(2.0, clip=AdaptiveClip(1.0, count_noise=1.0)), "count alone would"),
        (
            lambda: CentralDP(511.9999, clip=AdaptiveClip(1.0, count_noise=256.0)),
            "at most 512 is possible",
        ),
        (lambda: AdaptiveClip(1.0, count_noise=0.0), "count_noise must be"),
        (lambda: AdaptiveClip(1.0, count_noise=1.0, quantile=1.0), "quantile must be"),
        (lambda: AdaptiveClip(1.0, count_noise=1.0, learning_rate=0.0), "learning_rate must be"),
    ],
)
def test_promises_that_cannot_be_kept_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_importing_privacy_does_not_import_the_accounting_package() -> None:
    code = (
        "import sys, veilsum.privacy as p; p.PrivateAggregator; p.Accountant;"
        "sys.exit('dp_accounting' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
