"""What sites fetch to check a sum, and transcripts, which are kept where that was asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from veilsum.aggregate.ring_spec import Stream
from veilsum.control import RoundId
from veilsum.coordinator.effects import PublishAudit
from veilsum.errors import ConfigError, DecodeError
from veilsum.pki.files import make_private_folder
from veilsum.secagg.audit_record import AuditedSum
from veilsum.transport.durable import sync_folder

PIECE_BYTES = 1 << 20


class Audits:
    """The sum of each run's last round, for as long as its acknowledgements are awaited."""

    def __init__(self) -> None:
        self._published: dict[str, PublishAudit] = {}

    def put(self, published: PublishAudit) -> None:
        """Serves a sum from now on, instead of the run's last one."""
        self.drop(published.round.run_id)
        self._published[published.round.run_id] = published

    def drop(self, run_id: str) -> None:
        """Forgets a run's sum and wipes its seeds. Answers that are under way break off."""
        published = self._published.pop(run_id, None)
        if published is not None:
            published.audited.wipe()

    def get(self, round_id: RoundId, site: str) -> AuditedSum:
        """The sum of a round, for a site.

        Raises:
            ConfigError: it is not served, not any more, or not to this site.
        """
        published = self._published.get(round_id.run_id)
        if published is None or published.round != round_id or site not in published.sites:
            raise ConfigError(
                f"round {round_id.number} of run {round_id.run_id!r} has no sum that this site "
                "could check"
            )
        return published.audited


def pieces(
    audited: AuditedSum, asked: Sequence[tuple[int, int]], offset: int = 0
) -> Iterator[bytes]:
    """The bytes of a part of a transcript, about a megabyte at a time. What comes before `offset`
    has to be read as well: for each megabyte of it there is an empty piece, at which whoever asked
    may have gone.

    Args:
        asked: (stream, index) of its chunks, each once.
        offset: of the first byte.

    Raises:
        DecodeError: the sum has no such chunk, one is asked for twice, or the part has fewer bytes.
        ConfigError: the sum was dropped in between.
    """
    group, size, passed = [], 0, 0
    for section in audited.sections(_chunks(audited, asked)):
        view = memoryview(section)
        skipped = min(offset, view.nbytes)
        offset -= skipped
        passed += skipped
        if passed >= PIECE_BYTES:
            yield b""
            passed = 0
        for begin in range(skipped, view.nbytes, PIECE_BYTES):
            part = view[begin : begin + PIECE_BYTES]
            group.append(part)
            size += part.nbytes
            if size >= PIECE_BYTES:
                yield b"".join(group)
                group, size = [], 0
    if group:
        yield b"".join(group)
    if offset:
        raise DecodeError(f"the answer goes on {offset} bytes behind its end")


def _chunks(audited: AuditedSum, asked: Sequence[tuple[int, int]]) -> list[tuple[Stream, int]]:
    streams = {stream.group: stream for stream in audited.spec.streams}
    for group, index in asked:
        if group not in streams or index >= audited.spec.chunk_count(streams[group]):
            raise DecodeError(f"the sum has no chunk {index} of stream {group}")
    if len(set(asked)) < len(asked):
        # Ten bytes for each more of it would have all uploads' chunks read and sent.
        raise DecodeError("a chunk of the sum is asked for twice")
    return [(streams[group], index) for group, index in asked]


def write_transcript(folder: Path, published: PublishAudit) -> Path:
    """Writes the transcript of a round, which is there as a whole or not at all.

    Raises:
        ConfigError: it cannot be written.
    """
    where = published.round
    run = folder / where.run_id
    file = run / f"round-{where.number}-{where.attempt}.vst"
    try:
        make_private_folder(folder)
        make_private_folder(run)
        unfinished = file.with_suffix(".part")
        unfinished.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(unfinished, flags, 0o600), "wb") as stream:
            stream.writelines(published.audited.sections())
            stream.flush()
            os.fsync(stream.fileno())
        unfinished.replace(file)
        sync_folder(run)
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror}") from error
    return file
