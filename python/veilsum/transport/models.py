"""What sites fetch of a round: the model it begins with, read from its checkpoint as it is sent;
the sum it ends with; and what the server's optimizer remembered in between."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from veilsum.control import RoundId
from veilsum.errors import ConfigError, DecodeError, VeilsumError
from veilsum.model import ModelLayout
from veilsum.transport.checkpoints import tensor_range
from veilsum.transport.wire_data import encode_data_piece, encode_model_data, encode_model_header

PIECE_BYTES = 1 << 20

# At once, for all sites together: more would only queue up for the disk, and keep the threads
# that everything else of the coordinator needs as well.
_MOST_READS = 4

# For sites that fetch one model at about the same time, which is what the sites of a round do.
_KEPT_PIECES = 8


class Unreadable(VeilsumError):  # noqa: N818  a disk's fault, not a site's
    """A file that this coordinator has written cannot be read any more."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One FetchModel answer. Memory holds none of the model: it lies in its checkpoint.

    Attributes:
        start: the hashes of model and optimizer state that the round begins with.
        header: the first message.
        file: the checkpoint.
        tensors: the bytes of the file that follow in the answer.
    """

    round: RoundId
    start: tuple[bytes, bytes]
    header: bytes = field(repr=False)
    file: Path
    tensors: range

    @property
    def size_bytes(self) -> int:
        """Of the data that follows the header."""
        return len(self.tensors)


@dataclass(slots=True)
class _Round:
    """What is served of one round, and to whom."""

    model: ServedModel
    state_file: Path | None
    invited: set[str] = field(default_factory=set)
    sum_file: Path | None = None


class Models:
    """What is served of each open round."""

    def __init__(self) -> None:
        self._rounds: dict[RoundId, _Round] = {}
        self._reads = asyncio.Semaphore(_MOST_READS)
        self._kept: OrderedDict[tuple[Path, int], bytes] = OrderedDict()  # used last is last

    def put(
        self, model: ServedModel, state_file: Path | None = None, *, since: int | None = None
    ) -> None:
        """Serves a model from now on, to those who will be invited.

        Args:
            state_file: what the server's optimizer remembers. None: nothing.
            since: the run's rounds from this number on are still served beside it; None: it
                replaces whatever was served of the run.
        """
        new = model.round
        self._kept.clear()
        for known in list(self._rounds):
            if known.run_id == new.run_id and (since is None or known.number < since):
                del self._rounds[known]
        self._rounds[new] = _Round(model, state_file)

    def put_sum(self, round_id: RoundId, file: Path) -> None:
        """Serves the sum of an open round as well, whose words are in a file."""
        served = self._rounds.get(round_id)
        if served is not None:
            served.sum_file = file

    def invite(self, round_id: RoundId, site: str) -> None:
        """A site may fetch the model of a round."""
        served = self._rounds.get(round_id)
        if served is not None:
            served.invited.add(site)

    def drop(self, run_id: str) -> None:
        """The run is over. Answers that are under way go on."""
        self._kept.clear()
        for known in list(self._rounds):
            if known.run_id == run_id:
                del self._rounds[known]

    def get(self, round_id: RoundId, site: str) -> ServedModel:
        """The model of a round, for a site.

        Raises:
            ConfigError: it is not served, or not any more, or the site was not invited.
        """
        return self._served(round_id, site).model

    def get_sum_file(self, round_id: RoundId, site: str) -> Path:
        """Where the words of a round's sum are, for a site.

        Raises:
            ConfigError: as get().
        """
        file = self._served(round_id, site).sum_file
        if file is None:
            raise _nothing(round_id, "sum")
        return file

    def get_state_file(self, round_id: RoundId, site: str) -> Path:
        """Where the state of the server's optimizer is that the round began with, for a site.

        Raises:
            ConfigError: as get().
        """
        file = self._served(round_id, site).state_file
        if file is None:
            raise _nothing(round_id, "optimizer state")
        return file

    def _served(self, round_id: RoundId, site: str) -> _Round:
        served = self._rounds.get(round_id)
        if served is None or site not in served.invited:
            raise _nothing(round_id, "model")
        return served

    async def read(self, model: ServedModel, begin: int) -> bytes:
        """The message that goes on at byte `begin` of a model's data.

        Raises:
            Unreadable: the checkpoint is gone, or not as it was written.
        """
        if (kept := self._kept_piece(model, begin)) is not None:
            return kept
        async with self._reads:
            # Whoever was before in the queue may have read the same.
            if (kept := self._kept_piece(model, begin)) is not None:
                return kept
            piece = await asyncio.to_thread(_model_piece, model, begin)
        self._keep(model, begin, piece)
        return piece

    def _kept_piece(self, model: ServedModel, begin: int) -> bytes | None:
        key = (model.file, begin)
        piece = self._kept.get(key)
        if piece is not None:
            self._kept.move_to_end(key)
        return piece

    def _keep(self, model: ServedModel, begin: int, piece: bytes) -> None:
        """Unless nobody will come for the model any more."""
        if self._is_served(model):
            self._kept[model.file, begin] = piece
            if len(self._kept) > _KEPT_PIECES:
                self._kept.popitem(last=False)

    def _is_served(self, model: ServedModel) -> bool:
        served = self._rounds.get(model.round)
        return served is not None and served.model is model


def _nothing(round_id: RoundId, what: str) -> ConfigError:
    return ConfigError(
        f"round {round_id.number} of run {round_id.run_id!r} has no {what} for this site"
    )


def serve_checkpoint(
    round_id: RoundId, layout: ModelLayout, file: Path, start: tuple[bytes, bytes]
) -> ServedModel:
    """A model as it lies in a file that save_model() wrote; reads the file's header only.

    Args:
        start: the hashes of model and optimizer state.

    Raises:
        ConfigError: the file cannot be read, or is another than was written.
    """
    tensors = tensor_range(file, layout)
    header = encode_model_header(layout.to_bytes(), len(tensors), start[0])
    return ServedModel(round_id, start, header, file, tensors)


def _model_piece(model: ServedModel, begin: int) -> bytes:
    # Opened anew for every piece: the number of open files does not depend on that of sites.
    part = model.tensors[begin : begin + PIECE_BYTES]
    window = _window()[: len(part)]
    try:
        descriptor = os.open(model.file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.preadv(descriptor, [window], part.start)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise Unreadable(f"cannot read {model.file.name}: {error.strerror}") from error
    if size != len(part):
        raise Unreadable(
            f"{model.file.name} ends at byte {part.start + size}, "
            f"it had {model.tensors.stop} when it was written"
        )
    return encode_model_data([window])


_windows = threading.local()


def _window() -> memoryview:
    """Where this thread reads into. Fresh memory for every piece costs more than reading it."""
    if not hasattr(_windows, "view"):
        _windows.view = memoryview(bytearray(PIECE_BYTES))
    view: memoryview = _windows.view
    return view


def check_offset(offset: int, size: int) -> None:
    """Raises:
    DecodeError: who asks for something of that size claims to have more of it.
    """
    if offset > size:
        raise DecodeError(f"the answer goes on at byte {offset}, it has {size}")


def file_pieces(file: Path, offset: int = 0) -> Iterator[bytes]:
    """The messages of a file's stream from a byte on, each read when it is asked for.

    Raises:
        ConfigError: the file cannot be read.
        DecodeError: it has fewer bytes.
    """
    try:
        with open(file, "rb") as stream:
            check_offset(offset, os.fstat(stream.fileno()).st_size)
            stream.seek(offset)
            while data := stream.read(PIECE_BYTES):
                yield encode_data_piece([data])
    except OSError as error:
        raise ConfigError(f"cannot read {file.name}: {error.strerror}") from error
