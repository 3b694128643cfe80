"""How much is logged: files of bounded size, and lines that others cause as often as they like.

A line that repeats is written a few times and then seldom; how many were left out is in the next
one that is, or in a line of its own.
"""

from __future__ import annotations

import logging
import logging.handlers
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

AT_ONCE = 20
EVERY_S = 6.0
"""A line may come so often in a burst, and then once in so many seconds."""

FILES = 8

_MOST_KEYS = 16_384
_REST = ("", "")  # shares one quota, where there are too many different lines

Key = tuple[str, str]


@dataclass(slots=True)
class _Quota:
    left: float
    then: float
    suppressed: int = 0


class LineLimit:
    """Which lines are written. Safe to use from several threads.

    Args:
        clock: seconds; does not go back.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._mutex = threading.Lock()
        self._quotas: dict[Key, _Quota] = {}
        self._suppressed = 0

    def take(self, event: str, site: str) -> int | None:
        """Whether a line may be written: None if not, else how many like it were not since the
        last one that was."""
        now = self._clock()
        with self._mutex:
            quota = self._quota((event, site), now)
            quota.left = min(AT_ONCE, quota.left + (now - quota.then) / EVERY_S)
            quota.then = now
            if quota.left < 1.0:
                quota.suppressed += 1
                self._suppressed += 1
                return None
            quota.left -= 1.0
            before, quota.suppressed = quota.suppressed, 0
            return before

    def unreported(self) -> list[tuple[str, str, int]]:
        """(event, site, how many) of lines that were not written and not reported so far."""
        with self._mutex:
            found = [(*key, quota.suppressed) for key, quota in self._quotas.items()]
            for quota in self._quotas.values():
                quota.suppressed = 0
        return [entry for entry in found if entry[2]]

    def suppressed(self) -> int:
        """How many lines were not written since the last call."""
        with self._mutex:
            found, self._suppressed = self._suppressed, 0
        return found

    def _quota(self, key: Key, now: float) -> _Quota:
        if key not in self._quotas and len(self._quotas) >= _MOST_KEYS:
            key = _REST
        return self._quotas.setdefault(key, _Quota(AT_ONCE, now))


class BoundedFile(logging.handlers.RotatingFileHandler):
    """A log file with a few older ones beside it, `file`.1 and so on; all together are no larger
    than they may be, or by the last line of each.

    Args:
        max_bytes: of all files together.
    """

    def __init__(self, file: Path, max_bytes: int) -> None:
        super().__init__(file, maxBytes=max_bytes // FILES, backupCount=FILES - 1, encoding="utf-8")
        self._lost = 0

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  logging's name
        """Counts a line that could not be written: a full disk is no reason to stop, and telling
        of it on the same disk none to try again."""
        self._lost += 1

    def lost(self) -> int:
        """How many lines could not be written since the last call."""
        found, self._lost = self._lost, 0
        return found
