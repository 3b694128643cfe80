"""The coordinator's state directory: runs, rounds and events in SQLite, models as files.

    state.db                              SQLite, WAL
    lock                                  held while a coordinator uses the directory
    spool/                                uploads of open rounds; emptied at start
    spool/sums/                           accepted updates of open plain rounds
    models/<file>.safetensors             put here by people, to start runs from
    models/<run>/round-<n>.safetensors    the model after round n; 0 is the initial one
    receipts/<run>/round-<n>.json         what took place in masked round n, signed
    sums/<run>/round-<n>.words            the integer sum of masked round n, which its sites fetch;
                                          of the run's last round only
    models/<run>/optimizer-<n>.safetensors    what the server's optimizer remembers after it,
                                              of the last two rounds: sites may still have
                                              to make the later one's step from the earlier
    evidence/<run>/<round>-<attempt>-<n>.vse  who broke the protocol
    links/<model>-<state>.link            the result that led to that model and optimizer state, and
                                          its acknowledgements, behind the hashes of those before

A finished round is on disk before anyone is told of it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from veilsum.control import RoundId, RoundRecord, RunEvent, RunStatus
from veilsum.errors import ConfigError
from veilsum.model import ModelLayout, StoredModel
from veilsum.optimizers.state import OptimizerState
from veilsum.pki.files import make_private_folder
from veilsum.transport.checkpoints import Arrays, save_model, save_pieces, stored_model
from veilsum.transport.evidence_files import save_evidence
from veilsum.transport.wire_runs import (
    event_from_bytes,
    event_to_bytes,
    record_from_bytes,
    record_to_bytes,
    run_from_bytes,
    run_to_bytes,
)

HASH_BYTES = 32
_FORMAT = 1
_SCHEMA = """
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

RESTARTED = "the coordinator was restarted"


class Storage:
    """Everything a coordinator keeps. Safe to use from several threads; each call blocks.

    Raises:
        ConfigError: the directory cannot be used, is in use, or is of another version.
    """

    def __init__(self, folder: Path) -> None:
        make_private_folder(folder)
        self.folder = folder
        self.database = folder / "state.db"
        self.spool = folder / "spool"
        self.sums = self.spool / "sums"
        self.models = folder / "models"
        self.receipts = folder / "receipts"
        self.evidence = folder / "evidence"
        self.published = folder / "sums"
        self._links = folder / "links"
        for part in (
            self.spool,
            self.models,
            self.receipts,
            self.published,
            self.evidence,
            self._links,
        ):
            make_private_folder(part)
        self._lock_file = _lock(folder / "lock")
        self._mutex = threading.Lock()
        self._database = _open_database(self.database)
        self._empty_spool()
        self._abort_interrupted_runs()

    def close(self) -> None:
        """Gives the directory back."""
        with self._mutex:
            self._database.close()
            os.close(self._lock_file)

    # --- writing ------------------------------------------------------------------

    def save_run(self, status: RunStatus) -> None:
        """Keeps a run's state; its rounds are kept by save_round."""
        data = run_to_bytes(status, with_rounds=False)
        with self._transaction() as database:
            database.execute(
                "INSERT INTO runs VALUES (?, ?, ?, ?) "
                "ON CONFLICT (run_id) DO UPDATE SET state = excluded.state, "
                "status = excluded.status",
                (status.run_id, time.time(), status.state, data),
            )

    def save_round(
        self,
        record: RoundRecord,
        layout: ModelLayout,
        model: Arrays | None,
        optimizer_state: OptimizerState | None = None,
    ) -> None:
        """Keeps a finished round, before it the model after it and the optimizer's state; the
        last but one before is then forgotten.

        Raises:
            ConfigError: model or state cannot be written.
        """
        run_id, number = record.round.run_id, record.round.number
        if model is not None:
            self.save_model(run_id, number, layout, model)
        if optimizer_state is not None:
            self.save_optimizer(run_id, number, optimizer_state)
        with self._transaction() as database:
            database.execute(
                "INSERT OR REPLACE INTO rounds VALUES (?, ?, ?, ?, ?)",
                (
                    record.round.run_id,
                    number,
                    record.round.attempt,
                    time.time(),
                    record_to_bytes(record),
                ),
            )
        if optimizer_state is not None:
            self.optimizer_file(run_id, number - 2).unlink(missing_ok=True)

    def save_model(self, run_id: str, number: int, layout: ModelLayout, model: Arrays) -> None:
        """Keeps the model after a round; number 0 is the initial one.

        Raises:
            ConfigError: the model cannot be written.
        """
        save_model(self.model_file(run_id, number), layout, model)

    def save_evidence(self, round_id: RoundId, evidence: bytes) -> Path:
        """Keeps evidence of an attempt, in a file of its own.

        Raises:
            ConfigError: it cannot be written.
        """
        return save_evidence(
            self.evidence / round_id.run_id, f"{round_id.number}-{round_id.attempt}", evidence
        )

    def save_receipt(self, round_id: RoundId, receipt: bytes) -> None:
        """Keeps the receipt of a round.

        Raises:
            ConfigError: it cannot be written.
        """
        file = self.receipt_file(round_id.run_id, round_id.number)
        save_pieces(file, [receipt], what="the receipt")

    def save_sum(self, round_id: RoundId, words: Iterable[bytes]) -> Path:
        """Keeps the integer sum of a masked round, its packed chunks one after the other, instead
        of the one of the run's round before.

        Raises:
            ConfigError: it cannot be written.
        """
        file = self.sum_file(round_id.run_id, round_id.number)
        save_pieces(file, words, what="the sum")
        self.sum_file(round_id.run_id, round_id.number - 1).unlink(missing_ok=True)
        return file

    def drop_sums(self, run_id: str) -> None:
        """Nobody fetches a sum of this run any more."""
        shutil.rmtree(self.published / run_id, ignore_errors=True)

    def save_optimizer(self, run_id: str, number: int, state: OptimizerState) -> None:
        """Keeps the optimizer's state after a round; number 0 is what a run goes on from.

        Raises:
            ConfigError: the state cannot be written.
        """
        file = self.optimizer_file(run_id, number)
        save_pieces(file, state.pieces(), what="the optimizer's state")

    def save_link(
        self, before: tuple[bytes, bytes], after: tuple[bytes, bytes], link: bytes
    ) -> None:
        """Keeps what leads from a model and optimizer state to another; see links_to.

        Raises:
            ConfigError: it cannot be written.
        """
        save_pieces(self._link_file(after), [b"".join(before), link], what="a result's link")

    def append_event(self, event: RunEvent) -> int:
        """Keeps an event; its number is higher than all before it."""
        with self._transaction() as database:
            cursor = database.execute(
                "INSERT INTO events (run_id, time, event) VALUES (?, ?, ?)",
                (event.run_id, time.time(), event_to_bytes(event)),
            )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    # --- reading ------------------------------------------------------------------

    def run(self, run_id: str) -> RunStatus | None:
        """A run with its rounds, or None."""
        with self._mutex:
            row = self._database.execute(
                "SELECT status FROM runs WHERE run_id = ?", (run_id,)
            ).fetchone()
            records = self._database.execute(
                "SELECT record FROM rounds WHERE run_id = ? ORDER BY number, attempt", (run_id,)
            ).fetchall()
        if row is None:
            return None
        rounds = tuple(record_from_bytes(data) for (data,) in records)
        return replace(run_from_bytes(row[0]), rounds=rounds)

    def runs(self) -> list[RunStatus]:
        """All runs, newest first, without their rounds."""
        with self._mutex:
            rows = self._database.execute(
                "SELECT status FROM runs ORDER BY submitted DESC, rowid DESC"
            ).fetchall()
        return [run_from_bytes(data) for (data,) in rows]

    def events(self, run_id: str, *, after: int = 0) -> list[tuple[int, RunEvent]]:
        """What happened to a run after the event of that number, in order, with numbers."""
        with self._mutex:
            rows = self._database.execute(
                "SELECT sequence, event FROM events WHERE run_id = ? AND sequence > ? "
                "ORDER BY sequence",
                (run_id, after),
            ).fetchall()
        return [(sequence, event_from_bytes(data)) for sequence, data in rows]

    def model_file(self, run_id: str, number: int) -> Path:
        """Where the model after a round is kept."""
        return self.models / run_id / f"round-{number}.safetensors"

    def stored_model(self, run_id: str, number: int, layout: ModelLayout) -> StoredModel:
        """The model after a round, read from its file when it is asked for."""
        return stored_model(self.model_file(run_id, number), layout)

    def sum_file(self, run_id: str, number: int) -> Path:
        """Where the integer sum of a masked round is kept."""
        return self.published / run_id / f"round-{number}.words"

    def receipt_file(self, run_id: str, number: int) -> Path:
        """Where the receipt of a masked round is kept."""
        return self.receipts / run_id / f"round-{number}.json"

    def optimizer_file(self, run_id: str, number: int) -> Path:
        """Where the optimizer's state after a round is kept."""
        return self.models / run_id / f"optimizer-{number}.safetensors"

    def links_to(self, after: tuple[bytes, bytes], *, most: int) -> Iterator[bytes]:
        """What leads to a model and optimizer state, the last step first, at most so many. To a
        model whose optimizer begins anew leads whatever leads to the model."""
        for _ in range(most):
            file = self._link_file(after)
            if not file.is_file() and not any(after[1]):
                file = next(self._links.glob(f"{after[0].hex()}-*.link"), file)
            if not file.is_file():
                return
            data = file.read_bytes()
            after = data[:HASH_BYTES], data[HASH_BYTES : 2 * HASH_BYTES]
            yield data[2 * HASH_BYTES :]

    def _link_file(self, after: tuple[bytes, bytes]) -> Path:
        return self._links / f"{'-'.join(part.hex() for part in after)}.link"

    def submitted_file(self, name: str) -> Path:
        """A file that people put into the models folder.

        Raises:
            ConfigError: not the plain name of a .safetensors file there.
        """
        file = self.models / name
        plain = Path(name).name == name and name.endswith(".safetensors") and name.isprintable()
        if not plain or file.is_symlink() or not file.is_file():
            raise ConfigError(
                f"there is no file {name!r} in the coordinator's models folder",
                hint="put it there and give its name alone, such as start.safetensors",
            )
        return file

    # --- start --------------------------------------------------------------------

    def _empty_spool(self) -> None:
        for leftover in self.spool.iterdir():
            if leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()
        make_private_folder(self.sums)

    def _abort_interrupted_runs(self) -> None:
        # Sites hold the other half of an open round; it cannot be taken up again here.
        with self._mutex:
            rows = self._database.execute(
                "SELECT status FROM runs WHERE state IN ('waiting', 'running')"
            ).fetchall()
        for (data,) in rows:
            status = run_from_bytes(data)
            self.save_run(
                replace(status, state="aborted", reason=RESTARTED, phase="", sites_waiting=())
            )
            self.append_event(RunEvent(status.run_id, "run", detail=f"aborted: {RESTARTED}"))

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._mutex, self._database as database:
            yield database


def _lock(file: Path) -> int:
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise ConfigError(
            f"another coordinator uses the state directory {file.parent}",
            hint="stop it, or give this one a state_dir of its own",
        ) from error
    return descriptor


def _open_database(file: Path) -> sqlite3.Connection:
    try:
        database = sqlite3.connect(file, check_same_thread=False)
        database.execute("PRAGMA journal_mode = WAL")
        # A round that was announced must survive a power cut, not only a crash.
        database.execute("PRAGMA synchronous = FULL")
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version == 0:
            database.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_FORMAT}; COMMIT;")
        elif version != _FORMAT:
            raise ConfigError(f"{file} has format {version}, this version knows {_FORMAT}")
    except sqlite3.Error as error:
        raise ConfigError(f"cannot use {file}: {error}") from error
    return database
