"""A site's ledger on disk: a private folder with two files of mode 0600.

    ledger.vsl    head and records; only ever appended to
    ledger.key    32 secret bytes; records joined under another key are not believed

A record is on the disk before `append` returns. Whatever fails ends the ledger for good: after
an fsync that failed nobody knows what is on the disk, and asking again would say that all is
well.

A ledger that was copied or restored has forgotten what the site did since. It is recognised by
its inode (number and, where the file system tells, generation) and the machine's id, a hash of
which is in the head, and is refused until a person adopts it.
Neither tells a ledger that was overwritten in place, nor a machine that was rolled back as a
whole; such a site counts among those that help the coordinator.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from contextlib import suppress
from pathlib import Path

from veilsum._native import Secret
from veilsum.errors import ConfigError, LedgerError
from veilsum.pki.files import make_private_folder, write_private
from veilsum.secagg.ledger import Ledger
from veilsum.secagg.ledger_records import (
    HEAD_BYTES,
    Adopted,
    Chain,
    LedgerRecord,
    Overtaken,
    home_in,
    make_head,
)
from veilsum.transport.durable import AppendOnly, open_to_append, read_all, sync_folder, write_all

RECORDS_FILE = "ledger.vsl"
KEY_FILE = "ledger.key"

_SECRET_BYTES = 32
_MACHINE_ID = Path("/etc/machine-id")
_GET_GENERATION = 0x80087601  # FS_IOC_GETVERSION
_NEED = "a site takes part in rounds only if it can keep its ledger"
_ADOPT = "if you know why, abort the runs this site was in, then run `veilsum ledger adopt`"


def open_ledger(folder: Path) -> LedgerFile:
    """The ledger of a site, made if neither of its files exists. Held until it is closed.

    Raises:
        ConfigError: the folder or a file cannot be used, or another process holds the ledger.
        LedgerError: it is damaged or not complete, or does not lie where it was made.
    """
    return _opened(folder, adopt=False)


def adopt_ledger(folder: Path) -> int:
    """Lets a copied or restored ledger be used where it lies now.

    Returns:
        how many records it holds.

    Raises:
        ConfigError: there is none, or a site process holds it.
        LedgerError: it is damaged; that cannot be adopted.
    """
    if not (folder / RECORDS_FILE).exists():
        raise ConfigError(f"there is no ledger in {folder}")
    file = _opened(folder, adopt=True)
    try:
        return len(file.records)
    finally:
        file.close()


class LedgerFile:
    """An open ledger, ready to be appended to. Made by open_ledger.

    Attributes:
        records: what it held when it was opened.
        key: the ledger key.
    """

    def __init__(
        self, descriptor: int, chain: Chain, key: Secret, records: tuple[LedgerRecord, ...]
    ) -> None:
        self._file = AppendOnly(descriptor, "the ledger", waits=True)
        self._chain = chain
        self.key = key
        self.records = records

    def ledger(self) -> Ledger:
        """What the site's sessions ask.

        Raises:
            LedgerError: the records contradict one another.
        """
        return Ledger(self.key, self.append, self.records)

    def append(self, record: LedgerRecord) -> None:
        """Returns when the record is on the disk.

        Raises:
            LedgerError: it may not be. The ledger takes no more records.
        """
        with self._file.writing() as descriptor:
            write_all(descriptor, self._chain.join(record))
            os.fsync(descriptor)

    def close(self) -> None:
        """Lets go of the files. Idempotent."""
        self._file.close()


def _opened(folder: Path, *, adopt: bool) -> LedgerFile:
    make_private_folder(folder)
    records_file, key_file = folder / RECORDS_FILE, folder / KEY_FILE
    if not records_file.exists():
        _create(folder)
    descriptor = open_to_append(records_file, _NEED)
    try:
        data = read_all(descriptor)
        if len(data) == HEAD_BYTES and not key_file.exists():
            write_private(key_file, Secret.from_os(_SECRET_BYTES))
            sync_folder(folder)
        key = _read_key(key_file)
        head = data[:HEAD_BYTES]
        home = home_in(head)
        chain = Chain(head, key)
        records, end, overtaken = [], HEAD_BYTES, False
        for record, size in chain.read(data[HEAD_BYTES:]):
            records.append(record)
            end += size
            if isinstance(record, Adopted):
                home, overtaken = record.home, False
            overtaken = overtaken or isinstance(record, Overtaken)
        if end < len(data):
            _cut(descriptor, end)
        file = LedgerFile(descriptor, chain, key, tuple(records))
        if overtaken and not adopt:
            raise LedgerError(
                f"{records_file} is older than what this site has signed since", hint=_ADOPT
            )
        if overtaken:
            home = b""  # of no place: to be adopted in any
        _check_home(file, home, _home(descriptor), records_file, adopt=adopt)
        return file
    except BaseException:
        with suppress(OSError):
            os.close(descriptor)
        raise


def _check_home(file: LedgerFile, home: bytes, here: bytes, path: Path, *, adopt: bool) -> None:
    if home == here:
        return
    if not adopt:
        raise LedgerError(
            f"{path} was copied or restored: what this site did since is not in it", hint=_ADOPT
        )
    file.append(Adopted(here))


def _create(folder: Path) -> None:
    """Makes a ledger without records. Its key follows, so that a key without a ledger always
    means that the ledger was lost."""
    if (folder / KEY_FILE).exists():
        raise LedgerError(
            f"{folder} holds a ledger key and no ledger: what this site did is forgotten",
            hint=f"restore {RECORDS_FILE}; only a site that was in no round may start anew",
        )
    new = folder / f"{RECORDS_FILE}.new"
    new.unlink(missing_ok=True)
    write_private(new, b"")
    descriptor = open_to_append(new, _NEED)
    try:
        write_all(descriptor, make_head(os.urandom(_SECRET_BYTES), _home(descriptor)))
        os.fsync(descriptor)
        os.link(new, folder / RECORDS_FILE)  # unlike a rename it replaces nothing
        new.unlink()
        sync_folder(folder)
    except OSError as error:
        raise ConfigError(f"cannot make a ledger in {folder}: {error.strerror}") from error
    finally:
        os.close(descriptor)


def _read_key(file: Path) -> Secret:
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise LedgerError(f"the ledger key {file} cannot be read: {error.strerror}") from error
    with os.fdopen(descriptor, "rb", buffering=0) as stream:
        key = Secret.zeros(_SECRET_BYTES)
        with memoryview(key) as view:
            whole = stream.readinto(view) == _SECRET_BYTES and not stream.read(1)
    if not whole:
        raise LedgerError(f"the ledger key {file} must have {_SECRET_BYTES} bytes")
    return key


def _cut(descriptor: int, end: int) -> None:
    """Drops a record that was not written to its end: what it stands for was never sent."""
    try:
        os.ftruncate(descriptor, end)
        os.fsync(descriptor)
    except OSError as error:
        raise LedgerError(f"the ledger cannot be written: {error.strerror}") from error


def _home(descriptor: int) -> bytes:
    """Where a ledger lies. Not its device number, which may be another after a reboot."""
    machine = _MACHINE_ID.read_bytes().strip() if _MACHINE_ID.exists() else b""
    inode = os.fstat(descriptor).st_ino.to_bytes(8, "little")
    return hashlib.sha256(inode + _generation(descriptor) + machine).digest()


def _generation(descriptor: int) -> bytes:
    """Tells inodes apart that had one number after another."""
    generation = bytearray(8)
    with suppress(OSError):  # a file system that keeps none
        fcntl.ioctl(descriptor, _GET_GENERATION, generation)
    return bytes(generation)
