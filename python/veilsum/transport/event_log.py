"""Events of the core as they are written down, so that a later process comes to the same state.

An entry holds the event, the time the core was told, and the random bytes that it drew. Updates
are in the spool and named only. Shares of the seeds of masks are never among them: the core says
how an event may be kept (Coordinator.written), and what those shares led to has its own entry.
"""

from __future__ import annotations

import json
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from veilsum.control import Decline, ProtocolMessage, RoundId
from veilsum.coordinator.events import (
    DeadlinePassed,
    Event,
    Proceed,
    SiteJoined,
    SiteLeft,
    SiteSent,
    UpdateArrived,
)
from veilsum.errors import ConfigError, DecodeError
from veilsum.secagg import holds_secrets
from veilsum.transport.wire import decode_to_coordinator, encode_to_coordinator
from veilsum.transport.wire_data import encode_update_header

JOINED, LEFT, SENT, UPDATE, DEADLINE, PROCEED, RESULT = (
    "joined",
    "left",
    "sent",
    "update",
    "deadline",
    "proceed",
    "result",
)
_NOWHERE = RoundId("", 0)


@dataclass(frozen=True, slots=True)
class Entry:
    """One event.

    Attributes:
        kind: JOINED, LEFT, SENT, UPDATE, DEADLINE, PROCEED or RESULT.
        time: seconds that the core was told.
        round: that the event is about; only its run for PROCEED, nothing for JOINED and LEFT.
        text: a reason, the name of a phase, or with a result the sites that are left out.
        data: a message, a header, or what names a site's process.
        draws: random bytes that the core drew, in order.
    """

    kind: str
    time: float
    round: RoundId
    site: str = ""
    text: str = ""
    data: bytes = field(default=b"", repr=False)
    draws: tuple[bytes, ...] = field(default=(), repr=False)


def entry_of(event: Event, time: float, draws: tuple[bytes, ...]) -> Entry:
    """An event as it is written down.

    Raises:
        ConfigError: it is not of a kind that is.
    """
    match event:
        case SiteJoined(site, instance):
            return Entry(JOINED, time, _NOWHERE, site, data=instance, draws=draws)
        case SiteLeft(site, reason):
            return Entry(LEFT, time, _NOWHERE, site, reason, draws=draws)
        case SiteSent(site, message):
            if isinstance(message, ProtocolMessage) and holds_secrets(message.payload):
                raise ConfigError("unmask shares must not be written down")
            data = encode_to_coordinator(message)
            return Entry(SENT, time, message.round, site, data=data, draws=draws)
        case UpdateArrived(site, header):
            data = encode_update_header(header, 0)
            return Entry(UPDATE, time, header.round, site, data=data, draws=draws)
        case DeadlinePassed(round_id, phase):
            return Entry(DEADLINE, time, round_id, text=phase, draws=draws)
        case Proceed(run_id):
            return Entry(PROCEED, time, RoundId(run_id, 0), draws=draws)
        case _:
            raise ConfigError(f"{type(event).__name__} is not an event that is written down")


def result_entry(time: float, round_id: RoundId, result: bytes, left_out: tuple[str, ...]) -> Entry:
    """What unmask shares led to, in place of them; they may have shown sites to be at fault."""
    return Entry(RESULT, time, round_id, text=json.dumps(left_out), data=result)


def left_out_of(entry: Entry) -> tuple[str, ...]:
    """The sites that are left out from a result on.

    Raises:
        DecodeError: the entry is damaged.
    """
    try:
        return tuple(str(site) for site in json.loads(entry.text))
    except (ValueError, TypeError) as error:
        raise DecodeError("the event log holds a damaged result") from error


def event_of(entry: Entry) -> Event:
    """The event of an entry, but for UPDATE and RESULT, whose bytes are elsewhere.

    Raises:
        DecodeError: the entry is damaged.
    """
    match entry.kind:
        case "joined":
            return SiteJoined(entry.site, entry.data)
        case "left":
            return SiteLeft(entry.site, entry.text)
        case "sent":
            message = decode_to_coordinator(entry.data)
            if not isinstance(message, ProtocolMessage | Decline):
                raise DecodeError("the event log holds a message that changes nothing")
            return SiteSent(entry.site, message)
        case "deadline":
            return DeadlinePassed(entry.round, entry.text)
        case "proceed":
            return Proceed(entry.round.run_id)
        case _:
            raise DecodeError(f"the event log holds an entry of an unknown kind {entry.kind!r}")


# --- random bytes ------------------------------------------------------------------


class Draws:
    """The core's source of public random bytes: notes what it gives, or gives it again.

    Args:
        source: of fresh bytes.
    """

    def __init__(self, source: Callable[[int], bytes]) -> None:
        self._source = source
        self._drawn: list[bytes] = []
        self._again: deque[bytes] | None = None

    def __call__(self, size: int) -> bytes:
        """So many bytes.

        Raises:
            DecodeError: in a replay, other bytes were drawn when it was written.
        """
        if self._again is None:
            drawn = self._source(size)
            self._drawn.append(drawn)
            return drawn
        if not self._again or len(self._again[0]) != size:
            raise DecodeError("the event log does not hold the random bytes of what it replays")
        return self._again.popleft()

    def taken(self) -> tuple[bytes, ...]:
        """What was given since the last time."""
        drawn, self._drawn = tuple(self._drawn), []
        return drawn

    def again(self, draws: tuple[bytes, ...] | None) -> None:
        """Gives these instead of fresh ones; None: fresh ones from now on."""
        self._again = None if draws is None else deque(draws)


def draws_to_bytes(draws: tuple[bytes, ...]) -> bytes:
    """Each behind its length, LE32."""
    return b"".join(struct.pack("<I", len(draw)) + draw for draw in draws)


def draws_from_bytes(data: bytes) -> tuple[bytes, ...]:
    """Inverse of draws_to_bytes.

    Raises:
        DecodeError: they are damaged.
    """
    draws, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        draw = data[at + 4 : at + 4 + size]
        if len(draw) != size:
            raise DecodeError("random bytes in the event log are cut off")
        draws.append(draw)
        at += 4 + size
    return tuple(draws)
