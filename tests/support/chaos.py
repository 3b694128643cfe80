"""Runs whose processes die, and what must be true of them all the same."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np

from support.consortium import Consortium
from support.expected import Reference
from support.lives import (
    NO_TLS,
    Cast,
    End,
    Outcome,
    play,
    rounding_seed,
    seeds_of,
    start,
    untouched,
    watching_sites,
)
from support.site_lives import Step
from veilsum.control import Deadlines, RoundRecord, RunSpec
from veilsum.model import ModelLayout
from veilsum.secagg.ledger_records import AckSent, Contributed, LedgerRecord, Opened, VoteCast
from veilsum.transport.checkpoints import model_from_bytes, model_to_bytes
from veilsum.transport.operator import OperatorClient

AT_ONCE = 4
SECONDS = 900.0  # that a play takes at most; nobody waits so long for anything but a deadlock
SITES = ("basel", "kyoto", "lyon", "quito")
MODEL = {
    "w": np.linspace(-1, 1, 3000, dtype=np.float32),
    "seen": np.array([7], np.int64),
}
LAYOUT = ModelLayout.from_arrays(MODEL)
# Nobody in a play is waited for until then, unless the machine is slow to start processes again.
DEADLINES = Deadlines(
    join_s=120,
    keys_s=120,
    shares_s=120,
    inputs_s=120,
    votes_s=120,
    unmask_s=120,
    acks_s=120,
    cooldown_s=0.05,
)


@dataclass(frozen=True)
class Scenario:
    """Who dies where. The last life of everybody goes on.

    Attributes:
        coordinator: how each of its lives ends.
        sites: where each life of a site ends, for those that are processes of their own.
        meanwhile: what happens to the state directory before each life of the coordinator but the
            first; gives where the next one finds it.
    """

    coordinator: Sequence[End] = ()
    sites: Mapping[str, Sequence[Step]] = field(default_factory=dict)
    meanwhile: Callable[[Path], Path] = untouched

    def __str__(self) -> str:
        told = [" then ".join(map(str, self.coordinator))] if self.coordinator else []
        told += [f"{site} {' then '.join(map(str, steps))}" for site, steps in self.sites.items()]
        return ", ".join(told) or "nobody"


@dataclass(frozen=True)
class Case:
    """A submitted run, and what comes of it if nothing goes wrong."""

    consortium: Consortium
    spec: RunSpec
    template: Path
    undisturbed: Outcome

    def reference(self) -> Reference:
        """What its rounds must come to."""
        return Reference(
            self.consortium.roster,
            self.spec,
            LAYOUT,
            {site: number for number, site in enumerate(SITES)},
            {site: rounding_seed(site) for site in SITES},
        )


async def submit(consortium: Consortium, state: Path, spec: RunSpec) -> None:
    """A state directory with one run, whose coordinator was killed before any site came."""
    life = start(consortium.coordinator_settings(state, **NO_TLS))
    port = await life.until("port")
    who = {"name": "ann", "consortium": consortium.roster.consortium}
    client = OperatorClient(consortium.operator_settings(port, **NO_TLS, **who))
    await asyncio.to_thread(client.submit, spec, model_to_bytes(LAYOUT, MODEL))
    client.close()
    life.end()


async def make_case(
    consortium: Consortium, folder: Path, spec: RunSpec, mortal: Sequence[str] = ()
) -> Case:
    """Goes through with a run without a death.

    Args:
        mortal: sites that are processes of their own, so that their steps are known.
    """
    template = folder / "template"
    await submit(consortium, template, spec)
    cast = Cast(SITES, dict.fromkeys(mortal, ()))
    with watching_sites():
        undisturbed = await play(consortium, template, folder / "undisturbed", cast)
    case = Case(consortium, spec, template, undisturbed)
    wrong = list(wrongs(case, undisturbed))
    assert wrong == [], wrong
    assert [record.sites for record in undisturbed.status.rounds] == [SITES] * spec.rounds
    return case


async def played(case: Case, folder: Path, scenario: Scenario) -> Outcome:
    """One scenario, from the submission to the end of the run."""
    folder.mkdir(parents=True)
    cast = Cast(SITES, scenario.sites)
    playing = play(
        case.consortium,
        case.template,
        folder,
        cast,
        scenario.coordinator,
        meanwhile=scenario.meanwhile,
    )
    return await asyncio.wait_for(playing, SECONDS)


# --- what must be true ------------------------------------------------------------------


def wrongs(case: Case, outcome: Outcome) -> Iterator[str]:
    """What must never be, whoever died."""
    status, witness = outcome.status, outcome.witness
    said = status.state == "completed" or (status.state == "aborted" and status.reason)
    if not said:
        yield f"it ended {status.state!r} for {status.reason!r}"
    numbers = [record.round.number for record in status.rounds if record.completed]
    if numbers != list(range(1, len(numbers) + 1)):
        yield f"rounds {numbers} completed"
    if status.state == "completed" and len(numbers) != case.spec.rounds:
        yield f"completed after {len(numbers)} rounds"
    for record in status.rounds:
        if record.completed:
            yield from _wrong_sums(case, outcome, record)
    for key, made in witness.uploads.items():
        if len(made) > 1:
            yield f"a mask served twice: {key}"
    for (_, dealer), seeds in witness.opened.items():
        if len(seeds) > 1:
            yield f"sites gave away shares of both seeds of {dealer}"
    if case.spec.masked:
        for (site, place), made in witness.contributed.items():
            if len(made) > 1:
                yield f"{site} made {len(made)} updates in {place}"
    yield from _wrong_ledgers(outcome.ledgers)
    yield from witness.complaints
    if outcome.left_over:
        yield f"left over: {outcome.left_over}"
    if outcome.on_disk:
        yield f"{outcome.on_disk} secrets of sites were in the state directory"


def _wrong_sums(case: Case, outcome: Outcome, record: RoundRecord) -> Iterator[str]:
    number, witness = record.round.number, outcome.witness
    counted = {site for site, place in witness.counted if place == record.round}
    if not counted <= set(record.sites):
        yield f"round {number} lost updates of {counted - set(record.sites)}"
    ready = {site for site, place in witness.contributed if place == record.round}
    if not set(record.sites) <= ready:
        yield f"round {number} has updates that nobody made"
        return
    _, before = model_from_bytes(outcome.models[f"round-{number - 1}.safetensors"])
    digest, model = case.reference().result(record, before, seeds_of(witness, record.round))
    if digest != record.digest:
        yield f"round {number} is not the sum of {record.sites}"
    if outcome.models[f"round-{number}.safetensors"] != model_to_bytes(LAYOUT, model):
        yield f"the model after round {number} is not that of its sum"


def _wrong_ledgers(ledgers: Mapping[str, Sequence[LedgerRecord]]) -> Iterator[str]:
    votes: dict[bytes, set[bytes]] = {}
    for site, records in ledgers.items():
        for kind in (Opened, Contributed, VoteCast, AckSent):
            attempts = Counter(record.attempt for record in records if isinstance(record, kind))
            if attempts and max(attempts.values()) > 1:
                yield f"{site} has two of {kind.__name__} in an attempt"
        sent = [record for record in records if isinstance(record, Contributed)]
        for what in ("update_tag", "t2", "header_digest"):
            if len({getattr(record, what) for record in sent}) != len(sent):
                yield f"{site} has two updates of one {what}"
        for record in records:
            if isinstance(record, VoteCast):
                votes.setdefault(record.attempt.context, set()).add(record.t3)
    if any(len(sums) > 1 for sums in votes.values()):
        yield "sites voted for different sums in an attempt"


Judge: TypeAlias = Callable[[Case, Scenario, Outcome], Iterator[str]]
"""Says what else is not as it should be."""


def as_undisturbed(case: Case, scenario: Scenario, outcome: Outcome) -> Iterator[str]:
    """What is not as if nobody had died."""
    del scenario
    if outcome.status.state != "completed":
        yield f"{outcome.status.state}: {outcome.status.reason}"
    if outcome.digests != case.undisturbed.digests:
        yield "another sum"
    if outcome.models != case.undisturbed.models:
        yield "another model"


def content(case: Case, scenario: Scenario, outcome: Outcome) -> Iterator[str]:
    """Asks for nothing more."""
    del case, scenario, outcome
    yield from ()


async def failures(
    case: Case, folder: Path, scenarios: Sequence[Scenario], judge: Judge = content
) -> dict[str, str]:
    """Plays scenarios, a few at a time; those that went wrong."""
    found: dict[str, str] = {}
    at_once = asyncio.Semaphore(AT_ONCE)

    async def one(number: int, scenario: Scenario) -> None:
        async with at_once:
            try:
                outcome = await played(case, folder / str(number), scenario)
            except TimeoutError:
                found[str(scenario)] = "it stands still"
                return
            wrong = [*wrongs(case, outcome), *judge(case, scenario, outcome)]
            if wrong:
                found[str(scenario)] = "; ".join(wrong)

    with watching_sites():
        await asyncio.gather(*(one(*numbered) for numbered in enumerate(scenarios)))
    return found
