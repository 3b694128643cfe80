"""What a coordinator keeps to catch those who contradict themselves, and what it says of them."""

from __future__ import annotations

from collections.abc import Iterable

from veilsum.errors import DecodeError
from veilsum.secagg.blame import double_signed, verdict_of
from veilsum.secagg.effects import Blamed, CoordinatorEffect, LeaveOut
from veilsum.secagg.envelope import Envelope
from veilsum.secagg.evidence import FAULT_TEXTS, Evidence, Fault, Guilty
from veilsum.secagg.messages import signed_part
from veilsum.secagg.payload import kind_of
from veilsum.secagg.plan import Plan


class Accuser:
    """Knows the first message of each kind that each site signed, the one that counts, and whom it
    has accused of what: once is enough."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._first: dict[tuple[str, str], Envelope] = {}
        self._accused: set[tuple[str, Fault]] = set()

    def took(self, site: str, message: bytes) -> None:
        """A message that was verified and accepted."""
        envelope = signed_part(message)
        self._first.setdefault((site, kind_of(envelope.payload)), envelope)

    def contradiction(self, site: str, message: bytes) -> list[Evidence]:
        """What a message shows together with the first of its kind, if it is another one. Its
        signature need not have been verified."""
        try:
            envelope = signed_part(message)
            first = self._first.get((site, kind_of(envelope.payload)))
        except DecodeError:
            return []
        if first is None or first.payload_digest == envelope.payload_digest:
            return []
        evidence = double_signed(self._plan, site, first, envelope)
        return [evidence] if isinstance(verdict_of(self._plan, evidence), Guilty) else []

    def accuse(self, papers: Iterable[Evidence]) -> list[CoordinatorEffect]:
        """Effects of evidence that convicts its accused; other evidence is none and is dropped."""
        effects: list[CoordinatorEffect] = []
        for evidence in papers:
            verdict = verdict_of(self._plan, evidence)
            if not isinstance(verdict, Guilty):
                continue
            charge = (verdict.accused, verdict.fault)
            if charge not in self._accused:
                self._accused.add(charge)
                effects.append(Blamed(*charge, evidence.to_bytes()))
                effects.append(LeaveOut(verdict.accused, FAULT_TEXTS[verdict.fault]))
        return effects
