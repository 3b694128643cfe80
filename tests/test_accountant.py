"""What private rounds cost, against the exact formula of one round and published values."""

from __future__ import annotations

import builtins
from typing import Any

import pytest

from reference import privacy as reference
from veilsum.errors import ConfigError
from veilsum.privacy import Accountant, noise_multiplier_for


def spent(method: Any, **rounds: Any) -> Accountant:
    accountant = Accountant(method)
    accountant.add_rounds(**rounds)
    return accountant


@pytest.mark.parametrize("multiplier", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("delta", [1e-5, 1e-8])
def test_one_round_costs_what_the_analytic_gaussian_mechanism_does(
    multiplier: float, delta: float
) -> None:
    exact = reference.analytic_epsilon(delta, multiplier)

    tight = spent("pld", noise_multiplier=multiplier).epsilon(delta)
    bound = spent("rdp", noise_multiplier=multiplier).epsilon(delta)

    assert exact <= tight * (1 + 1e-6)
    assert tight == pytest.approx(exact, rel=2e-3)
    assert exact <= bound <= 1.25 * exact


def test_rounds_add_up_like_one_with_less_noise() -> None:
    """Gaussian mechanisms compose to a Gaussian one: 16 rounds at 4 are one at 1."""
    exact = reference.analytic_epsilon(1e-5, 1.0)

    assert spent("pld", noise_multiplier=4.0, rounds=16).epsilon(1e-5) == pytest.approx(
        exact, rel=5e-3
    )
    mixed = Accountant("rdp")
    mixed.add_rounds(noise_multiplier=2.0, rounds=2)
    mixed.add_rounds(noise_multiplier=2.0**0.5)
    assert mixed.epsilon(1e-5) == pytest.approx(
        spent("rdp", noise_multiplier=1.0).epsilon(1e-5), rel=1e-9
    )


@pytest.mark.parametrize(("epsilon", "error"), [(1.0, 1.3918e-1), (4.0, 1.1689e-2)])
def test_published_errors_of_the_analytic_gaussian_mechanism_are_met(
    epsilon: float, error: float
) -> None:
    """Mean squared error per coordinate of a mean of 100 vectors of norm 10 at delta 1e-5: the
    central curve of distributed mean estimation experiments (Kairouz et al. 2021)."""
    multiplier = noise_multiplier_for(epsilon=epsilon, delta=1e-5, rounds=1, method="pld")

    assert (10 * multiplier / 100) ** 2 == pytest.approx(error, rel=5e-3)


def test_sampling_costs_less_and_the_known_setting_costs_what_is_published() -> None:
    """60 epochs of batches of 256 out of 60,000 at a multiplier of 1.1: epsilon is quoted as
    2.92 (moments accountant) for delta 1e-5; later conversions of the same are a little lower."""
    q, rounds = 256 / 60_000, 60 * 60_000 // 256

    epsilon = spent("rdp", noise_multiplier=1.1, rounds=rounds, sampling_probability=q).epsilon(
        1e-5
    )

    assert 2.3 < epsilon <= 2.93
    assert epsilon < spent("rdp", noise_multiplier=1.1, rounds=10).epsilon(1e-5)


@pytest.mark.parametrize("method", ["rdp", "pld"])
def test_the_multiplier_that_is_found_is_enough_and_hardly_more(method: Any) -> None:
    found = noise_multiplier_for(epsilon=2.0, delta=1e-6, rounds=30, method=method)

    assert spent(method, noise_multiplier=found, rounds=30).epsilon(1e-6) <= 2.0
    assert spent(method, noise_multiplier=found * 0.995, rounds=30).epsilon(1e-6) > 2.0


def test_a_budget_that_any_noise_meets_takes_the_least() -> None:
    assert noise_multiplier_for(epsilon=1e7, delta=1e-6, rounds=1) == 1 / 512


def test_epsilon_and_delta_are_two_sides_of_one_curve() -> None:
    accountant = spent("rdp", noise_multiplier=1.0, rounds=3)

    assert accountant.delta(accountant.epsilon(1e-6)) == pytest.approx(1e-6, rel=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Accountant("zcdp"), "unknown accounting method"),  # type: ignore[arg-type]
        (lambda: spent("rdp", noise_multiplier=0.0), "noise_multiplier must be positive"),
        (lambda: spent("rdp", noise_multiplier=1.0, rounds=0), "rounds must be at least 1"),
        (
            lambda: spent("rdp", noise_multiplier=1.0, sampling_probability=1.1),
            "sampling_probability must be",
        ),
        (lambda: Accountant().epsilon(0.0), "delta must be above 0"),
        (lambda: Accountant().delta(0.0), "epsilon must be positive"),
        (
            lambda: noise_multiplier_for(epsilon=1e-6, delta=1e-9, rounds=10_000),
            "no noise multiplier up to 512",
        ),
    ],
)
def test_questions_without_an_answer_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()


def test_without_the_package_the_error_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if name.startswith("dp_accounting"):
            raise ImportError(name)
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)

    with pytest.raises(ConfigError, match="needs the package dp-accounting") as caught:
        Accountant()
    assert caught.value.hint == "pip install 'veilsum[privacy]'"
