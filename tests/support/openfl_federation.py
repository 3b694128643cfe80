"""A federation of OpenFL on loopback: its own plan, aggregator, gRPC services and collaborators.

Collaborators take turns in one thread, because OpenFL's own loop sleeps between questions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import yaml
from numpy.typing import NDArray
from openfl.component import Collaborator
from openfl.federated import Plan
from openfl.protocols import aggregator_pb2_grpc
from openfl.transport import AggregatorGRPCClient, AggregatorGRPCServer
from openfl.utilities import TensorKey

Model = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Trainer:
    """What OpenFL asks of a task runner; `train` makes an update of the named tensors."""

    samples: int
    train: Callable[[Model, int], Model]
    names: tuple[str, ...]

    def set_optimizer_treatment(self, treatment: str) -> None:
        pass

    def get_required_tensorkeys_for_function(self, function: str, **_: Any) -> list[TensorKey]:
        return [TensorKey(name, "GLOBAL", 0, False, ("model",)) for name in self.names]

    def get_train_data_size(self) -> int:
        return self.samples

    def train_task(
        self, col_name: str, round_num: int, input_tensor_dict: Model, **_: Any
    ) -> tuple[dict[TensorKey, NDArray[Any]], dict[TensorKey, NDArray[Any]]]:
        loss = TensorKey("loss", col_name, round_num, True, ("metric",))
        made = {
            TensorKey(name, col_name, round_num, False, ("trained",)): array
            for name, array in self.train(input_tensor_dict, round_num).items()
        }
        return {**made, loss: np.array(self.samples / 1000, dtype=np.float32)}, {}


def plan_for(
    folder: Path, aggregation: Mapping[str, Any], *, rounds: int, deltas: bool, sites: list[str]
) -> Plan:
    """The plan as a file of a workspace has it, parsed by OpenFL.

    Args:
        aggregation: what stands at `aggregation_type`.
        deltas: whether models travel as differences, which are added in float32.
    """
    settings: dict[str, Any] = {
        f"{kind}_state_path": str(folder / f"{kind}.pbuf") for kind in ("init", "best", "last")
    }
    plan = {
        "aggregator": {
            "defaults": "plan/defaults/aggregator.yaml",
            "settings": settings
            | {
                "rounds_to_train": rounds,
                "use_delta_updates": deltas,
                "persist_checkpoint": False,
                "callbacks": [],  # otherwise all aggregators of a process share a list of them
            },
        },
        "assigner": {
            "template": "openfl.component.RandomGroupedAssigner",
            "settings": {
                "task_groups": [{"name": "learning", "percentage": 1.0, "tasks": ["train"]}]
            },
        },
        "tasks": {
            "train": {
                "function": "train_task",
                "kwargs": {"metrics": ["loss"]},
                "aggregation_type": dict(aggregation),
            }
        },
        "network": {"settings": {"agg_addr": "127.0.0.1", "agg_port": 1, "use_tls": False}},
        "collaborator": {"settings": {"use_delta_updates": deltas}},
    }
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan))
    (folder / "cols.yaml").write_text(yaml.safe_dump({"collaborators": sites}))
    return Plan.parse(folder / "plan.yaml", folder / "cols.yaml")


@contextmanager
def _served(aggregator: Any) -> Iterator[int]:
    """OpenFL's own services on a free port; its own server would take connections from anywhere."""
    server = grpc.server(ThreadPoolExecutor(max_workers=2))
    port = server.add_insecure_port("127.0.0.1:0")
    services = AggregatorGRPCServer(aggregator, agg_port=port, use_tls=False)
    aggregator_pb2_grpc.add_AggregatorServicer_to_server(services, server)
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()


def _collaborator(plan: Plan, site: str, trainer: Trainer, port: int) -> Collaborator:
    federation = {
        "aggregator_uuid": plan.aggregator_uuid,
        "federation_uuid": plan.federation_uuid,
        "collaborator_name": site,
    }
    # OpenFL repeats a failed call for ever; here it fails the test.
    client = AggregatorGRPCClient(
        agg_addr="127.0.0.1",
        agg_port=port,
        use_tls=False,
        resend_data_on_reconnection=False,
        **federation,
    )
    return Collaborator(
        client=client,
        task_runner=trainer,
        task_config=plan.get_tasks(),
        use_delta_updates=plan.config["collaborator"]["settings"]["use_delta_updates"],
        callbacks=[],
        **federation,
    )


def run_federation(plan: Plan, model: Model, trainers: Mapping[str, Trainer]) -> Model:
    """The model after all rounds of the plan."""
    aggregator = plan.get_aggregator(tensor_dict=model)
    with _served(aggregator) as port:
        collaborators = [
            _collaborator(plan, site, trainer, port) for site, trainer in trainers.items()
        ]
        try:
            while not aggregator._time_to_quit():
                for collaborator in collaborators:
                    assigned, number, _, _ = collaborator.client.get_tasks()
                    for task in assigned:
                        collaborator.do_task(task, number)
        finally:
            for collaborator in collaborators:
                collaborator.client.disconnect()
    return {
        name: aggregator.tensor_db.get_tensor_from_cache(
            TensorKey(name, aggregator.uuid, aggregator.round_number, False, ("model",))
        )
        for name in model
    }
