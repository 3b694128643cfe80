"""What a site fetches from the coordinator, tried again while that may help."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeAlias, TypeVar

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
from veilsum.site.following import SumReceiver
from veilsum.transport.backoff import Backoff
from veilsum.transport.client import Connection, Unreachable
from veilsum.transport.logs import Log
from veilsum.transport.received_model import IncomingModel

# In a row, on one connection, that bring nothing. The last one comes after half a minute.
_TRIES = 8
# Two moments of 4 bytes for a parameter of 2, or of 8 for one of 8, and names.
_STATE_PER_MODEL = 5

_Effect: TypeAlias = FetchModel | FetchSum | FetchLinks | FetchAudit
_T = TypeVar("_T")
_P = TypeVar("_P", bound="_Partial")


class _Failed(Exception):  # noqa: N818  the caller makes an event of it
    """Further tries would not help."""


class _Partial(Protocol):
    """What has come of something; goes on over any connection."""

    @property
    def held(self) -> int:
        """Bytes that are there."""


class _Nothing:
    """Of what is always fetched anew."""

    held = 0


class _PartialSum:
    """A round's sum, and before it the state of the server's optimizer if need be."""

    def __init__(self, receiver: SumReceiver) -> None:
        self._receiver = receiver
        receiver.restart()
        self.words = 0
        self.parts: list[bytes] = []
        self.state: bytes | None = None

    @property
    def held(self) -> int:
        """Of both."""
        state = sum(map(len, self.parts)) if self.state is None else len(self.state)
        return self.words + state

    async def need_state(self, round_id: RoundId, connection: Connection, max_bytes: int) -> None:
        """Fetches the optimizer's state, once."""
        if self.state is None:
            self.state = await connection.fetch_state(
                round_id, max_bytes=max_bytes, so_far=self.parts
            )
            self.parts = []

    def add(self, data: bytes) -> None:
        """Takes what comes next of the sum."""
        self._receiver.add(data)
        self.words += len(data)


class _PartialAudit:
    """A part of a transcript."""

    def __init__(self) -> None:
        self.data = bytearray()

    @property
    def held(self) -> int:
        """See _Partial."""
        return len(self.data)


class Fetching:
    """Carries out the effects that fetch; kept for as long as the process.

    What a call that was cancelled has got is kept for the next one that is after the same, over
    whatever connection; one after something else lets go of it.

    Args:
        max_model_bytes: of the models that this site takes.

    Every call raises LedgerError where the request may not leave.
    """

    def __init__(self, max_model_bytes: int, log: Log) -> None:
        self._max_model_bytes = max_model_bytes
        self._log = log
        self._kept: tuple[_Effect, Any] | None = None
        # What was cancelled may have to wait for a thread before it ends.
        self._turn = asyncio.Lock()

    async def model(
        self, effect: FetchModel, connection: Connection
    ) -> ModelFetched | ModelFetchFailed:
        """The round's model, whose hash is as its header says."""
        most = self._max_model_bytes

        async def fetch(so_far: IncomingModel) -> ModelFetched:
            found = await connection.fetch_model(effect.round, max_bytes=most, so_far=so_far)
            return ModelFetched(effect.round, *found)

        try:
            return await self._tried("model", effect, lambda: IncomingModel(most), fetch)
        except _Failed as failed:
            return ModelFetchFailed(effect.round, str(failed))

    async def sum(self, effect: FetchSum, connection: Connection) -> SumFetched | SumFetchFailed:
        """The round's sum, handed to its receiver, and the optimizer's state if need be."""

        async def fetch(so_far: _PartialSum) -> SumFetched:
            if effect.state:
                most = _STATE_PER_MODEL * self._max_model_bytes
                await so_far.need_state(effect.round, connection, most)
            if not effect.receiver.complete:
                await connection.fetch_sum(effect.round, so_far.add, offset=so_far.words)
            return SumFetched(effect.round, so_far.state)

        try:
            return await self._tried("sum", effect, lambda: _PartialSum(effect.receiver), fetch)
        except _Failed as failed:
            return SumFetchFailed(effect.round, str(failed))

    async def links(self, effect: FetchLinks, connection: Connection) -> LinksFetched:
        """The results that led to the round's model."""

        async def fetch(_: _Nothing) -> LinksFetched:
            most = secagg.MOST_LINKS
            return LinksFetched(effect.round, await connection.fetch_links(effect.round, most=most))

        try:
            return await self._tried("links", effect, _Nothing, fetch)
        except _Failed:
            return LinksFetched(effect.round, ())

    async def audit(
        self, effect: FetchAudit, connection: Connection
    ) -> AuditFetched | AuditFetchFailed:
        """What it takes to check chunks of the round's sum."""
        asked = [(stream.group, index) for stream, index in effect.chunks]

        async def fetch(so_far: _PartialAudit) -> AuditFetched:
            most, data = effect.max_bytes, so_far.data
            await connection.fetch_audit(effect.round, asked, max_bytes=most, so_far=data)
            return AuditFetched(effect.round, data)

        try:
            return await self._tried("audit", effect, _PartialAudit, fetch)
        except _Failed as failed:
            return AuditFetchFailed(effect.round, str(failed))

    async def _tried(
        self,
        what: str,
        effect: _Effect,
        begin: Callable[[], _P],
        fetch: Callable[[_P], Awaitable[_T]],
    ) -> _T:
        """Fetches until it is there, or until tries that bring nothing are too many."""
        async with self._turn:
            so_far = self._resumed(effect, begin)
            backoff, tries, held = Backoff(), 0, so_far.held
            reason = ""
            while tries < _TRIES:
                try:
                    fetched = await fetch(so_far)
                except Unreachable as error:
                    reason = str(error)
                except LedgerError:
                    raise
                except VeilsumError as error:
                    reason = str(error)
                    break
                else:
                    self._kept = None
                    return fetched
                tries += 1
                if so_far.held > held:  # it gets on, however slowly
                    backoff.reset()
                    tries, held = 0, so_far.held
                if tries < _TRIES:
                    await asyncio.sleep(backoff.delay())
            self._kept = None
        self._log.warning(f"{what} not fetched", run=effect.round.run_id, reason=reason)
        raise _Failed(reason)

    def _resumed(self, effect: _Effect, begin: Callable[[], _P]) -> _P:
        """What is kept of the same, or a beginning."""
        if self._kept is None or self._kept[0] != effect:
            self._kept = None  # before there is another, so that there are never two
            self._kept = (effect, begin())
        kept: _P = self._kept[1]
        return kept
