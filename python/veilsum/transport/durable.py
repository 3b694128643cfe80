"""What a file needs beside its own fsync to be there after a crash."""

from __future__ import annotations

import os
from pathlib import Path


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
