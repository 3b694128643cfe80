"""Whole rounds among the same sites, whose ledgers go on from one round to the next."""

from __future__ import annotations

from collections.abc import Iterable

from support.secagg import NAMES, Federation, make_contributions, make_plan
from veilsum import secagg
from veilsum._native import Secret
from veilsum.secagg.ledger_records import AckSent

SITES = NAMES[:5]
VICTIM = SITES[4]


class Forgetful(secagg.Ledger):
    """The defence removed: says yes to everything. Results it has acknowledged it knows, as
    otherwise a next round would show it that it forgets."""

    def __init__(self) -> None:
        super().__init__(Secret.zeros(32), lambda record: None)
        self._acks: dict[tuple[str, str], AckSent] = {}

    def check(self, record: object) -> None:
        """Never minds."""

    def remember(self, record: object) -> None:
        """Forgets at once."""
        if isinstance(record, AckSent):
            self._acks[record.attempt.task_id, record.attempt.run_id] = record

    def last_ack(self, task_id: str, run_id: str) -> AckSent | None:
        """The one thing it knows."""
        return self._acks.get((task_id, run_id))

    def check_never_sent(self, task_id: str, tag: bytes) -> None:
        """Never minds."""


def remembering() -> dict[str, secagg.Ledger]:
    return {site: secagg.Ledger.in_memory(Secret.from_os) for site in SITES}


def forgetful() -> dict[str, secagg.Ledger]:
    return {site: Forgetful() for site in SITES}


def round_of(
    ledgers: dict[str, secagg.Ledger],
    *,
    without: Iterable[str] = (),
    policy: secagg.LocalPolicy | None = None,
    seed: int = 1,
    previous: secagg.PreviousRound | None = None,
    **plan: object,
) -> Federation:
    """A round in which the updates are those of every other round made here."""
    follows = {"previous_result": previous.digest} if previous else {}
    made = make_plan(5, colluders=1, metrics=(), **follows, **plan)
    federation = Federation(
        made,
        ledgers=ledgers,
        contributions=make_contributions(make_plan(5, colluders=1, metrics=())),
        policies=dict.fromkeys(SITES, policy or secagg.LocalPolicy(min_colluders=1)),
        seed=seed,
        previous=previous,
    )
    for site in without:
        federation.from_coordinator(federation.coordinator.lost(site, "was left out"))
    federation.run()
    return federation


def result_of(federation: Federation) -> secagg.SecureResult | None:
    for effect in federation.coordinator_effects:
        if isinstance(effect, secagg.Completed):
            return effect.result
    return None


def withdrawals(federation: Federation) -> dict[str, str]:
    return {
        site: effect.code
        for site, effect in federation.site_effects
        if isinstance(effect, secagg.Withdraw)
    }
