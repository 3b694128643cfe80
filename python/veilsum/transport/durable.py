"""Files that must hold after a crash what they were told before it, and that one process writes."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

from veilsum.errors import ConfigError, LedgerError


def sync_folder(folder: Path) -> None:
    """Makes the names of files that were made, replaced or removed in a folder durable.

    Raises:
        OSError: the folder cannot be read, or the disk failed.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_to_append(file: Path, need: str) -> int:
    """A descriptor to read a private file and to write behind its end, and nowhere else. No
    other process gets one until it is closed.

    Args:
        need: why there is no going on without the file, for the error.

    Raises:
        ConfigError: it cannot be written, others may use it, or another process has it.
    """
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror}", hint=need) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mode = os.fstat(descriptor).st_mode
        if mode & 0o077:
            raise ConfigError(
                f"{file} may be used by others (mode {mode & 0o777:04o})", hint=f"chmod 600 {file}"
            )
    except BlockingIOError as error:
        os.close(descriptor)
        raise ConfigError(
            f"another process holds {file}", hint="one site process, one ledger"
        ) from error
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_all(descriptor: int) -> bytes:
    """The whole file.

    Raises:
        OSError: the disk failed.
    """
    size = os.fstat(descriptor).st_size
    data = b""
    while len(data) < size:
        piece = os.pread(descriptor, size - len(data), len(data))
        if not piece:
            break
        data += piece
    return data


def write_all(descriptor: int, data: bytes) -> None:
    """All of the bytes, in as many writes as the system makes of them.

    Raises:
        OSError: some of them may be in the file.
    """
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


class AppendOnly:
    """A file that is written behind its end until something goes wrong once: after a write or an
    fsync that failed nobody knows what is on the disk.

    Args:
        descriptor: of open_to_append; this closes it.
        name: of the file, for errors: "the ledger".
        waits: whether what is written is always made durable at once. Else it is at the end.
    """

    def __init__(self, descriptor: int, name: str, *, waits: bool) -> None:
        self._descriptor: int | None = descriptor
        self._name = name
        self._waits = waits

    @contextmanager
    def writing(self) -> Iterator[int]:
        """The descriptor, to write with. Whatever is raised meanwhile closes the file for good.

        Raises:
            LedgerError: it is closed, or could not be written.
        """
        if self._descriptor is None:
            raise LedgerError(
                f"{self._name} is closed", hint="restart the site once its disk is well"
            )
        try:
            yield self._descriptor
        except BaseException as error:
            self.close()
            if not isinstance(error, OSError):
                raise
            raise LedgerError(
                f"{self._name} cannot be written: {error.strerror}",
                hint="see to the disk, then restart the site",
            ) from error

    def close(self) -> None:
        """Lets go of the file. Idempotent."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        if not self._waits:
            with suppress(OSError):
                os.fsync(descriptor)
        with suppress(OSError):
            os.close(descriptor)


Points: TypeAlias = Callable[[str], None]
"""Called with the name of a step before it is made durable and after: where a test kills the
process. A name is "<what>.<step>", such as "model.replaced"."""


def no_points(name: str) -> None:
    """Goes on."""
    del name
