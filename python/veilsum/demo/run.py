"""The whole demo, in order."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from veilsum.control import RunEvent, RunStatus
from veilsum.demo.baselines import Comparison, Scorecard, scorecard
from veilsum.demo.consortium import (
    Consortium,
    make_consortium,
    rounding_seed,
    write_coordinator_toml,
    write_site_toml,
)
from veilsum.demo.data import Hospital, Nodules, hospitals, load_nodules
from veilsum.demo.folder import prepare_folder
from veilsum.demo.follow import Failure, follow_run
from veilsum.demo.ledger import read_ledger
from veilsum.demo.metrics import auc
from veilsum.demo.model import initial_arrays, one_thread
from veilsum.demo.options import DemoOptions
from veilsum.demo.outcome import DemoOutcome, RoundOutcome
from veilsum.demo.processes import Processes
from veilsum.demo.proof import Prover, StartOfRound
from veilsum.demo.report import report_html
from veilsum.demo.stopping import stops_between_steps
from veilsum.demo.table import print_outcome
from veilsum.demo.view import DemoView, size_text
from veilsum.model import ModelLayout, result_digest
from veilsum.transport.checkpoints import load_model, model_to_bytes
from veilsum.transport.operator import OperatorClient


def run_demo(
    options: DemoOptions, *, out: Console | None, live: Console | None = None
) -> DemoOutcome:
    """Runs the demo and leaves report, model, result and logs in options.out.

    Args:
        out: for lines and the final table; None for silence.
        live: a terminal, for what goes on right now; None if nobody watches.

    Returns:
        The outcome. Its `problems` are empty unless the proof failed.

    Raises:
        ConfigError: an option or the folder cannot work.
        DemoFailed: the run was aborted, or a process ended unasked.
    """
    with stops_between_steps(), DemoView(out, live) as view:
        outcome = _Demo(options, view).run()
    _write_files(outcome)
    if out is not None:
        print_outcome(outcome, out)
    return outcome


class _Demo:
    """What stays the same during one demo."""

    def __init__(self, options: DemoOptions, view: DemoView) -> None:
        one_thread()
        self.began = time.monotonic()
        self.options = options
        self.view = view
        self.nodules = load_nodules()
        self.sites = hospitals(self.nodules, options.sites)
        self.drop = options.chosen_drop({site.name: site.images for site in self.sites})
        self.start = initial_arrays(options.seed)
        self.folder = prepare_folder(options.out)

    def run(self) -> DemoOutcome:
        consortium = make_consortium(self.folder, self.sites)
        self.view.line(
            f"{len(self.sites)} hospitals in {len({site.region for site in self.sites})} regions, "
            f"{len(self.nodules):,} images; certificates and roster in {self.folder.root}"
        )
        status = self._train(consortium)
        ledger = read_ledger(self.folder.logs, [site.name for site in self.sites])
        rounds = self._check_rounds(consortium, status)
        comparison = Comparison(
            self.nodules,
            self.sites,
            self.start,
            self.options.task(),
            self.options.rounds,
            lambda who, done: self.view.now(f"for comparison: {who} trains, {done:.0%}"),
        )
        return DemoOutcome(
            options=self.options,
            folder=self.folder,
            sites=self.sites,
            images=len(self.nodules),
            patients=len(np.unique(self.nodules.patient)),
            by_extent=_auc_of_extent(self.nodules, self.sites),
            drop=self.drop,
            run=status,
            before=self._scorecard(self.start),
            rounds=rounds,
            baselines=comparison.baselines(),
            ledger=ledger,
            seconds=time.monotonic() - self.began,
        )

    def _train(self, consortium: Consortium) -> RunStatus:
        """The federated run, in processes of its own."""
        with Processes(self.folder.logs) as processes:
            self.view.now("the coordinator starts")
            port = processes.start_coordinator(write_coordinator_toml(consortium))
            configs = {
                site.name: write_site_toml(consortium, site.name, port, self.options)
                for site in self.sites
            }
            for name, config in configs.items():
                processes.start_site(name, config)
            self.view.line(
                f"a coordinator and {len(configs)} sites run as processes of their own; "
                f"their logs are in {self.folder.logs}"
            )
            model = model_to_bytes(ModelLayout.from_arrays(self.start), self.start)
            failure = Failure(self.drop, configs[self.drop.site]) if self.drop else None
            with OperatorClient(consortium.operator_settings(port)) as operator:
                return follow_run(
                    operator,
                    processes,
                    (self.options.run_spec(), model),
                    failure,
                    self._show,
                )

    def _show(self, event: RunEvent) -> None:
        self.view.event(event)
        if event.kind == "round" and event.digest:
            card = self._scorecard(self._model(event.run_id, event.round_number)[1])
            self.view.line(
                f"round {event.round_number}: {event.sites_in} of {event.sites_expected} sites, "
                f"{size_text(event.bytes_in)} in {event.seconds:.1f} s, AUC {card.on_all:.3f}, "
                f"digest {event.digest[:16]}"
            )

    def _check_rounds(self, consortium: Consortium, status: RunStatus) -> tuple[RoundOutcome, ...]:
        """Measures the model after each round, and proves the round's sum."""
        prover = Prover(
            self.options.run_spec(),
            consortium.roster,
            self.folder.notes,
            {site.name: rounding_seed(self.options.seed, site.name) for site in self.sites},
        )
        outcomes = []
        for record in status.rounds:
            number = record.round.number
            self.view.now(f"summing round {number} again, in plain")
            layout, before = self._model(status.run_id, number - 1)
            _, after = self._model(status.run_id, number)
            begin = StartOfRound(layout, before, result_digest(layout, before))
            proof = prover.prove(record, begin)
            outcomes.append(RoundOutcome(record, self._scorecard(after), proof))
        return tuple(outcomes)

    def _model(self, run_id: str, number: int) -> tuple[ModelLayout, dict[str, NDArray[Any]]]:
        """As the coordinator keeps it; number 0 is the initial one."""
        return load_model(self.folder.state / "models" / run_id / f"round-{number}.safetensors")

    def _scorecard(self, model: dict[str, NDArray[Any]]) -> Scorecard:
        return scorecard(model, self.nodules, self.sites)


def _auc_of_extent(nodules: Nodules, sites: Sequence[Hospital]) -> float:
    rows = np.concatenate([site.test for site in sites])
    return auc(nodules.extent_mm[rows], nodules.labels[rows])


def _write_files(outcome: DemoOutcome) -> None:
    folder, last = outcome.folder, outcome.rounds[-1].record.round
    kept = folder.state / "models" / last.run_id / f"round-{last.number}.safetensors"
    shutil.copyfile(kept, folder.model)
    folder.result.write_text(json.dumps(outcome.document(), indent=2) + "\n", encoding="utf-8")
    folder.report.write_text(report_html(outcome), encoding="utf-8")
