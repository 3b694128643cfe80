"""Hash trees over the sum of a round: leaves, roots and proofs, and what is none."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from reference import ring
from support.secagg import make_plan, small_arrays
from support.word_uploads import upload_of_words
from veilsum import secagg
from veilsum.aggregate.ring_spec import SumChunk
from veilsum.aggregate.secure_sum import SecureSum
from veilsum.errors import DecodeError
from veilsum.model import ModelLayout
from veilsum.secagg.sum_tree import SumTree, check_chunk, check_roots, leaf_hash

ELEMENTS = 2 * 4096 + 5  # three chunks, the last one short


@pytest.fixture
def plan() -> secagg.Plan:
    layout = ModelLayout.from_arrays(small_arrays(0, ELEMENTS))
    return make_plan(4, layout=layout, chunk_coordinates=4096, ring_bits=21)


def words_of(plan: secagg.Plan, seed: int) -> dict[int, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        stream.group: rng.integers(0, 2**stream.bits, stream.elements, np.uint64)
        for stream in plan.ring.streams
    }


def summed(plan: secagg.Plan, *updates: dict[int, np.ndarray]) -> SecureSum:
    total = SecureSum(plan.ring)
    for words in updates:
        total.fold(upload_of_words(plan, words))
    return total


def test_leaves_hold_the_words_of_the_sum_as_integers_pack_them(plan):
    """Of two uploads: the accumulator of 32 bits then holds more than a word of the ring."""
    one, two = words_of(plan, 1), words_of(plan, 2)
    total = summed(plan, one, two)

    tree = SumTree.over(plan.ring, total.chunks())

    for stream in plan.ring.streams:
        sums = [
            (int(a) + int(b)) % 2**stream.bits
            for a, b in zip(one[stream.group], two[stream.group], strict=True)
        ]
        expected = [
            hashlib.sha256(
                b"\0"
                + stream.group.to_bytes(4, "little")
                + first.to_bytes(8, "little")
                + ring.packed(sums[first : first + 4096], stream.bits)
            ).digest()
            for first in range(0, stream.elements, 4096)
        ]
        assert list(tree.leaves[stream.group]) == expected


def test_roots_name_every_stream_and_change_with_any_word(plan):
    words = words_of(plan, 3)
    roots = SumTree.over(plan.ring, summed(plan, words).chunks()).roots
    check_roots(plan.ring, roots)

    assert [(one.stream, one.elements, one.bits) for one in roots] == [
        (0, 4, 64),
        (1, ELEMENTS + 59, 21),
        (2, 64, 64),
    ]
    for group, place in ((0, 3), (1, 0), (1, ELEMENTS), (2, 63)):
        changed = {number: values.copy() for number, values in words.items()}
        changed[group][place] ^= 1
        others = SumTree.over(plan.ring, summed(plan, changed).chunks()).roots
        assert [a == b for a, b in zip(roots, others, strict=True)] == [
            one.stream != group for one in roots
        ]


def test_equal_words_at_other_places_have_other_leaves():
    leaves = {
        leaf_hash(SumChunk(stream, first, bytes(64))) for stream in (1, 2) for first in (0, 4096)
    }
    assert len(leaves) == 4


def test_every_chunk_is_proven_at_its_own_place_only(plan):
    chunks = list(summed(plan, words_of(plan, 4)).chunks())
    tree = SumTree.over(plan.ring, chunks)
    for chunk in chunks:
        index = chunk.first // 4096
        proof = tree.proof(chunk.stream, index)
        check_chunk(plan.ring, tree.roots, index, chunk, proof)
        wrong = [
            (index + 1, chunk, proof),
            (index, replace(chunk, words=bytes([chunk.words[0] ^ 1]) + chunk.words[1:]), proof),
            (index, replace(chunk, first=chunk.first + 4096), proof),
            (index, replace(chunk, stream=9), proof),
            (index, chunk, (*proof, bytes(32))),
        ]
        for arguments in wrong:
            with pytest.raises(DecodeError):
                check_chunk(plan.ring, tree.roots, *arguments)


def test_a_tree_is_over_all_chunks_of_a_sum_in_order(plan):
    chunks = list(summed(plan, words_of(plan, 5)).chunks())
    padded = make_plan(4, ring_bits=21, value_bits=17, chunk_coordinates=4096)
    with pytest.raises(DecodeError, match="ends before chunk 0 of stream 2"):
        SumTree.over(plan.ring, chunks[:-1])
    with pytest.raises(DecodeError, match="follow the last one"):
        SumTree.over(plan.ring, [*chunks, chunks[-1]])
    with pytest.raises(DecodeError, match="begins at element 0"):
        SumTree.over(plan.ring, [chunks[0], chunks[2], chunks[1], *chunks[3:]])
    with pytest.raises(DecodeError, match="begins at element 0"):
        SumTree.over(padded.ring, chunks)


def test_roots_of_other_streams_are_refused(plan):
    roots = SumTree.over(plan.ring, summed(plan, words_of(plan, 6)).chunks()).roots
    for wrong in (roots[:-1], roots[::-1], (replace(roots[0], bits=63), *roots[1:])):
        with pytest.raises(DecodeError, match="the plan has"):
            check_roots(plan.ring, wrong)


def test_a_sum_is_loaded_from_its_chunks_and_is_the_same_sum(plan):
    total = summed(plan, words_of(plan, 7))
    chunks = list(total.chunks())
    loaded = SecureSum(plan.ring)
    loaded.load(reversed(chunks))

    assert list(loaded.chunks()) == chunks
    for wrong in (
        replace(chunks[0], stream=7),
        replace(chunks[1], first=1),
        replace(chunks[1], first=4096 * 3),
        replace(chunks[1], words=chunks[1].words[:-1]),
        replace(chunks[1], words=chunks[1].words + b"\0"),
    ):
        with pytest.raises(DecodeError):
            loaded.load([wrong])
