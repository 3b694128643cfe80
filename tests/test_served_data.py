"""What a coordinator serves of a round: its model, sum, optimizer state, and links."""

from __future__ import annotations

import asyncio
import itertools
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from veilsum.control import RoundId
from veilsum.errors import ConfigError, DecodeError
from veilsum.model import ModelLayout, result_digest
from veilsum.transport.checkpoints import save_model
from veilsum.transport.models import (
    PIECE_BYTES,
    Models,
    ServedModel,
    Unreadable,
    file_pieces,
    serve_checkpoint,
)
from veilsum.transport.storage import Storage
from veilsum.transport.wire_data import decode_data_piece, decode_model_data, decode_model_header

ROUND = RoundId("run", 1)
NEXT = RoundId("run", 2)
MODEL = {"w": np.arange(12, dtype=np.float32)}
LAYOUT = ModelLayout.from_arrays(MODEL)
HASH = bytes.fromhex(result_digest(LAYOUT, MODEL))
ZEROS = bytes(32)


def _bytes(size: int) -> bytes:
    return np.random.default_rng(size).bytes(size)


def _served(folder: Path, round_id: RoundId = ROUND) -> ServedModel:
    file = folder / f"round-{round_id.number - 1}.safetensors"
    save_model(file, LAYOUT, MODEL)
    return serve_checkpoint(round_id, LAYOUT, file, (HASH, ZEROS))


def _models(folder: Path, state: Path | None = None) -> Models:
    models = Models()
    models.put(_served(folder), state)
    models.invite(ROUND, "lyon")
    return models


def _stream(model: ServedModel) -> list[bytes]:
    """The data of a model's stream, piece by piece."""
    models = Models()

    async def read() -> list[bytes]:
        begins = range(0, model.size_bytes, PIECE_BYTES)
        return [bytes(decode_model_data(await models.read(model, begin))) for begin in begins]

    return asyncio.run(read())


@pytest.mark.parametrize("values", [1, PIECE_BYTES // 4, PIECE_BYTES // 4 + 1, PIECE_BYTES])
def test_a_model_is_served_from_its_checkpoint_in_pieces_of_a_megabyte(
    values: int, tmp_path: Path
) -> None:
    model = {
        "counter": np.array(3, np.int64),
        "half": np.arange(5, dtype=np.float16),
        "empty": np.zeros((0, 4), np.float32),
        "bulk": np.random.default_rng(values).normal(size=values).astype(np.float32),
    }
    layout = ModelLayout.from_arrays(model)
    file = tmp_path / "round-0.safetensors"
    save_model(file, layout, model)

    served = serve_checkpoint(ROUND, layout, file, (HASH, ZEROS))

    data = b"".join(array.tobytes() for array in model.values())
    assert decode_model_header(served.header) == (layout.to_bytes(), len(data), HASH)
    pieces = _stream(served)
    assert b"".join(pieces) == data
    assert {len(piece) for piece in pieces[:-1]} <= {PIECE_BYTES}


def test_a_checkpoint_that_is_not_as_it_was_written_is_not_served(tmp_path: Path) -> None:
    served = _served(tmp_path)
    file = served.file
    written = file.read_bytes()

    def serve() -> ServedModel:
        return serve_checkpoint(ROUND, LAYOUT, file, (HASH, ZEROS))

    for changed in (written[:-1], written + b"x", b"x" + written[1:], b""):
        file.write_bytes(changed)
        with pytest.raises(
            ConfigError, match=r"round-0\.safetensors is not the model that was wri"
        ):
            serve()
    file.write_bytes(written[:-3])
    with pytest.raises(Unreadable, match=r"round-0\.safetensors ends at byte"):
        _stream(served)
    file.unlink()
    with pytest.raises(Unreadable, match=r"cannot read round-0\.safetensors: No such file"):
        _stream(served)
    with pytest.raises(ConfigError, match=r"cannot read the model round-0\.safetensors: No such"):
        serve()


def _large(folder: Path, pieces: int) -> ServedModel:
    model = {"w": np.arange(pieces * PIECE_BYTES // 4, dtype=np.float32)}
    layout = ModelLayout.from_arrays(model)
    file = folder / "round-0.safetensors"
    save_model(file, layout, model)
    return serve_checkpoint(ROUND, layout, file, (HASH, ZEROS))


def test_the_pieces_that_were_read_last_are_there_for_the_next_site(tmp_path: Path) -> None:
    served, models = _large(tmp_path, pieces=10), Models()
    models.put(served)

    async def main() -> None:
        pieces = [await models.read(served, number * PIECE_BYTES) for number in range(10)]
        served.file.unlink()
        for number in range(2, 10):
            assert await models.read(served, number * PIECE_BYTES) is pieces[number]
        for number in range(2):
            with pytest.raises(Unreadable, match="No such file"):
                await models.read(served, number * PIECE_BYTES)

    asyncio.run(main())


@pytest.mark.parametrize("over", ["dropped", "replaced"])
def test_pieces_of_a_model_that_is_not_served_any_more_are_not_kept(
    over: str, tmp_path: Path
) -> None:
    served, models = _large(tmp_path, pieces=2), Models()
    models.put(served)

    async def main() -> None:
        await models.read(served, 0)
        if over == "dropped":
            models.drop("run")
        else:
            models.put(_served(tmp_path, NEXT))
        await models.read(served, PIECE_BYTES)  # of an answer that is under way
        served.file.unlink()
        for begin in (0, PIECE_BYTES):
            with pytest.raises(Unreadable, match="No such file"):
                await models.read(served, begin)

    asyncio.run(main())


def test_sites_that_fetch_together_have_a_piece_read_a_few_times(tmp_path: Path) -> None:
    served, models = _large(tmp_path, pieces=1), Models()
    models.put(served)

    async def main() -> None:
        pieces = await asyncio.gather(*(models.read(served, 0) for _ in range(12)))
        assert len(set(pieces)) == 1
        assert len(set(map(id, pieces))) <= 4  # as many as read at once

    asyncio.run(main())


def test_a_piece_is_read_without_a_second_copy(tmp_path: Path) -> None:
    served, models = _large(tmp_path, pieces=2), Models()

    async def main() -> int:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        await models.read(served, 0)
        tracemalloc.start()
        await models.read(served, PIECE_BYTES)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak

    assert asyncio.run(main()) < 1.5 * PIECE_BYTES


def test_versions_of_a_model_are_served_side_by_side_while_they_are_wanted(tmp_path: Path) -> None:
    models = Models()
    rounds = [RoundId("run", number) for number in range(1, 6)]
    other = RoundId("other", 1)

    def put(round_id: RoundId, since: int | None) -> None:
        models.put(_served(tmp_path, round_id), since=since)
        models.invite(round_id, "lyon")

    def served() -> list[int]:
        found = []
        for round_id in rounds:
            try:
                found.append(models.get(round_id, "lyon").round.number)
            except ConfigError:
                continue
        return found

    put(other, None)
    for round_id in rounds[:3]:
        put(round_id, 1)
    assert served() == [1, 2, 3]
    put(rounds[3], 3)
    assert served() == [3, 4]
    put(rounds[4], None)
    assert served() == [5]
    models.drop("run")
    assert served() == []
    assert models.get(other, "lyon").round == other


@pytest.mark.parametrize("size", [1, PIECE_BYTES, PIECE_BYTES + 1])
def test_a_file_is_served_in_pieces_of_a_megabyte(size: int, tmp_path: Path) -> None:
    file = tmp_path / "optimizer-1.safetensors"
    file.write_bytes(_bytes(size))

    assert b"".join(map(decode_data_piece, file_pieces(file))) == _bytes(size)
    with pytest.raises(ConfigError, match="cannot read nothing: No such file"):
        next(file_pieces(tmp_path / "nothing"))
    for offset in {0, size // 3, size}:
        rest = b"".join(map(decode_data_piece, file_pieces(file, offset)))
        assert rest == _bytes(size)[offset:]
    with pytest.raises(DecodeError, match=f"goes on at byte {size + 1}, it has {size}"):
        next(file_pieces(file, size + 1))


def test_only_those_who_were_invited_get_what_there_is(tmp_path: Path) -> None:
    models = _models(tmp_path, tmp_path / "state")
    file = tmp_path / "round-1.words"

    with pytest.raises(ConfigError, match="round 1 of run 'run' has no sum for this site"):
        models.get_sum_file(ROUND, "lyon")
    models.put_sum(NEXT, file)  # of a round that is not open
    with pytest.raises(ConfigError, match="no sum"):
        models.get_sum_file(ROUND, "lyon")
    models.put_sum(ROUND, file)

    assert models.get_sum_file(ROUND, "lyon") == file
    assert models.get_state_file(ROUND, "lyon") == tmp_path / "state"
    assert models.get(ROUND, "lyon").start == (HASH, ZEROS)
    for get in (models.get, models.get_sum_file, models.get_state_file):
        with pytest.raises(ConfigError, match="no model for this site"):
            get(ROUND, "oslo")
        with pytest.raises(ConfigError, match="no model for this site"):
            get(NEXT, "lyon")


def test_the_next_round_and_the_end_of_the_run_forget_it(tmp_path: Path) -> None:
    models = _models(tmp_path, tmp_path / "state")
    models.put_sum(ROUND, tmp_path / "round-1.words")

    models.put(_served(tmp_path, NEXT))
    models.invite(NEXT, "lyon")

    with pytest.raises(ConfigError, match="no sum"):
        models.get_sum_file(NEXT, "lyon")
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
