"""A copy of a state directory, taken while its coordinator runs, from which another can go on.

Files are written before the rows that name them, and removed after those that do not need them any
more. So files are copied first, then the database as it is at one moment, then the files that are
new or have changed since: the copy has every file that its rows name, and some that they do not.
An upload that came and went in between may be missing; the coordinator that starts on the copy
says so and holds that round again or ends its run.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from veilsum.errors import ConfigError
from veilsum.pki.files import make_private_folder
from veilsum.transport.durable import Points, no_points, sync_folder

DATABASE = "state.db"

# Made anew by whoever starts on the copy.
_NOT_COPIED = (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", "lock")
_UNFINISHED = "."  # files whose names begin so have no final name yet
_SUMS = Path("spool", "sums")


@dataclass(frozen=True, slots=True)
class Backup:
    """What was copied.

    Attributes:
        files: how many, the database among them.
    """

    files: int
    size_bytes: int


def back_up(state: Path, out: Path, *, points: Points = no_points) -> Backup:
    """Copies a state directory into a new or empty folder. On disk when this returns.

    Args:
        points: for tests, see durable.Points.

    Raises:
        ConfigError: there is no state, `out` is not empty, or the disk failed.
    """
    if not (state / DATABASE).is_file():
        raise ConfigError(f"{state} is not the state directory of a coordinator")
    make_private_folder(out)
    if any(out.iterdir()):
        raise ConfigError(f"{out} is not empty", hint="each backup gets a folder of its own")
    try:
        _copy_files(state, out)
        points("backup.files")
        _copy_database(state / DATABASE, out / DATABASE)
        points("backup.database")
        _copy_files(state, out)
        copied = [file for file in out.rglob("*") if file.is_file()]
        for folder in (out, *(path for path in out.rglob("*") if path.is_dir())):
            sync_folder(folder)
    except (OSError, sqlite3.Error) as error:
        raise ConfigError(f"cannot copy {state} to {out}: {error}") from error
    return Backup(len(copied), sum(file.stat().st_size for file in copied))


def _copy_files(state: Path, out: Path) -> None:
    for name, subfolders, files in os.walk(state):
        folder = Path(name)
        place = folder.relative_to(state)
        subfolders[:] = [sub for sub in subfolders if place / sub != _SUMS]
        (out / place).mkdir(mode=0o700, exist_ok=True)
        for file in files:
            own = folder == state and file in _NOT_COPIED
            if not own and not file.startswith(_UNFINISHED):
                _copy(folder / file, out / place / file)


def _copy(source: Path, target: Path) -> None:
    try:
        if source.is_symlink() or _same(source, target):
            return
        shutil.copy2(source, target)
    except FileNotFoundError:
        return  # not needed any more
    descriptor = os.open(target, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _same(source: Path, target: Path) -> bool:
    found = source.stat()
    if not target.exists():
        return False
    there = target.stat()
    return (found.st_size, found.st_mtime_ns) == (there.st_size, there.st_mtime_ns)


def _copy_database(source: Path, target: Path) -> None:
    of, to = sqlite3.connect(source), sqlite3.connect(target)
    try:
        of.backup(to)
        to.execute("PRAGMA synchronous = FULL")
        (checked,) = to.execute("PRAGMA quick_check").fetchone()
        if checked != "ok":
            raise ConfigError(f"{source} is damaged: {checked}")
    finally:
        to.close()
        of.close()
    target.chmod(0o600)
