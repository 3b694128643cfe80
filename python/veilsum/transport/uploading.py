"""How a site gets its update to the coordinator, over whatever connections there are."""

from __future__ import annotations

import asyncio

from veilsum.control import UpdateHeader
from veilsum.errors import LedgerError, VeilsumError
from veilsum.site.effects import Upload
from veilsum.site.events import UploadDone, UploadRefused
from veilsum.transport.backoff import Backoff
from veilsum.transport.client import Connection, Unreachable
from veilsum.transport.logs import Log
from veilsum.transport.outgoing import Outgoing, update_kind


class Uploading:
    """Carries out uploads; kept for as long as the process.

    It sends the same bytes again, from where they are missing: a second, newly masked update of
    one round would show the difference of the two.
    """

    def __init__(self, outgoing: Outgoing, log: Log) -> None:
        self._outgoing = outgoing
        self._log = log
        self._begun: UpdateHeader | None = None

    async def upload(self, effect: Upload, connection: Connection) -> UploadDone | UploadRefused:
        """Pushes an update until it counts or is refused. Cancelled when the connection ends, it
        is to be called again with the next one and goes on where the coordinator says.

        Raises:
            LedgerError: a part of it may not leave.
        """
        header = effect.header
        size = sum(memoryview(chunk).nbytes for chunk in effect.chunks)
        self._log.info("uploading", run=header.round.run_id, round=header.round.number, bytes=size)
        try:
            await self._push_all(effect, connection)
        except LedgerError:
            raise
        except VeilsumError as error:
            self._log.warning("upload refused", reason=str(error))
            return UploadRefused(header.round, str(error))
        return UploadDone(header.round)

    async def _push_all(self, effect: Upload, connection: Connection) -> None:
        header = effect.header
        # Nobody has to be asked about an update of which nothing has left.
        asks, self._begun = self._begun == header, header
        backoff, held = Backoff(), 0
        while True:
            try:
                if asks:
                    found, counts = await connection.push_status(header.round, header.update_id)
                    if counts:
                        return
                    if found > held:
                        backoff.reset()  # it goes on, however slowly
                    held = found
                asks = True
                if await self._push(effect, connection, held):
                    return
            except Unreachable as error:
                self._log.warning("upload interrupted", reason=str(error))
            await asyncio.sleep(backoff.delay())

    async def _push(self, effect: Upload, connection: Connection, first_chunk: int) -> bool:
        header = effect.header
        try:
            return await connection.push_update(header, effect.chunks, first_chunk=first_chunk)
        finally:
            self._outgoing.upload_ended(update_kind(header))
