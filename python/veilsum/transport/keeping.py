"""What an event led to, made durable before anyone is told of it.

Files come first: models, sums, receipts, links. Then one transaction holds the event itself and
all rows that follow from it. Until it is committed nothing has happened, and a process that dies
is followed by one that never heard of the event; once it is, the event is not lost any more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import compress
from typing import cast

from veilsum.coordinator.effects import (
    Announce,
    Effect,
    PublishSum,
    SaveLink,
    SaveReceipt,
    SaveRound,
    SaveRun,
    SaveStanding,
)
from veilsum.coordinator.events import SiteJoined
from veilsum.errors import ConfigError
from veilsum.transport.event_log import Entry, entry_of, result_entry
from veilsum.transport.storage import Change, DiskFailed, Storage
from veilsum.transport.tables import (
    clear_log,
    put_entry,
    put_event,
    put_round,
    put_run,
    put_standing,
)

# Progress is worth nothing a second later; everything else that is announced is kept.
_NOT_KEPT = ("progress",)

_IN_FILES = (PublishSum, SaveRound, SaveReceipt, SaveLink)


@dataclass(frozen=True, slots=True)
class Turn:
    """One event of the core and what it led to.

    Attributes:
        entry: the event as it is written down; None if a later process need not know it.
        time: that the core was told, seconds.
        present: the sites that are there now, each with its process; a later process begins with
            them where the standing of a run has changed.
        idle: whether there is no run to go on with.
    """

    entry: Entry | None
    effects: Sequence[Effect]
    time: float
    present: Mapping[str, bytes]
    idle: bool


class Keeper:
    """Keeps turns, one after the other. Each call blocks."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def keep(self, turn: Turn) -> list[int]:
        """Makes a turn durable, and returns the numbers of what it announces, 0 for what is not
        kept; in order.

        Raises:
            DiskFailed: it could not be made durable, and nothing of it may leave the process.
        """
        if any(isinstance(effect, _IN_FILES) for effect in turn.effects):
            self._storage.require_lock()  # or they would replace those of whoever has it now
        try:
            for effect in turn.effects:
                self._write_file(effect)
        except (ConfigError, OSError) as error:
            raise DiskFailed(
                f"what must last cannot be written: {error}",
                hint="see to the disk, then start the coordinator again: its runs go on",
            ) from error
        announced = [effect.event for effect in turn.effects if isinstance(effect, Announce)]
        kept = [event.kind not in _NOT_KEPT for event in announced]
        events = [partial(put_event, event=event) for event in compress(announced, kept)]
        changes: list[Change] = [*events, *_rows(turn), *_log(turn)]
        if not changes:
            return [0] * len(announced)
        # A message that led to nothing yet may be lost with the power: it will be sent again.
        results = iter(self._storage.change(changes, durable=bool(turn.effects)))
        return [cast(int, next(results)) if is_kept else 0 for is_kept in kept]

    def _write_file(self, effect: Effect) -> None:
        storage = self._storage
        match effect:
            case PublishSum(round_id, words):
                storage.save_sum(round_id, words)
            case SaveRound(record, layout, model, optimizer_state) if model is not None:
                storage.save_step(record.round, layout, model, optimizer_state)
            case SaveReceipt(round_id, receipt):
                storage.save_receipt(round_id, receipt)
            case SaveLink(before, after, link):
                storage.save_link(before, after, link)


def _rows(turn: Turn) -> list[Change]:
    changes: list[Change] = []
    for effect in turn.effects:
        match effect:
            case SaveRun(status):
                changes.append(partial(put_run, status=replace(status, rounds=())))
            case SaveRound(record):
                changes.append(partial(put_round, record=record))
            case SaveStanding(standing):
                changes.append(partial(put_standing, standing=standing))
    return changes


def _log(turn: Turn) -> list[Change]:
    """Once a run stands somewhere else, or has ended, what led there is not needed any more."""
    entries: list[Entry] = []
    stands = any(isinstance(effect, SaveStanding) for effect in turn.effects)
    if stands:
        joined = (SiteJoined(site, instance) for site, instance in turn.present.items())
        entries = [entry_of(event, turn.time, ()) for event in joined]
    elif not turn.idle:
        entries = [turn.entry] if turn.entry is not None else []
        entries += _results(turn)
    changes: list[Change] = [partial(put_entry, entry=entry) for entry in entries]
    ended = turn.idle and any(isinstance(effect, SaveRun) for effect in turn.effects)
    return [clear_log, *changes] if stands or ended else changes


def _results(turn: Turn) -> list[Entry]:
    """In place of the unmask shares that led to a result."""
    return [
        result_entry(turn.time, effect.record.round, effect.result, effect.left_out)
        for effect in turn.effects
        if isinstance(effect, SaveRound) and effect.result
    ]
