"""Proofs that a chunk is under a Merkle root (RFC 9162, section 2.1.3), and what is none."""

from __future__ import annotations

import hashlib

import pytest

from veilsum.errors import DecodeError
from veilsum.secagg.merkle import (
    check_inclusion,
    inclusion_proof,
    leaf_hash,
    root_and_proofs,
    root_hash,
)

COUNTS = [1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 31, 33]


def leaves_of(count: int) -> list[bytes]:
    return [leaf_hash(bytes([number])) for number in range(count)]


def from_levels(leaves: list[bytes], index: int) -> tuple[bytes, list[bytes]]:
    """Root and proof by another way: level by level, a node without a partner moving up."""
    level, at, proof = leaves, index, []
    while len(level) > 1:
        if at ^ 1 < len(level):
            proof.append(level[at ^ 1])
        pairs = [level[start : start + 2] for start in range(0, len(level), 2)]
        level = [
            hashlib.sha256(b"\1" + b"".join(pair)).digest() if len(pair) == 2 else pair[0]
            for pair in pairs
        ]
        at //= 2
    return level[0], proof


@pytest.mark.parametrize("count", COUNTS)
def test_every_leaf_is_proven_and_proofs_are_those_of_the_levels(count):
    leaves = leaves_of(count)
    for index, leaf in enumerate(leaves):
        root, proof = from_levels(leaves, index)

        assert root_hash(leaves) == root
        assert list(inclusion_proof(leaves, index)) == proof
        check_inclusion(root, count, index, leaf, proof)


@pytest.mark.parametrize("count", [0, *COUNTS, 255])
def test_all_proofs_of_a_tree_at_once_are_the_proofs_one_by_one(count):
    leaves = leaves_of(count)

    root, proofs = root_and_proofs(leaves)

    assert root == root_hash(leaves)
    assert proofs == [inclusion_proof(leaves, index) for index in range(count)]


@pytest.mark.parametrize("count", COUNTS)
def test_a_proof_holds_for_its_leaf_place_and_tree_only(count):
    leaves = leaves_of(count)
    root = root_hash(leaves)
    for index, leaf in enumerate(leaves):
        proof = inclusion_proof(leaves, index)
        others = [(root, count, other, leaf, proof) for other in range(count) if other != index]
        others += [
            (bytes(32), count, index, leaf, proof),
            (root, count, index, bytes(32), proof),
            (root, count, index, leaf, (*proof, bytes(32))),
            (root, count, index, leaf, (*proof, root)),
        ]
        others += [
            (root, count, index, leaf, (*proof[:at], bytes(32), *proof[at + 1 :]))
            for at in range(len(proof))
        ]
        others += [(root, count, index, leaf, proof[:-1])] if proof else []
        for wrong in others:
            with pytest.raises(DecodeError):
                check_inclusion(*wrong)


def test_an_inner_node_is_not_taken_for_a_leaf():
    """Its proof is one node short, and the tree's size says how long a proof is."""
    leaves = leaves_of(4)
    inner = root_hash(leaves[:2])

    with pytest.raises(DecodeError, match="has 1 nodes, 2 are expected"):
        check_inclusion(root_hash(leaves), 4, 0, inner, [root_hash(leaves[2:])])


@pytest.mark.parametrize(("count", "index"), [(0, 0), (1, 1), (4, -1), (4, 4)])
def test_there_is_no_proof_for_a_leaf_that_the_tree_has_not(count, index):
    """The root of an empty tree is a known hash; nothing is in it."""
    with pytest.raises(DecodeError, match="was asked for"):
        check_inclusion(root_hash(leaves_of(count)), count, index, bytes(32), ())
