"""T35: two vectors under one keystream: their difference is that of the plain values.

The defences: a key holds T2, and so belongs to one attempt; a stream id is used for one vector; a
position in a stream is an element of that vector.
"""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import veilsum
from support.battery import failing
from support.secagg import Federation, make_contributions, make_plan
from support.unmasking import words_of
from veilsum import _native, secagg
from veilsum._native import Secret
from veilsum.model import ModelLayout
from veilsum.secagg import keys

SIZE = 2**12
KEY = Secret.from_bytes(b"\3" * 32)
VICTIM = "basel"


def masked(values: NDArray, *, stream: int) -> NDArray:
    words = values.astype(np.uint64)
    _native.add_masks(
        words,
        [KEY],
        [1],
        generator="chacha20",
        stream=stream,
        first=0,
        bits=64,
        threads=1,
    )
    return words


# --- vectors of one update ----------------------------------------------------------------------


def test_one_stream_for_two_vectors_shows_their_difference():
    """The variant: a keystream for each site, used for model, state and counts alike."""
    model, counts = np.arange(SIZE), np.full(SIZE, 7)

    shown = masked(model, stream=1) - masked(counts, stream=1)

    np.testing.assert_array_equal(shown.astype(np.int64), model - counts)


def test_two_streams_show_nothing():
    shown = masked(np.arange(SIZE), stream=1) - masked(np.full(SIZE, 7), stream=2)

    assert not failing(shown, 64)


def test_two_tensors_of_one_shape_are_under_different_parts_of_a_stream():
    """Tensors of one group follow one another in it. Equal values look different there."""
    arrays = {name: np.zeros(SIZE, np.float32) for name in ("one", "two")}
    plan = make_plan(4, layout=ModelLayout.from_arrays(arrays), metrics=())
    federation = Federation(plan, contributions=make_contributions(plan, lambda _: arrays))
    federation.run()
    words = uploaded(federation)
    (_, first, count), (_, second, _) = plan.layout.native.offsets(1)
    assert second >= first + count

    difference = words[first : first + count] - words[second : second + count]
    assert not failing(difference & np.uint32(2**plan.ring_bits - 1), plan.ring_bits)


def uploaded(federation: Federation) -> NDArray:
    (upload,) = [
        effect
        for site, effect in federation.site_effects
        if site == VICTIM and isinstance(effect, secagg.UploadInput)
    ]
    return words_of(federation.plan, upload.chunks)


def test_every_vector_of_an_update_has_a_stream_of_its_own():
    arrays = {"float": np.zeros(3, np.float32), "whole": np.zeros(3, np.int64)}
    plan = make_plan(4, layout=ModelLayout.from_arrays(arrays))

    streams = [stream.group for stream in plan.ring.streams]

    assert streams == sorted(set(streams)) == [0, 1, 2]


MASKED_AT = {
    ("aggregate/secure_sum.py", "add_masks"),  # what is left in the sum: every stream, once
    ("aggregate/tile_audit.py", "add_mask_tiles"),  # the same again, of some tiles
    ("secagg/audit.py", "add_masks"),  # what is left in a chunk of the sum, again
    ("secagg/upload.py", "encode_ring_chunks"),  # stream 1
    ("secagg/upload.py", "encode_ring_tiles"),  # the same again, of some tiles
    ("secagg/upload.py", "ring_word_chunks"),  # streams 0 and 2
}
MASKING = {
    "add_mask_tiles",
    "add_masks",
    "encode_ring_chunks",
    "encode_ring_tiles",
    "ring_word_chunks",
}


def masking_calls() -> set[tuple[str, str]]:
    """(file, function) of all calls that put masks on words. Self-tests do so with keys that
    protect nothing."""
    package = Path(veilsum.__file__).parent
    found = set()
    for file in package.rglob("*.py"):
        if "selftest" in str(file):
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in MASKING
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "_native"
            ):
                found.add((str(file.relative_to(package)), node.func.attr))
    return found


def test_masks_are_put_on_in_few_places_and_each_is_known():
    """A new one must use a stream that no vector of the round has yet."""
    assert masking_calls() == MASKED_AT


# --- attempts -----------------------------------------------------------------------------------


def same_seeds(patch: pytest.MonkeyPatch) -> None:
    """Half of the variant: seeds follow from the generator alone, and it repeats itself."""
    for name in ("mask_seed", "self_seed", "mask_private_key"):
        _without_salt(patch, name)


def same_salt(patch: pytest.MonkeyPatch) -> None:
    """The other half: keys of masks do not hold T2."""
    for name in ("pair_mask_key", "self_mask_key"):
        _without_salt(patch, name)


def _without_salt(patch: pytest.MonkeyPatch, name: str) -> None:
    function = getattr(keys, name)
    patch.setattr(keys, name, lambda salt, *rest: function(bytes(32), *rest))


def two_attempts() -> tuple[secagg.Plan, NDArray, NDArray]:
    """The victim's words in two attempts in which it has two updates, and its generator repeats
    itself; and the difference of what it sent."""
    sent, plain = [], []
    for attempt, value in enumerate((0.25, 0.75)):
        arrays = {"weight": np.full(SIZE, value, np.float32)}
        plan = make_plan(4, layout=ModelLayout.from_arrays(arrays), metrics=(), attempt=attempt)
        contributions = {
            site: given._replace(weight=100)
            for site, given in make_contributions(plan, lambda _, arrays=arrays: arrays).items()
        }
        federation = Federation(plan, contributions=contributions)
        federation.run()
        sent.append(uploaded(federation))
        plain.append(round(plan.scale * value))
    ring = np.uint32(2**plan.ring_bits - 1)
    return plan, (sent[1] - sent[0]) & ring, plain[1] - plain[0]


def test_pads_that_are_used_in_two_attempts_show_the_difference_of_two_updates(monkeypatch):
    same_seeds(monkeypatch)
    same_salt(monkeypatch)

    _, shown, difference = two_attempts()

    assert np.abs(shown.astype(np.int64) - difference).max() <= 1


@pytest.mark.parametrize("removed", [None, same_seeds, same_salt])
def test_attempts_have_their_own_pads_by_either_defence(removed, monkeypatch):
    if removed is not None:
        removed(monkeypatch)

    plan, shown, _ = two_attempts()

    assert not failing(shown, plan.ring_bits)
