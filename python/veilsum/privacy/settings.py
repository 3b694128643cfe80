"""What a private round promises, and how its clip follows the updates."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from veilsum.errors import ConfigError

_MAX_MULTIPLIER = 512.0
_MIN_CLIP, _MAX_CLIP = 1e-30, 1e30
_MAX_POWER = 200.0  # exp() of it is above 1e60


def _check_clip(norm: float) -> None:
    if not _MIN_CLIP <= norm <= _MAX_CLIP:
        raise ConfigError(f"a clip must be 1e-30 to 1e30, got {norm}")


@dataclass(frozen=True, slots=True)
class AdaptiveClip:
    """A clip that follows a quantile of the updates' norms (Andrew et al. 2021, arXiv 1905.03871).

    After each round it is multiplied by exp(-learning_rate * (b - quantile)), where b is the
    share of updates within it, which is published with noise.

    Attributes:
        norm: the clip of this round, model units.
        count_noise: standard deviation of the noise on the count of updates within the clip. The
            paper takes a twentieth of the sites of a round.
        quantile: of norms to follow, above 0 and below 1.
        learning_rate: of the geometric update, above 0.
    """

    norm: float
    count_noise: float
    quantile: float = 0.5
    learning_rate: float = 0.2

    def __post_init__(self) -> None:
        _check_clip(self.norm)
        if not 1 / _MAX_MULTIPLIER <= self.count_noise <= 2.0**20:
            raise ConfigError(f"count_noise must be 1/512 to 2**20, got {self.count_noise}")
        if not 0.0 < self.quantile < 1.0:
            raise ConfigError(f"quantile must be above 0 and below 1, got {self.quantile}")
        if not 0.0 < self.learning_rate <= 10.0:
            raise ConfigError(
                f"learning_rate must be above 0 and at most 10, got {self.learning_rate}"
            )

    def after(self, unclipped: float) -> AdaptiveClip:
        """The clip of the next round.

        Args:
            unclipped: the noisy share of updates that were within this one; with the noise it
                may be below 0 or above 1.
        """
        # Noise may be many times the number of sites. Beyond the bound, which is past the whole
        # range of clips, the exponential would overflow, and a mean that was paid for be lost.
        power = -self.learning_rate * (unclipped - self.quantile)
        factor = math.exp(min(max(power, -_MAX_POWER), _MAX_POWER))
        return replace(self, norm=min(max(self.norm * factor, _MIN_CLIP), _MAX_CLIP))


@dataclass(frozen=True, slots=True)
class CentralDP:
    """One private round.

    Attributes:
        noise_multiplier: what the round costs: it is as private as a Gaussian mechanism whose
            standard deviation is this many times its sensitivity, 1/512 to 512. An adaptive
            clip takes its share of it.
        clip: largest L2 norm of an update over all its tensors, model units; longer ones are
            scaled down to it.
        denominator: what the sum is divided by. By default the number of sites, which is
            then public, as are their names. Give the expected number if who took part is
            sampled and secret.
    """

    noise_multiplier: float
    clip: float | AdaptiveClip
    denominator: int | None = None

    def __post_init__(self) -> None:
        if not 1 / _MAX_MULTIPLIER <= self.noise_multiplier <= _MAX_MULTIPLIER:
            raise ConfigError(f"noise_multiplier must be 1/512 to 512, got {self.noise_multiplier}")
        if isinstance(self.clip, AdaptiveClip):
            self._check_share(self.clip)
        else:
            _check_clip(self.clip)
        if self.denominator is not None and not 1 <= self.denominator < 2**53:
            raise ConfigError(f"denominator must be 1 to 2**53-1, got {self.denominator}")

    def _check_share(self, clip: AdaptiveClip) -> None:
        if not self.noise_multiplier < 2 * clip.count_noise:
            raise ConfigError(
                f"the count alone would cost more than a noise_multiplier of "
                f"{self.noise_multiplier} allows",
                hint=f"raise count_noise above {self.noise_multiplier / 2}",
            )
        if self.sum_noise_multiplier > _MAX_MULTIPLIER:
            raise ConfigError(
                f"the count leaves a noise multiplier of {self.sum_noise_multiplier:.4g} for the "
                "sum, at most 512 is possible",
                hint="raise count_noise",
            )

    @property
    def norm(self) -> float:
        """The clip of this round, model units."""
        return self.clip.norm if isinstance(self.clip, AdaptiveClip) else self.clip

    @property
    def sum_noise_multiplier(self) -> float:
        """Noise of the sum over the clip, such that sum and count together cost
        noise_multiplier: (z^-2 - (2 count_noise)^-2)^(-1/2) (Andrew et al. 2021, theorem 1).

        One site moves the count of unclipped updates, minus half their number, by 1/2.
        """
        if not isinstance(self.clip, AdaptiveClip):
            return self.noise_multiplier
        ratio = self.noise_multiplier / (2 * self.clip.count_noise)
        return self.noise_multiplier / math.sqrt((1 - ratio) * (1 + ratio))
