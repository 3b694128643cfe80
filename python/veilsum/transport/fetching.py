"""What a site fetches from the coordinator, tried again while that may help."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from veilsum import secagg
from veilsum.control import RoundId
from veilsum.errors import LedgerError, VeilsumError
from veilsum.site.effects import FetchAudit, FetchLinks, FetchModel, FetchSum
from veilsum.site.events import (
    AuditFetched,
    AuditFetchFailed,
    LinksFetched,
    ModelFetched,
    ModelFetchFailed,
    SumFetched,
    SumFetchFailed,
)
from veilsum.transport.backoff import Backoff
from veilsum.transport.client import Connection, Unreachable
from veilsum.transport.logs import Log

_TRIES = 4
# Two moments of 4 bytes for a parameter of 2, or of 8 for one of 8, and names.
_STATE_PER_MODEL = 5

_T = TypeVar("_T")


class _Failed(Exception):  # noqa: N818  the caller makes an event of it
    """Further tries would not help."""


@dataclass(frozen=True)
class Fetching:
    """Carries out the effects that fetch.

    Args:
        max_model_bytes: of the models that this site takes.

    Every call raises LedgerError where the request may not leave.
    """

    max_model_bytes: int
    log: Log

    async def model(
        self, effect: FetchModel, connection: Connection
    ) -> ModelFetched | ModelFetchFailed:
        """The round's model, whose hash is as its header says."""

        async def fetch() -> ModelFetched:
            most = self.max_model_bytes
            return ModelFetched(
                effect.round, *await connection.fetch_model(effect.round, max_bytes=most)
            )

        try:
            return await self._tried("model", effect.round, fetch)
        except _Failed as failed:
            return ModelFetchFailed(effect.round, str(failed))

    async def sum(self, effect: FetchSum, connection: Connection) -> SumFetched | SumFetchFailed:
        """The round's sum, handed to its receiver, and the optimizer's state if need be."""
        state: bytes | None = None

        async def fetch() -> SumFetched:
            nonlocal state
            if effect.state and state is None:
                most = _STATE_PER_MODEL * self.max_model_bytes
                state = await connection.fetch_state(effect.round, max_bytes=most)
            effect.receiver.restart()
            await connection.fetch_sum(effect.round, effect.receiver.add)
            return SumFetched(effect.round, state)

        try:
            return await self._tried("sum", effect.round, fetch)
        except _Failed as failed:
            return SumFetchFailed(effect.round, str(failed))

    async def links(self, effect: FetchLinks, connection: Connection) -> LinksFetched:
        """The results that led to the round's model."""

        async def fetch() -> LinksFetched:
            most = secagg.MOST_LINKS
            return LinksFetched(effect.round, await connection.fetch_links(effect.round, most=most))

        try:
            return await self._tried("links", effect.round, fetch)
        except _Failed:
            return LinksFetched(effect.round, ())

    async def audit(
        self, effect: FetchAudit, connection: Connection
    ) -> AuditFetched | AuditFetchFailed:
        """What it takes to check chunks of the round's sum."""
        asked = [(stream.group, index) for stream, index in effect.chunks]

        async def fetch() -> AuditFetched:
            most = effect.max_bytes
            return AuditFetched(
                effect.round, await connection.fetch_audit(effect.round, asked, max_bytes=most)
            )

        try:
            return await self._tried("audit", effect.round, fetch)
        except _Failed as failed:
            return AuditFetchFailed(effect.round, str(failed))

    async def _tried(self, what: str, round_id: RoundId, fetch: Callable[[], Awaitable[_T]]) -> _T:
        backoff = Backoff()
        reason = ""
        for _ in range(_TRIES):
            try:
                return await fetch()
            except Unreachable as error:
                reason = str(error)
                await asyncio.sleep(backoff.delay())
            except LedgerError:
                raise
            except VeilsumError as error:
                reason = str(error)
                break
        self.log.warning(f"{what} not fetched", run=round_id.run_id, reason=reason)
        raise _Failed(reason)
