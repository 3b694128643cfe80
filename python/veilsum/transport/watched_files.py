"""Files that people replace while the process runs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

_Stamp = tuple[int, int, int] | None


class WatchedFiles:
    """Notices that one of some files was written, replaced, or went."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._files = tuple(files)
        self._stamps = self._look()

    def changed(self) -> bool:
        """Whether they are others than at the last call."""
        before, self._stamps = self._stamps, self._look()
        return before != self._stamps

    def _look(self) -> list[_Stamp]:
        return [_stamp(file) for file in self._files]


def _stamp(file: Path) -> _Stamp:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
