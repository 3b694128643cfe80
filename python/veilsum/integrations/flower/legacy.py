"""FedAvg of Flower's legacy Strategy API, with veilsum's sum in it."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.app import Array, ArrayRecord
from flwr.common import FitIns, FitRes, Parameters, Scalar
from flwr.server.client_manager import ClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import FedAvg as HostFedAvg
from flwr.serverapp.exception import AggregationError

from veilsum.aggregate import Streaming
from veilsum.errors import ConfigError, DecodeError, PeerError
from veilsum.integrations.flower.arrays import NPY_STYPE, to_record
from veilsum.integrations.flower.replies import read_update, sent_model
from veilsum.integrations.folding import Folding, RuleChoice
from veilsum.integrations.rounds import Model, RoundReport, Rounds, RoundSum
from veilsum.integrations.weights import whole_weight
from veilsum.optimizers import OptimizerSettings

_LOG = logging.getLogger("flwr")  # Flower's own

Results = list[tuple[ClientProxy, FitRes]]


class LegacyFedAvg(HostFedAvg):
    """flwr.server.strategy.FedAvg that sums exactly and checks what it sums.

    An update that cannot be summed costs its site the round and is logged; with
    accept_failures=False it is a failure like others. Flower's legacy workflow holds all replies
    of a round in memory; `inplace` means nothing here.

    Attributes:
        rounds: server round -> what became of it, for rounds with a result.
    """

    def __init__(
        self,
        *,
        rule: RuleChoice = "mean",
        optimizer: OptimizerSettings | str | None = None,
        difference: bool = False,
        backend: str = "cpu",
        threads: int | None = None,
        streaming: Streaming | None = None,
        spool: str | Path | None = None,
        in_memory: bool = False,
        **options: Any,
    ) -> None:
        """Args:
            options: Flower's own; the others are those of folding.Folding.

        Raises:
            ConfigError: settings that cannot work, alone or together.
        """
        super().__init__(**options)
        self.folding = Folding(
            rule, optimizer, difference, backend, threads, streaming, spool, in_memory
        )
        self.rounds: dict[int, RoundReport] = {}
        self._run = Rounds(self.folding)
        self._model: Model | None = None

    def __repr__(self) -> str:
        return f"LegacyFedAvg(accept_failures={self.accept_failures}, {self.folding})"

    def initialize_parameters(self, client_manager: ClientManager) -> Parameters | None:
        """As Flower's; a new run begins."""
        self.rounds = {}
        self._run = Rounds(self.folding)
        return super().initialize_parameters(client_manager)

    def configure_fit(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, FitIns]]:
        """As Flower's; the model that goes out says what results must look like."""
        self._model = sent_model(_record(parameters))
        return super().configure_fit(server_round, parameters, client_manager)

    def aggregate_fit(
        self,
        server_round: int,
        results: Results,
        failures: list[tuple[ClientProxy, FitRes] | BaseException],
    ) -> tuple[Parameters | None, dict[str, Scalar]]:
        """The new model and the metrics.

        Raises:
            AggregationError: no result can be summed and most sites sent one; or the updates
                cannot be kept, or the rule or the optimizer cannot use them.
        """
        if not results or (failures and not self.accept_failures):
            return None, {}
        try:
            with self._run.opened(self._model) as total:
                taken, refused = self._added(results, total)
                if not taken and len(refused) > len(failures):
                    reasons = "; ".join(refused.values())
                    raise AggregationError(f"aggregate_fit: no result can be used: {reasons}")
                if not taken or (refused and not self.accept_failures):
                    return None, {}
                model, report = total.finish()
        except ConfigError as error:
            raise AggregationError(error.in_a_line) from error
        self.rounds[server_round] = replace(report, refused=refused)
        tensors = [array.data for array in to_record(model.layout, model.arrays).values()]
        return Parameters(tensors, NPY_STYPE), self._metrics(server_round, taken)

    def _added(self, results: Results, total: RoundSum) -> tuple[list[FitRes], dict[str, str]]:
        """The results that count, and why others do not."""
        taken: list[FitRes] = []
        refused: dict[str, str] = {}
        for client, result in results:
            try:
                weight = whole_weight(client.cid, result.num_examples, "num_examples")
                total.add(client.cid, weight, read_update(_record(result.parameters)))
            except (PeerError, DecodeError) as error:
                refused[client.cid] = error.in_a_line
                _LOG.warning("Result of client %s is left out: %s", client.cid, error.in_a_line)
                continue
            taken.append(result)
        return taken, refused

    def _metrics(self, server_round: int, taken: list[FitRes]) -> dict[str, Scalar]:
        if self.fit_metrics_aggregation_fn:
            metrics = [(result.num_examples, result.metrics) for result in taken]
            return self.fit_metrics_aggregation_fn(metrics)
        if server_round == 1:
            _LOG.warning("No fit_metrics_aggregation_fn provided")
        return {}


def _record(parameters: Parameters) -> ArrayRecord:
    """The same payloads as a record; the names are the numbers of the tensors."""
    return ArrayRecord(
        {
            str(number): Array(dtype="", shape=(), stype=parameters.tensor_type, data=tensor)
            for number, tensor in enumerate(parameters.tensors)
        }
    )
