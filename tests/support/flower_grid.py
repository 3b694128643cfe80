"""A Flower federation in one process: a grid whose nodes are functions."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.task_identity import TaskIdentity

Node = Callable[[Message], Message | None]
"""Answers a message; None for a node that never does."""


@contextmanager
def flower_task() -> Iterator[None]:
    """Messages can be made, as inside a process that Flower started."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    yield
    TaskIdentity._run_id = TaskIdentity._node_id = TaskIdentity._task_id = None


def over_the_wire(message: Message) -> Message:
    """What arrives of a message: its objects, taken apart into bytes and put together again."""
    contents = {name: part.deflate() for name, part in get_all_nested_objects(message).items()}
    return inflate_object_from_contents(message.object_id, contents)


def train_reply(message: Message, arrays: Any, weight: Any, **metrics: Any) -> Message:
    """A reply as ClientApps send it.

    Args:
        arrays: an ArrayRecord, or arrays by name.
    """
    record = arrays if isinstance(arrays, ArrayRecord) else record_of(arrays)
    content = RecordDict(
        {"arrays": record, "metrics": MetricRecord({"num-examples": weight, **metrics})}
    )
    return Message(content, reply_to=message)


def error_reply(message: Message, reason: str) -> Message:
    """What Flower sends for an app that failed."""
    return Message(Error(code=0, reason=reason), reply_to=message)


def record_of(arrays: Mapping[str, Any]) -> ArrayRecord:
    """A record as ClientApps make it from NumPy arrays."""
    return ArrayRecord({name: Array(np.asarray(values)) for name, values in arrays.items()})


class LocalGrid(Grid):
    """Nodes answer when their reply is pulled.

    Attributes:
        most_at_once: the largest number of replies whose arrays were in memory at a time.
        pulls: message ids of each pull.
    """

    def __init__(self, nodes: Mapping[int, Node]) -> None:
        self.nodes = dict(nodes)
        self.most_at_once = 0
        self.pulls: list[tuple[str, ...]] = []
        self._sent: dict[str, Message] = {}
        self._arrays: list[weakref.ref[Array]] = []

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        names = []
        for message in messages:
            name = f"message-{len(self._sent) + len(self.pulls)}-{message.metadata.dst_node_id}"
            message.metadata.__dict__["_message_id"] = name
            self._sent[name] = message
            names.append(name)
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self.pulls.append(tuple(message_ids))
        replies = []
        for name in self.pulls[-1]:
            reply = self.nodes[self._sent[name].metadata.dst_node_id](self._sent[name])
            if reply is not None:
                replies.append(over_the_wire(reply))
                self._watch(replies[-1])
        return replies

    def _watch(self, reply: Message) -> None:
        """One array of each reply stands for all."""
        if reply.has_content():
            records = [r for r in reply.content.values() if isinstance(r, ArrayRecord)]
            self._arrays += [weakref.ref(next(iter(r.values()))) for r in records if r]
        alive = sum(array() is not None for array in self._arrays)
        self.most_at_once = max(self.most_at_once, alive)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """As Flower's grids, of nodes that answer at once or never."""
        return self.pull_messages(self.push_messages(messages))
