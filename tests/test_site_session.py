"""A site's core, event by event. The coordinator is hand-made here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from support.federation import (
    PLAIN_ALLOWED,
    ShiftTrainer,
    counting_secrets,
    make_roster,
    rounding_seed,
    signing_key,
)
from support.links import round_before
from veilsum import _native, plain, secagg
from veilsum._native import Secret
from veilsum.codecs import zstd
from veilsum.control import (
    Decline,
    PlainPlan,
    Progress,
    ProtocolMessage,
    RoundClosed,
    RoundId,
    RoundOpened,
    RunClosed,
    RunSpec,
    SiteDropped,
    TaskSettings,
    ToSite,
    UpdateHeader,
    Welcome,
)
from veilsum.errors import ConfigError
from veilsum.model import ModelLayout, result_digest
from veilsum.secagg.messages import kind_of_message
from veilsum.site.bounds import TaskBounds
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
    ModelFetchFailed,
    TrainingDone,
    TrainingFailed,
    TrainingProgressed,
    UploadDone,
    UploadRefused,
)
from veilsum.site.rounding import rounding_secret
from veilsum.site.session import SiteCore
from veilsum.site.trainer import EvaluationResult, TrainingResult

SITE = "lyon"
SITES = ("basel", "kyoto", "lyon", "oslo")
ROSTER = make_roster(SITES)
ROUND = RoundId("run", 1)
NEXT = RoundId("run", 2)
TASK = TaskSettings(epochs=2)
MODEL: dict[str, NDArray[Any]] = {
    "weight": np.linspace(-1, 1, 6).astype(np.float32).reshape(2, 3),
    "seen": np.array([5], np.int64),
}
LAYOUT = ModelLayout.from_arrays(MODEL)
MODEL_HASH = bytes.fromhex(result_digest(LAYOUT, MODEL))
SPEC = RunSpec(
    "task", masked=False, metrics=("auc", "loss"), weight_cap=100, task=TASK, colluders=1, clip=0.5
)
TRAINED = ShiftTrainer(SITE).shifted(MODEL, TASK)


def site_core(
    bounds: TaskBounds = PLAIN_ALLOWED, policy: secagg.LocalPolicy | None = None
) -> SiteCore:
    return SiteCore(
        SITE,
        signing_key(SITE),
        ROSTER,
        policy or secagg.LocalPolicy(),
        bounds,
        counting_secrets(SITE),
        rounding_seed(SITE),
        secagg.Ledger.in_memory(Secret.from_os),
    )


def plain_plan(spec: RunSpec = SPEC) -> PlainPlan:
    return plain.make_plan(spec, LAYOUT, MODEL_HASH)


def opened_plain(round_id: RoundId = ROUND, spec: RunSpec = SPEC) -> RoundOpened:
    return RoundOpened(round_id, "task", spec.task, b"", plain_plan(spec))


def opened_masked(round_id: RoundId = ROUND, spec: RunSpec = SPEC) -> RoundOpened:
    previous = None
    if round_id.number > 1:
        before = masked_plan(replace(round_id, number=round_id.number - 1, attempt=0), spec)
        others = [site for site in SITES if site != SITE]  # who were in it
        previous = round_before(before, signing_key, model_hash=MODEL_HASH, acks=others)
    plan = masked_plan(round_id, spec, previous)
    session = secagg.CoordinatorSession(
        plan, signing_key=signing_key("coordinator"), audit_seed=bytes(32), previous=previous
    )
    (message, *_) = [step.message for step in session.open() if isinstance(step, secagg.SendTo)]
    return RoundOpened(round_id, "task", spec.task, message, None)


def masked_plan(
    round_id: RoundId, spec: RunSpec = SPEC, previous: secagg.PreviousRound | None = None
) -> secagg.Plan:
    return secagg.Plan.for_round(
        roster=ROSTER,
        cohort=SITES,
        spec=replace(spec, masked=True),
        run_id=round_id.run_id,
        round_number=round_id.number,
        attempt=round_id.attempt,
        layout=LAYOUT,
        model_hash=MODEL_HASH,
        previous_result=previous.digest if previous else bytes(32),
        nonce=bytes(32),
    )


def sent(core: SiteCore, message: ToSite) -> list[SiteEffect]:
    return core.handle(CoordinatorSent(message))


def trained(
    round_id: RoundId = ROUND,
    weight: int = 10,
    metrics: Mapping[str, float] | None = None,
    measured: Mapping[str, float] | None = None,
) -> TrainingDone:
    result = TrainingResult(TRAINED, weight, metrics if metrics is not None else {"loss": 0.5})
    return TrainingDone(round_id, result, EvaluationResult(measured or {"auc": 0.75}, 20))


def training_core(opened: RoundOpened) -> SiteCore:
    core = site_core()
    sent(core, opened)
    core.handle(ModelFetched(opened.round, LAYOUT, MODEL))
    assert core.phase == "training"
    return core


def declined(effects: list[SiteEffect]) -> tuple[str, str]:
    """Code and reason of the last message to the coordinator, a Decline; before it there may be
    a signed refusal."""
    *before, message = [step.message for step in effects if isinstance(step, SendToCoordinator)]
    assert isinstance(message, Decline)
    for signed in before:
        assert isinstance(signed, ProtocolMessage)
        assert kind_of_message(signed.payload) == "refuse"
    return message.code, message.reason


# --- a plain round from end to end ----------------------------------------------------


def test_an_invitation_makes_the_site_fetch_the_model_and_then_train() -> None:
    core = site_core()

    assert sent(core, opened_plain()) == [FetchModel(ROUND)]

    (train,) = core.handle(ModelFetched(ROUND, LAYOUT, MODEL))
    assert isinstance(train, Train)
    assert (train.round, train.task, list(train.arrays)) == (ROUND, TASK, list(MODEL))


def test_the_upload_holds_the_encoded_difference_the_weight_and_the_metrics() -> None:
    core = training_core(opened_plain())

    (upload,) = core.handle(trained())

    plan = plain_plan()
    update_id = plain.update_id(plan, ROUND, SITE)
    differences = [TRAINED["weight"].astype(np.float64) - MODEL["weight"], TRAINED["seen"] - 5]
    chunks = _native.encode_chunks(
        LAYOUT.native,
        [differences[0].astype(np.float32), differences[1]],
        codec=_native.codec_number("f32"),
        scale=0.0,
        limit=0.0,
        rounding=None,
        least_error=False,
        plan_digest=plan.digest,
        update_id=update_id,
        chunk_coordinates=plan.chunk_coordinates,
        threads=1,
    )
    header = UpdateHeader(ROUND, update_id, len(chunks), 10, {"auc": 0.75, "loss": 0.5}, b"")
    assert upload == Upload(header, tuple(chunks))
    assert core.handle(UploadDone(ROUND)) == [Note("the coordinator holds the update")]
    assert sent(core, RoundClosed(ROUND, True, "", "ab")) == [
        Note("round 1 completed, digest ab"),
    ]
    assert core.phase == "idle"


def test_a_site_rounds_the_same_update_of_a_round_in_the_same_way() -> None:
    spec = replace(SPEC, codec="ring8", value_bits=8)
    uploads = []
    for attempt in (0, 1, 0):
        round_id = RoundId("run", 1, attempt)
        core = training_core(opened_plain(round_id, spec))
        (upload,) = core.handle(trained(round_id))
        uploads.append(upload)

    assert uploads[0] == uploads[2]
    assert _bodies(uploads[0]) == _bodies(uploads[1])


def _bodies(upload: SiteEffect) -> list[bytes]:
    assert isinstance(upload, Upload)
    return [bytes(memoryview(chunk)[64:]) for chunk in upload.chunks]


def test_rounding_secrets_differ_by_site_round_and_run_but_not_by_attempt() -> None:
    def secret(round_id: RoundId, site: str) -> bytes:
        return bytes(rounding_secret(rounding_seed("any"), round_id, site))

    first = secret(RoundId("run", 1), "lyon")

    assert secret(RoundId("run", 1, 7), "lyon") == first
    others = {
        secret(RoundId("run", 1), "oslo"),
        secret(RoundId("run", 2), "lyon"),
        secret(RoundId("runl", 1), "yon"),
    }
    assert len(others | {first}) == 4


def test_progress_of_training_goes_to_the_coordinator() -> None:
    core = training_core(opened_plain())

    assert core.handle(TrainingProgressed(ROUND, 0.25)) == [
        SendToCoordinator(Progress(ROUND, 0.25))
    ]
    assert core.handle(TrainingProgressed(NEXT, 0.25)) == []


def test_only_finite_metrics_that_the_round_asks_for_are_sent() -> None:
    core = training_core(opened_plain())

    effects = core.handle(trained(metrics={"loss": float("nan"), "private": 3.0}))

    assert effects[0] == Note("metric 'loss' is nan and is not sent")
    upload = effects[1]
    assert isinstance(upload, Upload)
    assert upload.header.metrics == {"auc": 0.75}


# --- a masked round ---------------------------------------------------------------------


def test_in_a_masked_round_keys_go_out_while_the_model_is_fetched() -> None:
    core = site_core(TaskBounds())

    keys, fetch = sent(core, opened_masked())

    assert isinstance(keys, SendToCoordinator)
    assert isinstance(keys.message, ProtocolMessage)
    assert keys.message.round == ROUND
    assert fetch == FetchModel(ROUND)


def test_an_update_waits_until_the_protocol_is_ready_for_it() -> None:
    core = training_core(opened_masked())

    assert core.handle(trained()) == []
    assert core.phase == "holding"


def test_a_message_that_breaks_the_protocol_ends_the_sites_part_and_the_training() -> None:
    core = training_core(opened_masked())

    effects = sent(core, ProtocolMessage(ROUND, b"nonsense"))

    code, _ = declined(effects)
    assert code == "malformed"
    assert StopTraining(ROUND) in effects
    assert core.phase == "idle"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": TaskSettings(epochs=3)}, "the task settings are not those of the signed plan"),
        ({"round": NEXT}, "names round 2, the signed plan 1"),
        ({"round": RoundId("walk", 1)}, "names run 'walk', the signed plan 'run'"),
        ({"round": RoundId("run", 1, 1)}, "names attempt 1, the signed plan 0"),
        ({"task_id": "other"}, "names task id 'other', the signed plan 'task'"),
    ],
)
def test_an_invitation_that_differs_from_the_signed_plan_is_declined(
    change: dict[str, Any], message: str
) -> None:
    core = site_core()

    effects = sent(core, replace(opened_masked(), **change))

    code, reason = declined(effects)
    assert code == "plan"
    assert message in reason
    assert core.phase == "idle"


def test_a_plan_outside_the_local_policy_is_declined() -> None:
    core = site_core(policy=secagg.LocalPolicy(min_sites=4))

    effects = sent(core, opened_masked())

    assert declined(effects) == ("policy", "min_sites is 3, this site demands 4")
    assert isinstance(effects[0], SendToCoordinator)
    assert isinstance(effects[0].message, ProtocolMessage)  # the signed refusal
    assert core.phase == "idle"


def test_a_plan_that_the_coordinator_did_not_sign_is_declined() -> None:
    core = site_core()
    opened = opened_masked()
    forged = bytearray(opened.open_message)
    forged[100] ^= 1

    effects = sent(core, replace(opened, open_message=bytes(forged)))

    assert declined(effects)[0] == "malformed"


# --- what a site refuses -----------------------------------------------------------------


def test_a_plain_round_is_declined_unless_the_site_allows_it() -> None:
    core = site_core(TaskBounds())

    effects = sent(core, opened_plain())

    assert declined(effects) == ("policy", "this site takes part in masked rounds only")


@pytest.mark.parametrize("masked", [True, False])
def test_a_round_in_which_the_site_took_part_is_not_entered_again(masked: bool) -> None:
    core = site_core()
    opened = opened_masked if masked else opened_plain
    sent(core, opened(NEXT))
    sent(core, SiteDropped(NEXT, "too late"))

    for old in (NEXT, ROUND) if masked else (ROUND,):
        code, _ = declined(sent(core, opened(old)))
        assert code == "replay"
    retried = sent(core, opened(RoundId("run", 2, 1)))
    assert FetchModel(RoundId("run", 2, 1)) in retried


@pytest.mark.parametrize(
    "opened",
    [
        replace(opened_plain(), plain=None),
        replace(opened_plain(), open_message=b"x"),
    ],
)
def test_an_invitation_that_is_neither_masked_nor_plain_is_declined(opened: RoundOpened) -> None:
    assert declined(sent(site_core(), opened))[0] == "malformed"


@pytest.mark.parametrize(
    "change",
    [
        {"digest": bytes(32)},
        {"weight_cap": 7},
        {"codec": "f16"},
        {"metrics": ("auc",)},
        {"clip": 2.0},
        {"model_hash": bytes(32)},
        {"chunk_coordinates": 4096},
    ],
)
def test_a_plain_plan_whose_digest_is_not_its_own_is_declined(change: dict[str, Any]) -> None:
    opened = opened_plain()
    assert opened.plain is not None

    effects = sent(site_core(), replace(opened, plain=replace(opened.plain, **change)))

    assert declined(effects) == ("plan", "the plan's digest is not the one of its fields")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"epochs": 51}, "the task asks for epochs 51, this site accepts 1 to 50"),
        ({"batch_size": 5000}, "the task asks for batch_size 5000, this site accepts 1 to 4096"),
        ({"learning_rate": 2.0}, "the task asks for learning_rate 2.0, this site accepts 1e-08 to"),
        ({"learning_rate": 1e-9}, "the task asks for learning_rate 1e-09, this site accepts 1e-08"),
        ({"proximal": 11.0}, "the task asks for proximal 11.0, this site accepts 0.0 to 10.0"),
    ],
)
def test_a_task_out_of_bounds_is_declined_and_says_which_setting(
    settings: dict[str, Any], reason: str
) -> None:
    spec = replace(SPEC, task=TaskSettings(**settings))

    code, found = declined(sent(site_core(), opened_plain(spec=spec)))

    assert code == "task_bounds"
    assert found.startswith(reason)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({**MODEL, "seen": np.array([6], np.int64)}, "is not the one of the plan (hash differs)"),
        ({"weight": MODEL["weight"]}, "the model handed out lacks tensors ['seen']"),
        ({**MODEL, "seen": np.array([5], np.int32)}, "is int32 (1,), the layout has i64 (1,)"),
    ],
)
def test_another_model_than_the_planned_one_is_not_trained_from(
    arrays: dict[str, NDArray[Any]], message: str
) -> None:
    core = site_core()
    sent(core, opened_plain())

    code, reason = declined(core.handle(ModelFetched(ROUND, LAYOUT, arrays)))

    assert code == "model"
    assert message in reason
    assert core.phase == "idle"


def test_a_model_with_another_layout_is_not_trained_from() -> None:
    core = site_core()
    sent(core, opened_plain())
    other = {"weight": MODEL["weight"]}

    effects = core.handle(ModelFetched(ROUND, ModelLayout.from_arrays(other), other))

    assert declined(effects) == (
        "model",
        "the model handed out has another layout than the plan",
    )


# --- when something fails ------------------------------------------------------------------


def test_what_training_failed_with_stays_on_the_site() -> None:
    core = training_core(opened_plain())

    effects = core.handle(TrainingFailed(ROUND, "record 4711 cannot be read"))

    assert declined(effects) == (
        "training_failed",
        "training failed; this site's log says why",
    )
    notes = [step.text for step in effects if isinstance(step, Note)]
    assert notes == ["declined (training_failed): training failed record 4711 cannot be read"]


@pytest.mark.parametrize(
    ("done", "message"),
    [
        (trained(weight=101), "this site's weight 101 is outside 1 to 100"),
        (trained(weight=0), "this site's weight 0 is outside 1 to 100"),
        (trained(metrics={"auc": 0.1}), "fit and evaluate both report metric 'auc'"),
        (trained(measured={"auc": 1e9}), "metric 'auc' is 1000000000.0, beyond ±65536"),
        (
            replace(trained(), result=TrainingResult({"weight": TRAINED["weight"]}, 10)),
            "the trained model lacks tensors ['seen']",
        ),
        (
            replace(
                trained(),
                result=TrainingResult(
                    {**TRAINED, "weight": MODEL["weight"] * np.float32("nan")}, 1
                ),
            ),
            "tensor 'weight' of the trained model holds values that are not finite",
        ),
    ],
)
def test_an_update_that_does_not_fit_is_declined_and_the_reason_stays_on_the_site(
    done: TrainingDone, message: str
) -> None:
    core = training_core(opened_plain())

    effects = core.handle(done)

    code, reason = declined(effects)
    assert code == "update"
    assert reason.endswith("; this site's log says why")
    assert message not in reason
    assert any(message in step.text for step in effects if isinstance(step, Note))
    assert core.phase == "idle"


def test_an_update_beyond_the_clip_of_a_ring_codec_is_declined() -> None:
    core = training_core(opened_plain(spec=replace(SPEC, codec="ring16", clip=1e-3)))

    assert declined(core.handle(trained()))[0] == "update"


@pytest.mark.parametrize(
    ("event", "code"),
    [
        (ModelFetchFailed(ROUND, "no route to host"), "model"),
        (UploadRefused(ROUND, "late"), "upload_refused"),
    ],
)
def test_a_transfer_that_fails_costs_the_site_the_round(event: Any, code: str) -> None:
    core = site_core()
    sent(core, opened_plain())

    assert declined(core.handle(event))[0] == code
    assert core.phase == "idle"


def test_after_leaving_a_round_the_site_joins_the_next() -> None:
    core = training_core(opened_plain())
    core.handle(TrainingFailed(ROUND, "why"))

    assert sent(core, opened_plain(NEXT)) == [FetchModel(NEXT)]


# --- endings ------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(
    ("message", "note"),
    [
        (RoundClosed(ROUND, False, "too few", ""), "round 1 aborted: too few"),
        (SiteDropped(ROUND, "too slow"), "dropped by the coordinator: too slow"),
    ],
)
def test_the_end_of_a_round_stops_training(message: ToSite, note: str, masked: bool) -> None:
    core = training_core(opened_masked() if masked else opened_plain())

    assert sent(core, message) == [StopTraining(ROUND), Note(note)]
    assert core.phase == "idle"
    assert core.handle(trained()) == []


def test_the_end_of_a_run_ends_its_round_and_no_other() -> None:
    core = training_core(opened_plain())

    assert sent(core, RunClosed("walk", True, "")) == [Note("run walk completed")]
    assert core.phase == "training"
    assert sent(core, RunClosed("run", False, "stopped")) == [
        StopTraining(ROUND),
        Note("the run ended"),
        Note("run run aborted: stopped"),
    ]


@pytest.mark.parametrize("masked", [True, False])
def test_a_broken_connection_ends_the_round_for_the_site(masked: bool) -> None:
    core = training_core(opened_masked() if masked else opened_plain())

    assert core.handle(Disconnected()) == [StopTraining(ROUND), Note("the connection is gone")]
    assert core.handle(Disconnected()) == []
    assert core.phase == "idle"


def test_a_new_round_ends_the_one_before() -> None:
    core = training_core(opened_plain())

    assert sent(core, opened_plain(NEXT)) == [
        StopTraining(ROUND),
        Note("another round was opened"),
        FetchModel(NEXT),
    ]


def test_leaving_a_masked_round_wipes_its_secrets() -> None:
    drawn: list[Secret] = []
    draw = counting_secrets(SITE)

    def entropy(size: int) -> Secret:
        drawn.append(draw(size))
        return drawn[-1]

    core = SiteCore(
        SITE,
        signing_key(SITE),
        ROSTER,
        secagg.LocalPolicy(),
        TaskBounds(),
        entropy,
        rounding_seed(SITE),
        secagg.Ledger.in_memory(Secret.from_os),
    )
    sent(core, opened_masked())

    core.close()

    assert drawn
    assert all(secret.wiped for secret in drawn)


@pytest.mark.parametrize(
    "stale",
    [
        CoordinatorSent(RoundClosed(NEXT, True, "", "")),
        CoordinatorSent(SiteDropped(NEXT, "why")),
        ModelFetched(NEXT, LAYOUT, MODEL),
        ModelFetched(ROUND, LAYOUT, MODEL),
        ModelFetchFailed(NEXT, "why"),
        TrainingFailed(NEXT, "why"),
        trained(NEXT),
        UploadDone(NEXT),
        UploadRefused(NEXT, "why"),
    ],
)
def test_an_event_about_another_round_changes_nothing(stale: Any) -> None:
    core = training_core(opened_plain())

    assert core.handle(stale) == []
    assert core.phase == "training"


def test_events_before_any_round_change_nothing() -> None:
    core = site_core()

    for event in (trained(), UploadDone(ROUND), Disconnected(), TrainingProgressed(ROUND, 0.1)):
        assert core.handle(event) == []


# --- who is who ----------------------------------------------------------------------------


def test_a_coordinator_with_the_same_roster_is_welcome() -> None:
    assert sent(site_core(), Welcome("test", ROSTER.hash)) == [Note("joined test")]


@pytest.mark.parametrize("welcome", [Welcome("test", bytes(32)), Welcome("tent", ROSTER.hash)])
def test_a_coordinator_with_another_roster_is_an_error(welcome: Welcome) -> None:
    with pytest.raises(ConfigError, match="has another roster than this site"):
        sent(site_core(), welcome)


def test_a_site_with_another_key_than_its_own_does_not_start() -> None:
    with pytest.raises(ConfigError, match="not the one the roster lists for site 'lyon'"):
        SiteCore(
            SITE,
            signing_key("oslo"),
            ROSTER,
            secagg.LocalPolicy(),
            TaskBounds(),
            counting_secrets(SITE),
            rounding_seed(SITE),
            secagg.Ledger.in_memory(Secret.from_os),
        )


def test_a_rounding_seed_of_another_size_is_refused() -> None:
    with pytest.raises(ConfigError, match="the rounding seed must have 32 bytes"):
        SiteCore(
            SITE,
            signing_key(SITE),
            ROSTER,
            secagg.LocalPolicy(),
            TaskBounds(),
            counting_secrets(SITE),
            Secret.zeros(16),
            secagg.Ledger.in_memory(Secret.from_os),
        )


@pytest.mark.parametrize(
    "settings",
    [
        {"max_epochs": 0},
        {"max_batch_size": 0},
        {"min_learning_rate": 0.0},
        {"min_learning_rate": 2.0},
        {"max_learning_rate": float("inf")},
        {"max_learning_rate": float("nan")},
        {"max_proximal": -1.0},
    ],
)
def test_bounds_that_cannot_work_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        TaskBounds(**settings)


@pytest.mark.parametrize("masked", [True, False])
def test_a_task_that_the_site_does_not_know_is_declined(masked: bool) -> None:
    core = site_core(policy=secagg.LocalPolicy(task_ids=frozenset({"other"})))

    effects = sent(core, opened_masked() if masked else opened_plain())

    assert declined(effects) == ("policy", "task 'task' is not allowed at this site")


# --- error feedback and compression -------------------------------------------------------

TOPK = replace(SPEC, codec="topk/d2", error_feedback=True)
LONG = {"weight": np.linspace(1, 2, 200).astype(np.float32)}  # 256 coordinates, 128 are kept
LONG_LAYOUT = ModelLayout.from_arrays(LONG)


def long_round(core: SiteCore, number: int, spec: RunSpec = TOPK) -> dict[str, NDArray[Any]]:
    """Takes part in a round in which the model is trained to twice itself; what was sent."""
    round_id = RoundId("run", number)
    model_hash = bytes.fromhex(result_digest(LONG_LAYOUT, LONG))
    plan = plain.make_plan(spec, LONG_LAYOUT, model_hash)
    sent(core, RoundOpened(round_id, "task", spec.task, b"", plan))
    core.handle(ModelFetched(round_id, LONG_LAYOUT, LONG))
    doubled = {"weight": 2 * LONG["weight"]}
    (upload,) = core.handle(TrainingDone(round_id, TrainingResult(doubled, 1, {}), EMPTY))
    assert isinstance(upload, Upload)
    update_id = plain.update_id(plan, round_id, SITE)
    settings = plain.codec_settings(plan.codec, plan.clip)
    form = {"codec": settings.number, "scale": settings.scale, "plan_digest": plan.digest}
    form |= {"update_id": update_id, "chunk_coordinates": plan.chunk_coordinates}
    expanded = [zstd.expanded(chunk, _native.chunk_size(settings.number, 256))
                for chunk in upload.chunks]  # fmt: skip
    return dict(zip(("weight",), _native.decode_chunks(LONG_LAYOUT.native, expanded, **form),
                    strict=True))  # fmt: skip


EMPTY = EvaluationResult()


def closed(core: SiteCore, number: int, *, completed: bool = True) -> None:
    sent(core, RoundClosed(RoundId("run", number), completed, "why", "ab"))


def test_what_the_codec_loses_is_sent_in_the_next_round() -> None:
    core = site_core()

    first = long_round(core, 1)["weight"]
    closed(core, 1)
    second = long_round(core, 2)["weight"]

    assert np.flatnonzero(first).tolist() == list(range(72, 200))
    assert np.flatnonzero(first[:72]).size == 0
    assert np.allclose(second[:72], 2 * LONG["weight"][:72]), "twice: this round's and the last's"


def test_without_feedback_it_is_lost() -> None:
    core = site_core()
    spec = replace(TOPK, error_feedback=False)

    first = long_round(core, 1, spec)["weight"]
    closed(core, 1)

    assert np.array_equal(long_round(core, 2, spec)["weight"], first)


@pytest.mark.parametrize(
    "ending",
    [
        lambda core: closed(core, 1, completed=False),
        lambda core: core.handle(UploadRefused(RoundId("run", 1), "no")),
        lambda core: sent(core, SiteDropped(RoundId("run", 1), "no")),
    ],
)
def test_what_an_update_took_along_is_taken_back_if_it_does_not_count(ending: Any) -> None:
    core, other = site_core(), site_core()
    long_round(core, 1)
    ending(core)

    assert np.array_equal(long_round(core, 2)["weight"], long_round(other, 2)["weight"])


def test_another_run_begins_without_what_was_lost() -> None:
    core, other = site_core(), site_core()
    long_round(core, 1)
    closed(core, 1)
    sent(core, RunClosed("run", True, ""))

    assert np.array_equal(long_round(core, 2)["weight"], long_round(other, 2)["weight"])


def test_values_beyond_the_clip_of_a_ring_codec_are_sent_bit_by_bit() -> None:
    core = site_core()
    spec = replace(TOPK, codec="ring8", value_bits=8, clip=1.5)
    total = np.zeros(200)

    for number in range(1, 5):
        total += long_round(core, number, spec)["weight"]
        closed(core, number)

    expected = np.minimum(4 * LONG["weight"], 4 * 1.5)
    assert np.abs(total - expected).max() < 1.5 / 127 * 1.01


def test_chunks_are_compressed_if_the_plan_says_so() -> None:
    spec = replace(SPEC, compression="zstd")
    core, other = site_core(), site_core()

    compressed = long_round(core, 1, spec)["weight"]

    assert np.array_equal(compressed, long_round(other, 1)["weight"]) is False
    assert np.array_equal(compressed, LONG["weight"])


def test_a_plain_round_that_invites_a_site_again_gets_the_update_it_did_not_get() -> None:
    core, other = site_core(), site_core()

    lost = long_round(core, 1)["weight"]
    core.handle(Disconnected())
    again = long_round(core, 1)["weight"]
    closed(core, 1)
    long_round(other, 1)
    closed(other, 1)

    assert np.array_equal(again, lost)
    assert np.array_equal(long_round(core, 2)["weight"], long_round(other, 2)["weight"])
