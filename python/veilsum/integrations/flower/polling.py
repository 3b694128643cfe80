"""When to ask a SuperLink again: Flower announces nothing, whoever waits for something asks."""

from __future__ import annotations

import time
from typing import Protocol

_SHORTEST_S, _LONGEST_S = 0.05, 3.0
_SHARE = 0.25


class Clock(Protocol):
    """What deadlines are measured with."""

    def now(self) -> float:
        """Seconds since any fixed moment."""

    def wait(self, seconds: float) -> None:
        """Returns when they have passed."""


class SystemClock:
    """The one of this machine."""

    def now(self) -> float:
        """As of Clock."""
        return time.monotonic()

    def wait(self, seconds: float) -> None:
        """As of Clock."""
        time.sleep(seconds)


class Polling:
    """The pauses of someone who asks again and again, longer the longer nothing has happened.

    A pause is a quarter of that time, from 0.05 s to 3 s: so whatever comes is noticed at most a
    quarter later than it could have been, and ten minutes of silence cost some 220 questions.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._quiet_since = clock.now()

    def happened(self) -> None:
        """Something has come, or was sent: more may soon."""
        self._quiet_since = self._clock.now()

    def pause(self, until: float | None = None) -> None:
        """Waits.

        Args:
            until: when a deadline passes, by the clock; the pause ends then.
        """
        now = self._clock.now()
        seconds = min(max(_SHORTEST_S, _SHARE * (now - self._quiet_since)), _LONGEST_S)
        if until is not None:
            seconds = min(seconds, max(0.0, until - now))
        self._clock.wait(seconds)
