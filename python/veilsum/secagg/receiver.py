"""Receiving one masked upload: the header's promises, then chunk by chunk."""

from __future__ import annotations

from collections.abc import Sequence

from typing_extensions import Buffer

from veilsum.codecs.form import ChunkGroup
from veilsum.codecs.receiver import ChunkReceiver
from veilsum.errors import PeerError
from veilsum.secagg import merkle
from veilsum.secagg.envelope import Envelope
from veilsum.secagg.messages import InputHeader, StreamHeader
from veilsum.secagg.payload import open_envelope
from veilsum.secagg.plan import Plan


def stream_headers(plan: Plan) -> tuple[StreamHeader, ...]:
    """Shapes every upload of a round has; the plan fixes them completely."""
    return tuple(
        StreamHeader(stream.group, stream.elements, stream.bits, sum(plan.ring.chunk_sizes(stream)))
        for stream in plan.ring.streams
    )


def input_header(plan: Plan, site: str, t2: bytes, chunks: Sequence[Buffer]) -> InputHeader:
    """M5 for these chunks."""
    root = merkle.root_hash([merkle.leaf_hash(chunk) for chunk in chunks])
    return InputHeader(plan.context, site, t2, stream_headers(plan), root)


def open_input(plan: Plan, t2: bytes, site: str, envelope: Envelope) -> InputHeader:
    """Verifies the signed header of a site's upload.

    Raises:
        DecodeError, PeerError: a wrong signature, another round, other shares or another shape.
    """
    key = plan.roster.signing_key(site)
    header = open_envelope(InputHeader, envelope, key, sender=site, context=plan.context)
    if header.t2 != t2:
        raise PeerError(site, "masked its update for another set of shares (T2 differs)")
    if header.streams != stream_headers(plan):
        raise PeerError(site, "sent an update of another shape than the plan's")
    return header


class InputReceiver(ChunkReceiver):
    """See ChunkReceiver. The chunks must also be those that the signed header promised."""

    def __init__(self, plan: Plan, site: str, header: InputHeader, update_id: int) -> None:
        super().__init__(
            site,
            [
                ChunkGroup(
                    stream.group,
                    stream.codec,
                    stream.elements,
                    plan.chunk_coordinates,
                    stream.transforms,
                )
                for stream in plan.ring.streams
            ],
            masked=True,
            plan_digest=plan.context,
            update_id=update_id,
            hash_chunk=merkle.leaf_hash,
        )
        self._root = header.root

    def finish(self) -> None:
        """Checks that everything came and is what the signed header promised.

        Raises:
            PeerError: chunks are missing, or the Merkle root differs.
        """
        super().finish()
        if merkle.root_hash(self._hashes) != self._root:
            raise PeerError(self._site, "sent chunks that do not match its signed Merkle root")
