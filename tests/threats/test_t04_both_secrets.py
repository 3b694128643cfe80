"""T04: the coordinator collects both secrets of one site, and reads its update.

The defences: a site returns shares of one secret per dealer, to a certificate of the one set
that it voted for. It votes once, and what it remembers of that is on disk: a site that was put
back to before its vote (a snapshot of its process) does not vote again either.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from support.secagg import Federation, make_plan, read, seal
from support.unmasking import pair_masks, read_update, rebuilt
from threats.rounds import SITES, VICTIM, forgetful, remembering
from veilsum import secagg
from veilsum._native import Secret
from veilsum.secagg import keys
from veilsum.secagg.envelope import Envelope
from veilsum.secagg.messages import SurvivorCertificate, SurvivorProposal, UnmaskShares
from veilsum.secagg.payload import COORDINATOR
from veilsum.secagg.phases import HeldShares, Uploaded
from veilsum.secagg.transcript import survivors_transcript

OTHERS = tuple(site for site in SITES if site != VICTIM)


def copied(held: HeldShares) -> HeldShares:
    return HeldShares(
        {site: Secret.from_bytes(bytes(share)) for site, share in held.mask_shares.items()},
        {site: Secret.from_bytes(bytes(share)) for site, share in held.self_shares.items()},
    )


class TwoSets:
    """Asks the same sites twice: for all survivors, and for all but the victim.

    Args:
        restored: every site's process is put back to before its vote in between.
    """

    def __init__(self, ledgers: dict[str, secagg.Ledger], *, restored: bool) -> None:
        plan = make_plan(5, colluders=1, metrics=())
        self.federation = federation = Federation(plan, ledgers=ledgers)
        proposal = federation.hold("survivor-proposal", to=SITES[0])
        self.plan, self.headers = plan, dict(read(SurvivorProposal, proposal).survivors)
        self.dealers = federation.coordinator._phase.dealers
        self.snapshots = {site: self._snapshot(site) for site in OTHERS}
        self.restored = restored
        self.refused: dict[str, str] = {}

    def _snapshot(self, site: str) -> Uploaded:
        phase = self.federation.sites[site]._phase
        return Uploaded(phase.t2, copied(phase.held), phase.upload, phase.header_digest)

    def _put_back(self, site: str) -> None:
        session = self.federation.sites[site]
        session._phase = self.snapshots[site]
        session._answers.clear()

    def ask(self, survivors: Sequence[str]) -> dict[str, UnmaskShares]:
        """What the others answer where this set of survivors is proposed and certified."""
        inputs = {site: self.headers[site] for site in survivors}
        context, t3 = self.plan.context, survivors_transcript(self.dealers.t2, inputs)
        proposal = SurvivorProposal(context, COORDINATOR, self.dealers.t2, tuple(inputs.items()))
        votes = [self._say(site, seal(proposal)) for site in OTHERS]
        envelopes = tuple(Envelope.from_bytes(vote) for vote in votes if vote)
        certificate = seal(SurvivorCertificate(context, COORDINATOR, t3, envelopes))
        answers = {site: self._say(site, certificate) for site in OTHERS}
        return {site: read(UnmaskShares, answer) for site, answer in answers.items() if answer}

    def _say(self, site: str, message: bytes) -> bytes:
        for effect in self.federation.sites[site].handle(message):
            if isinstance(effect, secagg.Withdraw):
                self.refused[site] = effect.code
            if isinstance(effect, secagg.Send):
                return effect.message
        return b""

    def run(self) -> np.ndarray | None:
        """The victim's update, or None where the shares do not suffice."""
        first = self.ask(SITES)
        if self.restored:
            for site in OTHERS:
                self._put_back(site)
        second = self.ask(OTHERS)
        self.answers = first, second
        if not second:
            return None
        members = self.dealers.members
        self_seed = rebuilt(members, {s: dict(a.self_shares)[VICTIM] for s, a in first.items()})
        mask_seed = rebuilt(members, {s: dict(a.mask_shares)[VICTIM] for s, a in second.items()})
        masks, signs = pair_masks(self.dealers, self.plan.context, VICTIM, mask_seed)
        masks.append(keys.self_mask_key(self.dealers.t2, self_seed, VICTIM))
        (chunks,) = [
            effect.chunks
            for site, effect in self.federation.site_effects
            if site == VICTIM and isinstance(effect, secagg.UploadInput)
        ]
        return read_update(self.plan, chunks, masks, [*signs, -1])


def test_sites_that_vote_twice_give_an_update_away():
    attack = TwoSets(forgetful(), restored=True)

    seen = attack.run()

    victims = attack.federation.contributions[VICTIM].update["weight"]
    np.testing.assert_allclose(seen, victims, atol=1e-3)


def test_sites_vote_once():
    attack = TwoSets(remembering(), restored=False)

    assert attack.run() is None
    assert attack.refused == dict.fromkeys(OTHERS, "equivocation")


def test_sites_that_are_put_back_read_in_their_ledger_that_they_voted():
    attack = TwoSets(remembering(), restored=True)

    assert attack.run() is None
    assert attack.refused == dict.fromkeys(OTHERS, "replay")


@pytest.mark.parametrize("survivors", [SITES, OTHERS])
def test_no_answer_holds_shares_of_both_secrets_of_anyone(survivors):
    answers = TwoSets(remembering(), restored=False).ask(survivors)

    assert set(answers) == set(OTHERS)
    for answer in answers.values():
        alive = {dealer for dealer, _ in answer.self_shares}
        gone = {dealer for dealer, _ in answer.mask_shares}
        assert (alive, gone) == (set(survivors), set(SITES) - set(survivors))
