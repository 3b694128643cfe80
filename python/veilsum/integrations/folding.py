"""How the updates of a round become a model: what the strategies here are told alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

from veilsum.aggregate import Aggregator, Streaming
from veilsum.errors import ConfigError
from veilsum.model import ModelLayout
from veilsum.optimizers import FedAvg, OptimizerSettings, ServerOptimizer, optimizer_settings
from veilsum.rules import PreStep, Rule, choose_rule

RuleChoice: TypeAlias = str | Rule | Sequence[PreStep | Rule]

_SMALLEST = ModelLayout.from_tensors([("w", "f32", (1,))])


@dataclass(frozen=True, slots=True)
class Folding:
    """Settings of the sum.

    Attributes:
        rule: as Aggregator takes it. A rule that counts every update the same is given each with
            weight 1, whatever the site's.
        optimizer: what is done with the mean difference; settings of veilsum.optimizers, or the
            name of one. None takes the mean as it is.
        difference: sum differences to the round's model. An optimizer always does.
        backend, threads, streaming: as Aggregator takes them.
        spool: a directory in which each round keeps its updates, in one of its own that is
            removed at its end; by default the system's for temporary files.
        in_memory: keep a round's updates in memory instead.

    Raises:
        ConfigError: settings that cannot work, alone or together.
        DeviceError: there is no such device.
    """

    rule: RuleChoice = "mean"
    optimizer: OptimizerSettings | str | None = None
    difference: bool = False
    backend: str = "cpu"
    threads: int | None = None
    streaming: Streaming | None = None
    spool: str | Path | None = None
    in_memory: bool = False

    def __post_init__(self) -> None:
        places = [self.spool is not None, self.in_memory, self.streaming is not None]
        if sum(places) > 1:
            raise ConfigError(
                "spool=, in_memory=True and streaming= each say where updates are kept",
                hint="give one of them",
            )
        if self.spool is not None and not Path(self.spool).is_dir():
            raise ConfigError(
                f"spool {str(self.spool)!r} is not a directory", hint="create it first"
            )
        self.aggregator(_SMALLEST, None)  # refuses what cannot work before there is any traffic
        self.started_optimizer(_SMALLEST)

    @property
    def takes_differences(self) -> bool:
        """Whether differences to the round's model are summed, and not models."""
        return self.difference or self.optimizer is not None

    @property
    def is_weighted(self) -> bool:
        """Whether the sites' weights mean something to the rule."""
        chain = choose_rule(self.rule)
        return chain.rule.weighted and not chain.pre

    @property
    def is_mean(self) -> bool:
        """Whether the rule is the mean of the updates as they are."""
        return choose_rule(self.rule).is_mean

    def aggregator(self, layout: ModelLayout, spool: str | None) -> Aggregator:
        """An empty sum."""
        return Aggregator(
            layout,
            rule=self.rule,
            backend=self.backend,
            threads=self.threads,
            streaming=self.streaming,
            spool=spool,
        )

    def started_optimizer(self, layout: ModelLayout) -> ServerOptimizer:
        """An optimizer that has not made a step yet; one that adds the mean if none was chosen."""
        chosen = self.optimizer or FedAvg()
        settings = optimizer_settings(chosen) if isinstance(chosen, str) else chosen
        return settings.start(layout, threads=self.threads)

    @contextmanager
    def kept(self) -> Iterator[str | None]:
        """The directory of one round's updates, gone when the `with` ends; None for memory."""
        if self.in_memory or self.streaming is not None:
            yield None
            return
        with TemporaryDirectory(prefix="veilsum-", dir=self.spool) as spool:
            yield spool

    def __str__(self) -> str:
        kept = f"on disk, in {self.spool or 'the temporary directory'}"
        if self.in_memory:
            kept = "in memory"
        if self.streaming is not None:
            kept = f"nowhere: {self.streaming}"
        summed = "differences" if self.takes_differences else "models"
        return f"{self.rule} of {summed} on {self.backend}, updates kept {kept}"
