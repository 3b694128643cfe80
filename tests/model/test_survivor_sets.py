"""No order of proposals, votes, certificates and restarts shows one site's update: all are tried.

The search must also find what goes wrong once a defence is taken away, and the sessions must do
what the model's sites do: without either it would prove nothing.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

import pytest

from support.secagg import NAMES, Federation, make_plan, read, seal
from support.survivor_model import BOTH_SECRETS, TWO_SETS, Rules, Search, Site
from veilsum import secagg
from veilsum.secagg.envelope import Envelope
from veilsum.secagg.messages import (
    SurvivorCertificate,
    SurvivorProposal,
    SurvivorVote,
    UnmaskShares,
)
from veilsum.secagg.payload import COORDINATOR
from veilsum.secagg.transcript import survivors_transcript

# --- every defence in place ---------------------------------------------------------------


@pytest.mark.parametrize("profile", ["strict", "available"])
@pytest.mark.parametrize(
    ("invited", "colluders", "absent"),
    [
        (3, 0, 0), (3, 1, 0), (4, 0, 0), (4, 0, 1), (4, 1, 0), (4, 1, 1),
        (5, 0, 1), (5, 0, 2), (5, 1, 0), (5, 1, 1),
    ],
)  # fmt: skip
def test_no_state_that_can_be_reached_is_forbidden(invited, colluders, absent, profile):
    search = Search(Rules.of(invited, colluders, absent=absent, profile=profile))

    assert search.run() is None


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["strict"])  # "available" has the same thresholds here
def test_nor_among_five_sites_of_which_none_helps(profile):
    search = Search(Rules.of(5, 0, profile=profile))

    assert search.run() is None
    assert search.states > 17**5  # each site silent, or with one of 16 votes


@pytest.mark.parametrize(("invited", "colluders"), [(3, 0), (4, 0), (4, 1), (5, 1)])
def test_the_search_reaches_whole_rounds(invited, colluders):
    """Any one survivor set can be certified and answered by everyone."""
    rules = Rules.of(invited, colluders)
    search = Search(rules)
    search.run()

    for number in range(len(rules.survivor_sets)):
        done = Site(stands_for=number, votes=1 << number, answers=1 << number)
        assert search.reached((done,) * rules.honest)


# --- without one of them --------------------------------------------------------------------


def test_sites_that_forget_their_vote_when_they_restart_certify_two_sets():
    rules = Rules.of(4, 1).without(remembers=False)

    found = Search(rules).run()

    assert found is not None
    assert found.fault == TWO_SETS
    assert any(site.restarts for site in found.path[-1])


def test_and_then_return_both_secrets_of_a_site():
    rules = Rules.of(4, 1).without(remembers=False)

    found = Search(rules, faults=[BOTH_SECRETS]).run()

    assert found is not None
    assert max(site.answers.bit_count() for site in found.path[-1]) == 2


@pytest.mark.parametrize(("invited", "colluders"), [(4, 0), (5, 1)])
def test_a_quorum_of_exactly_half_certifies_two_sets(invited, colluders):
    """2q = n + c, one less than the smallest that is allowed."""
    sound = Rules.of(invited, colluders)
    rules = sound.without(quorum=sound.quorum - 1)
    assert 2 * rules.quorum == invited + colluders

    found = Search(rules).run()

    assert found is not None
    assert found.fault == TWO_SETS


@pytest.mark.parametrize(("invited", "colluders"), [(3, 1), (4, 1), (5, 1)])
def test_colluders_that_reach_the_share_threshold_need_no_help(invited, colluders):
    rules = Rules.of(invited, colluders).without(threshold=colluders)

    found = Search(rules).run()

    assert found is not None
    assert found.fault == BOTH_SECRETS
    assert len(found.path) == 1  # as soon as shares are dealt


def test_without_votes_only_a_threshold_above_half_keeps_the_secrets_apart():
    """Why "strict" shares like the quorum: 2t > n + c holds even where nobody asks for votes."""
    for profile, fault in (("strict", None), ("available", BOTH_SECRETS)):
        rules = Rules.of(5, 1, profile=profile).without(asks_for_votes=False)
        found = Search(rules, faults=[BOTH_SECRETS]).run()
        assert (found.fault if found else None) == fault


# --- the sessions do what the model does ------------------------------------------------------

_SITES, _COLLUDERS = 4, 1


class Adversary:
    """Hands what it likes to the sessions of one round, all of whose updates are out."""

    def __init__(self) -> None:
        self.federation = Federation(make_plan(_SITES, colluders=_COLLUDERS))
        self.federation.hold("survivor-proposal", to=NAMES[0])
        voting = self.federation.coordinator._phase
        self.plan, self.t2 = self.federation.plan, voting.dealers.t2
        proposal = next(
            read(SurvivorProposal, message)
            for _, to, message in reversed(self.federation.sent)
            if to == NAMES[0]
        )
        self.headers = dict(proposal.survivors)
        self.votes: dict[int, dict[str, Envelope]] = {}
        self.certificates: dict[int, bytes] = {}

    def propose(self, site: str, chosen: int) -> list[secagg.SiteEffect]:
        survivors = tuple(self._inputs(chosen).items())
        message = SurvivorProposal(self.plan.context, COORDINATOR, self.t2, survivors)
        effects = self.federation.sites[site].handle(seal(message))
        if isinstance(effects[0], secagg.Send):
            vote = Envelope.from_bytes(effects[0].message)
            self.votes.setdefault(chosen, {})[site] = vote
        return effects

    def certify(self, site: str, chosen: int) -> list[secagg.SiteEffect]:
        message = self.certificates.get(chosen) or self._certificate(chosen)
        effects = self.federation.sites[site].handle(message)
        if isinstance(effects[0], secagg.Send):  # another one for the same set would be refused
            self.certificates[chosen] = message
        return effects

    def _certificate(self, chosen: int) -> bytes:
        t3 = survivors_transcript(self.t2, self._inputs(chosen))
        votes = dict(self.votes.get(chosen, {}))
        for helper in NAMES[_SITES - _COLLUDERS : _SITES]:
            vote = SurvivorVote(self.plan.context, helper, t3)
            votes[helper] = Envelope.from_bytes(seal(vote))
        ordered = tuple(votes[voter] for voter in sorted(votes))
        return seal(SurvivorCertificate(self.plan.context, COORDINATOR, t3, ordered))

    def _inputs(self, chosen: int) -> Mapping[str, bytes]:
        return {name: self.headers[name] for name in names_of(chosen)}


def names_of(chosen: int) -> list[str]:
    return [name for at, name in enumerate(NAMES[:_SITES]) if chosen >> at & 1]


class Walk:
    """One random walk through model and sessions at once, step by step the same."""

    def __init__(self, seed: int) -> None:
        self.rules = Rules.of(_SITES, _COLLUDERS)
        self.search = Search(self.rules)
        self.adversary = Adversary()
        self.state = (Site(),) * self.rules.honest
        self.deaf: set[int] = set()  # a session that refused a message takes no more
        self.random = random.Random(seed)
        self.favourite = self.random.choice(self.rules.survivor_sets)
        self.seen: set[str] = set()

    def step(self) -> None:
        at = self.random.choice([at for at in range(self.rules.honest) if at not in self.deaf])
        odd = self.random.random() < 0.15
        chosen = self.random.randrange(2**_SITES) if odd else self.favourite
        # As an honest coordinator would, most of the time; certificates come too early as well.
        if (self.state[at].stands_for is None) != (self.random.random() < 0.15):
            self._proposed(at, chosen)
        else:
            self._certified(at, chosen)

    def done(self) -> bool:
        return len(self.deaf) == self.rules.honest

    def _number(self, chosen: int) -> int | None:
        sets = self.rules.survivor_sets
        return sets.index(chosen) if chosen in sets else None

    def _proposed(self, at: int, chosen: int) -> None:
        site, number = self.state[at], self._number(chosen)
        effects = self.adversary.propose(NAMES[at], chosen)
        if number is None or site.stands_for not in (None, number):
            return self._expect_refusal(at, effects)
        self.seen.add("vote" if site.stands_for is None else "vote again")
        assert isinstance(effects[0], secagg.Send)
        return self._move(at, site._replace(stands_for=number, votes=1 << number))

    def _certified(self, at: int, chosen: int) -> None:
        site, number = self.state[at], self._number(chosen)
        certified = number is not None and self.search.certified(self.state) >> number & 1
        effects = self.adversary.certify(NAMES[at], chosen)
        if number is None or site.stands_for != number or not certified:
            return self._expect_refusal(at, effects)
        answer = read(UnmaskShares, effects[0].message)
        assert [dealer for dealer, _ in answer.self_shares] == names_of(chosen)
        rest = (2**_SITES - 1) & ~chosen
        assert [dealer for dealer, _ in answer.mask_shares] == names_of(rest)
        self.seen.add("answer again" if site.answers else "answer")
        return self._move(at, site._replace(answers=1 << number))

    def _move(self, at: int, site: Site) -> None:
        following = (*self.state[:at], site, *self.state[at + 1 :])
        assert following == self.state or following in self.search.successors(self.state)
        self.state = following

    def _expect_refusal(self, at: int, effects: list[secagg.SiteEffect]) -> None:
        *shown, refusal = effects
        assert isinstance(refusal, secagg.Withdraw)
        assert all(isinstance(effect, secagg.Blamed) for effect in shown)
        self.seen.add(refusal.code)
        self.deaf.add(at)


def test_sessions_take_the_steps_of_the_model_and_no_others():
    seen: set[str] = set()
    for seed in range(40):
        walk = Walk(seed)
        for _ in range(20):
            if not walk.done():
                walk.step()
        seen |= walk.seen

    assert seen >= {"vote", "vote again", "answer", "answer again"}
    assert seen >= {"survivors", "equivocation", "votes", "protocol"}  # refusals
