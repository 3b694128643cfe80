"""What a coordinator computes that has got hold of both secrets of a site, or of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veilsum import _native, secagg
from veilsum._native import Secret
from veilsum.aggregate.secure_sum import SecureSum
from veilsum.secagg import keys
from veilsum.secagg.masks import pair_sign
from veilsum.secagg.messages import SealedDeal
from veilsum.secagg.phases import Dealers
from veilsum.secagg.transcript import Members


def boxes_of(deal: bytes) -> tuple[bytes, ...]:
    """The sealed boxes of a dealer's message, one per member in their order."""
    return tuple(share.box for share in SealedDeal.from_bytes(deal).shares)


def rebuilt(members: Members, shares: Mapping[str, Secret | bytes]) -> Secret:
    """The secret behind these shares. `shares`: holder -> its share."""
    held = [one if isinstance(one, Secret) else Secret.from_bytes(one) for one in shares.values()]
    (secret,) = _native.combine_shares([members.index(site) for site in shares], [held])
    return secret


def pair_masks(
    dealers: Dealers, context: bytes, site: str, mask_seed: Secret
) -> tuple[list[Secret], list[int]]:
    """Keys of all pair masks of a site, and the signs that take them off."""
    private = keys.mask_private_key(context, mask_seed, site)
    own = dealers.members.mask_key(site)
    masks, signs = [], []
    for peer in dealers.sites:
        if peer != site:
            other = dealers.members.mask_key(peer)
            masks.append(keys.pair_mask_key(dealers.t2, private, own, other))
            signs.append(-pair_sign(site, peer))
    return masks, signs


def read_update(
    plan: secagg.Plan, chunks: Sequence[bytes], masks: Sequence[Secret], signs: Sequence[int]
) -> NDArray[np.float32]:
    """The floating-point tensor of one upload, once these masks are off.

    Raises:
        RoundAborted: there are others on it.
    """
    alone = SecureSum(plan.ring)
    alone.fold(chunks)
    alone.add_masks(masks, signs)
    (tensor,) = [array for array in alone.finish(1).arrays if array.dtype == np.float32]
    return tensor


def words_of(plan: secagg.Plan, chunks: Sequence[bytes], group: int = 1) -> NDArray[Any]:
    """The ring words that the chunks of one group hold."""
    (stream,) = [stream for stream in plan.ring.streams if stream.group == group]
    words = np.zeros(stream.elements, np.uint32 if stream.bits <= 32 else np.uint64)
    _native.fold_ring_chunks(
        words,
        [[chunk for chunk in chunks if chunk[12] == group]],
        bits=stream.bits,
        chunk_coordinates=plan.chunk_coordinates,
        threads=1,
    )
    return words & words.dtype.type(2**stream.bits - 1)


def with_masks(
    plan: secagg.Plan,
    words: NDArray[Any],
    masks: Sequence[Secret],
    signs: Sequence[int],
    group: int = 1,
) -> NDArray[Any]:
    """These words with the masks added."""
    (stream,) = [stream for stream in plan.ring.streams if stream.group == group]
    changed = words.copy()
    _native.add_masks(
        changed,
        masks,
        signs,
        generator=plan.mask_generator,
        stream=group,
        first=0,
        bits=stream.bits,
        threads=1,
    )
    return changed & changed.dtype.type(2**stream.bits - 1)
