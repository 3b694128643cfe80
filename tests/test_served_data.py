"""What a coordinator serves of a round beside its model: sum, optimizer state, and links."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from veilsum.control import RoundId
from veilsum.errors import ConfigError
from veilsum.model import ModelLayout, result_digest
from veilsum.transport.models import PIECE_BYTES, Models, file_pieces, serialise, sum_pieces
from veilsum.transport.storage import Storage
from veilsum.transport.wire_data import decode_data_piece

ROUND = RoundId("run", 1)
NEXT = RoundId("run", 2)
MODEL = {"w": np.arange(12, dtype=np.float32)}
LAYOUT = ModelLayout.from_arrays(MODEL)
HASH = bytes.fromhex(result_digest(LAYOUT, MODEL))
ZEROS = bytes(32)


def _bytes(size: int) -> bytes:
    return np.random.default_rng(size).bytes(size)


def _models(round_id: RoundId = ROUND, state: Path | None = None) -> Models:
    models = Models()
    models.put(serialise(round_id, LAYOUT, MODEL, HASH, ZEROS), state)
    models.invite(round_id, "lyon")
    return models


@pytest.mark.parametrize("size", [1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES - 7])
def test_a_sum_is_served_in_pieces_of_a_megabyte(size: int) -> None:
    words = _bytes(size)
    chunks = [words[begin : begin + 700_001] for begin in range(0, size, 700_001)]

    pieces = [decode_data_piece(piece) for piece in sum_pieces(chunks)]

    assert b"".join(pieces) == words
    assert {len(piece) for piece in pieces[:-1]} <= {PIECE_BYTES}


@pytest.mark.parametrize("size", [1, PIECE_BYTES, PIECE_BYTES + 1])
def test_a_file_is_served_in_pieces_of_a_megabyte(size: int, tmp_path: Path) -> None:
    file = tmp_path / "optimizer-1.safetensors"
    file.write_bytes(_bytes(size))

    assert b"".join(map(decode_data_piece, file_pieces(file))) == _bytes(size)
    with pytest.raises(ConfigError, match="cannot read nothing: No such file"):
        next(file_pieces(tmp_path / "nothing"))


def test_only_those_who_were_invited_get_what_there_is(tmp_path: Path) -> None:
    models = _models(state=tmp_path / "state")
    pieces = sum_pieces([b"sum"])

    with pytest.raises(ConfigError, match="round 1 of run 'run' has no sum for this site"):
        models.get_sum(ROUND, "lyon")
    models.put_sum(NEXT, pieces)  # of a round that is not open
    with pytest.raises(ConfigError, match="no sum"):
        models.get_sum(ROUND, "lyon")
    models.put_sum(ROUND, pieces)

    assert models.get_sum(ROUND, "lyon") == pieces
    assert models.get_state_file(ROUND, "lyon") == tmp_path / "state"
    assert models.get(ROUND, "lyon").start == (HASH, ZEROS)
    for get in (models.get, models.get_sum, models.get_state_file):
        with pytest.raises(ConfigError, match="no model for this site"):
            get(ROUND, "oslo")
        with pytest.raises(ConfigError, match="no model for this site"):
            get(NEXT, "lyon")


def test_the_next_round_and_the_end_of_the_run_forget_it(tmp_path: Path) -> None:
    models = _models(state=tmp_path / "state")
    models.put_sum(ROUND, sum_pieces([b"sum"]))

    models.put(serialise(NEXT, LAYOUT, MODEL, HASH, ZEROS))
    models.invite(NEXT, "lyon")

    with pytest.raises(ConfigError, match="no sum"):
        models.get_sum(NEXT, "lyon")
    with pytest.raises(ConfigError, match="no optimizer state"):
        models.get_state_file(NEXT, "lyon")
    models.drop("run")
    with pytest.raises(ConfigError, match="no model"):
        models.get(NEXT, "lyon")


def test_links_are_found_from_the_last_to_the_first_also_after_a_restart(tmp_path: Path) -> None:
    points = [(bytes([number]) * 32, bytes([number + 100]) * 32) for number in range(5)]
    storage = Storage(tmp_path)
    for before, after in itertools.pairwise(points):
        storage.save_link(before, after, b"to " + after[0][:1])
    storage.close()
    storage = Storage(tmp_path)

    def links(to: int, most: int = 256) -> list[bytes]:
        return list(storage.links_to(points[to], most=most))

    assert links(4) == [b"to \4", b"to \3", b"to \2", b"to \1"]
    assert links(4, most=2) == [b"to \4", b"to \3"]
    assert links(1) == [b"to \1"]
    assert links(0) == []
    assert list(storage.links_to((points[4][0], b"\1" * 32), most=9)) == []  # another state
    anew = storage.links_to((points[4][0], ZEROS), most=9)
    assert list(anew) == links(4)
    storage.save_link(points[4], points[0], b"round and round")
    assert len(links(4, most=50)) == 50
    storage.close()
