"""Messages on the wire: what is encoded comes back, and anything else is refused."""

from __future__ import annotations

import math
import tracemalloc
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf.message import DecodeError as ProtobufError
from hypothesis import given
from hypothesis import strategies as st

from veilsum.control import (
    Deadlines,
    Decline,
    Goodbye,
    Hello,
    OptimizerSpec,
    PlainPlan,
    Progress,
    ProtocolMessage,
    RoundClosed,
    RoundId,
    RoundOpened,
    RoundRecord,
    RunClosed,
    RunEvent,
    RunSpec,
    RunStatus,
    SiteDropped,
    TaskSettings,
    UpdateHeader,
    Welcome,
)
from veilsum.errors import DecodeError
from veilsum.proto.v1 import federation_pb2 as pb
from veilsum.proto.v1 import operator_pb2
from veilsum.transport import wire, wire_data, wire_runs, wire_spec

ROUND = RoundId("run-1", 7, 2)
TASK = TaskSettings(epochs=3, batch_size=16, learning_rate=0.25, proximal=0.5, seed=2**62)
PLAN = PlainPlan(
    layout=b"VLL1....",
    codec="ring16",
    weight_cap=1000,
    chunk_coordinates=65_536,
    metrics=("auc", "loss"),
    model_hash=b"m" * 32,
    clip=0.5,
    compression="zstd",
    error_feedback=True,
    digest=b"d" * 32,
)
TO_SITE = [
    Welcome("lungs", b"r" * 32),
    Welcome("lungs", b"r" * 32, ROUND),
    RoundOpened(ROUND, "nodules", TASK, b"signed", None),
    RoundOpened(ROUND, "nodules", TASK, b"", PLAN),
    ProtocolMessage(ROUND, b"payload"),
    RoundClosed(ROUND, True, "", "ab" * 32),
    RoundClosed(ROUND, False, "3 of 12 sites sent keys", ""),
    SiteDropped(ROUND, "too late"),
    RunClosed("run-1", False, "stopped"),
]
TO_COORDINATOR = [
    Hello("0.1.0", b"r" * 32, b"i" * 16),
    Goodbye(),
    ProtocolMessage(ROUND, b"payload"),
    Decline(ROUND, "policy", "min_sites is 3, this site demands 5"),
    Progress(ROUND, 0.5),
]
HEADERS = [
    UpdateHeader(ROUND, 2**64 - 1, 9, 120, {"auc": 0.75}, b""),
    UpdateHeader(ROUND, 0, 1, 0, {}, b"signed header"),
]
SPEC = RunSpec(
    task_id="nodules",
    rounds=5,
    cohort=("a", "b", "c"),
    colluders=0,
    share_profile="available",
    mask_generator="aes256ctr",
    hadamard=4096,
    overrange="clip",
    metrics=("auc",),
    task=TASK,
    max_attempts=4,
    deadlines=Deadlines(1, 2, 3, 4, 5, 6, 7),
    server_optimizer=OptimizerSpec("fedadam", beta1=0.0, tau=1e-4, state_file="s.safetensors"),
    quorum=4,
    min_weight=2**40,
    select=5,
    over_select=0.3,
)
RECORD = RoundRecord(
    round=ROUND,
    completed=True,
    reason="",
    digest="cd" * 32,
    model_hash="ef" * 32,
    sites=("a", "b"),
    dropped={"c": "declined"},
    total_weight=2**40,
    metrics={"auc": 0.8},
    bytes_in={"a": 10, "b": 11},
    seconds={"keys": 0.25},
    refusals={"c": b"signed"},
    late=("b",),
)
STATUS = RunStatus("run-1", SPEC, "running", "", 2, "inputs", ("c",), (RECORD,))
EVENT = RunEvent(
    "run-1", "round", 7, "", "", "completed", 2, 3, 21, 1.5, 0.0, "cd" * 32, {"auc": 0.8}
)


# --- what is encoded comes back -------------------------------------------------------


@pytest.mark.parametrize("message", TO_SITE, ids=lambda message: type(message).__name__)
def test_a_message_to_a_site_comes_back_whole(message: object) -> None:
    assert wire.decode_to_site(wire.encode_to_site(message)) == message


@pytest.mark.parametrize("message", TO_COORDINATOR, ids=lambda message: type(message).__name__)
def test_a_message_to_the_coordinator_comes_back_whole(message: object) -> None:
    assert wire.decode_to_coordinator(wire.encode_to_coordinator(message)) == message


@pytest.mark.parametrize("header", HEADERS)
def test_an_update_header_comes_back_with_the_chunk_it_goes_on_at(header: UpdateHeader) -> None:
    frame = wire_data.encode_update_header(header, 1)
    assert wire_data.decode_update_header(frame) == (header, 1)


def test_requests_and_receipts_come_back_whole() -> None:
    assert wire_data.decode_status_request(wire_data.encode_status_request(ROUND, 2**63)) == (
        ROUND,
        2**63,
    )
    assert wire_data.decode_receipt(wire_data.encode_receipt(5, True)) == (5, True)
    for encode, decode in (
        (wire_data.encode_model_request, wire_data.decode_model_request),
        (wire_data.encode_fetch_request, wire_data.decode_fetch_request),
    ):
        assert decode(encode(ROUND)) == (ROUND, 0)
        assert decode(encode(ROUND, 2**40)) == (ROUND, 2**40)
        with pytest.raises(DecodeError, match="offset"):
            decode(encode(ROUND, 2**45))
    assert wire_data.decode_data_piece(wire_data.encode_data_piece([b"ab", b"c"])) == b"abc"
    header = wire_data.encode_model_header(b"layout", 2**40, b"h" * 32)
    assert wire_data.decode_model_header(header) == (b"layout", 2**40, b"h" * 32)
    assert wire_data.decode_model_data(wire_data.encode_model_data([b"ab", b"", b"c"])) == b"abc"


def test_runs_records_and_events_come_back_whole() -> None:
    assert wire_runs.run_from_bytes(wire_runs.run_to_bytes(STATUS)) == STATUS
    bare = wire_runs.run_to_bytes(STATUS, with_rounds=False)
    assert wire_runs.run_from_bytes(bare) == replace(STATUS, rounds=())
    assert wire_runs.record_from_bytes(wire_runs.record_to_bytes(RECORD)) == RECORD
    assert wire_runs.event_from_bytes(wire_runs.event_to_bytes(EVENT)) == EVENT
    runs = wire_runs.decode_runs(wire_runs.encode_runs([STATUS]))
    assert runs == (replace(STATUS, rounds=()),)


def test_operator_requests_come_back_whole() -> None:
    for submission in (
        wire_runs.Submission(SPEC, b"model", None),
        wire_runs.Submission(replace(SPEC, colluders=None), None, "start.safetensors"),
    ):
        data = wire_runs.encode_submission(submission)
        assert wire_runs.decode_submission(data) == submission
    assert wire_runs.decode_run_request(wire_runs.encode_run_request("run-1")) == "run-1"
    assert wire_runs.decode_abort(wire_runs.encode_abort("run-1", "why")) == ("run-1", "why")


# --- chunks: taken apart by hand, so held against protobuf ---------------------------


@given(st.lists(st.binary(min_size=64, max_size=400), min_size=1, max_size=20))
def test_a_frame_of_chunks_is_what_protobuf_would_make(chunks: list[bytes]) -> None:
    frame = wire_data.encode_update_chunks(chunks)
    assert frame == pb.UpdateFrame(chunks=pb.UpdateChunks(chunk=chunks)).SerializeToString()
    assert [bytes(chunk) for chunk in wire_data.decode_update_chunks(frame)] == chunks


@pytest.mark.parametrize("size", [127, 128, 16_383, 16_384, 2_097_151, 2_097_152])
def test_lengths_around_the_steps_of_their_encoding_are_right(size: int) -> None:
    chunk = bytes(size)
    frame = wire_data.encode_update_chunks([chunk, bytes(64)])
    both = pb.UpdateFrame(chunks=pb.UpdateChunks(chunk=[chunk, bytes(64)]))
    assert frame == both.SerializeToString()
    assert [len(part) for part in wire_data.decode_update_chunks(frame)] == [size, 64]


def test_the_chunks_of_a_frame_are_views_and_not_copies() -> None:
    frame = wire_data.encode_update_chunks([b"one" * 30, b"two" * 30])
    for chunk in wire_data.decode_update_chunks(frame):
        assert chunk.obj is frame
        assert chunk.readonly


@given(st.binary(max_size=200) | st.binary(max_size=200).map(lambda tail: b"\x12" + tail))
def test_any_bytes_are_the_chunks_that_protobuf_sees_or_refused(frame: bytes) -> None:
    try:
        chunks = wire_data.decode_update_chunks(frame)
    except DecodeError:
        return
    assert pb.UpdateFrame.FromString(frame).chunks.chunk == [bytes(chunk) for chunk in chunks]


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (b"", "consists of frames of chunks"),
        (wire_data.encode_update_header(HEADERS[0], 0), "consists of frames of chunks"),
        (b"\x12\x00", "is empty"),
        (b"\x12\x05\x0a\x01x", "announces 5 bytes and holds 3"),
        (b"\x12\x03\x0a\x05x", "announces 5 bytes, 1 are left"),
        (b"\x12\x03\x12\x01x", "unknown field at byte 2"),
        (b"\x12\xff\xff\xff\xff\xff\x01", "cut off or too long"),
        (b"\x12\x80", "cut off or too long"),
        (wire_data.encode_update_chunks([bytes(64), bytes(63)]), "63 bytes, its header alone has"),
    ],
)
def test_a_broken_frame_says_what_is_wrong_with_it(frame: bytes, message: str) -> None:
    with pytest.raises(DecodeError, match=message):
        wire_data.decode_update_chunks(frame)


def test_a_frame_of_chunks_costs_no_more_than_its_bytes() -> None:
    """Two bytes of a frame are a chunk of nothing, and what is made of it takes a hundred."""
    for size in (0, 1, 63, 64):
        chunk = b"\x0a" + bytes((size,)) + bytes(size)
        chunks = chunk * ((1 << 20) // len(chunk))
        length = bytes(len(chunks) >> 7 * i & 0x7F | 0x80 * (i < 2) for i in range(3))
        tracemalloc.start()
        with suppress(DecodeError):
            wire_data.decode_update_chunks(b"\x12" + length + chunks)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 5 << 20, size  # the frame and, of the largest, 16 thousand views


# --- pieces of models and data: the same ---------------------------------------------


@given(st.lists(st.binary(max_size=300), max_size=5).filter(any))
def test_pieces_are_what_protobuf_would_make(parts: list[bytes]) -> None:
    data = b"".join(parts)

    piece = wire_data.encode_model_data(parts)
    assert piece == pb.ModelPiece(data=data).SerializeToString()
    assert wire_data.decode_model_data(piece) == data
    piece = wire_data.encode_data_piece(parts)
    assert piece == pb.DataPiece(data=data).SerializeToString()
    assert wire_data.decode_data_piece(piece) == data


def _overlong(value: int, more: int) -> bytes:
    """A length as protobuf may read it, in more bytes than it needs."""
    encoded = bytearray()
    while value > 0x7F or more:
        more -= value <= 0x7F
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(encoded) + bytes((value,))


_FIELDS = st.lists(
    st.builds(
        lambda key, data, more: bytes((key,)) + _overlong(len(data), more) + data,
        st.sampled_from([0x0A, 0x12, 0x12, 0x1A, 0x7A]),
        st.binary(max_size=150),
        st.sampled_from([0, 0, 0, 1, 4, 5]),
    ),
    min_size=1,
    max_size=3,
).map(b"".join)


@given(
    _FIELDS
    | st.tuples(_FIELDS, st.binary(max_size=5)).map(b"".join)
    | st.binary(max_size=200)
    | st.binary(max_size=200).map(lambda tail: b"\x12" + tail)
)
def test_a_piece_is_what_protobuf_sees_or_refused(piece: bytes) -> None:
    def of_model(piece: bytes) -> bytes | None:
        message = pb.ModelPiece.FromString(piece)
        return message.data if message.WhichOneof("piece") == "data" else None

    def of_data(piece: bytes) -> bytes | None:
        return pb.DataPiece.FromString(piece).data or None

    for seen, decode in (
        (of_model, wire_data.decode_model_data),
        (of_data, wire_data.decode_data_piece),
    ):
        try:
            expected = seen(piece)
        except ProtobufError:
            expected = None
        if expected is None:
            with pytest.raises(DecodeError):
                decode(piece)
        else:
            assert decode(piece) == expected


def test_a_piece_with_fields_of_a_later_version_is_taken() -> None:
    later = b"\x7a\x01x"  # field 15
    model = wire_data.encode_model_data([b"abc"])
    data = wire_data.encode_data_piece([b"abc"])
    for piece in (model + later, later + model):
        assert wire_data.decode_model_data(piece) == b"abc"
    for piece in (data + later, later + data):
        assert wire_data.decode_data_piece(piece) == b"abc"


def test_the_data_of_a_model_is_a_view_and_not_a_copy() -> None:
    piece = wire_data.encode_model_data([bytes(1 << 20)])
    tracemalloc.start()
    data = wire_data.decode_model_data(piece)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert data.obj is piece
    assert data.readonly
    assert peak < 4096


# --- anything else is refused ---------------------------------------------------------


@given(st.binary(max_size=120))
def test_any_bytes_decode_or_are_refused(data: bytes) -> None:
    for decode in (
        wire.decode_to_site,
        wire.decode_to_coordinator,
        wire_data.decode_update_header,
        wire_data.decode_status_request,
        wire_data.decode_receipt,
        wire_data.decode_model_request,
        wire_data.decode_fetch_request,
        wire_data.decode_data_piece,
        wire_data.decode_model_header,
        wire_data.decode_model_data,
        wire_runs.decode_submission,
        wire_runs.decode_run_request,
        wire_runs.decode_abort,
        wire_runs.decode_runs,
        wire_runs.run_from_bytes,
        wire_runs.record_from_bytes,
        wire_runs.event_from_bytes,
    ):
        try:
            decode(data)
        except DecodeError:
            continue


def _round(**change: object) -> pb.RoundId:
    return pb.RoundId(**{"run_id": "r", "number": 1, "attempt": 0, **change})


def _task(**change: object) -> pb.TaskSettings:
    settings = {"epochs": 1, "batch_size": 1, "learning_rate": 0.1}
    return pb.TaskSettings(**{**settings, **change})


SITE_MESSAGES = {
    "empty": (pb.SiteMessage(), "empty or of an unknown kind"),
    "short roster hash": (
        pb.SiteMessage(hello=pb.Hello(version="1", roster_hash=b"x" * 31)),
        "roster_hash must be 32 to 32 bytes, got 31",
    ),
    "endless version": (
        pb.SiteMessage(hello=pb.Hello(version="v" * 65, roster_hash=b"x" * 32)),
        "version must be 0 to 64 bytes",
    ),
    "no instance": (
        pb.SiteMessage(hello=pb.Hello(version="1", roster_hash=b"x" * 32)),
        "instance must be 16 to 16 bytes, got 0",
    ),
    "long instance": (
        pb.SiteMessage(hello=pb.Hello(roster_hash=b"x" * 32, instance=b"i" * 17)),
        "instance must be 16 to 16 bytes, got 17",
    ),
    "no round": (pb.SiteMessage(protocol=pb.ProtocolMessage(payload=b"x")), "run_id"),
    "round zero": (
        pb.SiteMessage(protocol=pb.ProtocolMessage(round=_round(number=0), payload=b"x")),
        "number must be 1",
    ),
    "unprintable run": (
        pb.SiteMessage(progress=pb.Progress(round=_round(run_id="a\nb"), fraction=0)),
        "run_id must be printable",
    ),
    "no payload": (
        pb.SiteMessage(protocol=pb.ProtocolMessage(round=_round())),
        "payload must be 1",
    ),
    "huge payload": (
        pb.SiteMessage(protocol=pb.ProtocolMessage(round=_round(), payload=bytes((2 << 20) + 1))),
        "payload must be 1 to 2097152",
    ),
    "progress that is no number": (
        pb.SiteMessage(progress=pb.Progress(round=_round(), fraction=math.nan)),
        "fraction must be finite",
    ),
    "progress beyond the end": (
        pb.SiteMessage(progress=pb.Progress(round=_round(), fraction=1.5)),
        "fraction must be 0 to 1",
    ),
    "endless reason": (
        pb.SiteMessage(decline=pb.Decline(round=_round(), code="x", reason="r" * 2049)),
        "reason must be 0 to 2048",
    ),
    "no code": (pb.SiteMessage(decline=pb.Decline(round=_round(), reason="r")), "code"),
}


@pytest.mark.parametrize("case", SITE_MESSAGES)
def test_a_site_that_breaks_the_format_is_told_how(case: str) -> None:
    message, reason = SITE_MESSAGES[case]
    with pytest.raises(DecodeError, match=reason):
        wire.decode_to_coordinator(message.SerializeToString())


def _opened(**change: object) -> pb.CoordinatorMessage:
    fields = {"round": _round(), "task_id": "t", "task": _task(), "open_message": b"x", **change}
    return pb.CoordinatorMessage(round_opened=pb.RoundOpened(**fields))


COORDINATOR_MESSAGES = {
    "empty": (pb.CoordinatorMessage(), "empty or of an unknown kind"),
    "neither plan": (_opened(open_message=b""), "either an open_message or a plain plan"),
    "both plans": (_opened(plain=pb.PlainPlan()), "layout must be 1"),
    "no task": (_opened(task=None), "epochs must be 1"),
    "learning rate without number": (
        _opened(task=_task(learning_rate=math.nan)),
        "learning_rate must be positive",
    ),
    "no consortium": (
        pb.CoordinatorMessage(welcome=pb.Welcome(roster_hash=b"x" * 32)),
        "consortium must be 1",
    ),
    "welcome to a round without a number": (
        pb.CoordinatorMessage(
            welcome=pb.Welcome(consortium="c", roster_hash=b"x" * 32, round=_round(number=0))
        ),
        "number must be 1",
    ),
}


@pytest.mark.parametrize("case", COORDINATOR_MESSAGES)
def test_a_coordinator_that_breaks_the_format_is_told_how(case: str) -> None:
    message, reason = COORDINATOR_MESSAGES[case]
    with pytest.raises(DecodeError, match=reason):
        wire.decode_to_site(message.SerializeToString())


def test_a_round_is_masked_or_plain_but_not_both() -> None:
    data = wire.encode_to_site(RoundOpened(ROUND, "t", TASK, b"signed", PLAN))
    with pytest.raises(DecodeError, match="either an open_message or a plain plan"):
        wire.decode_to_site(data)


def _header(**change: object) -> bytes:
    fields = {"round": _round(), "chunk_count": 4, "weight": 3, **change}
    return pb.UpdateFrame(header=pb.UpdateHeader(**fields)).SerializeToString()


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pb.UpdateFrame().SerializeToString(), "must begin with its header"),
        (wire_data.encode_update_chunks([b"x"]), "must begin with its header"),
        (_header(chunk_count=0), "chunk_count must be 1"),
        (_header(chunk_count=2**25), "chunk_count must be 1"),
        (_header(first_chunk=5), "first_chunk must be 0 to 4"),
        (_header(weight=2**31), "weight must be 0"),
        (_header(metrics={"auc": math.inf}), "metrics must be finite"),
        (_header(metrics={str(i): 0.0 for i in range(17)}), "number of metrics"),
        (_header(masked_header=b"x"), "must not show its weight"),
        (_header(weight=0, masked_header=b"x", metrics={"a": 1.0}), "must not show its weight"),
    ],
)
def test_an_upload_with_a_wrong_header_is_refused(frame: bytes, message: str) -> None:
    with pytest.raises(DecodeError, match=message):
        wire_data.decode_update_header(frame)


def _optimizer(**change: object) -> bytes:
    spec = wire_spec.encode_spec(SPEC)
    for name, value in change.items():
        setattr(spec.server_optimizer, name, value)
    request = operator_pb2.SubmitRunRequest(spec=spec, model_file="m.safetensors")
    return request.SerializeToString()


def test_a_run_of_a_coordinator_that_knew_no_optimizers_is_one_of_fedavg() -> None:
    decoded = wire_runs.decode_submission(_spec(server_optimizer=None))

    assert decoded.spec.server_optimizer == OptimizerSpec()


def _spec(**change: object) -> bytes:
    spec = wire_spec.encode_spec(SPEC)
    for name, value in change.items():
        if value is None:
            spec.ClearField(name)
        elif isinstance(value, list):
            getattr(spec, name).extend(value)
        else:
            setattr(spec, name, value)
    request = operator_pb2.SubmitRunRequest(spec=spec, model_file="m.safetensors")
    return request.SerializeToString()


@pytest.mark.parametrize(
    ("request_bytes", "message"),
    [
        (_spec(task=None), "has no task"),
        (_spec(deadlines=None), "has no deadlines"),
        (_spec(rounds=0), "rounds must be 1"),
        (_spec(clip=math.nan), "clip must be finite"),
        (_spec(server_learning_rate=math.inf), "server_learning_rate must be finite"),
        (_optimizer(name="fedavg"), "has no parameter 'beta1'"),
        (_optimizer(name="sgd"), "unknown optimizer 'sgd'"),
        (_optimizer(tau=math.nan), "tau must be finite"),
        (_optimizer(beta2=1.0), "beta2 must be at least 0 and below 1"),
        (_spec(share_profile="lax"), "share_profile must be"),
        (_spec(overrange="wrap"), "overrange must be"),
        (_spec(mask_generator="rc4"), "mask_generator must be 'chacha20' or 'aes256ctr'"),
        (_spec(quorum=2), "quorum must be 0 .for none., or min_sites .3. or more, got 2"),
        (_spec(over_select=math.inf), "over_select must be finite"),
        (_spec(over_select=11.0), "over_select must be 0 to 10, got 11.0"),
        (_spec(late="never"), "late must be 'refuse' or 'next', got 'never'"),
        (_spec(late="next"), "late is for plain runs"),
        (_spec(hadamard=512), "hadamard must be 0, 1024 or 4096, got 512"),
        (_spec(cohort=[f"s{i}" for i in range(4097)]), "number of sites"),
        (_spec(cohort=["a"]), "names a site twice"),
        (operator_pb2.SubmitRunRequest().SerializeToString(), "has no spec"),
        (
            operator_pb2.SubmitRunRequest(spec=wire_spec.encode_spec(SPEC)).SerializeToString(),
            "no initial model",
        ),
    ],
)
def test_a_run_that_cannot_work_is_refused_with_the_setting(
    request_bytes: bytes, message: str
) -> None:
    with pytest.raises(DecodeError, match=message):
        wire_runs.decode_submission(request_bytes)


def test_the_initial_model_stays_out_of_logs() -> None:
    assert "model-bytes" not in repr(wire_runs.Submission(SPEC, b"model-bytes", None))


def test_a_plain_run_keeps_its_compression_and_its_feedback() -> None:
    spec = replace(SPEC, masked=False, hadamard=0, compression="zstd", error_feedback=True)

    assert wire_spec.decode_spec(wire_spec.encode_spec(spec)) == spec


def test_a_plain_run_keeps_what_becomes_of_late_updates() -> None:
    spec = replace(SPEC, masked=False, hadamard=0, overrange="refuse", late="next")

    assert wire_spec.decode_spec(wire_spec.encode_spec(spec)) == spec


def test_runs_that_were_stored_before_there_was_a_turnout_wait_for_everybody() -> None:
    message = wire_spec.encode_spec(SPEC)
    for name in ("quorum", "min_weight", "select", "over_select", "late"):
        message.ClearField(name)

    spec = wire_spec.decode_spec(message)
    assert spec == replace(SPEC, quorum=0, min_weight=0, select=0, over_select=0.0)
    assert (spec.turnout.closes_at, spec.turnout.invites, spec.late) == (0, 0, "refuse")


def test_runs_that_were_stored_before_there_was_compression_have_none() -> None:
    message = wire_spec.encode_spec(SPEC)
    message.ClearField("compression")

    assert wire_spec.decode_spec(message) == SPEC
    message.compression = "lz4"
    with pytest.raises(DecodeError, match="compression must be 'none' or 'zstd', got 'lz4'"):
        wire_spec.decode_spec(message)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("compression", "zstd", "which a masked round must not show"),
        ("error_feedback", True, "error_feedback is for plain runs"),
    ],
)
def test_a_masked_run_has_neither(field: str, value: Any, reason: str) -> None:
    message = wire_spec.encode_spec(replace(SPEC, masked=True))
    setattr(message, field, value)

    with pytest.raises(DecodeError, match=reason):
        wire_spec.decode_spec(message)
