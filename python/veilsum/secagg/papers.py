"""The papers in evidence: what it takes, beside signed messages, to recompute transcripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from veilsum._native import Secret
from veilsum.errors import DecodeError
from veilsum.secagg import keys, merkle
from veilsum.secagg.envelope import Envelope
from veilsum.secagg.keys import SHARE_BYTES, Label, transcript
from veilsum.secagg.messages import DealtShare, KeyAdvert, ShareDeal
from veilsum.secagg.plan import Plan
from veilsum.secagg.wire import MAX_SITES, Reader, Writer

MASK_SEED, SELF_SEED = b"m", b"b"
"""Which of a dealer's two secrets."""

_MAX_PROOF = 8


def write_digests(digests: Mapping[str, bytes]) -> bytes:
    """Who sent what: the list that a transcript is over, sorted by site."""
    ordered = sorted(digests.items(), key=lambda item: item[0].encode())
    return Writer().sequence(ordered, lambda to, one: to.text(one[0]).raw(one[1])).bytes()


def read_digests(paper: bytes) -> dict[str, bytes]:
    reader = Reader(paper)
    listed = reader.sequence(MAX_SITES, "digests", lambda at: (at.site("a site"), at.digest("one")))
    reader.expect_end("a list of digests")
    if len(dict(listed)) != len(listed):
        raise DecodeError("a list of digests names a site twice")
    return dict(listed)


def write_entry(entry: DealtShare, proof: Sequence[bytes]) -> bytes:
    """What a dealer committed to for one receiver, and the proof that it is under its root."""
    return Writer().raw(entry.to_bytes()).sequence(proof, Writer.raw).bytes()


def write_share(receiver: str, share: bytes, entry: DealtShare, proof: Sequence[bytes]) -> bytes:
    """One dealt share in the clear, with its entry."""
    return Writer().text(receiver).raw(share).raw(write_entry(entry, proof)).bytes()


def _read_entry(reader: Reader) -> tuple[DealtShare, tuple[bytes, ...]]:
    entry = DealtShare(reader.digest("m"), reader.digest("b"), reader.digest("a box digest"))
    proof = reader.sequence(_MAX_PROOF, "a proof", lambda at: at.digest("a node"))
    reader.expect_end("an entry")
    return entry, proof


@dataclass(frozen=True, slots=True)
class ShownDeal:
    """A dealer's signed root, and the sites of U1 as the dealer's own T1 has them."""

    header: Envelope
    deal: ShareDeal
    adverts: Mapping[str, bytes]

    @classmethod
    def of(cls, header: Envelope, deal: ShareDeal, adverts: bytes) -> ShownDeal:
        """Args:
            deal: opened from the header.
            adverts: paper of the adverts that T1 is over.

        Raises:
            DecodeError: it is not.
        """
        digests = read_digests(adverts)
        if transcript(Label.TRANSCRIPT_KEYS, deal.context, digests) != deal.t1:
            raise DecodeError("the adverts are not those the dealer dealt to (T1 differs)")
        return cls(header, deal, digests)

    def index(self, receiver: str) -> int:
        """Where polynomials are evaluated for a receiver."""
        ordered = sorted(self.adverts, key=str.encode)
        if receiver not in self.adverts:
            raise DecodeError(f"nothing was dealt to site {receiver!r}")
        return ordered.index(receiver) + 1

    def entry(self, receiver: str, reader: Reader) -> DealtShare:
        """What was committed to for a receiver."""
        entry, proof = _read_entry(reader)
        at = self.index(receiver) - 1
        merkle.check_inclusion(self.deal.root, len(self.adverts), at, entry.leaf, proof)
        return entry


def seed_fits(plan: Plan, advert: KeyAdvert, which: bytes, seed: Secret) -> bool:
    """Whether a rebuilt secret is the one that its owner advertised."""
    if which == SELF_SEED:
        found = keys.self_commitment(plan.context, seed, advert.sender)
        return found == advert.self_commitment
    private = keys.mask_private_key(plan.context, seed, advert.sender)
    try:
        return keys.public_key(private) == advert.mask_key
    finally:
        private.wipe()


def read_share(shown: ShownDeal, which: bytes, paper: bytes) -> tuple[int, Secret]:
    """A receiver's index and its share, once it is checked to be the one it was dealt.

    Raises:
        DecodeError: it is another one.
    """
    reader = Reader(paper)
    receiver, share = reader.site("a receiver"), reader.raw(SHARE_BYTES, "a share")
    entry = shown.entry(receiver, reader)
    label, commitment = (
        (Label.MASK_SHARE_COMMITMENT, entry.mask_commitment)
        if which == MASK_SEED
        else (Label.SELF_SHARE_COMMITMENT, entry.self_commitment)
    )
    pair = (shown.deal.t1, shown.deal.sender, receiver)
    if keys.share_commitment(label, *pair, share) != commitment:
        raise DecodeError("a share is not the one that was dealt")
    return shown.index(receiver), Secret.from_bytes(share)


def write_name(site: str) -> bytes:
    """See read_name."""
    return Writer().text(site).bytes()


def read_name(paper: bytes) -> str:
    """A site's name alone."""
    reader = Reader(paper)
    text = reader.site("a name")
    reader.expect_end("a name")
    return text
