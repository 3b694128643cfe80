"""FedAvg of Flower's Message API in masked rounds: the server sees sums, and no update."""

from __future__ import annotations

import logging
import secrets
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp import strategy as host
from flwr.serverapp.exception import AggregationError

from veilsum.control import RunSpec
from veilsum.coordinator.core import Coordinator
from veilsum.coordinator.effects import SaveEvidence, SaveReceipt, SaveRound
from veilsum.coordinator.events import RunSubmitted
from veilsum.devices import available_threads, require_backend
from veilsum.errors import ConfigError
from veilsum.integrations.flower.arrays import read_model, to_record
from veilsum.integrations.flower.polling import Clock, SystemClock
from veilsum.integrations.flower.secure_server import FlowerCoordinator, Kept
from veilsum.model import ModelLayout
from veilsum.pki.roster_file import load_roster
from veilsum.records import RoundId, RoundRecord
from veilsum.transport.tls import load_signing_key

_LOG = logging.getLogger("flwr")

EvaluateFunction = Callable[[int, ArrayRecord], MetricRecord | None]


class SecureFedAvg(host.Strategy):
    """Masked rounds of veilsum over Flower's messages, with clients that have secagg_mod.

        strategy = SecureFedAvg(
            RunSpec("chest-xray", clip=0.5), roster="roster.json", signing_key="hub/signing.key"
        )
        result = strategy.start(grid, initial_arrays, num_rounds=3)

    Args:
        spec: of the run: its task's settings, how updates are encoded, deadlines, how many
            helpers of a malicious coordinator the rounds withstand. Its `rounds` gives way to
            num_rounds of start().
        roster: the consortium's file.
        signing_key: the coordinator's.
        previous_roster: the roster before, whose members signed this one.
        backend, threads: where and with how many threads sums are made.
        receipts: folder for the signed receipts of rounds and evidence against members.
        clock: what deadlines are measured with.

    Attributes:
        rounds: attempts in order, also those without a result.
        receipts, evidence: round -> the bytes; also in files, if there is a folder.

    Raises:
        ConfigError: the run is not masked, or a file cannot be used.
    """

    def __init__(
        self,
        spec: RunSpec,
        *,
        roster: str | Path,
        signing_key: str | Path,
        previous_roster: str | Path | None = None,
        backend: str = "cpu",
        threads: int = 0,
        receipts: str | Path | None = None,
        clock: Clock | None = None,
    ) -> None:
        if not spec.masked:
            raise ConfigError(
                "the run of SecureFedAvg must be masked",
                hint="veilsum.integrations.flower.FedAvg sums updates that the server can read",
            )
        self._spec = spec
        before = None if previous_roster is None else Path(previous_roster)
        self._roster = load_roster(Path(roster), previous=before)
        self._key = load_signing_key(Path(signing_key))
        self._backend = require_backend(backend)
        self._threads = threads or available_threads()
        self._folder = None if receipts is None else Path(receipts)
        self._clock = clock or SystemClock()
        self.rounds: list[RoundRecord] = []
        self.receipts: dict[RoundId, bytes] = {}
        self.evidence: dict[RoundId, list[bytes]] = {}

    def summary(self) -> None:
        """Logs the settings."""
        _LOG.info("\t└──> veilsum, masked: task %s, %s", self._spec.task_id, self._spec.task)
        _LOG.info(
            "\t└──> consortium %s, %s sites", self._roster.consortium, len(self._roster.sites)
        )

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFunction | None = None,
    ) -> host.Result:
        """Runs the rounds.

        Args:
            timeout: seconds after which Flower gives up on a message; how long a phase waits for
                its sites, the run's deadlines say.
            train_config, evaluate_config: must be empty: what sites train with is in the signed
                plan, from the run's task settings.

        Raises:
            ConfigError: the model cannot be summed masked, an argument cannot be honoured, or
                there can be no folder for receipts.
            AggregationError: the run ended without all its rounds; why, it says.
        """
        if train_config or evaluate_config:
            raise ConfigError(
                "SecureFedAvg sends no train_config or evaluate_config: sites train with signed "
                "settings only",
                hint="set RunSpec(task=TaskSettings(...))",
            )
        layout, arrays = read_model(initial_arrays)
        _require_plain_dtypes(layout)
        if self._folder is not None:
            _make_folder(self._folder)
        self.rounds, self.receipts, self.evidence = [], {}, {}
        self.summary()
        result = host.Result()
        _evaluate(evaluate_fn, 0, initial_arrays, result)
        core = Coordinator(
            self._roster,
            self._key,
            entropy=secrets.token_bytes,
            threads=self._threads,
            backend=self._backend,
        )
        courier = FlowerCoordinator(
            grid,
            core,
            self._roster,
            self._key,
            self._clock,
            timeout,
            lambda kept: self._keep(kept, result, evaluate_fn),
        )
        spec = replace(self._spec, rounds=num_rounds)
        run_id = f"flower-{secrets.token_hex(8)}"
        status = courier.run(RunSubmitted(run_id, spec, layout, arrays))
        if status.state != "completed":
            raise AggregationError(f"the masked run was aborted: {status.reason}")
        _LOG.info("masked run completed: %s rounds", num_rounds)
        return result

    def _keep(self, kept: Kept, result: host.Result, evaluate_fn: EvaluateFunction | None) -> None:
        match kept:
            case SaveReceipt(round_id, receipt):
                self.receipts[round_id] = receipt
                self._write(f"{round_id.run_id}-{round_id.number}-{round_id.attempt}.vsr", receipt)
            case SaveEvidence(round_id, evidence):
                found = self.evidence.setdefault(round_id, [])
                found.append(evidence)
                name = f"{round_id.run_id}-{round_id.number}-{round_id.attempt}-{len(found)}.vse"
                self._write(name, evidence)
            case SaveRound(record, layout, model):
                self.rounds.append(record)
                if model is None:
                    _LOG.warning("veilsum: round %s: %s", record.round.number, record.reason)
                    return
                number = record.round.number
                result.arrays = to_record(layout, dict(model))
                result.train_metrics_clientapp[number] = MetricRecord(dict(record.metrics))
                _LOG.info("\t└──> [ROUND %s] digest of the mean: %s", number, record.digest)
                _evaluate(evaluate_fn, number, result.arrays, result)

    def _write(self, name: str, data: bytes) -> None:
        """Beside what is in memory: a folder that fails during a run must not cost its result."""
        if self._folder is None:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / name).write_bytes(data)
        except OSError as error:
            _LOG.error(
                "veilsum: %s cannot be kept in %s: %s; it is in this process only",
                name,
                self._folder,
                error.strerror,
            )

    # What Flower's own start() would call; this one's rounds have more than two steps.

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Not a step of masked rounds."""
        raise _not_alone()

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Not a step of masked rounds."""
        raise _not_alone()

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Not a step of masked rounds."""
        raise _not_alone()

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Not a step of masked rounds."""
        raise _not_alone()


def _not_alone() -> ConfigError:
    return ConfigError(
        "SecureFedAvg has no single steps", hint="call start(), or use FedAvg of this package"
    )


def _make_folder(folder: Path) -> None:
    """Raises:
    ConfigError: nothing can be written there, which is better known before the first round
        than after it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"veilsum")
    except OSError as error:
        raise ConfigError(
            f"receipts cannot be kept in {folder}: {error.strerror}",
            hint="SecureFedAvg(receipts=...) names a folder that this process may write to",
        ) from error


def _require_plain_dtypes(layout: ModelLayout) -> None:
    brain = [name for name, dtype, _ in layout.native.tensors if dtype == "bf16"]
    if brain:
        raise ConfigError(
            f"tensor {brain[0]!r} is bfloat16, which masked rounds over Flower do not carry",
            hint="send the model as float32",
        )


def _evaluate(
    function: EvaluateFunction | None, number: int, arrays: ArrayRecord, result: host.Result
) -> None:
    found = None if function is None else function(number, arrays)
    if found is not None:
        result.evaluate_metrics_serverapp[number] = found
