"""Files of the spool: whatever happens to one, what is read is what was written, or nothing is."""

from __future__ import annotations

import errno
import itertools
import os
import stat
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veilsum.control import RoundId, UpdateHeader
from veilsum.errors import DecodeError
from veilsum.transport import spool as spool_module
from veilsum.transport.spool import Spool, SpooledChunks, SpoolFile
from veilsum.transport.spool_format import (
    SpoolDamaged,
    SpoolUnavailable,
    file_name,
    read_file,
    write_all,
)

ROUND = RoundId("run", 3, 1)
CHUNKS = [bytes([number]) * size for number, size in enumerate((40, 1, 77, 40, 40))]
LARGEST = 80


def header(count: int = len(CHUNKS)) -> UpdateHeader:
    return UpdateHeader(ROUND, 7, count, 10, {"auc": 0.5}, b"")


def written(folder: Path, chunks: list[bytes], *, sealed: bool = True) -> SpoolFile:
    count = len(chunks) if sealed else len(chunks) + 2
    file = Spool(folder).create("a", header(count), LARGEST)
    for first in range(0, len(chunks), 2):
        file.append([memoryview(chunk) for chunk in chunks[first : first + 2]])
    if sealed:
        file.seal()
    return file


def complete(folder: Path, count: int = len(CHUNKS)) -> list[bytes]:
    file = Spool(folder).read_complete("a", header(count))
    return [bytes(chunk) for chunk in file.chunks()]


def partial(path: Path) -> list[bytes]:
    """What is taken up of a file, as a receiver is told and as the file then reads."""
    taken: list[bytes] = []
    found = read_file(path, lambda _, chunk: taken.append(chunk))
    assert (found.site, found.header.round) == ("a", ROUND)
    file = Spool(path.parent).take_up(path, found)
    assert [bytes(chunk) for chunk in file.chunks()] == taken
    assert not any(path.read_bytes()[file.size :])  # nothing that could be taken for a frame later
    return taken


def test_a_file_reads_as_it_was_written(tmp_path: Path) -> None:
    file = written(tmp_path, CHUNKS)
    assert file.path.name == file_name(ROUND, "a")
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert complete(tmp_path) == CHUNKS
    assert [bytes(chunk) for chunk in file.chunks()] == CHUNKS


def test_each_upload_has_a_name_of_its_own() -> None:
    rounds = [RoundId("run", 1), RoundId("run", 1, 1), RoundId("run", 11), RoundId("run1", 1)]
    names = {file_name(one, site) for one in rounds for site in ("a", "1a", "b/../c")}
    assert len(names) == 12
    assert all(len(name) == 39 and name.endswith(".update") for name in names)
    # Another process finds it.
    assert file_name(ROUND, "a") == "b0252470154e41514ce8b0b9b63ce9ce.update"


# --- damage -----------------------------------------------------------------------------


def assert_never_wrong(folder: Path, path: Path, data: bytes) -> bool:
    """Whether a file with these bytes is still taken as complete."""
    path.write_bytes(data)
    damage, found = "", CHUNKS
    try:
        found = complete(folder)
    except SpoolDamaged as error:
        damage = str(error)
    assert found == CHUNKS
    assert not damage or path.name in damage
    try:
        prefix = partial(path)
    except SpoolDamaged:
        prefix = []
    assert prefix == CHUNKS[: len(prefix)]
    assert damage or len(prefix) == len(CHUNKS)
    return not damage


def test_of_a_file_that_is_cut_anywhere_the_whole_chunks_are_found(tmp_path: Path) -> None:
    file = written(tmp_path, CHUNKS)
    data = file.path.read_bytes()
    for size in range(len(data)):
        assert not assert_never_wrong(tmp_path, file.path, data[:size])
        if size >= len(file.head):
            file.path.write_bytes(data[:size])
            whole = sum(end <= size for end in file.ends)
            assert partial(file.path) == CHUNKS[:whole]


def test_a_torn_tail_of_room_that_was_set_aside_is_cut_off(tmp_path: Path) -> None:
    """As after a power cut: the file has its full size, and zeros where bytes are missing."""
    file = written(tmp_path, CHUNKS, sealed=False)
    data = file.path.read_bytes()
    for size in range(len(file.head), file.ends[-1] + 1):
        file.path.write_bytes(data[:size] + bytes(len(data) - size))
        # A chunk that ends in zeros anyway is whole without them.
        found = partial(file.path)
        assert found == CHUNKS[: len(found)]
        assert len(found) >= sum(end <= size for end in file.ends)


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_no_single_changed_byte_is_ever_read(tmp_path: Path, flip: int) -> None:
    file = written(tmp_path, CHUNKS)
    data = file.path.read_bytes()
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= flip
        assert not assert_never_wrong(tmp_path, file.path, bytes(changed)), place


def _frames(file: SpoolFile, data: bytes) -> list[bytes]:
    bounds = [len(file.head), *file.ends]
    return [data[begin:end] for begin, end in itertools.pairwise(bounds)]


def test_a_frame_counts_in_its_place_and_file_alone(tmp_path: Path) -> None:
    file = written(tmp_path, CHUNKS)
    data = file.path.read_bytes()
    frames = _frames(file, data)
    for order in itertools.permutations(range(len(frames))):
        moved = file.head + b"".join(frames[number] for number in order)
        assert assert_never_wrong(tmp_path, file.path, moved) == (moved == data)
    folder = tmp_path / "another"
    folder.mkdir()
    other = Spool(folder).create("b", header(), LARGEST)
    other.append([memoryview(chunk) for chunk in CHUNKS])
    foreign = _frames(other, other.path.read_bytes())
    assert not assert_never_wrong(tmp_path, file.path, data[: file.ends[1]] + b"".join(foreign[2:]))
    assert not assert_never_wrong(tmp_path, file.path, data + frames[-1])
    assert not assert_never_wrong(tmp_path, file.path, data + bytes(1))


@given(st.data())
@settings(max_examples=150)
def test_whatever_is_done_to_a_file_nothing_wrong_is_read(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("spool")
    chunks = data.draw(st.lists(st.binary(min_size=1, max_size=LARGEST), min_size=1, max_size=6))
    file = written(folder, chunks)
    content = bytearray(file.path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        begin = data.draw(st.integers(0, len(content)))
        end = data.draw(st.integers(begin, min(len(content), begin + 50)))
        content[begin:end] = data.draw(st.binary(max_size=50))
    file.path.write_bytes(content)
    with suppress(SpoolDamaged):
        assert complete(folder, len(chunks)) == chunks
    try:
        found = partial(file.path)
    except SpoolDamaged:
        found = []
    assert found == chunks[: len(found)]


def test_a_file_of_another_upload_is_none(tmp_path: Path) -> None:
    written(tmp_path, CHUNKS)
    for site, changed in (
        ("a", replace(header(), update_id=8)),
        ("a", replace(header(), weight=11)),
    ):
        with pytest.raises(SpoolDamaged, match="is of another upload"):
            Spool(tmp_path).read_complete(site, changed)
    with pytest.raises(SpoolDamaged, match="is gone") as raised:
        Spool(tmp_path).read_complete("b", header())
    assert "disk" in str(raised.value.hint)


def test_an_update_that_was_not_sealed_is_not_complete(tmp_path: Path) -> None:
    file = written(tmp_path, CHUNKS, sealed=False)
    with pytest.raises(SpoolDamaged, match="holds 5 of 7 chunks"):
        Spool(tmp_path).read_complete("a", header(7))
    assert partial(file.path) == CHUNKS


def test_a_link_in_the_place_of_a_file_is_not_followed(tmp_path: Path) -> None:
    file = written(tmp_path, CHUNKS)
    target = tmp_path / "target"
    file.path.rename(target)
    file.path.symlink_to(target)
    with pytest.raises(SpoolDamaged, match="cannot be read"):
        complete(tmp_path)
    with pytest.raises(SpoolDamaged, match="cannot be opened"):
        file.chunks()


# --- reading ----------------------------------------------------------------------------


def test_chunks_are_read_one_by_one_in_slices_and_in_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = written(tmp_path, CHUNKS).chunks()
    assert len(chunks) == 5
    assert chunks.nbytes == sum(map(len, CHUNKS))
    assert [bytes(chunks[number]) for number in range(-5, 5)] == CHUNKS + CHUNKS
    for begin, end, step in itertools.product(
        (None, 0, 1, 4, 9), (None, 0, 2, 9), (None, 1, 2, -1)
    ):
        wanted = slice(begin, end, step)
        assert [bytes(chunk) for chunk in chunks[wanted]] == CHUNKS[wanted]
    with pytest.raises(IndexError):
        chunks[5]
    for window in (1, 90, 200, 10_000):
        monkeypatch.setattr(spool_module, "_WINDOW_BYTES", window)
        assert [bytes(chunk) for chunk in chunks] == CHUNKS


def test_a_window_is_all_that_a_walk_through_an_update_keeps(tmp_path: Path) -> None:
    spool, size, count = Spool(tmp_path), 200_000, 60
    file = spool.create("a", header(count), size)
    for number in range(count):
        file.append([memoryview(bytes([number]) * size)])
    chunks = file.chunks()
    tracemalloc.start()
    try:
        for number, chunk in enumerate(chunks):
            assert chunk[0] == number
        assert tracemalloc.get_traced_memory()[1] < 3 << 20
    finally:
        tracemalloc.stop()


def test_writing_copies_no_chunk(tmp_path: Path) -> None:
    size = 4 << 20
    file = Spool(tmp_path).create("a", header(8), size)
    chunks = [memoryview(bytes(size))] * 4
    tracemalloc.start()
    try:
        file.append(chunks)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda path: _flip(path, 100), "has other bytes than were written, in chunk 0"),
        (lambda path: os.truncate(path, 150), "cannot be read: it ends after 150 bytes"),
    ],
)
def test_a_file_that_changes_while_it_is_used_is_an_error_and_no_sum(
    tmp_path: Path, spoil: Callable[[Path], None], what: str
) -> None:
    file = written(tmp_path, CHUNKS)
    chunks = file.chunks()
    spoil(file.path)
    with pytest.raises(SpoolDamaged, match=what):
        list(chunks)


def _flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    with open(path, "r+b") as stream:
        stream.write(data)


def test_a_disk_that_fails_to_read_is_an_error(tmp_path: Path, monkeypatch: Any) -> None:
    chunks = written(tmp_path, CHUNKS).chunks()

    def fails(*_: Any) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", fails)
    with pytest.raises(SpoolDamaged, match="cannot be read: Input/output error"):
        chunks[0]


def test_descriptors_go_with_the_chunks(tmp_path: Path) -> None:
    file = written(tmp_path, CHUNKS)
    before = len(os.listdir("/proc/self/fd"))
    chunks: list[SpooledChunks] = [file.chunks() for _ in range(5)]
    assert len(os.listdir("/proc/self/fd")) == before + 5
    kept = chunks[0][0]
    chunks.clear()
    assert len(os.listdir("/proc/self/fd")) == before
    assert bytes(kept) == CHUNKS[0]


# --- writing ----------------------------------------------------------------------------


def test_writes_that_the_system_cuts_short_go_on(tmp_path: Path, monkeypatch: Any) -> None:
    real, sizes = os.pwritev, itertools.cycle((1, 5, 40, 3))
    monkeypatch.setattr(
        os, "pwritev", lambda fd, buffers, at: _short(real, next(sizes), fd, buffers, at)
    )
    written(tmp_path, CHUNKS)
    assert complete(tmp_path) == CHUNKS


def _short(real: Any, most: int, descriptor: int, buffers: list[memoryview], begin: int) -> int:
    kept = []
    for buffer in buffers:
        kept.append(buffer[:most])
        most -= kept[-1].nbytes
        if most == 0:
            break
    return int(real(descriptor, kept, begin))


def test_more_buffers_than_one_system_call_takes_are_written(tmp_path: Path) -> None:
    parts = [bytes([number % 251]) * (number % 3) for number in range(3000)]
    descriptor = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    try:
        write_all(descriptor, parts, 4)
    finally:
        os.close(descriptor)
    assert (tmp_path / "file").read_bytes() == bytes(4) + b"".join(parts)


def test_room_for_all_of_an_update_is_set_aside_and_what_is_left_is_given_back(
    tmp_path: Path,
) -> None:
    size = 1 << 20
    file = Spool(tmp_path).create("a", header(8), size)
    assert file.path.stat().st_blocks * 512 >= 8 * size
    for _ in range(8):
        file.append([memoryview(b"small")])
    file.seal()
    assert file.path.stat().st_size == file.size
    assert file.path.stat().st_blocks * 512 < size


def test_a_file_of_the_same_upload_from_before_gives_way(tmp_path: Path) -> None:
    written(tmp_path, CHUNKS)
    file = Spool(tmp_path).create("a", header(), LARGEST)
    assert partial(file.path) == []


def test_a_file_that_cannot_be_removed_keeps_its_room(tmp_path: Path, monkeypatch: Any) -> None:
    spool = Spool(tmp_path, limit_bytes=1000)
    file = spool.create("a", header(), LARGEST)

    def fails(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", fails)
        file.remove()
    with pytest.raises(SpoolUnavailable, match="of 1000"):
        spool.create("b", header(100), LARGEST)
    file.remove()
    with pytest.raises(SpoolUnavailable, match="others hold 0 of 1000"):
        spool.create("b", header(100), LARGEST)


def test_what_a_receiver_does_not_take_ends_the_file_before_it(tmp_path: Path) -> None:
    file = written(tmp_path, CHUNKS)

    def take(found: Any, chunk: bytes) -> None:
        if len(found.ends) == 2:
            raise DecodeError("no chunk of this round")

    found = read_file(file.path, take)
    assert (len(found.ends), found.fault) == (2, "no chunk of this round")


def test_native_code_finds_each_chunk_in_the_file_where_it_is(tmp_path: Path) -> None:
    file = written(tmp_path, CHUNKS)
    chunks = file.chunks()

    found = [os.pread(chunks.file, size, begin) for begin, size in chunks.places]

    assert found == CHUNKS
