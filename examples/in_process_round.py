"""A whole masked round in one process: twelve hospitals, two of which fail on the way.

Every message is really signed, encrypted, sent and checked; only the network is missing.
The coordinator's session sees masked words and, at the end, one sum.
"""

from __future__ import annotations

import numpy as np

from veilsum import ModelLayout, secagg
from veilsum._native import Secret
from veilsum.control import RunSpec

SITES = tuple(f"hospital-{number:02}" for number in range(1, 13))


def updates_of(sites: tuple[str, ...]) -> dict[str, secagg.Contribution]:
    """What each hospital trained, and on how many patients. Nobody else ever sees this."""
    random = np.random.default_rng(7)
    return {
        site: secagg.Contribution(
            update={
                "dense.weight": random.normal(scale=0.1, size=(64, 32)).astype(np.float32),
                "dense.bias": random.normal(scale=0.1, size=64).astype(np.float32),
            },
            weight=int(random.integers(100, 5000)),
            metrics={"auc": float(random.uniform(0.7, 0.9))},
            rounding=Secret.from_os(32),
        )
        for site in sites
    }


def main() -> None:
    consortium = secagg.make_consortium(SITES)
    updates = updates_of(SITES)
    plan = secagg.Plan.for_round(
        roster=consortium.roster,
        cohort=SITES,
        spec=RunSpec(task_id="example", clip=1.0, weight_cap=5000, metrics=("auc",)),
        run_id="example-run",
        round_number=1,
        attempt=0,
        layout=ModelLayout.from_arrays(updates[SITES[0]].update),
        model_hash=bytes(32),
        previous_result=bytes(32),
        nonce=bytes(32),
    )
    print(f"{len(SITES)} sites, {plan.vote_quorum} must vote, {plan.ring_bits}-bit ring")

    # One is lost before its upload, one after it: the first is not in the sum, the second is.
    drop: dict[str, secagg.Stage] = {"hospital-03": "inputs", "hospital-09": "votes"}
    masked = secagg.run_in_process(plan, updates, drop=drop, consortium=consortium)
    print(f"in the sum: {len(masked.sites)} sites, {masked.total_weight} patients")
    print(f"mean auc {masked.metrics['auc']:.4f}, digest {masked.digest}")

    # The same sum without masks, which only this example can compute: the same bits.
    plain = secagg.plain_ring_sum(plan, updates, masked.sites)
    print("masked equals plain:", masked.digest == plain.digest)


if __name__ == "__main__":
    main()
