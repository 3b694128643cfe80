"""T05: the coordinator tells every site another survivor set and mixes their answers.

The defence: a signed vote, and a quorum of more than (n + c) / 2. Without it 200 sites that do
not compare notes give away all but four of their updates.

The coordinator tells every honest site another list of dropouts, none longer than the quorum
allows. Each site returns shares of the mask seeds of those it was told are gone, and of the self
seeds of all others; the helpers return everything. A victim's update is out of the sum once its
mask seed can be rebuilt, although its owner and most others believe it is in.

Shares are dealt and rebuilt for real, and the sessions are the product's; only the phases before
the vote are made up, because 200 sites take half a minute for them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest

from support.secagg import make_plan, read
from veilsum import _native, secagg
from veilsum._native import Secret
from veilsum.secagg.envelope import Envelope
from veilsum.secagg.ledger import attempt_of
from veilsum.secagg.ledger_records import Contributed, Opened
from veilsum.secagg.messages import (
    SurvivorCertificate,
    SurvivorProposal,
    SurvivorVote,
    UnmaskShares,
)
from veilsum.secagg.payload import COORDINATOR, Message
from veilsum.secagg.phases import HeldShares, Uploaded
from veilsum.secagg.thresholds import share_threshold, vote_quorum
from veilsum.secagg.transcript import survivors_transcript

SITES, COLLUDERS = 200, 66
T2 = b"\2" * 32

# --- whom to tell what ------------------------------------------------------------------------


def assignment(sites: int, colluders: int) -> dict[int, tuple[int, ...]]:
    """Victim -> the honest sites that are told it dropped out. Victims in order, as many as fit.

    Each victim takes the sites with the fewest names on their lists so far. It needs the shares
    of t - c honest sites, and a list that leaves fewer than q survivors would be refused.
    """
    quorum = vote_quorum(sites, colluders)
    needed = share_threshold("strict", sites, colluders) - colluders
    honest = range(sites - colluders)
    listed = dict.fromkeys(honest, 0)
    chosen: dict[int, tuple[int, ...]] = {}
    for victim in honest:
        free = [site for site in honest if site != victim and listed[site] < sites - quorum]
        if len(free) < needed:
            break
        told = sorted(free, key=lambda site: (listed[site], site))[:needed]
        chosen[victim] = tuple(told)
        for site in told:
            listed[site] += 1
    return chosen


@pytest.mark.parametrize(
    ("sites", "colluders", "promised", "left"),
    [(12, 4, 5, 4), (50, 16, 18, 4), (100, 33, 34, 2), (200, 66, 68, 4)],
)
def test_lists_that_each_look_fine_leave_a_handful_in_the_sum(sites, colluders, promised, left):
    victims = assignment(sites, colluders)

    assert vote_quorum(sites, colluders) - colluders == promised
    assert sites - colluders - len(victims) == left


# --- the round up to the vote ---------------------------------------------------------------------


@cache
def consortium() -> secagg.Consortium:
    return secagg.make_consortium([f"site-{number:03}" for number in range(SITES)])


@cache
def the_plan() -> secagg.Plan:
    names = consortium().roster.sites
    return make_plan(SITES, roster=consortium().roster, cohort=names, colluders=COLLUDERS)


def honest_sites() -> tuple[str, ...]:
    return the_plan().cohort[: SITES - COLLUDERS]


def helpers() -> tuple[str, ...]:
    return the_plan().cohort[SITES - COLLUDERS :]


def header_digest(site: str) -> bytes:
    return site.encode().ljust(32, b".")


def seal(message: Message) -> bytes:
    keys = consortium().site_keys
    key = keys[message.sender] if message.sender else consortium().coordinator_key
    return Envelope.sign(message.kind, message.to_payload(), key).to_bytes()


@dataclass(frozen=True)
class Seed:
    """A seed of one site, and the share of it that each site holds."""

    value: Secret
    shares: Mapping[str, Secret]

    @classmethod
    def dealt(cls, fresh: np.random.Generator) -> Seed:
        plan = the_plan()
        value = Secret.from_bytes(fresh.bytes(32))
        coefficients = Secret.from_bytes(fresh.bytes(32 * (plan.share_threshold - 1)))
        indices = range(1, SITES + 1)
        shares = _native.deal_shares(value, plan.share_threshold, indices, coefficients)
        return cls(value, dict(zip(plan.cohort, shares, strict=True)))


Seeds = Mapping[str, Seed]


def ledger_of_a_sender(site: str) -> secagg.Ledger:
    ledger, attempt = secagg.Ledger.in_memory(Secret.from_os), attempt_of(the_plan())
    ledger.remember(Opened(attempt, manifest_hash=bytes(32)))
    ledger.remember(Contributed(attempt, T2, site.encode().ljust(32), header_digest(site)))
    return ledger


def session_about_to_vote(site: str, held: HeldShares) -> secagg.SiteSession:
    session = secagg.SiteSession(
        site=site,
        signing_key=consortium().site_keys[site],
        roster=consortium().roster,
        policy=secagg.LocalPolicy(),
        entropy=Secret.from_os,
        ledger=ledger_of_a_sender(site),
    )
    upload = secagg.UploadInput(b"", 0, ())
    session._plan, session._phase = the_plan(), Uploaded(T2, held, upload, header_digest(site))
    return session


class SplitView:
    """The coordinator and its helpers.

    Args:
        held: what each honest site holds.
    """

    def __init__(self, held: Mapping[str, HeldShares]) -> None:
        self.plan = the_plan()
        self.sessions = {site: session_about_to_vote(site, held[site]) for site in honest_sites()}
        self.told_gone: dict[str, set[str]] = {site: set() for site in honest_sites()}
        self.asked: dict[str, tuple[str, ...]] = {}
        for victim, told in assignment(SITES, COLLUDERS).items():
            self.asked[honest_sites()[victim]] = tuple(honest_sites()[site] for site in told)
            for site in told:
                self.told_gone[honest_sites()[site]].add(honest_sites()[victim])
        self.votes = {site: self._vote(site) for site in honest_sites()}

    def survivors(self, site: str) -> dict[str, bytes]:
        """What one site is told."""
        gone = self.told_gone[site]
        return {name: header_digest(name) for name in self.plan.cohort if name not in gone}

    def t3(self, site: str) -> bytes:
        return survivors_transcript(T2, self.survivors(site))

    def _vote(self, site: str) -> Envelope:
        inputs = tuple(self.survivors(site).items())
        proposal = SurvivorProposal(self.plan.context, COORDINATOR, T2, inputs)
        (effect,) = self.sessions[site].handle(seal(proposal))
        assert isinstance(effect, secagg.Send), effect
        return Envelope.from_bytes(effect.message)

    def certify(self, site: str, votes: Mapping[str, Envelope]) -> secagg.SiteEffect:
        """What a site does with a certificate of these votes for what it was told."""
        ordered = tuple(votes[voter] for voter in sorted(votes))
        message = SurvivorCertificate(self.plan.context, COORDINATOR, self.t3(site), ordered)
        return self.sessions[site].handle(seal(message))[0]

    def votes_for(self, site: str) -> dict[str, Envelope]:
        """Every vote there is for what a site was told: helpers vote for anything."""
        t3 = self.t3(site)
        cast = {name: self.votes[name] for name in honest_sites() if self.t3(name) == t3}
        return cast | {
            helper: Envelope.from_bytes(seal(SurvivorVote(self.plan.context, helper, t3)))
            for helper in helpers()
        }


def indices_of(sites: Iterable[str]) -> list[int]:
    return [the_plan().cohort.index(site) + 1 for site in sites]


# --- with the vote switched off ---------------------------------------------------------------


def shared_among_all(dealers: Collection[str], seed: int) -> dict[str, Seed]:
    fresh = np.random.default_rng(seed)
    return {dealer: Seed.dealt(fresh) for dealer in dealers}


def held_by(site: str, mask_seeds: Seeds, self_seeds: Seeds) -> HeldShares:
    """A site's shares; those of helpers' seeds are nobody's secret."""
    known = dict.fromkeys(helpers(), Secret.zeros(32))
    return HeldShares(
        mask_shares=known | {dealer: seed.shares[site] for dealer, seed in mask_seeds.items()},
        self_shares=known | {dealer: seed.shares[site] for dealer, seed in self_seeds.items()},
    )


def rebuilt(seed: Seed, answers: Mapping[str, bytes]) -> bool:
    """Whether these answers and the helpers' shares give the seed; no more are used than needed."""
    lacking = the_plan().share_threshold - COLLUDERS
    responders = sorted(answers)[:lacking]
    if len(responders) < lacking:
        return False
    shares = [Secret.from_bytes(answers[site]) for site in responders]
    shares += [seed.shares[helper] for helper in helpers()]
    (value,) = _native.combine_shares(indices_of([*responders, *helpers()]), [shares])
    return value.equals(seed.value)


def answered(answers: Mapping[str, UnmaskShares], kind: str) -> dict[str, dict[str, bytes]]:
    """Dealer -> responder -> the share it returned."""
    by_dealer: dict[str, dict[str, bytes]] = {site: {} for site in the_plan().cohort}
    for responder, answer in answers.items():
        for dealer, share in getattr(answer, kind):
            by_dealer[dealer][responder] = share
    return by_dealer


def opened(seeds: Seeds, answers: Mapping[str, UnmaskShares], kind: str) -> set[str]:
    shares = answered(answers, kind)
    return {dealer for dealer, seed in seeds.items() if rebuilt(seed, shares[dealer])}


def test_without_the_vote_four_honest_updates_are_left_in_the_sum(monkeypatch):
    mask_seeds = shared_among_all(honest_sites(), 1)
    self_seeds = shared_among_all(honest_sites(), 2)
    attack = SplitView({site: held_by(site, mask_seeds, self_seeds) for site in honest_sites()})
    monkeypatch.setattr("veilsum.secagg.site.check_certificate", lambda *_: None)

    answers = {}
    for site in honest_sites():
        effect = attack.certify(site, {})
        assert isinstance(effect, secagg.Send), effect
        answers[site] = read(UnmaskShares, effect.message)

    out = opened(mask_seeds, answers, "mask_shares")
    still_in = opened(self_seeds, answers, "self_shares")
    assert out == set(attack.asked)
    assert still_in == set(honest_sites()) - out
    assert len(still_in) == 4  # of the 68 that q - c promises
    assert not out & still_in  # "strict" keeps the secrets of one site apart even so


# --- with it ------------------------------------------------------------------------------------


def empty_hands() -> dict[str, HeldShares]:
    """Shares that are never returned need not be any."""
    nothing = dict.fromkeys(the_plan().cohort, Secret.zeros(32))
    return dict.fromkeys(honest_sites(), HeldShares(nothing, nothing))


def refusals(effects: Sequence[secagg.SiteEffect]) -> set[str]:
    assert {type(effect) for effect in effects} == {secagg.Withdraw}
    assert {effect.code for effect in effects} == {"votes"}
    return {effect.reason for effect in effects}


@pytest.mark.slow
def test_no_list_gets_near_the_quorum_however_many_helpers_vote_for_it():
    attack = SplitView(empty_hands())
    counts = {site: len(attack.votes_for(site)) for site in honest_sites()}

    effects = [attack.certify(site, attack.votes_for(site)) for site in honest_sites()]

    assert max(counts.values()) < the_plan().vote_quorum
    assert refusals(effects) == {
        f"{count} sites voted, {the_plan().vote_quorum} are needed" for count in counts.values()
    }


@pytest.mark.slow
def test_votes_for_other_lists_do_not_count():
    attack = SplitView(empty_hands())

    effects = [
        attack.certify(site, attack.votes | attack.votes_for(site)) for site in honest_sites()
    ]

    assert all("voted for another survivor set" in reason for reason in refusals(effects))
