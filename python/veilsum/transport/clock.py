"""The core's clock."""

from __future__ import annotations

import time


class Clock:
    """Seconds that do not go back, also not from one process to the next: the time in which none
    ran is nobody's."""

    def __init__(self) -> None:
        self._offset = -time.monotonic()

    def now(self) -> float:
        """Seconds since some moment."""
        return time.monotonic() + self._offset

    def go_on_from(self, last: float) -> None:
        """An earlier process came so far."""
        self._offset = max(self._offset, last - time.monotonic())
