"""Flower's own simulation engine, link state and grid, with threads where it has Ray."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.proto.task_pb2 import Task
from flwr.server.superlink.fleet.vce import vce_api
from flwr.server.superlink.fleet.vce.backend import Backend
from flwr.server.superlink.fleet.vce.metrics import VceMetrics
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.server.superlink.linkstate.in_memory_linkstate import RunRecord
from flwr.serverapp import Grid
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.grid import InMemoryGrid

_RUN, _TASK = 7, 1


class _Threads(Backend):
    """Runs ClientApps on the engine's worker threads."""

    def __init__(self) -> None:
        super().__init__({})
        self._app: ClientApp | None = None

    def build(self, app_fn: Callable[[], ClientApp]) -> None:
        self._app = app_fn()

    @property
    def num_workers(self) -> int:
        return 2

    def is_worker_idle(self) -> bool:
        return True

    def terminate(self) -> None:
        pass

    def process_message(self, message: Message, context: Context) -> tuple[Message, Context]:
        assert self._app is not None
        return self._app(message, context), context


def run_federation(
    main: Callable[[Grid, Context], Any],
    client_app: ClientApp,
    *,
    nodes: int,
    node_config: Callable[[int], Mapping[str, Any]] = lambda partition: {},
    run_config: Mapping[str, Any] | None = None,
) -> Any:
    """Runs a ServerApp's main function against nodes that run the ClientApp.

    Args:
        node_config: of the node with this partition-id, beside that id.

    Returns:
        What `main` does.
    """
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = _TASK, _RUN, SUPERLINK_NODE_ID
    run = Run.create_empty(run_id=_RUN)
    run.primary_task_id, run.federation_id = _TASK, NOOP_FEDERATION_ID
    factory = LinkStateFactory(
        FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), ObjectStoreFactory()
    )
    state = factory.state()
    state.run_ids[_RUN] = RunRecord(run=run)
    state.task_store[_TASK] = Task(task_id=_TASK, run_id=_RUN)
    mapping = vce_api._register_nodes(num_nodes=nodes, state_factory=factory)
    stores = vce_api._register_node_info_stores(nodes_mapping=mapping, run=run)
    for node_id, partition in mapping.items():
        stores[node_id].node_config.update(node_config(partition))
    stop = threading.Event()
    engine = threading.Thread(
        target=vce_api.run_api,
        args=(lambda: client_app, _Threads, mapping, factory, stores, stop, VceMetrics()),
    )
    engine.start()
    try:
        grid = InMemoryGrid(factory, pull_interval=0.01)
        grid.set_run(run)
        context = Context(
            run_id=_RUN,
            node_id=0,
            node_config={},
            state=RecordDict(),
            run_config=dict(run_config or {}),
        )
        return main(grid, context)
    finally:
        stop.set()
        engine.join()
        TaskIdentity._run_id = TaskIdentity._node_id = TaskIdentity._task_id = None
