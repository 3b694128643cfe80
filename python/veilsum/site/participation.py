"""Which rounds a site takes part in, and what it remembers of those it was in."""

from __future__ import annotations

from dataclasses import replace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from veilsum import secagg
from veilsum.control import RoundId, RoundOpened, TaskSettings, Welcome
from veilsum.errors import ConfigError
from veilsum.roster import Roster
from veilsum.site.bounds import TaskBounds
from veilsum.site.contribution import Contribution, MaskedContribution, PlainContribution
from veilsum.site.effects import SiteEffect
from veilsum.site.feedback import Feedback

_SEEDS_APART = 2**40  # a run's rounds count their seeds up by one


class Participation:
    """Refuses or takes part in rounds. Arguments are those of SiteCore.

    Raises:
        ConfigError: the key is not the one the roster lists for this site.
    """

    def __init__(
        self,
        site: str,
        signing_key: Ed25519PrivateKey,
        roster: Roster,
        policy: secagg.LocalPolicy,
        bounds: TaskBounds,
        entropy: secagg.Entropy,
        ledger: secagg.Ledger | None,
        *,
        threads: int,
        backend: str,
        egress: secagg.Egress,
    ) -> None:
        if signing_key.public_key().public_bytes_raw() != roster.signing_key(site):
            raise ConfigError(
                f"the signing key is not the one the roster lists for site {site!r}",
                hint="point the site at the key its roster entry was made from",
            )
        self._site = site
        self._signing_key = signing_key
        self._roster = roster
        self._policy = policy
        self._bounds = bounds
        self._entropy = entropy
        self._ledger = ledger
        self._threads = threads
        self._backend = backend
        self._egress = egress
        self._latest: dict[str, tuple[int, int]] = {}  # run -> last round and attempt used up
        self._feedback = Feedback()

    def check_welcome(self, welcome: Welcome) -> None:
        """Raises:
        ConfigError: the coordinator has another roster; a person must act.
        """
        theirs = (welcome.consortium, welcome.roster_hash)
        if theirs != (self._roster.consortium, self._roster.hash):
            raise ConfigError(
                f"the coordinator of {welcome.consortium!r} has another roster than this site",
                hint="give every member the same bytes of one roster file",
            )

    def refusal(self, opened: RoundOpened) -> tuple[str, str] | None:
        """Why this site will not take part, as code and reason; None if it will."""
        masked = opened.plain is None
        if masked != bool(opened.open_message):
            return "malformed", "a round is either masked or plain"
        if not masked and not self._bounds.plain_rounds:
            return "policy", "this site takes part in masked rounds only"
        if masked and self._ledger is None:
            return "ledger", "this site keeps no ledger and takes part in plain rounds only"
        allowed = self._policy.task_ids
        if allowed is not None and opened.task_id not in allowed:
            return "policy", f"task {opened.task_id!r} is not allowed at this site"
        latest = self._latest.get(opened.round.run_id)
        this = opened.round.number, opened.round.attempt
        # Two sums over different sites of one update would show the difference. A plain round may
        # invite a site again that it had lost.
        if latest is not None and (this < latest or (masked and this == latest)):
            return "replay", "this site took part in that round, or in a later one, already"
        try:
            self._bounds.check(opened.task)
        except ConfigError as error:
            return "task_bounds", str(error)
        return None

    def wants_links(self, opened: RoundOpened) -> bool:
        """Whether more of the results that led to the round's model than come with the invitation
        could show where it comes from."""
        if opened.plain is not None or self._ledger is None:
            return False
        envelope = opened.open_message
        return secagg.wants_links(self._policy, self._roster, envelope, self._ledger)

    def take_part(
        self, opened: RoundOpened, links: tuple[bytes, ...] = ()
    ) -> tuple[Contribution, list[SiteEffect]]:
        """This site's part in a round, and what follows from the invitation.

        Args:
            links: results that led to the round's model, the last one first.

        Raises:
            ConfigError, DecodeError: the plan cannot work, or is not the one that was signed.
        """
        if opened.plain is not None:
            plain = PlainContribution(
                opened.plain,
                opened.round,
                self._site,
                threads=self._threads,
                residual=self._feedback.residual_for(opened.round.run_id, opened.plain),
            )
            return plain, []
        if self._ledger is None:
            raise ConfigError("a masked round needs a ledger")
        session = secagg.SiteSession(
            site=self._site,
            signing_key=self._signing_key,
            roster=self._roster,
            policy=self._policy,
            entropy=self._entropy,
            ledger=self._ledger,
            backend=self._backend,
            egress=self._egress,
            links=links,
        )
        masked = MaskedContribution(session, opened.round, threads=self._threads)
        try:
            return masked, masked.open(opened)
        except ConfigError:
            masked.close()
            raise

    def task_of(self, opened: RoundOpened) -> TaskSettings:
        """What to train in a round that this site has entered.

        Once an update has left, no other attempt at the round may have it, so another one is
        trained: with a seed that neither another attempt nor another round has.
        """
        if opened.plain is not None or self._ledger is None:
            return opened.task
        sent = self._ledger.updates_sent(opened.task_id, opened.round.run_id, opened.round.number)
        return replace(opened.task, seed=(opened.task.seed + sent * _SEEDS_APART) % 2**63)

    def entered(self, round_id: RoundId) -> None:
        """This attempt is used up; a later one of the same round is not."""
        self._latest[round_id.run_id] = (round_id.number, round_id.attempt)

    def forget(self, run_id: str) -> None:
        """No more rounds of this run will come."""
        self._feedback.forget(run_id)
