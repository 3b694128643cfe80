"""Rows of a state directory, one at a time."""

from __future__ import annotations

from functools import partial

from veilsum.control import RunEvent, RunStatus
from veilsum.transport.storage import Storage
from veilsum.transport.tables import put_event, put_run


def store_run(storage: Storage, status: RunStatus) -> None:
    """A run's state."""
    storage.change([partial(put_run, status=status)])


def store_event(storage: Storage, event: RunEvent) -> int:
    """An event; returns its number."""
    (number,) = storage.change([partial(put_event, event=event)])
    assert isinstance(number, int)
    return number
