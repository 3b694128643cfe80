"""A site's egress ledger on disk: one file of mode 0600, only ever appended to.

A record is in the file before its message is handed to gRPC, so no end of the process loses it.
Against an end of the machine the site also waits for the disk, before every message of the
protocol and before the first one of an update. It does not wait for each further megabyte of an
update, nor for reports of progress: their records reach the disk with the next that is waited
for. After a power cut the last megabytes of an update may be missing from the list, but not that it
began to leave, and no head that the site has told anyone.

Whatever fails ends the ledger for good, as with ledger_file.py, and then nothing leaves the site.
A ledger that grew too long is moved away while the site is stopped; a new one begins.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from veilsum.errors import ConfigError, LedgerError
from veilsum.pki.files import write_private
from veilsum.secagg.egress_summary import EgressSummary
from veilsum.site.egress import EgressChain, EgressHead
from veilsum.transport.durable import AppendOnly, open_to_append, read_all, sync_folder, write_all

PIECES = frozenset({"masked-update", "plain-update"})
"""Kinds of which an update's bytes leave in many messages."""

_ID_BYTES = 32
_NEED = "a site sends nothing that it cannot put down in its egress ledger"
_UNWAITED = PIECES | {"progress"}


def open_egress(file: Path, consortium: str, site: str) -> EgressFile:
    """The egress ledger of a site, made if there is none. Held until it is closed.

    Raises:
        ConfigError: the file cannot be used, is another site's, or another process holds it.
        LedgerError: it is damaged.
    """
    if not file.exists():
        _create(file, EgressHead(os.urandom(_ID_BYTES), consortium, site))
    descriptor = open_to_append(file, _NEED)
    try:
        return EgressFile(descriptor, _resumed(descriptor, file, consortium, site))
    except BaseException:
        with suppress(OSError):
            os.close(descriptor)
        raise


class EgressFile:
    """An open egress ledger. Made by open_egress."""

    def __init__(self, descriptor: int, chain: EgressChain) -> None:
        self._file = AppendOnly(descriptor, "the egress ledger", waits=False)
        self._chain = chain
        self._last_kind = ""

    def append(self, kind: str, size_bytes: int, digest: bytes) -> None:
        """To be called before the message leaves.

        Raises:
            LedgerError: the record may not be in the file: the message must stay. The ledger
                takes no more records.
        """
        unix_ms = time.time_ns() // 1_000_000
        with self._file.writing() as descriptor:
            write_all(descriptor, self._chain.add(unix_ms, kind, size_bytes, digest))
            if kind != self._last_kind or kind not in _UNWAITED:
                os.fsync(descriptor)
        self._last_kind = kind

    def summary(self) -> EgressSummary:
        """What left this site until now, over all its processes."""
        return self._chain.summary()

    def close(self) -> None:
        """Lets go of the file. Idempotent."""
        self._file.close()


def _create(file: Path, head: EgressHead) -> None:
    new = file.with_name(f".{file.name}.new")
    try:
        new.unlink(missing_ok=True)
        write_private(new, head.to_bytes())
        os.link(new, file)  # unlike a rename it replaces nothing
        new.unlink()
        sync_folder(file.parent)
    except OSError as error:
        raise ConfigError(f"cannot make {file}: {error.strerror}", hint=_NEED) from error


def _resumed(descriptor: int, file: Path, consortium: str, site: str) -> EgressChain:
    """Reads the whole ledger, and drops a last record that was not written to its end."""
    data = read_all(descriptor)
    try:
        head = EgressHead.from_bytes(data)
        if (head.consortium, head.site) != (consortium, site):
            raise ConfigError(
                f"{file} is the egress ledger of site {head.site!r} in {head.consortium!r}, this "
                f"is {site!r} in {consortium!r}",
                hint="one file for each site: set `egress`",
            )
        chain = EgressChain(head)
        end = len(head.to_bytes())
        for _, size in chain.read(data[end:]):
            end += size
    except LedgerError as error:
        keep = "keep the file as it is, move it away and ask who changed it; a new one will begin"
        raise LedgerError(f"{file}: {error}", hint=keep) from error
    if end < len(data):
        try:
            os.ftruncate(descriptor, end)
            os.fsync(descriptor)
        except OSError as error:
            raise ConfigError(f"cannot write {file}: {error.strerror}", hint=_NEED) from error
    return chain
