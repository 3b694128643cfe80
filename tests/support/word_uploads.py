"""Uploads whose words are given outright, without masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from veilsum import _native, secagg


def upload_of_words(
    plan: secagg.Plan,
    words: Mapping[int, Sequence[int] | NDArray[np.uint64]],
    *,
    update_id: int = 0,
) -> list[bytes]:
    """The chunks of one upload.

    Args:
        words: by stream, integers mod 2^bits from the first element on; the others are zero.
    """
    chunks: list[bytes] = []
    for stream in plan.ring.streams:
        given = [int(word) % 2**stream.bits for word in words.get(stream.group, ())]
        chunks += _native.ring_word_chunks(
            np.array(given + [0] * (stream.elements - len(given)), np.uint64),
            bits=stream.bits,
            group=stream.group,
            keys=[],
            signs=[],
            generator=plan.mask_generator,
            plan_digest=plan.context,
            update_id=update_id,
            chunk_coordinates=plan.chunk_coordinates,
            threads=1,
        )
    return chunks
