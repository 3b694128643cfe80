"""Updates whose chunks are summed where they lie in a file: the same bits as from memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from veilsum import EncodedUpdate, ModelLayout, _native, encode, plain
from veilsum.control import RoundId, RunSpec
from veilsum.coordinator import plain_updates
from veilsum.coordinator.events import UpdateArrived
from veilsum.errors import ConfigError, DecodeError, PeerError
from veilsum.site.contribution import LocalUpdate, PlainContribution
from veilsum.site.effects import Upload
from veilsum.transport.spool import Spool
from veilsum.transport.spool_format import SpoolDamaged

LAYOUT = ModelLayout(
    _native.Layout([("w", "f32", (150_000,)), ("h", "f16", (77,)), ("n", "i64", (5,))])
)
GAP = b"frame of another"  # what a spool writes between chunks


def arrays(number: int) -> dict[str, np.ndarray[Any, Any]]:
    random = np.random.default_rng(number)
    return {
        "w": random.standard_normal(150_000, np.float32),
        "h": random.standard_normal(77).astype(np.float16),
        "n": random.integers(-9, 9, 5),
    }


def aggregator(**change: Any) -> _native.MeanAggregator:
    return _native.MeanAggregator(
        LAYOUT.native,
        **{
            "threads": 2,
            "spool": "",
            "streaming_max_abs": 0.0,
            "streaming_max_total_weight": 0,
            **change,
        },
    )


def form_of(update: EncodedUpdate) -> dict[str, Any]:
    form = update.form
    return {
        "codec": form.number,
        "scale": form.scale,
        "plan_digest": form.plan_digest,
        "update_id": form.update_id,
        "chunk_coordinates": form.chunk_coordinates,
    }


class File:
    """Chunks in a file, with something before and between them."""

    def __init__(self, path: Path, update: EncodedUpdate) -> None:
        self.places = []
        with open(path, "wb") as stream:
            for chunk in update.body:
                stream.write(GAP)
                self.places.append((stream.tell(), memoryview(chunk).nbytes))
                stream.write(chunk)
        self.path = path
        self.descriptor = os.open(path, os.O_RDONLY)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Any]:
    files: list[File] = []

    def put(update: EncodedUpdate) -> File:
        files.append(File(tmp_path / f"{len(files)}.update", update))
        return files[-1]

    yield put
    for file in files:
        os.close(file.descriptor)


@pytest.mark.parametrize("codec", ["f32", "f16", "int8", "nf4", "topk"])
def test_the_mean_has_the_same_bits(codec: str, opened: Any) -> None:
    updates = [encode(arrays(number), codec=codec, layout=LAYOUT) for number in range(4)]
    in_memory, in_files = aggregator(), aggregator(threads=1)

    for number, update in enumerate(updates):
        in_memory.add_chunks(f"s{number}", 1 + number, update.body, **form_of(update))
        file = opened(update)
        in_files.add_file(f"s{number}", 1 + number, file.descriptor, file.places, **form_of(update))
        file.path.unlink()  # what is mapped stays

    for expected, found in zip(in_memory.finish(), in_files.finish(), strict=True):
        np.testing.assert_array_equal(found, expected, strict=True)


def test_updates_in_files_and_in_memory_are_summed_together(opened: Any) -> None:
    update, other = (encode(arrays(number), codec="int8", layout=LAYOUT) for number in (1, 2))
    expected, mixed = aggregator(), aggregator()
    for mean in (expected, mixed):
        mean.add_chunks("a", 2, update.body, **form_of(update))
    expected.add_chunks("b", 3, other.body, **form_of(other))
    file = opened(other)

    mixed.add_file("b", 3, file.descriptor, file.places, **form_of(other))
    mixed.remove("a")
    mixed.add_chunks("a", 2, update.body, **form_of(update))

    assert mixed.sites == ("a", "b")
    for one, two in zip(expected.finish(), mixed.finish(), strict=True):
        np.testing.assert_array_equal(one, two, strict=True)


def test_a_changed_byte_is_found_before_anything_is_added(opened: Any) -> None:
    update = encode(arrays(1), codec="int8", layout=LAYOUT)
    file = opened(update)
    begin, size = file.places[1]
    with open(file.path, "r+b") as stream:
        stream.seek(begin + size // 2)
        byte = stream.read(1)[0]
        stream.seek(begin + size // 2)
        stream.write(bytes([byte ^ 1]))
    mean = aggregator()

    with pytest.raises(DecodeError, match="checksum"):
        mean.add_file("a", 1, file.descriptor, file.places, **form_of(update))
    assert mean.sites == ()


def test_places_beyond_the_file_or_out_of_order_are_refused(opened: Any) -> None:
    """A page beyond the end of a file would end the process."""
    update = encode(arrays(1), codec="int8", layout=LAYOUT)
    file = opened(update)
    form, places = form_of(update), file.places
    mean = aggregator()

    def refused(kind: type[Exception], places: list[tuple[int, int]], text: str) -> None:
        with pytest.raises(kind, match=text):
            mean.add_file("a", 1, file.descriptor, places, **form)

    os.truncate(file.path, places[-1][0] + places[-1][1] - 1)
    refused(ConfigError, places, r"site 'a' from its file: it has \d+ bytes, expected")
    refused(ConfigError, [places[1], places[0], *places[2:]], "must follow each other")
    refused(ConfigError, [(0, 2**48 + 1)], "must follow each other")
    refused(ConfigError, [(2**63, 2**63)], "must follow each other")
    refused(DecodeError, places[:1], "chunks")
    with pytest.raises(ConfigError, match="Bad file descriptor"):
        mean.add_file("a", 1, 999_999, places, **form)
    mean.add_chunks("a", 1, update.body, **form)
    whole = opened(update)
    with pytest.raises(PeerError, match="already added"):
        mean.add_file("a", 1, whole.descriptor, whole.places, **form)


def test_a_streaming_mean_takes_no_file(opened: Any) -> None:
    update = encode(arrays(1), codec="f32", layout=LAYOUT)
    file = opened(update)
    streaming = aggregator(streaming_max_abs=10.0, streaming_max_total_weight=9)

    with pytest.raises(ConfigError, match="takes no update from a file"):
        streaming.add_file("a", 1, file.descriptor, file.places, **form_of(update))


# --- from the spool --------------------------------------------------------------------

ROUND = RoundId("run", 1)
SPEC = RunSpec("task", masked=False, codec="int8")


def spooled(folder: Path, values: dict[str, np.ndarray[Any, Any]]) -> tuple[Path, UpdateArrived]:
    """An update of site "a" as it arrives, and its file."""
    plan = plain.make_plan(SPEC, LAYOUT, bytes(32))
    contribution = PlainContribution(plan, ROUND, "a", threads=1)
    rounding = _native.Secret.from_bytes(bytes(range(32)))
    [upload] = contribution.contribute(LocalUpdate(values, 5, {}, rounding))
    assert isinstance(upload, Upload)
    file = Spool(folder).create("a", upload.header, max(len(chunk) for chunk in upload.chunks))
    file.append([memoryview(chunk) for chunk in upload.chunks])
    file.seal()
    return file.path, UpdateArrived("a", upload.header, file.chunks())


def added(arrived: UpdateArrived) -> _native.MeanAggregator:
    mean = aggregator(spool="/nonexistent")  # no second copy is made
    plan = plain.make_plan(SPEC, LAYOUT, bytes(32))
    plain_updates.add_update(mean, plan, arrived, key="a", weight=5)
    return mean


def test_the_mean_reads_an_update_in_the_spool(tmp_path: Path) -> None:
    path, arrived = spooled(tmp_path, arrays(1))
    in_memory = UpdateArrived("a", arrived.header, [bytes(chunk) for chunk in arrived.chunks])
    expected = aggregator()
    plan = plain.make_plan(SPEC, LAYOUT, bytes(32))
    plain_updates.add_update(expected, plan, in_memory, key="a", weight=5)

    mean = added(arrived)
    path.unlink()

    assert list(tmp_path.iterdir()) == []
    for one, two in zip(expected.finish(), mean.finish(), strict=True):
        np.testing.assert_array_equal(one, two, strict=True)


def test_a_disk_that_changed_an_update_is_not_the_sites_fault(tmp_path: Path) -> None:
    path, arrived = spooled(tmp_path, arrays(1))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 8
    path.write_bytes(data)

    with pytest.raises(SpoolDamaged, match="other bytes than were written"):
        added(arrived)


def test_an_update_that_no_disk_changed_is_the_sites_fault(tmp_path: Path) -> None:
    _, arrived = spooled(tmp_path, arrays(1))
    wrong = replace(arrived.header, update_id=arrived.header.update_id ^ 1)

    with pytest.raises(DecodeError):
        added(UpdateArrived("a", wrong, arrived.chunks))
