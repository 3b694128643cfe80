"""Peak memory of a Flower server process: Flower's FedAvg, and veilsum's in its place.

    python bench/host_memory.py                        40 clients, 25 million parameters in float32
    python bench/host_memory.py --clients 8 --parameters 1000000 --json

Each strategy runs one round in a process of its own, and its peak is the kernel's accounting
(VmHWM), counted from what was resident before the round. The grid is in that process, too: it
makes a reply when the reply is pulled, as one that has just arrived. Flower's own grids pull until
they have all of them and hand over a list; this one does the same when it is asked for all. The new
model is held against float64 before anything is reported.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from veilsum.bench import machine

MIB = 1 << 20
STRATEGIES = ("flower", "veilsum", "veilsum, in memory")
_PIECE = 1 << 16
_SPARE_BYTES = 2 << 30


class Replying:
    """Clients: number k has the model times 1 + k / 64, and k + 1 examples."""

    def __init__(self, parameters: int, tensors: int) -> None:
        values = np.random.default_rng(4).standard_normal(parameters, dtype=np.float32)
        self.model = {
            f"layer-{number}": part for number, part in enumerate(np.array_split(values, tensors))
        }

    def update(self, client: int) -> dict[str, np.ndarray[Any, Any]]:
        """In float32."""
        factor = np.float32(1 + client / 64)
        return {name: values * factor for name, values in self.model.items()}

    def error(self, found: dict[str, np.ndarray[Any, Any]], clients: int) -> float:
        """The largest error, in units of a rounding of the largest term; one piece at a time."""
        worst = 0.0
        weights = np.arange(1, clients + 1, dtype=np.float64)
        factors = np.array([np.float32(1 + k / 64) for k in range(clients)])
        for name, values in self.model.items():
            for first in range(0, values.size, _PIECE):
                part = values[first : first + _PIECE]
                updates = (factors[:, None] * part[None, :]).astype(np.float64)  # rounded before
                exact = weights @ updates / weights.sum()
                off = np.abs(found[name][first : first + _PIECE] - exact)
                unit = np.abs(part).astype(np.float64) * factors[-1] * 2.0**-24 + 1e-45
                worst = max(worst, float((off / unit).max()))
        return worst


def grid_of(replying: Replying, clients: int) -> Any:
    """A Flower grid whose replies are made when they are pulled."""
    from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
    from flwr.serverapp import Grid

    def array(values: np.ndarray[Any, Any]) -> Any:
        file = io.BytesIO()
        np.save(file, values, allow_pickle=False)
        return Array(str(values.dtype), values.shape, "numpy.ndarray", file.getvalue())

    class Clients(Grid):
        def __init__(self) -> None:
            self.sent: dict[str, Any] = {}

        def set_run(self, run: Any) -> None:
            raise NotImplementedError

        @property
        def run(self) -> Any:
            raise NotImplementedError

        def create_message(self, *args: Any, **kwargs: Any) -> Any:
            raise NotImplementedError

        def get_node_ids(self) -> Iterable[int]:
            return range(1, clients + 1)

        def push_messages(self, messages: Iterable[Any]) -> Iterable[str]:
            new = {f"to-{message.metadata.dst_node_id}": message for message in messages}
            self.sent |= new
            return list(new)

        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Any]:
            return [self._reply(self.sent.pop(name)) for name in message_ids]

        def send_and_receive(self, messages: Iterable[Any], *, timeout: Any = None) -> Any:
            return [
                reply
                for name in self.push_messages(messages)
                for reply in self.pull_messages([name])
            ]

        def _reply(self, message: Any) -> Any:
            client = message.metadata.dst_node_id - 1
            update = replying.update(client)
            record = ArrayRecord({name: array(values) for name, values in update.items()})
            weight = MetricRecord({"num-examples": client + 1})
            return Message(RecordDict({"arrays": record, "metrics": weight}), reply_to=message)

    return Clients()


def strategy_of(name: str, clients: int) -> Any:
    counts = {
        "fraction_evaluate": 0.0,
        "min_train_nodes": clients,
        "min_available_nodes": clients,
    }
    if name == "flower":
        from flwr.serverapp.strategy import FedAvg

        return FedAvg(**counts)
    from veilsum.integrations.flower import FedAvg as Ours

    return Ours(**counts, in_memory=name != "veilsum")


def one(name: str, clients: int, parameters: int, tensors: int) -> dict[str, Any]:
    """A server's round, in this process."""
    from flwr.app import Array, ArrayRecord
    from flwr.supercore.task_identity import TaskIdentity

    logging.getLogger("flwr").setLevel(logging.ERROR)
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    replying = Replying(parameters, tensors)
    start = ArrayRecord({name: Array(values) for name, values in replying.model.items()})
    grid, strategy = grid_of(replying, clients), strategy_of(name, clients)
    machine.forget_peak()
    before = machine.memory("VmRSS")
    result = strategy.start(grid, start, num_rounds=1)
    peak = machine.memory("VmHWM")
    found = {key: value.numpy() for key, value in result.arrays.items()}
    return {
        "strategy": name,
        "clients": clients,
        "parameters": parameters,
        "peak MiB": peak // MIB,
        "of the round, MiB": (peak - before) // MIB,
        "of the round, models": round((peak - before) / (4 * parameters), 2),
        "error, roundings": round(replying.error(found, clients), 3),
    }


def lines(chosen: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One process after the other."""
    for name in STRATEGIES:
        needed = (chosen.clients + 6) * 4 * chosen.parameters
        if machine.available_bytes() < needed + _SPARE_BYTES * (needed > _SPARE_BYTES):
            raise SystemExit(f"{name} may need {needed / 1e9:.1f} GB, which are not free")
        sizes = [str(chosen.clients), str(chosen.parameters), str(chosen.tensors)]
        done = subprocess.run(
            [sys.executable, __file__, "--one", name, *sizes],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        found = json.loads(done.stdout.splitlines()[-1])
        # Flower rounds on the way, ours once.
        allowed = chosen.clients + 3 if name == "flower" else 1.001
        if not found["error, roundings"] <= allowed:
            raise SystemExit(f"the new model of {name} is off: {found}")
        yield found


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        name, *sizes = sys.argv[2:]
        print(json.dumps(one(name, *map(int, sizes))))
        return
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clients", type=int, default=40)
    parser.add_argument("--parameters", type=int, default=25_000_000)
    parser.add_argument("--tensors", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    for line in lines(chosen):
        text = "  ".join(f"{key} {value}" for key, value in line.items())
        print(json.dumps(line) if chosen.json else text, flush=True)


if __name__ == "__main__":
    main()
