from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RoundId(_message.Message):
    __slots__ = ("run_id", "number", "attempt")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    number: int
    attempt: int
    def __init__(self, run_id: _Optional[str] = ..., number: _Optional[int] = ..., attempt: _Optional[int] = ...) -> None: ...

class SiteMessage(_message.Message):
    __slots__ = ("hello", "protocol", "decline", "progress", "goodbye")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    DECLINE_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    GOODBYE_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    protocol: ProtocolMessage
    decline: Decline
    progress: Progress
    goodbye: Goodbye
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., protocol: _Optional[_Union[ProtocolMessage, _Mapping]] = ..., decline: _Optional[_Union[Decline, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., goodbye: _Optional[_Union[Goodbye, _Mapping]] = ...) -> None: ...

class CoordinatorMessage(_message.Message):
    __slots__ = ("welcome", "round_opened", "protocol", "round_closed", "site_dropped", "run_closed")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    ROUND_OPENED_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    ROUND_CLOSED_FIELD_NUMBER: _ClassVar[int]
    SITE_DROPPED_FIELD_NUMBER: _ClassVar[int]
    RUN_CLOSED_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    round_opened: RoundOpened
    protocol: ProtocolMessage
    round_closed: RoundClosed
    site_dropped: SiteDropped
    run_closed: RunClosed
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., round_opened: _Optional[_Union[RoundOpened, _Mapping]] = ..., protocol: _Optional[_Union[ProtocolMessage, _Mapping]] = ..., round_closed: _Optional[_Union[RoundClosed, _Mapping]] = ..., site_dropped: _Optional[_Union[SiteDropped, _Mapping]] = ..., run_closed: _Optional[_Union[RunClosed, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("version", "roster_hash", "instance")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ROSTER_HASH_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    version: str
    roster_hash: bytes
    instance: bytes
    def __init__(self, version: _Optional[str] = ..., roster_hash: _Optional[bytes] = ..., instance: _Optional[bytes] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("consortium", "roster_hash", "round")
    CONSORTIUM_FIELD_NUMBER: _ClassVar[int]
    ROSTER_HASH_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    consortium: str
    roster_hash: bytes
    round: RoundId
    def __init__(self, consortium: _Optional[str] = ..., roster_hash: _Optional[bytes] = ..., round: _Optional[_Union[RoundId, _Mapping]] = ...) -> None: ...

class ProtocolMessage(_message.Message):
    __slots__ = ("round", "payload")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    round: RoundId
    payload: bytes
    def __init__(self, round: _Optional[_Union[RoundId, _Mapping]] = ..., payload: _Optional[bytes] = ...) -> None: ...

class TaskSettings(_message.Message):
    __slots__ = ("epochs", "batch_size", "learning_rate", "proximal", "seed")
    EPOCHS_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    PROXIMAL_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    epochs: int
    batch_size: int
    learning_rate: float
    proximal: float
    seed: int
    def __init__(self, epochs: _Optional[int] = ..., batch_size: _Optional[int] = ..., learning_rate: _Optional[float] = ..., proximal: _Optional[float] = ..., seed: _Optional[int] = ...) -> None: ...

class RoundOpened(_message.Message):
    __slots__ = ("round", "task_id", "task", "open_message", "plain")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    OPEN_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    PLAIN_FIELD_NUMBER: _ClassVar[int]
    round: RoundId
    task_id: str
    task: TaskSettings
    open_message: bytes
    plain: PlainPlan
    def __init__(self, round: _Optional[_Union[RoundId, _Mapping]] = ..., task_id: _Optional[str] = ..., task: _Optional[_Union[TaskSettings, _Mapping]] = ..., open_message: _Optional[bytes] = ..., plain: _Optional[_Union[PlainPlan, _Mapping]] = ...) -> None: ...

class PlainPlan(_message.Message):
    __slots__ = ("layout", "codec", "weight_cap", "chunk_coordinates", "metrics", "model_hash", "clip", "digest", "compression", "error_feedback")
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_CAP_FIELD_NUMBER: _ClassVar[int]
    CHUNK_COORDINATES_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    MODEL_HASH_FIELD_NUMBER: _ClassVar[int]
    CLIP_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    COMPRESSION_FIELD_NUMBER: _ClassVar[int]
    ERROR_FEEDBACK_FIELD_NUMBER: _ClassVar[int]
    layout: bytes
    codec: str
    weight_cap: int
    chunk_coordinates: int
    metrics: _containers.RepeatedScalarFieldContainer[str]
    model_hash: bytes
    clip: float
    digest: bytes
    compression: str
    error_feedback: bool
    def __init__(self, layout: _Optional[bytes] = ..., codec: _Optional[str] = ..., weight_cap: _Optional[int] = ..., chunk_coordinates: _Optional[int] = ..., metrics: _Optional[_Iterable[str]] = ..., model_hash: _Optional[bytes] = ..., clip: _Optional[float] = ..., digest: _Optional[bytes] = ..., compression: _Optional[str] = ..., error_feedback: bool = ...) -> None: ...

class RoundClosed(_message.Message):
    __slots__ = ("round", "completed", "reason", "digest")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    round: RoundId
    completed: bool
    reason: str
    digest: str
    def __init__(self, round: _Optional[_Union[RoundId, _Mapping]] = ..., completed: bool = ..., reason: _Optional[str] = ..., digest: _Optional[str] = ...) -> None: ...

class SiteDropped(_message.Message):
    __slots__ = ("round", "reason")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    round: RoundId
    reason: str
    def __init__(self, round: _Optional[_Union[RoundId, _Mapping]] = ..., reason: _Optional[str] = ...) -> None: ...

class RunClosed(_message.Message):
    __slots__ = ("run_id", "completed", "reason")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    completed: bool
    reason: str
    def __init__(self, run_id: _Optional[str] = ..., completed: bool = ..., reason: _Optional[str] = ...) -> None: ...

class Decline(_message.Message):
    __slots__ = ("round", "code", "reason")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    round: RoundId
    code: str
    reason: str
    def __init__(self, round: _Optional[_Union[RoundId, _Mapping]] = ..., code: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("round", "fraction")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    FRACTION_FIELD_NUMBER: _ClassVar[int]
    round: RoundId
    fraction: float
    def __init__(self, round: _Optional[_Union[RoundId, _Mapping]] = ..., fraction: _Optional[float] = ...) -> None: ...

class Goodbye(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FetchModelRequest(_message.Message):
    __slots__ = ("round", "offset")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    round: RoundId
    offset: int
    def __init__(self, round: _Optional[_Union[RoundId, _Mapping]] = ..., offset: _Optional[int] = ...) -> None: ...

class ModelPiece(_message.Message):
    __slots__ = ("header", "data")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    header: ModelHeader
    data: bytes
    def __init__(self, header: _Optional[_Union[ModelHeader, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class ModelHeader(_message.Message):
    __slots__ = ("layout", "size_bytes", "model_hash")
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MODEL_HASH_FIELD_NUMBER: _ClassVar[int]
    layout: bytes
    size_bytes: int
    model_hash: bytes
    def __init__(self, layout: _Optional[bytes] = ..., size_bytes: _Optional[int] = ..., model_hash: _Optional[bytes] = ...) -> None: ...

class FetchRequest(_message.Message):
    __slots__ = ("round", "offset")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    round: RoundId
    offset: int
    def __init__(self, round: _Optional[_Union[RoundId, _Mapping]] = ..., offset: _Optional[int] = ...) -> None: ...

class FetchAuditRequest(_message.Message):
    __slots__ = ("round", "chunks", "offset")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    round: RoundId
    chunks: _containers.RepeatedCompositeFieldContainer[SumChunkId]
    offset: int
    def __init__(self, round: _Optional[_Union[RoundId, _Mapping]] = ..., chunks: _Optional[_Iterable[_Union[SumChunkId, _Mapping]]] = ..., offset: _Optional[int] = ...) -> None: ...

class SumChunkId(_message.Message):
    __slots__ = ("stream", "index")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    stream: int
    index: int
    def __init__(self, stream: _Optional[int] = ..., index: _Optional[int] = ...) -> None: ...

class DataPiece(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class UpdateFrame(_message.Message):
    __slots__ = ("header", "chunks")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    header: UpdateHeader
    chunks: UpdateChunks
    def __init__(self, header: _Optional[_Union[UpdateHeader, _Mapping]] = ..., chunks: _Optional[_Union[UpdateChunks, _Mapping]] = ...) -> None: ...

class UpdateHeader(_message.Message):
    __slots__ = ("round", "update_id", "chunk_count", "weight", "metrics", "masked_header", "first_chunk")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    ROUND_FIELD_NUMBER: _ClassVar[int]
    UPDATE_ID_FIELD_NUMBER: _ClassVar[int]
    CHUNK_COUNT_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    MASKED_HEADER_FIELD_NUMBER: _ClassVar[int]
    FIRST_CHUNK_FIELD_NUMBER: _ClassVar[int]
    round: RoundId
    update_id: int
    chunk_count: int
    weight: int
    metrics: _containers.ScalarMap[str, float]
    masked_header: bytes
    first_chunk: int
    def __init__(self, round: _Optional[_Union[RoundId, _Mapping]] = ..., update_id: _Optional[int] = ..., chunk_count: _Optional[int] = ..., weight: _Optional[int] = ..., metrics: _Optional[_Mapping[str, float]] = ..., masked_header: _Optional[bytes] = ..., first_chunk: _Optional[int] = ...) -> None: ...

class UpdateChunks(_message.Message):
    __slots__ = ("chunk",)
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    chunk: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, chunk: _Optional[_Iterable[bytes]] = ...) -> None: ...

class PushStatusRequest(_message.Message):
    __slots__ = ("round", "update_id")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    UPDATE_ID_FIELD_NUMBER: _ClassVar[int]
    round: RoundId
    update_id: int
    def __init__(self, round: _Optional[_Union[RoundId, _Mapping]] = ..., update_id: _Optional[int] = ...) -> None: ...

class PushReceipt(_message.Message):
    __slots__ = ("next_chunk", "committed")
    NEXT_CHUNK_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    next_chunk: int
    committed: bool
    def __init__(self, next_chunk: _Optional[int] = ..., committed: bool = ...) -> None: ...
