"""Whole runs: a coordinator and its sites, in memory, with sites lost in every phase."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from support.federation import (
    Fault,
    Federation,
    ShiftTrainer,
    small_model,
)
from support.unmasked import sum_without_masks
from veilsum import Aggregator, _native
from veilsum._native import Layout
from veilsum.control import (
    Deadlines,
    OptimizerSpec,
    RoundClosed,
    RoundId,
    RoundOpened,
    RunClosed,
    RunSpec,
    RunStatus,
    SiteDropped,
    TaskSettings,
)
from veilsum.coordinator.effects import (
    Announce,
    AnswerUpload,
    CloseUploads,
    OpenUploads,
    PublishModel,
    SaveRound,
    SaveRun,
    SendToSite,
)
from veilsum.coordinator.events import RunAbortRequested, RunSubmitted
from veilsum.coordinator.policy import task_of_round
from veilsum.difference import model_difference, widen
from veilsum.errors import ConfigError, DecodeError, PeerError
from veilsum.model import ModelLayout, result_digest
from veilsum.optimizers import FedAdam
from veilsum.optimizers.server import ServerOptimizer
from veilsum.secagg.envelope import Envelope
from veilsum.secagg.messages import RoundOpen
from veilsum.secagg.payload import read_payload
from veilsum.secagg.policy import LocalPolicy
from veilsum.secagg.refusals import RefusalCode, open_refusal
from veilsum.site.bounds import TaskBounds

SITES = ("basel", "kyoto", "lyon", "oslo", "quito")
DEADLINES = Deadlines(
    join_s=60.0, keys_s=10.0, shares_s=11.0, inputs_s=100.0, votes_s=12.0, unmask_s=13.0
)
MASKED_PHASES = ("keys", "shares", "inputs", "votes", "unmask")
COUNTED = ("votes", "unmask", "acks")  # lost there, a site's update is in the sum already


def spec(masked: bool, rounds: int = 3, **settings: Any) -> RunSpec:
    chosen = {"metrics": ("auc", "train_loss"), "clip": 0.5, "weight_cap": 64, "colluders": 1}
    return RunSpec("task", rounds=rounds, masked=masked, deadlines=DEADLINES, **chosen | settings)


def run(federation: Federation, settings: RunSpec) -> RunStatus:
    federation.submit("run", settings, small_model())
    return federation.run("run")


def expected_models(rounds: int, sites: tuple[str, ...] = SITES) -> list[dict[str, NDArray[Any]]]:
    """What federated averaging of the trainers gives, in plain floating point."""
    model, models = small_model(), []
    for number in range(1, rounds + 1):
        task = task_of_round(TaskSettings(), number)
        trained = [ShiftTrainer(site).shifted(model, task) for site in sites]
        model = {
            name: np.asarray(
                array + np.mean([one[name].astype(np.float64) - array for one in trained], axis=0)
            )
            for name, array in model.items()
        }
        model = {
            name: np.asarray(np.rint(array) if name == "seen" else array).astype(
                small_model()[name].dtype
            )
            for name, array in model.items()
        }
        models.append(model)
    return models


def assert_close(
    got: Mapping[str, NDArray[Any]], expected: Mapping[str, NDArray[Any]], tolerance: float
) -> None:
    assert list(got) == list(expected)
    for name, array in expected.items():
        assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape)
        np.testing.assert_allclose(
            got[name].astype(np.float64), array.astype(np.float64), rtol=0, atol=tolerance
        )


@pytest.mark.parametrize("masked", [True, False])
def test_a_run_completes_all_its_rounds_with_every_site(masked: bool) -> None:
    federation = Federation(SITES)

    status = run(federation, spec(masked))

    assert (status.state, status.reason, status.phase) == ("completed", "", "")
    assert [record.round for record in status.rounds] == [RoundId("run", n) for n in (1, 2, 3)]
    for record in status.rounds:
        assert (record.completed, record.sites, record.dropped) == (True, SITES, {})
        assert record.total_weight == 50
        assert record.metrics == pytest.approx({"auc": 0.75, "train_loss": 0.5}, abs=1e-6)
        assert set(record.bytes_in) == set(SITES)
    models = federation.saved_models("run")
    for got, expected in zip(models, expected_models(3), strict=True):
        assert_close(got, expected, 2e-3)


def test_a_site_that_refuses_a_round_is_in_its_record_with_its_word() -> None:
    federation = Federation(SITES, policy_of={"oslo": LocalPolicy(max_weight_cap=1)})

    (record,) = run(federation, spec(masked=True, rounds=1)).rounds

    assert record.completed
    assert record.sites == ("basel", "kyoto", "lyon", "quito")
    ((site, refusal),) = record.refusals.items()
    (opened,) = [
        effect.message.open_message
        for effect in federation.effects
        if isinstance(effect, SendToSite)
        and effect.site == "oslo"
        and isinstance(effect.message, RoundOpened)
    ]
    context = read_payload(RoundOpen, Envelope.from_bytes(opened).payload, context=None).context
    assert open_refusal(federation.roster, site, context, refusal) is RefusalCode.WEIGHT_CAP
    assert site == "oslo"


@pytest.mark.parametrize("masked", [True, False])
def test_records_name_the_model_each_round_ends_with(masked: bool) -> None:
    federation = Federation(SITES)

    status = run(federation, spec(masked))

    layout = ModelLayout.from_arrays(small_model())
    hashes = [result_digest(layout, dict(model)) for model in federation.saved_models("run")]
    published = [e for e in federation.effects if isinstance(e, PublishModel)]
    assert [record.model_hash for record in status.rounds] == hashes
    assert [effect.model_hash.hex() for effect in published] == [
        result_digest(layout, small_model()),
        *hashes[:-1],
    ]


@pytest.mark.parametrize("masked", [True, False])
def test_a_run_is_a_function_of_its_events(masked: bool) -> None:
    first, second = Federation(SITES), Federation(SITES)

    assert run(first, spec(masked)) == run(second, spec(masked))


def test_a_masked_round_gives_the_digest_of_the_same_sum_without_masks() -> None:
    federation = Federation(SITES, faults={"lyon": Fault(1, "inputs")})

    record = run(federation, spec(True, rounds=1)).rounds[0]

    assert record.sites == ("basel", "kyoto", "oslo", "quito")
    metrics = {"auc": 0.75, "train_loss": 0.5}
    expected = sum_without_masks(spec(True, rounds=1), SITES, record.sites, metrics)
    assert record.digest == expected.digest


@pytest.mark.parametrize("codec", ["f32", "f16", "bf16", "int8", "ring16"])
def test_a_plain_run_takes_every_codec(codec: str) -> None:
    federation = Federation(SITES)

    status = run(federation, spec(False, rounds=1, codec=codec))

    assert status.state == "completed"
    assert_close(federation.saved_models("run")[0], expected_models(1)[0], 4e-3)


@pytest.mark.parametrize("masked", [True, False])
def test_bfloat16_models_are_averaged_as_numbers_not_as_bit_patterns(masked: bool) -> None:
    model = {"weight": np.linspace(0x3F80, 0x4000, 65).astype(np.uint16)}  # 1.0 to 2.0
    layout = ModelLayout(Layout([("weight", "bf16", (65,))]))
    federation = Federation(SITES)
    federation.submit("run", spec(masked, rounds=1), model, layout)

    status = federation.run("run")

    trained = [ShiftTrainer(site).shifted(model, TaskSettings()) for site in SITES]
    expected = np.mean([widen("bf16", one["weight"]) for one in trained], axis=0)
    (got,) = federation.saved_models("run")
    assert status.state == "completed"
    assert got["weight"].dtype == np.uint16
    np.testing.assert_allclose(widen("bf16", got["weight"]), expected, atol=2.0**-7)


@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("phase", [*MASKED_PHASES, "acks"])
def test_a_site_lost_in_any_phase_is_back_in_the_next_round(phase: str, silent: bool) -> None:
    fault = Fault(2, phase, silent=silent, back_in=None if silent else 3)
    federation = Federation(SITES, faults={"lyon": fault})

    status = run(federation, spec(True))

    others = tuple(site for site in SITES if site != "lyon")
    counted = SITES if phase in COUNTED else others
    assert status.state == "completed"
    assert [record.sites for record in status.rounds] == [SITES, counted, SITES]
    assert set(status.rounds[1].dropped) == (set() if phase in COUNTED else {"lyon"})


@pytest.mark.parametrize("silent", [False, True])
def test_a_site_lost_in_a_plain_round_is_back_in_the_next_one(silent: bool) -> None:
    fault = Fault(2, "updates", silent=silent, back_in=None if silent else 3)
    federation = Federation(SITES, faults={"lyon": fault})

    status = run(federation, spec(False))

    reason = "sent no update before the deadline"
    if not silent:
        reason = "lost its connection: the stream ended"
    assert [len(record.sites) for record in status.rounds] == [5, 4, 5]
    assert status.rounds[1].dropped == {"lyon": reason}


def test_a_second_and_a_late_masked_update_are_refused_and_change_nothing() -> None:
    federation = Federation(SITES)
    federation.submit("run", spec(True, rounds=1), small_model())
    while "lyon" not in federation.uploads:
        federation.step()

    again = federation.tell(federation.uploads["lyon"])
    with pytest.raises(PeerError, match="sent a second update in this round"):
        federation.coordinator.upload_check("lyon", federation.uploads["lyon"].header)
    while federation.coordinator.status("run").phase != "votes":
        federation.step()
    late = federation.tell(federation.uploads["lyon"])

    one = RoundId("run", 1)
    refused = "site 'lyon' sent a second update in this round"
    assert again == [AnswerUpload(one, "lyon", False, refused)]
    refused = "site 'lyon' sent an update in the votes phase"
    assert late == [AnswerUpload(one, "lyon", False, refused)]


def test_a_masked_upload_that_breaks_the_rules_is_refused_before_its_first_chunk() -> None:
    silent = {site: Fault(1, "inputs", silent=True) for site in ("lyon", "oslo")}
    federation = Federation(SITES, faults=silent)
    federation.submit("run", spec(True, rounds=1), small_model())
    federation.settle()
    header = federation.uploads["lyon"].header

    def check(site: str, **change: Any) -> None:
        federation.coordinator.upload_check(site, replace(header, **change))

    check("lyon")
    with pytest.raises(PeerError, match="announced 1 chunks, an update has 3"):
        check("lyon", chunk_count=1)
    with pytest.raises(PeerError, match="under a number that is not its own"):
        check("lyon", update_id=header.update_id ^ 1)
    for change in ({"masked_header": b"x"}, {"masked_header": b""}):
        with pytest.raises(DecodeError):
            check("lyon", **change)
    with pytest.raises((DecodeError, PeerError)):
        check("oslo")


def test_a_silent_site_is_told_that_the_round_goes_on_without_it() -> None:
    federation = Federation(SITES, faults={"lyon": Fault(1, "shares", silent=True)})

    status = run(federation, spec(True, rounds=1))

    reason = "sent no shares in time"
    assert status.rounds[0].dropped == {"lyon": reason}
    assert SendToSite("lyon", SiteDropped(RoundId("run", 1), reason)) in federation.effects
    assert status.rounds[0].seconds["shares"] == pytest.approx(DEADLINES.shares_s, abs=2.0)


def test_below_the_threshold_the_run_ends_with_the_reason_and_is_saved() -> None:
    faults = {site: Fault(2, "keys", silent=True) for site in ("kyoto", "lyon", "oslo")}
    federation = Federation(SITES, faults=faults)

    status = run(federation, spec(True, max_attempts=1))

    reason = "2 of 5 sites sent keys, 4 are needed"
    assert (status.state, status.reason) == ("aborted", f"round 2: {reason}")
    assert [record.completed for record in status.rounds] == [True, False]
    assert status.rounds[1].reason == reason
    assert status.rounds[1].model_hash == status.rounds[0].model_hash
    ended = federation.effects[-len(SITES) - 2 :]
    assert ended[0] == SaveRun(status)
    assert ended[1:-1] == [
        SendToSite(site, RunClosed("run", False, status.reason)) for site in SITES
    ]
    saved = [effect for effect in federation.effects if isinstance(effect, SaveRound)]
    assert [(effect.record.completed, effect.model is None) for effect in saved] == [
        (True, False),
        (False, True),
    ]


@pytest.mark.parametrize(("masked", "tolerance"), [(True, 2e-3), (False, 1e-6)])
def test_a_server_optimizer_steps_by_the_mean_of_every_round_and_its_state_is_saved(
    masked: bool, tolerance: float
) -> None:
    federation = Federation(SITES)
    optimizer = OptimizerSpec("fedadam", tau=0.01)

    status = run(federation, spec(masked, server_learning_rate=0.2, server_optimizer=optimizer))

    assert status.state == "completed"
    saved = [effect for effect in federation.effects if isinstance(effect, SaveRound)]
    layout = saved[0].layout
    expected = FedAdam(learning_rate=0.2, tau=0.01).start(layout)
    model = small_model()
    for number, effect in enumerate(saved, 1):
        task = task_of_round(TaskSettings(), number)
        sites = Aggregator(layout)
        for site in SITES:
            trained = ShiftTrainer(site).shifted(model, task)
            sites.add(model_difference(layout, trained, model), weight=1, site=site)
        model = expected.step(model, sites.finish().arrays)
        assert effect.model is not None
        assert_close(effect.model, model, tolerance)
        model = dict(effect.model)
    assert saved[-1].optimizer_state is not None
    assert (saved[-1].optimizer_state.optimizer, saved[-1].optimizer_state.steps) == ("fedadam", 3)


def test_a_run_goes_on_from_a_saved_state_and_refuses_another_optimizers() -> None:
    first = Federation(SITES)
    adam = spec(False, rounds=1, server_optimizer=OptimizerSpec("fedadam"))
    run(first, adam)
    saved = next(effect for effect in first.effects if isinstance(effect, SaveRound))
    assert saved.model is not None
    assert saved.optimizer_state is not None
    second = Federation(SITES)

    yogi = spec(False, rounds=1, server_optimizer=OptimizerSpec("fedyogi"))
    with pytest.raises(ConfigError, match="is of optimizer 'fedadam', not 'fedyogi'"):
        second.tell(RunSubmitted("x", yogi, saved.layout, saved.model, saved.optimizer_state))
    second.tell(RunSubmitted("run", adam, saved.layout, saved.model, saved.optimizer_state))
    second.run("run")

    resumed = next(effect for effect in second.effects if isinstance(effect, SaveRound))
    assert resumed.optimizer_state is not None
    assert resumed.optimizer_state.steps == 2
    assert second.saved_models("run") != []


def test_a_plain_run_with_too_few_updates_ends_with_the_reason() -> None:
    faults = {site: Fault(1, "updates") for site in ("kyoto", "lyon", "oslo")}
    federation = Federation(SITES, faults=faults)

    status = run(federation, spec(False))

    assert status.reason == "round 1: 2 of 5 sites sent an update, 3 are needed"


@pytest.mark.parametrize("masked", [True, False])
def test_a_site_whose_training_fails_declines_and_its_reason_stays_at_home(masked: bool) -> None:
    federation = Federation(SITES)
    federation.sites["lyon"].trainer.faulty = True

    status = run(federation, spec(masked, rounds=1))

    told = "declined (training_failed): training failed; this site's log says why"
    assert status.rounds[0].dropped == {"lyon": told}
    assert any("record 4711" in note for note in federation.sites["lyon"].notes)
    assert "4711" not in repr(federation.effects)


@pytest.mark.parametrize("masked", [True, False])
def test_a_site_whose_weight_is_over_the_cap_declines_before_anything_is_sent(
    masked: bool,
) -> None:
    federation = Federation(SITES)
    federation.sites["lyon"].trainer.weight = 65

    status = run(federation, spec(masked, rounds=1))

    told = "declined (update): the update does not fit the round; this site's log says why"
    assert status.rounds[0].dropped == {"lyon": told}
    assert status.rounds[0].total_weight == 40


def test_a_site_out_of_its_bounds_declines_every_round_and_the_run_goes_on() -> None:
    federation = Federation(SITES, bounds_of={"lyon": TaskBounds(max_epochs=2)})

    status = run(federation, spec(True, rounds=2, task=TaskSettings(epochs=3)))

    told = "declined (task_bounds): the task asks for epochs 3, this site accepts 1 to 2"
    assert [record.dropped for record in status.rounds] == [{"lyon": told}] * 2


def test_sites_that_take_part_in_masked_rounds_only_decline_a_plain_one() -> None:
    federation = Federation(SITES, bounds=TaskBounds())

    status = run(federation, spec(False))

    assert status.state == "aborted"
    assert set(status.rounds[0].dropped.values()) == {
        "declined (policy): this site takes part in masked rounds only"
    }
    assert status.rounds[0].bytes_in == {}


def test_a_round_waits_for_the_cohort_and_then_starts_with_those_who_are_there() -> None:
    federation = Federation(SITES, connect=False)
    for site in SITES[:-1]:
        federation.connect(site)

    status = run(federation, spec(True, rounds=2))

    assert [record.sites for record in status.rounds] == [SITES[:-1]] * 2
    first, second = (record.seconds["join"] for record in status.rounds)
    assert first == pytest.approx(DEADLINES.join_s, abs=1.0)
    assert second == 0.0  # not waited for twice in vain


def test_a_site_that_left_is_waited_for_in_the_next_round() -> None:
    federation = Federation(SITES, faults={"lyon": Fault(1, "keys")})

    status = run(federation, spec(True, rounds=3))

    assert [len(record.sites) for record in status.rounds] == [5 - 1, 4, 4]
    waited = [record.seconds["join"] for record in status.rounds]
    assert waited[1] == pytest.approx(DEADLINES.join_s, abs=1.0)
    assert (waited[0], waited[2]) == (0.0, 0.0)


def test_without_enough_sites_the_run_ends_at_the_join_deadline() -> None:
    federation = Federation(SITES, connect=False)
    federation.connect("lyon")

    status = run(federation, spec(True))

    assert (status.state, status.reason) == (
        "aborted",
        "round 1: 1 of 5 sites joined, 3 are needed",
    )
    assert status.rounds == ()


def test_a_cohort_too_small_for_its_colluders_ends_the_run_with_the_reason() -> None:
    federation = Federation(SITES, connect=False)
    for site in SITES[:3]:
        federation.connect(site)

    status = run(federation, spec(True, colluders=2))

    assert (status.state, status.rounds) == ("aborted", ())
    assert status.reason.startswith("round 1: a sum of 3 updates with 2 colluders would show")


@pytest.mark.parametrize("masked", [True, False])
def test_an_operator_stops_a_run_in_the_middle_of_a_round(masked: bool) -> None:
    federation = Federation(SITES)
    federation.submit("run", spec(masked), small_model())
    for _ in range(4):
        federation.step()

    federation.tell(RunAbortRequested("run", "the data was wrong"))
    federation.settle()

    status = federation.coordinator.status("run")
    assert (status.state, status.reason) == ("aborted", "round 1: the data was wrong")
    assert status.rounds[0].reason == "the data was wrong"
    assert all(site.core.phase == "idle" for site in federation.sites.values())
    closed = RoundClosed(RoundId("run", 1), False, "the data was wrong", "")
    assert SendToSite("lyon", closed) in federation.effects


def test_runs_wait_their_turn_in_the_order_they_came() -> None:
    federation = Federation(SITES)
    for name in ("one", "two", "three"):
        federation.submit(name, spec(False, rounds=1), small_model())

    states = [status.state for status in federation.coordinator.runs()]
    federation.run("three")

    assert states == ["running", "waiting", "waiting"]
    started = [e.round.run_id for e in federation.effects if isinstance(e, PublishModel)]
    assert started == ["one", "two", "three"]
    assert {status.state for status in federation.coordinator.runs()} == {"completed"}


def test_a_waiting_run_can_be_stopped_and_the_next_takes_its_turn() -> None:
    federation = Federation(SITES)
    for name in ("one", "two", "three"):
        federation.submit(name, spec(False, rounds=1), small_model())

    federation.tell(RunAbortRequested("two", "not needed"))
    federation.run("three")

    assert [status.state for status in federation.coordinator.runs()] == [
        "completed",
        "aborted",
        "completed",
    ]


def test_uploads_are_open_before_a_site_is_asked_for_its_update() -> None:
    for masked in (True, False):
        federation = Federation(SITES)
        run(federation, spec(masked, rounds=1))

        kinds = [type(effect) for effect in federation.effects]
        opened = kinds.index(OpenUploads)
        assert opened < kinds.index(CloseUploads)
        if masked:
            relays = [n for n, kind in enumerate(kinds[:opened]) if kind is SendToSite]
            assert len(relays) == 2 * len(SITES)  # round opened and key roster, no share relay
        assert kinds.index(PublishModel) < kinds.index(SendToSite)


def test_watchers_are_told_of_phases_sites_progress_rounds_and_the_end() -> None:
    federation = Federation(SITES)

    run(federation, spec(True, rounds=1))

    events = [effect.event for effect in federation.effects if isinstance(effect, Announce)]
    phases = [event.phase for event in events if event.kind == "phase"]
    assert phases == [*MASKED_PHASES, "acks"]
    assert [event.fraction for event in events if event.kind == "progress"] == [0.5] * 5
    delivered = [event for event in events if event.detail == "delivered"]
    assert [event.sites_in for event in delivered] == [1, 2, 3, 4, 5]
    assert all(event.bytes_in > 0 and event.sites_expected == 5 for event in delivered)
    last = events[-2:]
    assert [(event.kind, event.detail) for event in last] == [
        ("round", "completed"),
        ("run", "completed"),
    ]
    assert last[0].digest == federation.coordinator.status("run").rounds[0].digest


def test_the_order_in_which_sites_connect_does_not_change_a_plain_result() -> None:
    digests = set()
    for order in (SITES, SITES[::-1], (*SITES[2:], *SITES[:2])):
        federation = Federation(SITES, connect=False)
        for site in order:
            federation.connect(site)
        digests.add(run(federation, spec(False, rounds=1)).rounds[0].digest)

    assert len(digests) == 1


def test_a_plain_result_of_a_device_is_that_of_the_cpu() -> None:
    digests = {
        backend: [
            round_.digest for round_ in run(Federation(SITES, backend=backend), spec(False)).rounds
        ]
        for backend in ("cpu", "emu:1")
    }

    assert digests["emu:1"] == digests["cpu"]
    assert all(digests["cpu"])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("lost_at_call", [1, 12])
def test_a_device_that_is_lost_ends_the_run_with_the_reason(
    lost_at_call: int, masked: bool
) -> None:
    federation = Federation(SITES, backend="emu")
    _native.use_emulator(lost_at_call=lost_at_call)

    status = run(federation, spec(masked))

    assert status.state == "aborted"
    assert "on emu:0" in status.reason
    assert status.reason.endswith("failed: the device is lost")


def test_a_masked_update_that_a_lost_device_cannot_add_is_refused() -> None:
    federation = Federation(SITES, backend="emu")
    _native.use_emulator(lost_at_call=1)

    run(federation, spec(masked=True))

    answers = [effect for effect in federation.effects if isinstance(effect, AnswerUpload)]
    assert answers
    assert not any(answer.accepted for answer in answers)
    assert answers[0].reason.endswith("failed: the device is lost")


def test_masked_updates_that_sites_encode_on_devices_are_those_of_the_cpu() -> None:
    digests = {
        backend: [
            round_.digest
            for round_ in run(Federation(SITES, site_backend=backend), spec(True)).rounds
        ]
        for backend in ("cpu", "emu:1")
    }

    assert digests["emu:1"] == digests["cpu"]
    assert all(digests["cpu"])


def test_a_site_whose_device_is_lost_declines_the_round_and_keeps_its_update() -> None:
    federation = Federation(SITES, site_backend="emu")
    _native.use_emulator(lost_at_call=1)

    status = run(federation, spec(masked=True))

    assert status.state == "aborted"
    assert "the site's device failed" in str(status)
    assert not federation.uploads


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (RunAbortRequested("two", "why"), "there is no run 'two'"),
        (
            RunSubmitted("one", spec(False), ModelLayout.from_arrays(small_model()), small_model()),
            "there is a run 'one' already",
        ),
        (
            RunSubmitted(
                "two",
                replace(spec(False), cohort=("paris",), min_sites=1),
                ModelLayout.from_arrays(small_model()),
                small_model(),
            ),
            "not in the roster",
        ),
        (
            RunSubmitted("two", spec(False), ModelLayout.from_arrays(small_model()), {}),
            "the initial model lacks tensors",
        ),
    ],
)
def test_a_request_that_cannot_be_met_is_refused_and_changes_nothing(
    event: RunSubmitted | RunAbortRequested, message: str
) -> None:
    federation = Federation(SITES)
    federation.submit("one", spec(False), small_model())
    before = federation.coordinator.runs()

    with pytest.raises(ConfigError, match=message):
        federation.coordinator.handle(event, now=1.0)

    assert federation.coordinator.runs() == before


def server_optimizers() -> int:
    """How many there are in this process; not isinstance, which asks objects of other modules."""
    return sum(issubclass(type(one), ServerOptimizer) for one in gc.get_objects())


def test_what_ended_runs_held_is_let_go() -> None:
    gc.collect()
    before = server_optimizers()
    federation = Federation(("basel", "kyoto", "lyon"))
    spec = RunSpec("task", masked=False)
    spec = replace(spec, server_optimizer=OptimizerSpec("fedadam"))
    for number in range(20):
        federation.submit(f"run-{number}", spec, small_model())
        federation.run(f"run-{number}")

    gc.collect()

    assert server_optimizers() == before
    assert [run.run_id for run in federation.coordinator.runs()] == [
        f"run-{number}" for number in range(4, 20)
    ]
    with pytest.raises(ConfigError, match="no run 'run-3'"):
        federation.coordinator.status("run-3")
