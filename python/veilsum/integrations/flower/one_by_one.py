"""A grid that hands replies over one at a time, so that a server holds one and not all."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from google.protobuf.message import Error as ProtobufError

from veilsum.errors import ConfigError
from veilsum.integrations.flower.polling import Clock, Polling, SystemClock

_LOG = logging.getLogger("flwr")  # Flower's own

UNREADABLE = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ProtobufError,
    RecursionError,  # objects within objects, deeper than Python goes
    MemoryError,
)
"""What pulling raises in Flower for a reply whose objects are not as they must be."""


class OneByOneGrid(Grid):
    """Another grid, except that send_and_receive() returns before the replies are there."""

    def __init__(self, grid: Grid, clock: Clock | None = None) -> None:
        self._grid = grid
        self._clock = clock or SystemClock()

    def __getattr__(self, name: str) -> Any:
        if name == "_grid":  # while it is copied or unpickled, there is none
            raise AttributeError(name)
        return getattr(self._grid, name)

    def set_run(self, run: Any) -> None:
        """As of the grid."""
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        """As of the grid."""
        return self._grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """As of the grid."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """As of the grid."""
        return self._grid.get_node_ids()

    def get_nodes(self) -> Iterable[Any]:
        """As of the grid."""
        return self._grid.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """As of the grid."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """As of the grid."""
        return self._grid.pull_messages(message_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Sends the messages; the replies are pulled while the result is iterated over."""
        sent = list(messages)
        if not sent:
            return []
        names = self._grid.push_messages(sent)
        return Replies(self._grid, names, len(sent), timeout, self._clock)


class Replies:
    """The replies to messages, each pulled when the one before it has been dealt with.

    Can be iterated over once.

    Attributes:
        asked: messages that were to be sent.
        unreadable: replies that Flower could not read.
    """

    def __init__(
        self,
        grid: Grid,
        message_ids: Iterable[str | None],
        asked: int,
        timeout_s: float | None,
        clock: Clock,
    ) -> None:
        self.asked = asked
        self.unreadable = 0
        self._grid = grid
        # A grid has None for a message that it could not send, and has logged it.
        self._waiting_for = [name for name in message_ids if name is not None]
        self._timeout_s = timeout_s
        self._clock = clock
        self._deadline = None if timeout_s is None else clock.now() + timeout_s
        self._taken = False

    def __iter__(self) -> Iterator[Message]:
        if self._taken:
            raise ConfigError(
                "replies that are pulled one by one can be iterated over once",
                hint="make a list of them first, which holds them all in memory",
            )
        self._taken = True
        return self._pulled()

    def _pulled(self) -> Iterator[Message]:
        polling = Polling(self._clock)
        while self._waiting_for:
            last = self._deadline is not None and self._clock.now() >= self._deadline
            before = len(self._waiting_for)
            # Also after the deadline all are asked for once more: what was there in time counts,
            # although earlier replies took their time.
            for message_id in tuple(self._waiting_for):
                found = self._pull(message_id)
                while found:
                    yield found.pop()  # and keeps no reference to it
            if last:
                break
            if not self._waiting_for:
                return
            if len(self._waiting_for) < before:
                polling.happened()
            polling.pause(self._deadline)
        if self._waiting_for:
            _LOG.warning(
                "%d of %d nodes sent no reply within %s s; the round goes on without them",
                len(self._waiting_for),
                self.asked,
                self._timeout_s,
            )

    def _pull(self, message_id: str) -> list[Message]:
        try:
            found = list(self._grid.pull_messages([message_id]))
        except UNREADABLE:
            # One site's bytes, which Flower could not read: they cost that site its round.
            _LOG.exception("the reply to message %s cannot be read and is left out", message_id)
            self._waiting_for.remove(message_id)
            self.unreadable += 1
            return []
        if found:
            self._waiting_for.remove(message_id)
        return found
