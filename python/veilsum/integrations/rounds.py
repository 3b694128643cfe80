"""One round's sum: updates in, one model out. It knows nothing of the host's messages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from veilsum.aggregate import Aggregator
from veilsum.difference import model_difference
from veilsum.errors import ConfigError, PeerError
from veilsum.integrations.folding import Folding
from veilsum.integrations.payload import NativePayload
from veilsum.model import ModelLayout, result_digest
from veilsum.optimizers import ServerOptimizer


@dataclass(frozen=True, slots=True)
class Model:
    """A model's arrays and what they look like; bfloat16 as uint16 bit patterns."""

    layout: ModelLayout
    arrays: dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Difference:
    """A site's model minus the one that it received, as its host says; arrays as Model's."""

    layout: ModelLayout
    arrays: dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class RoundReport:
    """What became of one round.

    Attributes:
        digest: hex SHA-256 that names the new model to the last bit (docs/numerics.md).
        total_weight: sum of the weights of the updates in it.
        sites: whose updates are in it, sorted.
        refused: site -> why its reply is not in it.
        selected: the sites with a part in the model, where a rule selects some; else None.
    """

    digest: str
    total_weight: int
    sites: tuple[str, ...]
    refused: Mapping[str, str] = field(default_factory=dict)
    selected: tuple[str, ...] | None = None


class Rounds:
    """The rounds of one run: what the optimizer carries from one to the next."""

    def __init__(self, folding: Folding) -> None:
        self._folding = folding
        self._optimizer: ServerOptimizer | None = None

    @contextmanager
    def opened(self, model: Model | None) -> Iterator[RoundSum]:
        """One round's sum. What it keeps on disk is gone when the `with` ends.

        Args:
            model: that the round starts from; None if it is not known, in which case the first
                update says what all must look like.

        Raises:
            ConfigError: differences are to be summed, and the model is not known.
        """
        with self._folding.kept() as spool:
            round_sum = RoundSum(self._folding, model, spool, self._stepping)
            try:
                yield round_sum
            finally:
                round_sum.close()  # before the directory goes

    def _stepping(self, layout: ModelLayout) -> ServerOptimizer:
        if self._optimizer is None:
            self._optimizer = self._folding.started_optimizer(layout)
        return self._optimizer


class RoundSum:
    """The sum of one round. See Rounds.opened."""

    def __init__(
        self,
        folding: Folding,
        model: Model | None,
        spool: str | None,
        stepping: Callable[[ModelLayout], ServerOptimizer],
    ) -> None:
        if folding.takes_differences and model is None:
            raise ConfigError(
                "differences are summed, but the model that they are differences to is not known",
                hint="let the host tell of the model when the round begins",
            )
        self._folding = folding
        self._weighted = folding.is_weighted
        self._model = model
        self._spool = spool
        self._stepping = stepping
        self._sum = None if model is None else folding.aggregator(model.layout, spool)

    def add(self, site: str, weight: int, update: Model | Difference | NativePayload) -> None:
        """Adds one site's update. A call that raises has changed nothing.

        Args:
            update: the site's model, its difference to the round's, or what was encoded there.

        Raises:
            PeerError, DecodeError: the update is not as it must be.
            ConfigError: there is no room to keep it.
        """
        weight = weight if self._weighted else 1
        if isinstance(update, NativePayload):
            self._require_pairing(site, is_difference=update.difference, encoded=True)
            encoded = update.parsed(self._sum.layout if self._sum else None)
            total = self._sum or self._folding.aggregator(encoded.layout, self._spool)
            total.add(encoded, weight=weight, site=site)
        else:
            if isinstance(update, Difference):
                self._require_pairing(site, is_difference=True)
            total = self._sum or self._folding.aggregator(update.layout, self._spool)
            total.add(self._summand(site, update), weight=weight, site=site)
        self._sum = total

    def finish(self) -> tuple[Model, RoundReport]:
        """The new model, and what became of the round; its bfloat16 tensors are float32.

        Raises:
            ConfigError: nothing was added, or the rule or the optimizer cannot do it.
        """
        if self._sum is None:
            raise ConfigError("no update was added")
        if self._folding.takes_differences:
            return self._stepped(self._sum)
        result = self._sum.finish()
        report = RoundReport(
            result.digest, result.total_weight, result.sites, selected=result.selected
        )
        return Model(self._sum.layout, result.arrays), report

    def close(self) -> None:
        """Lets go of the updates."""
        self._sum = None

    def _require_pairing(self, site: str, *, is_difference: bool, encoded: bool = False) -> None:
        if is_difference and not self._folding.takes_differences:
            raise PeerError(
                site,
                "sent a difference, and models are summed here",
                hint="set difference=True where updates are summed, or let sites send models",
            )
        if encoded and self._folding.takes_differences and not is_difference:
            raise PeerError(
                site,
                "sent an encoded model, and differences are summed here",
                hint="let sites encode differences",
            )

    def _summand(self, site: str, update: Model | Difference) -> dict[str, NDArray[Any]]:
        if isinstance(update, Difference) or not self._folding.takes_differences:
            return update.arrays
        assert self._model is not None  # there are no differences without
        try:
            return model_difference(self._model.layout, update.arrays, self._model.arrays)
        except ConfigError as error:
            raise PeerError(site, f"sent a bad update: {error}", hint=error.hint) from error

    def _stepped(self, total: Aggregator) -> tuple[Model, RoundReport]:
        assert self._model is not None  # there are no differences without
        optimizer = self._stepping(total.layout)
        if self._folding.is_mean:  # in one pass, with the same bits
            step = total.finish_step(self._model.arrays, optimizer)
            report = RoundReport(step.digest, step.total_weight, step.sites)
            return Model(total.layout, step.arrays), report
        result = total.finish()
        arrays = optimizer.step(self._model.arrays, result.arrays)
        report = RoundReport(
            result_digest(total.layout, arrays),
            result.total_weight,
            result.sites,
            selected=result.selected,
        )
        return Model(total.layout, arrays), report
