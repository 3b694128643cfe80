"""What a coordinator forgets: runs that are over, and all but the last events of the others.

Files of a run go first, its rows after them: a process that dies in between leaves a run that is
forgotten the next time. Receipts, evidence and links prove things to others and go only if they
are named. A link that leads to a model of a run that stays is never removed.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from veilsum.transport.metrics import folder_bytes
from veilsum.transport.retention_settings import RetentionSettings
from veilsum.transport.storage import HASH_BYTES, Storage
from veilsum.transport.wire_requests import PrunedRun, Pruning
from veilsum.transport.wire_runs import record_from_bytes

_DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class _Ended:
    run_id: str
    state: str
    time: float


class Retention:
    """Forgets runs. Each call blocks.

    Args:
        clock: seconds since 1970.
    """

    def __init__(self, storage: Storage, clock: Callable[[], float]) -> None:
        self._storage = storage
        self._clock = clock

    def prune(self, pruning: Pruning) -> list[PrunedRun]:
        """Forgets runs that are over, oldest first.

        Returns:
            Which, or with `dry_run` which it would.

        Raises:
            DiskFailed: the rest could not be forgotten.
        """
        gone = self._chosen(pruning)
        pruned = [
            PrunedRun(run.run_id, run.state, sum(map(folder_bytes, self._folders(run, pruning))))
            for run in gone
        ]
        if pruning.dry_run or not gone:
            return pruned
        links = self._links_of({run.run_id for run in gone}) if pruning.proofs else []
        for run in gone:
            for folder in self._folders(run, pruning):
                shutil.rmtree(folder, ignore_errors=True)
            self._storage.change([partial(_forget_run, run_id=run.run_id)])
        for link in links:
            link.unlink(missing_ok=True)
        self._storage.shrink()
        return pruned

    def tidy(self, settings: RetentionSettings) -> list[PrunedRun]:
        """Forgets what the settings say, events too."""
        self._storage.change([partial(_trim_events, keep=settings.events)])
        if not settings.days and not settings.runs:
            return []
        older = settings.days * _DAY_S if settings.days else None
        return self.prune(Pruning(older, settings.runs or None, settings.proofs))

    def _chosen(self, pruning: Pruning) -> list[_Ended]:
        ended = self._ended()
        kept_from = 0 if pruning.keep is None else max(0, len(ended) - pruning.keep)
        oldest = self._clock() - pruning.older_than_s if pruning.older_than_s is not None else 0.0
        return [run for n, run in enumerate(ended) if n < kept_from or run.time < oldest]

    def _ended(self) -> list[_Ended]:
        (found,) = self._storage.change([_ended_runs], durable=False)
        assert isinstance(found, list)
        return found

    def _folders(self, run: _Ended, pruning: Pruning) -> list[Path]:
        storage = self._storage
        own = [storage.models, storage.published]
        proofs = [storage.receipts, storage.evidence] if pruning.proofs else []
        return [parent / run.run_id for parent in (*own, *proofs)]

    def _links_of(self, gone: set[str]) -> list[Path]:
        """Links to models of these runs that lead to no model of another run."""
        (found,) = self._storage.change([_models], durable=False)
        assert isinstance(found, list)
        last = {model for run_id, model in found if run_id in gone}
        needed = {model for run_id, model in found if run_id not in gone}
        others = {run.run_id for run in self._storage.runs()} - gone
        if others - {run_id for run_id, _ in found}:
            return []  # one without a round of its own yet starts from who knows which model
        links: dict[str, list[Path]] = {}
        for link in self._storage.links.glob("*.link"):
            links.setdefault(link.name.partition("-")[0], []).append(link)
        waiting, kept = list(needed), set(needed)
        while waiting:
            for link in links.get(waiting.pop(), ()):
                try:
                    with open(link, "rb") as stream:
                        before = stream.read(HASH_BYTES).hex()
                except FileNotFoundError:
                    continue  # another request to forget was faster
                if before not in kept:
                    kept.add(before)
                    waiting.append(before)
        return [link for model in last - kept for link in links.get(model, ())]


# --- parts of transactions ------------------------------------------------------------


def _ended_runs(database: sqlite3.Connection) -> list[_Ended]:
    """Oldest first. A run ended with its last event, which is kept as long as the run."""
    rows = database.execute(
        "SELECT run_id, state, COALESCE((SELECT time FROM events WHERE events.run_id = runs.run_id "
        "ORDER BY sequence DESC LIMIT 1), submitted) AS ended FROM runs "
        "WHERE state IN ('completed', 'aborted') ORDER BY ended, rowid"
    )
    return [_Ended(*row) for row in rows]


def _models(database: sqlite3.Connection) -> list[tuple[str, str]]:
    """(run, hash of a model that one of its rounds led to)."""
    rows: Iterable[tuple[bytes]] = database.execute("SELECT record FROM rounds")
    records = (record_from_bytes(data) for (data,) in rows)
    return [(record.round.run_id, record.model_hash) for record in records if record.completed]


def _forget_run(database: sqlite3.Connection, run_id: str) -> None:
    for statement in (
        "DELETE FROM rounds WHERE run_id = ?",
        "DELETE FROM events WHERE run_id = ?",
        "DELETE FROM standings WHERE run_id = ?",
        "DELETE FROM runs WHERE run_id = ?",
    ):
        database.execute(statement, (run_id,))


def _trim_events(database: sqlite3.Connection, keep: int) -> None:
    counted = database.execute(
        "SELECT run_id FROM events GROUP BY run_id HAVING COUNT(*) > ?", (keep,)
    ).fetchall()
    for (run_id,) in counted:
        database.execute(
            "DELETE FROM events WHERE run_id = ? AND sequence <= (SELECT sequence FROM events "
            "WHERE run_id = ? ORDER BY sequence DESC LIMIT 1 OFFSET ?)",
            (run_id, run_id, keep),
        )
