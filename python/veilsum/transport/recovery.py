"""After a restart: runs are restored where they stood, and what happened since happens again.

Nothing that was told to a site or a person is told again by that; what an earlier process may not
have got to say is in the outboxes (links.py), and sites are given it when they are back.
"""

from __future__ import annotations

import asyncio
import mmap
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial

from veilsum.control import RoundClosed, RoundRecord, RunEvent, RunStatus
from veilsum.coordinator.core import Coordinator
from veilsum.coordinator.effects import Effect, SendToSite
from veilsum.coordinator.events import Event, ResultPublished, RoundSpoiled, RunSubmitted
from veilsum.coordinator.standing import RestoredRun, Standing
from veilsum.errors import ConfigError, DecodeError, DeviceError, VeilsumError
from veilsum.transport.checkpoints import load_optimizer_state, read_layout
from veilsum.transport.event_log import RESULT, UPDATE, Draws, Entry, event_of, left_out_of
from veilsum.transport.logs import Log
from veilsum.transport.storage import Storage
from veilsum.transport.tables import clear_log, put_event, put_run
from veilsum.transport.uploads import Uploads
from veilsum.transport.wire_data import decode_update_header


class Recovery:
    """One start of a coordinator.

    Args:
        again: carries out an effect of a replay: what has left the process before stays out.
    """

    def __init__(
        self,
        core: Coordinator,
        storage: Storage,
        uploads: Uploads,
        draws: Draws,
        again: Callable[[Effect], Awaitable[None]],
        log: Log,
    ) -> None:
        self._core = core
        self._storage = storage
        self._uploads = uploads
        self._draws = draws
        self._again = again
        self._log = log
        self.time = 0.0  # that the core was told last

    async def run(self) -> RoundSpoiled | None:
        """Restores all runs and replays the log.

        Returns:
            That what the open round was made of is gone, if so: to be handled as any event.
        """
        spoiled: RoundSpoiled | None = None
        for status, standing in await asyncio.to_thread(self._storage.unfinished):
            open_again = await asyncio.to_thread(self._restore, status, standing)
            # A buffered run says itself who was in which round.
            ended = [] if status.spec.buffer_size else _ended(_before(status, standing))
            try:
                for effect in (*ended, *open_again):
                    await self._again(effect)
            except ConfigError as error:  # a model that sites still train is gone
                reason = f"after a restart it cannot go on: {error}"
                spoiled = RoundSpoiled(status.run_id, reason)
        if spoiled is not None:
            return spoiled
        for entry in await asyncio.to_thread(self._storage.log):
            self.time = max(self.time, entry.time)
            try:
                await self._replay(entry)
            except (ConfigError, DecodeError, DeviceError, VeilsumError) as error:
                return self._broken_off(entry, error)
        return None

    # --- runs -----------------------------------------------------------------------

    def _restore(self, status: RunStatus, standing: Standing | None) -> list[Effect]:
        try:
            open_again = self._core.restore(self._restored(status, standing))
        except (ConfigError, DecodeError) as error:
            self._end(status, f"it cannot go on after a restart: {error}")
            return []
        number = standing.round.number if standing else 0
        self._log.info("run restored", run=status.run_id, round=number)
        return open_again

    def _restored(self, status: RunStatus, standing: Standing | None) -> RestoredRun:
        run_id, storage = status.run_id, self._storage
        number = standing.round.number - 1 if standing else 0
        layout = read_layout(storage.model_file(run_id, number))
        model = storage.stored_model(run_id, number, layout)
        state_file = storage.optimizer_file(run_id, number)
        state = load_optimizer_state(state_file) if state_file.exists() else None
        submitted = RunSubmitted(run_id, status.spec, layout, model, state)
        return RestoredRun(submitted, _before(status, standing), standing)

    def _end(self, status: RunStatus, reason: str) -> None:
        self._log.warning("run ended", run=status.run_id, reason=reason)
        ended = replace(status, state="aborted", reason=reason, phase="", sites_waiting=())
        event = RunEvent(status.run_id, "run", detail=f"aborted: {reason}")
        active = status.state == "running"
        self._storage.change(
            [
                partial(put_run, status=replace(ended, rounds=())),
                partial(put_event, event=event),
                *([clear_log] if active else []),
            ]
        )

    # --- events ---------------------------------------------------------------------

    async def _replay(self, entry: Entry) -> None:
        event = await self._event(entry)
        self._draws.again(entry.draws)
        try:
            effects = await asyncio.to_thread(self._core.handle, event, now=entry.time)
        finally:
            self._draws.again(None)
        for effect in effects:
            await self._again(effect)

    async def _event(self, entry: Entry) -> Event:
        if entry.kind == UPDATE:
            header, _ = decode_update_header(entry.data)
            return await asyncio.to_thread(self._uploads.recover, entry.site, header)
        if entry.kind == RESULT:
            return await asyncio.to_thread(self._published, entry)
        return event_of(entry)

    def _published(self, entry: Entry) -> ResultPublished:
        where, storage = entry.round, self._storage
        status = storage.run(where.run_id, since=where.number)
        record = (
            next((one for one in status.rounds if one.round == where), None) if status else None
        )
        if record is None:
            raise ConfigError(f"round {where.number} has a result and no record")
        layout = read_layout(storage.model_file(where.run_id, where.number))
        model = storage.stored_model(where.run_id, where.number, layout)
        state_file = storage.optimizer_file(where.run_id, where.number)
        state = load_optimizer_state(state_file) if state_file.exists() else None
        try:
            with open(storage.sum_file(where.run_id, where.number), "rb") as stream:
                words = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise ConfigError(f"the sum of round {where.number} cannot be read: {error}") from error
        left_out = left_out_of(entry)
        return ResultPublished(where, entry.data, memoryview(words), record, model, state, left_out)

    def _broken_off(self, entry: Entry, error: VeilsumError) -> RoundSpoiled | None:
        """The state is that before the entry, and what follows it in the log means nothing."""
        reason = f"after a restart it cannot go on: {error}"
        self._log.warning("replay broke off", kind=entry.kind, site=entry.site, reason=str(error))
        run = next((run for run in self._core.runs() if run.state == "running"), None)
        if run is None:
            return None
        if entry.kind == RESULT:
            # The round is kept and its result is out: the run ends behind it, not without it.
            self._core.forget(run.run_id)
            self._end(run, f"round {entry.round.number}: {reason}")
            return None
        return RoundSpoiled(run.run_id, reason)


def _ended(records: tuple[RoundRecord, ...]) -> list[Effect]:
    """How the last round ended, for whoever had delivered its update and may not have heard."""
    if not records:
        return []
    last = records[-1]
    closed = RoundClosed(last.round, last.completed, last.reason, last.digest)
    sites = last.sites if last.completed else tuple(last.bytes_in)
    in_time = [SendToSite(site, closed) for site in sites if site not in last.late]
    before = next((one for one in reversed(records) if one.round.number < last.round.number), None)
    if before is None:
        return list(in_time)
    # Those that were late wait for the end of the round that they were invited to.
    theirs = RoundClosed(before.round, before.completed, before.reason, before.digest)
    return [*in_time, *(SendToSite(site, theirs) for site in last.late)]


def _before(status: RunStatus, standing: Standing | None) -> tuple[RoundRecord, ...]:
    if standing is None:
        return ()
    place = standing.round.number, standing.round.attempt
    return tuple(
        record for record in status.rounds if (record.round.number, record.round.attempt) < place
    )
