"""How much of the coordinator one member may take: settings, and what counts by them."""

from __future__ import annotations

from dataclasses import dataclass, fields

from veilsum.errors import ConfigError

_MOST = 1 << 20


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """The table [limits] of coordinator.toml. A member is a role and a name: all its connections
    and processes count together, so whoever goes beyond them is alone in what follows.

    Attributes:
        calls: open calls of one member, and calls of one connection. A site's next one ends its
            oldest, which is most likely left over from a connection that broke; other members are
            refused. Of those that carry large messages four can be open.
        calls_per_s, calls_at_once: how often a member may call in the long run, and in a burst.
        joins_per_s, joins_at_once: the same for a site's Join: a process that begins anew is told
            to everybody and written down.
        messages_per_s, messages_at_once: the same for the messages of its streams, other than
            those of uploads, which what an update may consist of bounds. A large one counts for
            several, also where it is a request or begins an upload: reading one of 2 MiB takes
            as long as a hundred small ones.
        first_message_s: how long a call that streams may wait before it says anything.
        unread_s: how long a message may wait for a caller that does not read.
        handshake_s: how long a connection may take to show its certificate.
        connections: open connections, of whomever.
        connection_idle_s: how long one may stay without a call.

    Raises:
        ConfigError: a limit is not positive, or would never let anything through.
    """

    calls: int = 16
    calls_per_s: float = 20.0
    calls_at_once: int = 200
    joins_per_s: float = 0.5
    joins_at_once: int = 60
    messages_per_s: float = 50.0
    messages_at_once: int = 1000
    first_message_s: float = 30.0
    unread_s: float = 60.0
    handshake_s: float = 20.0
    connections: int = 8192
    connection_idle_s: float = 600.0

    def __post_init__(self) -> None:
        for column in fields(self):
            value = getattr(self, column.name)
            least = 1 if isinstance(value, int) else 0.001
            if not least <= value <= _MOST:
                raise ConfigError(f"limits.{column.name} must be {least} to {_MOST}, got {value}")
        if self.calls < LEAST_CALLS:
            raise ConfigError(
                f"limits.calls must be {LEAST_CALLS} or more, got {self.calls}",
                hint="a site has its Join, an upload and a download open at once, and those of a "
                "connection that broke for a while",
            )


LEAST_CALLS = 8


class Bucket:
    """Lets `per_s` things through each second, and `at_once` after a pause. Begins full.

    Args:
        now: seconds, on a clock that does not go back; the same in all calls.
    """

    def __init__(self, per_s: float, at_once: int, now: float) -> None:
        self._per_s = per_s
        self._at_once = float(at_once)
        self._left = self._at_once
        self._then = now

    def take(self, now: float, number: int = 1) -> bool:
        """Whether one more may pass now, or `number` at once; if so, they have. More than a whole
        burst pass as a whole burst."""
        self._fill(now)
        wanted = min(float(number), self._at_once)
        if self._left < wanted:
            return False
        self._left -= wanted
        return True

    def full(self, now: float) -> bool:
        """Whether it is as it began, so that a new one would do."""
        self._fill(now)
        return self._left >= self._at_once

    def _fill(self, now: float) -> None:
        self._left = min(self._at_once, self._left + (now - self._then) * self._per_s)
        self._then = now
