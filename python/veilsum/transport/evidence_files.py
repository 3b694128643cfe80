"""Evidence on disk, one file each, for people to look at: `veilsum pki check-evidence`."""

from __future__ import annotations

from pathlib import Path

from veilsum.errors import ConfigError
from veilsum.pki.files import make_private_folder, write_private

SUFFIX = ".vse"
_MOST = 1000  # in one folder: what someone else does must not fill the disk


def save_evidence(folder: Path, name: str, evidence: bytes) -> Path:
    """Keeps evidence in a folder that is made if there is none.

    Args:
        name: what the file's name begins with; a number that is free follows.

    Raises:
        ConfigError: it cannot be written, or there is too much of it already.
    """
    make_private_folder(folder)
    kept = sum(1 for _ in folder.glob(f"*{SUFFIX}"))
    if kept >= _MOST:
        raise ConfigError(
            f"{folder} holds {kept} files of evidence", hint="look at them, and move them away"
        )
    number = 1
    while (file := folder / f"{name}-{number}{SUFFIX}").exists():
        number += 1
    write_private(file, evidence)
    return file
