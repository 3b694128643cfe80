"""How long to wait before trying again."""

from __future__ import annotations

import secrets

_FIRST_SECONDS = 0.1
# With its jitter and a time-out of the attempt before, less than coordinators wait for a site
# (reconnect_s): one that is reachable again finds everybody back in time.
_LONGEST_SECONDS = 10.0
_JITTER = 0.5


class Backoff:
    """Delays that double up to a limit, each varied at random: sites that lost the same
    coordinator at once must not all come back at once."""

    def __init__(self) -> None:
        self._next = _FIRST_SECONDS
        self._random = secrets.SystemRandom()

    def reset(self) -> None:
        """It worked: begin anew."""
        self._next = _FIRST_SECONDS

    def delay(self) -> float:
        """Seconds to wait now."""
        nominal = self._next
        self._next = min(2 * nominal, _LONGEST_SECONDS)
        return nominal * self._random.uniform(1 - _JITTER, 1 + _JITTER)
