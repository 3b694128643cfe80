"""The exact weighted mean of updates that may be read (docs/numerics.md)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from typing_extensions import Buffer

from veilsum import _native
from veilsum.aggregate.adding import (
    Share,
    add_resident,
    add_update,
    whole_weight,
)
from veilsum.aggregate.digest import ResultDigest
from veilsum.arrays import as_native, on_host
from veilsum.codecs import EncodedUpdate
from veilsum.devices import available_threads
from veilsum.errors import ConfigError
from veilsum.model import ModelLayout, is_resident, result_digest, widen_tensors
from veilsum.optimizers import ServerOptimizer
from veilsum.rules import Chain, PreStep, Rule, choose_rule


@dataclass(frozen=True, slots=True)
class Streaming:
    """Declared bounds that let updates be summed on arrival and forgotten.

    Attributes:
        max_abs: largest |value| of floating-point tensors, model units.
        max_total_weight: largest sum of weights.
    """

    max_abs: float
    max_total_weight: int

    def __post_init__(self) -> None:
        if not 0.0 < self.max_abs < math.inf:
            raise ConfigError(f"max_abs must be positive and finite, got {self.max_abs}")
        if not 1 <= self.max_total_weight < 2**53:
            raise ConfigError(f"max_total_weight must be 1 to 2**53-1, got {self.max_total_weight}")


@dataclass(frozen=True, slots=True, eq=False)
class AggregateResult:
    """An aggregate, and what it is the aggregate of.

    Results are equal if their digests and everything else but the arrays are. A result that is
    pickled or copied deeply carries its digest.

    Attributes:
        arrays: name -> array in layout order, shapes and dtypes of the layout; bfloat16
            tensors as float32, which holds them exactly.
        total_weight: sum of the weights.
        sites: whose updates it was taken over, sorted.
        weights: site -> its factor in the floating-point tensors; None for rules that choose
            anew for each coordinate, and for the mean, whose factors are the weights given.
        selected: the sites with a part in the result, where a rule selects some; else None.
    """

    arrays: dict[str, NDArray[Any]]
    _digest: ResultDigest
    total_weight: int
    sites: tuple[str, ...]
    weights: dict[str, float] | None = None
    selected: tuple[str, ...] | None = None

    @property
    def digest(self) -> str:
        """Hex SHA-256 that names the values to the last bit, as of model.result_digest.

        Computed when it is first asked for, and then kept.

        Raises:
            ConfigError: the arrays were changed before it was first asked for.
        """
        return self._digest.hex()

    def to_device(self, device: str) -> dict[str, _native.DeviceArray]:
        """Copies of the arrays in device memory, for CuPy, torch and others that take
        __cuda_array_interface__ or DLPack.

        Args:
            device: "cuda:0", for example; bfloat16 tensors are float32 there too.

        Raises:
            DeviceError: there is no such device, or no room on it.
        """
        return {
            name: _native.DeviceArray(device, *as_native(array, name))
            for name, array in self.arrays.items()
        }

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, AggregateResult):
            return NotImplemented
        return self._identity() == other._identity()

    __hash__ = None  # type: ignore[assignment]  # it has a dict, which may be changed

    def _identity(self) -> tuple[Any, ...]:
        return self.digest, self.total_weight, self.sites, self.weights, self.selected


@dataclass(frozen=True, slots=True)
class SteppedModel:
    """A model after one step, and whose mean it was stepped by.

    Attributes:
        arrays: name -> array in layout order, dtypes of the layout; those of the caller's that
            were written to, or new ones, in host memory (bfloat16 tensors as float32) or on the
            device that the old model lies on.
        digest: hex SHA-256 of the model, as of model.result_digest; "" if it was not asked for.
        total_weight: sum of the weights.
        sites: who took part, sorted.
    """

    arrays: dict[str, Any]
    digest: str
    total_weight: int
    sites: tuple[str, ...]


class Aggregator:
    """Averages updates by weight, or applies another rule to them; the result does not depend
    on the order of arrival.

    Sums are computed in integers: order, threads, chunk size and instruction set do not
    change a bit of the result, which is rounded once to each tensor's dtype. Every call
    releases the GIL; several threads may add at once.
    """

    def __init__(
        self,
        layout: ModelLayout,
        *,
        rule: str | Rule | Sequence[PreStep | Rule] = "mean",
        backend: str = "cpu",
        threads: int | None = None,
        streaming: Streaming | None = None,
        spool: str | Path | None = None,
    ) -> None:
        """Prepares an empty sum.

        Args:
            layout: what every update must look like.
            rule: "mean", a rule of veilsum.rules, or the name of one that needs no settings;
                [pre-step, ..., rule] applies pre-steps first.
            backend: "cpu"; "cuda" or "cuda:1", a device, for what rules do with
                floating-point tensors (docs/gpu.md says what stays on the host); or "emu",
                devices emulated for tests of kernels. The result is the same to the last bit.
            threads: most threads one call may use; by default VEILSUM_THREADS, or one per
                processor that this process may use.
            streaming: sums on arrival and keeps nothing; remove() is then impossible. On a device
                the sums lie there, 8 bytes per parameter, and after an error of it while an
                update was added every further call is a DeviceError.
            spool: a directory. Committed updates are kept there, in files that only this
                user can read and that are removed with the aggregator, instead of in memory.

        Raises:
            ConfigError: an unknown rule or backend, or settings that exclude each other.
            DeviceError: the build has no such backend, or the machine no such device.
        """
        if not isinstance(layout, ModelLayout):
            raise ConfigError(
                f"an aggregator is for a ModelLayout, not for a {type(layout).__name__}",
                hint="give ModelLayout.from_arrays(...) of the model's arrays",
            )
        self._rule = choose_rule(rule)
        _check_choices(self._rule, streaming, spool)
        self._layout = layout
        self._threads = available_threads() if threads is None else threads
        self._native = _native.MeanAggregator(
            layout.native,
            threads=self._threads,
            spool="" if spool is None else str(spool),
            backend=backend,
            streaming_max_abs=float(streaming.max_abs) if streaming else 0.0,
            streaming_max_total_weight=streaming.max_total_weight if streaming else 0,
        )

    @property
    def layout(self) -> ModelLayout:
        """What every update must look like."""
        return self._layout

    @property
    def sites(self) -> tuple[str, ...]:
        """Sites whose updates are in the sum, sorted."""
        return self._native.sites

    @property
    def total_weight(self) -> int:
        """Sum of their weights."""
        return self._native.total_weight

    def add(
        self,
        update: Mapping[str, Any] | EncodedUpdate | Buffer,
        *,
        weight: int,
        site: str,
        copy: bool = True,
        gain: float = 1.0,
    ) -> None:
        """Adds one site's update. A call that raises has changed nothing.

        Args:
            update: arrays by name, as encode() takes them; an encoded update; or the bytes of
                one.
            weight: how much it counts, 1 to 2**31-1; often the number of training samples.
            site: whose it is. A site has one update; remove() it to add another.
            copy: False keeps references to arrays instead of copying them, which halves the
                work. They must then not be changed until the mean is taken; finish() refuses
                changes that could spoil it. Encoded updates are never copied, and arrays
                always are if there is a spool.
            gain: 2**-32 to 1; multiplies the update's floating-point values, but not the weight
                that the sum is divided by (optimizers.fednova_gain).

        Raises:
            PeerError: the update does not fit the layout, holds a value that is not finite or
                beyond a declared bound, weight or gain are not allowed, or the site is there
                already.
            DecodeError: encoded bytes are not as they must be.
            ConfigError: there is no room to keep the update.
        """
        share = Share(site, whole_weight(site, weight), gain)
        if (
            not copy
            and isinstance(update, Mapping)
            and is_resident(self._native.device, self._layout, update)
        ):
            add_resident(self._native, self._layout, update, share)
            return
        add_update(self._native, self._layout, update, share, copy=copy)

    def remove(self, site: str) -> None:
        """Takes a site's update out again.

        Raises:
            ConfigError: the site has none, or the aggregator is streaming.
        """
        self._native.remove(site)

    def finish(
        self, *, rule: str | Rule | Sequence[PreStep | Rule] | None = None
    ) -> AggregateResult:
        """The aggregate of what is in the set now; more may be added afterwards.

        Args:
            rule: instead of the aggregator's own, for example with a seed drawn only now.

        Raises:
            ConfigError: nothing was added; there are fewer updates than the rule needs; or
                weights that differ, or gains, mean nothing to it.
        """
        chain = self._rule if rule is None else choose_rule(rule)
        if not chain.is_mean:
            # One snapshot: what a rule sees must be of one moment, although other threads may
            # be adding.
            snapshot = _native.UpdateSnapshot(self._native)
            outcome = chain.apply(snapshot, self._layout)
            named, digest = self._named(outcome.arrays)
            total = sum(snapshot.weights)
            return AggregateResult(
                named, digest, total, snapshot.sites, outcome.weights, outcome.selected
            )
        # The mean, its sites and its weight likewise: the native core takes all three together.
        arrays, sites, total_weight = self._native.finish_with_sites()
        named, digest = self._named(arrays)
        return AggregateResult(named, digest, total_weight, sites)

    def _named(self, arrays: list[NDArray[Any]]) -> tuple[dict[str, NDArray[Any]], ResultDigest]:
        named = widen_tensors(self._layout, dict(zip(self._layout.names, arrays, strict=True)))
        return named, ResultDigest(self._layout, named, threads=self._threads)

    def finish_step(
        self,
        model: Mapping[str, Any],
        optimizer: ServerOptimizer,
        *,
        gain: float = 1.0,
        out: Mapping[str, Any] | None = None,
        digest: bool = True,
    ) -> SteppedModel:
        """optimizer.step(model, finish().arrays) in one pass, with the same bits: each mean is
        used while it is in the processor's cache and never written to memory.

        The step is made on the host, unless the floating-point tensors of `model` or `out`, or the
        optimizer's moments, lie on the aggregator's device. Then it is made there: what lies there
        is read and written in place, and the rest comes from host memory and goes back to it
        (docs/gpu.md says what that costs). Kernels of other libraries that still read arrays
        which are written to must have been waited for.

        Args:
            model, gain, out: as ServerOptimizer.step takes them; or with all floating-point
                tensors on the aggregator's device, in the layout's dtypes, and integer ones in
                NumPy arrays. Without `out` the new model lies where the old one does.
            digest: whether the result is to have one, which reads a model on a device back.

        Raises:
            ConfigError: nothing was added, the optimizer is for another layout or its moments
                are on another device, or as ServerOptimizer.step. The optimizer is then as a
                failed step leaves it.
            DeviceError: the device fails; the same.
        """
        if not self._rule.is_mean:
            raise ConfigError(
                f"only the mean can be taken in one pass with the step, not {self._rule.rule}",
                hint="use optimizer.step(model, aggregator.finish().arrays)",
            )
        if optimizer.layout != self._layout:
            raise ConfigError("the optimizer is for a model with another layout")
        with optimizer.stepping(model, gain=gain, out=out, device=self._native.device) as (
            step,
            updated,
        ):
            sites, total_weight = self._native.finish_step(step)
        name = result_digest(self._layout, on_host(updated)) if digest else ""
        arrays = optimizer.named(updated, out)
        return SteppedModel(arrays, name, total_weight, sites)


def _check_choices(rule: Chain, streaming: Streaming | None, spool: str | Path | None) -> None:
    """Raises ConfigError for choices that exclude each other."""
    if streaming is not None and not rule.is_mean:
        raise ConfigError(
            f"streaming keeps no updates, which {rule.rule} needs",
            hint="leave out streaming=, or use spool= to save memory",
        )
    if streaming is not None and spool is not None:
        raise ConfigError(
            "streaming keeps no updates, so there is nothing to spool",
            hint="give either streaming= or spool=",
        )
    if spool is not None and not Path(spool).is_dir():
        raise ConfigError(f"spool {str(spool)!r} is not a directory", hint="create it first")
