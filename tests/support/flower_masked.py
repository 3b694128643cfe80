"""A masked Flower federation in one process: keepers with real files, ClientApps, a grid."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from support.consortium import Consortium
from support.flower_grid import LocalGrid, error_reply, over_the_wire, record_of
from veilsum import ModelLayout, secagg
from veilsum._native import Secret
from veilsum.control import RunSpec, TaskSettings
from veilsum.difference import model_difference
from veilsum.integrations.flower import SecureFedAvg, secagg_mod
from veilsum.integrations.flower.arrays import read_arrays
from veilsum.integrations.flower.secure_keeper import SiteKeeper, open_keeper
from veilsum.integrations.flower.secure_parts import MESSAGE
from veilsum.integrations.flower.secure_wire import from_content, read_frame
from veilsum.optimizers.applying import apply_mean, start_optimizer
from veilsum.roster import Roster
from veilsum.secagg.envelope import Envelope
from veilsum.site.rounding import rounding_secret
from veilsum.transport import wire
from veilsum.transport.outgoing import message_kind

SITES = tuple(f"site-{index}" for index in range(5))
SPEC = RunSpec(
    "shift",
    clip=1.0,
    value_bits=20,
    weight_cap=100,
    task=TaskSettings(seed=3),
    metrics=("loss",),
)
STEP = SPEC.clip * SPEC.weight_cap / (2 ** (SPEC.value_bits - 1) - 1)
"""What rounding moves a site's update times its weight by, at most."""


def model() -> dict[str, np.ndarray]:
    """Where a run begins."""
    values = np.random.default_rng(1)
    return {
        "layer.weight": values.normal(size=(7, 300)).astype(np.float32),
        "layer.bias": values.normal(size=5).astype(np.float64),
    }


def trained(arrays: Mapping[str, np.ndarray], site: str, seed: int) -> dict[str, np.ndarray]:
    """What a site makes of a model, as a function of its name and the task's seed."""
    values = np.random.default_rng([seed, *site.encode()])
    return {
        name: (old + values.uniform(-0.5, 0.5, old.shape)).astype(old.dtype)
        for name, old in arrays.items()
    }


def weight_of(site: str) -> int:
    """A site's number of examples."""
    return 10 + 7 * SITES.index(site)


def training_app(site: str, keeper: Callable[[], Any], **options: Any) -> ClientApp:
    """An ordinary app, with nothing in it about veilsum but its mod."""
    app = ClientApp(mods=[secagg_mod(lambda context: keeper(), **options)])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        arrays, config = message.content["arrays"], message.content["config"]
        update = trained(read_arrays(arrays), site, config["seed"])
        metrics = MetricRecord({"num-examples": weight_of(site), "loss": 0.5})
        content = RecordDict({"arrays": record_of(update), "metrics": metrics})
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return Message(RecordDict({"m": MetricRecord({"auc": 1.0})}), reply_to=message)

    return app


class JumpingClock:
    """Waiting takes no time."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def now(self) -> float:
        return self.seconds

    def wait(self, seconds: float) -> None:
        self.seconds += max(seconds, 1.0)


Between = Callable[[str, int, Message], Message | None]
"""What becomes of a message on its way to a site: (site, how many were before it, message)."""


@dataclass
class MaskedFederation:
    """Keepers of all sites and a grid whose nodes run ClientApps.

    Attributes:
        keepers: by site, while they are open.
        taken: messages that each site was sent, in order.
        to_site, to_server: what the network makes of messages and of answers.
    """

    consortium: Consortium
    keepers: dict[str, SiteKeeper] = field(default_factory=dict)
    taken: dict[str, list[Message]] = field(default_factory=dict)
    answered: dict[str, list[Message]] = field(default_factory=dict)
    to_site: Between = lambda site, number, message: message
    to_server: Between = lambda site, number, message: message
    _open: dict[str, ExitStack] = field(default_factory=dict)

    def start(self, site: str, **change: Any) -> None:
        """The site's keeper starts, or starts again."""
        self.stop(site)
        self._open[site] = ExitStack()
        change = {"rounding_seed": rounding_seed(site), **change}
        settings = self.consortium.site_settings(site, 1, **change)
        self.keepers[site] = self._open[site].enter_context(open_keeper(settings))

    def stop(self, site: str) -> None:
        """It ends, and everything in its memory with it."""
        self.keepers.pop(site, None)
        self._open.pop(site, ExitStack()).close()

    def grid(self) -> LocalGrid:
        """A node for each site, whose ids say nothing."""
        return LocalGrid({900 + 13 * index: self._node(site) for index, site in enumerate(SITES)})

    def call(self, site: str, message: Message) -> Message:
        """What Flower makes of a message: a new process, an app, its answer or its error."""
        app = training_app(site, lambda: self.keepers[site])
        context = Context(1, 1, {}, RecordDict(), {})
        try:
            return over_the_wire(app(over_the_wire(message), context))
        except Exception as error:  # noqa: BLE001  as Flower does
            return error_reply(message, f"{type(error).__name__}: {error}")

    def _node(self, site: str) -> Callable[[Message], Message | None]:
        lost = set()

        def answer(message: Message) -> Message | None:
            """Asked again for an answer that was lost, there is none."""
            name = message.metadata.message_id
            if name in lost:
                return None
            lost.add(name)
            taken = self.taken.setdefault(site, [])
            given = self.to_site(site, len(taken), message)
            if given is None:
                return None
            taken.append(given)
            reply = self.call(site, given)
            self.answered.setdefault(site, []).append(reply)
            return self.to_server(site, len(taken) - 1, reply)

        return answer

    def strategy(self, spec: RunSpec = SPEC, **change: Any) -> SecureFedAvg:
        """The consortium's."""
        arguments = {
            "roster": self.consortium.roster_file,
            "signing_key": self.consortium.hub.signing_key,
            "clock": JumpingClock(),
            "threads": 1,
            **change,
        }
        return SecureFedAvg(spec, **arguments)


@contextmanager
def masked_federation(consortium: Consortium, **change: Any) -> Iterator[MaskedFederation]:
    """With the keepers of all sites started."""
    found = MaskedFederation(consortium)
    try:
        for site in SITES:
            found.start(site, **change)
        yield found
    finally:
        for site in SITES:
            found.stop(site)


def says(reply: Message) -> set[str]:
    """Kinds of what a site's answer has in it: of protocol messages, or of parts."""
    if reply.has_error():
        return set()
    envelope = Envelope.from_bytes(from_content(reply.content).envelope)
    found = set()
    for part in read_frame(envelope.payload, from_content(reply.content).blobs).parts:
        message = wire.decode_to_coordinator(part.head) if part.kind == MESSAGE else None
        found.add(message_kind(message) if message is not None else part.kind)
    return found


def rounding_seed(site: str) -> str:
    """A seed of a site's stochastic rounding that follows from its name, 64 hex digits."""
    return hashlib.sha256(site.encode()).hexdigest()


def plain_digests(strategy: SecureFedAvg, roster: Roster, seeds: Sequence[int]) -> list[str]:
    """Digest of each round's mean, from the plain ring sum of the same updates."""
    arrays, found = model(), []
    layout = ModelLayout.from_arrays(arrays)
    for record, seed in zip(strategy.rounds, seeds, strict=True):
        plan = secagg.Plan.for_round(
            roster=roster, cohort=tuple(sorted({*record.sites, *record.dropped})),
            spec=SPEC, run_id=record.round.run_id, round_number=record.round.number,
            attempt=record.round.attempt, layout=layout, model_hash=bytes(32),
            previous_result=bytes(32), nonce=bytes(32),
        )  # fmt: skip
        contributions = {}
        for site in record.sites:
            update = model_difference(layout, trained(arrays, site, seed), arrays)
            seed_of_rounding = Secret.from_bytes(bytes.fromhex(rounding_seed(site)))
            rounding = rounding_secret(seed_of_rounding, record.round, site)
            contributions[site] = secagg.Contribution(
                update, weight_of(site), {"loss": 0.5}, rounding
            )
        result = secagg.plain_ring_sum(plan, contributions, record.sites)
        found.append(result.digest)
        rule = SPEC.server_optimizer.settings(SPEC.server_learning_rate)
        arrays = apply_mean(start_optimizer(rule, layout, None, 1), arrays, result.arrays)
    return found


def start(strategy: SecureFedAvg, grid: LocalGrid, rounds: int = 1) -> ArrayRecord:
    """The model after a run."""
    result = strategy.start(grid, record_of(model()), num_rounds=rounds, timeout=3600)
    assert result.arrays is not None
    return result.arrays


def reference(rounds: Sequence[Sequence[str]], seeds: Sequence[int]) -> dict[str, np.ndarray]:
    """The model after rounds of these sites, averaged in double precision by NumPy."""
    arrays = {name: old.astype(np.float64) for name, old in model().items()}
    for sites, seed in zip(rounds, seeds, strict=True):
        now = {name: arrays[name].astype(old.dtype) for name, old in model().items()}
        updates = [trained(now, site, seed) for site in sites]
        weights = [weight_of(site) for site in sites]
        arrays = {
            name: np.average([u[name].astype(np.float64) for u in updates], 0, weights)
            for name in now
        }
    return arrays
