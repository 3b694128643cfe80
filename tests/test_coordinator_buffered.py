"""Buffered runs: what counts for how much, who is invited when, and when the model makes a step."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from reference import fedbuff
from support import plain_run
from support.federation import (
    Federation,
    ShiftTrainer,
    counting_bytes,
    signing_key,
    small_model,
)
from support.plain_run import PlainRun, sent
from veilsum.control import (
    BufferedUpdate,
    Deadlines,
    Decline,
    Progress,
    ProtocolMessage,
    RoundClosed,
    RoundId,
    RoundOpened,
    RoundRecord,
    RunClosed,
    RunSpec,
    RunStatus,
    SiteDropped,
    TaskSettings,
)
from veilsum.coordinator.core import Coordinator
from veilsum.coordinator.effects import (
    Announce,
    AnswerUpload,
    CloseUploads,
    DropUploads,
    Effect,
    GoOn,
    OpenUploads,
    PublishModel,
    SaveRound,
    SaveStanding,
    SendToSite,
    SetDeadline,
)
from veilsum.coordinator.events import (
    DeadlinePassed,
    Event,
    RoundSpoiled,
    RunAbortRequested,
    RunSubmitted,
    SiteJoined,
    SiteLeft,
    SiteSent,
)
from veilsum.coordinator.policy import task_of_round
from veilsum.coordinator.standing import RestoredRun, Standing
from veilsum.errors import PeerError
from veilsum.model import ModelLayout, result_digest
from veilsum.site.trainer import Arrays

SITES = ("basel", "kyoto", "lyon", "oslo", "quito")
PACES = {"basel": 10.0, "kyoto": 11.0, "lyon": 12.0, "oslo": 35.0, "quito": 100.0}
LAYOUT = ModelLayout.from_arrays(small_model())
BUFFERED = replace(plain_run.SPEC, rounds=3, buffer_size=3, min_sites=2)
FLOATS = [("conv.weight", "f32"), ("conv.bias", "f16"), ("gain", "f32")]


def spec(rounds: int = 8, buffer_size: int = 3, **settings: Any) -> RunSpec:
    chosen: dict[str, Any] = {"min_sites": 2, "weight_cap": 1000, "metrics": ("auc", "train_loss")}
    return RunSpec(
        "task",
        rounds=rounds,
        masked=False,
        buffer_size=buffer_size,
        deadlines=Deadlines(inputs_s=600.0),
        **chosen | settings,
    )


def federation(
    paces: Mapping[str, float] = PACES, weights: Mapping[str, int] | None = None, **settings: Any
) -> Federation:
    made = Federation(SITES, pace_of=paces, **settings)
    for number, site in enumerate(SITES):
        made.sites[site].trainer.weight = (weights or {}).get(site, 7 + 100 * number)
    return made


def run(made: Federation, settings: RunSpec) -> RunStatus:
    made.submit("run", settings, small_model())
    return made.run("run")


def expected_digest(made: Federation, record: RoundRecord, settings: RunSpec) -> str:
    """Of a round's mean, from its sites, versions and stalenesses by the reference alone."""
    models = [small_model(), *made.saved_models("run")]
    updates = [
        fedbuff.Update(
            made.sites[update.site].trainer.weight,
            record.round.number - 1 - update.version,
            *_difference(update, models[update.version], settings),
        )
        for update in record.updates
    ]
    dtypes = [dtype for name, dtype in FLOATS for _ in range(small_model()[name].size)]
    floats, integers = fedbuff.buffer_mean(updates, dtypes, settings.weight_cap)
    begin, mean = 0, {}
    for name, dtype in FLOATS:
        size = small_model()[name].size
        kind = np.float16 if dtype == "f16" else np.float32
        mean[name] = np.array(floats[begin : begin + size], np.float64).astype(kind)
        begin += size
    mean["seen"] = np.array(integers, np.int64)
    mean["empty"] = np.zeros(0, np.float32)
    data = b"".join(mean[name].tobytes() for name in LAYOUT.names)
    return hashlib.sha256(LAYOUT.digest + data).hexdigest()


def _difference(
    update: BufferedUpdate, model: Mapping[str, NDArray[Any]], settings: RunSpec
) -> tuple[list[float], list[int]]:
    task = task_of_round(settings.task, update.version + 1)
    trained = ShiftTrainer(update.site).shifted(model, task)
    floats: list[float] = []
    for name, _ in FLOATS:
        wide = trained[name].astype(np.float64) - model[name].astype(np.float64)
        floats += [float(value) for value in wide.astype(model[name].dtype).reshape(-1)]
    return floats, [int(trained["seen"] - model["seen"])]


def told(made: Federation, site: str, kind: type[Any]) -> list[Any]:
    """What a site was told of this kind, in order."""
    return [
        effect.message
        for effect in made.effects
        if isinstance(effect, SendToSite)
        and effect.site == site
        and isinstance(effect.message, kind)
    ]


def invited(made: Federation, site: str) -> list[int]:
    return [message.round.number for message in told(made, site, RoundOpened)]


def open_uploads(effects: Iterable[Effect]) -> set[tuple[int, str]]:
    """Rounds and sites whose uploads are open after these effects. Whatever was accepted came in
    time."""
    opened: set[tuple[int, str]] = set()
    served: set[int] = set()
    for effect in effects:
        match effect:
            case PublishModel(round_id, since=int(since)):
                served = {number for number in served if number >= since} | {round_id.number}
            case SendToSite(_, RoundOpened(round_id)):
                assert round_id.number in served
            case OpenUploads(round_id, sites):
                opened |= {(round_id.number, site) for site in sites}
            case CloseUploads(round_id):
                opened = {one for one in opened if one[0] != round_id.number}
            case AnswerUpload(round_id, site, True):
                assert (round_id.number, site) in opened
    return opened


# --- what counts for how much ---------------------------------------------------------


def test_each_steps_digest_is_the_references_whoever_was_slow() -> None:
    made, settings = federation(), spec(rounds=12)

    status = run(made, settings)

    assert (status.state, status.reason, status.phase) == ("completed", "", "")
    assert [record.round for record in status.rounds] == [RoundId("run", n) for n in range(1, 13)]
    for record in status.rounds:
        assert len(record.updates) == 3
        assert record.digest == expected_digest(made, record, settings)
        assert record.total_weight == sum(update.counted for update in record.updates)
        assert record.metrics == pytest.approx({"auc": 0.75, "train_loss": 0.5})
        assert set(record.bytes_in) == set(record.sites)
    stale = {update.site: update.staleness for record in status.rounds for update in record.updates}
    assert stale["quito"] > stale["oslo"] > stale["basel"]


def test_metrics_are_averaged_with_the_weights_that_updates_counted_for() -> None:
    made = federation()
    losses = {site: 1.0 + number for number, site in enumerate(SITES)}
    for site in SITES:
        made.sites[site].trainer.metrics = {"train_loss": losses[site]}

    records = run(made, spec(rounds=12)).rounds

    for record in records:
        total = sum(one.counted * losses[one.site] for one in record.updates)
        assert record.metrics["train_loss"] == pytest.approx(total / record.total_weight)


def test_every_model_is_the_one_before_moved_by_the_mean() -> None:
    made, settings = federation(), spec(rounds=4, server_learning_rate=0.5)

    records = run(made, settings).rounds

    models = [small_model(), *made.saved_models("run")]
    for record, before, after in zip(records, models, models[1:], strict=False):
        assert record.model_hash == result_digest(LAYOUT, after)
        assert any((before[name] != after[name]).any() for name in before)


@pytest.mark.parametrize("buffer_size", [3, 4, 5])
def test_updates_that_are_all_fresh_make_the_steps_of_a_run_with_rounds(buffer_size: int) -> None:
    sites = SITES[:buffer_size]
    settings = spec(rounds=3, buffer_size=buffer_size, cohort=sites)
    together = replace(settings, buffer_size=0)

    records = run(federation({}), settings).rounds
    expected = run(federation({}), together).rounds

    scale = 2**settings.buffering.fraction_bits
    for record, other in zip(records, expected, strict=True):
        assert (record.digest, record.model_hash) == (other.digest, other.model_hash)
        assert (record.sites, record.metrics) == (other.sites, other.metrics)
        assert record.total_weight == scale * other.total_weight


def test_a_step_is_the_same_in_any_order_of_the_same_updates() -> None:
    """The second step takes one update of its own version and two that are one step old."""
    records = set()
    for order in itertools.permutations([("basel", 2), ("kyoto", 1), ("lyon", 1)]):
        made = PlainRun(BUFFERED)
        for site in ("basel", "oslo", "quito"):
            made.deliver(site, value=0.1 + len(site), weight=3)
        for number, (site, round_number) in enumerate(order):
            weight = {"basel": 7, "kyoto": 64, "lyon": 11}[site]
            made.deliver(site, round_number, value=0.3 * weight, weight=weight)
            assert len(made.records) == (2 if number == 2 else 1)
        second = made.records[1]
        assert [(one.site, one.version, one.staleness) for one in second.updates] == [
            ("basel", 1, 0),
            ("kyoto", 0, 1),
            ("lyon", 0, 1),
        ]
        records.add((second.digest, second.model_hash, second.updates))
    ((digest, _, updates),) = records
    floats, _ = fedbuff.buffer_mean(
        [
            fedbuff.Update(one.weight, one.staleness, [float(np.float32(0.3 * one.weight))], [1])
            for one in updates
        ],
        ["f32"],
        BUFFERED.weight_cap,
    )
    mean = {"weight": np.full(4, floats[0], np.float32)}
    assert digest == result_digest(ModelLayout.from_arrays(mean), mean)


def test_a_site_may_be_in_a_step_twice_and_the_record_says_so() -> None:
    made = PlainRun(BUFFERED)
    for site in ("kyoto", "oslo", "quito"):
        made.deliver(site)

    made.deliver("basel", weight=50)  # of the initial model
    made.deliver("basel", number=2, weight=50)  # to which it was invited at once
    made.deliver("lyon")

    record = made.records[1]
    counted = [fedbuff.counted(50, 1, 100), fedbuff.counted(50, 0, 100)]
    assert record.updates[:2] == (
        BufferedUpdate("basel", 0, 1, 50, counted[0]),
        BufferedUpdate("basel", 1, 0, 50, counted[1]),
    )
    assert record.sites == ("basel", "lyon")
    assert record.total_weight == sum(counted) + fedbuff.counted(10, 1, 100)
    assert record.bytes_in["basel"] == 2 * record.bytes_in["lyon"]


@dataclass
class Logistic(ShiftTrainer):
    """Logistic regression by gradient steps on data of its own, most of it of one class."""

    def data(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Points with a column of ones, shape (60, 3), and their classes, 0 or 1."""
        number = SITES.index(self.site)
        values = np.random.default_rng(number)
        labels = (values.uniform(size=60) < (0.15 if number % 2 else 0.85)).astype(np.float64)
        centres = np.where(labels[:, None] > 0, 1.0, -1.0)
        points = centres + values.normal(size=(60, 2)) * 0.7
        return np.column_stack([points, np.ones(60)]), labels

    def shifted(self, model: Arrays, task: TaskSettings) -> dict[str, NDArray[Any]]:
        points, labels = self.data()
        weights = model["w"].astype(np.float64)
        for _ in range(task.epochs):
            error = 1 / (1 + np.exp(-points @ weights)) - labels
            weights = weights - task.learning_rate * points.T @ error / len(labels)
        return {"w": weights.astype(np.float32)}


def test_sites_at_paces_of_their_own_learn_what_no_one_of_them_knows() -> None:
    made = Federation(SITES, pace_of=PACES)
    for site in SITES:
        made.sites[site].trainer = Logistic(site, weight=60)
    task = TaskSettings(epochs=5, learning_rate=0.5)
    made.submit("run", replace(spec(rounds=30), task=task), {"w": np.zeros(3, np.float32)})

    assert made.run("run").state == "completed"

    pooled = [Logistic(site).data() for site in SITES]
    points = np.concatenate([one[0] for one in pooled])
    labels = np.concatenate([one[1] for one in pooled])

    def loss(weights: NDArray[Any]) -> float:
        margins = (2 * labels - 1) * (points @ weights.astype(np.float64))
        return float(np.mean(np.log1p(np.exp(-margins))))

    weights = [model["w"] for model in made.saved_models("run")]
    alone = Logistic("basel").shifted({"w": np.zeros(3)}, replace(task, epochs=150))["w"]
    assert loss(weights[-1]) < 0.085 < loss(weights[0])
    assert loss(weights[-1]) < loss(alone)
    assert np.mean((points @ weights[-1] > 0) == (labels > 0)) > 0.95


# --- who is invited when ----------------------------------------------------------------


def test_a_site_that_has_delivered_is_invited_to_the_model_as_it_is_by_then() -> None:
    made = federation()

    run(made, spec(rounds=12))

    assert invited(made, "basel") == list(range(1, 13))
    slow = invited(made, "quito")
    assert slow[0] == 1
    assert slow[1] > 5
    for site in SITES:
        numbers = invited(made, site)
        assert numbers == sorted(set(numbers))  # never twice to one


def test_a_site_waits_for_the_next_model_if_it_has_had_this_one() -> None:
    made = PlainRun(BUFFERED)

    made.deliver("basel")
    assert made.invited(2) == ()
    made.deliver("kyoto")
    effects = made.deliver("lyon")

    assert [site for site, _ in sent(effects, RoundOpened)] == ["basel", "kyoto", "lyon"]
    closed = [(site, message.round.number) for site, message in sent(effects, RoundClosed)]
    assert closed == [("basel", 1), ("kyoto", 1), ("lyon", 1)]
    assert made.core.status("run").sites_waiting == SITES


def test_a_site_hears_of_the_end_of_the_round_that_it_is_in_and_of_no_other() -> None:
    """A site keeps to its latest invitation; what closes another would only confuse it."""
    made = PlainRun(BUFFERED)
    for site in ("kyoto", "lyon", "quito"):
        made.deliver(site)
    made.deliver("basel")  # of the initial model; it trains the next by now
    made.deliver("kyoto", number=2)

    effects = made.deliver("lyon", number=2)

    closed = [(site, message.round.number) for site, message in sent(effects, RoundClosed)]
    assert closed == [("kyoto", 2), ("lyon", 2)]


def test_versions_are_served_and_uploads_are_open_as_long_as_a_site_trains_them() -> None:
    made = federation()

    run(made, spec(rounds=12))

    served = [effect for effect in made.effects if isinstance(effect, PublishModel)]
    oldest = [effect.since for effect in served]
    assert oldest == sorted(oldest)
    assert oldest[5] == 1  # quito still trains the initial model
    assert oldest[-1] > 1
    assert open_uploads(made.effects) == set()


def test_a_site_that_is_left_too_far_behind_is_stopped_and_begins_again() -> None:
    made = federation()

    records = run(made, spec(rounds=12, max_staleness=2)).rounds

    (stopped,) = {message.round.number for message in told(made, "quito", SiteDropped)[:1]}
    reason = "trained a model of staleness 3, max_staleness is 2"
    assert told(made, "quito", SiteDropped)[0].reason == reason
    assert stopped == 1
    assert records[3].dropped["quito"] == reason
    assert invited(made, "quito")[:2] == [1, 4]
    assert max(update.staleness for record in records for update in record.updates) <= 2


def test_an_update_that_is_too_stale_is_refused_with_the_reason() -> None:
    made = PlainRun(replace(BUFFERED, max_staleness=1, rounds=9))
    late = made.update("quito")
    for number in (1, 2):
        for site in ("basel", "kyoto", "lyon"):
            made.deliver(site, number)

    reason = "site 'quito' trained a model of staleness 2, max_staleness is 1"
    with pytest.raises(PeerError, match=reason):
        made.core.upload_check("quito", late.header)
    (answer,) = made.tell(late)
    assert answer == AnswerUpload(RoundId("run", 1), "quito", False, reason)
    assert made.invited(3)[-1] == "quito"


def test_what_is_not_awaited_or_not_right_is_refused_and_changes_nothing() -> None:
    made = PlainRun(BUFFERED)
    made.deliver("basel")
    before = made.core.status("run")
    again, heavy = made.update("basel"), made.update("kyoto", weight=101)
    other = made.update("lyon")
    other = replace(other, header=replace(other.header, update_id=5))
    future = made.update("lyon")
    future = replace(future, header=replace(future.header, round=RoundId("run", 2)))
    attempt = replace(future, header=replace(future.header, round=RoundId("run", 1, 1)))
    foreign = replace(made.update("lyon"), chunks=made.update("oslo").chunks)

    for update, reason in (
        (again, "for which none of it is awaited"),
        (heavy, "sent weight 101, expected 1 to 100"),
        (other, "sent an update id of another round or site"),
        (future, "for which none of it is awaited"),
        (attempt, "for which none of it is awaited"),
        (foreign, "update"),
    ):
        (answer,) = made.tell(update)
        assert isinstance(answer, AnswerUpload)
        assert not answer.accepted
        assert reason in answer.reason
    assert made.core.status("run") == before
    made.deliver("lyon")


@pytest.mark.parametrize("lost", [True, False])
def test_a_site_that_is_lost_may_train_a_model_again_and_one_that_declined_may_not(
    lost: bool,
) -> None:
    made = PlainRun(BUFFERED)
    if lost:
        made.tell(SiteLeft("basel", "the stream ended"))
        reason = "lost its connection: the stream ended"
    else:
        declined = Decline(RoundId("run", 1), "task_bounds", "too many epochs")
        made.tell(SiteSent("basel", declined))
        made.tell(SiteLeft("basel", "the stream ended"))
        reason = "declined (task_bounds): too many epochs"
    made.tell(SiteJoined("basel"))
    assert made.invited(1).count("basel") == (2 if lost else 1)

    for site in ("kyoto", "lyon", "oslo"):
        made.deliver(site)

    assert made.records[0].dropped == {"basel": reason}
    assert ("basel" in made.invited(2)) is not lost


def test_a_site_that_begins_anew_trains_the_model_as_it_is() -> None:
    made = PlainRun(BUFFERED)
    for site in SITES[:3]:
        made.deliver(site)
    old = made.update("quito")

    effects = made.tell(SiteJoined("quito"))  # the connection before still seems open
    again = made.tell(SiteJoined("quito"))

    for told_it in (effects, again):
        assert OpenUploads(RoundId("run", 2), ("quito",)) in told_it
        assert [message.round.number for _, message in sent(told_it, RoundOpened)] == [2]
    (answer,) = made.tell(old)
    assert isinstance(answer, AnswerUpload)
    assert not answer.accepted
    made.deliver("quito", number=2)
    assert made.core.status("run").sites_waiting == SITES[:4]


def test_a_site_that_joins_later_trains_the_model_as_it_is() -> None:
    made = PlainRun(BUFFERED, present=SITES[:3])
    for site in SITES[:3]:
        made.deliver(site)

    made.tell(SiteJoined("oslo"))

    assert made.invited(1) == SITES[:3]
    assert made.invited(2) == (*SITES[:3], "oslo")


def test_a_protocol_message_costs_its_site_the_version_and_progress_is_announced() -> None:
    made = PlainRun(BUFFERED)
    (progress,) = made.tell(SiteSent("lyon", Progress(RoundId("run", 1), 0.25)))
    assert isinstance(progress, Announce)
    assert (progress.event.kind, progress.event.fraction) == ("progress", 0.25)
    assert made.tell(SiteSent("lyon", Progress(RoundId("run", 1), 1.5))) == []
    assert made.tell(SiteSent("lyon", Progress(RoundId("run", 7), 0.5))) == []

    effects = made.tell(SiteSent("lyon", ProtocolMessage(RoundId("run", 1), b"x")))

    (dropped,) = sent(effects, SiteDropped)
    assert dropped[1].reason == "sent a protocol message in a plain round"
    assert "lyon" not in made.core.status("run").sites_waiting


# --- when the model makes a step ----------------------------------------------------------


def test_a_buffer_that_lacks_sites_waits_for_another() -> None:
    """Three updates, but of two sites, where three are needed at least."""
    made = PlainRun(replace(BUFFERED, min_sites=3))
    for site in ("kyoto", "oslo", "quito"):
        made.deliver(site)
    made.deliver("basel")
    made.deliver("basel", number=2)
    made.deliver("lyon")
    assert len(made.records) == 1

    made.deliver("oslo", number=2)

    assert [len(record.updates) for record in made.records] == [3, 4]


def test_a_buffer_that_weighs_too_little_waits_for_more_until_its_deadline() -> None:
    made = PlainRun(replace(BUFFERED, min_weight=95))
    for site in ("kyoto", "oslo", "quito"):
        made.deliver(site, weight=30)
    assert made.records == ()
    made.deliver("basel", weight=5)
    assert [update.weight for update in made.records[0].updates] == [5, 30, 30, 30]

    made.deliver("lyon", weight=90)
    made.deliver("basel", number=2, weight=4)
    made.tell(DeadlinePassed(RoundId("run", 2), "updates"))
    reason = "round 2: 2 updates weigh 94 together, min_weight is 95"
    assert made.core.status("run").reason == reason


def test_at_its_deadline_a_step_is_made_of_what_is_there_if_it_is_enough() -> None:
    made = PlainRun(BUFFERED)
    made.deliver("basel")
    made.deliver("lyon")

    made.tell(DeadlinePassed(RoundId("run", 1), "updates"))
    (record,) = made.records
    assert (record.completed, record.sites) == (True, ("basel", "lyon"))
    assert made.tell(DeadlinePassed(RoundId("run", 1), "updates")) == []  # stale

    made.deliver("kyoto")
    made.tell(DeadlinePassed(RoundId("run", 2), "updates"))
    status = made.core.status("run")
    assert (status.state, status.reason) == (
        "aborted",
        "round 2: 1 of 5 sites sent an update, 2 are needed",
    )
    assert [one.completed for one in status.rounds] == [True, False]


def test_a_step_is_made_of_what_is_there_if_nobody_is_left_to_send_more() -> None:
    made = PlainRun(BUFFERED, present=SITES[:3])
    made.deliver("basel")
    made.deliver("kyoto")
    assert made.records == ()

    made.tell(SiteLeft("lyon", "the stream ended"))

    assert made.records[0].sites == ("basel", "kyoto")
    made.deliver("basel", number=2)
    made.tell(SiteLeft("kyoto", "the stream ended"))
    assert len(made.records) == 1  # one site is not enough: it waits for others to join
    made.tell(SiteJoined("kyoto"))
    made.deliver("kyoto", number=2)
    assert len(made.records) == 2


def test_a_run_ends_with_its_last_step_for_those_who_still_train_too() -> None:
    made = PlainRun(replace(BUFFERED, rounds=1))
    for site in SITES[:2]:
        made.deliver(site)
    effects = made.deliver("lyon")

    assert made.core.status("run").state == "completed"
    assert [site for site, _ in sent(effects, RunClosed)] == list(SITES)
    assert CloseUploads(RoundId("run", 1), "the run is completed") in effects
    (answer,) = made.tell(made.update("oslo"))
    assert isinstance(answer, AnswerUpload)
    assert "which takes none now" in answer.reason


def test_an_aborted_run_keeps_the_record_of_the_step_that_it_did_not_make() -> None:
    made = PlainRun(BUFFERED)
    made.deliver("basel")

    made.tell(RunAbortRequested("run", "stopped by ann"))

    status = made.core.status("run")
    (record,) = status.rounds
    assert (status.state, status.reason) == ("aborted", "round 1: stopped by ann")
    assert (record.completed, record.sites, record.updates) == (False, (), ())
    assert set(record.bytes_in) == {"basel"}


def test_files_of_updates_are_freed_step_by_step() -> None:
    made = PlainRun(BUFFERED)
    for site in ("basel", "kyoto"):
        made.deliver(site)
    effects = made.deliver("lyon")

    dropped = [effect for effect in effects if isinstance(effect, DropUploads)]
    assert dropped == [DropUploads(RoundId("run", 1), (site,)) for site in SITES[:3]]
    kinds = [type(effect) for effect in effects]
    assert kinds.index(SaveRound) < kinds.index(DropUploads)


# --- after a restart --------------------------------------------------------------------


@dataclass(frozen=True)
class LeftBehind:
    """What a coordinator that dies after an event leaves, and what it was at."""

    standing: Standing | None
    log: tuple[tuple[Event, float], ...]
    status: RunStatus


class Recording(Federation):
    """Keeps what a runner keeps: events that change anything, since the run's last standing."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        self.history: list[tuple[Event, float]] = []
        self.left_behind: list[LeftBehind] = []
        self._log: list[tuple[Event, float]] = []
        self._standing: Standing | None = None
        super().__init__(*args, **settings)

    def tell(self, event: Event) -> list[Effect]:
        written = self.coordinator.written(event)
        before = self.coordinator
        effects = before.handle(event, now=self.clock + 0.25)
        self.clock += 0.25
        if written is not None:
            self._log.append((written, self.clock))
        for effect in effects:
            if isinstance(effect, SaveStanding):
                self._standing = effect.standing
                joined = (SiteJoined(*one) for one in before.present.items())
                self._log = [(one, self.clock) for one in joined]
        if self._standing is not None:
            status = before.status("run")
            self.history.append((event, self.clock))
            self.left_behind.append(LeftBehind(self._standing, tuple(self._log), status))
        for effect in effects:
            self.effects.append(effect)
            self._carry_out(effect)
        return effects

    def restored(self, left: LeftBehind) -> tuple[Coordinator, list[Effect]]:
        """Another process of the coordinator: the run as it was, and what it opened again."""
        assert left.standing is not None
        models = [small_model(), *self.saved_models("run")]
        core = Coordinator(
            self.roster,
            signing_key("coordinator"),
            entropy=counting_bytes(),
            kept=lambda run_id, number, layout: models[number],
        )
        number = left.standing.round.number
        submitted = RunSubmitted("run", left.status.spec, LAYOUT, models[number - 1])
        records = tuple(one for one in left.status.rounds if one.round.number < number)
        effects = core.restore(RestoredRun(submitted, records, left.standing))
        for event, now in left.log:
            effects += core.handle(event, now=now)
        return core, effects


def test_a_coordinator_that_dies_after_any_event_goes_on_as_if_it_had_not() -> None:
    made = Recording(SITES, pace_of=PACES)
    made.submit("run", spec(rounds=7, max_staleness=3), small_model())
    for number, act in ((2, made.disconnect), (4, made.connect)):
        while made.coordinator.status("run").current_round < number:
            made.step()
        act("lyon")
    end = made.run("run")
    assert end.state == "completed"
    assert any(update.staleness > 1 for record in end.rounds for update in record.updates)
    assert any(record.dropped for record in end.rounds)

    for index, left in enumerate(made.left_behind[:-1]):
        core, effects = made.restored(left)
        assert core.status("run") == left.status
        begun = any(isinstance(effect, SetDeadline) for effect in effects)
        assert core.resume() == ([] if begun else [GoOn("run")])
        for event, now in made.history[index + 1 :]:
            effects += core.handle(event, now=now)
        assert core.status("run") == end
        assert open_uploads(effects) == set()


def test_sites_in_flight_at_a_restart_are_in_their_rounds_again() -> None:
    made = Recording(SITES, pace_of=PACES)
    made.submit("run", spec(rounds=7), small_model())
    made.run("run")
    left = next(
        left for left in made.left_behind if left.standing and left.standing.round.number == 5
    )

    _, effects = made.restored(replace(left, log=()))

    served = [effect for effect in effects if isinstance(effect, PublishModel)]
    assert [effect.round.number for effect in served] == [1, 3, 4]
    assert {effect.since for effect in served} == {1}
    for effect, version in zip(served, (0, 2, 3), strict=True):
        models = [small_model(), *made.saved_models("run")]
        assert effect.model_hash.hex() == result_digest(LAYOUT, models[version])
    asked = {site: message.round.number for site, message in sent(effects, RoundOpened)}
    assert asked == {"quito": 1, "oslo": 3, "lyon": 4}
    closed = {site: message.round.number for site, message in sent(effects, RoundClosed)}
    assert closed == {"basel": 4, "kyoto": 4}  # they wait for the next, and may not have heard
    assert open_uploads(effects) == {(number, site) for site, number in asked.items()}


def test_what_changes_nothing_is_not_written_down() -> None:
    made = PlainRun(BUFFERED)
    round_id, old = RoundId("run", 1), made.update("basel")

    def keeps(event: Event) -> bool:
        return made.core.written(event) is not None

    assert keeps(old)
    made.tell(old)

    assert not keeps(old)  # it would be refused, and its file may be gone by then
    assert not keeps(SiteSent("lyon", Progress(round_id, 0.5)))
    assert not keeps(SiteSent("basel", Decline(round_id, "policy", "")))
    assert keeps(SiteSent("lyon", Decline(round_id, "policy", "")))
    assert not keeps(DeadlinePassed(RoundId("run", 2), "updates"))
    assert keeps(DeadlinePassed(round_id, "updates"))
    assert keeps(SiteLeft("lyon", ""))
    assert not keeps(RunAbortRequested("run", ""))


def test_a_run_whose_kept_update_is_gone_ends_with_the_reason() -> None:
    made = PlainRun(BUFFERED)
    made.deliver("basel")

    made.tell(RoundSpoiled("run", "the file of basel's update is torn"))

    status = made.core.status("run")
    assert (status.state, status.reason) == (
        "aborted",
        "round 1: the file of basel's update is torn",
    )
