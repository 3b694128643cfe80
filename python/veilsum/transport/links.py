"""The Join streams: which sites are connected, and what is on its way to each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from veilsum.control import ToSite
from veilsum.transport.wire import encode_to_site

# A round sends a site a handful of messages; one that leaves so many unread is stuck.
_MAX_UNREAD = 256

REPLACED = "a newer connection of the same site took over"
STUCK = "the site does not read its messages"


class Link:
    """One site's Join stream, as the coordinator writes to it."""

    def __init__(self, site: str) -> None:
        self.site = site
        self.closed: str | None = None
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
        while (message := await self._unread.get()) is not None:
            yield message


class Links:
    """All connected sites; one stream each."""

    def __init__(self) -> None:
        self._links: dict[str, Link] = {}

    def __len__(self) -> int:
        return len(self._links)

    def attach(self, site: str) -> tuple[Link, bool]:
        """A new stream of a site, and whether it replaced another."""
        previous = self._links.get(site)
        if previous is not None:
            previous.close(REPLACED)
        link = self._links[site] = Link(site)
        return link, previous is not None

    def detach(self, link: Link) -> bool:
        """Forgets a stream; False if a newer one has taken its place."""
        if self._links.get(link.site) is not link:
            return False
        del self._links[link.site]
        return True

    def send(self, site: str, message: ToSite) -> None:
        """Sends to a site; a message to one that is not connected is dropped."""
        link = self._links.get(site)
        if link is not None:
            link.send(message)

    def close_all(self, reason: str) -> None:
        """Ends every stream."""
        for link in self._links.values():
            link.close(reason)
