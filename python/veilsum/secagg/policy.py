"""What a site demands of every round, whatever the coordinator plans."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from veilsum.control import MaskGenerator
from veilsum.errors import ConfigError
from veilsum.secagg.payload import SUITE, SUITES
from veilsum.secagg.plan import Plan
from veilsum.secagg.refusals import RefusalCode
from veilsum.secagg.thresholds import usual_colluders

CohortDifference: TypeAlias = Literal["warn", "refuse"]
Spent: TypeAlias = Literal["vote", "input"]
Audit: TypeAlias = Literal["off", "sample", "all"]
MissedRounds: TypeAlias = Literal["acks", "refuse"]
Provenance: TypeAlias = Literal["recompute", "off"]

_HASH = re.compile("[0-9a-f]{64}")


class Refusal(Exception):  # noqa: N818  not an error: the site's right
    """A site will not go on with a round. `code` is for machines, `reason` for people;
    `number` is what a signed refusal says, where that is more than the code."""

    number: RefusalCode | None = None

    def __init__(self, code: str, reason: str, *, local_reason: str = "") -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.local_reason = local_reason  # for this site's own log


@dataclass(frozen=True, slots=True)
class LocalPolicy:
    """The site's own bounds on a plan. A plan's internal consistency is checked anyway.

    Attributes:
        min_sites: fewest updates that may be in a sum with this site's.
        min_colluders: the plan must withstand at least so many colluding sites; None for a
            third of the roster's. The plan is the coordinator's, and so is the choice of whom
            it invites; what it assumes about its helpers protects from them only as far as
            each site insists on it, and a share of the invited would shrink with them.
        min_vote_quorum: fewest votes for a survivor set.
        max_weight_cap: largest weight_cap accepted; None for any.
        task_ids: tasks the site takes part in; None for any.
        mask_generators: generators of masks the site accepts, "chacha20" and "aes256ctr"; None
            for any.
        min_invited: fewest sites that a round may invite, this one included.
        max_attempts: most attempts at one round that the site may be invited to.
        cohort_difference: what to do about a survivor set that differs from the last one of
            its task by fewer sites than a sum must have: "warn" or "refuse".
        spent: from when on an update may never be sent again in its task: "input", once it has
            left; "vote", once this site has voted in the attempt that it was in. With "vote" a
            coordinator that chooses cohorts can get two sums that differ by one site's update.
        missed_rounds: whether the site goes on after a round whose result it did not acknowledge
            itself: "acks", if a quorum of that round's sites did; "refuse", never in that run.
        provenance: what the site asks of the model it is to train from: "recompute", that it was
            made by the steps that plans state from sums that sites voted for, back to a start
            that this site accepts (origin.py); "off", nothing.
        start_models: hashes of models, and of optimizer states, that a task may start from, 64
            hexadecimal digits each. None: the first model of the first task, and of every task
            in `task_ids`, is trusted, once.
        suites: suites the site accepts. A list and not "any": a suite that a later version
            brings is not accepted by a site that nobody asked.
        audit: how much of a sum this site computes again from the masked updates of all before it
            acknowledges it: "off"; "sample", 64 chunks of each stream that it chooses in secret;
            "all". It acknowledges no sum that the coordinator does not let it check.

    Raises:
        ConfigError: a generator, suite or way of that name does not exist, or there is no attempt.
    """

    min_sites: int = 3
    min_colluders: int | None = None
    min_vote_quorum: int = 0
    max_weight_cap: int | None = None
    task_ids: frozenset[str] | None = None
    mask_generators: frozenset[MaskGenerator] | None = None
    min_invited: int = 3
    max_attempts: int = 3
    cohort_difference: CohortDifference = "warn"
    spent: Spent = "input"
    audit: Audit = "off"
    missed_rounds: MissedRounds = "acks"
    provenance: Provenance = "recompute"
    start_models: frozenset[str] | None = None
    suites: frozenset[str] = frozenset({"VS-1"})

    def __post_init__(self) -> None:
        _check_one_of("cohort_difference", self.cohort_difference, get_args(CohortDifference))
        _check_one_of("audit", self.audit, get_args(Audit))
        _check_one_of("spent", self.spent, get_args(Spent))
        _check_one_of("missed_rounds", self.missed_rounds, get_args(MissedRounds))
        _check_one_of("provenance", self.provenance, get_args(Provenance))
        for pin in self.start_models or ():
            if not _HASH.fullmatch(pin):
                raise ConfigError(f"start_models must be 64 hexadecimal digits each, got {pin!r}")
        if self.max_attempts < 1:
            raise ConfigError(f"max_attempts must be at least 1, got {self.max_attempts}")
        _check_named("mask_generators", self.mask_generators, get_args(MaskGenerator))
        _check_named("suites", self.suites, SUITES)

    def check(self, plan: Plan) -> None:
        """Args:
            plan: read with the site's own roster.

        Raises:
            Refusal: the plan is outside of this policy; code "policy".
        """
        min_colluders = self.min_colluders
        if min_colluders is None:
            min_colluders = usual_colluders(len(plan.roster.sites))
        floors = (
            (RefusalCode.COHORT, "the number of invited sites", len(plan.cohort), self.min_invited),
            (RefusalCode.CONTRIBUTORS, "min_sites", plan.fewest_survivors, self.min_sites),
            (RefusalCode.COLLUDERS, "colluders", plan.colluders, min_colluders),
            (RefusalCode.QUORUM, "vote_quorum", plan.vote_quorum, self.min_vote_quorum),
        )
        for number, name, planned, demanded in floors:
            if planned < demanded:
                raise _outside(number, f"{name} is {planned}, this site demands {demanded}")
        if plan.attempt >= self.max_attempts:
            raise _outside(
                RefusalCode.ATTEMPTS,
                f"this is attempt {plan.attempt + 1}, this site allows {self.max_attempts}",
            )
        if self.max_weight_cap is not None and plan.weight_cap > self.max_weight_cap:
            raise _outside(
                RefusalCode.WEIGHT_CAP,
                f"weight_cap is {plan.weight_cap}, this site allows {self.max_weight_cap}",
            )
        if not any(SUITES[name] == SUITE for name in self.suites):
            raise _outside(RefusalCode.SUITE, "the round's suite is not allowed at this site")
        if self.mask_generators is not None and plan.mask_generator not in self.mask_generators:
            raise _outside(
                RefusalCode.GENERATOR,
                f"masks of {plan.mask_generator!r} are not allowed at this site",
            )
        if self.task_ids is not None and plan.task_id not in self.task_ids:
            raise _outside(RefusalCode.TASK, f"task {plan.task_id!r} is not allowed at this site")


def _check_one_of(field: str, value: str, choices: tuple[str, str]) -> None:
    if value not in choices:
        raise ConfigError(f"{field} must be {choices[0]!r} or {choices[1]!r}, got {value!r}")


def _check_named(key: str, names: frozenset[str] | None, known: Collection[str]) -> None:
    """A name that no plan can have would refuse every round."""
    unknown = sorted(set(names or ()) - set(known))
    if unknown or names == frozenset():
        raise ConfigError(f"{key} must name some of {sorted(known)}, got {unknown or 'none'}")


def _outside(number: RefusalCode, reason: str) -> Refusal:
    refusal = Refusal("policy", reason)
    refusal.number = number
    return refusal
