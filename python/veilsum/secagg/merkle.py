"""Merkle tree hash of a list of chunks and proofs of inclusion (RFC 9162, section 2.1), SHA-256."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from typing_extensions import Buffer

from veilsum.errors import DecodeError


def leaf_hash(chunk: Buffer) -> bytes:
    """Hash of one chunk, 32 bytes. The leading 0 keeps a chunk from posing as a node."""
    state = hashlib.sha256(b"\0")
    state.update(chunk)
    return state.digest()


def root_hash(leaves: Sequence[bytes]) -> bytes:
    """Root over leaf hashes in order, 32 bytes; of no leaves, the hash of nothing."""
    if not leaves:
        return hashlib.sha256().digest()
    if len(leaves) == 1:
        return leaves[0]
    split = _split(len(leaves))
    return _node(root_hash(leaves[:split]), root_hash(leaves[split:]))


def inclusion_proof(leaves: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """The nodes beside the way from a leaf to the root, from the leaf upwards (section 2.1.3.1).

    Args:
        index: of the leaf, 0 to len(leaves) - 1.
    """
    if len(leaves) == 1:
        return ()
    split = _split(len(leaves))
    left, right = leaves[:split], leaves[split:]
    if index < split:
        return (*inclusion_proof(left, index), root_hash(right))
    return (*inclusion_proof(right, index - split), root_hash(left))


def root_and_proofs(leaves: Sequence[bytes]) -> tuple[bytes, list[tuple[bytes, ...]]]:
    """The root, and the inclusion_proof of every leaf. Each node is hashed once, not per leaf."""
    if len(leaves) < 2:
        return root_hash(leaves), [()] * len(leaves)
    split = _split(len(leaves))
    left, left_proofs = root_and_proofs(leaves[:split])
    right, right_proofs = root_and_proofs(leaves[split:])
    proofs = [(*proof, right) for proof in left_proofs]
    proofs += [(*proof, left) for proof in right_proofs]
    return _node(left, right), proofs


def check_inclusion(
    root: bytes, count: int, index: int, leaf: bytes, proof: Sequence[bytes]
) -> None:
    """Whether `leaf` is leaf number `index` of a tree of `count` leaves (section 2.1.3.2).

    Args:
        count, index: from what was agreed before, never from whoever sent the proof.
        leaf: its hash.

    Raises:
        DecodeError: it is not, there is no such leaf, or the proof is not of the one length that
            `count` and `index` leave.
    """
    if not 0 <= index < count:
        raise DecodeError(f"leaf {index} was asked for of a tree of {count} leaves")
    sides = _sides(count, index)
    if len(proof) != len(sides):
        raise DecodeError(f"a proof of inclusion has {len(proof)} nodes, {len(sides)} are expected")
    found = leaf
    for beside, is_left in zip(proof, sides, strict=True):
        found = _node(beside, found) if is_left else _node(found, beside)
    if found != root:
        raise DecodeError(f"leaf {index} of {count} is not under the root")


def proof_length(count: int, index: int) -> int:
    """Nodes in the proof of leaf number `index` of `count`."""
    return len(_sides(count, index))


def _sides(count: int, index: int) -> list[bool]:
    """For each node of a proof, from the leaf upwards, whether it is to the left."""
    sides: list[bool] = []
    while count > 1:
        split = _split(count)
        sides.append(index >= split)
        count, index = (count - split, index - split) if index >= split else (split, index)
    return sides[::-1]


def _split(count: int) -> int:
    """The largest power of two below `count`."""
    return 1 << ((count - 1).bit_length() - 1)


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()
