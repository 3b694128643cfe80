"""The seeds that the masks of a finished sum came off with, for those who check the sum.

b_u of every survivor and m_u of every dropout, never both of one site. With them and the messages
of the round anyone derives the masks that were left in the sum. The coordinator knows them from M9
on; whoever else gets them learns from the masked updates what the coordinator learns, the sum, and
nothing more. On a disk they lie only where a transcript was asked for (transcript_file.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from veilsum._native import Secret
from veilsum.errors import DecodeError, PeerError
from veilsum.secagg import keys
from veilsum.secagg.masks import MaskKeys, removal_masks
from veilsum.secagg.phases import Dealers
from veilsum.secagg.plan import Plan
from veilsum.secagg.wire import MAX_SITES, Reader, Writer


@dataclass(frozen=True, slots=True)
class AuditKeys:
    """Seeds by site, 32 bytes each.

    Attributes:
        self_seeds: b_u of the survivors.
        mask_seeds: m_u of the sites that dealt shares and are not in the sum.
    """

    self_seeds: Mapping[str, Secret] = field(repr=False)
    mask_seeds: Mapping[str, Secret] = field(repr=False)

    def to_bytes(self) -> bytes:
        """Two lists, sorted by site: LE16 count, then per site its name and its seed."""
        writer = Writer()
        for seeds in (self.self_seeds, self.mask_seeds):
            writer.sequence(sorted(seeds.items(), key=lambda one: one[0].encode()), _write_seed)
        return writer.bytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Raises:
        DecodeError: not two lists of seeds, each sorted by site.
        """
        reader = Reader(data)
        lists = [reader.sequence(MAX_SITES, "seeds", _read_seed) for _ in range(2)]
        reader.expect_end("the seeds of an audit")
        for seeds in lists:
            sites = [site for site, _ in seeds]
            if sites != sorted(set(sites), key=str.encode):
                raise DecodeError("the seeds of an audit are repeated or not sorted by site")
        own, mask = ({site: Secret.from_bytes(seed) for site, seed in seeds} for seeds in lists)
        return cls(own, mask)

    def wipe(self) -> None:
        """Overwrites all seeds."""
        for seed in (*self.self_seeds.values(), *self.mask_seeds.values()):
            seed.wipe()


def _write_seed(writer: Writer, one: tuple[str, Secret]) -> None:
    with memoryview(one[1]) as seed:
        writer.text(one[0]).raw(bytes(seed))


def _read_seed(reader: Reader) -> tuple[str, bytes]:
    return reader.site("a site"), reader.raw(keys.SECRET_BYTES, "a seed")


def removal(plan: Plan, dealers: Dealers, survivors: Sequence[str], seeds: AuditKeys) -> MaskKeys:
    """The masks that are left in the sum of the survivors' updates, signed so that adding them
    removes them. Every seed is held against what its owner advertised.

    Args:
        survivors: sorted by site.

    Raises:
        DecodeError: the seeds are not those of the survivors and of the dropouts.
        PeerError: a seed is not the one that its site advertised.
    """
    dropouts = [site for site in dealers.sites if site not in survivors]
    if (set(seeds.self_seeds), set(seeds.mask_seeds)) != (set(survivors), set(dropouts)):
        raise DecodeError("the seeds are not those of the survivors' masks and of the dropouts'")
    return removal_masks(
        [self_key(plan, dealers, site, seeds.self_seeds[site]) for site in survivors],
        [
            edge
            for site in dropouts
            for edge in dropout_edges(plan, dealers, survivors, site, seeds.mask_seeds[site])
        ],
    )


def self_key(plan: Plan, dealers: Dealers, site: str, seed: Secret) -> Secret:
    """K_self of a survivor from its b_u.

    Raises:
        PeerError: b_u is not what com_b in the site's advert commits to.
    """
    advertised = dealers.members.adverts[site].self_commitment
    if keys.self_commitment(plan.context, seed, site) != advertised:
        raise _another_seed(site)
    return keys.self_mask_key(dealers.t2, seed, site)


def dropout_edges(
    plan: Plan, dealers: Dealers, survivors: Sequence[str], dropout: str, seed: Secret
) -> list[tuple[str, str, Secret]]:
    """(survivor, dropout, K_uv) for every survivor, from the dropout's m_u.

    Raises:
        PeerError: m_u does not give the public key in the site's advert.
    """
    members = dealers.members
    own = members.mask_key(dropout)
    private = keys.mask_private_key(plan.context, seed, dropout)
    try:
        agreement = keys.Agreement(private)
        if agreement.public_key() != own[1]:
            raise _another_seed(dropout)
        return [
            (
                survivor,
                dropout,
                keys.pair_mask_key(dealers.t2, agreement, own, members.mask_key(survivor)),
            )
            for survivor in survivors
        ]
    finally:
        private.wipe()


def _another_seed(site: str) -> PeerError:
    return PeerError(site, "shared another secret than the one it advertised")
