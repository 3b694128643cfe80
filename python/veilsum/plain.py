"""What both sides of a plain round agree on: the plan, how its codec is set, update ids.

In a plain round the coordinator reads the updates. The plan's digest is in the header of
every chunk, so a chunk made for other settings is refused by itself.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import replace

from veilsum import _native
from veilsum.codecs import families, form
from veilsum.codecs.families import CodecSettings
from veilsum.codecs.form import ChunkGroup
from veilsum.control import PlainPlan, RoundId, RunSpec
from veilsum.errors import ConfigError
from veilsum.model import ModelLayout

CHUNK_COORDINATES = 65_536
"""Coordinates of every chunk but the last of a group."""

METRIC_LIMIT = 2**16
"""Largest |metric|; the same as in a masked round."""


def codec_settings(name: str, clip: float) -> CodecSettings:
    """Settings of a plain round's codec, by its base or full name.

    A ring codec of b bits spans [-clip, clip] with all the steps it has.

    Raises:
        ConfigError: the codec is unknown, or cannot be used with this clip.
    """
    try:
        takes_clip = "clip" in families.find_family(name).options
    except ConfigError as error:
        raise ConfigError(
            f"codec {name!r} is not for the updates of a plain round", hint=error.hint
        ) from error
    return families.codec_settings(name, {"clip": clip} if takes_clip else {})


def require_codec(spec: RunSpec, layout: ModelLayout) -> None:
    """Checks the codec of a plain run against its model.

    Raises:
        ConfigError: the codec is unknown, or cannot be used with these settings or this model.
    """
    _native.require_codec(layout.native, codec_settings(spec.codec, spec.clip).number)


def make_plan(spec: RunSpec, layout: ModelLayout, model_hash: bytes) -> PlainPlan:
    """The plan of one plain round.

    Raises:
        ConfigError: the codec cannot be used with these settings.
    """
    require_codec(spec, layout)
    plan = PlainPlan(
        layout=layout.to_bytes(),
        codec=spec.codec,
        weight_cap=spec.weight_cap,
        chunk_coordinates=CHUNK_COORDINATES,
        metrics=spec.metrics,
        model_hash=model_hash,
        clip=float(spec.clip),
        compression=spec.compression,
        error_feedback=spec.error_feedback,
        digest=b"",
    )
    return _with_digest(plan)


def _with_digest(plan: PlainPlan) -> PlainPlan:
    return replace(plan, digest=plan_digest(plan))


def plan_digest(plan: PlainPlan) -> bytes:
    """SHA-256 over all fields but the digest itself, 32 bytes."""
    state = hashlib.sha256(b"veilsum/plain-plan\0")
    for part in (plan.layout, plan.codec.encode(), plan.model_hash):
        state.update(struct.pack("<I", len(part)) + part)
    state.update(struct.pack("<QId", plan.weight_cap, plan.chunk_coordinates, plan.clip))
    state.update(struct.pack("<I", len(plan.metrics)))
    for name in plan.metrics:
        state.update(struct.pack("<I", len(name.encode())) + name.encode())
    state.update(struct.pack("<I", len(plan.compression)) + plan.compression.encode())
    state.update(struct.pack("<B", plan.error_feedback))
    return state.digest()


def check_plan(plan: PlainPlan) -> None:
    """What a site checks before it works for a plan.

    Raises:
        ConfigError: the digest is not the plan's, or a field cannot work.
    """
    if plan_digest(plan) != plan.digest:
        raise ConfigError("the plan's digest is not the one of its fields")
    if not 1 <= plan.weight_cap < 2**31:
        raise ConfigError(f"weight_cap must be 1 to 2**31-1, got {plan.weight_cap}")
    if plan.chunk_coordinates != CHUNK_COORDINATES:
        raise ConfigError(
            f"chunks of a plain round hold {CHUNK_COORDINATES} coordinates, "
            f"the plan says {plan.chunk_coordinates}"
        )
    codec_settings(plan.codec, plan.clip)


def update_id(plan: PlainPlan, round_id: RoundId, site: str) -> int:
    """The number in the headers of a site's chunks: follows from plan, round and site, so
    that chunks of another round or site are refused one by one."""
    state = hashlib.sha256(b"veilsum/plain-update\0" + plan.digest)
    for name in (round_id.run_id, site):
        state.update(struct.pack("<I", len(name.encode())) + name.encode())
    state.update(struct.pack("<QI", round_id.number, round_id.attempt))
    return int.from_bytes(state.digest()[:8], "little")


def chunk_groups(layout: ModelLayout, codec: int) -> tuple[ChunkGroup, ...]:
    """The groups of an update in order; a group without tensors has none."""
    return form.chunk_groups(layout, codec, CHUNK_COORDINATES)
