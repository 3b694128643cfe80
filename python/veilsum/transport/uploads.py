"""All uploads of a coordinator: which rounds take them, and what became of each.

What a call does with its part of one is in incoming.py, the files are in spool.py. A complete
upload is on disk before the core hears of it, and its file stays until its round is forgotten.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from veilsum.control import RoundId, UpdateHeader
from veilsum.coordinator.events import UpdateArrived
from veilsum.coordinator.round import Receiver
from veilsum.errors import DecodeError, PeerError, VeilsumError
from veilsum.transport.durable import Points, no_points
from veilsum.transport.flow import Flow
from veilsum.transport.incoming import Check, Deliver, Handling, IncomingUpload, Upload, Workers
from veilsum.transport.spool import Spool
from veilsum.transport.spool_format import Found, file_name, read_file

_REMEMBERED_ROUNDS = 256


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """See coordinator.toml.

    Attributes:
        spool_limit_bytes: of all files of the spool; 0 for what the disk has.
        inflight_bytes: of frames that were received and are not on disk yet.
        stall_s: a call on which nothing arrives for so long ends.
    """

    spool_limit_bytes: int = 0
    inflight_bytes: int = 64 << 20
    stall_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Leftover:
    """A file that an earlier process left in the spool, and what became of it.

    Attributes:
        site: "" if that cannot be told.
        chunks: so many are taken up; the file is gone if `removed`.
        fault: why it has no more, or why it was removed; "" if nothing was wrong with it.
    """

    file: str
    site: str
    chunks: int
    removed: bool
    fault: str


@dataclass(eq=False)
class _Round:
    """Uploads of one round; `closed` says why there are no more.

    Attributes:
        anew: sites whose process began anew when nothing of theirs was known. After a restart what
            lies on the disk of theirs is not taken up.
    """

    sites: set[str]
    uploads: dict[str, Upload] = field(default_factory=dict)
    closed: str | None = None
    anew: set[str] = field(default_factory=set)


class Uploads:
    """Used from the event loop; file work is done in threads of their own, so that a disk that
    hangs holds up nothing else.

    Args:
        folder: for the files.
        check: asks the core whether it takes this upload; raises its refusal.
        deliver: takes complete uploads; answer() must follow for each.
        points: told of each step that changes a file.

    Attributes:
        flow: hands the frames of calls over.
    """

    def __init__(
        self,
        folder: Path,
        check: Check,
        deliver: Deliver,
        limits: UploadLimits | None = None,
        points: Points = no_points,
    ) -> None:
        limits = limits or UploadLimits()
        self._spool = Spool(folder, limit_bytes=limits.spool_limit_bytes, points=points)
        self._check = check
        self._workers = Workers()
        self.flow = Flow(limits.inflight_bytes, limits.stall_s)
        self._handling = Handling(self._spool, self._workers, deliver, self._discard)
        self._rounds: dict[RoundId, _Round] = {}

    # --- what the core says ---------------------------------------------------------

    def open(self, round_id: RoundId, sites: Sequence[str]) -> None:
        """Takes uploads of these sites from now on. In a round that is open already, of them too;
        what is held of those it was open for, and not complete, is of a process that is gone."""
        state = self._rounds.get(round_id)
        if state is None or state.closed is not None:
            self.forget(round_id)
            self._rounds[round_id] = _Round(set(sites))
            return
        for site in sites:
            if site in state.sites:
                self.restart(round_id, site)
            state.sites.add(site)

    def restart(self, round_id: RoundId, site: str) -> None:
        """A new process of a site begins its upload anew, unless it is complete."""
        state = self._rounds.get(round_id)
        if state is None:
            return
        upload = state.uploads.get(site)
        if upload is None:
            state.anew.add(site)
        elif not upload.over:
            self._discard(upload)

    def answer(self, round_id: RoundId, site: str, refusal: str | None) -> None:
        """The core's answer to a complete upload: None if it counts. Its file stays."""
        state = self._rounds.get(round_id)
        upload = state.uploads.get(site) if state else None
        if upload is not None:
            upload.settle(refusal)

    def close(self, round_id: RoundId, reason: str) -> None:
        """Refuses what still comes for this round, and frees what was not complete."""
        closing = self._rounds.setdefault(round_id, _Round(set()))
        closing.closed = reason
        for upload in closing.uploads.values():
            if not upload.delivered:
                upload.drop_file()
            upload.settle(f"sent an update for a round that is over: {reason}")
        over = [known for known, state in self._rounds.items() if state.closed is not None]
        for oldest in over[:-_REMEMBERED_ROUNDS]:
            self.forget(oldest)
            del self._rounds[oldest]

    def forget(self, round_id: RoundId, sites: Collection[str] | None = None) -> None:
        """Frees the files of a round, which is over. Sites are still told what became of them.

        Args:
            sites: free only the files of these, whose uploads are complete; the others' go on.
        """
        state = self._rounds.get(round_id)
        if state is None:
            return
        if sites is None and state.closed is None:
            self.close(round_id, "the round is over")
        for site, upload in state.uploads.items():
            if sites is None or (site in sites and upload.settled.is_set()):
                upload.drop_file()

    def close_run(self, run_id: str, reason: str) -> None:
        """The run is over: closes and forgets its rounds."""
        for round_id, state in list(self._rounds.items()):
            if round_id.run_id == run_id:
                if state.closed is None:
                    self.close(round_id, reason)
                self.forget(round_id)

    # --- after a restart --------------------------------------------------------------

    def recover(self, site: str, header: UpdateHeader) -> UpdateArrived:
        """What was delivered of an earlier process, once more; answer() must follow. Blocks.

        Raises:
            SpoolDamaged: its file is gone, torn, changed, or of another upload.
        """
        file = self._spool.read_complete(site, header)
        state = self._rounds.setdefault(header.round, _Round({site}))
        upload = state.uploads[site] = Upload(site, header, None, file)
        upload.held = header.chunk_count
        upload.delivered = True
        return UpdateArrived(site, header, file.chunks())

    async def recover_partial(self) -> list[Leftover]:
        """Takes up uploads that an earlier process left unfinished, and removes all other files.
        To be called once, when the rounds that are open are open again and what was delivered is
        recovered."""
        known = {
            upload.file.path.name
            for state in self._rounds.values()
            for upload in state.uploads.values()
            if upload.file is not None
        }
        files = [path for path in self._spool.files() if path.name not in known]
        return [await self._take_up(path) for path in files]

    async def _take_up(self, path: Path) -> Leftover:
        site = ""
        try:
            found = await self._workers.run(lambda: read_file(path))
            site, header = found.site, found.header
            if path.name != file_name(header.round, site):
                raise PeerError(site, "has another file's name")
            state = self._round_for_header(site, header)
            if site in state.anew:
                # It may be of either process; two updates must not become one.
                raise PeerError(site, "began its upload anew in a process that came later")
            receiver = await self._check(site, header)
            found = await self._workers.run(lambda: read_file(path, _Feeding(receiver)))
            file = await self._workers.run(lambda: self._spool.take_up(path, found))
        except VeilsumError as error:
            # Without room or with a bad head alike: the site has all of it and sends it again.
            self._spool.remove(path)
            return Leftover(path.name, site, 0, True, str(error))
        state.uploads[site] = Upload(site, header, receiver, file, len(file.ends))
        return Leftover(path.name, site, len(file.ends), False, found.fault)

    # --- what sites do --------------------------------------------------------------

    def status(self, site: str, round_id: RoundId, update_id: int) -> tuple[int, bool]:
        """(first chunk that is not held, whether the update counts).

        Raises:
            PeerError: the round takes no updates, or holds another of this site.
        """
        upload = self._open_round(site, round_id).uploads.get(site)
        if upload is None:
            return 0, False
        if upload.header.update_id != update_id:
            raise PeerError(site, "sent another update in this round before")
        return upload.held, upload.counts

    async def begin(self, site: str, header: UpdateHeader, first_chunk: int) -> IncomingUpload:
        """Opens an upload, or goes on with one that broke off.

        Raises:
            PeerError: why it is refused.
            DecodeError: first_chunk leaves a gap.
            SpoolUnavailable: there is no room for it now.
        """
        state = self._round_for_header(site, header)
        upload = state.uploads.get(site)
        if upload is None:
            receiver = await self._check(site, header)
            # Another call of this site may have been faster while the core was asked.
            state = self._round_for_header(site, header)
            upload = state.uploads.setdefault(site, Upload(site, header, receiver))
        if upload.header != header:
            raise PeerError(site, "sent a second, different update in this round")
        if first_chunk > upload.held:
            raise DecodeError(
                f"the upload goes on at chunk {first_chunk}, {upload.held} is the next"
            )
        if not upload.over:
            upload.call += 1
        call = IncomingUpload(upload, first_chunk, self._handling)
        await call.prepare()
        return call

    def _round_for_header(self, site: str, header: UpdateHeader) -> _Round:
        state = self._open_round(site, header.round)
        upload = state.uploads.get(site)
        if state.closed is not None and (upload is None or not upload.counts):
            raise PeerError(site, f"sent an update for a round that is over: {state.closed}")
        return state

    def _open_round(self, site: str, round_id: RoundId) -> _Round:
        state = self._rounds.get(round_id)
        if state is None:
            raise PeerError(
                site,
                f"sent an update for round {round_id.number} of run {round_id.run_id!r}, "
                "which takes none now",
            )
        if state.closed is None and site not in state.sites:
            raise PeerError(site, "may not send an update in this round")
        return state

    def _discard(self, upload: Upload) -> None:
        """Its file is lost: the site, which has all of it, begins anew."""
        upload.call += 1
        upload.drop_file()
        state = self._rounds.get(upload.header.round)
        if state is not None and state.uploads.get(upload.site) is upload:
            del state.uploads[upload.site]


class _Feeding:
    """Gives a receiver the chunks of a file that an earlier process wrote."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    def __call__(self, found: Found, chunk: bytes) -> None:
        number = len(found.ends)
        if self._receiver.position(chunk) != number:
            raise DecodeError(f"what it holds as chunk {number} is another one")
        self._receiver.add(chunk)
