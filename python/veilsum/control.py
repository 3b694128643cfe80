"""What coordinator and sites tell each other around the protocol, and what a run is.

Plain frozen data, shared by both sides. How these travel is transport/wire.py's business;
the messages of secure aggregation itself are opaque bytes here (secagg/).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from veilsum.buffering import DEFAULT_STALENESS, Buffering, require_alone
from veilsum.optimizers import step_rule_bytes
from veilsum.optimizers.spec import OptimizerSpec as OptimizerSpec
from veilsum.records import BufferedUpdate as BufferedUpdate
from veilsum.records import RoundId as RoundId
from veilsum.records import RoundRecord as RoundRecord
from veilsum.records import RunEvent as RunEvent
from veilsum.tasks import Deadlines as Deadlines
from veilsum.tasks import TaskSettings as TaskSettings
from veilsum.tasks import require
from veilsum.tasks import task_hash as task_hash
from veilsum.turnout import LateUpdates as LateUpdates
from veilsum.turnout import Turnout

Overrange = Literal["refuse", "clip"]
Compression = Literal["none", "zstd"]
ShareProfile = Literal["strict", "available"]
MaskGenerator = Literal["chacha20", "aes256ctr"]

HADAMARD_BLOCKS = (0, 1024, 4096)
"""Coordinates that the rotation of a masked run may mix; 0 for no rotation."""

DEFAULT_ATTEMPTS = 3
MAX_ATTEMPTS = 10
"""At one round. Every one but the first costs training at the sites whose updates had left."""


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
        quorum: a round takes no more updates once it has so many; 0: it waits for every site
            that it invited, or for the deadline, whatever comes first.
        min_weight: a round whose updates weigh less than this together has no result.
        select: sites that are drawn for each round from those that are there; 0: all of them.
        over_select: so many more are invited, as a fraction of `select` (of `quorum` if that is
            0), against those that will be slow or lost; the round still closes at `quorum` (at
            `select` if that is 0).
        late: of a plain run, what becomes of an update that comes when its round has closed: it is
            refused, or counts in the next round ("next").
        buffer_size: of a plain run, updates with which the model makes a step, whenever they were
            begun; 0: rounds, in which all sites train the same model.
        max_staleness: of a buffered run, most steps that the model may have made since a site
            received it; later, its update is refused.
        colluders: sites that may help a malicious coordinator without anything leaking;
            None means a third of the roster's sites, rounded down.
        share_profile: "strict": share threshold = vote quorum; "available": lower, so that
            more sites may crash between vote and unmasking (docs/protocol.md).
        mask_generator: what masks are made with: "chacha20" or "aes256ctr". Equally safe; the
            latter is faster on CPUs with AES instructions and much slower on all others.
        value_bits: bits of one site's step, sign included, at full weight.
        clip: largest |update value| that can be encoded, in model units; with a rotation the
            largest |rotated value|.
        overrange: what a site does with a larger one: "refuse" or "clip".
        compression: of the chunks of a plain run on their way: "none" or "zstd".
        error_feedback: whether sites of a plain run keep what the codec loses of an update and add
            it to their next one. Outside every claim of differential privacy.
        weight_cap: largest weight (number of examples) a site may claim.
        hadamard: coordinates of floating-point tensors that a public rotation mixes in a masked
            run before they are rounded: 0 (none), 1024 or 4096.
        max_attempts: of a masked run, how often a round may be held before the run ends without
            it; each site has a limit of its own as well.
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
    quorum: int = 0
    min_weight: int = 0
    select: int = 0
    over_select: float = 0.0
    late: LateUpdates = "refuse"
    buffer_size: int = 0
    max_staleness: int = DEFAULT_STALENESS
    colluders: int | None = None
    share_profile: ShareProfile = "strict"
    mask_generator: MaskGenerator = "chacha20"
    value_bits: int = 16
    clip: float = 1.0
    overrange: Overrange = "refuse"
    compression: Compression = "none"
    error_feedback: bool = False
    weight_cap: int = 65_536
    hadamard: int = 0
    max_attempts: int = DEFAULT_ATTEMPTS
    metrics: tuple[str, ...] = ()
    server_learning_rate: float = 1.0
    server_optimizer: OptimizerSpec = field(default_factory=OptimizerSpec)
    task: TaskSettings = field(default_factory=TaskSettings)
    deadlines: Deadlines = field(default_factory=Deadlines)

    def __post_init__(self) -> None:
        allowed = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
        require(
            1 <= len(self.task_id) <= 64 and set(self.task_id) <= allowed,
            f"task_id must be 1 to 64 of [A-Za-z0-9._-], got {self.task_id!r}",
        )
        require(1 <= self.rounds <= 100_000, f"rounds must be 1 to 100000, got {self.rounds}")
        require(self.min_sites >= 1, f"min_sites must be 1 or more, got {self.min_sites}")
        require(
            not self.masked or self.min_sites >= 3,
            f"a masked run needs min_sites of 3 or more, got {self.min_sites}: "
            "the sum of two sites shows each the other's update",
        )
        late = self.turnout.late
        require(
            not self.masked or late == "refuse",
            "late is for plain runs: a masked update is of no use but in its own round's sum",
        )
        require(
            not self.masked or self.compression == "none",
            "compression is for plain runs: the size of what is compressed depends on its content, "
            "which a masked round must not show",
        )
        require(
            not self.masked or not self.error_feedback,
            "error_feedback is for plain runs: a masked round encodes with the same steps for all",
        )
        self._check_buffering()
        require_hadamard(self.hadamard)
        require(
            self.masked or not self.hadamard,
            "hadamard is for masked runs: updates of a plain run are not rotated",
        )
        require(len(set(self.cohort)) == len(self.cohort), "cohort names a site twice")
        require(2 <= self.value_bits <= 32, f"value_bits must be 2 to 32, got {self.value_bits}")
        require(0.0 < self.clip < 1e30, f"clip must be positive and finite, got {self.clip}")
        require(
            1 <= self.weight_cap < 2**31, f"weight_cap must be 1 to 2**31-1, got {self.weight_cap}"
        )
        require(
            len(self.metrics) <= 16 and len(set(self.metrics)) == len(self.metrics),
            "metrics must be at most 16 different names",
        )
        require(
            all(1 <= len(m.encode()) <= 64 and m.isprintable() for m in self.metrics),
            "a metric's name must be 1 to 64 printable bytes",
        )
        require(
            0.0 < self.server_learning_rate <= 100.0,
            f"server_learning_rate must be above 0, at most 100, got {self.server_learning_rate}",
        )
        self.server_optimizer.settings(self.server_learning_rate)
        require(
            1 <= self.max_attempts <= MAX_ATTEMPTS,
            f"max_attempts must be 1 to {MAX_ATTEMPTS}, got {self.max_attempts}",
        )
        require(self.colluders is None or self.colluders >= 0, "colluders must be 0 or more")

    def _check_buffering(self) -> None:
        if not self.buffer_size:
            default = self.max_staleness == DEFAULT_STALENESS
            require(default, "max_staleness is for buffered runs: set buffer_size")
            return
        waits = [name for name in ("quorum", "select") if getattr(self, name)]
        waits += ["late"] if self.late != "refuse" else []
        require_alone(self.masked, self.error_feedback, waits)
        enough = self.buffering.size >= self.min_sites
        require(enough, f"buffer_size {self.buffer_size} is less than min_sites {self.min_sites}")

    @property
    def buffering(self) -> Buffering:
        """How a buffered run fills its buffers.

        Raises:
            ConfigError: it cannot be as the run says, or the run is not buffered.
        """
        return Buffering(self.buffer_size, self.max_staleness, self.weight_cap)

    @property
    def turnout(self) -> Turnout:
        """How many sites a round needs.

        Raises:
            ConfigError: what is said about it cannot be.
        """
        return Turnout(
            min_sites=self.min_sites,
            quorum=self.quorum,
            min_weight=self.min_weight,
            select=self.select,
            over_select=self.over_select,
            late=self.late,
        )

    @property
    def step_rule(self) -> bytes:
        """Optimizer and settings in their one encoding, as the plans of masked rounds have it."""
        return step_rule_bytes(self.server_optimizer.settings(self.server_learning_rate))


def require_hadamard(block: int) -> None:
    """Raises:
    ConfigError: no such rotation.
    """
    require(
        type(block) is int and block in HADAMARD_BLOCKS,
        f"hadamard must be 0, 1024 or 4096, got {block!r}",
    )


# --- coordinator to site ------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Welcome:
    """First answer on a Join stream. The site compares the roster hash with its own.

    Attributes:
        round: the round whose messages follow, as far as this site was sent them before: the
            coordinator goes on with what the site did in it. None: there is no such round.
    """

    consortium: str
    roster_hash: bytes
    round: RoundId | None = None


@dataclass(frozen=True, slots=True)
class PlainPlan:
    """Everything a site must know to contribute to a plain round.

    Attributes:
        layout: canonical layout bytes.
        model_hash: of the model to train from, 32 bytes.
        compression, error_feedback: see RunSpec.
        digest: SHA-256 over all other fields; in every chunk's header. 32 bytes.
    """

    layout: bytes
    codec: str
    weight_cap: int
    chunk_coordinates: int
    metrics: tuple[str, ...]
    model_hash: bytes
    clip: float
    compression: Compression
    error_feedback: bool
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
    """First message on a Join stream.

    Attributes:
        instance: random bytes that a site's process drew when it began, 16 of them: who comes
            back with the same ones still has what it did in the current round.
    """

    version: str
    roster_hash: bytes
    instance: bytes


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


@dataclass(frozen=True, slots=True)
class Goodbye:
    """Last message on a Join stream of a process that stops: nobody need wait for it."""


ToCoordinator = Hello | ProtocolMessage | Decline | Progress | Goodbye


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
