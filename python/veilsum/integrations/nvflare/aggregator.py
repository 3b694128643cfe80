"""The aggregator of NVFLARE jobs: exact, bounded, one class for FedAvg and ScatterAndGather."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from nvflare.apis.dxo import DataKind, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.aggregators.model_aggregator import ModelAggregator
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.app_event_type import AppEventType

from veilsum.errors import ConfigError, PeerError, RoundAborted
from veilsum.integrations.nvflare.contribution import Contribution, from_model
from veilsum.integrations.nvflare.contribution import from_shareable as from_result
from veilsum.integrations.nvflare.rounds import Kinds, OpenRound
from veilsum.integrations.nvflare.settings import JobSettings
from veilsum.integrations.nvflare.tensors import like, read_global_model
from veilsum.integrations.nvflare.weighing import Weighing
from veilsum.integrations.rounds import RoundReport, Rounds

DIGEST_KEY = "veilsum.digest"
WEIGHT_KEY = "veilsum.total_weight"


class VeilsumAggregator(ModelAggregator):  # type: ignore[misc]  # NVFLARE has no types
    """Folds each site's result into an exact sum as it arrives; a result that cannot be summed
    costs its site the round and is logged, and the round goes on.

    For aggregator= of FedAvg and FedAvgRecipe, and aggregator_id= of ScatterAndGather.
    Several threads may hand over results; one is taken at a time, which bounds the memory.

    Attributes:
        rounds: number -> what became of the round, for rounds with a result.
    """

    def __init__(
        self,
        rule: str = "mean",
        rule_settings: dict[str, Any] | None = None,
        optimizer: str | None = None,
        optimizer_settings: dict[str, float] | None = None,
        aggregation_weights: dict[str, float] | None = None,
        weigh_by_local_iter: bool = True,
        expected_data_kind: str | None = None,
        layout: str = "model",
        keep: str = "disk",
        max_abs: float | None = None,
        max_total_weight: int | None = None,
        backend: str = "cpu",
        threads: int | None = None,
    ) -> None:
        """Plain values, as a job's configuration has them; nothing is opened or written.

        Args:
            rule: name of a rule (docs/rules.md). One that counts every update the same does.
            rule_settings: its settings by name.
            optimizer: name of one of veilsum.optimizers that steps the round's model by the mean
                difference to it; the result is the new model. None takes the mean as it is.
            optimizer_settings: its parameters by name.
            aggregation_weights: site -> a positive factor of its weight; 1 for others.
            weigh_by_local_iter: whether a site's NUM_STEPS_CURRENT_ROUND is its weight.
            expected_data_kind: "WEIGHTS" or "WEIGHT_DIFF"; None lets the first result say.
            layout: results look like the "model" that the server sent out, or like the "first"
                result, for sites that send a part of the model.
            keep: where results wait for the end of the round, "disk" or "memory".
            max_abs, max_total_weight: declared bounds (veilsum.Streaming); results are then summed
                on arrival and kept nowhere.
            backend, threads: as veilsum.Aggregator takes them.

        Raises:
            ConfigError: values that cannot work, alone or together.
        """
        super().__init__()
        # NVFLARE writes a job's configuration from attributes named like the parameters.
        self.rule, self.rule_settings = rule, rule_settings
        self.optimizer, self.optimizer_settings = optimizer, optimizer_settings
        self.aggregation_weights = aggregation_weights
        self.weigh_by_local_iter = weigh_by_local_iter
        self.expected_data_kind = expected_data_kind
        self.layout, self.keep = layout, keep
        self.max_abs, self.max_total_weight = max_abs, max_total_weight
        self.backend, self.threads = backend, threads
        self._settings = JobSettings.of(self)
        self._weighing = Weighing(aggregation_weights or {}, weigh_by_local_iter)
        self.rounds: dict[int, RoundReport] = {}
        self._lock = threading.Lock()
        self._runs: Rounds | None = None
        self._sent: tuple[int, dict[str, Any]] | None = None
        self._open: OpenRound | None = None
        self._over: int | None = None
        self._examples: Mapping[str, Any] = {}
        self._failure: ConfigError | None = None

    # --- events -----------------------------------------------------------------------------

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Notes the model that goes out, which says what results must look like; and lets go of
        everything when the run ends."""
        super().handle_event(event_type, fl_ctx)
        if event_type == AppEventType.BEFORE_TRAIN_TASK:
            self._note_model(fl_ctx)
        elif event_type == EventType.END_RUN:
            with self._lock:
                self._forget()

    def _note_model(self, fl_ctx: FLContext) -> None:
        task = fl_ctx.get_prop(AppConstants.TRAIN_SHAREABLE)
        number = task.get_header(AppConstants.CURRENT_ROUND)
        if not isinstance(number, int):
            return
        with self._lock:
            if self._sent is not None and self._sent[0] == number:
                return  # the task goes out once per site
            dxo = from_shareable(task)
            # Tensors are shared; the dict is not, since filters and the workflow change it.
            self._sent = number, dict(dxo.data) if dxo.data_kind == DataKind.WEIGHTS else {}

    # --- FedAvg -----------------------------------------------------------------------------

    def accept_model(self, model: FLModel) -> None:
        """Adds a site's result.

        Raises:
            PeerError: it is refused; FedAvg logs that and counts the site as not aggregated.
            ConfigError: it cannot be kept, or the settings do not fit the model or the machine.
        """
        try:
            contribution = from_model(model)
            with self._lock:
                self._add(contribution, self._current_round())
        except PeerError as error:
            self._refused(error)
            raise
        except ConfigError as error:
            # FedAvg logs it and goes on; a round without this result would look well.
            with self._lock:
                self._failure = self._failure or error
            raise

    def aggregate_model(self) -> FLModel:
        """The result of the round.

        Raises:
            RoundAborted: no result could be summed, or most do not fit what the first decided.
            ConfigError: a result could not be kept, or the rule or the optimizer cannot do it.
        """
        with self._lock:
            return self._finished(self._current_round())

    def reset_stats(self) -> None:
        """Lets go of a round that is under way."""
        with self._lock:
            self._forget()
            self._over = None

    # --- ScatterAndGather -------------------------------------------------------------------

    def accept(self, shareable: Shareable, fl_ctx: FLContext) -> bool:
        """Adds a site's result.

        Returns:
            Whether it has a part in the round.
        """
        self.fl_ctx = fl_ctx
        number = fl_ctx.get_prop(AppConstants.CURRENT_ROUND)
        try:
            contribution = from_result(shareable)
            with self._lock:
                self._add(contribution, number)
        except PeerError as error:
            self._refused(error)
            return False
        except ConfigError as error:
            # Not the site's fault, and the same for all: a round without them would look well.
            self.error(str(error))
            self.system_panic(str(error), fl_ctx)
            return False
        return True

    # --- the round --------------------------------------------------------------------------

    def _add(self, contribution: Contribution, number: int) -> None:
        site = contribution.site
        if contribution.round not in (None, number):
            raise PeerError(
                site, f"sent a result of round {contribution.round}, this is round {number}"
            )
        if self._over == number:
            raise PeerError(site, f"sent a result when round {number} was over")
        opened = self._open or self._opened(number)  # also remembers who is refused from here on
        weight = self._weighing.weight(site, contribution.meta)
        left_out = opened.add(contribution, weight)
        if not self._examples:
            self._examples = contribution.params
        if left_out:
            self.warning(
                f"site {site!r}: metrics {', '.join(left_out)} are not finite numbers "
                "and have no part in the means"
            )

    def _opened(self, number: int) -> OpenRound:
        if self._runs is None:
            self._runs = Rounds(self._settings.folding())
        sent = self._sent[1] if self._sent is not None and self._sent[0] == number else {}
        self._examples = sent
        model = read_global_model(sent) if self.layout == "model" else None
        kinds = Kinds(self._settings.is_difference, takes_both=self.optimizer is not None)
        self._open = OpenRound(self._runs, number, model, kinds, on_disk=self.keep == "disk")
        return self._open

    def _finished(self, number: int) -> FLModel:
        opened, self._over, failure = self._open, number, self._failure
        if failure is not None:
            self._forget()
            raise failure
        if opened is None:
            raise RoundAborted(f"round {number} has no contribution to sum: none came")
        try:
            model, report = opened.finish()
        finally:
            examples = self._examples
            self._forget()
        self.rounds[number] = report
        self.info(
            f"round {number}: {len(report.sites)} results summed, {len(report.refused)} refused, "
            f"digest {report.digest}"
        )
        stepped = self.optimizer is not None
        return FLModel(
            params_type=ParamsType.DIFF
            if opened.is_difference and not stepped
            else ParamsType.FULL,
            params=like(model.arrays, examples),
            metrics=opened.metrics.means(),
            current_round=number,
            meta={DIGEST_KEY: report.digest, WEIGHT_KEY: report.total_weight},
        )

    def _refused(self, error: PeerError) -> None:
        self.error(error.in_a_line)
        with self._lock:
            if self._open is not None:
                self._open.refuse(error.site, error)

    def _forget(self) -> None:
        if self._open is not None:
            self._open.close()
        self._open, self._sent, self._examples, self._failure = None, None, {}, None

    def _current_round(self) -> int:
        if self._sent is not None:
            return self._sent[0]
        number = None if self.fl_ctx is None else self.fl_ctx.get_prop(AppConstants.CURRENT_ROUND)
        if not isinstance(number, int):
            raise ConfigError(
                "the round is not known",
                hint="make the aggregator a component of the job, so that it gets its events",
            )
        return number
