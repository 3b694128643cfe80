"""FedAvg of Flower's Message API, with veilsum's sum in it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp import strategy as host
from flwr.serverapp.exception import AggregationError

from veilsum.aggregate import Streaming
from veilsum.errors import ConfigError
from veilsum.integrations.flower.arrays import to_record
from veilsum.integrations.flower.one_by_one import OneByOneGrid
from veilsum.integrations.flower.replies import (
    read_evaluate_reply,
    read_train_reply,
    sent_model,
)
from veilsum.integrations.flower.taking import Taken
from veilsum.integrations.folding import Folding, RuleChoice
from veilsum.integrations.rounds import Model, RoundReport, Rounds, RoundSum
from veilsum.optimizers import OptimizerSettings

_LOG = logging.getLogger("flwr")  # Flower's own

MetricsFunction = Callable[[list[RecordDict], str], MetricRecord]


class FedAvg(host.FedAvg):
    """flwr.serverapp.strategy.FedAvg whose server holds one reply at a time and sums exactly.

    Replies are pulled, checked and folded one by one. A reply that cannot be summed costs its
    site the round and is logged; the round goes on. Messages, sampling, time limits, evaluation
    and metrics are Flower's (docs/embedding.md says what differs).

    Attributes:
        rounds: server round -> what became of it, for rounds with a result.
    """

    def __init__(
        self,
        fraction_train: float = 1.0,
        fraction_evaluate: float = 1.0,
        min_train_nodes: int = 2,
        min_evaluate_nodes: int = 2,
        min_available_nodes: int = 2,
        weighted_by_key: str = "num-examples",
        arrayrecord_key: str = "arrays",
        configrecord_key: str = "config",
        train_metrics_aggr_fn: MetricsFunction | None = None,
        evaluate_metrics_aggr_fn: MetricsFunction | None = None,
        *,
        rule: RuleChoice = "mean",
        optimizer: OptimizerSettings | str | None = None,
        difference: bool = False,
        backend: str = "cpu",
        threads: int | None = None,
        streaming: Streaming | None = None,
        spool: str | Path | None = None,
        in_memory: bool = False,
    ) -> None:
        """The first ten parameters are Flower's, the others those of folding.Folding.

        Raises:
            ConfigError: settings that cannot work, alone or together.
        """
        super().__init__(
            fraction_train,
            fraction_evaluate,
            min_train_nodes,
            min_evaluate_nodes,
            min_available_nodes,
            weighted_by_key,
            arrayrecord_key,
            configrecord_key,
            train_metrics_aggr_fn,
            evaluate_metrics_aggr_fn,
        )
        self.folding = Folding(
            rule, optimizer, difference, backend, threads, streaming, spool, in_memory
        )
        self.rounds: dict[int, RoundReport] = {}
        self._run = Rounds(self.folding)
        self._model: Model | None = None

    def summary(self) -> None:
        """Logs the settings."""
        super().summary()
        _LOG.info("\t└──> veilsum: %s", self.folding)

    def start(
        self, grid: Grid, initial_arrays: ArrayRecord, *args: Any, **kwargs: Any
    ) -> host.Result:
        """Runs the rounds, as Flower's start() does, with the same arguments, and pulls replies
        one by one.

        Raises:
            ConfigError: the model cannot be summed.
            AggregationError: no reply of a round can be used, although most nodes answered.
        """
        self.rounds = {}
        self._run = Rounds(self.folding)
        return super().start(OneByOneGrid(grid), initial_arrays, *args, **kwargs)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As Flower's; the model that goes out says what replies must look like."""
        # A model that is only evaluated need not be one that can be summed.
        self._model = sent_model(arrays) if self.fraction_train else None
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The new model and the metrics; each reply is let go of before the next one is taken.

        Returns:
            (None, None) if no reply could be summed.

        Raises:
            AggregationError: most nodes that were asked sent what cannot be summed, and nobody
                what can; most replies do not fit the first, where there was no model to start
                from; or the updates cannot be kept, or the rule or the optimizer cannot use them.
        """
        if not replies:
            return None, None
        taken = Taken("aggregate_train")
        try:
            with self._run.opened(self._model) as total:
                taken.take(replies, partial(self._add, total))
                if not taken.contents:
                    taken.require_some(replies)
                    return None, None
                if self._model is None:
                    taken.require_a_usual_first()
                model, report = total.finish()
        except ConfigError as error:
            raise AggregationError(error.in_a_line) from error
        self.rounds[server_round] = replace(report, refused=taken.refused)
        _LOG.info("\t└──> Digest of the model: %s", report.digest)
        arrays = to_record(model.layout, model.arrays)
        return arrays, taken.aggregated(self.train_metrics_aggr_fn, self.weighted_by_key)

    def _add(self, total: RoundSum, message: Message, site: str) -> RecordDict:
        """Adds a reply to the sum; what is left of it."""
        reply = read_train_reply(message, site, self.weighted_by_key)
        total.add(site, reply.weight, reply.update)
        return reply.rest

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """The metrics of the sites that sent some.

        Raises:
            AggregationError: most nodes that were asked sent something of no use, and none metrics.
        """
        if not replies:
            return None
        taken = Taken("aggregate_evaluate")
        taken.take(replies, partial(read_evaluate_reply, weighted_by_key=self.weighted_by_key))
        if not taken.contents:
            taken.require_some(replies)
            return None
        return taken.aggregated(self.evaluate_metrics_aggr_fn, self.weighted_by_key)
