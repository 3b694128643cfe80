"""Who takes part, and whether that is enough. Pure functions."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace

from veilsum import plain, secagg
from veilsum.codecs.families import ring_bits
from veilsum.control import RunSpec, TaskSettings
from veilsum.errors import ConfigError
from veilsum.model import ModelLayout
from veilsum.roster import Roster

_DIGEST_BYTES = 32


def cohort_of(spec: RunSpec, roster: Roster) -> tuple[str, ...]:
    """The sites a run invites to each round, sorted by the bytes of their names.

    Raises:
        ConfigError: a site is not in the roster.
    """
    strangers = sorted(set(spec.cohort) - set(roster.sites))
    if strangers:
        raise ConfigError(
            f"the cohort names {strangers[0]!r}, which is not in the roster of "
            f"{roster.consortium!r}"
        )
    return tuple(site for site in roster.sites if not spec.cohort or site in spec.cohort)


def missing_sites(
    cohort: tuple[str, ...], present: Set[str], given_up: Set[str]
) -> tuple[str, ...]:
    """Whom a round waits for before it opens: absent, and not yet waited for in vain."""
    return tuple(site for site in cohort if site not in present and site not in given_up)


def shortfall(verb: str, count: int, invited: int, needed: int) -> str | None:
    """Why a round cannot go on, or None if it can."""
    if count >= needed:
        return None
    return f"{count} of {invited} sites {verb}, {needed} are needed"


def too_light(updates: int, total_weight: int, needed: int) -> str | None:
    """Why so many updates of this weight give no result, or None if they do."""
    if total_weight >= needed:
        return None
    return f"{updates} updates weigh {total_weight} together, min_weight is {needed}"


def task_of_round(task: TaskSettings, number: int) -> TaskSettings:
    """The task of one round: the run's, with another seed in every round, so that sites do
    not see their data in the same order each time. Round 1 has the run's own seed."""
    return replace(task, seed=(task.seed + number - 1) % 2**63)


def check_run(spec: RunSpec, layout: ModelLayout, roster: Roster) -> None:
    """Refuses a run that could not complete a round even with every site present.

    Raises:
        ConfigError: says which setting, and what it would have to be.
    """
    cohort = cohort_of(spec, roster)
    if spec.min_sites > len(cohort):
        raise ConfigError(f"min_sites is {spec.min_sites}, the cohort has {len(cohort)} sites")
    invites = _check_turnout(spec, len(cohort))
    if spec.masked:
        _check_masked(spec, layout, roster, cohort[:invites])
    else:
        _check_plain(spec, layout, cohort)


def _check_turnout(spec: RunSpec, cohort: int) -> int:
    """Checks what the run wants of its cohort against the number of sites in it; returns how many
    a round invites at most."""
    turnout = spec.turnout
    if turnout.invites > cohort:
        more = f" with {turnout.over_select:g} over_select" if turnout.over_select else ""
        raise ConfigError(
            f"a round is to invite {turnout.invites} sites{more}, the cohort has {cohort}",
            hint="lower select, quorum or over_select; select = 0 invites every site that is there",
        )
    if turnout.quorum > cohort:
        raise ConfigError(
            f"quorum is {turnout.quorum}, the cohort has {cohort} sites",
            hint="quorum = 0 waits for every site until the deadline",
        )
    invites = turnout.invites or cohort
    if turnout.min_weight > (most := _most_updates(spec, invites, cohort)) * spec.weight_cap:
        raise ConfigError(
            f"min_weight is {turnout.min_weight}, {most} updates of at most {spec.weight_cap} "
            f"(weight_cap) weigh {most * spec.weight_cap} together"
        )
    return invites


def _most_updates(spec: RunSpec, invites: int, cohort: int) -> int:
    """How many updates a round can have. A masked one closes at its quorum, whatever they weigh;
    a plain one can have late ones beside those of the sites it invited."""
    if spec.masked:
        return spec.turnout.closes_at or invites
    return cohort if spec.late == "next" else invites


def _check_plain(spec: RunSpec, layout: ModelLayout, cohort: tuple[str, ...]) -> None:
    if spec.buffer_size > len(cohort):
        raise ConfigError(
            f"buffer_size is {spec.buffer_size}, the cohort has {len(cohort)} sites",
            hint="a site sends one update of each version of the model, so a larger buffer would "
            "never be full",
        )
    bits = ring_bits(spec.codec)
    if bits is not None and bits != spec.value_bits:
        raise ConfigError(
            f"codec {spec.codec!r} holds steps of {bits} bits, value_bits is {spec.value_bits}",
            hint="in a plain run both must be equal",
        )
    plain.require_codec(spec, layout)
    if spec.overrange != "refuse":
        raise ConfigError(
            f"overrange {spec.overrange!r} is for masked runs",
            hint='a plain run refuses values beyond the clip: use overrange "refuse"',
        )


def _check_masked(
    spec: RunSpec, layout: ModelLayout, roster: Roster, cohort: tuple[str, ...]
) -> None:
    """A plan checks itself completely, so one is made and dropped. The votes that a round needs
    grow with the sites it invites: a quorum that is enough for the most of them is for fewer.

    Args:
        cohort: as many sites as a round invites at most.
    """
    plan = secagg.Plan.for_round(
        roster=roster,
        cohort=cohort,
        spec=spec,
        run_id="check",
        round_number=1,
        attempt=0,
        layout=layout,
        model_hash=bytes(_DIGEST_BYTES),
        previous_result=bytes(_DIGEST_BYTES),
        nonce=bytes(_DIGEST_BYTES),
    )
    closes_at = spec.turnout.closes_at
    if 0 < closes_at < plan.fewest_survivors:
        raise ConfigError(
            f"a round would close with {closes_at} updates, a masked one of {len(cohort)} sites "
            f"needs {plan.fewest_survivors} ({plan.vote_quorum} votes, min_sites "
            f"{plan.min_sites})",
            hint="raise quorum, or invite fewer sites beyond it",
        )
