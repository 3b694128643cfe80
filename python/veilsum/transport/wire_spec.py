"""Protobuf to our own dataclasses and back: what to run."""

from __future__ import annotations

from typing import get_args

from veilsum.buffering import DEFAULT_STALENESS
from veilsum.control import (
    DEFAULT_ATTEMPTS,
    Compression,
    Deadlines,
    LateUpdates,
    MaskGenerator,
    OptimizerSpec,
    Overrange,
    RunSpec,
    ShareProfile,
)
from veilsum.errors import ConfigError, DecodeError
from veilsum.proto.v1 import operator_pb2 as pb
from veilsum.roster import MAX_SITES
from veilsum.transport.wire import (
    MAX_ID_BYTES,
    count,
    decode_task,
    encode_task,
    finite,
    one_of,
    printable,
    text,
)

_DEADLINE_NAMES = (
    "join_s",
    "keys_s",
    "shares_s",
    "inputs_s",
    "votes_s",
    "unmask_s",
    "acks_s",
    "cooldown_s",
)


def encode_spec(spec: RunSpec) -> pb.RunSpec:
    """See decode_spec."""
    deadlines = {name: getattr(spec.deadlines, name) for name in _DEADLINE_NAMES}
    return pb.RunSpec(
        task_id=spec.task_id,
        rounds=spec.rounds,
        masked=spec.masked,
        codec=spec.codec,
        cohort=spec.cohort,
        min_sites=spec.min_sites,
        quorum=spec.quorum,
        min_weight=spec.min_weight,
        select=spec.select,
        over_select=spec.over_select,
        late=spec.late,
        buffer_size=spec.buffer_size,
        max_staleness=spec.max_staleness,
        colluders=spec.colluders,
        share_profile=spec.share_profile,
        mask_generator=spec.mask_generator,
        value_bits=spec.value_bits,
        clip=spec.clip,
        overrange=spec.overrange,
        compression=spec.compression,
        error_feedback=spec.error_feedback,
        hadamard=spec.hadamard,
        max_attempts=spec.max_attempts,
        weight_cap=spec.weight_cap,
        metrics=spec.metrics,
        server_learning_rate=spec.server_learning_rate,
        server_optimizer=_encode_optimizer(spec.server_optimizer),
        task=encode_task(spec.task),
        deadlines=pb.Deadlines(**deadlines),
    )


def decode_spec(message: pb.RunSpec) -> RunSpec:
    """A run that could work; whether it does with this roster is the core's question.

    Raises:
        DecodeError: a field is missing or out of bounds.
    """
    for part in ("task", "deadlines"):
        if not message.HasField(part):
            raise DecodeError(f"the run has no {part}")
    count(len(message.cohort), "the number of sites in the cohort", largest=MAX_SITES)
    count(len(message.metrics), "the number of metrics", largest=16)
    try:
        return RunSpec(
            task_id=message.task_id,
            rounds=message.rounds,
            masked=message.masked,
            codec=text(message.codec, "codec", smallest=1, largest=MAX_ID_BYTES),
            cohort=tuple(printable(site, "a site of the cohort") for site in message.cohort),
            min_sites=message.min_sites,
            quorum=message.quorum,
            min_weight=message.min_weight,
            select=message.select,
            over_select=finite(message.over_select, "over_select"),
            late=one_of(message.late or "refuse", get_args(LateUpdates), "late"),
            buffer_size=message.buffer_size,
            # Runs that were stored before there were buffers do not name it.
            max_staleness=(
                message.max_staleness if message.HasField("max_staleness") else DEFAULT_STALENESS
            ),
            colluders=message.colluders if message.HasField("colluders") else None,
            share_profile=one_of(message.share_profile, get_args(ShareProfile), "share_profile"),
            # Runs that were stored before there was a choice do not name it.
            mask_generator=one_of(
                message.mask_generator or "chacha20", get_args(MaskGenerator), "mask_generator"
            ),
            value_bits=message.value_bits,
            clip=finite(message.clip, "clip"),
            overrange=one_of(message.overrange, get_args(Overrange), "overrange"),
            compression=one_of(message.compression or "none", get_args(Compression), "compression"),
            error_feedback=message.error_feedback,
            hadamard=message.hadamard,
            max_attempts=message.max_attempts or DEFAULT_ATTEMPTS,
            weight_cap=message.weight_cap,
            metrics=tuple(message.metrics),
            server_learning_rate=finite(message.server_learning_rate, "server_learning_rate"),
            server_optimizer=_decode_optimizer(message),
            task=decode_task(message.task),
            deadlines=_decode_deadlines(message.deadlines),
        )
    except ConfigError as error:
        raise DecodeError(str(error)) from error


def _decode_deadlines(message: pb.Deadlines) -> Deadlines:
    seconds = {name: getattr(message, name) for name in _DEADLINE_NAMES}
    # Runs that were stored before there were acknowledgements and retries do not name these.
    for name in ("acks_s", "cooldown_s"):
        seconds[name] = seconds[name] or getattr(Deadlines(), name)
    return Deadlines(**seconds)


def _encode_optimizer(spec: OptimizerSpec) -> pb.ServerOptimizer:
    return pb.ServerOptimizer(
        name=spec.name,
        momentum=spec.momentum,
        beta1=spec.beta1,
        beta2=spec.beta2,
        tau=spec.tau,
        state_file=spec.state_file,
    )


def _decode_optimizer(message: pb.RunSpec) -> OptimizerSpec:
    if not message.HasField("server_optimizer"):
        return OptimizerSpec()
    found = message.server_optimizer
    parameters = {
        name: finite(getattr(found, name), name)
        for name in ("momentum", "beta1", "beta2", "tau")
        if found.HasField(name)
    }
    return OptimizerSpec(
        name=text(found.name, "the optimizer's name", smallest=1, largest=MAX_ID_BYTES),
        state_file=text(found.state_file, "state_file", largest=255),
        **parameters,
    )
