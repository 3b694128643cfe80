"""Receiving one plain upload, chunk by chunk."""

from __future__ import annotations

import hashlib

from typing_extensions import Buffer

from veilsum import plain
from veilsum.codecs.receiver import ChunkReceiver
from veilsum.control import PlainPlan
from veilsum.model import ModelLayout


class PlainReceiver(ChunkReceiver):
    """See ChunkReceiver."""

    def __init__(self, plan: PlainPlan, layout: ModelLayout, site: str, update_id: int) -> None:
        codec = plain.codec_settings(plan.codec, plan.clip).number
        super().__init__(
            site,
            plain.chunk_groups(layout, codec),
            masked=False,
            plan_digest=plan.digest,
            update_id=update_id,
            hash_chunk=_sha256,
            compressed=plan.compression != "none",
        )


def _sha256(chunk: Buffer) -> bytes:
    return hashlib.sha256(chunk).digest()
