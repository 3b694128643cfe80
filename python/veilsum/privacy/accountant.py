"""What private rounds cost together, by way of the package dp-accounting."""

from __future__ import annotations

from typing import Any, Literal, get_args

from veilsum.errors import ConfigError

Method = Literal["rdp", "pld"]

_LOWEST, _HIGHEST = 1 / 512, 512.0


def _library() -> Any:
    """dp-accounting, on first use: importing it takes more than a second."""
    try:
        import dp_accounting
        from dp_accounting import pld, rdp
    except ImportError as error:
        raise ConfigError(
            "accounting needs the package dp-accounting",
            hint="pip install 'veilsum[privacy]'",
        ) from error
    del pld, rdp  # now attributes of the package
    return dp_accounting


def _check_fraction(name: str, value: float) -> None:
    if not 0.0 < value <= 1.0:
        raise ConfigError(f"{name} must be above 0, at most 1, got {value}")


def _check_positive(name: str, value: float) -> None:
    if not 0.0 < value < float("inf"):
        raise ConfigError(f"{name} must be positive and finite, got {value}")


class Accountant:
    """Adds up rounds. Neighbours are two runs that differ in one site: its update is there, or it
    counts for nothing (docs/privacy.md, "The sensitivity").

    "rdp" composes Renyi divergences, which the discrete Gaussian obeys exactly as the
    continuous one does; "pld" composes privacy loss distributions of the continuous one and
    is tighter (docs/privacy.md, "Accounting").
    """

    def __init__(self, method: Method = "rdp") -> None:
        """Nothing spent yet.

        Raises:
            ConfigError: unknown method, or dp-accounting is not installed.
        """
        self._native = _fresh(method)
        self._method = method

    @property
    def method(self) -> Method:
        """How it composes."""
        return self._method

    def add_rounds(
        self, *, noise_multiplier: float, rounds: int = 1, sampling_probability: float = 1.0
    ) -> None:
        """Spends rounds of CentralDP(noise_multiplier=...).

        Args:
            sampling_probability: with which each site took part, independently of the others and
                unknown to whom the result is protected from. 1 if who takes part is public.

        Raises:
            ConfigError: a value is out of range.
        """
        event = _event(noise_multiplier, rounds, sampling_probability)
        self._native.compose(event)

    def epsilon(self, delta: float) -> float:
        """The smallest epsilon for which (epsilon, delta) was shown to hold.

        Raises:
            ConfigError: delta is not above 0 and at most 1.
        """
        _check_fraction("delta", delta)
        return float(self._native.get_epsilon(delta))

    def delta(self, epsilon: float) -> float:
        """The smallest delta for which (epsilon, delta) was shown to hold.

        Raises:
            ConfigError: epsilon is not positive and finite.
        """
        _check_positive("epsilon", epsilon)
        return float(self._native.get_delta(epsilon))


def noise_multiplier_for(
    *,
    epsilon: float,
    delta: float,
    rounds: int,
    sampling_probability: float = 1.0,
    method: Method = "rdp",
) -> float:
    """The smallest noise multiplier with which all rounds together are (epsilon, delta) private.

    Raises:
        ConfigError: a value is out of range, none from 0.002 to 512 is enough, or dp-accounting
            is not installed.
    """
    _check_positive("epsilon", epsilon)
    _check_fraction("delta", delta)
    _event(1.0, rounds, sampling_probability)
    _fresh(method)

    def cost(method: Method, multiplier: float) -> float:
        accountant = Accountant(method)
        accountant.add_rounds(
            noise_multiplier=multiplier, rounds=rounds, sampling_probability=sampling_probability
        )
        return accountant.epsilon(delta)

    def calibrated(method: Method, lowest: float, highest: float) -> float:
        library = _library()
        found = library.calibrate_dp_mechanism(
            lambda: _fresh(method),
            lambda multiplier: _event(multiplier, rounds, sampling_probability),
            target_epsilon=epsilon,
            target_delta=delta,
            bracket_interval=library.ExplicitBracketInterval(lowest, highest),
            tol=1e-4 * max(lowest, 0.1),
        )
        return float(found)

    if cost("rdp", _HIGHEST) > epsilon:
        raise ConfigError(
            f"no noise multiplier up to {_HIGHEST:.0f} makes {rounds} rounds cost just epsilon "
            f"{epsilon}, delta {delta}",
            hint="allow more, or make fewer rounds",
        )
    if cost("rdp", _LOWEST) <= epsilon:
        return _LOWEST
    # The bound of "rdp" is no lower than that of "pld", and close enough to look around: far
    # from the answer a privacy loss distribution takes minutes.
    enough = calibrated("rdp", _LOWEST, _HIGHEST)
    return enough if method == "rdp" else calibrated("pld", enough / 2, enough)


def _fresh(method: str) -> Any:
    if method not in get_args(Method):
        raise ConfigError(
            f"unknown accounting method {method!r}", hint=f"known: {', '.join(get_args(Method))}"
        )
    library = _library()
    return library.rdp.RdpAccountant() if method == "rdp" else library.pld.PLDAccountant()


def _event(noise_multiplier: float, rounds: int, sampling_probability: float) -> Any:
    _check_positive("noise_multiplier", noise_multiplier)
    _check_fraction("sampling_probability", sampling_probability)
    if rounds < 1:
        raise ConfigError(f"rounds must be at least 1, got {rounds}")
    library = _library()
    event = library.GaussianDpEvent(noise_multiplier)
    if sampling_probability < 1.0:
        event = library.PoissonSampledDpEvent(sampling_probability, event)
    return library.SelfComposedDpEvent(event, rounds)
