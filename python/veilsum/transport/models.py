"""What sites fetch of a round: the model it begins with, serialised once whoever asks for it and
how often; the sum it ends with; and what the server's optimizer remembered in between."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from veilsum.control import RoundId
from veilsum.errors import ConfigError
from veilsum.model import ModelLayout
from veilsum.transport.checkpoints import Arrays, tensor_bytes
from veilsum.transport.wire_data import encode_data_piece, encode_model_data, encode_model_header

PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The messages of one FetchModel answer, ready to be sent.

    Attributes:
        start: the hashes of model and optimizer state that the round begins with.
    """

    round: RoundId
    start: tuple[bytes, bytes]
    pieces: tuple[bytes, ...] = field(repr=False)


class Models:
    """What is served of each open round; a run's next round replaces the one before."""

    def __init__(self) -> None:
        self._served: dict[str, ServedModel] = {}
        self._invited: dict[str, set[str]] = {}  # run -> sites of its open round
        self._sums: dict[str, tuple[bytes, ...]] = {}
        self._states: dict[str, Path] = {}

    def put(self, model: ServedModel, state_file: Path | None = None) -> None:
        """Serves a model from now on, to those who will be invited.

        Args:
            state_file: what the server's optimizer remembers; kept until the next round has
                begun. None: nothing.
        """
        run_id = model.round.run_id
        self.drop(run_id)
        self._served[run_id] = model
        self._invited[run_id] = set()
        if state_file is not None:
            self._states[run_id] = state_file

    def put_sum(self, round_id: RoundId, pieces: tuple[bytes, ...]) -> None:
        """Serves the sum of an open round as well, as sum_pieces() made it."""
        served = self._served.get(round_id.run_id)
        if served is not None and served.round == round_id:
            self._sums[round_id.run_id] = pieces

    def invite(self, round_id: RoundId, site: str) -> None:
        """A site may fetch the model of a round."""
        served = self._served.get(round_id.run_id)
        if served is not None and served.round == round_id:
            self._invited[round_id.run_id].add(site)

    def drop(self, run_id: str) -> None:
        """The run is over. Answers that are under way go on."""
        for kept in (self._served, self._invited, self._sums, self._states):
            kept.pop(run_id, None)

    def get(self, round_id: RoundId, site: str) -> ServedModel:
        """The model of a round, for a site.

        Raises:
            ConfigError: it is not served, or not any more, or the site was not invited.
        """
        served = self._served.get(round_id.run_id)
        invited = self._invited.get(round_id.run_id, ())
        if served is None or served.round != round_id or site not in invited:
            raise _nothing(round_id, "model")
        return served

    def get_sum(self, round_id: RoundId, site: str) -> tuple[bytes, ...]:
        """The messages of one FetchSum answer, for a site.

        Raises:
            ConfigError: as get().
        """
        self.get(round_id, site)
        pieces = self._sums.get(round_id.run_id)
        if pieces is None:
            raise _nothing(round_id, "sum")
        return pieces

    def get_state_file(self, round_id: RoundId, site: str) -> Path:
        """Where the state of the server's optimizer is that the round began with, for a site.

        Raises:
            ConfigError: as get().
        """
        self.get(round_id, site)
        file = self._states.get(round_id.run_id)
        if file is None:
            raise _nothing(round_id, "optimizer state")
        return file


def _nothing(round_id: RoundId, what: str) -> ConfigError:
    return ConfigError(
        f"round {round_id.number} of run {round_id.run_id!r} has no {what} for this site"
    )


def serialise(
    round_id: RoundId, layout: ModelLayout, arrays: Arrays, model_hash: bytes, state_hash: bytes
) -> ServedModel:
    """All messages of a model's stream. Copies the model once, so call it off the event loop."""
    views = tensor_bytes(layout, arrays)
    size = sum(view.nbytes for view in views)
    header = encode_model_header(layout.to_bytes(), size, model_hash)
    pieces = (header, *map(encode_model_data, _pieces(views)))
    return ServedModel(round_id, (model_hash, state_hash), pieces)


def sum_pieces(chunks: Iterable[bytes]) -> tuple[bytes, ...]:
    """All messages of a sum's stream, whose words are `chunks`. Copies it once."""
    return tuple(map(encode_data_piece, _pieces([memoryview(chunk) for chunk in chunks])))


def file_pieces(file: Path) -> Iterator[bytes]:
    """The messages of a file's stream, each read when it is asked for.

    Raises:
        ConfigError: the file cannot be read.
    """
    try:
        with open(file, "rb") as stream:
            while data := stream.read(PIECE_BYTES):
                yield encode_data_piece([data])
    except OSError as error:
        raise ConfigError(f"cannot read {file.name}: {error.strerror}") from error


def _pieces(views: list[memoryview]) -> Iterator[list[memoryview]]:
    """Groups of consecutive parts of about a megabyte, across their bounds."""
    group: list[memoryview] = []
    room = PIECE_BYTES
    for view in views:
        begin = 0
        while begin < view.nbytes:
            part = view[begin : begin + room]
            group.append(part)
            begin += part.nbytes
            room -= part.nbytes
            if room == 0:
                yield group
                group, room = [], PIECE_BYTES
    if group:
        yield group
