"""A site whose connection breaks stays in its round, and says nothing but what it said before."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from support.federation import Fault, signing_key, small_model
from support.shaky import ShakyFederation, When
from test_site_session import (
    LAYOUT,
    MODEL,
    NEXT,
    ROSTER,
    ROUND,
    declined,
    masked_plan,
    opened_masked,
    opened_plain,
    sent,
    site_core,
    trained,
    training_core,
)
from veilsum.control import (
    Decline,
    ProtocolMessage,
    RoundClosed,
    RoundId,
    RoundOpened,
    RunSpec,
    SiteDropped,
    ToSite,
    Welcome,
)
from veilsum.coordinator.events import SiteSent
from veilsum.secagg import LocalPolicy
from veilsum.secagg.envelope import Envelope
from veilsum.secagg.messages import RoundOpen
from veilsum.secagg.payload import COORDINATOR
from veilsum.site.contribution import Contribution
from veilsum.site.effects import (
    FetchModel,
    Note,
    SendToCoordinator,
    SiteEffect,
    StopTraining,
    Train,
    Upload,
)
from veilsum.site.events import (
    CoordinatorSent,
    Disconnected,
    ModelFetched,
    TrainingFailed,
    UploadDone,
)
from veilsum.site.last_update import LastUpdate
from veilsum.site.session import SiteCore

SITES = ("basel", "kyoto", "lyon")
VICTIM = "lyon"
MASKED = RunSpec("task", clip=0.5, weight_cap=64, colluders=1, max_attempts=1)
PLAIN = replace(
    MASKED, masked=False, rounds=3, codec="ring8", value_bits=8, error_feedback=True, min_sites=3
)
AGAIN = RoundId("run", 1, 1)
JOINED = Note("joined test")
WENT_ON = Note("the coordinator went on without this site")


def run(spec: RunSpec, sites: tuple[str, ...] = SITES, **how: Any) -> ShakyFederation:
    policies = {VICTIM: LocalPolicy(audit="all")}
    federation = ShakyFederation(
        sites, victim=VICTIM, audits=spec.masked, policy_of=policies, **how
    )
    federation.submit("run", spec, small_model())
    federation.run("run")
    return federation


def digests(federation: ShakyFederation) -> list[str]:
    status = federation.coordinator.status("run")
    assert status.state == "completed", status.reason
    assert [record.dropped for record in status.rounds] == [{}] * len(status.rounds)
    return [record.digest for record in status.rounds]


def assert_never_said_otherwise(federation: ShakyFederation) -> None:
    """Whatever the site sent of a kind in a round, lost or not, was always the same bytes."""
    for (round_id, kind), payloads in federation.said.items():
        assert len(set(payloads)) == 1, (round_id, kind)
    uploads: dict[RoundId, Upload] = {}
    for upload in federation.pushed:
        first = uploads.setdefault(upload.header.round, upload)
        assert upload.header == first.header
        assert list(map(bytes, upload.chunks)) == list(map(bytes, first.chunks))


# --- a connection that breaks -----------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "behind"])
@pytest.mark.parametrize(
    "spec",
    [
        pytest.param(MASKED, id="masked"),
        pytest.param(replace(MASKED, rounds=2), id="masked, two rounds", marks=pytest.mark.slow),
        pytest.param(PLAIN, id="plain"),
    ],
)
def test_wherever_the_connection_breaks_the_result_is_the_undisturbed_one(
    spec: RunSpec, when: When
) -> None:
    undisturbed = run(spec)
    expected = digests(undisturbed)
    repeated = 0
    for cut in range(1, undisturbed.crossings + 1):
        federation = run(spec, cut=cut, when=when)
        assert federation.breaks == 1, cut
        assert digests(federation) == expected, cut
        assert federation.trained == undisturbed.trained, cut  # it went on, and did not begin anew
        assert_never_said_otherwise(federation)
        assert federation.acknowledged == undisturbed.acknowledged, cut
        repeated += sum(len(payloads) - 1 for payloads in federation.said.values())
    # In a masked round a lot of it was said more than once.
    assert repeated > undisturbed.crossings if spec.masked else repeated == 0


def core_in(phase: str, opened: RoundOpened) -> SiteCore:
    core = site_core()
    sent(core, opened)
    if phase != "fetching":
        core.handle(ModelFetched(opened.round, LAYOUT, MODEL))
    if phase in ("delivering", "delivered"):
        core.handle(trained(opened.round))
    if phase == "delivered":
        core.handle(UploadDone(opened.round))
    return core


def welcome(round_id: RoundId | None = ROUND) -> Welcome:
    return Welcome("test", ROSTER.hash, round_id)


def test_on_a_new_connection_a_site_asks_again_for_what_it_waits_for_and_nothing_else() -> None:
    core = site_core()
    assert sent(core, opened_plain()) == [FetchModel(ROUND)]
    assert sent(core, welcome()) == [JOINED, FetchModel(ROUND)]
    core.handle(ModelFetched(ROUND, LAYOUT, MODEL))
    assert sent(core, welcome()) == [JOINED]
    (upload,) = core.handle(trained())
    again = sent(core, welcome())
    assert again[1] is upload
    assert core.handle(UploadDone(ROUND)) == [Note("the coordinator holds the update")]
    assert sent(core, welcome()) == [JOINED]


@pytest.mark.parametrize("phase", ["fetching", "training", "delivering", "delivered"])
def test_a_repeated_invitation_to_a_plain_round_changes_nothing(phase: str) -> None:
    core = core_in(phase, opened_plain())
    before = core.phase

    assert sent(core, opened_plain()) == []
    assert core.phase == before


def test_a_repeated_invitation_to_a_masked_round_gets_the_same_keys() -> None:
    core = site_core()
    keys, _ = sent(core, opened_masked())

    assert sent(core, opened_masked()) == [keys]
    core.handle(ModelFetched(ROUND, LAYOUT, MODEL))
    assert sent(core, opened_masked()) == [keys]
    assert core.phase == "training"


def test_what_is_repeated_from_an_earlier_phase_answers_nothing_in_a_later_one() -> None:
    sites = (*SITES, "oslo")
    faults = {VICTIM: Fault(1, "shares", silent=True)}
    federation = ShakyFederation(sites, victim=VICTIM, faults=faults)
    federation.submit("run", MASKED, small_model())
    federation.settle()
    assert federation.coordinator.status("run").sites_waiting == (VICTIM,)

    (advert,) = federation.said[ROUND, "key-advert"]
    federation.tell(SiteSent(VICTIM, ProtocolMessage(ROUND, advert)))

    assert federation.coordinator.status("run").sites_waiting == (VICTIM,)


# --- a round that the site is not in -----------------------------------------------------


@pytest.mark.parametrize("core", [site_core(), training_core(opened_plain(NEXT))])
def test_a_message_of_a_round_that_the_site_is_not_in_says_so(core: SiteCore) -> None:
    before = core.phase

    effects = sent(core, ProtocolMessage(ROUND, b"x"))

    assert declined(effects) == ("not_in_round", "this site is not in that round")
    assert core.phase == before


@pytest.mark.parametrize("opened", [opened_plain(), opened_masked()], ids=["plain", "masked"])
def test_a_site_that_left_while_it_was_away_says_again_why(opened: RoundOpened) -> None:
    core = training_core(opened)
    said = [
        effect
        for effect in core.handle(TrainingFailed(ROUND, "no more memory"))
        if isinstance(effect, SendToCoordinator)
    ]
    assert isinstance(said[-1].message, Decline)
    assert said[-1].message.code == "training_failed"

    assert sent(core, welcome()) == [JOINED]
    assert sent(core, opened) == said
    assert sent(core, ProtocolMessage(ROUND, b"x")) == said
    # It is about that round only.
    assert FetchModel(AGAIN) in sent(core, opened_plain(AGAIN))


def test_a_signed_refusal_is_repeated_with_what_follows_it() -> None:
    core = training_core(opened_masked())
    first = sent(core, ProtocolMessage(ROUND, b"nonsense"))
    said = [effect for effect in first if isinstance(effect, SendToCoordinator)]
    assert len(said) == 2

    assert sent(core, opened_masked()) == said


def test_a_site_that_was_away_too_long_is_in_no_round() -> None:
    core = training_core(opened_masked())
    assert core.handle(Disconnected()) == [StopTraining(ROUND), Note("the connection is gone")]

    assert sent(core, welcome()) == [JOINED]
    assert declined(sent(core, opened_masked()))[0] == "replay"
    assert declined(sent(core, ProtocolMessage(NEXT, b"x")))[0] == "not_in_round"


# --- a coordinator that lies --------------------------------------------------------------

LIES = [None, NEXT, AGAIN, RoundId("walk", 1)]


@pytest.mark.parametrize("told", LIES)
@pytest.mark.parametrize("phase", ["fetching", "training", "delivering", "delivered"])
def test_a_welcome_to_another_round_makes_a_site_leave_its_own(
    told: RoundId | None, phase: str
) -> None:
    core = core_in(phase, opened_plain())

    _, *left = sent(core, welcome(told))

    assert left == [StopTraining(ROUND)] * (phase == "training") + [WENT_ON]
    assert core.phase == "idle"
    assert core.handle(trained()) == []


@pytest.mark.parametrize("told", LIES)
@pytest.mark.parametrize("phase", ["fetching", "training", "holding"])
def test_a_welcome_to_another_round_makes_a_site_leave_a_masked_one_for_good(
    told: RoundId | None, phase: str
) -> None:
    core = core_in(phase, opened_masked())
    if phase == "holding":
        core.handle(trained())
    assert core.phase == phase

    assert sent(core, welcome(told))[-1] == WENT_ON
    assert core.phase == "idle"
    assert declined(sent(core, opened_masked()))[0] == "replay"


def test_a_welcome_to_a_round_that_the_site_is_not_in_takes_it_nowhere() -> None:
    core = site_core()

    assert sent(core, welcome()) == [JOINED]
    assert core.phase == "idle"


def lying(told: RoundId | None) -> Callable[[list[ToSite]], list[ToSite]]:
    def back(messages: list[ToSite]) -> list[ToSite]:
        first, *others = messages
        assert isinstance(first, Welcome)
        return [replace(first, round=told), *others]

    return back


def test_a_coordinator_that_welcomes_to_another_round_gets_nothing_from_the_site_any_more() -> None:
    """At whatever point: what the site said in the round stays all that it ever says in it."""
    sites = (*SITES, "oslo")
    spec = replace(MASKED, min_sites=3)
    fell_silent = 0
    for cut in range(1, run(spec, sites).crossings + 1):
        federation = run(spec, sites, cut=cut, back=lying(LIES[cut % len(LIES)]))
        assert federation.coordinator.status("run").state == "completed", cut  # the others go on
        assert_never_said_otherwise(federation)
        if "key-advert" in federation.said_before:
            assert federation.said_since <= {"refuse"}, cut
            fell_silent += 1
    assert fell_silent > 10


def test_what_was_masked_once_is_not_masked_again_for_the_next_attempt() -> None:
    """A coordinator that has a site leave its round in order to hold the round again gets an update
    that was trained anew, once one has left the site."""
    spec = replace(MASKED, min_sites=3, max_attempts=2)
    anew = 0
    for cut in range(1, run(spec).crossings + 1):
        federation = run(spec, cut=cut, back=lying(None))
        assert_never_said_otherwise(federation)
        attempts = {upload.header.round.attempt for upload in federation.pushed}
        if attempts == {0, 1}:
            anew += 1
            assert len(federation.trained) == 2
            assert len(set(federation.trained)) == 2
    assert anew  # it did come to that


def another_plan() -> RoundOpened:
    """For the same round, well signed."""
    plan = replace(masked_plan(ROUND), nonce=b"n" * 32)
    message = RoundOpen(plan.context, COORDINATOR, plan.to_bytes(), None)
    signed = Envelope.sign(message.kind, message.to_payload(), signing_key("coordinator"))
    return replace(opened_masked(), open_message=signed.to_bytes())


SECOND = {
    "another plan": another_plan(),
    "another task": replace(opened_masked(), task=replace(opened_masked().task, epochs=3)),
    "another task id": replace(opened_masked(), task_id="other"),
    "a plain plan": opened_plain(),
    "nonsense": replace(opened_masked(), open_message=b"nonsense"),
}


@pytest.mark.parametrize("second", SECOND)
def test_another_invitation_to_the_same_round_ends_the_sites_part_in_it(second: str) -> None:
    core = site_core()
    sent(core, opened_masked())
    core.handle(ModelFetched(ROUND, LAYOUT, MODEL))

    effects = sent(core, SECOND[second])

    code, _ = declined(effects)
    assert code in ("plan", "equivocation", "malformed", "replay")
    assert StopTraining(ROUND) in effects
    assert not [effect for effect in effects if isinstance(effect, Train | Upload | FetchModel)]
    assert core.phase == "idle"
    assert core.handle(trained()) == []


def test_a_masked_invitation_to_the_plain_round_that_the_site_is_in_ends_its_part_in_it() -> None:
    core = training_core(opened_plain())

    assert declined(sent(core, opened_masked()))[0] == "plan"
    assert core.phase == "idle"


# --- whether an update counts -------------------------------------------------------------


class Undone:
    """A contribution that notes what is taken back."""

    def __init__(self) -> None:
        self.times = 0

    def undo(self) -> None:
        self.times += 1


Step = Callable[[LastUpdate], None]
HELD: Step = lambda last: last.held(ROUND)  # noqa: E731
COUNTS: Step = lambda last: last.told(ROUND, counts=True)  # noqa: E731
DOES_NOT: Step = lambda last: last.told(ROUND, counts=False)  # noqa: E731
ANOTHER: Step = lambda last: last.told(NEXT, counts=False)  # noqa: E731
GO_ON: Step = lambda last: last.assume()  # noqa: E731


@pytest.mark.parametrize(
    ("steps", "taken_back"),
    [
        ([], 0),
        ([HELD], 0),
        ([COUNTS, DOES_NOT, GO_ON], 0),
        ([DOES_NOT], 1),
        ([HELD, DOES_NOT, DOES_NOT, GO_ON], 1),
        ([ANOTHER], 0),
        ([ANOTHER, HELD, GO_ON], 0),
        ([GO_ON], 1),
        ([HELD, GO_ON], 0),
        ([HELD, GO_ON, DOES_NOT], 0),
    ],
)
def test_an_update_is_taken_back_once_if_it_does_not_count(
    steps: list[Step], taken_back: int
) -> None:
    last = LastUpdate()
    undone: Any = Undone()
    contribution: Contribution = undone
    last.made(ROUND, contribution)
    for step in steps:
        step(last)
    assert undone.times == taken_back


def test_nothing_is_held_of_an_update_whose_run_has_ended() -> None:
    """With error feedback it holds twice the model."""
    last, undone = LastUpdate(), Undone()
    held = weakref.ref(undone)
    last.made(ROUND, undone)  # type: ignore[arg-type]
    last.forget("another")
    DOES_NOT(last)
    assert undone.times == 1
    last.made(ROUND, undone)  # type: ignore[arg-type]
    last.forget(ROUND.run_id)
    DOES_NOT(last)
    assert undone.times == 1
    del undone
    assert held() is None


@pytest.mark.parametrize(
    ("news", "kept"),
    [
        (RoundClosed(ROUND, True, "", "ab"), True),
        (RoundClosed(ROUND, False, "too few", ""), False),
        (SiteDropped(ROUND, "too late"), False),
        (None, False),
    ],
)
def test_the_residual_hears_what_became_of_an_update_after_the_site_has_left(
    news: ToSite | None, kept: bool
) -> None:
    """The coordinator went on with the next round while the site was away."""
    spec = replace(PLAIN, task=replace(PLAIN.task, epochs=2), weight_cap=100, metrics=())

    def second_upload(core: SiteCore) -> list[bytes]:
        sent(core, opened_plain(NEXT, spec))
        core.handle(ModelFetched(NEXT, LAYOUT, MODEL))
        return chunks_of(core.handle(trained(NEXT)))

    def first_round() -> SiteCore:
        core = training_core(opened_plain(ROUND, spec))
        chunks_of(core.handle(trained()))
        return core

    core = first_round()
    sent(core, RoundClosed(ROUND, True, "", "ab"))
    counted = second_upload(core)
    core = first_round()
    sent(core, RoundClosed(ROUND, False, "", ""))
    taken_back = second_upload(core)
    assert counted != taken_back

    core = first_round()
    core.handle(CoordinatorSent(welcome(NEXT)))
    if news is not None:
        sent(core, news)
    assert second_upload(core) == (counted if kept else taken_back)


def chunks_of(effects: list[SiteEffect]) -> list[bytes]:
    (upload,) = [effect for effect in effects if isinstance(effect, Upload)]
    return list(map(bytes, upload.chunks))
