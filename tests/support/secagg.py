"""Masked rounds for tests: a small consortium, and a post office that can be stopped."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from support.rosters import key_of, roster_of
from veilsum import secagg
from veilsum._native import Secret
from veilsum.model import ModelLayout
from veilsum.optimizers import FedAvg, step_rule_bytes
from veilsum.secagg.audit_record import AuditRecord
from veilsum.secagg.envelope import Envelope
from veilsum.secagg.messages import SealedDeal
from veilsum.secagg.payload import Message, kind_of, read_payload
from veilsum.secagg.result_messages import MODEL_RECOMPUTED
from veilsum.secagg.thresholds import share_threshold, smallest_ring, vote_quorum

NAMES = ("basel", "kyoto", "lyon", "oslo", "quito", "riga", "sydney", "turin")
ZERO_HASH = bytes(32)
UPLOAD = "masked-input"

Arrays = dict[str, NDArray[Any]]


# The same keys in every run: a roster's hash is part of every mask key, and statistics of masks
# are to be the same in every run too.
_CONSORTIUM = secagg.Consortium(
    roster_of(NAMES), {name: key_of(name) for name in NAMES}, key_of("the coordinator")
)


def consortium() -> secagg.Consortium:
    """The same members and keys in every test."""
    return _CONSORTIUM


def small_arrays(seed: int, size: int = 10) -> Arrays:
    rng = np.random.default_rng(seed)
    return {
        "weight": rng.uniform(-1, 1, size).astype(np.float32),
        "steps": rng.integers(-50, 50, 3).astype(np.int64),
    }


def make_plan(sites: int = 4, *, layout: ModelLayout | None = None, **changes: Any) -> secagg.Plan:
    """A plan for the first `sites` members that holds together; `changes` replace fields."""
    colluders = changes.get("colluders", sites // 3)
    value_bits = changes.get("value_bits", 16)
    fields: dict[str, Any] = {
        "roster": _CONSORTIUM.roster,
        "cohort": NAMES[:sites],
        "task_id": "diagnosis",
        "run_id": "run-1",
        "round_number": 1,
        "attempt": 0,
        "layout": layout or ModelLayout.from_arrays(small_arrays(0)),
        "model_hash": ZERO_HASH,
        "previous_result": ZERO_HASH,
        "task_hash": ZERO_HASH,
        "nonce": ZERO_HASH,
        "min_sites": 3,
        "colluders": colluders,
        "vote_quorum": vote_quorum(sites, colluders),
        "share_threshold": share_threshold("strict", sites, colluders),
        "value_bits": value_bits,
        "ring_bits": smallest_ring(sites, 2 ** (value_bits - 1) - 1, 2),
        "clip": 1.0,
        "weight_cap": 100,
        "metrics": ("loss",),
        "step_rule": step_rule_bytes(FedAvg()),
    }
    return secagg.Plan(**{**fields, **changes})


def make_contributions(
    plan: secagg.Plan, arrays: Callable[[int], Arrays] = small_arrays
) -> dict[str, secagg.Contribution]:
    """One per site of the cohort; every second one reports the metric."""
    return {
        site: secagg.Contribution(
            arrays(number),
            10 * number + 7,
            {"loss": 0.25 * number} if number % 2 and "loss" in plan.metrics else {},
            Secret.from_bytes(bytes([number + 1]) * 32),
        )
        for number, site in enumerate(plan.cohort)
    }


def fixed_entropy(seed: int) -> Callable[[int], Secret]:
    """A repeatable source of "secret" bytes."""
    rng = np.random.default_rng(seed)
    return lambda size: Secret.from_bytes(rng.bytes(size))


def kind_on_the_wire(message: bytes) -> str:
    """Message type, whatever the outer form."""
    try:
        return kind_of(Envelope.from_bytes(message).payload)
    except ValueError:
        return kind_of(SealedDeal.from_bytes(message).header.payload)


class Federation:
    """All sessions of one round, and every message between them in order."""

    def __init__(
        self,
        plan: secagg.Plan,
        *,
        contributions: Mapping[str, secagg.Contribution] | None = None,
        policies: Mapping[str, secagg.LocalPolicy] | None = None,
        ledgers: Mapping[str, secagg.Ledger] | None = None,
        seed: int = 1,
        previous: secagg.PreviousRound | None = None,
        record: AuditRecord | None = None,
    ) -> None:
        self.plan = plan
        self.contributions = contributions or make_contributions(plan)
        self.entropies = {
            site: fixed_entropy(seed * 1000 + number) for number, site in enumerate(plan.cohort)
        }
        self.sites = {
            site: secagg.SiteSession(
                site=site,
                signing_key=_CONSORTIUM.site_keys[site],
                roster=plan.roster,
                policy=(policies or {}).get(site, secagg.LocalPolicy(min_colluders=plan.colluders)),
                entropy=self.entropies[site],
                ledger=(ledgers or {}).get(site) or secagg.Ledger.in_memory(Secret.zeros),
            )
            for site in plan.cohort
        }
        self.coordinator = secagg.CoordinatorSession(
            plan,
            signing_key=_CONSORTIUM.coordinator_key,
            audit_seed=bytes(32),
            previous=previous,
            record=record,
        )
        self.queue: deque[tuple[str, str, Any]] = deque()  # (from, to, message); "" coordinator
        self.sent: list[tuple[str, str, Any]] = []
        self.coordinator_effects: list[secagg.CoordinatorEffect] = []
        self.site_effects: list[tuple[str, secagg.SiteEffect]] = []
        self.from_coordinator(self.coordinator.open())

    def from_coordinator(self, effects: Sequence[secagg.CoordinatorEffect]) -> None:
        self.coordinator_effects += effects
        for effect in effects:
            if isinstance(effect, secagg.SendTo):
                self._post("", effect.site, effect.message)

    def from_site(self, site: str, effects: Sequence[secagg.SiteEffect]) -> None:
        for effect in effects:
            self.site_effects.append((site, effect))
            match effect:
                case secagg.Send(message):
                    self._post(site, "", message)
                case secagg.UploadInput():
                    self._post(site, "", effect)
                case secagg.NeedUpdate():
                    self.from_site(site, self.contribute(site))
                case secagg.ResultReady():
                    self.from_site(site, self.sites[site].checked_result(MODEL_RECOMPUTED))
                case secagg.Withdraw(_, reason):
                    self.from_coordinator(self.coordinator.lost(site, f"withdrew: {reason}"))

    def contribute(self, site: str) -> list[secagg.SiteEffect]:
        given = self.contributions[site]
        return self.sites[site].contribute(
            given.update, weight=given.weight, metrics=given.metrics, rounding=given.rounding
        )

    def _post(self, origin: str, to: str, message: Any) -> None:
        self.sent.append((origin, to, message))
        self.queue.append((origin, to, message))

    def deliver(self, origin: str, to: str, message: Any) -> None:
        if to:
            self.from_site(to, self.sites[to].handle(message))
        elif isinstance(message, secagg.UploadInput):
            self.from_coordinator(
                self.coordinator.accept_input(
                    origin, message.header, message.update_id, message.chunks
                )
            )
        else:
            self.from_coordinator(self.coordinator.handle(origin, message))

    def run(self) -> None:
        """Until no message is under way."""
        while self.queue:
            self.deliver(*self.queue.popleft())

    def publish(self, model_hash: bytes = ZERO_HASH) -> None:
        """The server made its step: the result goes out."""
        self.from_coordinator(self.coordinator.publish(model_hash, ZERO_HASH))

    def hold(self, kind: str, *, origin: str = "", to: str = "") -> Any:
        """Runs until this message is next and takes it out of the post."""
        while self.queue:
            item = self.queue.popleft()
            found = UPLOAD if isinstance(item[2], secagg.UploadInput) else kind_on_the_wire(item[2])
            if item[:2] == (origin, to) and found == kind:
                return item[2]
            self.deliver(*item)
        raise AssertionError(f"no {kind} from {origin!r} to {to!r} was sent")

    def payloads(self, kind: str) -> dict[str, bytes]:
        """Payload of each sender's message of one kind, as sent."""
        found = {}
        for origin, _, message in self.sent:
            if isinstance(message, secagg.UploadInput):
                envelope = Envelope.from_bytes(message.header)
            elif kind_on_the_wire(message) == "share-deal":
                envelope = SealedDeal.from_bytes(message).header
            else:
                envelope = Envelope.from_bytes(message)
            if kind_of(envelope.payload) == kind:
                found[origin] = envelope.payload
        return found

    @property
    def result(self) -> secagg.SecureResult:
        last = self.coordinator_effects[-1]
        assert isinstance(last, secagg.Completed), last
        return last.result

    @property
    def acknowledged(self) -> secagg.Acknowledged:
        last = self.coordinator_effects[-1]
        assert isinstance(last, secagg.Acknowledged), last
        return last

    @property
    def excluded(self) -> dict[str, str]:
        return {
            effect.site: effect.reason
            for effect in self.coordinator_effects
            if isinstance(effect, secagg.Excluded)
        }


def signing_key(sender: str) -> Any:
    return _CONSORTIUM.site_keys[sender] if sender else _CONSORTIUM.coordinator_key


def seal(message: Message, *, signer: str | None = None) -> bytes:
    """An envelope of any message, signed by its sender or by someone else."""
    key = signing_key(message.sender if signer is None else signer)
    return Envelope.sign(message.kind, message.to_payload(), key).to_bytes()


def read(kind: type[Any], message: bytes) -> Any:
    return read_payload(kind, Envelope.from_bytes(message).payload, context=None)


def forge(kind: type[Any], message: bytes, **changes: Any) -> bytes:
    """The same message with some fields changed, signed again by its sender."""
    return seal(replace(read(kind, message), **changes))
