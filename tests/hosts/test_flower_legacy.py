"""FedAvg for Flower's legacy Strategy API, against plain NumPy in double precision."""

from __future__ import annotations

import inspect
import logging

import numpy as np
import pytest

from veilsum import Aggregator, ConfigError, ModelLayout

pytest.importorskip("flwr", reason="flwr is not installed (extra `flower`)")

from flwr.common import FitRes, Parameters, ndarrays_to_parameters
from flwr.common import parameters_to_ndarrays as to_ndarrays
from flwr.server.client_manager import SimpleClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import FedAvg as HostFedAvg
from flwr.serverapp.exception import AggregationError

from support.flower_legacy import fit_result
from veilsum.integrations.flower import LegacyFedAvg
from veilsum.optimizers import FedAvgM

WEIGHTS = {"lyon": 10, "osaka": 250, "quito": 33}
INITIAL = [np.zeros((20, 30), np.float32), np.zeros(20, np.float32), np.zeros((), np.int64)]


def trained(site: str) -> list[np.ndarray]:
    random = np.random.default_rng(list(WEIGHTS).index(site))
    return [
        random.normal(size=(20, 30)).astype(np.float32),
        random.normal(size=20).astype(np.float32),
        np.array(random.integers(1000)),
    ]


def results(**changed) -> list[tuple[ClientProxy, FitRes]]:
    """One of each site, some of them with other arrays or another weight."""
    return [
        fit_result(site, **{"arrays": trained(site), "weight": weight, **changed.get(site, {})})
        for site, weight in WEIGHTS.items()
    ]


def configured(**settings) -> LegacyFedAvg:
    strategy = LegacyFedAvg(min_available_clients=0, min_fit_clients=0, **settings)
    strategy.configure_fit(1, ndarrays_to_parameters(INITIAL), SimpleClientManager())
    return strategy


def reference(sites) -> list[np.ndarray]:
    weights = [WEIGHTS[site] for site in sites]
    means = [
        np.average([trained(site)[i].astype(float) for site in sites], 0, weights)
        for i in range(len(INITIAL))
    ]
    return [*means[:2], np.rint(means[2])]


def assert_is_reference(parameters: Parameters, sites) -> None:
    found = to_ndarrays(parameters)
    assert [values.dtype for values in found] == [values.dtype for values in INITIAL]
    for values, expected in zip(found, reference(sites), strict=True):
        np.testing.assert_allclose(values, expected, rtol=2e-7, atol=1e-7)


def test_the_options_are_flowers_and_more():
    theirs = set(inspect.signature(HostFedAvg.__init__).parameters) - {"self"}

    strategy = LegacyFedAvg(**{
        name: parameter.default
        for name, parameter in inspect.signature(HostFedAvg.__init__).parameters.items()
        if name in theirs
    })  # fmt: skip

    assert all(hasattr(strategy, name) for name in theirs)
    with pytest.raises(TypeError, match="fraction_fitt"):
        LegacyFedAvg(fraction_fitt=1.0)


def test_a_round_is_the_mean_and_its_digest_that_of_an_aggregator():
    strategy = configured(fit_metrics_aggregation_fn=lambda m: {"seen": len(m)})

    parameters, metrics = strategy.aggregate_fit(1, results(), [])

    aggregator = Aggregator(ModelLayout.from_arrays(dict(zip("012", INITIAL, strict=True))))
    for site, weight in WEIGHTS.items():
        update = dict(zip("012", trained(site), strict=True))
        aggregator.add(update, weight=weight, site=site)
    assert_is_reference(parameters, WEIGHTS)
    assert strategy.rounds[1].digest == aggregator.finish().digest
    assert metrics == {"seen": 3}


def test_a_round_that_was_not_configured_takes_the_first_results_layout():
    parameters, _ = LegacyFedAvg().aggregate_fit(1, results(), [])

    assert_is_reference(parameters, WEIGHTS)


NOT_FINITE = [trained("osaka")[0] * np.float32("nan"), *trained("osaka")[1:]]


@pytest.mark.parametrize(("change", "reason"), [
    ({"arrays": trained("osaka")[:2]}, "1 ('2') missing"),
    ({"arrays": NOT_FINITE}, "finite"),
    ({"weight": 0}, "has weight 0"),
    ({"weight": -3}, "has weight -3"),
    ({"arrays": Parameters([b"x"], "numpy.ndarray")}, "not a .npy file"),
    ({"arrays": Parameters([b"x"], "veilsum.int8")}, "at least"),
], ids=["missing", "nan", "zero", "negative", "bytes", "native"])  # fmt: skip
def test_a_bad_result_costs_its_site_the_round_and_no_other(caplog, change, reason):
    strategy = configured()

    with caplog.at_level(logging.WARNING, "flwr"):
        parameters, _ = strategy.aggregate_fit(1, results(osaka=change), [])

    assert_is_reference(parameters, ["lyon", "quito"])
    assert reason in strategy.rounds[1].refused["osaka"]
    assert reason in caplog.text


def test_a_refused_result_is_a_failure_where_failures_are_not_accepted():
    strategy = configured(accept_failures=False)

    assert strategy.aggregate_fit(1, results(osaka={"weight": 0}), []) == (None, {})
    assert strategy.aggregate_fit(1, results(), [RuntimeError("lost")]) == (None, {})
    assert strategy.aggregate_fit(1, [], []) == (None, {})


@pytest.mark.parametrize("lost", [0, 1])
def test_where_every_result_is_refused_it_is_an_error_though_a_few_sites_failed(lost):
    nothing = {site: {"weight": 0} for site in WEIGHTS}

    with pytest.raises(AggregationError, match="no result can be used"):
        configured().aggregate_fit(1, results(**nothing), [RuntimeError()] * lost)


def test_where_as_many_sites_failed_as_were_refused_the_model_stays():
    nothing = {site: {"weight": 0} for site in WEIGHTS}
    failures = [RuntimeError() for _ in WEIGHTS]

    assert configured().aggregate_fit(1, results(**nothing), failures) == (None, {})


def test_a_server_optimizer_steps_by_the_mean_difference():
    strategy = configured(optimizer=FedAvgM(momentum=0.5))

    first, _ = strategy.aggregate_fit(1, results(), [])
    strategy.configure_fit(2, first, SimpleClientManager())
    second, _ = strategy.aggregate_fit(2, results(), [])

    mean = reference(WEIGHTS)[0]
    np.testing.assert_allclose(to_ndarrays(second)[0], 1.5 * mean, rtol=1e-5, atol=1e-6)


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ConfigError, match="unknown rule"):
        LegacyFedAvg(rule="medium")
