"""One round as the aggregator goes through it: opened, contributions in, a result out."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace

from veilsum.errors import DecodeError, PeerError, RoundAborted, VeilsumError
from veilsum.integrations.nvflare.contribution import Contribution
from veilsum.integrations.nvflare.metrics import MetricsMean
from veilsum.integrations.nvflare.payload import native_bytes, one_by_one, read_params
from veilsum.integrations.nvflare.staging import staged
from veilsum.integrations.nvflare.tensors import Tensor, gathered
from veilsum.integrations.payload import NativePayload
from veilsum.integrations.rounds import Difference, Model, RoundReport, Rounds


@dataclass(frozen=True, slots=True)
class Kinds:
    """Kinds of contributions that a round takes.

    Attributes:
        is_difference: whether they are differences to the model; None if the first one says.
        takes_both: whether models and differences may come together.
    """

    is_difference: bool | None
    takes_both: bool


class OpenRound:
    """The sum of one round, from the first contribution to its result. For one thread at a time.

    Attributes:
        number: of the round.
        metrics: of the contributions so far.
        is_difference: whether contributions are differences to the model; None if the first one
            has still to say.
        refused: site -> why it has no part.
    """

    def __init__(
        self, rounds: Rounds, number: int, model: Model | None, kinds: Kinds, *, on_disk: bool
    ) -> None:
        """Opens it.

        Args:
            model: that it starts from; None if the first contribution says what all look like.
            kinds: of contributions that may come.
            on_disk: whether decoded tensors wait in a file until they are summed.
        """
        self.number = number
        self.metrics = MetricsMean()
        self.is_difference = kinds.is_difference
        self.refused: dict[str, str] = {}
        self._layout = None if model is None else model.layout
        self._kind_is_given = kinds.is_difference is not None
        self._takes_both = kinds.takes_both
        self._on_disk = on_disk
        self._sites: set[str] = set()
        self._misfits: set[str] = set()
        self._stack = ExitStack()
        self._sum = self._stack.enter_context(rounds.opened(model))

    def add(self, contribution: Contribution, weight: int) -> list[str]:
        """Adds a contribution. A call that raises has changed nothing but `refused`.

        Returns:
            Names of metrics that are not finite numbers and have no part in the means.

        Raises:
            PeerError: it is a site's second one, or not as it must be.
            ConfigError: there is no room to keep it.
        """
        site = contribution.site
        self._require_welcome(contribution)
        try:
            self._sum.add(site, weight, self._summand(contribution))
        except (DecodeError, PeerError) as error:
            if self._layout is None and self._sites:
                self._misfits.add(site)
            if isinstance(error, PeerError):
                raise
            raise PeerError(site, f"sent a bad update: {error}", hint=error.hint) from error
        self._sites.add(site)
        if self.is_difference is None:
            self.is_difference = contribution.is_difference
        return self.metrics.add(contribution.metrics, weight)

    def refuse(self, site: str, error: VeilsumError) -> None:
        """Remembers why a site has no part in the round."""
        self.refused.setdefault(site, str(error))

    def finish(self) -> tuple[Model, RoundReport]:
        """The result and what became of the round, which is then over.

        Raises:
            RoundAborted: no contribution could be summed.
            ConfigError: the rule or the optimizer cannot do it.
        """
        if not self._sites:
            reasons = "; ".join(self.refused.values()) or "none came"
            raise RoundAborted(f"round {self.number} has no contribution to sum: {reasons}")
        self._require_a_usual_first()
        model, report = self._sum.finish()
        self.close()
        return model, replace(report, refused=dict(self.refused))

    def close(self) -> None:
        """Lets go of the contributions and of what is kept on disk."""
        self._stack.close()

    def _require_a_usual_first(self) -> None:
        """What the first contribution decided must suit most: else one site that is quick would
        put all others out of the round, and be the model alone."""
        misfits = sorted(self._misfits - self._sites)
        if len(misfits) < len(self._sites):
            return
        reasons = "; ".join(self.refused[site] for site in misfits if site in self.refused)
        raise RoundAborted(
            f"round {self.number}: the first contribution decided what all must be like, and "
            f"{len(misfits)} others were refused, {len(self._sites)} summed: {reasons}",
            hint="set expected_data_kind, and layout='model' where sites send the whole model",
        )

    def _require_welcome(self, contribution: Contribution) -> None:
        site = contribution.site
        if site in self._sites:
            raise PeerError(site, f"sent a second result for round {self.number}")
        is_other = self.is_difference not in (None, contribution.is_difference)
        if is_other and not self._takes_both:
            if not self._kind_is_given:
                self._misfits.add(site)
            raise PeerError(
                site,
                f"sent a {_kind(contribution.is_difference)}, this round sums "
                f"{_kind(not contribution.is_difference)}s",
                hint="let all sites send results of one kind; set expected_data_kind",
            )

    def _summand(self, contribution: Contribution) -> Model | Difference | NativePayload:
        native = native_bytes(contribution.params, contribution.meta)
        if native is not None:
            return NativePayload(
                *native, difference=self._takes_both and contribution.is_difference
            )
        tensors: Iterable[Tensor] = read_params(
            contribution.params, contribution.meta, self._layout
        )
        if self._on_disk and one_by_one(contribution.params, contribution.meta):
            tensors = staged(tensors)
        layout, arrays = gathered(tensors)
        if self._takes_both and contribution.is_difference:
            return Difference(layout, arrays)
        return Model(layout, arrays)


def _kind(is_difference: bool) -> str:
    return "difference" if is_difference else "model"
