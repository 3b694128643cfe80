"""Memory that was freed goes back to the system.

Frames of a megabyte come and go by the thousand, in many threads. What they leave between smaller
things the C library keeps for later, some half a megabyte for each site that has uploaded.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

_BYTES = 64 << 20


def _trimmer() -> Callable[[int], int] | None:
    """glibc's malloc_trim; other C libraries keep less, and have none."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None)


class Heap:
    """Gives back what is free, each time so much has passed through. Blocks for milliseconds; for
    one thread at a time."""

    def __init__(self, trim: Callable[[int], int] | None = None) -> None:
        self._trim = trim or _trimmer()
        self._passed = 0

    def passed(self, size: int) -> None:
        """So many bytes came in and are freed by now, or soon."""
        self._passed += size
        if self._passed >= _BYTES:
            self._passed = 0
            if self._trim is not None:
                self._trim(0)
