"""The Join streams: which sites are there, and what is on its way to each.

A stream that breaks says little about the site behind it, so the site is *away* for a while
before the core hears that it has left. If the same process is back by then, the core hears
nothing at all: the site is sent the messages of its current round once more and answers those
it has answered before as it did then.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from veilsum.control import ToSite, Welcome
from veilsum.coordinator.events import SiteJoined, SiteLeft
from veilsum.transport.outbox import Outbox
from veilsum.transport.wire import encode_to_site

# A round sends a site a handful of messages; one that leaves so many unread is stuck.
_MAX_UNREAD = 256

# Of each site: more processes than anybody starts while one of them still tries to come back.
_REPLACED_KEPT = 16

BROKEN = "the connection broke"
REPLACED = "a newer connection of the same site took over"
STUCK = "the site does not read its messages"
STOPPED = "the site stopped"

Post: TypeAlias = Callable[[SiteJoined | SiteLeft], None]
"""Hands an event to whoever runs the core."""


class Link:
    """One site's Join stream, as the coordinator writes to it.

    Args:
        first: what it begins with; does not count as unread.
    """

    def __init__(self, site: str, first: Sequence[ToSite] = ()) -> None:
        self.site = site
        self.closed: str | None = None
        self._first = tuple(first)
        self._unread: asyncio.Queue[bytes | None] = asyncio.Queue()

    def send(self, message: ToSite) -> None:
        """Puts a message on the stream; once the stream is closed, nothing happens."""
        if self.closed is not None:
            return
        if self._unread.qsize() >= _MAX_UNREAD:
            self.close(STUCK)
            return
        self._unread.put_nowait(encode_to_site(message))

    def close(self, reason: str) -> None:
        """Ends the stream after what is on its way. The first reason counts."""
        if self.closed is None:
            self.closed = reason
            self._unread.put_nowait(None)

    async def messages(self) -> AsyncIterator[bytes]:
        """What to write, until the stream is closed."""
        first, self._first = self._first, ()
        for message in first:
            yield encode_to_site(message)
        while (message_bytes := await self._unread.get()) is not None:
            yield message_bytes


@dataclass(slots=True)
class _Presence:
    """A site's process that counts as there. Without a link it is away; `waiting` then ends it."""

    instance: bytes
    link: Link | None = None
    waiting: asyncio.TimerHandle | None = None

    def end(self, reason: str) -> None:
        """The process is not there any more."""
        self.wait_no_more()
        if self.link is not None:
            self.link.close(reason)

    def wait_no_more(self) -> None:
        """Stops the time that ends it."""
        if self.waiting is not None:
            self.waiting.cancel()
            self.waiting = None


class Links:
    """All sites that are there: one process of each, with one stream or away. Within a loop.

    Args:
        reconnect_s: how long a site may be away; with 0 one whose stream breaks has left.
    """

    def __init__(self, reconnect_s: float) -> None:
        self._reconnect_s = reconnect_s
        self._post: Post = _nobody_listens
        self._present: dict[str, _Presence] = {}
        # Not part of a presence: after a restart they are filled before it is known who is there.
        self._outboxes: defaultdict[str, Outbox] = defaultdict(Outbox)
        self._replaced: defaultdict[str, deque[bytes]] = defaultdict(
            lambda: deque(maxlen=_REPLACED_KEPT)
        )
        self._stopping = False

    def __len__(self) -> int:
        """How many are connected."""
        return sum(presence.link is not None for presence in self._present.values())

    def tell(self, post: Post) -> None:
        """Whom to tell who joined and who left, in order; to be called before anybody can."""
        self._post = post

    def was_replaced(self, site: str, instance: bytes) -> bool:
        """Whether a later process took this one's place. The two would take turns for ever if
        both could come back."""
        return instance in self._replaced[site]

    def attach(self, site: str, instance: bytes, welcome: Welcome) -> Link:
        """A new stream of a site. It begins with the welcome, and with what this very process was
        sent of its current round."""
        presence = self._present.get(site)
        if presence is not None and presence.instance == instance:
            outbox = self._outboxes[site]
            first = [replace(welcome, round=outbox.round), *outbox.messages]
            presence.wait_no_more()
            if presence.link is not None:  # the site noticed first that it is broken
                presence.link.close("the site opened a new connection")
            presence.link = Link(site, first)
            return presence.link
        if presence is not None:
            # Not a site that left: the core hears of the one process that the other is gone.
            self._replaced[site].append(presence.instance)
            presence.end(REPLACED)
        self._outboxes[site].clear()
        link = Link(site, [welcome])
        self._present[site] = _Presence(instance, link)
        self._post(SiteJoined(site, instance))
        return link

    def expect(self, site: str, instance: bytes) -> None:
        """A process that was there before the coordinator started again: away from now on. Its
        messages of the current round may have been sent before or may follow."""
        presence = _Presence(instance)
        self._present[site] = presence
        self._await_return(site, presence, "the coordinator started again")

    def detach(self, link: Link) -> None:
        """A stream has ended. Unless a newer one has taken its place, its site is away, or has
        left if it said so."""
        presence = self._present.get(link.site)
        if presence is None or presence.link is not link:
            return
        presence.link = None
        reason = link.closed or BROKEN
        if link.closed == STOPPED:
            self._remove(link.site, presence, reason)
        else:
            self._await_return(link.site, presence, reason)

    def dismiss(self, site: str, reason: str) -> None:
        """Ends a site's stream for good: it has left, whether or not it would come back."""
        presence = self._present.get(site)
        if presence is not None:
            self._remove(site, presence, reason)

    def send(self, site: str, message: ToSite) -> None:
        """Sends to a site; what one that is away must know of its round waits for it."""
        self._outboxes[site].file(message)
        presence = self._present.get(site)
        if presence is not None and presence.link is not None:
            presence.link.send(message)

    def close_all(self, reason: str) -> None:
        """Ends every stream because the coordinator stops. No site has left by that."""
        self._stopping = True
        for presence in self._present.values():
            presence.end(reason)

    def _await_return(self, site: str, presence: _Presence, reason: str) -> None:
        if self._stopping:
            return
        if not self._reconnect_s:
            self._remove(site, presence, reason)
            return
        told = f"{reason}, and it was not back within {self._reconnect_s:g} s"
        loop = asyncio.get_running_loop()
        presence.waiting = loop.call_later(self._reconnect_s, self._remove, site, presence, told)

    def _remove(self, site: str, presence: _Presence, reason: str) -> None:
        presence.end(reason)
        del self._present[site]
        self._outboxes[site].clear()
        self._post(SiteLeft(site, reason))


def _nobody_listens(event: SiteJoined | SiteLeft) -> None:
    raise AssertionError(f"nobody was told of {event}")
