"""Files that hold keys: made once, readable by their owner alone."""

from __future__ import annotations

import os
from pathlib import Path

from typing_extensions import Buffer

from veilsum.errors import ConfigError


def make_private_folder(folder: Path) -> None:
    """Makes a folder with mode 0700, with its parents; one that exists must be private.

    Raises:
        ConfigError: cannot be made, or others may enter it.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        mode = folder.stat().st_mode
    except OSError as error:
        raise ConfigError(f"cannot make the folder {folder}: {error.strerror}") from error
    if mode & 0o077:
        raise ConfigError(
            f"the folder {folder} may be entered by others (mode {mode & 0o777:04o})",
            hint=f"chmod 700 {folder}",
        )


def write_private(file: Path, data: Buffer) -> None:
    """Writes a new file of mode 0600 and brings it to disk. Makes no copy of the data.

    Raises:
        ConfigError: it exists, or cannot be written.
    """
    _write_new(file, data, 0o600)


def write_public(file: Path, data: bytes) -> None:
    """Writes a new file of mode 0644 and brings it to disk.

    Raises:
        ConfigError: it exists, or cannot be written.
    """
    _write_new(file, data, 0o644)


def replace_file(file: Path, data: bytes) -> None:
    """Replaces the content of a file that exists, as a whole or not at all; its mode stays.

    Raises:
        ConfigError: cannot be written.
    """
    new = file.with_name(f".{file.name}.new")
    try:
        mode = file.stat().st_mode & 0o777
        new.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror}") from error
    _write_new(new, data, mode)
    new.replace(file)


def _write_new(file: Path, data: Buffer, mode: int) -> None:
    # O_EXCL: a key that someone still uses is never overwritten, and a link that someone
    # else put there is not followed.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    try:
        descriptor = os.open(file, flags, mode)
    except FileExistsError as error:
        raise ConfigError(
            f"{file} exists and is not overwritten", hint="move it away first, or use another name"
        ) from error
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror}") from error
    try:
        with memoryview(data) as view:
            begin = 0
            while begin < len(view):
                begin += os.write(descriptor, view[begin:])
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
