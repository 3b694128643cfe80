"""The manifest: a plan as bytes. Its hash is in the context of every message and key."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from veilsum import control
from veilsum.errors import ConfigError, DecodeError
from veilsum.model import ModelLayout
from veilsum.roster import Roster
from veilsum.secagg.thresholds import MAX_CLIPS
from veilsum.secagg.wire import MAX_NAME_BYTES, MAX_SITES, Reader, Writer

if TYPE_CHECKING:
    from veilsum.secagg.plan import Plan

MAX_METRICS = 16
MAX_STEP_RULE_BYTES = 1024
OVERRANGE: tuple[control.Overrange, ...] = ("refuse", "clip")
MASK_GENERATORS: tuple[control.MaskGenerator, ...] = ("chacha20", "aes256ctr")
"""Choices are numbered in this order."""

_MAGIC = b"VSP3"
_MAX_LAYOUT_BYTES = 2**24

_Choice = TypeVar("_Choice")


def write_manifest(plan: Plan) -> bytes:
    """All fields in a fixed encoding, the roster by its hash."""
    writer = Writer().raw(_MAGIC).raw(plan.roster.hash)
    writer.sequence(plan.cohort, Writer.text).text(plan.task_id).text(plan.run_id)
    writer.integer(plan.round_number, 8).integer(plan.attempt, 4)
    writer.blob(plan.layout.to_bytes()).raw(plan.model_hash).raw(plan.previous_result)
    writer.raw(plan.task_hash).raw(plan.nonce)
    for threshold in (
        plan.min_sites,
        plan.colluders,
        plan.vote_quorum,
        plan.share_threshold,
        plan.value_bits,
        plan.ring_bits,
        plan.headroom,
    ):
        writer.integer(threshold, 1)
    writer.integer(MASK_GENERATORS.index(plan.mask_generator), 1)
    writer.real(plan.clip).integer(OVERRANGE.index(plan.overrange), 1)
    writer.integer(plan.weight_cap, 4).integer(plan.integer_limit, 8)
    writer.sequence(plan.metrics, Writer.text).integer(plan.metric_limit, 8)
    writer.integer(plan.chunk_coordinates, 4).sequence(plan.clips, Writer.real)
    writer.integer(control.HADAMARD_BLOCKS.index(plan.hadamard), 1)
    return writer.blob(plan.step_rule).raw(plan.state_hash).bytes()


def read_manifest(data: bytes, roster: Roster, plan_type: type[Plan]) -> Plan:
    """The plan that a manifest describes; it checks itself as it is made.

    Raises:
        DecodeError: the bytes do not follow the format.
        ConfigError: it was made for another roster, or its content cannot work.
    """
    reader = Reader(data)
    if reader.raw(len(_MAGIC), "the manifest's magic") != _MAGIC:
        raise DecodeError("the round-open message holds no manifest of this version")
    if reader.digest("the roster hash") != roster.hash:
        raise ConfigError(
            "the round was planned for another roster than this one",
            hint="compare the roster files of coordinator and site",
        )
    # Arguments are evaluated from first to last: what follows is the order of the format.
    plan = plan_type(
        roster=roster,
        cohort=reader.sequence(MAX_SITES, "the cohort", lambda at: at.site("a cohort site")),
        task_id=reader.text(MAX_NAME_BYTES, "the task id"),
        run_id=reader.text(MAX_NAME_BYTES, "the run id"),
        round_number=reader.integer(8, "the round"),
        attempt=reader.integer(4, "the attempt"),
        layout=ModelLayout.from_bytes(reader.blob(_MAX_LAYOUT_BYTES, "the layout")),
        model_hash=reader.digest("the model hash"),
        previous_result=reader.digest("the previous result"),
        task_hash=reader.digest("the task hash"),
        nonce=reader.digest("the nonce"),
        min_sites=reader.integer(1, "min_sites"),
        colluders=reader.integer(1, "colluders"),
        vote_quorum=reader.integer(1, "vote_quorum"),
        share_threshold=reader.integer(1, "share_threshold"),
        value_bits=reader.integer(1, "value_bits"),
        ring_bits=reader.integer(1, "ring_bits"),
        headroom=reader.integer(1, "headroom"),
        mask_generator=_choice(reader, MASK_GENERATORS, "mask generator"),
        clip=reader.real("the clip"),
        overrange=_choice(reader, OVERRANGE, "overrange rule"),
        weight_cap=reader.integer(4, "weight_cap"),
        integer_limit=reader.integer(8, "integer_limit"),
        metrics=reader.sequence(
            MAX_METRICS, "metrics", lambda at: at.text(MAX_NAME_BYTES, "a metric's name")
        ),
        metric_limit=reader.integer(8, "metric_limit"),
        chunk_coordinates=reader.integer(4, "chunk_coordinates"),
        clips=reader.sequence(MAX_CLIPS, "clips", lambda at: at.real("a tensor's clip")),
        hadamard=_choice(reader, control.HADAMARD_BLOCKS, "rotation"),
        step_rule=reader.blob(MAX_STEP_RULE_BYTES, "the step rule"),
        state_hash=reader.digest("the optimizer state hash"),
    )
    reader.expect_end("the manifest")
    return plan


def _choice(reader: Reader, choices: tuple[_Choice, ...], what: str) -> _Choice:
    """One byte that counts from 0 into `choices`."""
    number = reader.integer(1, f"the {what}")
    if number >= len(choices):
        raise DecodeError(f"{what} {number} is unknown")
    return choices[number]
