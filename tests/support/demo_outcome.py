"""A demo's outcome without a demo, for what is made from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from veilsum.control import RoundId, RoundRecord, RunStatus
from veilsum.demo.baselines import Baselines, Scorecard
from veilsum.demo.data import Hospital
from veilsum.demo.folder import DemoFolder
from veilsum.demo.ledger import Traffic
from veilsum.demo.options import DemoOptions, Drop
from veilsum.demo.outcome import DemoOutcome, RoundOutcome
from veilsum.demo.proof import RoundProof

NAMES = ("hospital-01", "hospital-05", "hospital-09", "hospital-10")


def card(value: float) -> Scorecard:
    return Scorecard(value, {name: value + 0.01 * place for place, name in enumerate(NAMES)})


def round_outcome(number: int, auc: float, sites: tuple[str, ...] = NAMES) -> RoundOutcome:
    digest = f"{number:02x}" * 32
    record = RoundRecord(
        round=RoundId("run-1", number),
        completed=True,
        reason="",
        digest=digest,
        model_hash="ab" * 32,
        sites=sites,
        dropped={name: "the connection broke" for name in NAMES if name not in sites},
        total_weight=100,
        metrics={"auc": auc},
        bytes_in=dict.fromkeys(sites, 1000),
        seconds={"join": 0.5, "inputs": 1.5},
    )
    return RoundOutcome(record, card(auc), RoundProof(number, sites, digest, digest))


def outcome(out: Path = Path("out")) -> DemoOutcome:
    """Three rounds of four sites; one is killed in the second and back in the third."""
    options = DemoOptions(sites=4, rounds=3, out=out)
    rounds = (
        round_outcome(1, 0.61),
        round_outcome(2, 0.65, sites=NAMES[:3]),
        round_outcome(3, 0.7),
    )
    regions = ("europe", "americas", "asia", "asia")
    return DemoOutcome(
        options=options,
        folder=DemoFolder(out),
        sites=tuple(
            Hospital(name, region, np.arange(20), np.arange(10))
            for name, region in zip(NAMES, regions, strict=True)
        ),
        images=120,
        patients=30,
        by_extent=0.83,
        drop=Drop(NAMES[3], 2),
        run=RunStatus(
            run_id="run-1",
            spec=options.run_spec(),
            state="completed",
            reason="",
            current_round=3,
            phase="",
            sites_waiting=(),
            rounds=tuple(each.record for each in rounds),
        ),
        before=card(0.5),
        rounds=rounds,
        baselines=Baselines({name: card(0.6) for name in NAMES}, card(0.72)),
        ledger={
            name: {"masked-update": Traffic(3, 3000), "key-advert": Traffic(3, 600)}
            for name in NAMES
        },
        seconds=12.3,
    )


def outcome_with_a_wrong_sum() -> DemoOutcome:
    """As outcome(), but round 2 is not the sum of its updates."""
    good = outcome()
    first, second, third = good.rounds
    wrong = replace(second, proof=replace(second.proof, recomputed="f" * 64))
    return replace(good, rounds=(first, wrong, third))
