"""Rounds over a post that loses, repeats and reorders, among sites that crash and come back.

Whatever happens: in every attempt a site signs one message of each kind at most; of no site are
shares of both secrets out; an update that its site has voted on never leaves again, and none that
left is in another attempt at its round; and a round ends with the right sum or with none. Ledgers
are real files, also old ones. With sites that forget, or that use an old ledger, the same machine
finds a way to break this.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from support.secagg import (
    NAMES,
    UPLOAD,
    ZERO_HASH,
    Arrays,
    consortium,
    fixed_entropy,
    kind_on_the_wire,
    make_plan,
    read,
    small_arrays,
)
from threats.rounds import Forgetful
from veilsum import secagg
from veilsum._native import Secret
from veilsum.errors import DecodeError, LedgerError, PeerError
from veilsum.secagg.envelope import Envelope
from veilsum.secagg.messages import SealedDeal, UnmaskShares
from veilsum.transport import ledger_file
from veilsum.transport.ledger_file import LedgerFile, open_ledger

SITES, COLLUDERS = NAMES[:5], 1
MANY = 30  # of a post: about one phase
LAYOUT = make_plan(5).layout
ATTEMPTS = 3
IDLE: tuple[tuple[str, ...], ...] = ((), *((name,) for name in SITES), SITES)
"""Sites that come to an attempt with the update they came to the last one with."""

MISHAPS = (
    "duplicate",
    "drop",
    "replay",
    "restart",
    "restart_and_hear_all_again",
    "back_up",
    "restart_from_a_backup",
    "crash_before_the_answer_is_out",
    "deadline",
    "coordinator_crashes",
)


@dataclass(frozen=True)
class Letter:
    """A message under way, and the attempt it belongs to."""

    plan: secagg.Plan
    origin: str
    to: str
    message: Any

    @property
    def kind(self) -> str:
        upload = isinstance(self.message, secagg.UploadInput)
        return UPLOAD if upload else kind_on_the_wire(self.message)

    @property
    def signed(self) -> bytes:
        """The payload that its sender signed."""
        if isinstance(self.message, secagg.UploadInput):
            return Envelope.from_bytes(self.message.header).payload
        if self.kind == "share-deal":
            return SealedDeal.from_bytes(self.message).header.payload
        return Envelope.from_bytes(self.message).payload


class Site:
    """A site's process, and what outlives it: a ledger on disk, and the update it has trained."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.updates = self.processes = 0
        self._ledger, self._backup = folder / name, folder / f"{name} of long ago"
        self._file: LedgerFile | None = None
        self.train()
        self.restart()
        shutil.copytree(self._ledger, self._backup)

    def train(self) -> None:
        self.updates += 1

    @property
    def contribution(self) -> secagg.Contribution:
        update: Arrays = small_arrays(100 * self.updates + SITES.index(self.name))
        rounding = Secret.from_bytes(bytes([self.updates % 256]) * 32)
        return secagg.Contribution(update, 10 * SITES.index(self.name) + 7, {}, rounding)

    def stop(self) -> None:
        """All that was in memory is gone."""
        if self._file is not None:
            self._file.close()

    def restart(self) -> None:
        self.stop()
        self._file = open_ledger(self._ledger)
        self._begin(self._file.ledger())

    def _begin(self, ledger: secagg.Ledger) -> None:
        self.processes += 1
        self.session = secagg.SiteSession(
            site=self.name,
            signing_key=consortium().site_keys[self.name],
            roster=consortium().roster,
            policy=secagg.LocalPolicy(min_colluders=COLLUDERS, max_attempts=ATTEMPTS),
            entropy=fixed_entropy(1000 * SITES.index(self.name) + self.processes),
            ledger=ledger,
        )

    def back_up(self) -> None:
        shutil.rmtree(self._backup)
        shutil.copytree(self._ledger, self._backup)

    def restart_from_the_backup(self) -> bool:
        """Whether it does. If not, people put back what was there."""
        self.stop()
        aside = self._ledger.with_name(f"{self.name} aside")
        self._ledger.rename(aside)
        shutil.copytree(self._backup, self._ledger)
        try:
            self.restart()
        except LedgerError:
            shutil.rmtree(self._ledger)
            aside.rename(self._ledger)
            self.restart()
            return False
        shutil.rmtree(aside)
        return True

    def contribute(self) -> list[secagg.SiteEffect]:
        given = self.contribution
        return self.session.contribute(
            given.update, weight=given.weight, metrics={}, rounding=given.rounding
        )


class ForgetfulSite(Site):
    def restart(self) -> None:
        super().restart()
        self._begin(Forgetful())


class Seen:
    """Everything that ever left a site, and whether it may."""

    def __init__(self) -> None:
        self._signed: dict[tuple[bytes, str, str], bytes] = {}
        self._shares: dict[tuple[bytes, str], str] = {}  # attempt and dealer -> kind of share
        self._left: dict[tuple[str, int], list[secagg.Plan]] = {}  # site and update -> attempts
        self._voted: set[tuple[bytes, str]] = set()

    def left(self, site: Site, letter: Letter) -> None:
        context, kind = letter.plan.context, letter.kind
        first = self._signed.setdefault((context, site.name, kind), letter.signed)
        assert first == letter.signed, f"{site.name} signed two {kind} messages"
        if kind == "survivor-vote":
            self._voted.add((context, site.name))
        elif kind == "unmask-shares":
            self._check_shares(context, read(UnmaskShares, letter.message))
        elif kind == UPLOAD:
            self._check_update(site, letter.plan)

    def _check_shares(self, context: bytes, answer: UnmaskShares) -> None:
        for kind in ("self", "mask"):
            for dealer, _ in getattr(answer, f"{kind}_shares"):
                first = self._shares.setdefault((context, dealer), kind)
                assert first == kind, f"shares of both secrets of {dealer} are out"

    def _check_update(self, site: Site, plan: secagg.Plan) -> None:
        before = self._left.setdefault((site.name, site.updates), [])
        for earlier in before:
            if earlier.context == plan.context:
                continue
            spent = (earlier.context, site.name) in self._voted
            assert not spent, f"an update that {site.name} voted on left again"
            same_round = (earlier.run_id, earlier.round_number) == (plan.run_id, plan.round_number)
            assert not same_round, f"an update of {site.name} is in two attempts at one round"
        before.append(plan)


class Rounds(RuleBasedStateMachine):
    """The rules are what may happen; Seen holds what left the sites against what must not."""

    tried: ClassVar[Counter[str]] = Counter()
    site_type: ClassVar[type[Site]] = Site

    @initialize()
    def begin(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.sites = {name: self.site_type(name, Path(self._folder.name)) for name in SITES}
        self.seen = Seen()
        self.sent: list[Letter] = []
        self.run, self.number, self.attempt = 1, 1, 0
        self.previous: secagg.PreviousRound | None = None
        self.followed: secagg.PreviousRound | None = None
        self._open()

    def teardown(self) -> None:
        for site in self.sites.values():
            site.stop()
        self._folder.cleanup()

    def _open(self) -> None:
        self.plan = make_plan(
            len(SITES),
            colluders=COLLUDERS,
            metrics=(),
            layout=LAYOUT,
            run_id=f"run-{self.run}",
            round_number=self.number,
            attempt=self.attempt,
            previous_result=self.previous.digest if self.previous else ZERO_HASH,
        )
        self.under_way: list[Letter] = []
        self.followed = None
        self.expected = {name: site.contribution for name, site in self.sites.items()}
        self.coordinator = secagg.CoordinatorSession(
            self.plan,
            signing_key=consortium().coordinator_key,
            audit_seed=bytes(32),
            previous=self.previous,
        )
        self._of_coordinator(self.coordinator.open())

    # --- the post ---------------------------------------------------------------------------

    def _post(self, letter: Letter) -> None:
        self.sent.append(letter)
        self.under_way.append(letter)

    def _from_site(self, site: Site, message: Any) -> None:
        # A site that hears an old invitation first is in that attempt, not in the coordinator's.
        plan = site.session.plan
        assert plan is not None
        letter = Letter(plan, site.name, "", message)
        self.seen.left(site, letter)
        self._post(letter)

    def _of_coordinator(self, effects: Iterable[secagg.CoordinatorEffect]) -> None:
        for effect in effects:
            match effect:
                case secagg.SendTo(to, message):
                    self._post(Letter(self.plan, "", to, message))
                case secagg.Completed(result):
                    self._check(result)
                    self._of_coordinator(self.coordinator.publish(ZERO_HASH, ZERO_HASH))
                case secagg.Acknowledged(previous, quorum):
                    self.tried["acknowledged" if quorum else "hardly acknowledged"] += 1
                    self.followed = previous if quorum else None
                case secagg.Aborted():
                    self.tried["aborted"] += 1

    def _of_site(self, site: Site, effects: Iterable[secagg.SiteEffect]) -> None:
        for effect in effects:
            match effect:
                case secagg.Send(message):
                    self._from_site(site, message)
                case secagg.UploadInput():
                    self._from_site(site, effect)
                case secagg.NeedUpdate():
                    self._of_site(site, site.contribute())
                case secagg.ResultReady():
                    self._of_site(site, site.session.checked_result(0))
                case secagg.Withdraw(code):
                    self.tried[f"withdrew: {code}"] += 1
                    self._of_coordinator(self.coordinator.lost(site.name, "withdrew"))

    def _deliver(self, letter: Letter) -> None:
        if letter.to:
            site = self.sites[letter.to]
            self._of_site(site, site.session.handle(letter.message))
        elif isinstance(letter.message, secagg.UploadInput):
            self._upload(letter)
        else:
            self._of_coordinator(self.coordinator.handle(letter.origin, letter.message))

    def _upload(self, letter: Letter) -> None:
        upload = letter.message
        try:
            effects = self.coordinator.accept_input(
                letter.origin, upload.header, upload.update_id, upload.chunks
            )
        except (DecodeError, PeerError):  # too late, a second time, or of another attempt
            self.tried["upload refused"] += 1
        else:
            self._of_coordinator(effects)

    def _check(self, result: secagg.SecureResult) -> None:
        """The sum is that of the sites it names, to the bit."""
        self.tried["completed"] += 1
        self.tried["completed without some"] += len(result.sites) < len(SITES)
        assert len(result.sites) >= self.plan.fewest_survivors
        plain = secagg.plain_ring_sum(self.plan, self.expected, result.sites)
        assert (result.digest, result.total_weight) == (plain.digest, plain.total_weight)

    # --- what may happen --------------------------------------------------------------------
    # Most of the time messages come, or a round would never get anywhere.

    @precondition(lambda self: self.under_way)
    @rule(count=st.integers(1, 12))
    def deliver_in_order(self, count: int) -> None:
        for _ in range(count):
            if self.under_way:
                self._deliver(self.under_way.pop(0))

    @precondition(lambda self: self.under_way)
    @rule(places=st.lists(st.integers(0, MANY), min_size=1, max_size=MANY))
    def deliver_out_of_order(self, places: list[int]) -> None:
        """And every fourth of them is going to come again."""
        for number, at in enumerate(places):
            if self.under_way and number % 4 == 3:
                self._duplicate(at)
            elif self.under_way:
                self._deliver(self._taken(at))

    @precondition(lambda self: self.under_way)
    @rule()
    def deliver_all(self) -> None:
        """Until nobody has anything to say any more, and its deadline ends the phase."""
        phase = self.coordinator.phase
        while self.under_way and self.coordinator.phase == phase:
            self._deliver(self.under_way.pop(0))
        if not self.under_way:
            self._of_coordinator(self.coordinator.close_phase())

    @rule(mishap=st.sampled_from(MISHAPS), at=st.integers(0, 10 * MANY))
    def mishap(self, mishap: str, at: int) -> None:
        getattr(self, f"_{mishap}")(at)

    def _taken(self, at: int) -> Letter:
        return self.under_way.pop(at % len(self.under_way))

    def _duplicate(self, at: int) -> None:
        if self.under_way:
            self._deliver(self.under_way[at % len(self.under_way)])

    def _drop(self, at: int) -> None:
        if self.under_way:
            self._taken(at)

    def _replay(self, at: int) -> None:
        """Anything that was ever sent, in this attempt or an earlier one, to whom it was for."""
        self._deliver(self.sent[-1 - at % len(self.sent)])

    def _restart(self, at: int) -> None:
        site = self.sites[SITES[at % len(SITES)]]
        self.tried[f"restarted in {site.session.phase}"] += 1
        site.restart()

    def _back_up(self, at: int) -> None:
        self.sites[SITES[at % len(SITES)]].back_up()

    def _restart_from_a_backup(self, at: int) -> None:
        """With a ledger that does not know what the site did since."""
        site = self.sites[SITES[at % len(SITES)]]
        used = site.restart_from_the_backup()
        self.tried["old ledger used" if used else "old ledger refused"] += 1
        self._hear_all_again(site)

    def _restart_and_hear_all_again(self, at: int) -> None:
        site = self.sites[SITES[at % len(SITES)]]
        site.restart()
        self._hear_all_again(site)

    def _hear_all_again(self, site: Site) -> None:
        """A coordinator plays the whole attempt to the new process."""
        for letter in [one for one in self.sent if one.to == site.name and one.plan is self.plan]:
            self._deliver(letter)

    def _crash_before_the_answer_is_out(self, at: int) -> None:
        to_sites = [letter for letter in self.under_way if letter.to]
        if not to_sites:
            return
        letter = to_sites[at % len(to_sites)]
        self.under_way.remove(letter)
        site = self.sites[letter.to]
        for effect in site.session.handle(letter.message):
            if isinstance(effect, secagg.NeedUpdate):
                site.contribute()
        site.restart()

    def _deadline(self, at: int) -> None:
        self._of_coordinator(self.coordinator.close_phase())

    @precondition(lambda self: self.coordinator.phase in ("acks", "aborted", "completed"))
    @rule(idle=st.sampled_from(IDLE))
    def next_attempt(self, idle: tuple[str, ...]) -> None:
        """At this round, or the next one where this has its acknowledgements; else another run."""
        if self.coordinator.phase != "aborted" and self.followed is not None:
            self.number, self.attempt, self.previous = self.number + 1, 0, self.followed
        elif self.coordinator.phase == "aborted" and self.attempt < ATTEMPTS - 1:
            self.attempt += 1
        else:
            self.run, self.number, self.attempt, self.previous = self.run + 1, 1, 0, None
        self._begin_anew(idle)

    def _coordinator_crashes(self, at: int) -> None:
        """It has lost everything, and goes on at the same round, or begins another run."""
        if at % 2 and self.attempt < ATTEMPTS - 1:
            self.attempt += 1
        else:
            self.run, self.number, self.attempt, self.previous = self.run + 1, 1, 0, None
        self._begin_anew(IDLE[at % len(IDLE)])

    def _begin_anew(self, idle: tuple[str, ...]) -> None:
        for site in self.sites.values():
            if site.name not in idle:
                site.train()
            site.session.close()
            site.restart()
        self.tried["another attempt"] += self.attempt > 0
        self.tried["another round"] += self.number > 1
        self._open()


def quickly(examples: int) -> settings:
    """The same examples every time; those that fail are not made smaller, which takes minutes."""
    return settings(
        max_examples=examples,
        stateful_step_count=40,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.parametrize("examples", [12, pytest.param(600, marks=pytest.mark.slow)])
def test_rounds_end_with_the_right_sum_or_with_none(examples):
    Rounds.tried.clear()

    run_state_machine_as_test(Rounds, settings=quickly(examples))

    # The rules are mixed such that all of this is among what was tried, each several times.
    wanted = {
        "completed",
        "completed without some",
        "aborted",
        "acknowledged",
        "another attempt",
        "another round",
        "withdrew: replay",
        "old ledger refused",
    }
    assert not Rounds.tried["old ledger used"]
    assert wanted <= {what for what, times in Rounds.tried.items() if times}, Rounds.tried


class Forgetting(Rounds):
    site_type = ForgetfulSite


BROKEN = r"signed two|shares of both|left again|two attempts"


def test_sites_that_forget_break_what_must_hold():
    with pytest.raises(AssertionError, match=BROKEN):
        run_state_machine_as_test(Forgetting, settings=quickly(60))


def test_sites_that_use_a_ledger_wherever_it_lies_break_what_must_hold(monkeypatch):
    monkeypatch.setattr(ledger_file, "_check_home", lambda *_, **__: None)

    with pytest.raises(AssertionError, match=BROKEN):
        run_state_machine_as_test(Rounds, settings=quickly(60))
