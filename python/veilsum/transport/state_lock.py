"""Who uses a state directory: one process at a time, and which.

The lock goes with the process however it ends. The file says who holds it, for people who are
refused; and so that one who lost it without noticing, because the lock was on a file server that
gave it to another, or because somebody removed the file, stops at its next change.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from veilsum.errors import ConfigError

_MOST_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that uses a state directory.

    Attributes:
        since: seconds since 1970.
    """

    pid: int
    host: str
    since: float

    def __str__(self) -> str:
        when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.since))
        return f"process {self.pid} on {self.host}, since {when}"


class StateInUse(ConfigError):  # noqa: N818  nothing failed
    """Another process uses the state directory."""


class StateLock:
    """Held from now on until it is closed.

    Attributes:
        before: who held it last and did not end as it should; None if that is not so.

    Raises:
        StateInUse: names who holds it.
        ConfigError: the file cannot be used.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        try:
            self._descriptor = os.open(
                file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
        except OSError as error:
            raise ConfigError(f"cannot use {file}: {error.strerror}") from error
        try:
            self._take()
        except BaseException:
            os.close(self._descriptor)
            raise

    def _take(self) -> None:
        folder = self._file.parent
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.before = _holder(os.pread(self._descriptor, _MOST_BYTES, 0))
            self._own = Holder(os.getpid(), os.uname().nodename, time.time())
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, json.dumps(asdict(self._own)).encode(), 0)
        except BlockingIOError as error:
            held = _holder(os.pread(self._descriptor, _MOST_BYTES, 0)) or "one that is starting"
            raise StateInUse(
                f"another coordinator uses the state directory {folder}: {held}",
                hint="stop it first, or start this one with --standby, so that it takes over when "
                "the other ends; a coordinator of its own needs a state_dir of its own",
            ) from error
        except OSError as error:
            raise ConfigError(f"cannot use {self._file}: {error.strerror}") from error

    def other(self) -> str | None:
        """Who has taken the directory from this process, in words; None: nobody.

        Raises:
            OSError: the disk failed.
        """
        try:
            with open(self._file, "rb") as stream:
                held = _holder(stream.read(_MOST_BYTES))
        except FileNotFoundError:
            return "somebody who removed the lock"
        return None if held == self._own else str(held or "somebody who emptied the lock")

    def close(self) -> None:
        """Gives the directory back."""
        if self.other() is None:
            os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)


def _holder(data: bytes) -> Holder | None:
    try:
        read = json.loads(data)
        return Holder(int(read["pid"]), str(read["host"]), float(read["since"]))
    except (ValueError, KeyError, TypeError):
        return None
