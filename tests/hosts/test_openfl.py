"""OpenFL averages with veilsum: its stores, plans and rounds, and what it does by itself."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip(
    "openfl", reason="openfl is not installed (its pins exclude veilsum's: docs/embedding.md)"
)

import yaml
from grpc import RpcError
from openfl.databases import TensorDB
from openfl.federated import Plan
from openfl.interface.aggregation_functions import Median, WeightedAverage
from openfl.utilities import LocalTensor, TensorKey

from support.exact_mean import exact_mean
from support.openfl_federation import Model, Trainer, plan_for, run_federation
from support.same_updates import WEIGHTS, assert_is_the_mean
from support.same_updates import trained as trained_alike
from veilsum import ConfigError, PeerError
from veilsum.integrations.openfl import VeilsumAverage
from veilsum.model import ModelLayout, result_digest

# OpenFL 1.9 says what NumPy 2.1 to 2.3 deprecate, and 2.4 does not have any more.
pytestmark = pytest.mark.filterwarnings("ignore:`newshape` keyword argument:DeprecationWarning")

SAMPLES = {"rome": 1003, "turin": 250, "milan": 77, "bari": 5000, "pisa": 613}
TEMPLATE = "veilsum.integrations.openfl.VeilsumAverage"


def shares(samples: dict[str, int]) -> dict[str, float]:
    """As OpenFL's aggregator divides them."""
    return {site: count / sum(samples.values()) for site, count in samples.items()}


def trained(seed: int, shape: tuple[int, ...] = (40, 5)) -> dict[str, NDArray[np.float32]]:
    random = np.random.default_rng(seed)
    return {site: random.normal(size=shape).astype(np.float32) for site in SAMPLES}


def averaged_in_store(
    tensors: dict[str, Any], function: Any, samples: dict[str, int] = SAMPLES
) -> NDArray[Any]:
    """By OpenFL's TensorDB, as its aggregator asks it at the end of a round."""
    store = TensorDB()
    for site, tensor in tensors.items():
        tags = tuple(sorted(("trained", site)))
        store.cache_tensor({TensorKey("w", "aggregator", 0, False, tags): tensor})
    return store.get_aggregated_tensor(
        TensorKey("w", "aggregator", 0, False, ("trained",)), shares(samples), function
    )


def assert_same_bits(found: NDArray[Any], expected: NDArray[Any]) -> None:
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert found.tobytes() == expected.tobytes()


def test_the_store_gives_the_exact_mean_rounded_once() -> None:
    tensors = trained(seed=1)

    mean = averaged_in_store(tensors, VeilsumAverage())

    assert_same_bits(mean, exact_mean(list(tensors.values()), list(SAMPLES.values())))


def test_the_order_of_collaborators_changes_no_bit_of_ours_but_of_openfls() -> None:
    tensors = trained(seed=2)
    turned = dict(reversed(tensors.items()))
    turned_samples = dict(reversed(SAMPLES.items()))

    ours = averaged_in_store(tensors, VeilsumAverage())
    theirs = averaged_in_store(tensors, WeightedAverage())

    assert_same_bits(averaged_in_store(turned, VeilsumAverage(), turned_samples), ours)
    assert (averaged_in_store(turned, WeightedAverage(), turned_samples) != theirs).any()


def test_openfl_adds_in_float32_where_ours_is_the_reference_to_the_last_bit() -> None:
    tensors = trained(seed=3)
    weights = list(SAMPLES.values())
    reference = np.average(
        [tensor.astype(np.float64) for tensor in tensors.values()], axis=0, weights=weights
    )

    theirs = averaged_in_store(tensors, WeightedAverage())
    ours = averaged_in_store(tensors, VeilsumAverage())

    assert_same_bits(ours, reference.astype(np.float32))
    assert (theirs != ours).mean() > 0.2
    np.testing.assert_allclose(theirs, reference, atol=1e-6)


def test_a_float16_tensor_keeps_small_values_that_openfls_sum_loses() -> None:
    smallest = np.full(3, np.float16(2.0**-24), dtype=np.float16)
    tensors, samples = {"rome": smallest, "turin": smallest}, {"rome": 1, "turin": 1}

    ours = averaged_in_store(tensors, VeilsumAverage(), samples)
    theirs = averaged_in_store(tensors, WeightedAverage(), samples)

    assert_same_bits(ours, smallest)
    assert_same_bits(theirs, np.zeros(3, dtype=np.float16))


def test_integers_stay_integers_where_openfl_makes_them_floats() -> None:
    counters = {"rome": np.array([2**53 + 1, 7]), "turin": np.array([2**53 + 1, 8])}
    samples = {"rome": 1, "turin": 1}

    ours = averaged_in_store(counters, VeilsumAverage(), samples)
    theirs = averaged_in_store(counters, WeightedAverage(), samples)

    assert_same_bits(ours, np.array([2**53 + 1, 8]))  # 7.5 goes to the even neighbour
    assert theirs.dtype == np.float64
    assert int(theirs[0]) == 2**53


@pytest.mark.parametrize(
    "one", [np.array(0.25, dtype=np.float32), np.zeros((0, 3), dtype=np.float32)], ids=str
)
def test_scalars_and_empty_tensors_keep_their_shape(one: NDArray[np.float32]) -> None:
    tensors = [LocalTensor("rome", one, 0.25), LocalTensor("turin", one * 3, 0.75)]

    mean = VeilsumAverage()(tensors, iter(()), "w", 0, ("trained",))

    assert_same_bits(mean, exact_mean([one, one * 3], [1, 3]))


def test_metrics_are_averaged_like_tensors() -> None:
    accuracy = {"rome": 0.5, "turin": 0.75}

    mean = averaged_in_store(accuracy, VeilsumAverage(), {"rome": 1, "turin": 3})

    assert float(mean) == 0.6875


def test_a_collaborator_without_samples_takes_no_part() -> None:
    tensors = {"rome": np.array([1.0]), "turin": np.array([np.nan])}

    mean = averaged_in_store(tensors, VeilsumAverage(), {"rome": 10, "turin": 0})

    assert_same_bits(mean, np.array([1.0]))


def test_a_plan_chooses_the_rule_and_each_task_has_its_own() -> None:
    tensors = trained(seed=4)
    mean = Plan.build(TEMPLATE, {})
    median = Plan.build(TEMPLATE, {"rule": "median"})
    trimmed = Plan.build(TEMPLATE, {"rule": "trimmed_mean", "rule_settings": {"trim": 1}})

    stacked = np.sort(np.stack(list(tensors.values())), axis=0)

    assert_same_bits(averaged_in_store(tensors, median), stacked[2])
    assert_same_bits(averaged_in_store(tensors, trimmed), exact_mean(list(stacked[1:4]), [1] * 3))
    assert_same_bits(averaged_in_store(tensors, median), averaged_in_store(tensors, Median()))
    assert (averaged_in_store(tensors, mean) != stacked[2]).any()


def test_the_plan_of_the_page_on_embedding_builds_the_function() -> None:
    page = (Path(__file__).parents[2] / "docs" / "embedding.md").read_text()
    plan = page.split("## OpenFL\n")[1].split("```yaml\n")[1].split("```")[0]

    built = Plan.build(**yaml.safe_load(plan)["tasks"]["train"]["aggregation_type"])

    assert isinstance(built, VeilsumAverage)


def test_equal_weights_count_every_collaborator_the_same() -> None:
    tensors = trained(seed=5)

    mean = averaged_in_store(tensors, VeilsumAverage(equal_weights=True))

    assert_same_bits(mean, exact_mean(list(tensors.values()), [1] * len(tensors)))


@pytest.mark.parametrize(
    ("settings", "message", "hint"),
    [
        ({"rule": "avg"}, "unknown rule 'avg'", "known: mean, median"),
        ({"rule": "krum", "rule_settings": {"byzantine": 1}}, "compares whole updates", '"median"'),
        ({"rule": "trimmed_mean"}, "needs 'trim'", "it takes trim"),
        ({"rule_settings": {"trim": 1}}, "does not take 'trim'", "it takes none"),
    ],
)
def test_settings_that_cannot_work_are_refused_with_the_plan(
    settings: dict[str, Any], message: str, hint: str
) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        Plan.build(TEMPLATE, settings)

    assert hint in str(refused.value.hint)


@pytest.mark.parametrize(
    "bad",
    [np.full(2, np.nan, np.float32), np.zeros(3, np.float32), np.zeros(2)],
    ids=["not finite", "another shape", "another dtype"],
)
def test_a_bad_tensor_stops_the_round_with_the_name_of_its_collaborator(
    bad: NDArray[Any],
) -> None:
    tensors = {"rome": np.zeros(2, np.float32), "turin": bad}

    with pytest.raises(PeerError, match="'turin'"):
        averaged_in_store(tensors, VeilsumAverage(), {"rome": 1, "turin": 1})


@pytest.mark.parametrize("settings", [{}, {"equal_weights": True}, {"rule": "median"}], ids=str)
def test_two_collaborators_of_one_name_are_refused_as_one_would_count_for_both(
    settings: dict[str, Any],
) -> None:
    one = np.zeros(2, np.float32)
    tensors = [LocalTensor(name, one, 0.25) for name in ("rome", "turin", "rome", "pisa")]

    with pytest.raises(ConfigError, match="2 tensors 'w' of collaborator 'rome'") as refused:
        VeilsumAverage(**settings)(tensors, iter(()), "w", 0, ("trained",))

    assert "a name of its own" in str(refused.value.hint)


def test_nobody_with_samples_is_refused() -> None:
    tensors = [LocalTensor("rome", np.zeros(2), 0.0)]

    with pytest.raises(ConfigError, match="no collaborator has samples behind tensor 'w'"):
        VeilsumAverage()(tensors, iter(()), "w", 0, ())


def test_the_updates_of_test_same_digest_come_to_the_same_digest_here() -> None:
    updates = {str(site): trained_alike(site) for site in WEIGHTS}
    samples = {str(site): weight for site, weight in WEIGHTS.items()}

    assert_is_the_mean(
        {
            name: averaged_in_store(
                {site: update[name] for site, update in updates.items()}, VeilsumAverage(), samples
            )
            for name in updates["1"]
        }
    )


def learned(site: str, model: Model, number: int) -> Model:
    """What a collaborator sends in a round; depends on the model that it was given."""
    random = np.random.default_rng([number, *site.encode()])
    return {
        name: (array + random.normal(size=array.shape)).astype(np.float32)
        for name, array in model.items()
    }


MODEL: Model = {
    "dense.weight": np.linspace(-1, 1, 120, dtype=np.float32).reshape(24, 5),
    "dense.bias": np.zeros(24, dtype=np.float32),
    "scale": np.array(0.5, dtype=np.float32),
}


def expected_model(rounds: int) -> Model:
    model = MODEL
    for number in range(rounds):
        updates = [learned(site, model, number) for site in SAMPLES]
        model = {
            name: exact_mean([update[name] for update in updates], list(SAMPLES.values()))
            for name in MODEL
        }
    return model


def trainers() -> dict[str, Trainer]:
    return {
        site: Trainer(count, partial(learned, site), names=tuple(MODEL))
        for site, count in SAMPLES.items()
    }


def test_a_federation_over_grpc_ends_in_the_reference_to_the_last_bit(tmp_path: Path) -> None:
    plan = plan_for(tmp_path, {"template": TEMPLATE}, rounds=3, deltas=False, sites=list(SAMPLES))

    model = run_federation(plan, MODEL, trainers())

    expected = expected_model(rounds=3)
    layout = ModelLayout.from_arrays(MODEL)
    assert {name: array.tobytes() for name, array in model.items()} == {
        name: array.tobytes() for name, array in expected.items()
    }
    assert result_digest(layout, model) == result_digest(layout, expected)


def test_models_that_openfl_sends_as_differences_are_rounded_again_by_it(tmp_path: Path) -> None:
    plan = plan_for(tmp_path, {"template": TEMPLATE}, rounds=3, deltas=True, sites=list(SAMPLES))

    model = run_federation(plan, MODEL, trainers())

    expected = expected_model(rounds=3)
    found = model["dense.weight"]
    assert (found != expected["dense.weight"]).any()
    np.testing.assert_allclose(found, expected["dense.weight"], atol=2e-6)


def test_openfls_messages_turn_counters_into_float32_before_any_sum(tmp_path: Path) -> None:
    model: Model = {"num_batches_tracked": np.array(3)}
    plan = plan_for(tmp_path, {"template": TEMPLATE}, rounds=1, deltas=False, sites=["rome"])

    found = run_federation(
        plan, model, {"rome": Trainer(1, lambda given, number: model, names=tuple(model))}
    )

    assert_same_bits(found["num_batches_tracked"], np.array(3.0, np.float32))


def test_a_bad_tensor_is_an_error_of_the_last_collaborators_call(tmp_path: Path) -> None:
    def broken(model: Model, number: int) -> Model:
        return {**model, "dense.bias": np.full(24, np.nan, np.float32)}

    plan = plan_for(tmp_path, {"template": TEMPLATE}, rounds=1, deltas=False, sites=list(SAMPLES))

    with pytest.raises(RpcError, match="site 'turin' sent 24 values that are not finite"):
        run_federation(
            plan, MODEL, {**trainers(), "turin": Trainer(250, broken, names=tuple(MODEL))}
        )

    assert plan.get_aggregator().round_number == 0


def test_importing_the_adapter_needs_little_of_what_veilsum_depends_on() -> None:
    """What fits beside OpenFL's pins: neither gRPC nor protobuf of veilsum's choice."""
    code = (
        "import sys, openfl.federated; before = set(sys.modules); "
        f"import {TEMPLATE.rpartition('.')[0]}; import veilsum; veilsum.Aggregator; "
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}"
        " - set(sys.stdlib_module_names) - {'veilsum'}))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert set(done.stdout.split()) <= {"numpy", "safetensors", "typing_extensions"}
