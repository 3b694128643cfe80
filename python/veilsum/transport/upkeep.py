"""What a coordinator looks at every few seconds, and at once when it is told to reload: files that
people replace, certificates of those who are connected, the disk, and its own log."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from veilsum.errors import ConfigError
from veilsum.pki.identity import parse_identity
from veilsum.pki.revoked_file import read_revoked
from veilsum.transport.admission import Admission
from veilsum.transport.callers import CallRefused, certificate_of
from veilsum.transport.entrance import Entrance
from veilsum.transport.links import Links
from veilsum.transport.logs import Log, lost_lines
from veilsum.transport.metrics import Metrics
from veilsum.transport.tls_reload import ServerTls
from veilsum.transport.watched_files import WatchedFiles

EVERY_S = 2.0
"""A revoked site is connected no longer than this after the list has changed."""

REVOKED = "its certificate is revoked"

_PROBE = ".disk-works"
_DISK_EVERY_S = 10.0


@dataclass(frozen=True)
class Watched:
    """What is looked after.

    Attributes:
        consortium: whose members may be connected.
        tls: None without TLS.
        revoked: file of revoked certificates, if there is one.
        folder: where the coordinator's state is.
        usable: told whether the disk of that folder works.
        tidy: called often, does what is due.
    """

    consortium: str
    tls: ServerTls | None
    revoked: Path | None
    folder: Path
    usable: Callable[[bool], Awaitable[None]]
    tidy: Callable[[], Awaitable[None]]


class Upkeep:
    """Reads the list of revoked certificates when it is made, and again as it changes.

    Raises:
        ConfigError: that list cannot be read.
    """

    def __init__(
        self, watched: Watched, entrance: Entrance, links: Links, metrics: Metrics, log: Log
    ) -> None:
        self._watched = watched
        self._entrance = entrance
        self._links = links
        self._metrics = metrics
        self._log = log
        self._next_try = 0.0
        self._revoked_file: WatchedFiles | None = None
        if watched.revoked is not None:
            self._revoked_file = WatchedFiles([watched.revoked])
            entrance.revoked = read_revoked(watched.revoked)
        metrics.revoked(len(entrance.revoked))
        if watched.tls is not None:
            metrics.certificate_ends(watched.tls.current.ends)

    async def run(self, door: Admission, reload: asyncio.Event) -> None:
        """Looks after everything until cancelled; when `reload` is set, at once."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(EVERY_S):
                    await reload.wait()
            asked = reload.is_set()
            reload.clear()
            await self.look(door, asked=asked)

    async def look(self, door: Admission, *, asked: bool = False) -> None:
        """Looks once. `asked`: files are read again whether they have changed or not."""
        await self._renew_certificate(asked)
        await self._read_revoked(asked)
        self._end_calls(door)
        await self._try_disk()
        await self._watched.tidy()
        self._metrics.open_calls(len(door.open_calls()))
        self._metrics.log_lines(suppressed=self._log.report_suppressed(), lost=lost_lines())

    async def _renew_certificate(self, asked: bool) -> None:
        tls = self._watched.tls
        if tls is None or not (tls.changed() or asked):
            return
        try:
            await asyncio.to_thread(tls.reload)
        except ConfigError as error:
            # Also between the two writes that replace a key and its certificate.
            self._log.warning("certificate not taken, the old one stays", reason=str(error))
            self._metrics.reloaded("certificate", taken=False)
            return
        self._log.info("certificate taken", ends=tls.current.ends)
        self._metrics.reloaded("certificate", taken=True)
        self._metrics.certificate_ends(tls.current.ends)

    async def _read_revoked(self, asked: bool) -> None:
        file, watched = self._watched.revoked, self._revoked_file
        if file is None or watched is None or not (watched.changed() or asked):
            return
        try:
            found = await asyncio.to_thread(read_revoked, file)
        except ConfigError as error:
            self._log.warning("revocations not taken, the old ones stay", reason=str(error))
            self._metrics.reloaded("revoked", taken=False)
            return
        self._entrance.revoked = found
        self._log.info("revocations taken", entries=len(found))
        self._metrics.reloaded("revoked", taken=True)
        self._metrics.revoked(len(found))

    def _end_calls(self, door: Admission) -> None:
        for call in door.open_calls():
            try:
                self._entrance.check_certificate(certificate_of(call.context))
            except CallRefused as refusal:
                caller = call.caller.uri
                self._log.warning("call ended", caller=caller, path=call.path, reason=str(refusal))
                call.end(refusal)
        for uri in self._entrance.revoked_members():
            # Also one that is away at the moment: nobody waits for it.
            identity = parse_identity(uri)
            if identity.role == "site" and identity.consortium == self._watched.consortium:
                self._links.dismiss(identity.name, REVOKED)

    async def _try_disk(self) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._next_try:
            self._next_try = now + _DISK_EVERY_S
            await self._watched.usable(await asyncio.to_thread(self._disk_works))

    def _disk_works(self) -> bool:
        probe = self._watched.folder / _PROBE
        try:
            with open(probe, "wb") as stream:
                stream.write(b"x")
                stream.flush()
                os.fsync(stream.fileno())
            probe.unlink()
        except OSError as error:
            self._log.warning("the disk does not work", reason=str(error.strerror))
            return False
        return True
