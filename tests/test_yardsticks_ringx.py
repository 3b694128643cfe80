"""Published figures for uniform stochastic rounding: the best clips, and what is lost with them."""

from __future__ import annotations

import numpy as np
import pytest

from veilsum import decode, encode
from veilsum.codecs import ring_clip, ring_error
from veilsum.errors import ConfigError

SITES = (1, 8, 64, 512, 4096)
# Clip in standard deviations and squared error of the mean, for each number of sites.
BEST = {
    1: ((0.647, 4.54e-1), (1.192, 1.96e-1), (1.828, 5.73e-2), (2.447, 1.27e-2), (3.012, 2.36e-3)),
    2: ((1.270, 1.77e-1), (1.952, 4.70e-2), (2.584, 9.49e-3), (3.134, 1.67e-3), (3.622, 2.75e-4)),
    4: ((2.309, 1.99e-2), (2.899, 3.69e-3), (3.422, 6.19e-4), (3.896, 9.78e-5), (4.331, 1.48e-5)),
    6: ((3.105, 1.89e-3), (3.607, 3.09e-4), (4.065, 4.79e-5), (4.488, 7.19e-6), (4.882, 1.05e-6)),
    8: ((3.770, 1.63e-4), (4.215, 2.50e-5), (4.627, 3.72e-6), (5.012, 5.39e-7), (5.374, 7.7e-8)),
    12: ((4.887, 1.02e-6), (5.257, 1.46e-7), (5.606, 2.1e-8), (5.938, 2.9e-9), (6.255, 4.0e-10)),
}


@pytest.mark.parametrize("bits", BEST)
def test_the_best_clip_and_its_error_are_those_of_the_table(bits: int) -> None:
    for sites, (clip, error) in zip(SITES, BEST[bits], strict=True):
        found = ring_clip(bits, sites)
        assert found == pytest.approx(clip, abs=6e-4)
        assert ring_error(found, bits, sites) == pytest.approx(error, rel=0.02)


def test_bounded_rounding_without_shared_randomness_loses_what_is_published() -> None:
    # QUIC-FL's comparison (Ben Basat et al. 2024), one site, clip 3.0973.
    for bits, error in {1: 8.597, 2: 0.7140, 3: 0.1303, 4: 0.02837}.items():
        assert ring_error(3.0973, bits, 1) == pytest.approx(error, rel=0.01)


def test_a_clip_that_is_best_for_one_site_is_the_floor_of_a_mean() -> None:
    assert ring_error(2.309, 4, 64) == pytest.approx(0.005, rel=0.1)
    assert ring_error(3.422, 4, 64) == pytest.approx(6.2e-4, rel=0.01)


@pytest.mark.parametrize("steps", [1, 3, 7, 100])
@pytest.mark.parametrize("hadamard", [0, 4096])
def test_the_codec_loses_what_the_formula_says(steps: int, hadamard: int) -> None:
    values = np.random.default_rng(steps).standard_normal(2**20).astype(np.float32)
    clip = 3.0
    sent = encode(
        {"w": values}, "ring8", clip=clip, steps=steps, hadamard=hadamard, overrange="clip", seed=1
    )

    error = np.mean((decode(sent)["w"].astype(np.float64) - values) ** 2)
    # With many steps most of the error is what the clip takes from few values.
    assert error == pytest.approx(
        ring_error(clip, 8, 1, levels=2 * steps + 1), rel=0.01 if steps < 100 else 0.15
    )


def test_layers_of_different_scale_need_clips_of_their_own() -> None:
    scales = 2.0 ** -np.linspace(0, 12, 64)
    groups = np.random.default_rng(7).standard_normal((64, 4096)) * scales[:, None]
    update = {"w": groups.astype(np.float32).reshape(-1)}
    best = ring_clip(4, 1)

    def lost(**options: object) -> float:
        sent = encode(update, "ring4", hadamard=4096, overrange="clip", seed=1, **options)
        errors = decode(sent)["w"].reshape(64, 4096) - groups
        return float(np.sum(errors**2) / np.sum(groups**2))

    assert lost(clip=best * scales, scales="block", block=4096) < 0.024  # 15 levels, not 16
    assert lost(clip=best * float(np.sqrt(np.mean(groups**2)))) > 0.2


@pytest.mark.parametrize(
    "arguments", [(0, 1), (33, 1), (4, 0), (4, 2**33)], ids=["bits", "bits", "sites", "sites"]
)
def test_arguments_out_of_bounds_are_refused(arguments: tuple[int, int]) -> None:
    with pytest.raises(ConfigError):
        ring_clip(*arguments)
