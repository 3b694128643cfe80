"""Flower's SecAgg+: its own mod and its own workflow, over a grid that is a function call.

All shares for everybody (num_shares=1.0), the threshold that Flower's examples use, and its
defaults: values of 22 bits between -8 and 8, sums of 32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from veilsum.bench.contenders import Checked, Contender, Work
from veilsum.bench.peers.flower import quiet
from veilsum.bench.sides import clock_of

if TYPE_CHECKING:
    from veilsum.bench.masked import MaskedPayload

THRESHOLD = 0.6
_CLIP, _LEVELS, _MAX_WEIGHT = 8.0, 1 << 22, 1000.0


@dataclass
class _Round:
    """One round: who is there, and what the parts took."""

    payload: MaskedPayload
    timer: Callable[[], float]
    contexts: dict[int, Any] = field(default_factory=dict)
    in_clients: float = 0.0
    masking: list[float] = field(default_factory=list)

    def send_and_receive(
        self, messages: Iterable[Any], *, timeout: float | None = None
    ) -> list[Any]:
        """The grid's call: each client's mod answers at once."""
        began = self.timer()
        answers = [self._answer(message) for message in messages]
        self.in_clients += self.timer() - began
        return answers

    def _answer(self, message: Any) -> Any:
        from flwr.app import ConfigRecord, RecordDict
        from flwr.client.mod import secaggplus_mod

        node = message.metadata.dst_node_id
        # The mod takes settings out of a record that, over a network, would be its own.
        content = RecordDict(dict(message.content))
        for name, record in message.content.config_records.items():
            content[name] = ConfigRecord(dict(record))
        message.content = content
        training = 0.0

        def train(asked: Any, context: Any) -> Any:
            nonlocal training
            began = self.timer()
            trained = self._fit(node, asked)
            training = self.timer() - began
            return trained

        began = self.timer()
        answer = secaggplus_mod(message, self.contexts[node], train)
        if training:
            self.masking.append(self.timer() - began - training)
        return answer

    def _fit(self, node: int, asked: Any) -> Any:
        from flwr.app import Message
        from flwr.common import Code, FitRes, Status, ndarrays_to_parameters
        from flwr.compat.common import recorddict_compat as compat

        from veilsum.bench.masked import WEIGHT

        parameters = ndarrays_to_parameters([self.payload.rows[node - 1]])
        found = FitRes(Status(Code.OK, ""), parameters, WEIGHT, {})
        return Message(compat.fitres_to_recorddict(found, keep_input=True), reply_to=asked)


def _workflow(payload: MaskedPayload, threads: int) -> Work:
    from flwr.server.workflow import SecAggPlusWorkflow

    quiet()
    timer = clock_of(threads)
    nodes = range(1, len(payload.rows) + 1)
    workflow = SecAggPlusWorkflow(1.0, THRESHOLD, max_weight=_MAX_WEIGHT, clipping_range=_CLIP)

    def fresh() -> tuple[_Round, Any]:
        made = _Round(payload, timer, {node: _context(node) for node in nodes})
        return made, _legacy_context(nodes)

    def call(made: _Round, context: Any) -> tuple[_Round, Any, float]:
        from flwr.server.workflow.secure_aggregation.secaggplus_workflow import WorkflowState

        state: Any = WorkflowState()
        grid: Any = made
        for stage in (workflow.setup_stage, workflow.share_keys_stage):
            stage(grid, context, state)
        made.in_clients, began = 0.0, timer()
        for stage in (workflow.collect_masked_vectors_stage, workflow.unmask_stage):
            stage(grid, context, state)
        return made, context, timer() - began - made.in_clients

    return Work(call, lambda found: _checked(payload, found[1]), fresh=fresh, parts=_parts)


def _parts(found: tuple[_Round, Any, float]) -> Mapping[str, float]:
    from veilsum.bench.masked import SERVER, SITE

    made, _, server = found
    return {SITE: median(made.masking), SERVER: server}


def _checked(payload: MaskedPayload, context: Any) -> Checked:
    """Each of n values moves by less than a step, after it was multiplied by its weight's share of
    the largest weight; so their mean by less than a step over that share."""
    from flwr.server.workflow.constant import MAIN_PARAMS_RECORD

    from veilsum.bench.masked import WEIGHT

    [array] = context.state.array_records[MAIN_PARAMS_RECORD].values()
    step = 2 * _CLIP / _LEVELS * _MAX_WEIGHT / WEIGHT
    return payload.check(np.asarray(array.numpy()), step)


# --- what Flower needs around it -----------------------------------------------------------


def _context(node: int) -> Any:
    from flwr.app import Context, RecordDict

    return Context(run_id=1, node_id=node, node_config={}, state=RecordDict(), run_config={})


def _legacy_context(nodes: Iterable[int]) -> Any:
    from flwr.app import ConfigRecord
    from flwr.common import ndarrays_to_parameters
    from flwr.compat.common import recorddict_compat as compat
    from flwr.server import LegacyContext, ServerConfig, SimpleClientManager
    from flwr.server.strategy import FedAvg
    from flwr.server.workflow.constant import (
        MAIN_CONFIGS_RECORD,
        MAIN_PARAMS_RECORD,
        Key,
    )

    manager = SimpleClientManager()
    for node in nodes:
        manager.register(_proxy(node))
    count = len(manager)
    strategy = FedAvg(min_fit_clients=count, min_available_clients=count)
    context = LegacyContext(_context(0), ServerConfig(num_rounds=1), strategy, manager)
    nothing = compat.parameters_to_arrayrecord(ndarrays_to_parameters([np.zeros(1)]), False)
    context.state.array_records[MAIN_PARAMS_RECORD] = nothing
    context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({Key.CURRENT_ROUND: 1})
    return context


def _proxy(node: int) -> Any:
    from flwr.server.client_proxy import ClientProxy

    class Proxy(ClientProxy):
        """Has a number; nobody calls it."""

        def __init__(self) -> None:
            super().__init__(cid=str(node))
            self.node_id = node

        def get_properties(self, *args: Any) -> Any: ...

        def get_parameters(self, *args: Any) -> Any: ...

        def fit(self, *args: Any) -> Any: ...

        def evaluate(self, *args: Any) -> Any: ...

        def reconnect(self, *args: Any) -> Any: ...

    return Proxy()


ROUNDS = (Contender("Flower SecAgg+", _workflow, host="flwr", memory=float("inf")),)
