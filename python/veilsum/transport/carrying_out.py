"""Carries out what the core asks for, once it is kept: sends, serves, sets timers, answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, assert_never

from veilsum.control import RoundId, RoundOpened, RoundRecord, RunStatus
from veilsum.coordinator.effects import (
    Announce,
    AnswerUpload,
    CloseUploads,
    DropAudit,
    DropUploads,
    Effect,
    GoOn,
    OpenUploads,
    PublishAudit,
    PublishModel,
    PublishSum,
    SaveEvidence,
    SaveLink,
    SaveReceipt,
    SaveRound,
    SaveRun,
    SaveStanding,
    SendToSite,
    SetDeadline,
)
from veilsum.coordinator.events import DeadlinePassed, Event, Proceed
from veilsum.errors import ConfigError
from veilsum.transport.audits import Audits, write_transcript
from veilsum.transport.links import Links
from veilsum.transport.logs import Log
from veilsum.transport.metrics import Metrics
from veilsum.transport.models import Models, serve_checkpoint
from veilsum.transport.storage import Storage
from veilsum.transport.uploads import UploadLimits, Uploads
from veilsum.transport.watchers import Watchers


@dataclass(frozen=True)
class Outside:
    """Everything the core's effects reach."""

    storage: Storage
    models: Models
    links: Links
    watchers: Watchers
    metrics: Metrics
    audits: Audits = field(default_factory=Audits)
    transcripts: Path | None = None  # the folder they go to
    upload_limits: UploadLimits = field(default_factory=UploadLimits)


class CarryingOut:
    """Used from the event loop.

    Args:
        post: hands the core an event that nobody waits for.
    """

    def __init__(
        self, outside: Outside, uploads: Uploads, post: Callable[[Event], None], log: Log
    ) -> None:
        self._outside = outside
        self._uploads = uploads
        self._post = post
        self._log = log
        self._timers: dict[tuple[RoundId, str], asyncio.TimerHandle] = {}
        self._started: dict[RoundId, float] = {}

    def close(self) -> None:
        """No deadline passes any more."""
        for timer in self._timers.values():
            timer.cancel()

    async def carry_out(self, effect: Effect) -> None:
        """Carries out an effect of a turn that is kept."""
        outside = self._outside
        match effect:
            case SendToSite(site, message):
                if isinstance(message, RoundOpened):
                    outside.models.invite(message.round, site)
                outside.links.send(site, message)
            case SetDeadline():
                self._set_deadline(effect)
            case PublishModel():
                await self._publish(effect)
            case PublishAudit():
                await self._publish_audit(effect)
            case DropAudit(round_id):
                outside.audits.drop(round_id.run_id)
            case PublishSum(round_id):
                outside.models.put_sum(
                    round_id, outside.storage.sum_file(round_id.run_id, round_id.number)
                )
            case OpenUploads(round_id, sites):
                self._uploads.open(round_id, sites)
            case CloseUploads(round_id, reason):
                self._uploads.close(round_id, reason)
            case AnswerUpload():
                self._answer(effect)
            case DropUploads(round_id, sites):
                self._uploads.forget(round_id, sites)
            case SaveRound(record):
                self._round_ended(record)
            case SaveEvidence():
                await self._save_evidence(effect)
            case SaveRun(status):
                await self._run_changed(status)
            case GoOn(run_id):
                self._post(Proceed(run_id))
            case SaveReceipt() | SaveLink() | SaveStanding() | Announce():
                pass  # kept, and there is nobody to tell
            case _:
                assert_never(effect)

    async def again(self, effect: Effect) -> None:
        """An effect of a replay: what others were told they are not told again, and what was kept
        is kept. What only this process holds has to be made anew."""
        match effect:
            case AnswerUpload(round_id, site, accepted, reason):
                self._uploads.answer(round_id, site, None if accepted else reason)
            case (
                SendToSite()
                | SetDeadline()
                | PublishModel()
                | PublishSum()
                | OpenUploads()
                | CloseUploads()
                | DropUploads()
            ):
                await self.carry_out(effect)

    def _set_deadline(self, effect: SetDeadline) -> None:
        key = (effect.round, effect.phase)
        if key in self._timers:
            self._timers[key].cancel()

        def passed() -> None:
            del self._timers[key]
            self._post(DeadlinePassed(effect.round, effect.phase))

        self._timers[key] = asyncio.get_running_loop().call_later(effect.seconds, passed)

    async def _publish(self, effect: PublishModel) -> None:
        self._started[effect.round] = time.monotonic()
        storage, before = self._outside.storage, effect.round.number - 1
        file = storage.model_file(effect.round.run_id, before)
        start = (effect.model_hash, effect.state_hash)
        served = await asyncio.to_thread(serve_checkpoint, effect.round, effect.layout, file, start)
        state = storage.optimizer_file(effect.round.run_id, before)
        self._outside.models.put(served, state if state.exists() else None, since=effect.since)
        self._log.info("round opened", **_ids(effect.round), model_bytes=served.size_bytes)

    async def _publish_audit(self, effect: PublishAudit) -> None:
        folder = self._outside.transcripts
        if folder is not None:
            file = await asyncio.to_thread(write_transcript, folder, effect)
            size = file.stat().st_size
            self._log.info("transcript written", **_ids(effect.round), file=str(file), bytes=size)
        self._outside.audits.put(effect)

    def _answer(self, effect: AnswerUpload) -> None:
        refusal = None if effect.accepted else effect.reason
        self._uploads.answer(effect.round, effect.site, refusal)
        if effect.accepted:
            self._outside.metrics.update_accepted(effect.site)
            self._log.info("update accepted", **_ids(effect.round), site=effect.site)
        else:
            self._outside.metrics.refused("update", effect.site)
            self._log.warning(
                "update refused", **_ids(effect.round), site=effect.site, reason=effect.reason
            )

    def _round_ended(self, record: RoundRecord) -> None:
        for key in [key for key in self._timers if key[0] == record.round]:
            self._timers.pop(key).cancel()
        seconds = time.monotonic() - self._started.pop(record.round, time.monotonic())
        self._outside.metrics.round_finished(record, seconds)
        self._log.info(
            "round ended",
            **_ids(record.round),
            completed=record.completed,
            reason=record.reason,
            sites=len(record.sites),
            dropped=len(record.dropped),
            bytes_in=sum(record.bytes_in.values()),
            seconds=seconds,
            digest=record.digest,
        )

    async def _save_evidence(self, effect: SaveEvidence) -> None:
        """That it cannot be kept is no reason to stop: sites decide how much of it there is."""
        storage = self._outside.storage
        try:
            file = await asyncio.to_thread(storage.save_evidence, effect.round, effect.evidence)
        except ConfigError as error:
            self._log.warning("evidence lost", **_ids(effect.round), reason=str(error))
        else:
            self._log.warning("evidence", **_ids(effect.round), file=str(file))

    async def _run_changed(self, status: RunStatus) -> None:
        self._outside.metrics.run_state(replace(status, rounds=()))
        if status.state in ("completed", "aborted"):
            self._outside.models.drop(status.run_id)
            self._outside.audits.drop(status.run_id)
            await asyncio.to_thread(self._outside.storage.drop_sums, status.run_id)
        self._log.info("run", run=status.run_id, state=status.state, reason=status.reason)


def _ids(round_id: RoundId) -> dict[str, Any]:
    return {"run": round_id.run_id, "round": round_id.number, "attempt": round_id.attempt}
