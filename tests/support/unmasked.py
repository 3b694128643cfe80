"""What the first round of a simulated federation sums to, computed without masks."""

from __future__ import annotations

from collections.abc import Mapping

from support.federation import ShiftTrainer, make_roster, rounding_seed, small_model
from veilsum import secagg
from veilsum.control import RoundId, RunSpec
from veilsum.difference import model_difference
from veilsum.model import ModelLayout
from veilsum.site.rounding import rounding_secret


def sum_without_masks(
    settings: RunSpec,
    sites: tuple[str, ...],
    survivors: tuple[str, ...],
    metrics: Mapping[str, float],
) -> secagg.SecureResult:
    """The result of round 1 of run "run".

    Args:
        sites: that were invited.
        survivors: whose updates are in the sum.
        metrics: of each site.
    """
    model = small_model()
    layout = ModelLayout.from_arrays(model)
    plan = secagg.Plan.for_round(
        roster=make_roster(sites),
        cohort=sites,
        spec=settings,
        run_id="run",
        round_number=1,
        attempt=0,
        layout=layout,
        model_hash=bytes(32),
        previous_result=bytes(32),
        nonce=bytes(32),
    )
    contributions = {
        site: secagg.Contribution(
            model_difference(layout, ShiftTrainer(site).shifted(model, settings.task), model),
            10,
            metrics,
            rounding_secret(rounding_seed(site), RoundId("run", 1), site),
        )
        for site in sites
    }
    return secagg.plain_ring_sum(plan, contributions, survivors)
