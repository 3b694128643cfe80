"""The mean of one private round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from typing_extensions import Buffer

from veilsum import _native
from veilsum._native import Secret
from veilsum.aggregate.adding import Share, add_update
from veilsum.codecs import EncodedUpdate
from veilsum.devices import available_threads
from veilsum.errors import ConfigError
from veilsum.model import ModelLayout, result_digest, widen_tensors
from veilsum.optimizers import ServerOptimizer
from veilsum.privacy.settings import AdaptiveClip, CentralDP

_KEY_BYTES = 32


def _fresh_key() -> Secret:
    """A key for one mean's noise. From the operating system and nowhere else: who could
    repeat the noise could take it away."""
    return Secret.from_os(_KEY_BYTES)


@dataclass(frozen=True, slots=True)
class PrivateResult:
    """A private mean, or a model stepped by one. All of it may be published, except `sites` where
    taking part is a secret.

    Attributes:
        arrays: name -> array in layout order, dtypes of the layout; bfloat16 as float32, unless
            written to arrays of the caller's.
        digest: hex SHA-256 of the arrays, as of model.result_digest.
        sites: whose updates are in the mean, sorted.
        denominator: what the sum was divided by.
        noise_stddev: standard deviation of the noise in each value of the mean, model units.
        unclipped: noisy share of updates within an adaptive clip; None if the clip is fixed.
        next_round: settings of the next round: these, with an adaptive clip moved on.
    """

    arrays: dict[str, NDArray[Any]]
    digest: str
    sites: tuple[str, ...]
    denominator: int
    noise_stddev: float
    unclipped: float | None
    next_round: CentralDP


class PrivateAggregator:
    """Averages clipped updates and adds noise, once. Safe to add to from several threads.

    Every update counts alike; a weight would let a site move the mean further than another.
    """

    def __init__(
        self,
        layout: ModelLayout,
        privacy: CentralDP,
        *,
        threads: int | None = None,
        spool: str | Path | None = None,
    ) -> None:
        """Prepares an empty sum.

        Args:
            layout: what every update must look like; without integer tensors.
            privacy: the round's promise.
            threads: most threads one call may use; by default one per processor.
            spool: a directory for committed updates, as Aggregator has it.

        Raises:
            ConfigError: the layout has integer tensors, or spool is not a directory.
        """
        if spool is not None and not Path(spool).is_dir():
            raise ConfigError(f"spool {str(spool)!r} is not a directory", hint="create it first")
        clip = privacy.clip
        self._layout = layout
        self._privacy = privacy
        self._native = _native.PrivateMean(
            layout.native,
            clip=privacy.norm,
            noise_multiplier=privacy.sum_noise_multiplier,
            denominator=privacy.denominator or 0,
            count_noise=clip.count_noise if isinstance(clip, AdaptiveClip) else 0.0,
            threads=available_threads() if threads is None else threads,
            spool="" if spool is None else str(spool),
        )

    @property
    def layout(self) -> ModelLayout:
        """What every update must look like."""
        return self._layout

    @property
    def privacy(self) -> CentralDP:
        """What the round promises."""
        return self._privacy

    @property
    def sites(self) -> tuple[str, ...]:
        """Sites whose updates are in the sum, sorted."""
        return self._native.sites

    def add(self, update: Mapping[str, Any] | EncodedUpdate | Buffer, *, site: str) -> None:
        """Adds one site's update. A call that raises has changed nothing.

        Args:
            update: as Aggregator.add takes it; arrays are copied.
            site: whose it is; a site has one update.

        Raises:
            PeerError: the update does not fit the layout, holds a value that is not finite, or
                the site is there already.
            DecodeError: encoded bytes are not as they must be.
            ConfigError: there is no room to keep the update, or the mean was taken.
        """
        add_update(self._native, self._layout, update, Share(site, 1), copy=True)

    def remove(self, site: str) -> None:
        """Takes a site's update out again.

        Raises:
            ConfigError: the site has none, or the mean was taken.
        """
        self._native.remove(site)

    def finish(self) -> PrivateResult:
        """The private mean. Once: another result of the same updates, with noise of its own,
        would cost privacy again, and averaging results would take the noise away.

        Raises:
            ConfigError: nothing was added, or the mean was taken before.
        """
        arrays, taken = self._native.finish(key=_fresh_key())
        named = dict(zip(self._layout.names, arrays, strict=True))
        digest = result_digest(self._layout, named)
        return self._result(widen_tensors(self._layout, named), digest, taken)

    def finish_step(
        self,
        model: Mapping[str, Any],
        optimizer: ServerOptimizer,
        *,
        out: Mapping[str, NDArray[Any]] | None = None,
    ) -> PrivateResult:
        """Steps a model by the private mean in the same pass; see Aggregator.finish_step.

        Raises:
            ConfigError: as finish; the optimizer is for another layout; or a new value does
                not fit, and the mean then counts as taken.
        """
        if optimizer.layout != self._layout:
            raise ConfigError("the optimizer is for a model with another layout")
        with optimizer.stepping(model, gain=1.0, out=out) as (step, updated):
            taken = self._native.finish_step(step, key=_fresh_key())
        digest = result_digest(self._layout, updated)
        return self._result(optimizer.named(updated, out), digest, taken)

    def _result(
        self,
        arrays: dict[str, NDArray[Any]],
        digest: str,
        taken: tuple[tuple[str, ...], int, float],
    ) -> PrivateResult:
        sites, denominator, balance = taken
        exponent, _, sigma = self._native.grid
        unclipped, next_round, clip = None, self._privacy, self._privacy.clip
        if isinstance(clip, AdaptiveClip):
            unclipped = balance / denominator + 0.5
            next_round = replace(next_round, clip=clip.after(unclipped))
        return PrivateResult(
            arrays=arrays,
            digest=digest,
            sites=sites,
            denominator=denominator,
            noise_stddev=sigma * 2.0**-exponent / denominator,
            unclipped=unclipped,
            next_round=next_round,
        )
