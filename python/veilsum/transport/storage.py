"""The coordinator's state directory: runs, rounds and events in SQLite, models as files.

    state.db                              SQLite, WAL
    lock                                  held while a coordinator uses the directory
    spool/                                uploads of open rounds
    spool/sums/                           updates of open plain rounds that came in no file
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

Whatever happens is on disk before anyone is told of it (keeping.py).
"""

from __future__ import annotations

import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

from veilsum.control import RoundId, RunEvent, RunStatus
from veilsum.coordinator.standing import Standing
from veilsum.errors import ConfigError, VeilsumError
from veilsum.model import ModelLayout, StoredModel
from veilsum.optimizers.state import OptimizerState
from veilsum.pki.files import make_private_folder
from veilsum.transport.checkpoints import Arrays, save_model, save_pieces, stored_model
from veilsum.transport.durable import Points, no_points
from veilsum.transport.event_log import Entry
from veilsum.transport.evidence_files import save_evidence
from veilsum.transport.state_lock import StateLock
from veilsum.transport.tables import (
    entries,
    get_standing,
    open_database,
    put_event,
    put_run,
    shrink,
)
from veilsum.transport.wire_runs import event_from_bytes, record_from_bytes, run_from_bytes

HASH_BYTES = 32
_LAST_ROUNDS = 2

RESTARTED = "the coordinator was restarted"

Change: TypeAlias = Callable[[sqlite3.Connection], object]
"""A part of a transaction, such as tables.put_run of something."""


class DiskFailed(VeilsumError):  # noqa: N818  the disk's failure, not ours
    """What must be durable cannot be made so: the process knows more than the disk does. To be
    started again from the disk."""


class Storage:
    """Everything a coordinator keeps. Safe to use from several threads; each call blocks.

    Args:
        points: for tests, see durable.Points.

    Raises:
        ConfigError: the directory cannot be used, is in use, or is of another version.
    """

    def __init__(self, folder: Path, *, points: Points = no_points) -> None:
        make_private_folder(folder)
        self.points = points
        self.folder = folder
        self.database = folder / "state.db"
        self.spool = folder / "spool"
        self.sums = self.spool / "sums"
        self.models = folder / "models"
        self.receipts = folder / "receipts"
        self.evidence = folder / "evidence"
        self.published = folder / "sums"
        self.links = folder / "links"
        for part in (
            self.spool,
            self.models,
            self.receipts,
            self.published,
            self.evidence,
            self.links,
        ):
            make_private_folder(part)
        self._mutex = threading.Lock()
        self.lock = StateLock(folder / "lock")
        try:
            self._database = open_database(self.database)
            self._empty_sums()
            self._abort_old_runs()
            self._drop_ended_sums()
        except BaseException:
            self.lock.close()
            raise

    def close(self) -> None:
        """Gives the directory back."""
        with self._mutex:
            self._database.close()
            self.lock.close()

    # --- writing ------------------------------------------------------------------

    def change(self, changes: Sequence[Change], *, durable: bool = True) -> list[object]:
        """Makes all changes or none, and returns what each returned.

        Args:
            durable: whether a power cut may not undo them. They are in order all the same: what
                is durable makes durable what came before.

        Raises:
            DiskFailed: they could not be made.
        """
        self.points("database.begin")
        self.require_lock()
        try:
            with self._mutex:
                self._database.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
                with self._database as database:
                    results = [change(database) for change in changes]
        except sqlite3.Error as error:
            raise DiskFailed(
                f"cannot write {self.database}: {error}",
                hint="see to the disk, then start the coordinator again: its runs go on",
            ) from error
        self.points("database.committed")
        return results

    def shrink(self) -> None:
        """Gives the disk back what rows took up that are deleted.

        Raises:
            DiskFailed: it could not be done.
        """
        with self._mutex:
            try:
                shrink(self._database)
            except sqlite3.Error as error:
                raise DiskFailed(f"cannot shrink {self.database}: {error}") from error

    def require_lock(self) -> None:
        """Raises:
        DiskFailed: another process has taken the directory, whose files these are now.
        """
        try:
            other = self.lock.other()
        except OSError as error:
            raise DiskFailed(f"cannot read the lock of {self.folder}: {error.strerror}") from error
        if other is not None:
            raise DiskFailed(
                f"the state directory {self.folder} was taken over by {other}",
                hint="one coordinator at a time: see which of them the sites should reach",
            )

    def save_step(
        self,
        round_id: RoundId,
        layout: ModelLayout,
        model: Arrays,
        optimizer_state: OptimizerState | None = None,
    ) -> None:
        """Keeps the model after a round and the optimizer's state. What the optimizer remembered
        two rounds before is forgotten.

        Raises:
            ConfigError: model or state cannot be written.
        """
        run_id, number = round_id.run_id, round_id.number
        self.save_model(run_id, number, layout, model)
        if optimizer_state is not None:
            self.save_optimizer(run_id, number, optimizer_state)
            self.optimizer_file(run_id, number - 2).unlink(missing_ok=True)

    def save_model(self, run_id: str, number: int, layout: ModelLayout, model: Arrays) -> None:
        """Keeps the model after a round; number 0 is the initial one.

        Raises:
            ConfigError: the model cannot be written.
        """
        save_model(self.model_file(run_id, number), layout, model, points=self.points)

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
        save_pieces(file, [receipt], what="the receipt", points=self.points)

    def save_sum(self, round_id: RoundId, words: Iterable[bytes]) -> Path:
        """Keeps the integer sum of a masked round, its packed chunks one after the other, instead
        of the one of the run's round before.

        Raises:
            ConfigError: it cannot be written.
        """
        file = self.sum_file(round_id.run_id, round_id.number)
        save_pieces(file, words, what="the sum", points=self.points)
        self.sum_file(round_id.run_id, round_id.number - 1).unlink(missing_ok=True)
        return file

    def drop_sums(self, run_id: str) -> None:
        """Nobody fetches a sum of this run any more."""
        shutil.rmtree(self.published / run_id, ignore_errors=True)

    def drop_models(self, run_id: str) -> None:
        """There is no such run after all."""
        shutil.rmtree(self.models / run_id, ignore_errors=True)

    def save_optimizer(self, run_id: str, number: int, state: OptimizerState) -> None:
        """Keeps the optimizer's state after a round; number 0 is what a run goes on from.

        Raises:
            ConfigError: the state cannot be written.
        """
        file = self.optimizer_file(run_id, number)
        save_pieces(file, state.pieces(), what="the optimizer's state", points=self.points)

    def save_link(
        self, before: tuple[bytes, bytes], after: tuple[bytes, bytes], link: bytes
    ) -> None:
        """Keeps what leads from a model and optimizer state to another; see links_to.

        Raises:
            ConfigError: it cannot be written.
        """
        save_pieces(
            self._link_file(after),
            [b"".join(before), link],
            what="a result's link",
            points=self.points,
        )

    # --- reading ------------------------------------------------------------------

    def run(self, run_id: str, *, since: int = 0) -> RunStatus | None:
        """A run with its rounds from number `since` on, or None."""
        with self._mutex:
            row = self._database.execute(
                "SELECT status FROM runs WHERE run_id = ?", (run_id,)
            ).fetchone()
            records = self._database.execute(
                "SELECT record FROM rounds WHERE run_id = ? AND number >= ? "
                "ORDER BY number, attempt",
                (run_id, since),
            ).fetchall()
        if row is None:
            return None
        rounds = tuple(record_from_bytes(data) for (data,) in records)
        return replace(run_from_bytes(row[0]), rounds=rounds)

    def unfinished(self) -> list[tuple[RunStatus, Standing | None]]:
        """Runs that have not ended, the one under way first and then the oldest, with their last
        rounds, and where each stands. A run may have very many rounds behind it, and none of them
        is needed to go on."""
        with self._mutex:
            rows = self._database.execute(
                # The clock may have been set back since the one under way was submitted.
                "SELECT run_id FROM runs WHERE state IN ('waiting', 'running') "
                "ORDER BY state = 'waiting', submitted, rowid"
            ).fetchall()
        found = []
        for (run_id,) in rows:
            with self._mutex:
                standing = get_standing(self._database, run_id)
            since = standing.round.number - _LAST_ROUNDS if standing is not None else 0
            status = self.run(run_id, since=since)
            assert status is not None
            found.append((status, standing))
        return found

    def log(self) -> list[Entry]:
        """What happened since the standing of the run that is under way, in order."""
        with self._mutex:
            return list(entries(self._database))

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
                file = next(self.links.glob(f"{after[0].hex()}-*.link"), file)
            if not file.is_file():
                return
            data = file.read_bytes()
            after = data[:HASH_BYTES], data[HASH_BYTES : 2 * HASH_BYTES]
            yield data[2 * HASH_BYTES :]

    def _link_file(self, after: tuple[bytes, bytes]) -> Path:
        return self.links / f"{'-'.join(part.hex() for part in after)}.link"

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

    def _empty_sums(self) -> None:
        """Copies of what is in the spool, of a process that is gone."""
        if self.sums.exists():
            shutil.rmtree(self.sums)
        make_private_folder(self.sums)

    def _drop_ended_sums(self) -> None:
        """Those whose runs ended right before the process did."""
        unfinished = {status.run_id for status, _ in self.unfinished()}
        for folder in self.published.iterdir():
            if folder.name not in unfinished:
                self.drop_sums(folder.name)

    def _abort_old_runs(self) -> None:
        """Those that a version began which did not write down where a run stands."""
        for status, standing in self.unfinished():
            if status.state == "running" and standing is None:
                ended = replace(status, state="aborted", reason=RESTARTED, phase="")
                event = RunEvent(status.run_id, "run", detail=f"aborted: {RESTARTED}")
                self.change(
                    [
                        partial(put_run, status=replace(ended, sites_waiting=())),
                        partial(put_event, event=event),
                    ]
                )
