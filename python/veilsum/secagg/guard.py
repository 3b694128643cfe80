"""Two sums over nearly the same sites: what their difference shows, and about whom."""

from __future__ import annotations

from collections.abc import Set

from veilsum.secagg.plan import Plan
from veilsum.secagg.policy import LocalPolicy, Refusal


def cohort_warning(
    policy: LocalPolicy, plan: Plan, last: Set[str] | None, survivors: Set[str]
) -> str | None:
    """Whether a survivor set is too near the last one of its task.

    From one round to the next an update changes little, so the difference of two sums is
    nearly a sum over the sites that are in one of them only. A sum of so few would not be
    published; unless there are none, or enough. A site that drops out for a round looks the
    same, and three sets that differ enough two by two can still single out a site: this is a
    sign for people, not a protection. Differential privacy is one.

    Args:
        last: the last set that this site voted for in the task; None if there is none.

    Returns:
        what to tell the site's people, or None.

    Raises:
        Refusal: code "cohort_difference", if the policy says so.
    """
    if last is None:
        return None
    apart = len(last ^ survivors)
    enough = max(plan.min_sites, policy.min_sites)
    if apart == 0 or apart >= enough:
        return None
    text = f"the survivor set differs from the last one by {apart} sites, fewer than {enough}"
    if policy.cohort_difference == "refuse":
        raise Refusal("cohort_difference", text)
    return text
