"""A whole round in one process: for tests, for teaching, and to embed the protocol."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Literal, NamedTuple, TypeAlias

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from veilsum._native import Secret
from veilsum.aggregate.secure_sum import SecureSum
from veilsum.errors import ConfigError, RoundAborted
from veilsum.roster import Roster, RosterEntry
from veilsum.secagg.coordinator import CoordinatorSession
from veilsum.secagg.effects import (
    Aborted,
    Completed,
    CoordinatorEffect,
    NeedUpdate,
    SecureResult,
    Send,
    SendTo,
    SiteEffect,
    UploadInput,
    Withdraw,
)
from veilsum.secagg.keys import SECRET_BYTES, Entropy
from veilsum.secagg.ledger import Ledger
from veilsum.secagg.masks import MaskKeys
from veilsum.secagg.plan import Plan
from veilsum.secagg.policy import LocalPolicy
from veilsum.secagg.result import secure_result
from veilsum.secagg.site import SiteSession
from veilsum.secagg.upload import Contribution, encode_upload

Stage: TypeAlias = Literal["keys", "shares", "inputs", "votes", "unmask"]
"""The phase a site is lost in, before it sent what the phase collects."""


class Consortium(NamedTuple):
    """A roster and everybody's signing keys."""

    roster: Roster
    site_keys: dict[str, Ed25519PrivateKey]
    coordinator_key: Ed25519PrivateKey


def make_consortium(sites: Iterable[str], *, name: str = "rehearsal", epoch: int = 1) -> Consortium:
    """A roster of these sites with fresh signing keys."""
    site_keys = {site: Ed25519PrivateKey.generate() for site in sites}
    coordinator_key = Ed25519PrivateKey.generate()
    entries = tuple(
        RosterEntry(site, key.public_key().public_bytes_raw()) for site, key in site_keys.items()
    )
    roster = Roster(name, epoch, coordinator_key.public_key().public_bytes_raw(), entries)
    return Consortium(roster, site_keys, coordinator_key)


def run_in_process(
    plan: Plan,
    updates: Mapping[str, Contribution],
    *,
    drop: Mapping[str, Stage] | None = None,
    consortium: Consortium | None = None,
    entropy: Entropy = Secret.from_os,
    threads: int = 1,
    backend: str = "cpu",
    site_backend: str = "cpu",
) -> SecureResult:
    """Runs a masked round with every message really signed, sent and checked.

    Args:
        plan: of the round.
        updates: site -> what it contributes; a site without one is lost before its upload.
            Where `rounding` is None, it is drawn from `entropy`.
        drop: sites to lose, and the phase in which.
        consortium: the signing keys behind plan.roster. Without, fresh ones are made and
            the plan is re-made for a roster that differs in the keys only.
        entropy: source of secret bytes.
        threads: of encoding and summing.
        backend: where the coordinator sums, "cpu" or a device such as "cuda:0".
        site_backend: where the sites encode and mask.

    Raises:
        ConfigError: an update does not fit the plan, or `drop` names a stranger.
        RoundAborted: too few sites were left, or a check of the result failed.
        DeviceError: the device of a site failed.
    """
    if consortium is None:
        consortium = make_consortium(plan.roster.sites, name=plan.roster.consortium)
        plan = replace(plan, roster=consortium.roster)
    strangers = sorted({*(drop or {}), *updates} - set(plan.cohort))
    if strangers:
        raise ConfigError(f"sites outside the cohort: {strangers}")
    backends = _Backends(backend, site_backend)
    rehearsal = _Rehearsal(plan, consortium, updates, dict(drop or {}), entropy, threads, backends)
    try:
        return rehearsal.run()
    finally:
        rehearsal.close()


class _Backends(NamedTuple):
    coordinator: str
    site: str


class _Rehearsal:
    """Carries out the effects of all sessions, in order, by calling one another."""

    def __init__(
        self,
        plan: Plan,
        consortium: Consortium,
        updates: Mapping[str, Contribution],
        drop: dict[str, Stage],
        entropy: Entropy,
        threads: int,
        backends: _Backends,
    ) -> None:
        self._updates = updates
        self._drop = drop
        self._entropy = entropy
        self._threads = threads
        self._coordinator = CoordinatorSession(
            plan,
            signing_key=consortium.coordinator_key,
            threads=threads,
            backend=backends.coordinator,
            audit_seed=bytes(entropy(SECRET_BYTES)),
        )
        self._sites = {
            site: SiteSession(
                site=site,
                signing_key=consortium.site_keys[site],
                roster=plan.roster,
                policy=LocalPolicy(min_colluders=plan.colluders),
                entropy=entropy,
                ledger=Ledger.in_memory(entropy),
                backend=backends.site,
                chained=False,
            )
            for site in plan.cohort
        }
        self._from_sites: deque[tuple[str, SiteEffect]] = deque()
        self._from_coordinator: deque[CoordinatorEffect] = deque()

    def run(self) -> SecureResult:
        self._from_coordinator.extend(self._coordinator.open())
        while self._from_coordinator or self._from_sites:
            while self._from_coordinator:
                result = self._carry_out(self._from_coordinator.popleft())
                if result is not None:
                    return result
            if self._from_sites:
                site, effect = self._from_sites.popleft()
                self._from_coordinator.extend(self._deliver(site, effect))
        raise RoundAborted("the round stopped without an end")

    def close(self) -> None:
        self._coordinator.abort("the rehearsal is over")
        for session in self._sites.values():
            session.close()

    def _carry_out(self, effect: CoordinatorEffect) -> SecureResult | None:
        match effect:
            case SendTo(site, message):
                replies = self._sites[site].handle(message)
                self._from_sites.extend((site, reply) for reply in replies)
            case Aborted(reason):
                raise RoundAborted(reason)
            case Completed(result):
                return result
        return None

    def _deliver(self, site: str, effect: SiteEffect) -> list[CoordinatorEffect]:
        if (
            isinstance(effect, Send | UploadInput)
            and self._drop.get(site) == self._coordinator.phase
        ):
            return self._coordinator.lost(site, f"was lost in the {self._drop[site]} phase")
        match effect:
            case Send(message):
                return self._coordinator.handle(site, message)
            case NeedUpdate():
                return self._contribute(site)
            case UploadInput(header, update_id, chunks):
                return self._coordinator.accept_input(site, header, update_id, chunks)
            case Withdraw(_, reason):
                return self._coordinator.lost(site, f"withdrew: {reason}")
        return []

    def _contribute(self, site: str) -> list[CoordinatorEffect]:
        if site not in self._updates:
            return self._coordinator.lost(site, "has no update")
        given = Contribution(*self._updates[site])
        effects = self._sites[site].contribute(
            given.update,
            weight=given.weight,
            metrics=given.metrics,
            rounding=given.rounding or self._entropy(SECRET_BYTES),
            threads=self._threads,
        )
        self._from_sites.extend((site, effect) for effect in effects)
        return []


def plain_ring_sum(
    plan: Plan,
    contributions: Mapping[str, Contribution],
    survivors: Iterable[str],
    *,
    threads: int = 1,
) -> SecureResult:
    """The same sum without masks: what the masked round must have computed, bit for bit.

    Args:
        plan: of the masked round.
        contributions: site -> (update, weight, metrics, rounding), as it contributed.
        survivors: whose updates are in the sum.

    Raises:
        ConfigError: a survivor's contribution is missing, has no rounding secret or does not
            fit the plan.
        RoundAborted: as in the masked round.
    """
    chosen = tuple(sorted(survivors, key=str.encode))
    total = SecureSum(plan.ring, threads=threads)
    for site in chosen:
        if site not in contributions or Contribution(*contributions[site]).rounding is None:
            raise ConfigError(f"site {site!r} has no contribution with its rounding secret")
        encoded = encode_upload(
            plan, Contribution(*contributions[site]), MaskKeys(), update_id=0, threads=threads
        )
        total.fold(encoded.chunks)
    dropped = {site: "is not in the sum" for site in plan.cohort if site not in chosen}
    return secure_result(plan.layout, total.finish(len(chosen)), chosen, dropped)
