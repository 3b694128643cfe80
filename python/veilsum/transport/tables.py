"""The tables of state.db, and what is written to them: each function is a part of a transaction.

runs        one row per run, its state
rounds      one per attempt that ended
events      what happened to runs, as `veilsum run watch` shows it
standings   where each run stands that has begun and not ended (coordinator.standing)
log         what happened since the standing of the run that is under way (event_log.py)
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from veilsum.control import RoundId, RoundRecord, RunEvent, RunStatus
from veilsum.coordinator.standing import Standing
from veilsum.errors import ConfigError
from veilsum.transport.event_log import Entry, draws_from_bytes, draws_to_bytes
from veilsum.transport.wire_runs import event_to_bytes, record_to_bytes, run_to_bytes

_FORMAT = 2
_MOST_JOURNAL_BYTES = 64 << 20  # of the write-ahead log, between two checkpoints
_FORMAT_1 = """
CREATE TABLE runs (
    run_id TEXT PRIMARY KEY, submitted REAL NOT NULL, state TEXT NOT NULL, status BLOB NOT NULL
);
CREATE INDEX runs_by_state ON runs (state);
CREATE TABLE rounds (
    run_id TEXT NOT NULL, number INTEGER NOT NULL, attempt INTEGER NOT NULL,
    ended REAL NOT NULL, record BLOB NOT NULL,
    PRIMARY KEY (run_id, number, attempt)
);
CREATE TABLE events (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT, run_id TEXT NOT NULL,
    time REAL NOT NULL, event BLOB NOT NULL
);
CREATE INDEX events_by_run ON events (run_id, sequence);
"""
_FORMAT_2 = """
CREATE TABLE standings (
    run_id TEXT PRIMARY KEY, number INTEGER NOT NULL, attempt INTEGER NOT NULL, data BLOB NOT NULL
);
CREATE TABLE log (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, time REAL NOT NULL,
    run_id TEXT NOT NULL, number INTEGER NOT NULL, attempt INTEGER NOT NULL, site TEXT NOT NULL,
    text TEXT NOT NULL, data BLOB NOT NULL, draws BLOB NOT NULL
);
"""


def open_database(file: Path) -> sqlite3.Connection:
    """The database of a state directory, made or brought to today's format if need be.

    Raises:
        ConfigError: it cannot be used, or is of a later version.
    """
    try:
        database = sqlite3.connect(file, check_same_thread=False)
        database.execute("PRAGMA auto_vacuum = INCREMENTAL")  # of a new file, before all else
        database.execute("PRAGMA journal_mode = WAL")
        database.execute(f"PRAGMA journal_size_limit = {_MOST_JOURNAL_BYTES}")
        # A round that was announced must survive a power cut, not only a crash.
        database.execute("PRAGMA synchronous = FULL")
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version > _FORMAT:
            raise ConfigError(
                f"{file} has format {version}, this version knows {_FORMAT}",
                hint="use the version of veilsum that wrote it, or a later one",
            )
        missing = "".join((_FORMAT_1, _FORMAT_2)[version:])
        if missing:
            database.executescript(f"BEGIN; {missing} PRAGMA user_version = {_FORMAT}; COMMIT;")
    except sqlite3.Error as error:
        raise ConfigError(f"cannot use {file}: {error}") from error
    return database


def shrink(database: sqlite3.Connection) -> None:
    """Gives the disk back what deleted rows took up. Outside of a transaction."""
    (incremental,) = database.execute("PRAGMA auto_vacuum").fetchone()
    if incremental:
        # Not execute(): it takes the first step alone, which frees one page.
        database.executescript("PRAGMA incremental_vacuum")
    else:  # made before files could shrink: written anew, once
        database.execute("PRAGMA auto_vacuum = INCREMENTAL")
        database.execute("VACUUM")
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def put_run(database: sqlite3.Connection, status: RunStatus) -> None:
    """A run's state; its rounds have rows of their own. One that has ended stands nowhere."""
    database.execute(
        "INSERT INTO runs VALUES (?, ?, ?, ?) "
        "ON CONFLICT (run_id) DO UPDATE SET state = excluded.state, status = excluded.status",
        (status.run_id, time.time(), status.state, run_to_bytes(status, with_rounds=False)),
    )
    if status.state in ("completed", "aborted"):
        database.execute("DELETE FROM standings WHERE run_id = ?", (status.run_id,))


def put_round(database: sqlite3.Connection, record: RoundRecord) -> None:
    """An attempt that ended."""
    where = record.round
    database.execute(
        "INSERT OR REPLACE INTO rounds VALUES (?, ?, ?, ?, ?)",
        (where.run_id, where.number, where.attempt, time.time(), record_to_bytes(record)),
    )


def put_event(database: sqlite3.Connection, event: RunEvent) -> int:
    """Something that happened; its number is higher than all before it."""
    cursor = database.execute(
        "INSERT INTO events (run_id, time, event) VALUES (?, ?, ?)",
        (event.run_id, time.time(), event_to_bytes(event)),
    )
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def put_standing(database: sqlite3.Connection, standing: Standing) -> None:
    """Where a run stands now."""
    where = standing.round
    database.execute(
        "INSERT OR REPLACE INTO standings VALUES (?, ?, ?, ?)",
        (where.run_id, where.number, where.attempt, standing.data),
    )


def get_standing(database: sqlite3.Connection, run_id: str) -> Standing | None:
    """Where a run stands, if it has begun and not ended."""
    row = database.execute(
        "SELECT number, attempt, data FROM standings WHERE run_id = ?", (run_id,)
    ).fetchone()
    return None if row is None else Standing(RoundId(run_id, row[0], row[1]), row[2])


def clear_log(database: sqlite3.Connection) -> None:
    """What happened before is in a standing, or in a run that has ended."""
    database.execute("DELETE FROM log")


def put_entry(database: sqlite3.Connection, entry: Entry) -> None:
    """One thing that happened since."""
    where = entry.round
    database.execute(
        "INSERT INTO log (kind, time, run_id, number, attempt, site, text, data, draws) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            entry.kind,
            entry.time,
            where.run_id,
            where.number,
            where.attempt,
            entry.site,
            entry.text,
            entry.data,
            draws_to_bytes(entry.draws),
        ),
    )


def entries(database: sqlite3.Connection) -> Iterator[Entry]:
    """All that happened since, in order."""
    rows = database.execute(
        "SELECT kind, time, run_id, number, attempt, site, text, data, draws FROM log "
        "ORDER BY sequence"
    )
    for kind, when, run_id, number, attempt, site, text, data, draws in rows:
        where = RoundId(run_id, number, attempt)
        yield Entry(kind, when, where, site, text, data, draws_from_bytes(draws))
