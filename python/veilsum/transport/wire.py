"""Protobuf to our own dataclasses and back: what coordinator and sites say to each other.

With wire_runs.py the only place that knows both; everyone else handles messages as bytes or
as dataclasses. Decoding is strict, because everything here comes from another machine: a
missing message, a hash of another size, a number that is not finite or a text without end
is a DecodeError, and what comes out can be used without further checks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeVar, assert_never, get_args

from google.protobuf.message import DecodeError as ProtobufError
from google.protobuf.message import Message

from veilsum.control import (
    Compression,
    Decline,
    Goodbye,
    Hello,
    PlainPlan,
    Progress,
    ProtocolMessage,
    RoundClosed,
    RoundId,
    RoundOpened,
    RunClosed,
    SiteDropped,
    TaskSettings,
    ToCoordinator,
    ToSite,
    Welcome,
)
from veilsum.errors import ConfigError, DecodeError
from veilsum.proto.v1 import federation_pb2 as pb

HASH_BYTES = 32
INSTANCE_BYTES = 16
MAX_ID_BYTES = 64
MAX_TEXT_BYTES = 4096  # a reason, for people
MAX_DECLINE_BYTES = 2048  # a site's, which becomes a part of such a reason
MAX_PAYLOAD_BYTES = 2 << 20  # a protocol message of a site
MAX_RELAY_BYTES = 7 << 20  # one of the coordinator; the largest relays the deals of 255 sites
MAX_LAYOUT_BYTES = 3 << 20
MAX_METRICS = 16
MAX_WEIGHT = 2**31 - 1
MAX_CHUNKS = 2**24

_M = TypeVar("_M", bound=Message)

# --- checks of single fields ----------------------------------------------------


def text(value: str, name: str, *, largest: int = MAX_TEXT_BYTES, smallest: int = 0) -> str:
    """A text of bounded size."""
    if not smallest <= len(value.encode()) <= largest:
        raise DecodeError(
            f"{name} must be {smallest} to {largest} bytes, got {len(value.encode())}"
        )
    return value


def blob(value: bytes, name: str, *, largest: int, smallest: int = 0) -> bytes:
    """Bytes of bounded size."""
    if not smallest <= len(value) <= largest:
        raise DecodeError(f"{name} must be {smallest} to {largest} bytes, got {len(value)}")
    return value


def hash_bytes(value: bytes, name: str) -> bytes:
    """A SHA-256."""
    return blob(value, name, smallest=HASH_BYTES, largest=HASH_BYTES)


def finite(value: float, name: str) -> float:
    """A number."""
    if not math.isfinite(value):
        raise DecodeError(f"{name} must be finite, got {value}")
    return value


def one_of(value: str, known: tuple[Any, ...], name: str) -> Any:
    """A word of those that are known."""
    if value in known:
        return value
    raise DecodeError(f"{name} must be {' or '.join(map(repr, known))}, got {value!r}")


def count(value: int, name: str, *, largest: int, smallest: int = 0) -> int:
    """A bounded integer."""
    if not smallest <= value <= largest:
        raise DecodeError(f"{name} must be {smallest} to {largest}, got {value}")
    return value


def metrics(values: Mapping[str, float], name: str) -> dict[str, float]:
    """Finite numbers by name, at most 16."""
    count(len(values), f"the number of {name}", largest=MAX_METRICS)
    return {
        text(key, f"a name in {name}", smallest=1, largest=MAX_ID_BYTES): finite(value, name)
        for key, value in values.items()
    }


def printable(value: str, name: str) -> str:
    """An identifier: 1 to 64 printable bytes."""
    text(value, name, smallest=1, largest=MAX_ID_BYTES)
    if not value.isprintable():
        raise DecodeError(f"{name} must be printable, got {value!r}")
    return value


def parse(kind: type[_M], data: bytes) -> _M:
    """A protobuf message of one kind; its fields are not checked yet."""
    message: _M = kind()
    try:
        message.ParseFromString(data)
    except ProtobufError as error:
        raise DecodeError(f"{kind.DESCRIPTOR.name}: not a protobuf message of this kind") from error
    return message


def dump(message: Message) -> bytes:
    """The bytes of a protobuf message."""
    return bytes(message.SerializeToString())


# --- parts ------------------------------------------------------------------------


def encode_round_id(round_id: RoundId) -> pb.RoundId:
    """See decode_round_id."""
    return pb.RoundId(run_id=round_id.run_id, number=round_id.number, attempt=round_id.attempt)


def decode_round_id(message: pb.RoundId) -> RoundId:
    """A round's name. An absent one has no number, which is refused."""
    return RoundId(
        printable(message.run_id, "run_id"),
        count(message.number, "a round's number", smallest=1, largest=2**32 - 1),
        count(message.attempt, "a round's attempt", largest=2**31 - 1),
    )


def encode_task(task: TaskSettings) -> pb.TaskSettings:
    """See decode_task."""
    return pb.TaskSettings(
        epochs=task.epochs,
        batch_size=task.batch_size,
        learning_rate=task.learning_rate,
        proximal=task.proximal,
        seed=task.seed,
    )


def decode_task(message: pb.TaskSettings) -> TaskSettings:
    """Settings of a task; the dataclass knows their bounds."""
    try:
        return TaskSettings(
            epochs=message.epochs,
            batch_size=message.batch_size,
            learning_rate=message.learning_rate,
            proximal=message.proximal,
            seed=message.seed,
        )
    except ConfigError as error:
        raise DecodeError(str(error)) from error


def _encode_plain(plan: PlainPlan) -> pb.PlainPlan:
    return pb.PlainPlan(
        layout=plan.layout,
        codec=plan.codec,
        weight_cap=plan.weight_cap,
        chunk_coordinates=plan.chunk_coordinates,
        metrics=plan.metrics,
        model_hash=plan.model_hash,
        clip=plan.clip,
        compression=plan.compression,
        error_feedback=plan.error_feedback,
        digest=plan.digest,
    )


def _decode_plain(message: pb.PlainPlan) -> PlainPlan:
    count(len(message.metrics), "the number of metrics", largest=MAX_METRICS)
    return PlainPlan(
        layout=blob(message.layout, "layout", smallest=1, largest=MAX_LAYOUT_BYTES),
        codec=text(message.codec, "codec", smallest=1, largest=MAX_ID_BYTES),
        weight_cap=count(message.weight_cap, "weight_cap", smallest=1, largest=MAX_WEIGHT),
        chunk_coordinates=count(
            message.chunk_coordinates, "chunk_coordinates", smallest=1, largest=2**31 - 1
        ),
        metrics=tuple(printable(name, "a metric's name") for name in message.metrics),
        model_hash=hash_bytes(message.model_hash, "model_hash"),
        clip=finite(message.clip, "clip"),
        compression=one_of(message.compression or "none", get_args(Compression), "compression"),
        error_feedback=message.error_feedback,
        digest=hash_bytes(message.digest, "digest"),
    )


def _encode_protocol(message: ProtocolMessage) -> pb.ProtocolMessage:
    return pb.ProtocolMessage(round=encode_round_id(message.round), payload=message.payload)


def _decode_protocol(message: pb.ProtocolMessage, *, largest: int) -> ProtocolMessage:
    return ProtocolMessage(
        decode_round_id(message.round),
        blob(message.payload, "payload", smallest=1, largest=largest),
    )


# --- coordinator to site ----------------------------------------------------------


def encode_to_site(message: ToSite) -> bytes:
    """For a site's Join stream."""
    return dump(_to_site(message))


def _to_site(message: ToSite) -> pb.CoordinatorMessage:
    match message:
        case Welcome():
            return pb.CoordinatorMessage(
                welcome=pb.Welcome(
                    consortium=message.consortium,
                    roster_hash=message.roster_hash,
                    round=None if message.round is None else encode_round_id(message.round),
                )
            )
        case RoundOpened():
            return pb.CoordinatorMessage(round_opened=_encode_opened(message))
        case ProtocolMessage():
            return pb.CoordinatorMessage(protocol=_encode_protocol(message))
        case RoundClosed():
            return pb.CoordinatorMessage(
                round_closed=pb.RoundClosed(
                    round=encode_round_id(message.round),
                    completed=message.completed,
                    reason=message.reason,
                    digest=message.digest,
                )
            )
        case SiteDropped():
            return pb.CoordinatorMessage(
                site_dropped=pb.SiteDropped(
                    round=encode_round_id(message.round), reason=message.reason
                )
            )
        case RunClosed():
            return pb.CoordinatorMessage(
                run_closed=pb.RunClosed(
                    run_id=message.run_id, completed=message.completed, reason=message.reason
                )
            )
        case _:
            assert_never(message)


def decode_to_site(data: bytes) -> ToSite:
    """What the coordinator said.

    Raises:
        DecodeError: a field is missing or out of bounds.
    """
    message = parse(pb.CoordinatorMessage, data)
    match message.WhichOneof("message"):
        case "welcome":
            welcome = message.welcome
            return Welcome(
                printable(welcome.consortium, "consortium"),
                hash_bytes(welcome.roster_hash, "roster_hash"),
                decode_round_id(welcome.round) if welcome.HasField("round") else None,
            )
        case "round_opened":
            return _decode_opened(message.round_opened)
        case "protocol":
            return _decode_protocol(message.protocol, largest=MAX_RELAY_BYTES)
        case "round_closed":
            closed = message.round_closed
            return RoundClosed(
                decode_round_id(closed.round),
                closed.completed,
                text(closed.reason, "reason"),
                text(closed.digest, "digest", largest=2 * HASH_BYTES),
            )
        case "site_dropped":
            dropped = message.site_dropped
            return SiteDropped(decode_round_id(dropped.round), text(dropped.reason, "reason"))
        case "run_closed":
            ended = message.run_closed
            return RunClosed(
                printable(ended.run_id, "run_id"), ended.completed, text(ended.reason, "reason")
            )
        case _:
            raise DecodeError("a message of the coordinator is empty or of an unknown kind")


def _encode_opened(message: RoundOpened) -> pb.RoundOpened:
    return pb.RoundOpened(
        round=encode_round_id(message.round),
        task_id=message.task_id,
        task=encode_task(message.task),
        open_message=message.open_message,
        plain=None if message.plain is None else _encode_plain(message.plain),
    )


def _decode_opened(message: pb.RoundOpened) -> RoundOpened:
    plain = _decode_plain(message.plain) if message.HasField("plain") else None
    if (plain is None) == (not message.open_message):
        raise DecodeError("an opened round must have either an open_message or a plain plan")
    return RoundOpened(
        decode_round_id(message.round),
        text(message.task_id, "task_id", smallest=1, largest=MAX_ID_BYTES),
        decode_task(message.task),
        blob(message.open_message, "open_message", largest=MAX_LAYOUT_BYTES),
        plain,
    )


# --- site to coordinator ----------------------------------------------------------


def encode_to_coordinator(message: ToCoordinator) -> bytes:
    """For the site's Join stream."""
    return dump(_to_coordinator(message))


def _to_coordinator(message: ToCoordinator) -> pb.SiteMessage:
    match message:
        case Hello():
            return pb.SiteMessage(
                hello=pb.Hello(
                    version=message.version,
                    roster_hash=message.roster_hash,
                    instance=message.instance,
                )
            )
        case ProtocolMessage():
            return pb.SiteMessage(protocol=_encode_protocol(message))
        case Decline():
            return pb.SiteMessage(
                decline=pb.Decline(
                    round=encode_round_id(message.round), code=message.code, reason=message.reason
                )
            )
        case Progress():
            return pb.SiteMessage(
                progress=pb.Progress(
                    round=encode_round_id(message.round), fraction=message.fraction
                )
            )
        case Goodbye():
            return pb.SiteMessage(goodbye=pb.Goodbye())
        case _:
            assert_never(message)


def decode_to_coordinator(data: bytes) -> ToCoordinator:
    """What a site said.

    Raises:
        DecodeError: a field is missing or out of bounds.
    """
    message = parse(pb.SiteMessage, data)
    match message.WhichOneof("message"):
        case "hello":
            return Hello(
                text(message.hello.version, "version", largest=MAX_ID_BYTES),
                hash_bytes(message.hello.roster_hash, "roster_hash"),
                blob(
                    message.hello.instance,
                    "instance",
                    smallest=INSTANCE_BYTES,
                    largest=INSTANCE_BYTES,
                ),
            )
        case "protocol":
            return _decode_protocol(message.protocol, largest=MAX_PAYLOAD_BYTES)
        case "decline":
            decline = message.decline
            return Decline(
                decode_round_id(decline.round),
                printable(decline.code, "code"),
                text(decline.reason, "reason", largest=MAX_DECLINE_BYTES),
            )
        case "progress":
            fraction = finite(message.progress.fraction, "fraction")
            if not 0.0 <= fraction <= 1.0:
                raise DecodeError(f"fraction must be 0 to 1, got {fraction}")
            return Progress(decode_round_id(message.progress.round), fraction)
        case "goodbye":
            return Goodbye()
        case _:
            raise DecodeError("a site's message is empty or of an unknown kind")
