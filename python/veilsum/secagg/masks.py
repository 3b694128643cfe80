"""Which masks belong to an update, and with which sign.

Site u uploads  x_u + PRG(self_u) + sum over peers v of sign(u, v) * PRG(pair_uv),
over the peers that dealt shares, with sign +1 if u sorts below v and -1 otherwise. So a
pair's two terms cancel when both updates are in the sum.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from veilsum._native import Secret


def pair_sign(site: str, peer: str) -> int:
    """+1 where `site` adds the mask it shares with `peer`, -1 where it subtracts it."""
    return 1 if site.encode() < peer.encode() else -1


@dataclass(frozen=True, slots=True)
class MaskKeys:
    """Keys of masks and the sign each is added with."""

    keys: Sequence[Secret] = ()
    signs: Sequence[int] = ()

    def wipe(self) -> None:
        """Overwrites all keys."""
        for key in self.keys:
            key.wipe()


def update_masks(site: str, self_key: Secret, pairs: Iterable[tuple[str, Secret]]) -> MaskKeys:
    """Masks a site puts on its update. `pairs`: (peer, pair key)."""
    keys, signs = [self_key], [1]
    for peer, key in pairs:
        keys.append(key)
        signs.append(pair_sign(site, peer))
    return MaskKeys(keys, signs)


def removal_masks(
    self_keys: Iterable[Secret], edges: Iterable[tuple[str, str, Secret]]
) -> MaskKeys:
    """Masks left in the sum of the survivors' updates, signed so that adding removes them.

    Args:
        self_keys: one per survivor.
        edges: (survivor, dropout, pair key): the survivor's half has no counterpart.
    """
    keys = list(self_keys)
    signs = [-1] * len(keys)
    for survivor, dropout, key in edges:
        keys.append(key)
        signs.append(-pair_sign(survivor, dropout))
    return MaskKeys(keys, signs)
