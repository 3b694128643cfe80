"""Protobuf to our own dataclasses and back: runs, their rounds and their events.

Used towards operators, and for what the coordinator keeps about a run: the stored form of a
run is the message that GetRun answers with.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import get_args

from veilsum.buffering import MAX_STALENESS
from veilsum.control import (
    MAX_ATTEMPTS,
    BufferedUpdate,
    RoundRecord,
    RunEvent,
    RunSpec,
    RunState,
    RunStatus,
)
from veilsum.errors import DecodeError
from veilsum.proto.v1 import operator_pb2 as pb
from veilsum.roster import MAX_SITES
from veilsum.transport.wire import (
    HASH_BYTES,
    MAX_ID_BYTES,
    MAX_WEIGHT,
    count,
    decode_round_id,
    dump,
    encode_round_id,
    finite,
    metrics,
    parse,
    printable,
    text,
)
from veilsum.transport.wire_spec import decode_spec, encode_spec

_MAX_PHASES = 16
_MOST_UPDATES = 2 * MAX_SITES  # of a buffered round: one fresh and one stale of each site
_MAX_ROUNDS = 100_000
_EVENT_KINDS = ("phase", "site", "progress", "round", "run")

# --- what became of it --------------------------------------------------------------


def encode_run(status: RunStatus, *, with_rounds: bool = True) -> pb.Run:
    """See decode_run."""
    return pb.Run(
        run_id=status.run_id,
        spec=encode_spec(status.spec),
        state=status.state,
        reason=status.reason,
        current_round=status.current_round,
        phase=status.phase,
        sites_waiting=status.sites_waiting,
        rounds=[encode_record(record) for record in status.rounds] if with_rounds else [],
    )


def decode_run(message: pb.Run) -> RunStatus:
    """A run.

    Raises:
        DecodeError: a field is missing or out of bounds.
    """
    count(len(message.sites_waiting), "the number of sites", largest=MAX_SITES)
    count(len(message.rounds), "the number of rounds", largest=_MAX_ROUNDS * MAX_ATTEMPTS)
    return RunStatus(
        run_id=printable(message.run_id, "run_id"),
        spec=decode_spec(message.spec),
        state=_state(message.state),
        reason=text(message.reason, "reason"),
        current_round=count(message.current_round, "current_round", largest=_MAX_ROUNDS),
        phase=text(message.phase, "phase", largest=MAX_ID_BYTES),
        sites_waiting=tuple(message.sites_waiting),
        rounds=tuple(decode_record(record) for record in message.rounds),
    )


def _state(value: str) -> RunState:
    for state in get_args(RunState):
        if value == state:
            return state  # type: ignore[no-any-return]
    raise DecodeError(f"a run's state must be one of {get_args(RunState)}, got {value!r}")


def encode_record(record: RoundRecord) -> pb.RoundRecord:
    """See decode_record."""
    return pb.RoundRecord(
        round=encode_round_id(record.round),
        completed=record.completed,
        reason=record.reason,
        digest=record.digest,
        model_hash=record.model_hash,
        sites=record.sites,
        dropped=record.dropped,
        total_weight=record.total_weight,
        metrics=record.metrics,
        bytes_in=record.bytes_in,
        seconds=record.seconds,
        refusals=record.refusals,
        late=record.late,
        updates=[pb.BufferedUpdate(**asdict(update)) for update in record.updates],
    )


def decode_record(message: pb.RoundRecord) -> RoundRecord:
    """A finished round.

    Raises:
        DecodeError: a field is missing or out of bounds.
    """
    for name in ("sites", "dropped", "bytes_in", "refusals", "late"):
        count(len(getattr(message, name)), f"the number of {name}", largest=MAX_SITES)
    count(len(message.seconds), "the number of phases", largest=_MAX_PHASES)
    count(len(message.updates), "the number of updates", largest=_MOST_UPDATES)
    return RoundRecord(
        round=decode_round_id(message.round),
        completed=message.completed,
        reason=text(message.reason, "reason"),
        digest=text(message.digest, "digest", largest=2 * HASH_BYTES),
        model_hash=text(message.model_hash, "model_hash", largest=2 * HASH_BYTES),
        sites=tuple(message.sites),
        dropped={site: text(why, "reason") for site, why in message.dropped.items()},
        total_weight=message.total_weight,
        metrics=metrics(message.metrics, "metrics"),
        bytes_in=dict(message.bytes_in),
        seconds=_finite_values(message.seconds),
        refusals=dict(message.refusals),
        late=tuple(message.late),
        updates=tuple(_decode_update(update) for update in message.updates),
    )


def _decode_update(message: pb.BufferedUpdate) -> BufferedUpdate:
    return BufferedUpdate(
        site=printable(message.site, "a site"),
        version=count(message.version, "version", largest=_MAX_ROUNDS),
        staleness=count(message.staleness, "staleness", largest=MAX_STALENESS),
        weight=count(message.weight, "weight", smallest=1, largest=MAX_WEIGHT),
        counted=count(message.counted, "counted", smallest=1, largest=MAX_WEIGHT),
    )


def _finite_values(values: Mapping[str, float]) -> dict[str, float]:
    return {name: finite(value, name) for name, value in values.items()}


def encode_event(event: RunEvent) -> pb.RunEvent:
    """See decode_event."""
    return pb.RunEvent(
        run_id=event.run_id,
        kind=event.kind,
        round_number=event.round_number,
        phase=event.phase,
        site=event.site,
        detail=event.detail,
        sites_in=event.sites_in,
        sites_expected=event.sites_expected,
        bytes_in=event.bytes_in,
        seconds=event.seconds,
        fraction=event.fraction,
        digest=event.digest,
        metrics=event.metrics,
        number=event.number,
    )


def decode_event(message: pb.RunEvent) -> RunEvent:
    """Something that happened to a run.

    Raises:
        DecodeError: a field is missing or out of bounds.
    """
    if message.kind not in _EVENT_KINDS:
        raise DecodeError(f"an event's kind must be one of {_EVENT_KINDS}, got {message.kind!r}")
    return RunEvent(
        run_id=printable(message.run_id, "run_id"),
        kind=message.kind,  # type: ignore[arg-type]  # checked above
        round_number=message.round_number,
        phase=text(message.phase, "phase", largest=MAX_ID_BYTES),
        site=text(message.site, "site", largest=MAX_ID_BYTES),
        detail=text(message.detail, "detail"),
        sites_in=message.sites_in,
        sites_expected=message.sites_expected,
        bytes_in=message.bytes_in,
        seconds=finite(message.seconds, "seconds"),
        fraction=finite(message.fraction, "fraction"),
        digest=text(message.digest, "digest", largest=2 * HASH_BYTES),
        metrics=metrics(message.metrics, "metrics"),
        number=message.number,
    )


# --- stored forms -------------------------------------------------------------------


def run_to_bytes(status: RunStatus, *, with_rounds: bool = True) -> bytes:
    """A run as it is sent and stored."""
    return dump(encode_run(status, with_rounds=with_rounds))


def run_from_bytes(data: bytes) -> RunStatus:
    """Inverse of run_to_bytes. DecodeError if it is damaged."""
    return decode_run(parse(pb.Run, data))


def record_to_bytes(record: RoundRecord) -> bytes:
    """A finished round as it is stored."""
    return dump(encode_record(record))


def record_from_bytes(data: bytes) -> RoundRecord:
    """Inverse of record_to_bytes. DecodeError if it is damaged."""
    return decode_record(parse(pb.RoundRecord, data))


def event_to_bytes(event: RunEvent) -> bytes:
    """An event as it is sent and stored."""
    return dump(encode_event(event))


def event_from_bytes(data: bytes) -> RunEvent:
    """Inverse of event_to_bytes. DecodeError if it is damaged."""
    return decode_event(parse(pb.RunEvent, data))


# --- requests -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Submission:
    """What an operator submits: a run, and its initial model or the name of its file."""

    spec: RunSpec
    safetensors: bytes | None = field(repr=False)
    model_file: str | None


def encode_submission(submission: Submission) -> bytes:
    """See decode_submission."""
    return dump(
        pb.SubmitRunRequest(
            spec=encode_spec(submission.spec),
            safetensors=submission.safetensors,
            model_file=submission.model_file,
        )
    )


def decode_submission(data: bytes) -> Submission:
    """A run to start.

    Raises:
        DecodeError: a field is missing or out of bounds.
    """
    message = parse(pb.SubmitRunRequest, data)
    if not message.HasField("spec"):
        raise DecodeError("the request has no spec")
    spec = decode_spec(message.spec)
    match message.WhichOneof("model"):
        case "safetensors":
            return Submission(spec, message.safetensors, None)
        case "model_file":
            return Submission(spec, None, text(message.model_file, "model_file", largest=255))
        case _:
            raise DecodeError("the request has no initial model")


def encode_run_request(run_id: str) -> bytes:
    """See decode_run_request."""
    return dump(pb.GetRunRequest(run_id=run_id))


def decode_run_request(data: bytes) -> str:
    """Which run is asked for.

    Raises:
        DecodeError: a field is missing or out of bounds.
    """
    return printable(parse(pb.GetRunRequest, data).run_id, "run_id")


def encode_abort(run_id: str, reason: str) -> bytes:
    """See decode_abort."""
    return dump(pb.AbortRunRequest(run_id=run_id, reason=reason))


def decode_abort(data: bytes) -> tuple[str, str]:
    """(run, reason).

    Raises:
        DecodeError: a field is missing or out of bounds.
    """
    message = parse(pb.AbortRunRequest, data)
    return printable(message.run_id, "run_id"), text(message.reason, "reason", largest=256)


def encode_runs(runs: Iterable[RunStatus]) -> bytes:
    """All runs, without their rounds."""
    listed = [encode_run(status, with_rounds=False) for status in runs]
    return dump(pb.ListRunsResponse(runs=listed))


def decode_runs(data: bytes) -> tuple[RunStatus, ...]:
    """Inverse of encode_runs.

    Raises:
        DecodeError: a field is missing or out of bounds.
    """
    return tuple(decode_run(run) for run in parse(pb.ListRunsResponse, data).runs)


def encode_list_request() -> bytes:
    """Asks for all runs."""
    return dump(pb.ListRunsRequest())
