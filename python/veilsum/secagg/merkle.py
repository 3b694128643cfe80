"""Merkle tree hash of a list of chunks (RFC 9162, section 2.1.1), SHA-256."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from typing_extensions import Buffer


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
    split = 1 << ((len(leaves) - 1).bit_length() - 1)  # largest power of two below the count
    left, right = root_hash(leaves[:split]), root_hash(leaves[split:])
    return hashlib.sha256(b"\1" + left + right).digest()
