from veilsum.proto.v1 import federation_pb2 as _federation_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RunSpec(_message.Message):
    __slots__ = ("task_id", "rounds", "masked", "codec", "cohort", "min_sites", "colluders", "share_profile", "value_bits", "clip", "overrange", "weight_cap", "metrics", "server_learning_rate", "task", "deadlines", "server_optimizer", "mask_generator", "compression", "error_feedback", "hadamard", "max_attempts", "quorum", "min_weight", "select", "over_select", "late", "buffer_size", "max_staleness")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    MASKED_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    COHORT_FIELD_NUMBER: _ClassVar[int]
    MIN_SITES_FIELD_NUMBER: _ClassVar[int]
    COLLUDERS_FIELD_NUMBER: _ClassVar[int]
    SHARE_PROFILE_FIELD_NUMBER: _ClassVar[int]
    VALUE_BITS_FIELD_NUMBER: _ClassVar[int]
    CLIP_FIELD_NUMBER: _ClassVar[int]
    OVERRANGE_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_CAP_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    SERVER_LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    DEADLINES_FIELD_NUMBER: _ClassVar[int]
    SERVER_OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    MASK_GENERATOR_FIELD_NUMBER: _ClassVar[int]
    COMPRESSION_FIELD_NUMBER: _ClassVar[int]
    ERROR_FEEDBACK_FIELD_NUMBER: _ClassVar[int]
    HADAMARD_FIELD_NUMBER: _ClassVar[int]
    MAX_ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    QUORUM_FIELD_NUMBER: _ClassVar[int]
    MIN_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    SELECT_FIELD_NUMBER: _ClassVar[int]
    OVER_SELECT_FIELD_NUMBER: _ClassVar[int]
    LATE_FIELD_NUMBER: _ClassVar[int]
    BUFFER_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_STALENESS_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    rounds: int
    masked: bool
    codec: str
    cohort: _containers.RepeatedScalarFieldContainer[str]
    min_sites: int
    colluders: int
    share_profile: str
    value_bits: int
    clip: float
    overrange: str
    weight_cap: int
    metrics: _containers.RepeatedScalarFieldContainer[str]
    server_learning_rate: float
    task: _federation_pb2.TaskSettings
    deadlines: Deadlines
    server_optimizer: ServerOptimizer
    mask_generator: str
    compression: str
    error_feedback: bool
    hadamard: int
    max_attempts: int
    quorum: int
    min_weight: int
    select: int
    over_select: float
    late: str
    buffer_size: int
    max_staleness: int
    def __init__(self, task_id: _Optional[str] = ..., rounds: _Optional[int] = ..., masked: bool = ..., codec: _Optional[str] = ..., cohort: _Optional[_Iterable[str]] = ..., min_sites: _Optional[int] = ..., colluders: _Optional[int] = ..., share_profile: _Optional[str] = ..., value_bits: _Optional[int] = ..., clip: _Optional[float] = ..., overrange: _Optional[str] = ..., weight_cap: _Optional[int] = ..., metrics: _Optional[_Iterable[str]] = ..., server_learning_rate: _Optional[float] = ..., task: _Optional[_Union[_federation_pb2.TaskSettings, _Mapping]] = ..., deadlines: _Optional[_Union[Deadlines, _Mapping]] = ..., server_optimizer: _Optional[_Union[ServerOptimizer, _Mapping]] = ..., mask_generator: _Optional[str] = ..., compression: _Optional[str] = ..., error_feedback: bool = ..., hadamard: _Optional[int] = ..., max_attempts: _Optional[int] = ..., quorum: _Optional[int] = ..., min_weight: _Optional[int] = ..., select: _Optional[int] = ..., over_select: _Optional[float] = ..., late: _Optional[str] = ..., buffer_size: _Optional[int] = ..., max_staleness: _Optional[int] = ...) -> None: ...

class ServerOptimizer(_message.Message):
    __slots__ = ("name", "momentum", "beta1", "beta2", "tau", "state_file")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MOMENTUM_FIELD_NUMBER: _ClassVar[int]
    BETA1_FIELD_NUMBER: _ClassVar[int]
    BETA2_FIELD_NUMBER: _ClassVar[int]
    TAU_FIELD_NUMBER: _ClassVar[int]
    STATE_FILE_FIELD_NUMBER: _ClassVar[int]
    name: str
    momentum: float
    beta1: float
    beta2: float
    tau: float
    state_file: str
    def __init__(self, name: _Optional[str] = ..., momentum: _Optional[float] = ..., beta1: _Optional[float] = ..., beta2: _Optional[float] = ..., tau: _Optional[float] = ..., state_file: _Optional[str] = ...) -> None: ...

class Deadlines(_message.Message):
    __slots__ = ("join_s", "keys_s", "shares_s", "inputs_s", "votes_s", "unmask_s", "acks_s", "cooldown_s")
    JOIN_S_FIELD_NUMBER: _ClassVar[int]
    KEYS_S_FIELD_NUMBER: _ClassVar[int]
    SHARES_S_FIELD_NUMBER: _ClassVar[int]
    INPUTS_S_FIELD_NUMBER: _ClassVar[int]
    VOTES_S_FIELD_NUMBER: _ClassVar[int]
    UNMASK_S_FIELD_NUMBER: _ClassVar[int]
    ACKS_S_FIELD_NUMBER: _ClassVar[int]
    COOLDOWN_S_FIELD_NUMBER: _ClassVar[int]
    join_s: float
    keys_s: float
    shares_s: float
    inputs_s: float
    votes_s: float
    unmask_s: float
    acks_s: float
    cooldown_s: float
    def __init__(self, join_s: _Optional[float] = ..., keys_s: _Optional[float] = ..., shares_s: _Optional[float] = ..., inputs_s: _Optional[float] = ..., votes_s: _Optional[float] = ..., unmask_s: _Optional[float] = ..., acks_s: _Optional[float] = ..., cooldown_s: _Optional[float] = ...) -> None: ...

class SubmitRunRequest(_message.Message):
    __slots__ = ("spec", "safetensors", "model_file")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    SAFETENSORS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FILE_FIELD_NUMBER: _ClassVar[int]
    spec: RunSpec
    safetensors: bytes
    model_file: str
    def __init__(self, spec: _Optional[_Union[RunSpec, _Mapping]] = ..., safetensors: _Optional[bytes] = ..., model_file: _Optional[str] = ...) -> None: ...

class GetRunRequest(_message.Message):
    __slots__ = ("run_id",)
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    def __init__(self, run_id: _Optional[str] = ...) -> None: ...

class WatchRunRequest(_message.Message):
    __slots__ = ("run_id", "after")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    after: int
    def __init__(self, run_id: _Optional[str] = ..., after: _Optional[int] = ...) -> None: ...

class ListRunsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListRunsResponse(_message.Message):
    __slots__ = ("runs",)
    RUNS_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedCompositeFieldContainer[Run]
    def __init__(self, runs: _Optional[_Iterable[_Union[Run, _Mapping]]] = ...) -> None: ...

class AbortRunRequest(_message.Message):
    __slots__ = ("run_id", "reason")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    reason: str
    def __init__(self, run_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class PruneRunsRequest(_message.Message):
    __slots__ = ("older_than_s", "keep", "proofs", "dry_run")
    OLDER_THAN_S_FIELD_NUMBER: _ClassVar[int]
    KEEP_FIELD_NUMBER: _ClassVar[int]
    PROOFS_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    older_than_s: float
    keep: int
    proofs: bool
    dry_run: bool
    def __init__(self, older_than_s: _Optional[float] = ..., keep: _Optional[int] = ..., proofs: bool = ..., dry_run: bool = ...) -> None: ...

class PruneRunsResponse(_message.Message):
    __slots__ = ("runs",)
    RUNS_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedCompositeFieldContainer[PrunedRun]
    def __init__(self, runs: _Optional[_Iterable[_Union[PrunedRun, _Mapping]]] = ...) -> None: ...

class PrunedRun(_message.Message):
    __slots__ = ("run_id", "state", "bytes")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    state: str
    bytes: int
    def __init__(self, run_id: _Optional[str] = ..., state: _Optional[str] = ..., bytes: _Optional[int] = ...) -> None: ...

class Run(_message.Message):
    __slots__ = ("run_id", "spec", "state", "reason", "current_round", "phase", "sites_waiting", "rounds")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CURRENT_ROUND_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    SITES_WAITING_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    spec: RunSpec
    state: str
    reason: str
    current_round: int
    phase: str
    sites_waiting: _containers.RepeatedScalarFieldContainer[str]
    rounds: _containers.RepeatedCompositeFieldContainer[RoundRecord]
    def __init__(self, run_id: _Optional[str] = ..., spec: _Optional[_Union[RunSpec, _Mapping]] = ..., state: _Optional[str] = ..., reason: _Optional[str] = ..., current_round: _Optional[int] = ..., phase: _Optional[str] = ..., sites_waiting: _Optional[_Iterable[str]] = ..., rounds: _Optional[_Iterable[_Union[RoundRecord, _Mapping]]] = ...) -> None: ...

class RoundRecord(_message.Message):
    __slots__ = ("round", "completed", "reason", "digest", "model_hash", "sites", "dropped", "total_weight", "metrics", "bytes_in", "seconds", "refusals", "late", "updates")
    class DroppedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class BytesInEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class SecondsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class RefusalsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: bytes
        def __init__(self, key: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...
    ROUND_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    MODEL_HASH_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    TOTAL_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    BYTES_IN_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    REFUSALS_FIELD_NUMBER: _ClassVar[int]
    LATE_FIELD_NUMBER: _ClassVar[int]
    UPDATES_FIELD_NUMBER: _ClassVar[int]
    round: _federation_pb2.RoundId
    completed: bool
    reason: str
    digest: str
    model_hash: str
    sites: _containers.RepeatedScalarFieldContainer[str]
    dropped: _containers.ScalarMap[str, str]
    total_weight: int
    metrics: _containers.ScalarMap[str, float]
    bytes_in: _containers.ScalarMap[str, int]
    seconds: _containers.ScalarMap[str, float]
    refusals: _containers.ScalarMap[str, bytes]
    late: _containers.RepeatedScalarFieldContainer[str]
    updates: _containers.RepeatedCompositeFieldContainer[BufferedUpdate]
    def __init__(self, round: _Optional[_Union[_federation_pb2.RoundId, _Mapping]] = ..., completed: bool = ..., reason: _Optional[str] = ..., digest: _Optional[str] = ..., model_hash: _Optional[str] = ..., sites: _Optional[_Iterable[str]] = ..., dropped: _Optional[_Mapping[str, str]] = ..., total_weight: _Optional[int] = ..., metrics: _Optional[_Mapping[str, float]] = ..., bytes_in: _Optional[_Mapping[str, int]] = ..., seconds: _Optional[_Mapping[str, float]] = ..., refusals: _Optional[_Mapping[str, bytes]] = ..., late: _Optional[_Iterable[str]] = ..., updates: _Optional[_Iterable[_Union[BufferedUpdate, _Mapping]]] = ...) -> None: ...

class BufferedUpdate(_message.Message):
    __slots__ = ("site", "version", "staleness", "weight", "counted")
    SITE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STALENESS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    COUNTED_FIELD_NUMBER: _ClassVar[int]
    site: str
    version: int
    staleness: int
    weight: int
    counted: int
    def __init__(self, site: _Optional[str] = ..., version: _Optional[int] = ..., staleness: _Optional[int] = ..., weight: _Optional[int] = ..., counted: _Optional[int] = ...) -> None: ...

class RunEvent(_message.Message):
    __slots__ = ("run_id", "kind", "round_number", "phase", "site", "detail", "sites_in", "sites_expected", "bytes_in", "seconds", "fraction", "digest", "metrics", "number")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    ROUND_NUMBER_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    SITES_IN_FIELD_NUMBER: _ClassVar[int]
    SITES_EXPECTED_FIELD_NUMBER: _ClassVar[int]
    BYTES_IN_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    FRACTION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    kind: str
    round_number: int
    phase: str
    site: str
    detail: str
    sites_in: int
    sites_expected: int
    bytes_in: int
    seconds: float
    fraction: float
    digest: str
    metrics: _containers.ScalarMap[str, float]
    number: int
    def __init__(self, run_id: _Optional[str] = ..., kind: _Optional[str] = ..., round_number: _Optional[int] = ..., phase: _Optional[str] = ..., site: _Optional[str] = ..., detail: _Optional[str] = ..., sites_in: _Optional[int] = ..., sites_expected: _Optional[int] = ..., bytes_in: _Optional[int] = ..., seconds: _Optional[float] = ..., fraction: _Optional[float] = ..., digest: _Optional[str] = ..., metrics: _Optional[_Mapping[str, float]] = ..., number: _Optional[int] = ...) -> None: ...
