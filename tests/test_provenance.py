"""Sites that make the server's step themselves, in whole runs: what they fetch, keep and sign."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from support.federation import Fault, Federation, ShiftTrainer, small_model
from veilsum.control import OptimizerSpec, RoundClosed, RoundId, RunClosed, RunSpec
from veilsum.coordinator.effects import SaveLink
from veilsum.secagg import LocalPolicy, Plan
from veilsum.secagg.origin import read_links
from veilsum.secagg.payload import open_envelope
from veilsum.secagg.result_messages import MODEL_RECOMPUTED, SIGNATURE_ONLY, ResultAck
from veilsum.secagg.transcript import signers_of
from veilsum.site.effects import FetchLinks, FetchModel, FetchSum, SiteEffect
from veilsum.site.events import CoordinatorSent, LinksFetched

SITES = ("basel", "kyoto", "lyon", "oslo", "quito")
LATE = "quito"
OPTIMIZERS = ["fedavg", "fedavgm", "fedadagrad", "fedadam", "fedyogi"]


def _spec(rounds: int, optimizer: str = "fedavg", **settings: Any) -> RunSpec:
    chosen = {"clip": 0.5, "weight_cap": 64, "colluders": 1, "max_attempts": 1}
    server = OptimizerSpec(optimizer)
    return RunSpec("task", rounds=rounds, server_optimizer=server, **chosen | settings)


class Watched(Federation):
    """Counts what sites ask for, by site and round."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.asked: Counter[tuple[str, str, int]] = Counter()
        self.states_asked: set[str] = set()
        super().__init__(*args, **kwargs)

    def _carry_out_for(self, site: str, effect: SiteEffect) -> None:
        match effect:
            case FetchModel(round_id) | FetchLinks(round_id):
                self.asked[type(effect).__name__, site, round_id.number] += 1
            case FetchSum(round_id, _, state):
                self.asked["FetchSum", site, round_id.number] += 1
                self.states_asked |= {site} if state else set()
        super()._carry_out_for(site, effect)

    def rounds_of(self, what: str, site: str) -> list[int]:
        return [number for kind, one, number in self.asked if (kind, one) == (what, site)]

    def levels(self) -> list[dict[str, int]]:
        """How much each site checked of each round's result, by what it signed."""
        found = []
        for effect in self.effects:
            if isinstance(effect, SaveLink):
                (link,) = read_links([effect.link])
                plan = Plan.from_bytes(link.manifest, roster=self.roster)
                acks = zip(signers_of(plan, link.acks), link.acks, strict=True)
                found.append(
                    {
                        site: open_envelope(
                            ResultAck,
                            ack,
                            self.roster.signing_key(site),
                            sender=site,
                            context=plan.context,
                        ).checked
                        for site, ack in acks
                    }
                )
        return found

    def notes(self, site: str) -> str:
        return "\n".join(self.sites[site].notes)


def _run(federation: Federation, spec: RunSpec, run_id: str = "run") -> None:
    federation.submit(run_id, spec, small_model())
    status = federation.run(run_id)
    assert status.state == "completed", status.reason


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_site_makes_every_step_and_keeps_the_model(optimizer: str) -> None:
    federation = Watched(SITES)

    _run(federation, _spec(3, optimizer))

    assert federation.levels() == [dict.fromkeys(SITES, MODEL_RECOMPUTED)] * 3
    for site in SITES:
        assert federation.rounds_of("FetchModel", site) == [1]
        assert federation.rounds_of("FetchSum", site) == [1, 2, 3]
        assert federation.rounds_of("FetchLinks", site) == []
    assert federation.states_asked == set()


def test_a_sum_that_a_device_made_is_stepped_by_sites_to_the_same_bits() -> None:
    federation = Watched(SITES, backend="emu", site_backend="emu")

    _run(federation, _spec(2, "fedyogi", hadamard=1024, metrics=("auc",)))

    assert federation.levels() == [dict.fromkeys(SITES, MODEL_RECOMPUTED)] * 2


def test_what_sites_keep_is_the_coordinators_model_to_the_last_bit() -> None:
    seen: list[dict[str, np.ndarray]] = []

    class Noting(ShiftTrainer):
        def fit(self, model: Any, task: Any, report: Any) -> Any:
            seen.append({name: np.array(array) for name, array in model.items()})
            return super().fit(model, task, report)

    federation = Watched(SITES)
    federation.sites["lyon"].trainer = Noting("lyon")

    _run(federation, _spec(3, "fedadam"))

    for model, own in zip([small_model(), *federation.saved_models("run")], seen, strict=False):
        for name, array in model.items():
            np.testing.assert_array_equal(own[name], array)
    assert len(seen) == 3


@pytest.mark.parametrize("optimizer", ["fedavg", "fedadam"])
def test_a_site_that_was_restarted_fetches_model_and_state_and_goes_on(optimizer: str) -> None:
    """Its process ended after its update was in; the next one has only the ledger."""
    faults = {LATE: Fault(1, "acks", back_in=2)}
    federation = Watched(SITES, faults=faults)

    _run(federation, _spec(3, optimizer))

    assert federation.rounds_of("FetchModel", LATE) == [1, 2]
    assert federation.states_asked == ({LATE} if optimizer == "fedadam" else set())
    levels = federation.levels()
    assert [LATE in level for level in levels] == [False, True, True]
    assert levels[2] == dict.fromkeys(SITES, MODEL_RECOMPUTED)


@pytest.mark.parametrize("phase", ["keys", "inputs", "votes"])
def test_a_site_that_missed_a_round_comes_back_by_the_result_in_its_invitation(phase: str) -> None:
    federation = Watched(SITES, faults={LATE: Fault(1, phase, back_in=2)})

    _run(federation, _spec(2, "fedadam"))

    assert federation.rounds_of("FetchLinks", LATE) == []
    assert federation.levels()[1] == dict.fromkeys(SITES, MODEL_RECOMPUTED)


def test_a_site_that_missed_several_rounds_asks_for_their_results() -> None:
    federation = Watched(SITES, faults={LATE: Fault(2, "keys", back_in=5)})

    _run(federation, _spec(5))

    assert federation.rounds_of("FetchLinks", LATE) == [5]
    levels = federation.levels()
    assert [LATE in level for level in levels] == [True, False, False, False, True]


def test_a_site_that_gets_no_results_of_missed_rounds_stays_out_and_the_others_go_on() -> None:
    class Silent(Watched):
        def links_to(self, round_id: RoundId) -> tuple[bytes, ...]:
            return super().links_to(round_id)[:1]

    federation = Silent(SITES, faults={LATE: Fault(2, "keys", back_in=5)})

    _run(federation, _spec(5))

    assert [LATE in level for level in federation.levels()] == [True] + [False] * 4
    assert "put the hash into start_models" in federation.notes(LATE)
    record = federation.coordinator.status("run").rounds[4]
    assert record.dropped[LATE].startswith("refused (model)")


def test_a_later_run_begins_where_an_earlier_one_ended_or_on_its_way() -> None:
    """The last result of a run came with no further invitation: sites ask for it."""
    federation = Watched(SITES)
    _run(federation, _spec(2))

    for run_id, model in zip(("2", "3"), federation.saved_models("run"), strict=True):
        federation.submit(run_id, _spec(1), model)
        assert federation.run(run_id).state == "completed"

    assert federation.asked["FetchLinks", LATE, 1] == 1  # of the last model; the first was known


def test_a_later_run_may_begin_with_another_optimizer() -> None:
    federation = Watched(SITES)
    _run(federation, _spec(2, "fedadam"))
    (_, last) = federation.saved_models("run")

    federation.submit("2", _spec(2, "fedyogi"), last)
    assert federation.run("2").state == "completed"

    assert federation.levels() == [dict.fromkeys(SITES, MODEL_RECOMPUTED)] * 4
    assert federation.states_asked == set()


class Withholding(Watched):
    """A coordinator that hands one site something else than the sum."""

    instead: tuple[bytes, ...] = ()

    def sum_for(self, site: str, round_id: RoundId) -> tuple[bytes, ...]:
        return self.instead if site == LATE else super().sum_for(site, round_id)


@pytest.mark.parametrize("instead", [(), (b"\0" * 64,), (b"\0" * 9999,)])
def test_a_site_that_is_not_given_the_sum_signs_only_what_it_saw(
    instead: tuple[bytes, ...],
) -> None:
    federation = Withholding(SITES)
    federation.instead = instead

    _run(federation, _spec(2))

    others = dict.fromkeys(SITES, MODEL_RECOMPUTED)
    assert federation.levels() == [{**others, LATE: SIGNATURE_ONLY}] * 2
    assert "warning: the round's result was not checked" in federation.notes(LATE)
    assert federation.rounds_of("FetchModel", LATE) == [1, 2]


def test_sites_without_provenance_fetch_no_sum_and_sign_only_what_they_saw() -> None:
    off = LocalPolicy(provenance="off", min_colluders=1)
    federation = Watched(SITES, policy_of=dict.fromkeys(SITES[:4], off))

    _run(federation, _spec(1))

    assert federation.levels() == [
        {**dict.fromkeys(SITES[:4], SIGNATURE_ONLY), LATE: MODEL_RECOMPUTED}
    ]
    assert [site for _, site, _ in federation.asked if _ == "x"] == []
    assert federation.rounds_of("FetchSum", SITES[0]) == []


@pytest.mark.parametrize("how", ["round", "run"])
def test_a_site_that_still_asks_for_results_when_its_round_closes_does_not_enter_it(
    how: str,
) -> None:
    """Whatever answers it later: it would train for nobody."""

    class Slow(Watched):
        asking: SiteEffect | None = None
        slow = False

        def _carry_out_for(self, site: str, effect: SiteEffect) -> None:
            if self.slow and site == LATE and isinstance(effect, FetchLinks):
                self.asking = effect
            else:
                super()._carry_out_for(site, effect)

    federation = Slow(SITES)
    _run(federation, _spec(1))
    (model,) = federation.saved_models("run")
    federation.slow = True
    federation.submit("next", _spec(1), model)
    core = federation.sites[LATE].core
    while federation.asking is None:
        assert federation.step()
    assert core.phase == "asking"
    where = RoundId("next", 1)
    closed = RoundClosed(where, False, "", "") if how == "round" else RunClosed("next", False, "")

    core.handle(CoordinatorSent(RoundClosed(RoundId("run", 1), True, "", "")))
    core.handle(CoordinatorSent(RunClosed("run", True, "")))
    assert core.phase == "asking"  # others than its own change nothing
    core.handle(CoordinatorSent(closed))

    assert core.phase == "idle"
    assert core.handle(LinksFetched(where, federation.links_to(where))) == []
    assert core.phase == "idle"
