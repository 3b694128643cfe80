"""Disks that fail at a step of a coordinator: full, or read-only."""

from __future__ import annotations

import ctypes
import os
import resource
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_OVERRIDES = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
_CAPABILITIES_3 = 0x20080522


@dataclass(frozen=True)
class Fault:
    """What becomes of a disk.

    Attributes:
        what: "full": no file can grow; "read-only": nothing can be written, from the start.
        begin, end: name and occurrence of the points from which on and up to which it is full;
            without an end it stays so.
    """

    what: Literal["full", "read-only"]
    begin: tuple[str, int] = ("", 0)
    end: tuple[str, int] | None = None

    def __str__(self) -> str:
        return f"{self.what} at {self.begin[0]}-{self.begin[1]}"

    def at(self, folder: Path) -> Callable[[str], None]:
        """What to call at each point in the process whose disk it is."""
        seen: Counter[str] = Counter()
        if self.what == "read-only":
            make_read_only(folder)

        def point(name: str) -> None:
            seen[name] += 1
            if (name, seen[name]) == self.begin:
                _fill()
            if (name, seen[name]) == self.end:
                _make_room()

        return point


def _fill() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, most))


def _make_room() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def make_read_only(folder: Path) -> None:
    """Until make_writable(). Also for this process if it is root's: for its only thread."""
    for place in (folder, *folder.rglob("*")):
        place.chmod(0o500 if place.is_dir() else 0o400)
    if os.geteuid() == 0:
        _obey_modes()


def make_writable(folder: Path) -> None:
    """As it was."""
    folder.chmod(0o700)
    for place in folder.rglob("*"):
        place.chmod(0o700 if place.is_dir() else 0o600)


def _obey_modes() -> None:
    """Root without the right to do what the modes of files forbid. It does not come back."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES_3, 0)
    sets = (ctypes.c_uint32 * 6)()
    if libc.capget(header, sets):
        raise OSError(ctypes.get_errno(), "capget")
    for kind in range(2):  # effective, permitted
        sets[kind] &= ~_OVERRIDES
    if libc.capset(header, sets):
        raise OSError(ctypes.get_errno(), "capset")
