"""How a coordinator deals with complaints: hears both sides, and leaves out whom it must.

It takes no updates meanwhile. An attempt in which a site has no share of some dealer's secrets ends
without a sum; what is decided here is who is not in the next one.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from veilsum.errors import PeerError
from veilsum.secagg.blame import complaint_evidence
from veilsum.secagg.complaints import Complaint, Finding, Justification, judge
from veilsum.secagg.effects import CoordinatorEffect, Disputed, LeaveOut
from veilsum.secagg.envelope import Envelope
from veilsum.secagg.evidence import Evidence, named
from veilsum.secagg.messages import DealtShare
from veilsum.secagg.payload import open_envelope
from veilsum.secagg.phases import Dealers
from veilsum.secagg.plan import Plan


@dataclass(slots=True)
class Heard:
    """A complaint that is about a box of this round, and the dealer's answer once it came."""

    complaint: Complaint
    envelope: Envelope
    entry: DealtShare
    justification: Justification | None = None
    answer: Envelope | None = None

    @property
    def finding(self) -> Finding:
        """What both come to so far."""
        return judge(self.entry, self.complaint, self.justification)


@dataclass(frozen=True, slots=True)
class Judging:
    """Dealers have to answer complaints. A site may complain once, about one dealer: after that it
    has no share to go on with."""

    name: ClassVar[str] = "complaints"
    noun: ClassVar[str] = "answer"
    expected: tuple[str, ...]
    dealers: Dealers
    received: dict[str, Heard] = field(default_factory=dict)  # by complainer

    def hear(self, plan: Plan, site: str, envelope: Envelope) -> Heard:
        """Takes a complaint.

        Raises:
            DecodeError, PeerError: it is not about a box of this round, or a second one.
        """
        self._check_expected(site)
        key = plan.roster.signing_key(site)
        complaint = open_envelope(Complaint, envelope, key, sender=site, context=plan.context)
        dealers = self.dealers
        if site in self.received:
            raise PeerError(site, "complained about two dealers")
        if complaint.dealer not in dealers.deals or complaint.dealer == site:
            raise PeerError(site, "complained about a site that dealt it nothing")
        deal = dealers.deals[complaint.dealer]
        entry = deal.entries[dealers.members.index(site) - 1]
        relayed = (dealers.members.t1, deal.header.payload_digest, entry.box_digest)
        box = hashlib.sha256(complaint.box).digest()
        if (complaint.t1, complaint.header, box) != relayed:
            raise PeerError(site, "complained about a box that was not relayed to it")
        heard = Heard(complaint, envelope, entry)
        self.received[site] = heard
        return heard

    def answer(self, plan: Plan, site: str, envelope: Envelope) -> Heard:
        """Takes a dealer's answer; the first one counts.

        Raises:
            DecodeError, PeerError: it answers no complaint about this dealer, or one that has its
                answer.
        """
        self._check_expected(site)
        key = plan.roster.signing_key(site)
        answer = open_envelope(Justification, envelope, key, sender=site, context=plan.context)
        heard = self.received.get(answer.complainer)
        if heard is None or heard.complaint.dealer != site or answer.t1 != heard.complaint.t1:
            raise PeerError(site, "answered a complaint that nobody made about it")
        if heard.answer is not None:
            raise PeerError(site, f"answered the complaint of site {answer.complainer!r} twice")
        heard.justification, heard.answer = answer, envelope
        return heard

    def _check_expected(self, site: str) -> None:
        if site not in self.expected:
            raise PeerError(site, f"has no part in the {self.name} phase")

    def evidence(self, plan: Plan, heard: Heard) -> Evidence:
        """What the finding rests on."""
        return complaint_evidence(
            plan, self.dealers, heard.finding, (heard.envelope, heard.complaint), heard.answer
        )

    def conclude(self, plan: Plan) -> list[CoordinatorEffect]:
        """Who is not to be in the next attempt, of those whom nothing convicts.

        Of a complaint and a dealer that cannot be decided between, one is wrong and nobody else can
        say which, so both are left out: were it the dealer alone, each dishonest site could evict
        an honest one in every attempt. So it is with a dealer that does not answer, as it may have
        uploaded meanwhile and have no key left. A dealer that more sites complain about than may be
        dishonest is the one who is wrong.

        Complaints of which one end is out already take nobody else out: the pairs have no site in
        common, each has a dishonest one, and so no more honest sites are out than dishonest ones.
        """
        undecided = [*self._with(Finding.DISPUTE), *self._with(Finding.OPEN)]
        convicted = {
            heard.complaint.dealer
            for finding in (Finding.BAD_DEAL, Finding.UNJUSTIFIED)
            for heard in self._with(finding)
        }
        count = Counter(heard.complaint.dealer for heard in undecided)
        out = {
            dealer: "has dealt what more sites complain about than can be wrong"
            for dealer, complaints in count.items()
            if complaints > plan.colluders and dealer not in convicted
        }
        for heard in undecided:
            dealer, complainer = heard.complaint.dealer, heard.complaint.sender
            if {dealer, complainer}.isdisjoint(convicted | out.keys()):
                out[dealer] = f"could not settle a complaint of site {complainer!r}"
                out[complainer] = f"could not settle its complaint about site {dealer!r}"
        return [
            *(self._disputed(plan, heard) for heard in self._with(Finding.DISPUTE)),
            *(LeaveOut(site, reason) for site, reason in out.items()),
        ]

    def _disputed(self, plan: Plan, heard: Heard) -> Disputed:
        complaint, evidence = heard.complaint, self.evidence(plan, heard)
        return Disputed(complaint.dealer, complaint.sender, evidence.to_bytes())

    def _with(self, finding: Finding) -> Sequence[Heard]:
        return [heard for heard in self.received.values() if heard.finding is finding]

    @property
    def reason(self) -> str:
        """Why the attempt ends."""
        dealers = sorted({heard.complaint.dealer for heard in self.received.values()})
        return f"{len(self.received)} sites cannot use what site {named(dealers)} dealt to them"
