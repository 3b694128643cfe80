"""Ctrl-C and SIGTERM end the demo between two steps, never in the middle of one.

Python raises KeyboardInterrupt wherever the program happens to be. In a destructor, or in a
callback of a library, it would only be printed and lost, and the demo would go on.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_asked = threading.Event()


@contextmanager
def stops_between_steps() -> Iterator[None]:
    """Within it, both signals are remembered until the next stop_if_asked()."""

    def remember(number: int, frame: FrameType | None) -> None:
        _asked.set()

    _asked.clear()
    previous = {
        number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def stop_if_asked() -> None:
    """Raises KeyboardInterrupt, once, if a signal came. Called wherever the demo may end."""
    if _asked.is_set():
        _asked.clear()  # what cleans up now must not be interrupted in turn
        raise KeyboardInterrupt
