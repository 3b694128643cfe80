"""The models that sites fetch: each serialised once, whoever asks for it and how often."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from veilsum.control import RoundId
from veilsum.errors import ConfigError
from veilsum.model import ModelLayout
from veilsum.transport.checkpoints import Arrays, tensor_bytes
from veilsum.transport.wire_data import encode_model_data, encode_model_header

PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The messages of one FetchModel answer, ready to be sent."""

    round: RoundId
    pieces: tuple[bytes, ...] = field(repr=False)


class Models:
    """The model of each open round; a run's next model replaces the one before."""

    def __init__(self) -> None:
        self._served: dict[str, ServedModel] = {}
        self._invited: dict[str, set[str]] = {}  # run -> sites of its open round

    def put(self, model: ServedModel) -> None:
        """Serves a model from now on, to those who will be invited."""
        self._served[model.round.run_id] = model
        self._invited[model.round.run_id] = set()

    def invite(self, round_id: RoundId, site: str) -> None:
        """A site may fetch the model of a round."""
        served = self._served.get(round_id.run_id)
        if served is not None and served.round == round_id:
            self._invited[round_id.run_id].add(site)

    def drop(self, run_id: str) -> None:
        """The run is over. Answers that are under way go on."""
        self._served.pop(run_id, None)
        self._invited.pop(run_id, None)

    def get(self, round_id: RoundId, site: str) -> ServedModel:
        """The model of a round, for a site.

        Raises:
            ConfigError: it is not served, or not any more, or the site was not invited.
        """
        served = self._served.get(round_id.run_id)
        invited = self._invited.get(round_id.run_id, ())
        if served is None or served.round != round_id or site not in invited:
            raise ConfigError(
                f"round {round_id.number} of run {round_id.run_id!r} has no model for this site"
            )
        return served


def serialise(
    round_id: RoundId, layout: ModelLayout, arrays: Arrays, model_hash: bytes
) -> ServedModel:
    """All messages of a model's stream. Copies the model once, so call it off the event loop."""
    views = tensor_bytes(layout, arrays)
    size = sum(view.nbytes for view in views)
    header = encode_model_header(layout.to_bytes(), size, model_hash)
    return ServedModel(round_id, (header, *map(encode_model_data, _pieces(views))))


def _pieces(views: list[memoryview]) -> Iterator[list[memoryview]]:
    """Groups of consecutive parts of about a megabyte, across tensor bounds."""
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
