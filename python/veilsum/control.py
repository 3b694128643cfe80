"""What coordinator and sites tell each other around the protocol, and what a run is.

Plain frozen data, shared by both sides. How these travel is transport/wire.py's business;
the messages of secure aggregation itself are opaque bytes here (secagg/).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from veilsum.errors import ConfigError
from veilsum.optimizers import OptimizerSettings, optimizer_settings

Overrange = Literal["refuse", "clip"]
ShareProfile = Literal["strict", "available"]
MaskGenerator = Literal["chacha20", "aes256ctr"]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True, slots=True)
class TaskSettings:
    """How a site trains in one round. A site checks each field against its own bounds.

    Attributes:
        epochs: passes over the site's data.
        batch_size: examples per step.
        learning_rate: of the local optimizer.
        proximal: FedProx coefficient mu (Li et al. 2020); 0 turns it off.
        seed: for the order of the data and the like; never for anything secret. A run's is
            that of its first round, and one more in every round after.
    """

    epochs: int = 1
    batch_size: int = 32
    learning_rate: float = 0.05
    proximal: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        _require(1 <= self.epochs <= 10_000, f"epochs must be 1 to 10000, got {self.epochs}")
        _require(
            1 <= self.batch_size <= 2**24, f"batch_size must be 1 to 2**24, got {self.batch_size}"
        )
        _require(
            0.0 < self.learning_rate < 1e6,
            f"learning_rate must be positive, got {self.learning_rate}",
        )
        _require(0.0 <= self.proximal < 1e6, f"proximal must be 0 or more, got {self.proximal}")
        _require(0 <= self.seed < 2**63, f"seed must be 0 to 2**63-1, got {self.seed}")


def task_hash(task: TaskSettings) -> bytes:
    """SHA-256 over the settings in a fixed encoding, 32 bytes. A masked round's plan binds it."""
    return hashlib.sha256(
        b"veilsum/task\0"
        + struct.pack(
            "<IIddQ", task.epochs, task.batch_size, task.learning_rate, task.proximal, task.seed
        )
    ).digest()


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds each phase may take before the round goes on without the silent sites."""

    join_s: float = 60.0
    keys_s: float = 30.0
    shares_s: float = 30.0
    inputs_s: float = 600.0
    votes_s: float = 30.0
    unmask_s: float = 30.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            _require(
                0.0 < value <= 604_800.0, f"{name} must be above 0, at most a week, got {value}"
            )


@dataclass(frozen=True, slots=True)
class OptimizerSpec:
    """What the coordinator does with a mean (docs/numerics.md). The learning rate is the run's
    server_learning_rate.

    Attributes:
        name: "fedavg", "fedavgm", "fedadagrad", "fedadam" or "fedyogi".
        momentum: of fedavgm.
        beta1, beta2: of fedadam and fedyogi.
        tau: of fedadagrad, fedadam and fedyogi.
        state_file: the name of a state in the coordinator's models folder to go on from.

    None takes the optimizer's own default.
    """

    name: str = "fedavg"
    momentum: float | None = None
    beta1: float | None = None
    beta2: float | None = None
    tau: float | None = None
    state_file: str = ""

    def settings(self, learning_rate: float) -> OptimizerSettings:
        """The optimizer's settings.

        Raises:
            ConfigError: unknown, a value is out of range, or not one of this optimizer's.
        """
        given = {
            name: value
            for name in ("momentum", "beta1", "beta2", "tau")
            if (value := getattr(self, name)) is not None
        }
        return optimizer_settings(self.name, learning_rate=learning_rate, **given)


@dataclass(frozen=True, slots=True)
class RunSpec:
    """One run: which rounds, with whom, how summed. Complete when constructed.

    Attributes:
        task_id: what is trained, 1 to 64 characters of [A-Za-z0-9._-].
        rounds: how many.
        masked: secure aggregation (True), or updates the coordinator can read (False).
        codec: of the updates in a plain run; masked runs use the ring codec.
        cohort: sites to invite each round; empty means every site of the roster.
        min_sites: fewer than this and the round aborts.
        colluders: sites that may help a malicious coordinator without anything leaking;
            None means a third of those invited, rounded down.
        share_profile: "strict": share threshold = vote quorum; "available": lower, so that
            more sites may crash between vote and unmasking (docs/protocol.md).
        mask_generator: what masks are made with: "chacha20" or "aes256ctr". Equally safe; the
            latter is faster on CPUs with AES instructions and much slower on all others.
        value_bits: bits of one site's step, sign included, at full weight.
        clip: largest |update value| that can be encoded, in model units.
        overrange: what a site does with a larger one: "refuse" or "clip".
        weight_cap: largest weight (number of examples) a site may claim.
        metrics: names of the metrics that ride in the sum, at most 16.
        server_learning_rate: new model = model + this * mean update; with another optimizer than
            fedavg, what it calls its learning rate.
        server_optimizer: what else becomes of a mean update.
    """

    task_id: str
    rounds: int = 1
    masked: bool = True
    codec: str = "f32"
    cohort: tuple[str, ...] = ()
    min_sites: int = 3
    colluders: int | None = None
    share_profile: ShareProfile = "strict"
    mask_generator: MaskGenerator = "chacha20"
    value_bits: int = 16
    clip: float = 1.0
    overrange: Overrange = "refuse"
    weight_cap: int = 65_536
    metrics: tuple[str, ...] = ()
    server_learning_rate: float = 1.0
    server_optimizer: OptimizerSpec = field(default_factory=OptimizerSpec)
    task: TaskSettings = field(default_factory=TaskSettings)
    deadlines: Deadlines = field(default_factory=Deadlines)

    def __post_init__(self) -> None:
        allowed = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
        _require(
            1 <= len(self.task_id) <= 64 and set(self.task_id) <= allowed,
            f"task_id must be 1 to 64 of [A-Za-z0-9._-], got {self.task_id!r}",
        )
        _require(1 <= self.rounds <= 100_000, f"rounds must be 1 to 100000, got {self.rounds}")
        _require(self.min_sites >= 1, f"min_sites must be 1 or more, got {self.min_sites}")
        _require(
            not self.masked or self.min_sites >= 3,
            f"a masked run needs min_sites of 3 or more, got {self.min_sites}: "
            "the sum of two sites shows each the other's update",
        )
        _require(len(set(self.cohort)) == len(self.cohort), "cohort names a site twice")
        _require(2 <= self.value_bits <= 32, f"value_bits must be 2 to 32, got {self.value_bits}")
        _require(0.0 < self.clip < 1e30, f"clip must be positive and finite, got {self.clip}")
        _require(
            1 <= self.weight_cap < 2**31, f"weight_cap must be 1 to 2**31-1, got {self.weight_cap}"
        )
        _require(
            len(self.metrics) <= 16 and len(set(self.metrics)) == len(self.metrics),
            "metrics must be at most 16 different names",
        )
        _require(
            all(1 <= len(m.encode()) <= 64 and m.isprintable() for m in self.metrics),
            "a metric's name must be 1 to 64 printable bytes",
        )
        _require(
            0.0 < self.server_learning_rate <= 100.0,
            f"server_learning_rate must be above 0, at most 100, got {self.server_learning_rate}",
        )
        self.server_optimizer.settings(self.server_learning_rate)
        _require(self.colluders is None or self.colluders >= 0, "colluders must be 0 or more")


@dataclass(frozen=True, slots=True)
class RoundId:
    """Names one attempt at one round of one run. Rounds count from 1, attempts from 0."""

    run_id: str
    number: int
    attempt: int = 0


# --- coordinator to site ------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Welcome:
    """First answer on a Join stream. The site compares the roster hash with its own."""

    consortium: str
    roster_hash: bytes


@dataclass(frozen=True, slots=True)
class PlainPlan:
    """Everything a site must know to contribute to a plain round.

    Attributes:
        layout: canonical layout bytes.
        model_hash: of the model to train from, 32 bytes.
        digest: SHA-256 over all other fields; in every chunk's header. 32 bytes.
    """

    layout: bytes
    codec: str
    weight_cap: int
    chunk_coordinates: int
    metrics: tuple[str, ...]
    model_hash: bytes
    clip: float
    digest: bytes


@dataclass(frozen=True, slots=True)
class RoundOpened:
    """Invites a site to a round.

    `open_message` is the protocol's signed RoundOpen in a masked round, empty in a plain one;
    `plain` is the plan of a plain round, None in a masked one.
    """

    round: RoundId
    task_id: str
    task: TaskSettings
    open_message: bytes
    plain: PlainPlan | None


@dataclass(frozen=True, slots=True)
class ProtocolMessage:
    """One message of secure aggregation, either direction; opaque here."""

    round: RoundId
    payload: bytes


@dataclass(frozen=True, slots=True)
class RoundClosed:
    """How a round ended. `digest` is the result's, empty if the round was aborted."""

    round: RoundId
    completed: bool
    reason: str
    digest: str


@dataclass(frozen=True, slots=True)
class SiteDropped:
    """Tells a site that the round goes on without it, and why. It may join the next."""

    round: RoundId
    reason: str


@dataclass(frozen=True, slots=True)
class RunClosed:
    """No more rounds of this run will come."""

    run_id: str
    completed: bool
    reason: str


ToSite = Welcome | RoundOpened | ProtocolMessage | RoundClosed | SiteDropped | RunClosed

# --- site to coordinator ------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hello:
    """First message on a Join stream."""

    version: str
    roster_hash: bytes


@dataclass(frozen=True, slots=True)
class Decline:
    """The site will not take part in this round: its policy, its bounds, or a failed training.

    `code` is machine readable ("task_bounds", "policy", "training_failed", "overrange", ...).
    """

    round: RoundId
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Progress:
    """How far local training is; a fraction from 0 to 1 and nothing about the data."""

    round: RoundId
    fraction: float


ToCoordinator = Hello | ProtocolMessage | Decline | Progress


@dataclass(frozen=True, slots=True)
class UpdateHeader:
    """Opens an upload. Plain rounds: weight and metrics in clear, `masked_header` empty.
    Masked rounds: `masked_header` is the protocol's signed MaskedInput header, the rest is zero."""

    round: RoundId
    update_id: int
    chunk_count: int
    weight: int
    metrics: Mapping[str, float]
    masked_header: bytes


# --- what is kept about a run -------------------------------------------------

RunState = Literal["waiting", "running", "completed", "aborted"]


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """What the coordinator keeps of a finished round.

    Attributes:
        digest: hex SHA-256 of the mean update; empty if aborted.
        model_hash: hex, of the model after this round.
        sites: whose updates are in the sum.
        dropped: site -> reason, for those invited and not in the sum.
        metrics: weighted means over the sites that reported them.
        bytes_in: site -> bytes of its accepted upload.
        seconds: phase -> duration.
    """

    round: RoundId
    completed: bool
    reason: str
    digest: str
    model_hash: str
    sites: tuple[str, ...]
    dropped: Mapping[str, str]
    total_weight: int
    metrics: Mapping[str, float]
    bytes_in: Mapping[str, int]
    seconds: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class RunStatus:
    """A run as `veilsum run show` prints it."""

    run_id: str
    spec: RunSpec
    state: RunState
    reason: str
    current_round: int
    phase: str
    sites_waiting: tuple[str, ...]
    rounds: tuple[RoundRecord, ...]


@dataclass(frozen=True, slots=True)
class RunEvent:
    """One line of `veilsum run watch`.

    kind: "phase" (a phase began), "site" (a site joined, delivered, declined or was dropped),
    "progress" (training), "round" (a round ended), "run" (the run ended).
    """

    run_id: str
    kind: Literal["phase", "site", "progress", "round", "run"]
    round_number: int = 0
    phase: str = ""
    site: str = ""
    detail: str = ""
    sites_in: int = 0
    sites_expected: int = 0
    bytes_in: int = 0
    seconds: float = 0.0
    fraction: float = 0.0
    digest: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
